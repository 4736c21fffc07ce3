"""What is not done twice, or not at all: a file is opened once, windows share frames, unseen ones are not decoded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.stream import VideoStream
from helpers.media import numbered_frame, steady, tone_burst, write_clip

from vatt.config.model import AudioConfig, VideoConfig
from vatt.data.clip import Clip
from vatt.data.datasets.windows import Window, WindowReader
from vatt.data.decoding import grid, video
from vatt.data.decoding.container import BadClip, Reader
from vatt.data.decoding.h264 import PictureOrder, Unusual
from vatt.data.decoding.span import decode_span, decode_spans

RATE = 16_000
VIDEO, AUDIO = VideoConfig(frames=8, size=32, fps=10.0), AudioConfig(12_800, RATE)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Times of the frames that decoders gave."""
    times: list[float] = []
    honest = video._timed_frames

    def counted(*args: object) -> Iterator[tuple[float, float, av.VideoFrame]]:
        for item in honest(*args):  # type: ignore[arg-type]
            times.append(item[0])
            yield item

    monkeypatch.setattr(video, "_timed_frames", counted)
    return times


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were opened."""
    paths: list[str] = []
    honest = av.open

    def counted(file: object, *args: object, **options: object) -> object:
        paths.append(str(file))
        return honest(file, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(av, "open", counted)
    return paths


def write(path: Path, settings: str, times: list[int] | None = None, pixels: str = "yuv420p") -> Path:
    """120 frames whose every part builds on others, 25 a second or at `times` in milliseconds."""
    noise = np.random.default_rng(0).integers(0, 90, (64, 64, 3), np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            "libx264", rate=25, options={"x264-params": settings + ":keyint=40:b-adapt=0:scenecut=0"}
        )
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
        stream.codec_context.max_b_frames, stream.codec_context.time_base = 3, Fraction(1, 1000)
        for i in range(120):
            picture = np.maximum(numbered_frame(i), np.roll(noise, (i, 2 * i), (0, 1)))
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = i * 40 if times is None else times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def frames(path: Path, start: float, count: int) -> np.ndarray | str:
    try:
        span = decode_span(path, start=start, fps=10.0, frames=count, rate=RATE, read=("video",))
    except BadClip as bad:
        return str(bad)
    assert span.video is not None
    return span.video


def same_as_all_decoded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [(start, count) for start in (0.0, 1.13, 1.6, 2.0, 3.3, 4.4) for count in (3, 12)]
    spared = [frames(path, *place) for place in places]

    def unusual(_: object) -> PictureOrder:
        raise Unusual

    with monkeypatch.context() as patch:
        patch.setattr(video, "PictureOrder", unusual)
        for place, found in zip(places, spared, strict=True):
            np.testing.assert_array_equal(found, frames(path, *place))


@pytest.mark.parametrize(
    ("name", "settings", "most"),
    [
        ("pyramid.mp4", "bframes=3:b-pyramid=normal", 0.75),
        ("flat.mkv", "bframes=3:b-pyramid=none", 0.6),
        ("open.mp4", "bframes=3:open-gop=1", 1.0),
        ("slices.ts", "bframes=3:slices=3:aud=1", 1.0),
        ("fields.mp4", "bframes=3:tff=1", 1.0),
        ("times.mp4", "bframes=3", 1.0),
    ],
)
def test_frames_that_nobody_sees(
    name: str, settings: str, most: float, tmp_path: Path, decoded: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    uneven = np.cumsum(np.random.default_rng(1).integers(5, 90, 120)).tolist() if name == "times.mp4" else None
    clip = write(tmp_path / name, settings, uneven)
    frames(clip, 0.0, 40)
    assert len(decoded) <= 100 * most + 3
    same_as_all_decoded(clip, monkeypatch)


@pytest.mark.parametrize("fault", ["decoding times", "exchanged", "lost", "damaged"])
def test_none_is_left_out_where_something_is_wrong(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip, wrong = write(tmp_path / "right.mp4", "bframes=3:b-pyramid=normal"), tmp_path / "wrong.mp4"
    with av.open(str(clip)) as container, av.open(str(wrong), "w") as copy:
        stream = copy.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for place, packet in enumerate(packets):
            if fault == "decoding times":
                packet.pts = packet.dts
            elif fault == "exchanged" and place % 8 == 3 and (packet.pts or 0) >= (packets[place + 1].dts or 0):
                packet.pts, packets[place + 1].pts = packets[place + 1].pts, packet.pts
            packet.stream = stream
            if fault != "lost" or place not in (30, 31, 70):
                copy.mux(packet)
    if fault == "damaged":
        data = bytearray(wrong.read_bytes())
        for place in np.random.default_rng(0).integers(len(data) // 4, len(data) * 3 // 4, 12):
            data[place] ^= 0x55
        wrong.write_bytes(data)
    same_as_all_decoded(wrong, monkeypatch)


def test_a_window_opens_its_clip_once(tmp_path: Path, opens: list[str], decoded: list[float]) -> None:
    """Twice before, and 20 frames where now there are fewer."""
    clip = Clip(0, write(tmp_path / "clip.mp4", "bframes=3:b-pyramid=none"), "clip.mp4")
    opens.clear()
    reader = WindowReader(VIDEO, AUDIO, 32, 30.0)
    window = reader.read(clip, reader.last_offset(clip) // 2)
    assert len(opens) == 1
    assert len(decoded) < 20 + 20  # from the key frame on
    again = WindowReader(VIDEO, AUDIO, 32, 30.0).read(clip, 20)
    np.testing.assert_array_equal(window.video, again.video)
    # Another file in between, and one that has changed, are opened again.
    other = replace(clip, index=1, path=write(tmp_path / "other.mp4", "bframes=0"))
    reader = WindowReader(VIDEO, AUDIO, 32, 30.0)
    assert reader.seconds(clip) == reader.seconds(other) == pytest.approx(4.8)
    other.path.write_bytes(clip.path.read_bytes())
    np.testing.assert_array_equal(reader.read(other, 20).video, window.video)


def windows(moments: Iterator[Window | BadClip]) -> list[str | tuple[bytes, bytes]]:
    return [
        str(found)
        if isinstance(found, BadClip)
        else (np.asarray(found.video).tobytes(), np.asarray(found.audio).tobytes())
        for found in moments
    ]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".ts"])
def test_windows_that_overlap_share_their_frames(suffix: str, tmp_path: Path, decoded: list[float]) -> None:
    path = write_clip(tmp_path / f"clip{suffix}", steady(9.0, 25), tone_burst(9.0, 4.0, RATE), RATE, gop=25)
    clip = Clip(0, path, path.name)
    spans = [(0.5 * i, 0.5 * i + 0.8) for i in range(6)] + [(3.03, 3.2), (7.9, 8.7), (8.3, 9.9), (12.0, 13.0)]
    found = windows(WindowReader(VIDEO, AUDIO, 64, 30.0).read_moments(clip, spans))
    if suffix in (".mp4", ".mkv"):
        assert len(decoded) < 25 * (3.3 + 1.3) + 2 * 25  # the last span is behind the end
        assert len(set(decoded)) > 0.9 * (len(decoded) - 25)
    reader = WindowReader(VIDEO, AUDIO, 64, 30.0)
    alone = [windows(one(reader, replace(clip, start=start, end=end))) for start, end in spans]
    assert found == [window for (window,) in alone]
    assert "no frames at 12.00 s" in str(found[-1])


def one(reader: WindowReader, clip: Clip) -> Iterator[Window | BadClip]:
    try:
        yield reader.read(clip, 0)
    except BadClip as bad:
        yield bad


def test_moments_are_decoded_as_they_are_asked_for(tmp_path: Path, decoded: list[float]) -> None:
    path = write_clip(tmp_path / "clip.mp4", steady(20.0, 25), None, RATE, gop=25)
    spans = decode_spans(path, [(i, i + 1.0) for i in range(20)], fps=10.0, frames=10, rate=RATE)
    next(spans)
    assert len(decoded) < 50


def test_only_a_decoders_error_is_a_bad_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(1.0, 25), tone_burst(1.0, 0.5, RATE), RATE)

    def fails(*_: object, **__: object) -> None:
        raise ValueError("injected")

    for place, name in ((video._Converter, "__call__"), (grid.Span, "before"), (Reader, "require")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fails)
            with pytest.raises(ValueError, match=r"^injected"):
                decode_span(clip, start=0.0, fps=10.0, frames=4, rate=RATE)
    with monkeypatch.context() as patch:
        patch.setattr(video, "converted", fails)
        with pytest.raises(BadClip, match=r"cannot be decoded \(ValueError: injected\)"):
            decode_span(clip, start=0.0, fps=10.0, frames=4, rate=RATE)


def test_an_old_encoder_is_known_wherever_reading_begins(shared: Path) -> None:
    """Its 4:4:4 is coded in a way of its own; which encoder it was is written into the first packet only."""
    clip = shared / "data/clips/awkward/cockatoo.mp4"  # a key frame at 3.8 s
    np.testing.assert_array_equal(frames(clip, 4.0, 4), frames(clip, 0.0, 44)[40:])
