"""Encodes one clip anew, as training reads it best: small frames at the model's rate, key frames close together.

What is written is what decoding reads of the row: the same frames on the same grid, upright, and the sound of
the same span, mono. A row keeps what it has: sound without video stays a sound, an image an image.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ...runtime.files import write_atomically
from ..clip import Clip
from ..decoding.audio import read_audio
from ..decoding.container import BOTH, BadClip, opened, plain, probe
from ..decoding.grid import grid_frames
from ..decoding.span import DecodedSpan, decode_span
from ..encoders import REPEATABLE
from ..media_types import IMAGE
from ..shards.index import open_clip

FORMAT = 3  # raise it with every change of what is written of the same clip and recipe
RATE = 48_000  # Hz, mono
SOUND_BITS = 96_000  # a second
SOUND_BLOCK = 14_400  # seconds of sound decoded at once: 1.4 GB of them
CHUNK = 250  # frames decoded at once: 90 MB of them at 256 x 455 pixels
BT601, LIMITED, FULL = 5, 1, 2  # what libav calls the colours that it makes of RGB


@dataclass(frozen=True)
class Codec:
    """`about`: who decodes it where. `gop`: whether frames build on others, so that key frames are a choice."""

    encoder: str
    container: str
    suffix: str
    sound: str
    about: str
    options: dict[str, str] = field(default_factory=dict)
    pixels: str = "yuv420p"
    gop: bool = True


# One thread an encoder: clips are encoded side by side. No B-frames, so that frames leave a decoder as they enter it.
CODECS = {
    "h264": Codec(
        "libx264",
        "mp4",
        ".mp4",
        "aac",
        "NVDEC on every GPU that has one, and every CPU: the safe choice, quick to encode and to decode",
        {"preset": "fast", "crf": "20", "bf": "0", "sc_threshold": "0", "threads": "1"},
    ),
    "hevc": Codec(
        "libx265",
        "mp4",
        ".mp4",
        "aac",
        "NVDEC (frames of 144 x 144 or more); slower than h264 on CPUs; fewer bytes, slow to encode",
        {
            "preset": "fast",
            "crf": "23",
            "x265-params": "bframes=0:scenecut=0:open-gop=0:pools=none:frame-threads=1:log-level=none",
        },
    ),
    "vp9": Codec(
        "libvpx-vp9",
        "webm",
        ".webm",
        "libopus",
        "NVDEC (128 x 128 or more), and CPU decoders without h264, such as DALI's; fewer bytes, slow to encode",
        {"crf": "28", "b": "0", "deadline": "good", "cpu-used": "5", "lag-in-frames": "0", "threads": "1"},
    ),
    "mjpeg": Codec(
        "mjpeg",
        "mp4",
        ".mp4",
        "aac",
        "CPUs only, NVDEC has no MJPEG: the fastest there, as every frame stands alone; over twice the bytes of h264",
        {"qmin": "3", "qmax": "3"},
        "yuvj420p",
        gop=False,
    ),
}


@dataclass(frozen=True)
class Encoding:
    """What all clips of a corpus become. `size`: short side in pixels, never enlarged; `gop`: frames a key frame.

    `format`: 1 is that of corpora begun before H.264 was repeatable, 2 before decoding and the seams of sound were
    mended; they are gone on with as they were begun, except for what was decoded wrongly.
    """

    codec: str = "h264"
    size: int = 256
    fps: float = 10.0
    gop: int = 10
    format: int = FORMAT


@dataclass(frozen=True)
class Encoded:
    """A clip that was written. `kind`: "video", "sound" or "image"; `media_seconds`: how long it plays.

    `frames`: video frames; `read_seconds`: decoding them and their sound from the source; `check_seconds`: the same
    with the same decoder from what was written; `remarks`: what a user should know of the source.
    """

    name: str
    kind: str
    bytes: int
    frames: int
    media_seconds: float
    read_seconds: float
    check_seconds: float
    remarks: list[str] = field(default_factory=list)


def encode_clip(clip: Clip, stem: Path, recipe: Encoding, time_limit: float) -> Encoded:
    """Write the span of `clip` to `stem` with a suffix of its kind, atomically, and read it back.

    Raises:
        BadClip: it cannot be decoded or encoded, or does not read back as it should; nothing is left of it then.
        OSError: it cannot be written.
    """
    info = probe(clip.path, time_limit=time_limit, needs=())
    still = clip.path.suffix.lower() in IMAGE and not info.duration  # an animated one is a video
    if still:
        data, suffix = _image(clip.path, recipe, min(info.width, info.height), time_limit)
        read_seconds, steps, remarks = 0.0, 1, list[str]()
    else:
        suffix = CODECS[recipe.codec].suffix if info.has_video else ".m4a"
        end = info.duration if clip.end is None else min(clip.end, info.duration)
        frames = grid_frames(end - clip.start, recipe.fps)
        source = _Source(clip.path, clip.start, frames, recipe, time_limit, info.has_video)
        try:
            data = _encode(source, recipe)
        except FFmpegError as error:
            raise BadClip(clip.path, f"cannot be encoded ({plain(error)})") from error
        read_seconds, steps, remarks = source.seconds, source.steps, sorted(source.remarks)
    path = stem.with_name(stem.name + suffix)
    write_atomically(path, data)
    check = _Source(path, 0.0, 1 if still else steps + 1, recipe, time_limit, info.has_video)
    try:
        for _ in check:
            pass
        # AAC comes in packets of 21 ms: a sound alone may end in the next step of the grid.
        if not steps <= check.steps <= steps + (not info.has_video):
            raise BadClip(path, f"{check.steps} of {steps} frames")
    except BadClip as error:
        path.unlink(missing_ok=True)
        raise BadClip(clip.path, f"what was written does not read back: {error.reason}") from error
    return Encoded(
        name=path.name,
        kind="image" if still else "video" if info.has_video else "sound",
        bytes=len(data),
        frames=steps if info.has_video else 0,
        media_seconds=0.0 if still else steps / recipe.fps,
        read_seconds=read_seconds,
        check_seconds=check.seconds,
        remarks=remarks,
    )


class _Source:
    """The span of a clip, in pieces: pictures in `CHUNK` frames, the sound cut out of one that is decoded in a row.

    Sound that is decoded piece by piece does not meet at the ends: decoders start anew, timestamps are rounded.

    `steps`: frames that it had; `seconds`: of decoding; `remarks`: what a user should know of it.
    """

    def __init__(
        self, path: Path, start: float, frames: int, recipe: Encoding, time_limit: float, has_video: bool = True
    ) -> None:
        self.path, self.start, self.frames, self.recipe, self.time_limit = path, start, frames, recipe, time_limit
        self.has_video = has_video
        self.steps, self.seconds = 0, 0.0
        self.remarks: set[str] = set()

    def __iter__(self) -> Iterator[DecodedSpan]:
        fps = self.recipe.fps
        block = round(SOUND_BLOCK * fps)
        chunk = CHUNK if self.has_video else block
        sound: NDArray[np.int16] | None = None
        while self.steps < self.frames:
            since = time.perf_counter()
            if self.has_video and self.steps % (block - block % CHUNK) == 0:
                sound = self._sound(min(block, self.frames - self.steps))
                heard_from = self.steps
            # One frame more than is taken, to know that the file goes on before a piece begins there.
            span = decode_span(
                self.path,
                start=self.start + self.steps / fps,
                fps=fps,
                rate=RATE,
                short_side=self.recipe.size,
                frames=min(chunk + 1, self.frames - self.steps),
                time_limit=self.time_limit,
                needs=(),
                read=("video",) if self.has_video else BOTH,
            )
            self.remarks |= span.remarks
            self.seconds += time.perf_counter() - since
            got = _steps(span, fps)
            taken = min(got, chunk)
            audio = span.audio
            if sound is not None:
                first = self.steps - heard_from
                audio = sound[round(first * RATE / fps) : round((first + taken) * RATE / fps)]
            elif audio is not None and got > chunk:
                audio = audio[: round(chunk * RATE / fps)]
            self.steps += taken
            yield DecodedSpan(None if span.video is None else span.video[:taken], audio)
            if got <= chunk:
                return

    def _sound(self, steps: int) -> NDArray[np.int16] | None:
        """Return the sound of `steps` frames from the present one on; None where there is none."""
        with opened(self.path, self.time_limit) as reader:
            if reader.audio is None or reader.still:
                return None
            fps = self.recipe.fps
            sound = read_audio(reader, self.start + self.steps / fps, RATE, round(steps * RATE / fps))
            self.remarks |= reader.remarks
        return sound


def _steps(span: DecodedSpan, fps: float) -> int:
    if span.video is not None:
        return len(span.video)
    assert span.audio is not None
    return grid_frames(len(span.audio) / RATE, fps)


def _encode(source: _Source, recipe: Encoding) -> bytes:
    """Return the file: mp4 or webm with frames and sound; mp4 with sound alone."""
    file = io.BytesIO()
    pieces = iter(source)
    piece = next(pieces)
    codec = CODECS[recipe.codec]
    kind = "mp4" if piece.video is None else codec.container
    # Tracks of WebM have random numbers unless told not to.
    with av.open(file, "w", format=kind, options={"fflags": "bitexact"} if kind == "webm" else {}) as container:
        put_frame = None if piece.video is None else _video_track(container, piece.video.shape, recipe)
        put_sound = None
        if piece.audio is not None:
            put_sound = _sound_track(container, "aac" if piece.video is None else codec.sound)
        per_step = RATE / recipe.fps
        while True:
            for step in range(_steps(piece, recipe.fps)):
                # Frame by frame, so that sound and pictures of the same time lie side by side in the file.
                if put_sound is not None and piece.audio is not None:
                    put_sound(piece.audio[round(step * per_step) : round((step + 1) * per_step)])
                if put_frame is not None and piece.video is not None:
                    put_frame(piece.video[step])
            following = next(pieces, None)
            if following is None:
                break
            piece = following
        for put in (put_sound, put_frame):
            if put is not None:
                put(None)
    return file.getvalue()


Put = Callable[[NDArray[np.generic] | None], None]  # encodes one piece; None: there are no more


def _video_track(container: OutputContainer, shape: tuple[int, ...], recipe: Encoding) -> Put:
    codec = CODECS[recipe.codec]
    rate = Fraction(recipe.fps).limit_denominator(1001)
    options = dict(codec.options)
    if codec.encoder == "libx264" and recipe.format > 1:
        options |= REPEATABLE
    if codec.gop:
        options["g"] = options["keyint_min"] = str(recipe.gop)
    stream = container.add_stream(codec.encoder, rate=rate, options=options)
    assert isinstance(stream, VideoStream)
    # Four pixels share a colour sample, so sides are even.
    stream.height, stream.width = (max(2, side - side % 2) for side in shape[1:3])
    stream.pix_fmt = codec.pixels
    context = stream.codec_context
    context.colorspace, context.color_range = BT601, LIMITED if codec.gop else FULL
    if codec.encoder == "libx265":
        context.codec_tag = "hvc1"
    number = 0

    def put(pixels: NDArray[np.generic] | None) -> None:
        nonlocal number
        if pixels is None:
            container.mux(stream.encode(None))
            return
        image = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = image.reformat(
            stream.width, stream.height, codec.pixels, dst_colorspace=BT601, dst_color_range=context.color_range
        )
        frame.pts, frame.time_base = number, 1 / rate
        number += 1
        container.mux(stream.encode(frame))

    return put


def _sound_track(container: OutputContainer, encoder: str) -> Put:
    # AAC's best search for its parameters would take most of the whole time.
    options = {"aac_coder": "fast"} if encoder == "aac" else {}
    stream = container.add_stream(encoder, rate=RATE, layout="mono", options=options)
    assert isinstance(stream, AudioStream)
    stream.bit_rate = SOUND_BITS
    number = 0

    def put(samples: NDArray[np.generic] | None) -> None:
        nonlocal number
        if samples is None:
            container.mux(stream.encode(None))
        elif len(samples):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = RATE, number, Fraction(1, RATE)
            number += len(samples)
            container.mux(stream.encode(frame))

    return put


def _image(path: Path, recipe: Encoding, shorter: int, time_limit: float) -> tuple[bytes, str]:
    """Return the content of an image, and its suffix.

    One that is small enough stays as it is; a larger one becomes a JPEG file of the size asked for.
    """
    span = decode_span(
        path, start=0.0, fps=recipe.fps, frames=1, rate=RATE, short_side=recipe.size, time_limit=time_limit
    )
    if shorter <= recipe.size:
        source = open_clip(path)
        return source.read_bytes() if isinstance(source, Path) else source.getvalue(), path.suffix.lower()
    assert span.video is not None
    image = av.VideoFrame.from_ndarray(span.video[0], format="rgb24")
    encoder = av.CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = image.width, image.height, "yuvj420p"
    encoder.time_base, encoder.qmin, encoder.qmax = Fraction(1, 25), 2, 2
    frame = image.reformat(format="yuvj420p", dst_colorspace=BT601, dst_color_range=FULL)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)]), ".jpg"
