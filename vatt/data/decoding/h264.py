"""What the packets of an H.264 stream tell of their pictures before one is decoded: which of them nothing builds on.

A decoder may leave such a picture out, and all others come out as they are. That it is not missed is known from the
times of the packets, so these must be right: they are compared with the order in which the stream itself shows its
pictures. Where it does not, or anything else is unusual (fields, gaps, settings that change), nothing is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from av.packet import Packet

REMEMBERED = 64  # pictures: more than any stream is reordered by
HEADER = 24  # bytes from the start of a slice that hold what is read of it
CHROMA_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128)  # whose settings begin with the colours
SLICE, KEY_SLICE, PARTITIONS, SETTINGS = 1, 5, (2, 3, 4), 7  # kinds of units


class Unusual(Exception):
    """A stream whose pictures are not followed."""


class _Bits:
    def __init__(self, data: bytes) -> None:
        # A 3 after two zeros keeps the data from looking like a start code. The 1 before all keeps the first zeros.
        self.bits = bin(int.from_bytes(b"\1" + data.replace(b"\0\0\3", b"\0\0"), "big"))[3:]
        self.place = 0

    def number(self, length: int) -> int:
        self.place += length
        if self.place > len(self.bits):
            raise Unusual
        return int(self.bits[self.place - length : self.place], 2)

    def golomb(self) -> int:
        zeros = self.bits.find("1", self.place) - self.place
        if zeros < 0:
            raise Unusual
        self.place += zeros
        return self.number(zeros + 1) - 1


class PictureOrder:
    """Follows the pictures of one stream, packet by packet in the order of decoding, from any key frame on."""

    def __init__(self, extradata: bytes | None) -> None:
        """Raises `Unusual` for a stream that is not followed."""
        data = extradata or b""
        self.length = 0  # bytes of a unit's length; 0: start codes are between units
        if data[:1] == b"\1" and len(data) > 8:
            self.length = data[4] % 4 + 1
            size = int.from_bytes(data[6:8], "big")
            settings = [data[8 : 8 + size]] if data[5] % 32 == 1 else []
        else:
            settings = [bytes(unit) for unit in self._units(data) if unit[0] % 32 == SETTINGS]
        if len(settings) != 1 or not settings[0]:
            raise Unusual
        self.settings = settings[0]
        self._read_settings(_Bits(self.settings[1:]))
        self.sequence = 0  # key frames so far
        self.number = self.high = self.low = 0  # of the last reference picture: its number, and its place in parts
        self.places: list[tuple[int, int]] = []  # of the last pictures in order of display, as the stream says
        self.stamps: list[int] = []  # and as their packets say, in ticks
        self.usual = True

    def follow(self, packet: Packet) -> bool:
        """Return whether nothing builds on the picture of the next packet; from an oddity on `usual` is false."""
        if self.usual and packet.size:
            try:
                return self._follow(packet)
            except Unusual:
                self.usual = False
        return False

    def until(self, stamp: int) -> int | None:
        """Return the time of the next picture shown after `stamp`, of those followed; None: there is none yet."""
        place = bisect_right(self.stamps, stamp)
        return self.stamps[place] if place < len(self.stamps) else None

    def _follow(self, packet: Packet) -> bool:
        if packet.pts is None or packet.is_corrupt or packet.is_discard:
            raise Unusual
        first = None
        for unit in self._units(memoryview(packet)):
            kind = unit[0] % 32
            if kind in (SLICE, KEY_SLICE):
                first = first or unit
                if unit[0] != first[0]:
                    raise Unusual
            elif kind in PARTITIONS or (kind == SETTINGS and bytes(unit) != self.settings):
                raise Unusual
        if first is None:
            raise Unusual
        reference, kind = first[0] >> 5 & 3, first[0] % 32
        bits = _Bits(bytes(first[1:HEADER]))
        if bits.golomb():  # of a picture whose first slice is not here
            raise Unusual
        bits.golomb()
        bits.golomb()
        number = bits.number(self.frame_bits)
        if kind == KEY_SLICE:
            bits.golomb()
            self.sequence += 1
        elif self.places and number not in (self.number, (self.number + 1) % (1 << self.frame_bits)):
            raise Unusual  # a picture is missing
        if reference:
            self.number = number
        self._insert(self._place(bits, kind == KEY_SLICE, bool(reference)), packet.pts)
        return not reference

    def _place(self, bits: _Bits, key: bool, reference: bool) -> int:
        if not self.place_bits:  # pictures are shown in the order of decoding
            self.low += 1
            return self.low
        low, half = bits.number(self.place_bits), 1 << self.place_bits - 1
        if key or not self.places:
            self.high, self.low = 0, 0 if key else low
        high = self.high
        if self.low - low >= half:
            high += 2 * half
        elif low - self.low > half:
            high -= 2 * half
        if reference:
            self.high, self.low = high, low
        return high + low

    def _insert(self, place: int, stamp: int) -> None:
        here, there = bisect_right(self.places, (self.sequence, place)), bisect_right(self.stamps, stamp)
        twice = here and (self.places[here - 1] == (self.sequence, place) or self.stamps[here - 1] == stamp)
        if here != there or twice or (here == 0 and len(self.places) == REMEMBERED):
            raise Unusual
        self.places.insert(here, (self.sequence, place))
        self.stamps.insert(here, stamp)
        del self.places[:-REMEMBERED], self.stamps[:-REMEMBERED]

    def _units(self, data: bytes | memoryview) -> Iterator[bytes | memoryview]:
        if not self.length:
            for unit in bytes(data).split(b"\0\0\1")[1:]:
                if not (unit := unit.rstrip(b"\0")):
                    raise Unusual
                yield unit
            return
        place = 0
        while place < len(data):
            begins = place + self.length
            place = begins + int.from_bytes(data[place:begins], "big")
            if not begins < place <= len(data):
                raise Unusual
            yield data[begins:place]

    def _read_settings(self, bits: _Bits) -> None:
        profile = bits.number(8)
        bits.number(16)
        bits.golomb()
        if profile in CHROMA_PROFILES:
            chroma = bits.golomb()
            if chroma == 3 and bits.number(1):  # colours apart, each a picture
                raise Unusual
            bits.golomb()
            bits.golomb()
            if bits.number(2) % 2:  # tables of quantisation, which few encoders write
                raise Unusual
        self.frame_bits = bits.golomb() + 4
        order = bits.golomb()
        if order not in (0, 2):
            raise Unusual
        self.place_bits = 0 if order == 2 else bits.golomb() + 4
        bits.golomb()
        gaps = bits.number(1)
        bits.golomb()
        bits.golomb()
        if gaps or not bits.number(1):  # frames that are left out on purpose, or fields
            raise Unusual
