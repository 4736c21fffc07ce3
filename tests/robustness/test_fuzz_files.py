"""Files that are damaged or tampered with: whatever they hold, they are read, in time, or refused with a plain reason.

A few hundred cases here; VATT_FUZZ=10000 tries that many new ones of each kind (see SECURITY.md).
"""

import io
import json
import os
import signal
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults import damaged_files
from helpers.media import steady, tone_burst, write_clip
from helpers.media_alone import write_sound
from safetensors.torch import save

pytest.importorskip("hypothesis", reason="pip install -e '.[test]'")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vatt.data.clip import ManifestError
from vatt.data.manifest import read_manifest
from vatt.data.shards.index import open_clip
from vatt.data.shards.reading import read_shards
from vatt.errors import RunError
from vatt.inference.features_file import FeaturesError, read_features
from vatt.official.init_source import read_source
from vatt.official.tensorflow_checkpoint import CheckpointError, TFCheckpoint

ASKED = os.environ.get("VATT_FUZZ")
# Always the same cases unless more are asked for; a file of a case lies where the last one did.
fuzz = settings(
    max_examples=int(ASKED or 60),
    derandomize=ASKED is None,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
BOUNDARIES = [0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
pieces = st.binary(max_size=12) | st.sampled_from(BOUNDARIES).map(lambda value: struct.pack("<Q", value))
edits = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12) | st.just(10**6), pieces), min_size=1, max_size=5)


def changed(data: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """`data` with bytes cut out and others put in at places that are shares of its length."""
    for place, out, put in changes:
        at = int(place * len(data))
        data = data[:at] + put + data[at + out :]
    return data


def refused(read: Callable[[], object], refusal: type[Exception]) -> str | None:
    """What the refusal says; None where there is none."""
    try:
        read()
    except refusal as error:
        return str(error)
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


WEIGHTS = save({"a.weight": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.int64)}, {"format": "pt"})


def read_weights(path: Path) -> None:
    def read() -> None:
        assert sum(tensor.nbytes for tensor in read_source(path.parent).values()) <= path.stat().st_size

    assert str(path) in (refused(read, RunError) or str(path))


@fuzz
@given(changes=edits)
def test_changed_safetensors(folder: Path, changes: list[Any]) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(changed(WEIGHTS, changes))
    read_weights(path)


numbers = st.integers(-3, 100) | st.sampled_from(BOUNDARIES)
tensor = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "I64", "BOOL", "F8_E4M3", "F4", "x"]) | st.none(),
        "shape": st.lists(numbers, max_size=4),
        "data_offsets": st.lists(numbers, min_size=2, max_size=2),
    }
)
headers = st.dictionaries(st.text(max_size=8) | st.just("__metadata__"), tensor | st.text(max_size=5), max_size=4)


@fuzz
@given(header=headers, data=st.binary(max_size=64), length=st.none() | st.sampled_from(BOUNDARIES))
def test_forged_headers_of_safetensors(folder: Path, header: dict[str, Any], data: bytes, length: int | None) -> None:
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    read_weights(path)


ARRAYS = {"v": np.arange(6.0), "w": np.array([b"ab", b"c"], object)}


@fuzz
@given(changes=edits, data=edits | st.just([]), sealed=st.booleans())
def test_changed_official_checkpoints(folder: Path, changes: list[Any], data: list[Any], sealed: bool) -> None:
    """`sealed`: whoever changed the entries has made the checksums right again."""
    pytest.importorskip("google_crc32c", reason="pip install -e '.[official]'")
    from helpers.bundle_writer import NUMBER, block, entry, header, stored, table, write

    prefix = write(folder / "ckpt", ARRAYS)
    index, values = Path(f"{prefix}.index"), Path(f"{prefix}.data-00000-of-00001")
    if sealed:
        items, at = [(b"", header())], len(b"gap")
        for key, array in ARRAYS.items():
            raw, checksum = stored(array)
            value = entry(NUMBER[array.dtype.name], array.shape, 0, at, len(raw), checksum)
            items.append((key.encode(), changed(value, changes)))
            at += len(raw)
        index.write_bytes(table([block(items)]))
    else:
        index.write_bytes(changed(index.read_bytes(), changes))
    values.write_bytes(changed(values.read_bytes(), data))

    def read() -> None:
        with TFCheckpoint(prefix) as checkpoint:
            for key in checkpoint:
                checkpoint[key]

    assert str(prefix) in (refused(read, CheckpointError) or str(prefix))


def packed(kind: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=kind) as tar:
        for name, data in (
            ("a.mp4", b"x" * 700),
            ("a.json", b'{"caption": "c", "end": 2}'),
            ("n" * 150 + ".wav", b"y"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


TARS = {kind: packed(kind) for kind in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)}


def sealed_tar(data: bytes) -> bytes:
    """Right checksums in whatever may be a header: tar files have one of each header, none of the contents."""
    blocks = [bytearray(data[at : at + 512]) for at in range(0, len(data), 512)]
    for block in blocks:
        if block[257:262] == b"ustar" and len(block) == 512:
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


@fuzz
@given(kind=st.sampled_from(sorted(TARS)), changes=edits, same_length=st.booleans(), sealed=st.booleans())
def test_changed_tars(folder: Path, kind: int, changes: list[Any], same_length: bool, sealed: bool) -> None:
    if same_length:
        changes = [(place, len(put), put) for place, _, put in changes]
    data = changed(TARS[kind], changes)
    path = folder / "a.tar"
    path.write_bytes(sealed_tar(data) if sealed else data)

    def read() -> None:
        for clip in read_shards(path):
            source = open_clip(clip.path)
            assert isinstance(source, io.BytesIO)
            assert len(source.getvalue()) <= len(data)

    assert str(path) in (refused(read, ManifestError) or str(path))


@pytest.fixture(scope="module")
def features() -> bytes:
    file = io.BytesIO()
    names = {"path": np.array(["a", "b"]), "video_to_text": np.ones((2, 3), np.float32)}
    np.savez(file, **names, metadata=np.array('{"format": 2}'))
    return file.getvalue()


@fuzz
@given(changes=edits)
def test_changed_files_of_features(folder: Path, features: bytes, changes: list[Any]) -> None:
    path = folder / "f.npz"
    path.write_bytes(changed(features, changes))
    said = refused(lambda: read_features(path, ("path", "video_to_text")), FeaturesError)
    assert str(path) in (said or str(path))


ROWS = b'path,start,end,caption,label,split\na.mp4,1.5,4,"one, two | three",run,train\nsub/b.mkv,,,,walk,test\n'


@fuzz
@given(make=st.sampled_from([lambda data: data, lambda data: data.decode("latin-1").encode("utf-16")]), changes=edits)
def test_changed_manifests(folder: Path, make: Callable[[bytes], bytes], changes: list[Any]) -> None:
    path = folder / "m.csv"
    path.write_bytes(make(changed(ROWS, changes)))

    def read() -> None:
        assert all(clip.path.is_relative_to(folder) or os.path.isabs(clip.name) for clip in read_manifest(path))

    assert str(path) in (refused(read, ManifestError) or str(path))


RATE = 16_000
CLIPS = {
    "h264.mp4": ("libx264", "aac"),
    "vp8.webm": ("libvpx", "libopus"),
    "mpeg4.avi": ("mpeg4", "libmp3lame"),
}


@pytest.fixture(scope="module")
def child() -> damaged_files.Child:
    with damaged_files.Child() as child:
        yield child


@pytest.mark.parametrize("name", list(CLIPS))
def test_damaged_clips_end_as_frames_or_as_a_reason(child: damaged_files.Child, tmp_path: Path, name: str) -> None:
    video, audio = CLIPS[name]
    rate = 48_000 if audio == "libopus" else RATE
    clip = write_clip(tmp_path / name, steady(1.0, 12), tone_burst(1.0, 0.5, rate), rate, video, audio, ticks=12)
    row = damaged_files.fuzz(child, clip, 36, seed=5)
    assert row["failures"] == []
    assert row["files_left_open"] == 0
    assert row["good"] >= 1
    assert row["bad"] >= 1
    assert row["peak_bytes"] < 2**30


def test_every_variant_is_the_same_again_and_none_is_the_file() -> None:
    data = bytes(range(256)) * 64
    first = list(damaged_files.variants(data, 60, seed=3))
    assert first == list(damaged_files.variants(data, 60, seed=3))
    assert first[1:] != list(damaged_files.variants(data, 60, seed=4))[1:]
    assert all(variant != data for _, variant in first)
    sizes = [len(variant) for name, variant in first if name.startswith("cut")]
    assert len(sizes) == 20
    assert sizes[0] < len(data) // 20 < len(data) * 19 // 20 < sizes[-1] + len(data) // 15


def test_a_process_that_dies_or_hangs_is_a_failure_and_is_replaced(tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.flac", tone_burst(0.5, 0.1, RATE), RATE)
    with damaged_files.Child() as child:
        os.kill(child.pid, signal.SIGKILL)
        assert child.try_clip(sound) == ("died with exit code -9", None)
        assert child.try_clip(sound)[0] == "good"
        child.silent = 0.2
        os.kill(child.pid, signal.SIGSTOP)
        assert child.try_clip(sound) == ("hung for 0.2 s", None)
