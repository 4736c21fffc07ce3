"""Video decoders side by side, each one as its documentation says, on one thread: ours and what else imports here.

All give the same: the frames shown at given times, uint8 [T, h, w, 3] RGB of the stored size. The others are optional.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from harness.checkouts import OtherCode

import av
import numpy as np
from numpy.typing import NDArray

from vatt.data.decoding.container import probe
from vatt.data.decoding.span import decode_span
from vatt.runtime.compatibility import OPEN_OPTIONS

Frames = NDArray[np.uint8]
RATE = 48_000
OURS = "pyav"
FRAMES, FPS = 32, 10.0  # of a window of training
SEQUENCE = 64  # frames one after the other, at the clip's own rate


class Unavailable(RuntimeError):
    """A decoder that does not import here, or does not take a clip; the message says why."""


class Decoder(Protocol):
    """Each call opens the file anew."""

    def __call__(self, path: Path, start: float, fps: float, frames: int) -> Frames:
        """Return what is shown at `start + i / fps` seconds. Raises `Unavailable` for a clip that it does not take."""
        ...


def pyav() -> Decoder:
    """Return what training uses, without the sound."""

    def decode(path: Path, start: float, fps: float, frames: int) -> Frames:
        video = decode_span(path, start=start, fps=fps, frames=frames, rate=RATE, read=("video",)).video
        assert video is not None
        return video

    return decode


def pyav_training() -> Decoder:
    """Return what training does: scaled to a shorter side of 336 where it is larger, and with the sound of the span."""

    def decode(path: Path, start: float, fps: float, frames: int) -> Frames:
        video = decode_span(path, start=start, fps=fps, frames=frames, rate=RATE, short_side=336).video
        assert video is not None
        return video

    return decode


class OtherCheckout(OtherCode):
    """Our decoder as it is in another checkout; its frames stay there."""

    def __init__(self, root: Path) -> None:
        super().__init__(Path(__file__).with_name("other_checkout.py"), root)

    def __call__(self, path: Path, start: float, fps: float, frames: int, digest: bool = False) -> str | None:
        """Decode a window; return the SHA-256 of its frames if asked for. Raises `ReportError` if it cannot."""
        found: str | None = self.ask(path=str(path), start=start, fps=fps, frames=frames, rate=RATE, digest=digest)
        return found


def torchcodec(seek_mode: str = "exact") -> Decoder:
    """Return torchcodec's decoder; "approximate" reads no index of the file first, and takes its rate as constant."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        raise Unavailable(_short(error)) from error

    def decode(path: Path, start: float, fps: float, frames: int) -> Frames:
        try:
            reader = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=seek_mode)
            times = reader.metadata.begin_stream_seconds + _times(start, fps, frames)
            return reader.get_frames_played_at(times.tolist()).data.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise Unavailable(_short(error)) from error

    return decode


def decord() -> Decoder:
    try:
        from decord import DECORDError, VideoReader
    except (ImportError, RuntimeError, OSError) as error:
        raise Unavailable(_short(error)) from error

    def decode(path: Path, start: float, fps: float, frames: int) -> Frames:
        try:
            reader = VideoReader(str(path), num_threads=1)
            shown = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
            indices = np.searchsorted(shown - shown[0], _times(start, fps, frames) + 1e-4, "right") - 1
            return reader.get_batch(indices.tolist()).asnumpy()
        except (DECORDError, RuntimeError, ValueError, IndexError) as error:
            raise Unavailable(_short(error)) from error

    return decode


def dali_cpu() -> Decoder:
    """Decode by NVIDIA DALI without a GPU, VP8, VP9 and MJPEG only: one pipeline, asked for one clip at a time."""
    try:
        from nvidia.dali import fn, pipeline_def, types
    except (ImportError, RuntimeError, OSError) as error:
        raise Unavailable(_short(error)) from error

    @pipeline_def(
        batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False
    )
    def graph() -> Any:
        data = fn.external_source(name="data", dtype=types.UINT8, ndim=1)
        frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
        return fn.decoders.video(data, device="cpu", frames=frames)

    pipeline: list[Any] = []

    def decode(path: Path, start: float, fps: float, frames: int) -> Frames:
        if _codec(path) not in ("vp8", "vp9", "mjpeg"):
            raise Unavailable(f"does not decode {_codec(path)} without a GPU")
        if not pipeline:
            pipeline.append(graph())
            pipeline[0].build()
        # DALI is asked for frames by number: right for clips of a constant rate.
        indices = np.floor(_times(start, fps, frames) * probe(path).fps + 1e-4).astype(np.int32)
        try:
            pipeline[0].feed_input("data", [np.fromfile(path, np.uint8)])
            pipeline[0].feed_input("frames", [indices])
            (out,) = pipeline[0].run()
        except RuntimeError as error:
            pipeline.clear()  # a clip that fails takes its pipeline with it
            raise Unavailable(_short(error)) from error
        return np.array(out[0])

    return decode


DECODERS: dict[str, Callable[[], Decoder]] = {
    "pyav": pyav,
    "pyav, training": pyav_training,
    "torchcodec": torchcodec,
    "torchcodec, approximate": partial(torchcodec, "approximate"),
    "decord": decord,
    "dali cpu": dali_cpu,
}


def made_clips(folder: Path) -> list[Path]:
    """Return clips of 10 s, 340x256, 30 a second, of a drifting pattern with grain and a tone: H.264, MJPEG and VP9."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:256, :340]
    pattern = 128 + 60 * np.sin(x / 17) * np.cos(y / 23) + 40 * np.sin((x + y) / 61)
    grain = draw.normal(0, 6, (8, 256, 340))
    clips = []
    tone = (8000 * np.sin(np.arange(10 * RATE) * (2 * np.pi * 440 / RATE))).astype(np.int16)
    for name, codec, sound, options in (
        ("h264.mp4", "libx264", "aac", {"crf": "23"}),
        ("mjpeg.avi", "mjpeg", "libmp3lame", {"qmin": "3"}),
        ("vp9.webm", "libvpx-vp9", "libopus", {"deadline": "realtime", "cpu-used": "8"}),
    ):
        path = folder / name
        clips.append(path)
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=30, options=options)
            stream.width, stream.height = 340, 256
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            audio: Any = container.add_stream(sound, rate=RATE, layout="mono")
            for i in range(300):
                grey = np.roll(pattern, (i, 2 * i), (0, 1)) + grain[i % 8]
                image = np.stack([grey, np.roll(grey, 40, 1), 255 - grey], -1).clip(0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
                piece = av.AudioFrame.from_ndarray(tone[None, i * RATE // 30 : (i + 1) * RATE // 30], "s16", "mono")
                piece.sample_rate, piece.pts = RATE, i * RATE // 30
                container.mux(audio.encode(piece))
            container.mux([*stream.encode(None), *audio.encode(None)])
    return clips


def long_clip(folder: Path, minutes: float) -> Path:
    """Return a clip of 1280x720, 30 frames a second, with a tone: two seconds of H.264, again and again."""
    seconds = 2
    part, path = folder / "part.mp4", folder / f"{minutes:g} minutes.mp4"
    y, x = np.mgrid[:720, :1280].astype(np.float32)
    pattern = (128 + 60 * np.sin(x / 17) * np.cos(y / 23) + 40 * np.sin((x + y) / 61)).astype(np.uint8)
    grain = np.random.default_rng(0).integers(0, 9, (8, 720, 1280), np.uint8)
    with av.open(str(part), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"crf": "23", "preset": "veryfast", "bf": "3"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for i in range(30 * seconds):
            grey = np.roll(pattern, (i, 2 * i), (0, 1)) + grain[i % 8]
            frame = av.VideoFrame.from_ndarray(np.stack([grey, grey[:, ::-1], 255 - grey], -1), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(part), **OPEN_OPTIONS) as container:
        packets = [(bytes(p), p.pts, p.dts, p.is_keyframe) for p in container.demux(video=0) if p.size]
        source = container.streams.video[0]
        assert source.time_base is not None
        step = round(seconds / source.time_base)
        with av.open(str(path), "w") as copy:
            video: Any = copy.add_stream_from_template(source)
            audio: Any = copy.add_stream("aac", rate=RATE, layout="mono")
            tone = (8000 * np.sin(np.arange(seconds * RATE) * (2 * np.pi * 440 / RATE))).astype(np.int16)
            for turn in range(max(1, round(60 * minutes / seconds))):
                for data, pts, dts, key in packets:
                    packet = av.Packet(data)
                    packet.stream, packet.time_base, packet.is_keyframe = video, source.time_base, key
                    packet.pts, packet.dts = pts + turn * step, dts + turn * step
                    copy.mux(packet)
                piece = av.AudioFrame.from_ndarray(tone[None], "s16", "mono")
                piece.sample_rate, piece.pts = RATE, turn * seconds * RATE
                copy.mux(audio.encode(piece))
            copy.mux(audio.encode(None))
    return path


def once_through(path: Path) -> int:
    """Decode every frame of the video with PyAV alone, without converting one; return how many there are."""
    with av.open(str(path), **OPEN_OPTIONS) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        return sum(1 for _ in container.decode(stream))


def _times(start: float, fps: float, frames: int) -> NDArray[np.float64]:
    return start + np.arange(frames) / fps


def _codec(path: Path) -> str:
    with av.open(str(path), **OPEN_OPTIONS) as container:
        stream = container.streams.best("video")
        assert stream is not None
        return stream.codec_context.name if stream.codec_context is not None else "an unknown codec"


def _short(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:160] if text else 'no message'}"
