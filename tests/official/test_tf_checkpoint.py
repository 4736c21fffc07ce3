"""The checkpoint reader: right values from real and hand-built checkpoints, an error from damaged or missing files."""

import csv
import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("google_crc32c", reason="pip install -e '.[official]'")

from helpers.bundle_writer import write

from vatt.official.tensorflow_checkpoint import CheckpointError, TFCheckpoint

FIXTURES = (
    "ckpt_tx_fac",
    "ckpt_ut_fac",
    "ckpt_finetune_video",
    "ckpt_finetune_audio",
    "ckpt_finetune_video_from_agnostic",
)
SMALLEST = "ckpt_finetune_audio"
SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def tensors() -> dict[str, np.ndarray]:
    """One of every dtype; the string lengths need one and two bytes as varints."""
    rng = np.random.default_rng(5)
    return {
        "model/a/kernel": rng.standard_normal((3, 4)).astype("<f4"),
        "model/a/kernel2": rng.standard_normal(300).astype("<f4"),
        "model/a/scale": rng.standard_normal((2, 1, 2)).astype("<f8"),
        "model/b/half": rng.standard_normal(5).astype("<f2"),
        "model/b/brain": np.array([[0x3F80, 0xC040], [0x7F80, 0x0000]], "<u2"),
        "model/b/flags": np.array([True, False, True]),
        "model/c/bytes": np.arange(7, dtype="u1"),
        "model/c/ids": np.array([-(2**31), 7], "<i4"),
        "model/c/empty": np.zeros((0, 3), "<f4"),
        "optimizer/iter": np.array(1234, "<i8"),
        "strings": np.array([[b"", b"\xff\x00raw"], [b"x" * 200, b"end"]], object),
        "strings/none": np.array([], object),
        "strings/scalar": np.array(b"graph", object),
    }


def expected(array: np.ndarray) -> np.ndarray:
    return np.array([[1, -3], [np.inf, 0]], "<f4") if array.dtype == np.uint16 else array


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    return left.keys() == right.keys() and all(
        left[key].dtype == right[key].dtype and left[key].shape == right[key].shape and (left[key] == right[key]).all()
        for key in left
    )


def read_all(prefix: Path) -> dict[str, np.ndarray]:
    with TFCheckpoint(prefix) as checkpoint:
        return dict(checkpoint.items())


def data_files(prefix: Path) -> list[Path]:
    return sorted(prefix.parent.glob(f"{prefix.name}.data-*"))


# --- Right values


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("per_block", [1, 4, 100])
def test_every_dtype_comes_back_from_any_number_of_shards_and_blocks(
    tmp_path: Path, shards: int, per_block: int
) -> None:
    arrays = tensors()
    with TFCheckpoint(write(tmp_path / "ckpt-1", arrays, shards, per_block)) as checkpoint:
        assert list(checkpoint.keys()) == sorted(arrays)
        assert len(checkpoint) == len(arrays)
        assert "optimizer/iter" in checkpoint
        assert "" not in checkpoint
        for key, array in checkpoint.items():
            truth = expected(arrays[key])
            assert (checkpoint.shape(key), checkpoint.dtype(key)) == (truth.shape, truth.dtype), key
            assert type(array) is np.ndarray
            assert (array.shape, array.dtype) == (truth.shape, truth.dtype), key
            np.testing.assert_array_equal(array, truth, err_msg=key)
        with pytest.raises(KeyError, match="nowhere"):
            checkpoint["nowhere"]


def test_arrays_are_copies_that_outlive_the_checkpoint_and_can_be_written_to(tmp_path: Path) -> None:
    with TFCheckpoint(write(tmp_path / "ckpt", tensors())) as checkpoint:
        kernel = checkpoint["model/a/kernel"]
        kernel[:] = 0
        np.testing.assert_array_equal(checkpoint["model/a/kernel"], tensors()["model/a/kernel"])
    assert not kernel.any()


def test_a_prefix_an_index_path_and_a_folder_mean_the_same(tmp_path: Path) -> None:
    prefix = write(tmp_path / "ckpt-12.5", {"w": np.arange(3, dtype="<f4")})
    for path in (prefix, str(prefix), f"{prefix}.index", tmp_path, str(tmp_path)):
        assert list(TFCheckpoint(path)) == ["w"]


def test_of_several_checkpoints_the_state_file_names_the_latest(tmp_path: Path) -> None:
    for step in (9, 10):
        write(tmp_path / f"ckpt-{step}", {"step": np.array(step, "<i8")})
    with pytest.raises(CheckpointError, match="PREFIX"):
        TFCheckpoint(tmp_path)
    all_paths = 'all_model_checkpoint_paths: "ckpt-10"\nall_model_checkpoint_paths: "ckpt-9"\n'
    for name in ("ckpt-9", "/home/someone/else/ckpt-9", "gs://bucket/run/ckpt-9"):
        (tmp_path / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\n{all_paths}')
        assert read_all(tmp_path)["step"] == 9
    for state in ('model_checkpoint_path: "ckpt-11"\n', 'model_checkpoint_path: ".."\n', "nonsense"):
        (tmp_path / "checkpoint").write_text(state)
        with pytest.raises(CheckpointError, match="PREFIX"):
            TFCheckpoint(tmp_path)


@pytest.mark.parametrize("name", FIXTURES)
def test_keys_shapes_and_dtypes_of_real_checkpoints(shared: Path, name: str) -> None:
    fixtures = shared / "parity" / "fixtures"
    with (fixtures / f"{name}.keys.csv").open(newline="") as stream:
        rows = {row["checkpoint_key"]: row for row in csv.DictReader(stream)}
    with TFCheckpoint(fixtures / name) as checkpoint:
        assert checkpoint.keys() == rows.keys()
        for key, array in checkpoint.items():
            assert "x".join(map(str, checkpoint.shape(key))) in (rows[key]["shape"], ""), key
            assert (rows[key]["shape"] == "scalar") == (checkpoint.shape(key) == ()), key
            assert checkpoint.dtype(key) == np.dtype({"string": "O"}.get(rows[key]["dtype"], rows[key]["dtype"])), key
            assert (array.shape, array.dtype) == (checkpoint.shape(key), checkpoint.dtype(key)), key
        assert checkpoint[f"optimizer/iter{SUFFIX}"] == 1234
        graph = checkpoint["_CHECKPOINTABLE_OBJECT_GRAPH"].item()
        assert isinstance(graph, bytes)
        assert b"layer_with_weights-0" in graph


def test_values_of_a_real_checkpoint(shared: Path) -> None:
    fixtures = shared / "parity" / "fixtures"
    head, text = np.load(fixtures / "fac_head.npz"), np.load(fixtures / "text_t5.npz")
    with TFCheckpoint(fixtures / "ckpt_tx_fac") as checkpoint:
        names = [name for name in head.files if name.startswith("p.")]
        assert len(names) == 19
        for name in names:
            key = f"model/layer_with_weights-0/_head_layer/_bridge_heads/0/{name[2:].replace('.', '/')}{SUFFIX}"
            np.testing.assert_array_equal(checkpoint[key], head[name], err_msg=name)
        (words,) = (key for key in checkpoint if key.endswith(f"txt_backbone/embedding/embeddings{SUFFIX}"))
        np.testing.assert_array_equal(
            checkpoint[words][text["text_ids"].astype(int)], text["embedding_with_agg"][:, 1:], err_msg=words
        )


@pytest.mark.parametrize("name", FIXTURES)
def test_tensorflow_reads_the_same_from_real_checkpoints(shared: Path, name: str) -> None:
    assert_tensorflow_agrees(shared / "parity" / "fixtures" / name / "ckpt-1234")


@pytest.mark.parametrize("shards", [1, 3])
def test_tensorflow_reads_the_same_from_hand_built_checkpoints(tmp_path: Path, shards: int) -> None:
    assert_tensorflow_agrees(write(tmp_path / "ckpt", tensors(), shards))


def assert_tensorflow_agrees(prefix: Path) -> None:
    reader = pytest.importorskip("tensorflow").train.load_checkpoint(str(prefix))
    ours = read_all(prefix)
    assert ours.keys() == reader.get_variable_to_shape_map().keys()
    for key, array in ours.items():
        theirs = np.asarray(reader.get_tensor(key))
        np.testing.assert_array_equal(array, theirs.astype(array.dtype), err_msg=key)
        assert array.shape == theirs.shape, key


# --- Damage


def copied(source: Path, folder: Path) -> Path:
    folder.mkdir()
    for file in source.parent.glob(f"{source.name}.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / source.name


def flipped(raw: bytes, offset: int, bit: int) -> bytes:
    return raw[:offset] + bytes([raw[offset] ^ 1 << bit]) + raw[offset + 1 :]


def outcome(prefix: Path, truth: dict[str, np.ndarray]) -> str:
    """'error' for a CheckpointError that names file and byte, 'same' for the right tensors."""
    try:
        found = read_all(prefix)
    except CheckpointError as error:
        return "error" if f"{prefix}." in str(error) and f"byte {error.offset}" in str(error) else "vague error"
    return "same" if same(found, truth) else "wrong values"


def assert_flips_are_noticed(prefix: Path, flips: int, seed: int, gap: int = 0) -> None:
    """`gap`: bytes at the start of each data file that belong to no tensor."""
    truth, rng = read_all(prefix), random.Random(seed)
    for file in (Path(f"{prefix}.index"), *data_files(prefix)):
        raw = file.read_bytes()
        for offset in sorted(rng.sample(range(len(raw)), min(flips, len(raw)))):
            file.write_bytes(flipped(raw, offset, rng.randrange(8)))
            result = outcome(prefix, truth)
            # The footer's padding and the gap hold no information: only there may a flip go unnoticed.
            free = len(raw) - 48 <= offset < len(raw) - 8 if file.suffix == ".index" else offset < gap
            assert result == "error" or (free and result == "same"), f"{file.name} byte {offset}: {result}"
        file.write_bytes(raw)


def test_flipped_bits_of_a_small_checkpoint_are_noticed(tmp_path: Path) -> None:
    assert_flips_are_noticed(write(tmp_path / "ckpt", tensors(), shards=2), flips=300, seed=1, gap=3)


def test_flipped_bits_of_a_real_checkpoint_are_noticed(shared: Path, tmp_path: Path) -> None:
    source = shared / "parity" / "fixtures" / SMALLEST / "ckpt-1234"
    assert_flips_are_noticed(copied(source, tmp_path / "copy"), flips=300, seed=2)


def assert_cuts_are_noticed(prefix: Path, cuts: int, seed: int) -> None:
    rng = random.Random(seed)
    for file in (Path(f"{prefix}.index"), *data_files(prefix)):
        raw = file.read_bytes()
        for keep in {0, 1, 8, 47, 48, len(raw) // 2, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(cuts))}:
            file.write_bytes(raw[:keep])
            with pytest.raises(CheckpointError, match=r"byte \d+") as caught:
                TFCheckpoint(prefix)
            assert caught.value.file == file
        file.write_bytes(raw)


def test_truncation_of_a_small_checkpoint_is_noticed_when_opening(tmp_path: Path) -> None:
    assert_cuts_are_noticed(write(tmp_path / "ckpt", tensors(), shards=2), cuts=60, seed=3)


def test_truncation_of_a_real_checkpoint_is_noticed_when_opening(shared: Path, tmp_path: Path) -> None:
    source = shared / "parity" / "fixtures" / SMALLEST / "ckpt-1234"
    assert_cuts_are_noticed(copied(source, tmp_path / "copy"), cuts=60, seed=4)


def test_an_error_names_file_tensor_offset_and_the_way_out(tmp_path: Path) -> None:
    prefix = write(tmp_path / "ckpt", {"a": np.zeros(4, "<f4"), "b": np.ones(4, "<f4")})
    (file,) = data_files(prefix)
    file.write_bytes(flipped(file.read_bytes(), 3 + 16 + 5, 0))
    with TFCheckpoint(prefix) as checkpoint:
        assert not checkpoint["a"].any()
        with pytest.raises(CheckpointError, match=r"get the \.index and all \.data files again") as caught:
            checkpoint["b"]
    assert (caught.value.file, caught.value.key, caught.value.offset) == (file, "b", 3 + 16)
    assert all(word in str(caught.value) for word in (str(file), "'b'", "byte 19", "checksum"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="tensor 'b', byte 19"):
        TFCheckpoint(prefix)


def test_missing_and_misnamed_files(tmp_path: Path) -> None:
    prefix = write(tmp_path / "ckpt", tensors(), shards=2)
    for file in data_files(prefix):
        raw = file.read_bytes()
        file.unlink()
        with pytest.raises(CheckpointError, match=rf"{file.name}, byte 0: missing, the index names 2"):
            TFCheckpoint(prefix)
        file.write_bytes(raw)
    for file in data_files(prefix):
        file.rename(str(file).replace("-of-00002", "-of-00003"))
    with pytest.raises(CheckpointError, match="data-00000-of-00002, byte 0: missing"):
        TFCheckpoint(prefix)
    (tmp_path / "folder").mkdir()
    (tmp_path / "several").mkdir()
    several = write(tmp_path / "several" / "a", tensors()).parent
    write(several / "b", tensors())
    for path, what in (
        (tmp_path / "nothing", r"no such file, nor nothing\.index"),
        (tmp_path / "nothing.index", "no such file"),
        (tmp_path / "folder", "holds no .index file"),
        (several, r"2 \.index files \(a, b\), name one"),
    ):
        with pytest.raises(CheckpointError, match=f"{what}.*PREFIX"):
            TFCheckpoint(path)


def test_a_file_cut_after_opening_is_noticed(tmp_path: Path) -> None:
    prefix = write(tmp_path / "ckpt", {"w": np.zeros(100_000, "<f4")})
    with TFCheckpoint(prefix) as checkpoint:
        data_files(prefix)[0].write_bytes(b"gap" + b"\0" * 1000)
        with pytest.raises(CheckpointError, match="'w'"):
            checkpoint["w"]
