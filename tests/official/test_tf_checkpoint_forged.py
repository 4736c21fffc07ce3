"""The checkpoint reader on forged files: every checksum right, the contents hostile or of a kind it does not know."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("google_crc32c", reason="pip install -e '.[official]'")

from helpers.bundle_writer import MAGIC, STRING, block, crc, entry, header, number, part, table, varint, write

from vatt.official.tensorflow_checkpoint import CheckpointError, TFCheckpoint


def write_index(prefix: Path, index: bytes, data: bytes = b"\0" * 64) -> Path:
    Path(f"{prefix}.index").write_bytes(index)
    Path(f"{prefix}.data-00000-of-00001").write_bytes(data)
    return prefix


def one(value: bytes, key: bytes = b"w") -> bytes:
    return table([block([(b"", header()), (key, value)])])


HUGE = 1 << 62
# Files as they were meant, of kinds that cannot be read: another copy of them would not help.
RESAVED = {
    "too many dimensions",
    "thousands of huge dimensions",
    "data type beyond all types",
    "partitioned",
    "unknown rank",
}
RESAVED |= {"empty", "no blocks", "no header", "no shards", "negative shards", "2 billion shards"}
RESAVED |= {"big-endian", "newer format", "snappy"}
FORGED_ENTRIES = {
    "size beyond the file": entry(1, [HUGE // 4], 0, 0, HUGE, b"\0" * 4),
    "offset beyond the file": entry(1, [4], 0, HUGE, 16, b"\0" * 4),
    "negative offset": entry(1, [4], 0, -16, 16, b"\0" * 4),
    "shape larger than the bytes": entry(1, [1 << 30], 0, 0, 16, b"\0" * 4),
    "shape smaller than the bytes": entry(1, [2], 0, 0, 16, b"\0" * 4),
    "negative dimensions": entry(1, [-2, -2], 0, 0, 16, b"\0" * 4),
    "no elements in a huge shape": entry(1, [HUGE, HUGE, 0], 0, 0, 0, crc(b"")),
    "too many dimensions": entry(1, [1] * 40, 0, 0, 4, b"\0" * 4),
    "thousands of huge dimensions": entry(1, [HUGE] * 10_000, 0, 0, 4, b"\0" * 4),
    "more strings than bytes": entry(STRING, [1 << 40], 0, 0, 60, b"\0" * 4),
    "shard that does not exist": entry(1, [4], 1, 0, 16, b"\0" * 4),
    "negative shard": entry(1, [4], -1, 0, 16, b"\0" * 4),
    "data type beyond all types": entry(1 << 20, [4], 0, 0, 16, b"\0" * 4),
    "partitioned": entry(1, [4], 0, 0, 0, b"\0" * 4) + part(7, b""),
    "unknown rank": number(1, 1) + part(2, number(3, 1)) + number(5, 4),
    "part longer than the entry": varint(2 << 3 | 2) + varint(HUGE),
    "number without end": b"\x08" + b"\x80" * 11,
    "number of 70 bits": b"\x08" + b"\xff" * 9 + b"\x7f",
    "protobuf group": varint(1 << 3 | 3),
    "shape given as a number": number(2, 1) + number(1, 1) + number(5, 0),
    "empty": b"",
}


@pytest.mark.parametrize("name", FORGED_ENTRIES)
def test_forged_entries_are_refused_when_opening(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"'w', byte \d+") as caught:
        TFCheckpoint(write_index(tmp_path / "ckpt", one(FORGED_ENTRIES[name])))
    assert ("tf.train.Checkpoint" in str(caught.value)) == (name in RESAVED)


def test_an_entry_of_a_type_nobody_needs_costs_only_itself(tmp_path: Path) -> None:
    """A resource, and 16-bit integers, beside what is wanted."""
    wanted, data = entry(1, [1], 0, 0, 4, crc(b"\0" * 4)), bytes(40)
    rows = [(b"", header()), (b"a", entry(20, [], 0, 4, 7, b"\0" * 4)), (b"b", entry(5, [2], 0, 4, 4, b"\0" * 4))]
    prefix = write_index(tmp_path / "ckpt", table([block([*rows, (b"w", wanted)])]), data)
    with TFCheckpoint(prefix) as checkpoint:
        assert list(checkpoint) == ["a", "b", "w"]
        assert checkpoint["w"].tolist() == [0.0]
        assert checkpoint.shape("b") == (2,)
        for key, number_of_type in (("a", 20), ("b", 5)):
            with pytest.raises(CheckpointError, match=f"'{key}', byte 4: of data type {number_of_type}"):
                checkpoint[key]
            assert checkpoint.dtype(key) != checkpoint.dtype("w")


def test_a_checksum_field_too_wide_is_only_a_wrong_checksum(tmp_path: Path) -> None:
    value = number(1, 1) + part(2, part(2, number(1, 4))) + number(5, 16) + number(6, HUGE)
    with (
        TFCheckpoint(write_index(tmp_path / "ckpt", one(value))) as checkpoint,
        pytest.raises(CheckpointError, match="checksum"),
    ):
        checkpoint["w"]


ITEM = (b"w", entry(1, [1], 0, 0, 4, crc(b"\0" * 4)))
BOMB = b"".join(varint(50_000 + i) + b"\x01\x00" + b"k" for i in range(50_000))
FORGED_TABLES = {
    "no blocks": table([]),
    "no header": table([block([ITEM])]),
    "no shards": table([block([(b"", header(0)), ITEM])]),
    "negative shards": table([block([(b"", header(-1)), ITEM])]),
    "2 billion shards": table([block([(b"", header(1 << 31)), ITEM])]),
    "big-endian": table([block([(b"", header(endianness=1)), ITEM])]),
    "newer format": table([block([(b"", header(min_consumer=2)), ITEM])]),
    "snappy": table([block([(b"", header()), ITEM], compression=1)]),
    "keys out of order": table([block([(b"", header()), ITEM, (b"a", ITEM[1])])]),
    "keys twice": table([block([(b"", header()), ITEM, ITEM])]),
    "blocks twice": table([block([(b"", header()), ITEM])] * 2),
    "metaindex damaged": table([block([(b"", header()), ITEM])], metaindex=bytes(13)),
    "handle beyond the file": table([])[:-48] + (varint(HUGE) * 4).ljust(40, b"\0") + MAGIC,
    "handles without end": table([])[:-48] + b"\xff" * 40 + MAGIC,
    "another magic": table([block([(b"", header()), ITEM])])[:-1] + b"\0",
}


@pytest.mark.parametrize("name", FORGED_TABLES)
def test_forged_tables_are_refused_when_opening(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        TFCheckpoint(write_index(tmp_path / "ckpt", FORGED_TABLES[name]))
    assert ("tf.train.Checkpoint" in str(caught.value)) == (name in RESAVED)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (b"\x05\x01\x00k" + struct.pack("<II", 0, 1), "repeats 5 of 0"),
        (b"\x00\x7f\x00k" + struct.pack("<II", 0, 1), "127 bytes expected"),
        (struct.pack("<I", 1 << 30), "restart points"),
        (b"", "no block of 0 bytes"),
        (b"\x00" + varint(50_000) + b"\x00" + b"k" * 50_000 + BOMB + struct.pack("<II", 0, 1), "grow to"),
    ],
    ids=["shares more than there is", "longer than the block", "restarts", "nothing", "keys that unfold to gigabytes"],
)
def test_forged_blocks_are_refused_when_opening(tmp_path: Path, body: bytes, what: str) -> None:
    forged = table([block([(b"", header()), ITEM])], metaindex=body + b"\0" + crc(body + b"\0"))
    with pytest.raises(CheckpointError, match=what):
        TFCheckpoint(write_index(tmp_path / "ckpt", forged))


def test_an_index_too_large_to_be_one_is_not_read(tmp_path: Path) -> None:
    prefix = write_index(tmp_path / "ckpt", b"")
    with Path(f"{prefix}.index").open("wb") as stream:
        stream.truncate(1 << 40)  # a hole, not a terabyte
    with pytest.raises(CheckpointError, match="16 MiB"):
        TFCheckpoint(prefix)


@pytest.mark.parametrize(
    ("raw", "count"),
    [
        (varint(HUGE) + b"\0" * 30, 1),
        (b"\x80" * 32, 2),
        (b"\xff" * 9 + b"\x01" + bytes(9), 3),
    ],
    ids=["length beyond the tensor", "varint without end", "64-bit length"],
)
def test_forged_strings_are_refused(tmp_path: Path, raw: bytes, count: int) -> None:
    prefix = write_index(tmp_path / "ckpt", one(entry(STRING, [count], 0, 0, len(raw), crc(raw))), raw)
    with TFCheckpoint(prefix) as checkpoint, pytest.raises(CheckpointError, match="'w', byte"):
        checkpoint["w"]


def test_the_checksum_of_the_strings_lengths_counts_by_itself(tmp_path: Path) -> None:
    covered = struct.pack("<II", 1, 1) + bytes(4) + b"ab"
    value = entry(STRING, [2], 0, 0, 8, crc(covered))
    prefix = write_index(tmp_path / "ckpt", one(value), b"\x01\x01" + bytes(4) + b"ab")
    with TFCheckpoint(prefix) as checkpoint, pytest.raises(CheckpointError, match="lengths"):
        checkpoint["w"]


def test_without_crc32c_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = write(tmp_path / "ckpt", {"w": np.zeros(4, "<f4")})
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[official\]'"):
        TFCheckpoint(prefix)
