"""Input that means harm: what crashes, swells or leads elsewhere costs a clip or is refused; nothing stays behind."""

import gc
import os
import signal
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from media import numbered_frame, steady, tone_burst, write_clip
from media_alone import write_image

from vatt.config import AudioConfig, DataConfig, ModelConfig, TextConfig, VideoConfig
from vatt.data import loader
from vatt.data.batch import Batch
from vatt.data.clips import Sample
from vatt.data.limits import memory_limit
from vatt.data.loader import ClipDataset, make_loader
from vatt.data.manifest import Clip, Manifest
from vatt.data.reader import BadClip
from vatt.data.text import Tokenizer
from vatt.data.watch import MAX_KILLED, Watch
from vatt.data.windows import WindowReader

RATE = 16_000
MODEL = ModelConfig(
    video=VideoConfig(frames=4, size=32, fps=10.0),
    audio=AudioConfig(samples=4_000, rate=RATE),
    text=TextConfig(words=4, captions=1, vocabulary=40),
)
DATA = DataConfig(batch_size=4)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Eight good clips of a second."""
    folder = tmp_path_factory.mktemp("corpus")
    paths = [write_clip(folder / f"{i}.mp4", steady(1.0, 10), tone_burst(1.0, 0.1 * i, RATE), RATE) for i in range(8)]
    return Manifest(tuple(Clip(i, path, path.name) for i, path in enumerate(paths)), folder, ())


def dataset(kind: type[ClipDataset], corpus: Manifest, data: DataConfig = DATA) -> ClipDataset:
    return kind(corpus, data, MODEL, Tokenizer([]), 7, needs=())


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.video, b.video) and torch.equal(a.audio, b.audio) and a.clips == b.clips and a.bad == b.bad


class Crashing(ClipDataset):
    """A decoder that clip 5 makes write where it must not."""

    def _read(self, clip: Clip, rng: np.random.Generator) -> Sample:
        with self.watch.decoding(clip):
            if clip.index == 5:
                os.kill(os.getpid(), signal.SIGSEGV)
        return super()._read(clip, rng)


def test_a_decoder_that_crashes_costs_its_clip(corpus: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "LOOK_SECONDS", 0.5)
    crashing = dataset(Crashing, corpus)
    batches = list(make_loader(crashing, 0, 4, 2))
    assert [index for batch in batches for index, _ in batch.bad].count(5) >= 2
    assert {reason for batch in batches for _, reason in batch.bad} == {"its decoder crashed (SIGSEGV)"}
    fresh = dataset(Crashing, corpus)
    fresh.watch.stuck = crashing.watch.stuck  # known from the start
    assert all(same(batch, fresh[step]) for step, batch in enumerate(batches))


class Chosen(ClipDataset):
    """Somebody kills the worker while it has clip 5 open: `times` times, which a file each remembers."""

    times = 1

    def _read(self, clip: Clip, rng: np.random.Generator) -> Sample:
        if clip.index == 5:
            with self.watch.decoding(clip):
                marks = [self.clips.root / f"killed{i}" for i in range(self.times)]
                mark = next((mark for mark in marks if not mark.exists()), None)
                if mark is not None:
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
        return super()._read(clip, rng)


@pytest.mark.parametrize("times", [1, 2])
def test_a_worker_that_is_killed_costs_a_clip_the_second_time_only(
    corpus: Manifest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, times: int
) -> None:
    monkeypatch.setattr(loader, "LOOK_SECONDS", 0.5)
    chosen = dataset(Chosen, replace(corpus, root=tmp_path))
    chosen.times = times
    batches = list(make_loader(chosen, 0, 2, 1))
    assert len(list(tmp_path.iterdir())) == times
    if times == 1:
        assert all(same(batch, dataset(ClipDataset, corpus)[step]) for step, batch in enumerate(batches))
    assert {why for batch in batches for why in batch.bad} == (
        {(5, "its decoder crashed (SIGKILL)")} if times == 2 else set()
    )


def test_workers_that_are_killed_whatever_they_read_are_an_error() -> None:
    watch = Watch(60.0)
    watch.share(1)
    assert watch._table is not None
    told = []
    for clip in range(MAX_KILLED + 1):
        watch._table[0] = torch.tensor([123.0, float(clip), 1.0])
        told.append(watch.crashed({123: -signal.SIGKILL}))
    assert told == [True] * MAX_KILLED + [False]
    assert not watch.stuck
    assert not watch.crashed({123: -signal.SIGKILL})  # it had nothing open any more


def forged_png(path: Path, side: int) -> Path:
    """A picture of 8 x 8 pixels that claims to be of `side` x `side`."""
    data = bytearray(write_image(path, numbered_frame(1, 8)).read_bytes())
    assert data[12:16] == b"IHDR"
    data[16:24] = struct.pack(">II", side, side)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)
    return path


def test_a_clip_that_wants_more_memory_than_a_clip_may_have_is_bad(corpus: Manifest, tmp_path: Path) -> None:
    clip = Clip(8, forged_png(tmp_path / "huge.png", 11_000), "huge.png")  # 363 MB of pixels
    clips = Manifest((clip, *corpus.clips), corpus.root, ())
    reasons = {}
    for gigabytes in (0.2, 8.0):
        data = replace(DATA, decode_gb=gigabytes, batch_size=9)
        (batch,) = make_loader(dataset(ClipDataset, clips, data), 0, 1, 1)
        assert {index for index, _ in batch.bad} == {8}
        reasons[gigabytes] = batch.bad[0][1]
    assert "memory" in reasons[0.2]
    assert "memory" not in reasons[8.0]  # it is only cut off


def test_the_memory_limit_is_on_top_of_what_there_is_and_ends_with_its_block() -> None:
    held = np.ones(300 << 20, np.uint8)
    with memory_limit(0.2):
        assert len(np.empty(100 << 20, np.uint8))
        with pytest.raises(MemoryError):
            np.empty(300 << 20, np.uint8)
    assert len(np.empty(300 << 20, np.uint8)) == len(held)
    with memory_limit(0):
        assert len(np.empty(300 << 20, np.uint8))


def test_bad_clips_leave_nothing_for_the_garbage_collector(corpus: Manifest, tmp_path: Path) -> None:
    """Frames that wait for it are memory that grows for hundreds of clips: an error must not be its own cause."""
    data = corpus[0].path.read_bytes()
    clips = [Clip(0, tmp_path / "gone.mp4", "gone.mp4")]
    for i, damaged in enumerate((b"", b"no video" * 99, data[:700], data[: len(data) // 2],
                                 data[:300] + bytes(4000) + data[4300:])):  # fmt: skip
        (tmp_path / f"{i}.mp4").write_bytes(damaged)
        clips.append(Clip(i + 1, tmp_path / f"{i}.mp4", f"{i}.mp4"))
    readers = [WindowReader(MODEL.video, MODEL.audio, 64, 30.0, cache) for cache in (0, 10**8)]
    bad = 0
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for clip in (*clips, *corpus):
            for reader in readers:
                for offset in (0, 3):
                    try:
                        reader.read(clip, offset)
                    except BadClip:
                        bad += 1
        gc.collect()
        left = sorted({type(thing).__name__ for thing in gc.garbage})
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert bad >= 4 * 4
    assert not {"traceback", "frame", "VideoFrame", "BadClip"} & set(left), left
