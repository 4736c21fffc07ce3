"""Transcoding: the same frames, sound, captions and splits as before, cut to the span; nothing lost on a kill."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from helpers.media import numbered_frame, numbers, onset, steady, tone_burst, write_clip
from helpers.processes import begin, wait_until

from vatt.data.clip import Clip, Manifest
from vatt.data.decoding.audio import read_sound
from vatt.data.decoding.container import probe
from vatt.data.decoding.span import DecodedSpan, decode_span
from vatt.data.manifest import read_manifest
from vatt.data.transcode import __main__ as transcode
from vatt.data.transcode import encode
from vatt.data.transcode import workers as transcode_workers
from vatt.data.transcode.corpus import Job
from vatt.data.transcode.encode import Encoding, encode_clip
from vatt.data.transcode.workers import _work

RATE = 48_000


def write_sound(path: Path, samples: np.ndarray) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_image(path: Path, size: int) -> Path:
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = size * 2, size, "yuvj420p"
        pixels = np.concatenate([numbered_frame(170, size)] * 2, axis=1)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(stream.encode(None))
    return path


def write_rows(path: Path, rows: Sequence[str]) -> Path:
    path.write_text("\n".join(["path,start,end,caption,label,split", *rows]) + "\n")
    return path


def decode(path: Path, frames: int = 100, **options: object) -> DecodedSpan:
    return decode_span(path, start=0.0, fps=10, frames=frames, rate=RATE, **options)  # type: ignore[arg-type]


def run(*arguments: object) -> int:
    return transcode.main([str(argument) for argument in arguments])


def left_out(out: Path) -> dict[str, str]:
    with open(out / "left_out.csv", newline="") as file:
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of every kind of row there is."""
    folder = tmp_path_factory.mktemp("corpus")
    write_clip(folder / "a.mp4", steady(4.0, 25), tone_burst(4.0, 2.0, RATE), size=128)
    write_clip(folder / "silent ä.mp4", steady(1.0, 30))
    write_sound(folder / "s.flac", tone_burst(3.0, 2.0, RATE))
    write_image(folder / "large.jpg", 96)
    write_image(folder / "small.jpg", 32)
    (folder / "broken.mp4").write_bytes(b"no video" * 100)
    return write_rows(
        folder / "m.csv",
        [
            "a.mp4,,,a | b,x | y,train",
            "a.mp4,1,2.5,cut,x,",
            "gone.mp4,,,c,x,train",
            "silent ä.mp4,,,,,test",
            "s.flac,1,,hum,z,test",
            "large.jpg,,,,x,train",
            "small.jpg,,,,x,train",
            "broken.mp4,,,,x,train",
            'a.mp4,1,2.5,"the same, again",y,test',
            "a.mp4,7,9,beyond,y,test",
        ],
    )


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "out"
    assert run(corpus, "--out", out, "--size", 64, "--workers", 2, "--shards", 3) == 0
    return out


def test_the_new_manifest(finished: Path) -> None:
    clips = read_manifest(finished / "manifest.csv")
    rows = [(clip.captions, clip.label, clip.split, clip.start, clip.end, clip.path.suffix) for clip in clips]
    assert rows == [
        (("a", "b"), "x | y", "train", 0.0, None, ".mp4"),
        (("cut",), "x", None, 0.0, None, ".mp4"),
        ((), None, "test", 0.0, None, ".mp4"),
        (("hum",), "z", "test", 0.0, None, ".m4a"),
        ((), "x", "train", 0.0, None, ".jpg"),
        ((), "x", "train", 0.0, None, ".jpg"),
        (("the same, again",), "y", "test", 0.0, None, ".mp4"),
    ]
    assert clips[1].path == clips[6].path  # two rows of one span, one file
    reasons = left_out(finished)
    assert reasons["gone.mp4"] == "missing"
    assert reasons["broken.mp4"].startswith("not a video")
    assert reasons["a.mp4"].startswith("no frames at 7.00 s")


def test_frames_and_sound_are_those_of_the_span(finished: Path) -> None:
    whole, cut, silent, sound, large, small, _ = (clip.path for clip in read_manifest(finished / "manifest.csv"))
    assert probe(whole).fps == 10
    span = decode(whole)
    assert span.video is not None
    assert span.audio is not None
    assert span.video.shape == (40, 64, 64, 3)
    assert numbers(span.video) == [i * 25 // 10 for i in range(40)]
    assert onset(span.audio, RATE) == pytest.approx(2.0, abs=2e-3)
    assert len(span.audio) == 4 * RATE
    span = decode(cut)
    assert span.video is not None
    assert span.audio is not None
    assert numbers(span.video) == [25 + i * 25 // 10 for i in range(15)]
    assert onset(span.audio, RATE) == pytest.approx(1.0, abs=2e-3)
    assert decode(silent).audio is None
    assert onset(read_sound(sound, RATE, 10.0), RATE) == pytest.approx(1.0, abs=2e-3)
    picture = decode(large).video
    assert picture is not None
    assert picture.shape == (1, 64, 128, 3)
    assert numbers(picture[:, :, :64]) == [170]
    assert probe(small, needs=()).height == 32


def test_the_report(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    assert report["rows"] == {"listed": 10, "written": 7, "left_out": 3}
    assert {kind: report["files"][kind] for kind in ("videos", "sounds", "images")} == {
        "videos": 3,
        "sounds": 1,
        "images": 2,
    }
    files = {clip.path for clip in read_manifest(finished / "manifest.csv")}
    assert report["bytes"]["after"] == sum(file.stat().st_size for file in files)
    assert report["decode"]["frames"] == 40 + 15 + 10
    assert report["decode"]["frames_per_second_after"] > 0
    assert report["environment"]["versions"]["av"]


def test_shards_hold_the_same_clips(finished: Path) -> None:
    files, packed = (read_manifest(finished / name) for name in ("manifest.csv", "shards"))
    assert [(c.captions, c.label, c.split) for c in files] == [(c.captions, c.label, c.split) for c in packed]
    for ours, theirs in zip(files, packed, strict=True):
        a, b = (decode(clip.path, 3, needs=()) for clip in (ours, theirs))
        assert np.array_equal(a.video, b.video) if a.video is not None else np.array_equal(a.audio, b.audio)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", encode.CODECS)
def test_codecs(tmp_path: Path, codec: str) -> None:
    clip = Clip(0, write_clip(tmp_path / "a.mp4", steady(3.0, 25), tone_burst(3.0, 1.5, RATE), size=128), "a.mp4")
    done = encode_clip(clip, tmp_path / "b", Encoding(codec, size=64, gop=8), 30.0)
    with av.open(str(tmp_path / done.name)) as container:
        video = container.streams.video[0]
        assert encode.CODECS[codec].encoder.removeprefix("lib") in (
            video.codec_context.name.replace("h264", "x264").replace("hevc", "x265").replace("vp9", "vpx-vp9")
        )
        keys = [
            number for number, packet in enumerate(p for p in container.demux(video) if p.size) if packet.is_keyframe
        ]
    assert keys == (list(range(30)) if codec == "mjpeg" else [0, 8, 16, 24])
    span = decode(tmp_path / done.name)
    assert span.video is not None
    assert span.audio is not None
    assert numbers(span.video) == [i * 25 // 10 for i in range(30)]
    assert onset(span.audio, RATE) == pytest.approx(1.5, abs=2e-3)
    assert (done.frames, done.kind, done.bytes) == (30, "video", (tmp_path / done.name).stat().st_size)


def test_long_clips_are_read_in_pieces_without_seams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chirp = (np.sin(np.arange(4 * RATE) ** 2 * 1e-7) * 16_000).astype(np.int16)
    clip = Clip(0, write_clip(tmp_path / "a.mp4", steady(4.0, 25), chirp, gop=50), "a.mp4", start=0.5)
    whole = decode(tmp_path / encode_clip(clip, tmp_path / "whole", Encoding(), 30.0).name)
    sound = Clip(0, write_sound(tmp_path / "s.flac", chirp), "s.flac")
    heard = read_sound(tmp_path / encode_clip(sound, tmp_path / "whole", Encoding(), 30.0).name, RATE, 10.0)
    monkeypatch.setattr(encode, "CHUNK", 7)  # 35 frames are five pieces to the frame
    in_pieces = read_sound(tmp_path / encode_clip(sound, tmp_path / "pieces", Encoding(), 30.0).name, RATE, 10.0)
    assert np.array_equal(heard, in_pieces)
    pieces = decode(tmp_path / encode_clip(clip, tmp_path / "pieces", Encoding(), 30.0).name)
    assert np.array_equal(whole.video, pieces.video)  # type: ignore[arg-type]
    assert whole.audio is not None
    assert pieces.audio is not None
    error = np.abs(whole.audio.astype(int) - pieces.audio)
    assert error.max() < 16_000 / 20  # a gap or an overlap at a seam would differ by whole waves


def hostile_work(end: object, job: Job, stem: Path, recipe: Encoding, limit: float, memory: float) -> None:
    """Runs in the clip's own process: a decoder that hangs inside the library, one that crashes, and an honest one.

    The one that hangs says so when all others are done. The others have all the time they need.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    if job.clip.name == "hangs":
        log, hanging = job.clip.path.parent / "out" / "finished.jsonl", job.clip.path.parent / "hanging"
        while log.read_bytes().count(b"\n") < 2:
            time.sleep(0.01)
        hanging.touch()
        time.sleep(3600)
    if job.clip.name == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    _work(end, job, stem, recipe, 3600.0, memory)  # type: ignore[arg-type]


def test_a_decoder_that_hangs_or_crashes_costs_its_clip_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("hangs", "crashes", "fine", "fine too")
    clips = tuple(Clip(i, write_clip(tmp_path / f"{i}.mp4", steady(1.0, 10)), name) for i, name in enumerate(names))
    honest = _work
    monkeypatch.setattr(transcode_workers, "GRACE", 0.2)
    monkeypatch.setattr(transcode, "read_manifest", lambda *_: Manifest(clips, tmp_path, ()))
    monkeypatch.setattr(transcode_workers, "_work", hostile_work)
    # A clock that stands still until only the clip that hangs is left, which then has hung for an hour.
    clock = SimpleNamespace(monotonic=lambda: 3600.0 if (tmp_path / "hanging").exists() else 0.0)
    monkeypatch.setattr(transcode_workers, "time", clock)
    assert run("m", "--out", tmp_path / "out", "--workers", 2, "--time-limit", 1) == 0
    monkeypatch.setattr(transcode_workers, "_work", honest)
    with open(tmp_path / "out" / "left_out.csv", newline="") as file:
        assert [row["reason"] for row in csv.DictReader(file)] == [
            "took longer than 1 s",
            f"its decoder crashed (exit code {-signal.SIGSEGV})",
        ]
    assert len(read_manifest(tmp_path / "out" / "manifest.csv")) == 2


STOPS = """
import os, sys, time
from vatt.data.transcode import __main__ as command, workers
work = workers._work
def stops(end, job, *rest):
    if job.clip.index == 2:
        os.replace = lambda *paths: time.sleep(3600)  # when all is written but the name
    work(end, job, *rest)
workers._work = stops
if __name__ == "__main__":
    sys.exit(command.main(sys.argv[1:]))
"""


def test_resume_after_a_kill(tmp_path: Path) -> None:
    for i in range(6):
        write_clip(tmp_path / f"{i}.mp4", [at + 0.1 * i for at in steady(2.0, 25)], size=128)
    rows = write_rows(tmp_path / "m.csv", [f"{i}.mp4,,,,," for i in range(6)])
    out, settings = tmp_path / "out", ("--workers", 1, "--gop", 5)
    (tmp_path / "stops.py").write_text(STOPS)
    command = [sys.executable, tmp_path / "stops.py", rows, "--out", out, *settings]
    process = begin(command, stderr=subprocess.DEVNULL, start_new_session=True)
    log = out / "finished.jsonl"
    wait_until(process, lambda: log.exists() and log.read_bytes().count(b"\n") == 2 and any(out.rglob(".*.tmp")))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert list((out / "clips").glob("*/.*.tmp"))
    done = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(done) == 2
    kept, cut = ((out / "clips" / one["key"]).with_name(one["encoded"]["name"]) for one in done[:2])
    before = kept.stat().st_mtime_ns
    cut.write_bytes(cut.read_bytes()[:100])
    with open(log, "a") as file:
        file.write('{"key": "torn li')

    assert run(rows, "--out", out, *settings) == 2  # nothing is overwritten unasked
    assert run(rows, "--out", out, *settings, "--size", 64, "--resume") == 2  # nor mixed
    assert run(rows, "--out", out, *settings, "--resume") == 0
    assert kept.stat().st_mtime_ns == before
    assert not list((out / "clips").glob("*/.*.tmp"))
    assert run(rows, "--out", tmp_path / "fresh", *settings) == 0
    fresh = [clip.path.read_bytes() for clip in read_manifest(tmp_path / "fresh" / "manifest.csv")]
    assert [clip.path.read_bytes() for clip in read_manifest(out / "manifest.csv")] == fresh

    write_clip(tmp_path / "3.mp4", steady(1.0, 25))  # a source that is another one now
    assert run(rows, "--out", out, *settings, "--resume") == 0
    again = read_manifest(out / "manifest.csv")
    assert [len(decode(clip.path).video) for clip in again] == [20, 20, 20, 10, 20, 20]  # type: ignore[arg-type]
    assert kept.stat().st_mtime_ns == before


def test_nothing_left_and_nothing_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(write_rows(tmp_path / "m.csv", ["gone.mp4,,,,,"]), "--out", tmp_path / "out") == 1
    assert "none of 1 clips can be read" in capsys.readouterr().err
    assert run(tmp_path / "none.csv", "--out", tmp_path / "other") == 2
    assert not (tmp_path / "other").exists()


def test_awkward_clips(shared: Path, tmp_path: Path) -> None:
    """Sound only, rotated, odd sizes, no duration, MPEG-TS that starts late, one pixel; and those that must be told."""
    folder = shared / "data" / "clips" / "awkward"
    good = (
        "opus_audioinit.mp4",
        "video_90.mov",
        "bear-vp9-odd-dimensions.webm",
        "video_not_seekable.ts",
        "bitmap.mp4",
        "unordered.mov",
        "h265_10bits.mp4",
    )
    bad = ("corrupted.mp4", "no_timescale.mp4", "invalid_userdata.mp4", "result.webm", "invalid-bitstream.webm")
    rows = write_rows(tmp_path / "m.csv", [f"{folder / name},,,,," for name in (*good, *bad)])
    assert run(rows, "--out", tmp_path / "out", "--size", 96) == 0
    clips = read_manifest(tmp_path / "out" / "manifest.csv")
    assert [clip.path.name.rsplit("-", 1)[0] for clip in clips] == [Path(name).stem for name in good]
    assert set(left_out(tmp_path / "out")) == set(bad)
    sizes = [(info.width, info.height) for info in (probe(clip.path, needs=()) for clip in clips)]
    assert sizes == [(0, 0), (96, 170), (128, 96), (144, 96), (2, 2), (50, 50), (96, 96)]
