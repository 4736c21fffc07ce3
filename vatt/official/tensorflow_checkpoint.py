"""TensorFlow 2 checkpoints (PREFIX.index and PREFIX.data-0000i-of-0000n) read without TensorFlow.

The index is a LevelDB table: blocks of sorted, prefix-compressed keys, each with a type byte and a masked crc32c, and a
48-byte footer. Its values are protobufs: what a data file holds where, as raw little-endian bytes (TensorFlow's
tensor_bundle.proto, LevelDB's table_format.md). Nothing is executed, every checksum compared, no size trusted.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import reduce
from pathlib import Path

import numpy as np

from ..errors import MissingPackage, VattError

_MAGIC, _FOOTER = (0xDB4775248B80FB57).to_bytes(8, "little"), 48
_INDEX_LIMIT, _EXPANSION_LIMIT = 16 << 20, 32  # bytes of an index; bytes of keys per byte of a block, cheap to forge
_STRING, _BFLOAT16 = 7, 14
_STORED = {1: "<f4", 2: "<f8", 3: "<i4", 4: "u1", _STRING: "O", 9: "<i8", 10: "?", _BFLOAT16: "<u2", 19: "<f2"}
_TYPES = 128  # numbers of data types are below
_DAMAGED = "The file is damaged or incomplete: get the .index and all .data files again from one source."
_RESAVE = "Save it again with tf.train.Checkpoint on a little-endian machine, unpartitioned and uncompressed."
_Entry = tuple[int, tuple[int, ...], int, int, int, int]  # dtype number, shape, data file, offset, size, masked crc32c


class CheckpointError(VattError, ValueError):
    """A checkpoint that cannot be read, with the `file` and, where known, the tensor's `key` and the byte `offset`."""

    def __init__(self, file: Path, key: str | None, offset: int | None, fault: str, way_out: str = _DAMAGED) -> None:
        tensor, position = f", tensor {key!r}" if key else "", "" if offset is None else f", byte {offset}"
        super().__init__(f"{file}{tensor}{position}: {fault}. {way_out}")
        self.file, self.key, self.offset = file, key, offset


def _masked_crc32c(*parts: bytes) -> bytes:
    """Return CRC-32C of the joined parts, rotated, shifted and little-endian as LevelDB stores it."""
    try:
        from google_crc32c import extend
    except ImportError as error:
        raise MissingPackage(
            "reading TensorFlow checkpoints needs crc32c: pip install -e '.[official]' in the project's folder"
        ) from error
    crc = reduce(extend, parts, 0)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


class _Cursor:
    """Bytes that lie in `file` from `start` on, read front to back; running past the end is a CheckpointError."""

    def __init__(self, data: bytes, file: Path, start: int, key: str | None = None) -> None:
        self.data, self.file, self.start, self.key, self.at = data, file, start, key, 0

    def require(self, fact: bool, otherwise: str, way_out: str = _DAMAGED) -> None:
        if not fact:
            raise CheckpointError(self.file, self.key, self.start + self.at, otherwise, way_out)

    def take(self, count: int) -> "_Cursor":
        self.require(self.at + count <= len(self.data), f"{count} bytes expected, {len(self.data) - self.at} left")
        self.at += count
        return _Cursor(self.data[self.at - count : self.at], self.file, self.start + self.at - count, self.key)

    def varint(self) -> int:
        value = shift = 0
        while (byte := self.take(1).data[0]) >= 0x80 and shift < 63:
            value, shift = value | (byte & 0x7F) << shift, shift + 7
        self.require(byte << shift < 1 << 64, "a number of more than 64 bits")
        return value | byte << shift

    def message(self) -> tuple[dict[int, int], dict[int, list["_Cursor"]]]:
        """Parse protobuf fields, 0 or [] where absent: numbers (the last one counts) and length-delimited parts
        (all).
        """
        numbers, parts = defaultdict[int, int](int), defaultdict[int, list[_Cursor]](list)
        while self.at < len(self.data):
            field, wire = divmod(self.varint(), 8)
            self.require(wire in (0, 1, 2, 5), f"unknown protobuf wire type {wire}")
            if wire == 2:
                parts[field].append(self.take(self.varint()))
            else:  # wire type 1 is 8 bytes wide, 5 is 4
                numbers[field] = int.from_bytes(self.take(9 - wire).data, "little") if wire else self.varint()
        return numbers, parts


def _block(index: bytes, handle: _Cursor) -> Iterator[tuple[bytes, _Cursor]]:
    """Yield (key, value) pairs of the block whose offset and size `handle` gives."""
    start, size = handle.varint(), handle.varint()
    handle.require(4 <= size <= len(index) - _FOOTER - 5 - start, f"no block of {size} bytes can lie at byte {start}")
    block = _Cursor(index[start : start + size + 5], handle.file, start)
    block.require(_masked_crc32c(block.data[:-4]) == block.data[-4:], "the checksum of the index block differs")
    block.require(block.data[size] == 0, f"a compressed index block (type {block.data[size]}; 1 is snappy)", _RESAVE)
    end = size - 4 - 4 * int.from_bytes(block.data[size - 4 : size], "little")
    block.require(end >= 0, "more restart points than the index block can hold")
    entries, key, expanded = block.take(end), b"", 0
    while entries.at < end:
        shared, fresh, length = entries.varint(), entries.varint(), entries.varint()
        expanded += shared + fresh
        fits = shared <= len(key) and expanded <= _EXPANSION_LIMIT * size
        entries.require(fits, f"a key repeats {shared} of {len(key)} bytes, the block's keys grow to {expanded}")
        key = key[:shared] + entries.take(fresh).data
        yield key, entries.take(length)


def _table(file: Path) -> Iterator[tuple[bytes, _Cursor]]:
    """Yield (key, value) pairs of an index file, in ascending order of the keys: no block can be listed twice
    either.
    """
    index = file.read_bytes() if file.stat().st_size <= _INDEX_LIMIT else b""
    footer, previous = _Cursor(index[-_FOOTER:-8], file, max(0, len(index) - _FOOTER)), None
    footer.require(len(index) >= _FOOTER and index.endswith(_MAGIC), "no table footer, or more than 16 MiB")
    list(_block(index, footer))  # the metaindex is empty, but its checksum counts
    for _, handle in _block(index, footer):
        for key, value in _block(index, handle):
            value.require(previous is None or key > previous, "the keys of the index are out of order")
            previous = key
            yield key, value


def _entry(value: _Cursor, files: list[Path]) -> _Entry:
    numbers, parts = value.message()
    shapes = [shape.message() for shape in parts[2]]
    shape = tuple(dim.message()[0][1] for _, dims in shapes for dim in dims[2])
    number, shard, offset, size, crc32c = (numbers[field] for field in (1, 3, 4, 5, 6))
    whole = 0 < number < _TYPES and not parts[7] and not any(flags[3] for flags, _ in shapes) and len(shape) <= 32
    value.require(whole, f"partitioned, of unknown rank, of rank above 32 or of data type {number}", _RESAVE)
    # An entry of another type is no reason to refuse those that are wanted: it is refused when it is read.
    count, width = math.prod(shape), np.dtype(_STORED.get(number, "u1")).itemsize
    fits = size >= count + 4 if number == _STRING else size == count * width or number not in _STORED
    fits &= math.prod(dim or 1 for dim in shape) * width < 1 << 63
    value.require(fits, f"{size} bytes do not hold the shape {shape}")
    value.require(shard < len(files), f"data file {shard} of {len(files)} does not exist")
    if offset + size > (end := files[shard].stat().st_size):
        raise CheckpointError(files[shard], value.key, offset, f"{size} bytes expected, the file ends at {end}")
    return number, shape, shard, offset, size, crc32c


def _index_file(path: Path) -> Path:
    index = Path(f"{str(path).removesuffix('.index')}.index")
    files = [index] if index.is_file() or not path.is_dir() else sorted(path.glob("*.index"))
    if len(files) > 1 and (path / "checkpoint").is_file():
        state = (path / "checkpoint").read_text(encoding="utf-8", errors="replace")
        latest = re.search(r'^model_checkpoint_path: "(?:.*/)?([^/"]+)"', state, re.MULTILINE)
        files = [path / f"{latest[1]}.index"] if latest else files  # a folder it names is another machine's
    if len(files) != 1 or not files[0].is_file():
        fault = f"no such file, nor {index.name}"
        if path.exists():
            names = ", ".join(file.stem for file in files[:3]) + ("" if len(files) <= 3 else ", ...")
            fault = f"{len(files)} .index files ({names}), name one" if len(files) > 1 else "holds no .index file"
        raise CheckpointError(path, None, None, fault, "Give PREFIX of PREFIX.index.")
    return files[0]


class TFCheckpoint(Mapping[str, np.ndarray], AbstractContextManager["TFCheckpoint"]):
    """Tensors by key of PREFIX, PREFIX.index or a folder with one index or with a `checkpoint` file naming the latest.

    Opening checks the index, `self[key]` reads and checks one tensor: a new array, bfloat16 as float32, strings as
    bytes objects, other dtypes as stored; one of a type that numpy lacks is refused then. Any fault of the files is a
    CheckpointError. Not for several threads at once.
    """

    def __init__(self, prefix: str | Path) -> None:
        index = _index_file(Path(prefix))
        table = _table(index)
        key, header = next(table, (None, _Cursor(b"", index, 0)))
        (numbers, parts), stem = header.message(), str(index).removesuffix("index")
        known = key == b"" and numbers[2] == 0 and all(version.message()[0][2] <= 1 for version in parts[3])
        header.require(known and 0 < numbers[1] < 100_000, "no header, big-endian or newer than version 1", _RESAVE)
        files = [Path(f"{stem}data-{shard:05d}-of-{numbers[1]:05d}") for shard in range(numbers[1])]
        for file in files:
            _Cursor(b"", file, 0).require(file.is_file(), f"missing, the index names {len(files)} data file(s)")
        self._entries: dict[str, _Entry] = {}
        for raw_key, value in table:
            value.key = raw_key.decode(errors="backslashreplace")
            self._entries[value.key] = _entry(value, files)
        self._files = [file.open("rb") for file in files]

    def __getitem__(self, key: str) -> np.ndarray:
        number, shape, shard, offset, size, crc32c = self._entries[key]
        file = self._files[shard]
        if number not in _STORED:
            raise CheckpointError(Path(file.name), key, offset, f"of data type {number}, which cannot be read", _RESAVE)
        file.seek(offset)
        data = _Cursor(file.read(size), Path(file.name), offset, key)
        covered, lengths = [data.data], []
        if number == _STRING:  # the checksums cover the lengths as fixed-width integers, not as the varints stored
            lengths = [data.varint() for _ in range(math.prod(shape))]
            widths = b"".join(length.to_bytes(4 if length < 1 << 32 else 8, "little") for length in lengths)
            covered = [widths, data.take(4).data, data.data[data.at :]]
            data.require(_masked_crc32c(widths) == covered[1], "the checksum of the strings' lengths differs")
        data.require(int.from_bytes(_masked_crc32c(*covered), "little") == crc32c, "the tensor's checksum differs")
        if number == _STRING:
            return np.array([data.take(length).data for length in lengths], object).reshape(shape)
        array = np.frombuffer(data.data, _STORED[number])
        return ((array.astype("<u4") << 16).view("<f4") if number == _BFLOAT16 else array.copy()).reshape(shape)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._entries[key][1]

    def dtype(self, key: str) -> np.dtype:
        return np.dtype((_STORED | {_BFLOAT16: "<f4"}).get(self._entries[key][0], "V"))

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()
