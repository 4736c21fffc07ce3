"""A writer of TensorFlow's checkpoint format, small enough to check by eye: whole ones and forged ones for tests."""

import struct
from collections.abc import Iterable
from pathlib import Path

import google_crc32c
import numpy as np

MAGIC = bytes.fromhex("57fb808b247547db")
# TensorFlow's DataType numbers; arrays of uint16 are written as bfloat16.
BFLOAT16, STRING = 14, 7
NUMBER = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "float16": 19}
NUMBER |= {"uint16": BFLOAT16, "object": STRING}


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def crc(data: bytes) -> bytes:
    value = google_crc32c.value(data)
    return struct.pack("<I", ((value >> 15 | value << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value % (1 << 64))


def part(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def entry(dtype: int, shape: Iterable[int], shard: int, offset: int, size: int, checksum: bytes) -> bytes:
    dims = b"".join(part(2, number(1, dim)) for dim in shape)
    place = number(3, shard) + number(4, offset) + number(5, size)
    return number(1, dtype) + part(2, dims) + place + varint(6 << 3 | 5) + checksum


def block(items: list[tuple[bytes, bytes]], compression: int = 0) -> bytes:
    body, previous = b"", b""
    for key, value in items:
        shared = 0
        while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
            shared += 1
        body += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    body += struct.pack("<II", 0, 1) + bytes([compression])
    return body + crc(body)


def table(blocks: list[bytes], last_keys: list[bytes] | None = None, metaindex: bytes | None = None) -> bytes:
    """An index file of finished blocks. A reader that seeks, as TensorFlow's does, needs the last key of each block."""
    data, handles = b"", list[tuple[bytes, bytes]]()
    for finished, key in zip(blocks, last_keys or [b"z"] * len(blocks), strict=True):
        handles.append((key, varint(len(data)) + varint(len(finished) - 5)))
        data += finished
    footer = b""
    for finished in (block([]) if metaindex is None else metaindex, block(handles)):
        footer += varint(len(data)) + varint(len(finished) - 5)
        data += finished
    return data + footer.ljust(40, b"\0") + MAGIC


def header(shards: int = 1, endianness: int = 0, min_consumer: int = 0) -> bytes:
    return number(1, shards) + number(2, endianness) + part(3, number(1, 1) + number(2, min_consumer))


def stored(array: np.ndarray) -> tuple[bytes, bytes]:
    """A tensor's bytes and its masked crc32c."""
    if array.dtype != object:
        return array.tobytes(), crc(array.tobytes())
    strings = array.ravel().tolist()
    widths = b"".join(struct.pack("<I", len(string)) for string in strings)
    check, text = crc(widths), b"".join(strings)
    return b"".join(varint(len(string)) for string in strings) + check + text, crc(widths + check + text)


def write(prefix: Path, arrays: dict[str, np.ndarray], shards: int = 1, per_block: int = 3) -> Path:
    """The tensors dealt out to `shards` data files in turn, `per_block` keys to an index block."""
    data, items = [b"gap"] * shards, [(b"", header(shards))]
    for turn, key in enumerate(sorted(arrays)):
        shard, (raw, checksum) = turn % shards, stored(arrays[key])
        kind = NUMBER[arrays[key].dtype.name]
        items.append((key.encode(), entry(kind, arrays[key].shape, shard, len(data[shard]), len(raw), checksum)))
        data[shard] += raw
    groups = [items[start : start + per_block] for start in range(0, len(items), per_block)]
    Path(f"{prefix}.index").write_bytes(table([block(group) for group in groups], [group[-1][0] for group in groups]))
    for shard, raw in enumerate(data):
        Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}").write_bytes(raw)
    return prefix
