"""Seconds of timestamps; clocks of files that do not run on: recordings joined with `cat`, streams without timestamps.

Where recordings of a streaming format are put one after the other, the timestamps of each begin anew, and no header
tells of them all. Such a file is found by reading its packets once, and gets one clock: each part begins where the
pictures of the part before end (the sound, in a file without pictures), and its streams keep their distance. What is
not a step back stays as it is: a gap in a recording is a gap.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

RESTARTING = ("mpegts", "mpeg", "flv")  # formats without a table of contents, which parts can be appended to
BACK = 0.25  # seconds that a decoding time goes back: no stream that runs on does so
AHEAD = 43_000.0  # a clock of 33 bits that went back a little more is reported half its range or more ahead
READ_WHOLE = 2**26  # bytes of a file whose every packet is looked at; of larger ones `SAMPLES` places are, at first
SAMPLES = 64
SOUND_MARK = 0.5  # seconds between the places to which one can go in a sound
KNOWN_FILES = 4096

K = TypeVar("K")
V = TypeVar("V")


@dataclass
class _Part:
    position: int  # bytes
    joined: set[int]  # streams seen in it
    first: dict[int, float] = field(default_factory=dict)  # by stream, in seconds of its own clock
    end: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Joined:
    """One clock for a file of several: `positions` (bytes) of its parts, and the seconds that each is moved by.

    `marks`: (second, byte) of the places of the clock's stream from which decoding can begin, in the order of time;
    `end`: where that stream ends, in seconds of the one clock.
    """

    positions: tuple[int, ...]
    offsets: tuple[float, ...]
    marks: tuple[tuple[float, int], ...]
    end: float

    def part(self, packet: Packet, before: int) -> int:
        """Return the part that a packet belongs to; `before`: that of the packet before, for one without a place."""
        position = -1 if packet.pos is None else packet.pos
        return before if position < 0 else max(0, bisect_right(self.positions, position) - 1)

    def move(self, packet: Packet, part: int) -> None:
        """Write the one clock's times into a packet of `part`."""
        shift = round(self.offsets[part] / float(packet.time_base))
        if packet.pts is not None:
            packet.pts += shift
        if packet.dts is not None:
            packet.dts += shift

    def mark(self, second: float) -> int | None:
        """Return the byte to begin reading at for `second` of the one clock; None: the beginning of the file."""
        index = bisect_right(self.marks, (second, 2**63)) - 1
        return self.marks[index][1] if index >= 0 else None


Version = tuple[Path, int, int]  # a file, its bytes and when it changed: what a process knows of a file holds so long
_known: dict[tuple[Version, int], Joined | None] = {}


def joined_clock(
    file: Version, stream: int, open_: Callable[[], InputContainer], check: Callable[[], None]
) -> Joined | None:
    """Return the one clock of a file whose own begins anew; None for a file whose clock runs on.

    A process looks at a file once, as long as it does not change.

    Args:
        file: which one.
        stream: index of the stream whose end is the end of a part.
        open_: opens it anew, in one of the formats `RESTARTING`.
        check: raises when reading takes too long.
    """
    key, size = (file, stream), file[1]
    if key not in _known:
        joined = None
        with open_() as container:
            suspect = size <= READ_WHOLE or _runs_back(container, stream, size, check)
        if suspect:
            with open_() as container:
                joined = _scanned(container, stream, check)
        remember(_known, key, joined)
    return _known[key]


def remember(known: dict[K, V], key: K, value: V) -> None:
    """Keep what was found out of a file, of a bounded number of files."""
    if len(known) >= KNOWN_FILES:
        known.clear()
    known[key] = value


def _runs_back(container: InputContainer, stream: int, size: int, check: Callable[[], None]) -> bool:
    """Whether decoding times at places all over the file are out of order."""
    last: float | None = None
    for sample in range(SAMPLES):
        check()
        try:
            container.seek(sample * size // SAMPLES, unsupported_byte_offset=True)
            at = next((_time(packet) for packet in container.demux(stream) if packet.dts is not None), None)
        except (FFmpegError, OSError, IndexError):
            continue
        if at is None:
            continue
        if last is not None and _restarts(last, at):
            return True
        last = at
    return False


def _time(packet: Packet) -> float:
    assert packet.dts is not None
    return float(packet.dts * packet.time_base)


def _restarts(last: float, at: float) -> bool:
    return at < last - BACK or at > last + AHEAD


def _scanned(container: InputContainer, stream: int, check: Callable[[], None]) -> Joined | None:
    parts = [_Part(0, set())]
    last: dict[int, float] = {}
    marks: list[tuple[int, float, int]] = []  # part, second of its own clock, byte
    kind = container.streams[stream].type
    packets = container.demux(*container.streams.video, *container.streams.audio)
    while True:
        check()
        try:
            packet = next(packets, None)
        except (FFmpegError, OSError, IndexError):  # damage ends it, as it ends reading
            break
        if packet is None:
            break
        index, position = packet.stream_index, -1 if packet.pos is None else packet.pos
        if packet.dts is not None:
            at = _time(packet)
            if index in last and _restarts(last[index], at):
                if index in parts[-1].joined:
                    parts.append(_Part(position, set()))
                elif 0 <= position < parts[-1].position:  # another stream met the same joint earlier in the file
                    parts[-1].position = position
                parts[-1].joined.add(index)
            last[index] = at
        stamp = packet.pts if packet.pts is not None else packet.dts
        # What a demuxer held back until it met the next part belongs to the part before.
        number = len(parts) - 1
        if len(parts) > 1 and 0 <= position < parts[-1].position:
            number -= 1
        part = parts[number]
        part.joined.add(index)
        if stamp is None:
            continue
        shown = float(stamp * packet.time_base)
        part.first[index] = min(part.first.get(index, shown), shown)
        length = float((packet.duration or 0) * packet.time_base)
        part.end[index] = max(part.end.get(index, shown), shown + length)
        distant = not marks or marks[-1][0] != number or shown >= marks[-1][1] + SOUND_MARK
        if index == stream and packet.is_keyframe and position >= 0 and (kind == "video" or distant):
            marks.append((number, shown, position))
    if len(parts) == 1:
        return None
    offsets = [0.0]
    for before, part in pairwise(parts):
        ends = before.end.get(stream, max(before.end.values(), default=0.0))
        offsets.append(offsets[-1] + ends - part.first.get(stream, min(part.first.values(), default=0.0)))
    times = [(shown + offsets[number], position) for number, shown, position in marks]
    end = max(
        (part.end[stream] + offset for part, offset in zip(parts, offsets, strict=True) if stream in part.end),
        default=0.0,
    )
    return Joined(tuple(part.position for part in parts), tuple(offsets), tuple(sorted(times)), end)


def seconds_of(value: int | None, stream: VideoStream | AudioStream) -> float | None:
    return clock_of(stream)(value)


def clock_of(stream: VideoStream | AudioStream) -> Callable[[int | None], float | None]:
    """Return what turns timestamps of a stream into seconds. For many: PyAV makes a fraction anew at each look."""
    base = stream.time_base
    if base is None:
        return lambda value: None
    numerator, denominator = base.numerator, base.denominator
    return lambda value: None if value is None else value * numerator / denominator
