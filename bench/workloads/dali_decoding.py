"""DALI beside PyAV: the same clips decoded by both, frames a second, and how long training steps wait for them.

What is missing (a GPU, DALI, PyAV, an encoder) is the reason with which a row is skipped. Clips are written here.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from vatt.config.data import AugmentConfig, DataConfig
from vatt.config.model import ModelConfig
from vatt.config.presets import preset

from .gpu_measurements import Trainer, with_settings

Row = dict[str, Any]
LEVELS = 6.0  # mean difference, of 255: two resizing filters and two roundings lie below, another frame above
PIPELINES = (1, 2, 3, 4, 6, 8)
RATE_CLIPS, RATE_STEPS, RATE_BATCH = 16, 12, 16
UPRIGHT = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
MIRRORED = struct.pack(">9i", -1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


class Source(NamedTuple):
    """A kind of clip: its encoder, container, what libav calls its colours, and whether it is shown mirrored."""

    name: str
    encoder: str
    suffix: str
    colours: int = 5  # BT.601
    mirrored: bool = False


SOURCES = (
    Source("H.264", "libx264", ".mp4"),
    Source("HEVC", "libx265", ".mp4"),
    Source("VP9", "libvpx-vp9", ".webm"),
    Source("AV1", "libsvtav1", ".mkv"),
    Source("H.264, mirrored", "libx264", ".mp4", mirrored=True),
    Source("H.264, BT.709", "libx264", ".mp4", colours=1),
)


def missing(device: str) -> str:
    """Why nothing can be compared here, or nothing."""
    if device == "cpu":
        return "no GPU"
    try:
        import av  # noqa: F401
    except ImportError:
        return "PyAV is not installed"
    from vatt.data.dali.loader import choose_decoder

    decoder, reason = choose_decoder("auto", torch.device(device))
    return "" if decoder == "dali" else reason


def picture(i: int, width: int = 320, height: int = 240) -> NDArray[np.uint8]:
    """Colours that no matrix clips, moving so that each frame differs from its neighbours everywhere."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 31 + 0.9 * i), np.sin(y / 23 - 0.7 * i), np.sin((x + y) / 40 + 1.3 * i)]
    return np.clip(np.stack(waves, 2) * 50 + 128, 0, 255).astype(np.uint8)


def write(path: Path, source: Source, frames: int) -> Path:
    """`frames` pictures at 25 a second, a key frame each second. Raises ValueError where the encoder is missing."""
    import av
    from av.video.stream import VideoStream

    with av.open(str(path), "w") as container:
        stream = container.add_stream(source.encoder, rate=25)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.codec_context.gop_size = 25
        stream.codec_context.colorspace, stream.codec_context.color_range = source.colours, 1
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace=source.colours, dst_color_range=1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if source.mirrored:
        data = path.read_bytes()
        at = data.index(UPRIGHT, data.index(b"tkhd"))
        path.write_bytes(data[:at] + MIRRORED + data[at + len(UPRIGHT) :])
    return path


def dataset(paths: list[Path], folder: Path, model: ModelConfig, batch: int, start: float, workers: int) -> Any:
    """Training clips without sound, text and augmentation, from `start` seconds on."""
    from vatt.data.clip import Clip, Manifest
    from vatt.data.datasets.training import ClipDataset
    from vatt.data.tokenizer import Tokenizer

    still = AugmentConfig(scale_jitter=0.0, flip=False, colour_jitter=0.0, audio_noise=0.0)
    clips = tuple(Clip(i, path, path.name, start, None) for i, path in enumerate(paths))
    data = DataConfig(batch_size=batch, workers=workers, augment=still)
    return ClipDataset(Manifest(clips, folder, ()), data, model, Tokenizer([]), seed=1)


def compare(got: NDArray[np.uint8], expected: NDArray[np.uint8]) -> Row:
    """Levels by which frames [T, H, W, 3] differ, and whether each is its own neighbour's and not another's."""
    a, b = (x.astype(np.float32)[:, ::4, ::4] for x in (got, expected))
    apart = np.abs(a[:, None] - b[None]).mean(axis=(2, 3, 4))
    nearest = apart.min(axis=1)
    own = np.diagonal(apart)
    in_order = bool((own <= nearest + 1e-3).all())
    levels = float(own.mean())
    row: Row = {
        "levels": levels,
        "largest": float(np.abs(got.astype(np.int16) - expected).max()),
        "in_order": in_order,
        "first_right": bool(own[0] <= nearest[0] + 1e-3),
        "green": in_order and levels <= LEVELS,
    }
    if not row["green"]:
        row["red"] = f"{levels:.1f} levels apart" if in_order else f"frames are others: {apart.argmin(axis=1).tolist()}"
    return row


def frames_of(name: str, device: str) -> list[Row]:
    """Rows of one kind of clip: from its beginning, and after a seek into it."""
    about: Row = {"kind": "decode", "source": name}
    if reason := missing(device):
        return [about | {"skipped": reason}]
    from vatt.data.dali.loader import make_dali_loader

    source = next(source for source in SOURCES if source.name == name)
    video = replace(preset("mbs").model.video, frames=16, fps=12.5)
    model = replace(preset("mbs").model, video=video)
    rows = []
    with TemporaryDirectory() as folder:
        try:
            path = write(Path(folder) / f"clip{source.suffix}", source, 90)
        except ValueError as error:
            return [about | {"skipped": f"{source.encoder} is not in this build of FFmpeg ({error})"}]
        for start in (0.0, 1.52):
            clips = dataset([path], Path(folder), model, 1, start, 0)
            batch = next(make_dali_loader(clips, 0, 1, 0, 1, device=torch.device(device), pipelines=1))
            got, expected = batch.video[0].cpu().numpy(), clips[0].video[0].numpy()
            rows.append(about | {"start": start, **compare(got, expected)})
    return rows


def rates(device: str) -> list[Row]:
    """Frames a second for 1 to 8 pipelines, and with each the share of fused MBS video steps that wait for frames."""
    about: Row = {"kind": "decode", "source": "H.264, rates"}
    if reason := missing(device):
        return [about | {"skipped": reason}]
    config = with_settings("mbs", 0.0, 0.5)
    rows = []
    with TemporaryDirectory() as folder:
        paths = [write(Path(folder) / f"{i}.mp4", SOURCES[0], 150) for i in range(RATE_CLIPS)]
        clips = dataset(paths, Path(folder), config.model, RATE_BATCH, 0.0, 8)
        trainer = Trainer(config, "video", "fused", RATE_BATCH, device, low=True)
        for pipelines in PIPELINES:
            alone, _ = timed(clips, pipelines, device, None)
            whole, waited = timed(clips, pipelines, device, trainer)
            frames = RATE_STEPS * RATE_BATCH * config.model.video.frames
            row = {
                "pipelines": pipelines,
                "frames_per_second": frames / alone,
                "waiting": waited / whole,
                "green": True,
            }
            rows.append(about | row)
    return rows


def timed(clips: Any, pipelines: int, device: str, trainer: Trainer | None) -> tuple[float, float]:
    """Seconds of RATE_STEPS batches after a few to warm up, and how many of them were waited for the loader."""
    from vatt.data.dali.loader import make_dali_loader

    warm = pipelines + 2
    where = torch.device(device)
    batches: Iterator[Any] = make_dali_loader(clips, 0, warm + RATE_STEPS, 8, 4, device=where, pipelines=pipelines)
    waited = began = 0.0
    for step in range(warm + RATE_STEPS):
        if step == warm:
            torch.cuda.synchronize()
            began, waited = time.perf_counter(), 0.0
        tick = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - tick
        if trainer is not None:
            trainer.frames = batch.video
            trainer()
            torch.cuda.synchronize()
    torch.cuda.synchronize()
    return time.perf_counter() - began, waited
