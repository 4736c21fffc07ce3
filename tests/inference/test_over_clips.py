"""map_clips: shards in memory and in files, older shards, and what is made again."""

from pathlib import Path

import numpy as np
import pytest
from helpers.small_model import small_config

from vatt.data.clip import Clip, Manifest
from vatt.data.datasets.batch import Batch
from vatt.data.datasets.evaluation import EvalDataset
from vatt.data.manifest import read_manifest
from vatt.data.tokenizer import Tokenizer
from vatt.errors import DataError
from vatt.inference.over_clips import map_clips


@pytest.fixture
def dataset(corpus: Path, tmp_path: Path) -> EvalDataset:
    """Five clips, two a batch, the third is broken."""
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    good = read_manifest(corpus)
    paths = [good[0].path, good[1].path, tmp_path / "broken.mp4", good[2].path, good[3].path]
    clips = tuple(Clip(i, path, path.name) for i, path in enumerate(paths))
    config = small_config()
    return EvalDataset(Manifest(clips, tmp_path, ()), config.data, config.model, Tokenizer([]), 1, 2)


def features(batch: Batch) -> dict[str, np.ndarray]:
    """Rows, their squares, and for each clip its place in the batch."""
    rows = np.array(batch.clips, np.int64)
    return {"row": rows, "square": rows**2, "place": np.arange(len(rows))}


def test_shards_in_memory_and_in_files_are_the_same(dataset: EvalDataset, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for mapped in (
        map_clips(dataset, features, "test", shard_batches=2, positions=("place",)),
        map_clips(dataset, features, "test", parts, shard_batches=2, positions=("place",)),
    ):
        arrays = mapped.arrays()
        assert arrays["row"].tolist() == [0, 1, 3, 4]
        assert arrays["square"].tolist() == [0, 1, 9, 16]
        assert arrays["place"].tolist() == [0, 1, 2, 3]
        ((row, reason),) = mapped.bad
        assert row == 2
        assert "not a video" in reason
    assert [path.name for path in mapped.files] == ["000000.npz", "000001.npz"]


def test_only_what_is_missing_is_made(dataset: EvalDataset, tmp_path: Path) -> None:
    whole = map_clips(dataset, features, "test", tmp_path, shard_batches=1).arrays()
    (tmp_path / "000001.npz").unlink()
    asked: list[list[int]] = []

    def counted(batch: Batch) -> dict[str, np.ndarray]:
        asked.append(batch.clips)
        return features(batch)

    again = map_clips(dataset, counted, "test", tmp_path, shard_batches=1)
    assert asked == [[3]]
    assert all(np.array_equal(whole[name], again.arrays()[name]) for name in whole)
    assert [row for row, _ in again.bad] == [2]


def test_shards_of_commit_20a74a7_are_read(dataset: EvalDataset, tmp_path: Path) -> None:
    """It named what was left out `bad` and `reasons`, and wrote with np.savez."""
    whole = map_clips(dataset, features, "test", shard_batches=2)
    first = {"row": np.array([0, 1, 3]), "square": np.array([0, 1, 9]), "place": np.array([0, 1, 0])}
    np.savez(tmp_path / "000000.npz", **first, bad=np.array([2]), reasons=np.array(["was broken"]))
    mapped = map_clips(dataset, features, "test", tmp_path, shard_batches=2)
    assert np.array_equal(mapped.arrays()["square"], whole.arrays()["square"])
    assert mapped.bad == [(2, "was broken")]


def test_too_many_bad_clips_name_the_way_out(dataset: EvalDataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 5 clips tried .*--max-bad-share.*--resume.*delete"):
        map_clips(dataset, features, "test", tmp_path, max_bad_share=0.1, shard_batches=3)
    assert map_clips(dataset, features, "test", tmp_path, max_bad_share=0.5, shard_batches=3).arrays()["row"].size == 4
