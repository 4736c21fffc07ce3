"""Input that means harm: what crashes, swells or leads elsewhere costs a clip or is refused; nothing stays behind."""

import ast
import os
import re
import signal
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.garbage import left_behind, of_ffmpeg
from helpers.media import numbered_frame, steady, tone_burst, write_clip
from helpers.media_alone import write_image

from vatt.config.data import DataConfig
from vatt.config.model import AudioConfig, ModelConfig, TextConfig, VideoConfig
from vatt.data import loader
from vatt.data.clip import Clip, Manifest, ManifestError
from vatt.data.datasets.base import Sample
from vatt.data.datasets.batch import Batch
from vatt.data.datasets.training import ClipDataset
from vatt.data.datasets.windows import WindowReader
from vatt.data.decoding.audio import read_sound
from vatt.data.decoding.container import BadClip
from vatt.data.decoding.memory_limit import memory_limit
from vatt.data.decoding.span import decode_span
from vatt.data.decoding.watchdog import MAX_KILLED, Watch
from vatt.data.loader import make_loader
from vatt.data.manifest import ROOTS, read_manifest
from vatt.data.tokenizer import Tokenizer
from vatt.data.transcode import __main__ as transcode

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
    batches = list(make_loader(crashing, 0, 3, 2))
    assert [index for batch in batches for index, _ in batch.bad].count(5) >= 1
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
    told = []
    for clip in range(MAX_KILLED + 1):
        watch._rows[0, :3] = 123, clip, 1
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


def test_transcoding_leaves_out_a_clip_that_wants_too_much_memory(corpus: Manifest, tmp_path: Path) -> None:
    forged_png(tmp_path / "huge.png", 11_000)
    (tmp_path / "m.csv").write_text(f"path\nhuge.png\n{corpus[0].path}\n")
    out = tmp_path / "out"
    assert transcode.main([str(tmp_path / "m.csv"), "--out", str(out), "--size=64", "--memory-limit=0.25"]) == 0
    assert [clip.path.suffix for clip in read_manifest(out / "manifest.csv")] == [".mp4"]
    assert "memory" in (out / "left_out.csv").read_text()


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
    for i, damaged in enumerate(
        (b"", b"no video" * 99, data[:700], data[: len(data) // 2], data[:300] + bytes(4000) + data[4300:])
    ):
        (tmp_path / f"{i}.mp4").write_bytes(damaged)
        clips.append(Clip(i + 1, tmp_path / f"{i}.mp4", f"{i}.mp4"))
    readers = [WindowReader(MODEL.video, MODEL.audio, 64, 30.0, cache) for cache in (0, 10**8)]
    bad = 0
    with left_behind() as left:
        for clip in (*clips, *corpus):
            for reader in readers:
                for offset in (0, 3):
                    try:
                        reader.read(clip, offset)
                    except BadClip:
                        bad += 1
    assert bad >= 4 * 4
    ours = {"builtins.traceback", "builtins.frame", f"{BadClip.__module__}.BadClip"}
    assert not ours & left
    assert not of_ffmpeg(left)


def test_a_manifest_leads_out_of_its_folder_only_where_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(ROOTS, raising=False)
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.mp4").write_bytes(b"x")
    (inside / "link.mp4").symlink_to(outside / "a.mp4")
    (inside / "deep").symlink_to(outside)

    def found(name: str) -> str:
        (inside / "m.csv").write_text(f"path\na.mp4\n{name}\n")
        return str(read_manifest(inside / "m.csv")[1].path)

    for name in ("link.mp4", "deep/a.mp4", "deep/../a.mp4", str(outside / "a.mp4")):
        assert found(name) == os.path.abspath(inside / name)
    for name in ("../out/a.mp4", "x/../../out/a.mp4", "../in.mp4"):
        with pytest.raises(ManifestError, match=rf"m\.csv:3: {name} leads out of {inside}; .*{ROOTS}={tmp_path}"):
            found(name)
    monkeypatch.setenv(ROOTS, "")  # somebody else's manifest
    assert found("a.mp4") == str(inside / "a.mp4")
    for name in ("link.mp4", "deep/a.mp4", "../out/a.mp4", str(outside / "a.mp4"), "/etc/passwd"):
        with pytest.raises(ManifestError, match=rf"m\.csv:3: {name} leads to .*, outside of {inside}"):
            found(name)
    with pytest.raises(ManifestError, match="leads to"):
        read_manifest(inside)  # the folder itself, with a link in it
    monkeypatch.setenv(ROOTS, f"/nowhere{os.pathsep}{outside}")
    for name in ("link.mp4", "deep/a.mp4", "../out/a.mp4", str(outside / "a.mp4")):
        assert found(name) == os.path.abspath(inside / name)
    with pytest.raises(ManifestError, match="leads to /etc/passwd"):
        found("/etc/passwd")
    monkeypatch.setenv(ROOTS, "/")
    assert found("../../../../../../../../../../etc/passwd") == "/etc/passwd"


def playlists(target: Path) -> dict[str, str]:
    head = "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.0,\n"
    return {
        "a.m3u8": f"{head}{target}\n#EXT-X-ENDLIST\n",
        "b.m3u8": f"{head}http://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "c.mp4": f"ffconcat version 1.0\nfile '{target}'\n",
        "d.mkv": "ffconcat version 1.0\nfile inside.ts\n",
        "e.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    }


def test_a_file_that_names_other_files_is_no_clip(tmp_path: Path) -> None:
    """Playlists open what is written in them, wherever it lies: no row of a manifest can lead there through one."""
    folder = tmp_path / "in"
    folder.mkdir()
    target = write_clip(tmp_path / "secret.ts", steady(1.0, 10))
    write_clip(folder / "inside.ts", steady(1.0, 10))
    for name, text in playlists(target).items():
        (folder / name).write_text(text)
        with pytest.raises(BadClip, match="not a video"):
            decode_span(folder / name, start=0.0, fps=10.0, frames=2, rate=RATE, needs=(), time_limit=5.0)
        with pytest.raises(BadClip, match="cannot be read"):
            read_sound(folder / name, RATE, 5.0)


def test_what_is_no_ordinary_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "zero.mp4").symlink_to("/dev/zero")
    for name in ("pipe.mp4", "folder.mp4", "zero.mp4"):
        for read in (
            lambda path: decode_span(path, start=0.0, fps=10.0, frames=1, rate=RATE),
            lambda path: read_sound(path, RATE, 5.0),
        ):
            with pytest.raises(BadClip, match="not a file"):
                read(tmp_path / name)
    for name in ("pipe.tar", "pipe.mp4"):
        with pytest.raises(ManifestError, match="no such"):
            read_manifest(tmp_path / name)
    with pytest.raises(ManifestError, match="no clips in this folder"):
        read_manifest(tmp_path)


def test_a_text_too_large_for_captions_is_refused(corpus: Manifest, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(corpus[0].path.read_bytes())
    with open(tmp_path / "a.txt", "wb") as file:
        file.truncate(1 << 40)  # a hole, not a terabyte
    with pytest.raises(ManifestError, match=r"a\.txt: more than 1,048,576 bytes are no captions"):
        read_manifest(tmp_path)


ROOT = Path(__file__).resolve().parents[2]
RUN_CODE = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}


@pytest.mark.parametrize("folder", ["vatt", "kernels", "bench"])
def test_nothing_is_unpickled(folder: str) -> None:
    """Reading a pickle runs what is in it. `torch.load(weights_only=True)` builds tensors and plain values only."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not RUN_CODE & {name.split(".")[0] for name in names}, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                given = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
                if ast.unparse(node.func) == "torch.load":
                    assert given.get("weights_only") == "True", f"{path}:{node.lineno}"
                assert node.func.attr != "read_pickle", f"{path}:{node.lineno}"


def test_every_promise_names_a_test_that_is_there() -> None:
    told = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text())
    assert len(told) > 20
    for file, name in told:
        assert not name or f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"
