"""What is shown when, where a file's own clock does not say: AVI, raw streams, recordings joined with `cat`."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from helpers.media import numbered_frame, numbers, onset, tone_burst

from vatt.config.model import AudioConfig, VideoConfig
from vatt.data.clip import Clip
from vatt.data.dali.packets import Unsuitable, cut_packets
from vatt.data.datasets.windows import WindowReader
from vatt.data.decoding import clock, video
from vatt.data.decoding.container import opened, probe
from vatt.data.decoding.span import decode_span

RATE = 48_000


def write_frames(
    path: Path, codec: str, count: int, b_frames: int, first: int = 0, form: str | None = None, **options: str
) -> Path:
    """Frames of the numbers from `first` on, 25 a second, with B-frames, a key frame in every 50 frames."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        assert isinstance(stream, VideoStream)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.max_b_frames, stream.codec_context.gop_size = b_frames, 50
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_frame(first + i), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shown(path: Path, start: float, frames: int = 8) -> list[int]:
    span = decode_span(path, start=start, fps=10.0, frames=frames, rate=RATE, read=("video",))
    assert span.video is not None
    return numbers(span.video)


@pytest.mark.parametrize(
    ("codec", "b_frames", "options"),
    [
        ("mpeg4", 2, {"qmin": "3", "qmax": "3"}),
        ("mpeg4", 4, {"qmin": "3", "qmax": "3"}),
        ("mpeg2video", 2, {"qmin": "3", "qmax": "3"}),
        ("libx264", 3, {"crf": "18"}),
        ("libx264", 3, {"crf": "18", "x264-params": "open-gop=1:b-adapt=0:scenecut=0"}),
    ],
)
def test_avi_with_reordered_frames(tmp_path: Path, codec: str, b_frames: int, options: dict[str, str]) -> None:
    clip = write_frames(tmp_path / "clip.avi", codec, 240, b_frames, **options)
    for start in (0.0, 1.96, 2.0, 3.97, 4.02, 5.3, 7.99):
        assert shown(clip, start) == [int((start + k / 10) * 25 + 1e-6) for k in range(8)]


def test_the_delay_of_a_decoder_is_found_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_frames(tmp_path / "clip.avi", "mpeg4", 240, 2)
    found, honest = 0, video._timed_frames

    def counted(*args: object) -> object:
        nonlocal found
        found += 1
        return honest(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(video, "_timed_frames", counted)
    for start in (4.3, 5.0, 6.0):
        shown(clip, start)
    assert found == 1 + 3


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".h264"), ("libx265", ".hevc"), ("mpeg4", ".m4v")])
def test_streams_without_timestamps(tmp_path: Path, codec: str, suffix: str) -> None:
    """Frames are counted: as long as they are, and each where its number says."""
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    clip = write_frames(tmp_path / f"clip{suffix}", codec, 200, 2, **options)
    assert probe(clip).duration == pytest.approx(8.0, abs=0.05)
    windows = WindowReader(VideoConfig(frames=8, size=32), AudioConfig(), 64, 30.0, read=("video",))
    assert windows.last_offset(Clip(0, clip, clip.name)) == 72
    for start in (0.0, 3.3, 6.0):
        assert shown(clip, start) == [int((start + k / 10) * 25 + 1e-6) for k in range(8)]


def recording(path: Path, seconds: float, burst: float, first: int, starts: float = 0.0) -> bytes:
    """A recording whose clock begins at `starts`; its sound is a burst at `burst` seconds of it."""
    kind = ("mpeg2video", "mp2") if path.suffix in (".mpg", ".vob") else ("libx264", "aac")
    options = {"muxdelay": "0", "muxpreload": "0"} if path.suffix == ".ts" else {}
    noise = np.random.default_rng(0).integers(0, 60, (64, 64, 3), np.uint8)  # or MPEG stamps a frame in many only
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(kind[0], rate=25)
        assert isinstance(stream, VideoStream)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.options = {"g": "12", "crf": "18"} if kind[0] == "libx264" else {"g": "12", "qmin": "2", "qmax": "2"}
        audio = container.add_stream(kind[1], rate=RATE, layout="mono")
        sound = tone_burst(seconds, burst, RATE)
        heard = 0
        for i in range(round(seconds * 25)):
            picture = np.abs(numbered_frame(first + i).astype(int) - np.roll(noise, i * 7, axis=0)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i + round(starts * 25), Fraction(1, 25)
            container.mux(stream.encode(frame))
            while heard < min(len(sound), (i + 1) * RATE // 25):
                piece = av.AudioFrame.from_ndarray(sound[None, heard : heard + 1152], "s16", "mono")
                piece.sample_rate, piece.time_base, piece.pts = RATE, Fraction(1, RATE), heard + round(starts * RATE)
                container.mux(audio.encode(piece))
                heard += 1152
        container.mux(stream.encode(None))
        container.mux(audio.encode(None))
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".ts", ".mpg", ".vob"])
@pytest.mark.parametrize("starts", [0.0, 200.0])
def test_joined_recordings(tmp_path: Path, suffix: str, starts: float) -> None:
    """Frames and sound of both parts, one after the other; each sound under its own pictures, after a seek too."""
    path = tmp_path / f"joined{suffix}"
    parts = [
        recording(tmp_path / f"{i}{suffix}", *said) for i, said in enumerate(((4.0, 1.5, 0, starts), (2.0, 1.2, 100)))
    ]
    path.write_bytes(b"".join(parts))
    assert probe(path).duration == pytest.approx(6.0, abs=0.05)
    whole = decode_span(path, start=0.0, fps=25.0, frames=150, rate=RATE)
    assert whole.video is not None
    assert numbers(whole.video) == list(range(150))
    assert whole.audio is not None
    alone = [
        decode_span(tmp_path / f"{i}{suffix}", start=0.0, fps=25.0, frames=n, rate=RATE).audio
        for i, n in ((0, 100), (1, 50))
    ]
    for sound, at in zip(alone, (0.0, 4.0), strict=True):
        assert sound is not None
        first = round(at * RATE)
        part = whole.audio[first : first + len(sound)]
        assert onset(part, RATE) == pytest.approx(onset(sound, RATE), abs=1e-3)
    for start in (2.1, 3.6, 4.0, 4.5):
        assert shown(path, start) == [int((start + k / 10) * 25 + 1e-6) for k in range(8)]
    late = decode_span(path, start=4.6, fps=10.0, frames=10, rate=RATE)
    assert late.audio is not None
    assert alone[1] is not None
    assert 4.6 + onset(late.audio, RATE) == pytest.approx(4.0 + onset(alone[1], RATE), abs=1e-3)
    with opened(path, 30.0, ("video",)) as reader, pytest.raises(Unsuitable, match="begins anew"):
        cut_packets(reader, 0.0, 10.0, 8, "gpu")


def test_large_files_are_looked_at_in_places_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "READ_WHOLE", 0)
    read, honest = 0, clock._scanned

    def counted(*args: object) -> object:
        nonlocal read
        read += 1
        return honest(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(clock, "_scanned", counted)
    one = tmp_path / "one.ts"
    one.write_bytes(recording(one, 4.0, 1.0, 0))
    assert shown(one, 1.0) == shown(one, 1.0)
    assert read == 0
    joined = tmp_path / "joined.ts"
    joined.write_bytes(one.read_bytes() + recording(tmp_path / "two.ts", 2.0, 1.0, 100))
    for _ in range(3):
        assert shown(joined, 4.5) == [int((4.5 + k / 10) * 25 + 1e-6) for k in range(8)]
    assert read == 1
