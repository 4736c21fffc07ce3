"""The GPU path of the training loader: workers cut the packets of each window out of its file, NVDEC decodes them.

Batch `step` is planned, drawn and replaced as by `ClipDataset`, from the same numbers: the same clips, windows, crops,
flips, colours, captions and sound, whatever the number of workers, pipelines, ranks and restarts. Only the pixels come
from another decoder and another resize (`vatt.data.dali.graph` says how far apart they may be).

The workers are those of the PyAV path. They read packets and decode the sound (`packets.py`), so a missing or
broken file is met there and replaced by the rule of the loader. What DALI does not decode (other codecs, more than 8
bits, interlaced frames, images, packets without display times) PyAV decodes in the worker; each reason is told once.

A clip whose packets are damaged inside may still end a pipeline. Each holds one batch; it is built anew and PyAV builds
that batch, so a batch depends on its own clips only and a resumed run repeats it. Where NVDEC conceals damage, the clip
counts as good, though PyAV would call it bad.

Memory of the GPU: a pipeline holds its batch decoded, clips x frames x height x width x 3 bytes of the stored size:
0.4 GB for 32 clips of 32 frames at 256 x 455 and 6.4 GB at 1080 x 1920. `vatt.data.transcode` makes clips small. The
colour jitter takes a few float32 copies of the crops on top, each 0.6 GB for 32 clips of 32 x 224 x 224.

Run in tests: all of this with the graph on the CPU, VP9 and MJPEG. Never run so far: anything on a GPU. Known from
DALI's sources, to be looked at first there: it pairs frames with timestamps in decoding order, which streams with
hidden frames (VP9, AV1) may break, and it converts BT.709 as BT.601, which `colours.py` undoes where it can be undone.
`choose_decoder` compares frames of both paths on the spot before it chooses DALI.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, fields, replace
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ...errors import ConfigError, DataError
from ...runtime.compatibility import COPIES_PACKETS
from ..clip import Clip
from ..datasets.augment import audio_noise, draw_video, short_side
from ..datasets.base import Clocks, Sample
from ..datasets.batch import Batch
from ..datasets.training import ClipDataset
from ..decoding.audio import to_float
from ..decoding.container import BadClip
from ..decoding.grid import shrunk
from ..loader import make_loader
from .colours import colour_matrix
from .graph import UNCHANGED, build_graph, finish_graph, start_graph, warp_matrix
from .packets import PacketReader, Unsuitable

TRIAL_CLIPS = 4
TRIAL_LIMIT = (
    12.0  # mean difference in levels of 255: above what resizing and colour matrices do, below another picture
)
PATIENCE = 3  # batches that fail before any has worked
FAILURES = (RuntimeError, ValueError, IndexError, TypeError, MemoryError)  # what pipelines raise


def choose_decoder(asked: str, device: torch.device, dataset: ClipDataset | None = None) -> tuple[str, str]:
    """("dali" or "pyav", a line that says why), for `asked` "auto", "dali" or "pyav".

    "auto" takes DALI where it works. With a `dataset`, a few of its clips are decoded by both and compared.

    Raises:
        ConfigError: "dali" was asked for and is not possible; says why and what to do.
    """
    if asked == "pyav":
        return "pyav", "decoder: PyAV on the CPU, as asked for"
    why = _missing(device)
    if why is None and dataset is not None:
        why = _trial(dataset, device)
    if why is None:
        return "dali", f"decoder: DALI (NVDEC) on {device}"
    if asked == "dali":
        raise ConfigError(f"--decoder dali is not possible: {why}; --decoder pyav decodes on the CPU")
    return "pyav", f"decoder: PyAV on the CPU ({why})"


def make_dali_loader(
    dataset: ClipDataset,
    start: int,
    count: int,
    workers: int,
    prefetch: int,
    interrupted: Callable[[], object] = bool,
    *,
    device: torch.device,
    pipelines: int = 3,
    threads: int = 8,
) -> Generator[Batch, None, None]:
    """`make_loader` for training with the video on `device`: uint8 [B, T, H, W, 3]; everything else is on the CPU.

    `pipelines` work on as many batches at a time, `threads` clips of each; more of both keep more decoding engines
    busy, and hold more memory. `device` "cpu" is for tests.

    Raises:
        DataError: as `make_loader`; or DALI cannot start, or fails with the first batches.
    """
    encoded = EncodedClips(dataset, _kind(device))
    decoder = _Decoder(encoded, device, pipelines, threads)
    for batch in make_loader(encoded, start, count, workers, prefetch, interrupted):
        assert isinstance(batch, EncodedBatch)
        if len(decoder.waiting) == pipelines:
            yield decoder.take()
        decoder.put(batch)
    while decoder.waiting:
        yield decoder.take()


@dataclass
class _Encoded(Sample):
    """`inputs` of the graph; none where there is no video, or where PyAV has decoded it: `note` says why."""

    inputs: dict[str, NDArray[Any]]
    note: str = ""


@dataclass(frozen=True)
class EncodedBatch(Batch):
    """A batch on its way to DALI: `rows` are encoded, `decoded` by PyAV; `video` uint8 [len(decoded), T, H, W, 3].

    `data`: the files of `rows`, one after the other, of `sizes` bytes; `inputs`: what else the graph takes for them.
    """

    step: int
    rows: list[int]
    decoded: list[int]
    data: torch.Tensor
    sizes: list[int]
    inputs: dict[str, torch.Tensor]
    notes: list[str]


class EncodedClips(ClipDataset):
    """Batches of `plain` with their video as packets: `dataset[step]` is an `EncodedBatch`. `kind`: "gpu" or "cpu"."""

    def __init__(self, plain: ClipDataset, kind: str) -> None:
        if type(plain).crop is not ClipDataset.crop:
            raise ValueError("the GPU path has the crop of pre-training only")
        super().__init__(
            plain.clips,
            plain.data,
            plain.model,
            plain.tokenizer,
            plain.seed,
            plain.batch_size,
            read=plain.read,
            needs=plain.needs,
            slots=plain.slots,
        )
        self.plain, self.kind = plain, kind
        self.watch = plain.watch
        self.side = short_side(self.model.video.size, self.data.augment)
        self._packets: PacketReader | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_packets": None}

    def __getitem__(self, step: int) -> EncodedBatch:
        since = self.clocks()
        tried: list[int] = []
        bad: list[tuple[int, str]] = []
        samples = [self._sample(step, slot, tried, bad) for slot in self.slots]
        return self.encoded(step, samples, tried, bad, since)

    def encoded(
        self, step: int, samples: list[Sample], tried: list[int], bad: list[tuple[int, str]], since: Clocks
    ) -> EncodedBatch:
        parts = [sample for sample in samples if isinstance(sample, _Encoded)]
        rows = [i for i, part in enumerate(parts) if part.inputs]
        decoded = {i: part.video for i, part in enumerate(parts) if part.video is not None}
        # `rows` have no pixels yet: `batch` is asked for everything else.
        without = self.batch([replace(part, video=None) for part in parts], tried, bad, since)
        mask = without.video_mask.clone()
        mask[[*rows, *decoded]] = 1.0
        video = torch.zeros((len(decoded), *without.video.shape[1:]), dtype=torch.uint8)
        for slot, frames in enumerate(decoded.values()):
            video[slot] = torch.from_numpy(frames)
        files = [parts[i].inputs["encoded"] for i in rows]
        names = [name for name in parts[rows[0]].inputs if name != "encoded"] if rows else []
        common: dict[str, Any] = vars(without) | {"video": video, "video_mask": mask}
        return EncodedBatch(
            **common,
            step=step,
            rows=rows,
            decoded=list(decoded),
            # One tensor for all files: each that goes through shared memory costs a file descriptor.
            data=torch.from_numpy(np.concatenate(files)) if files else torch.zeros(0, dtype=torch.uint8),
            sizes=[len(file) for file in files],
            inputs={name: torch.from_numpy(np.stack([parts[i].inputs[name] for i in rows])) for name in names},
            notes=sorted({part.note for part in parts if part.note}),
        )

    def take_remarks(self) -> list[tuple[int, str]]:
        return super().take_remarks() + ([] if self._packets is None else self._packets.take_remarks())

    def _read(self, clip: Clip, rng: np.random.Generator) -> Sample:
        before = rng.bit_generator.state
        try:
            return self._encode(clip, rng)
        except Unsuitable as why:
            rng.bit_generator.state = before
            return _Encoded(**vars(super()._read(clip, rng)), inputs={}, note=str(why))

    def _encode(self, clip: Clip, rng: np.random.Generator) -> _Encoded:
        self.require_text(clip)
        if self._packets is None:
            self._packets = PacketReader(
                self.model.video,
                self.model.audio,
                self.side,
                self.data.decode_seconds,
                read=self.read,
                needs=self.needs,
                watch=self.watch,
            )
        cut = self._packets.cut(clip, int(rng.integers(self._packets.last_offset(clip) + 1)), self.kind)
        text, has_text = self.text(clip, rng)
        size, augment = self.model.video.size, self.data.augment
        width, height = shrunk(cut.width, cut.height, self.side)
        upright_width, upright_height = cut.orientation.shown(width, height)
        draw = draw_video(upright_height, upright_width, size, augment, rng)
        inputs: dict[str, NDArray[Any]] = {
            "encoded": np.frombuffer(cut.data, np.uint8),
            "frames": cut.frames,
            "shrunk": np.array([height, width], np.float32),
            "rgb": colour_matrix(cut.colourspace),
            "matrix": warp_matrix(draw, size, width, height, cut.orientation),
        }
        if augment.colour_jitter > 0:
            inputs["colour"] = np.array(draw.colour or UNCHANGED, np.float32).reshape(4, 1, 1, 1, 1)
        audio = None
        if cut.audio is not None:
            audio = audio_noise(to_float(cut.audio), augment.audio_noise, rng)
        return _Encoded(clip, None, audio, text, has_text, inputs)


class _Decoder:
    """The pipelines, each with at most one batch in it, and these batches, oldest first."""

    def __init__(self, encoded: EncodedClips, device: torch.device, pipelines: int, threads: int) -> None:
        self.encoded, self.device, self.threads = encoded, device, threads
        self.pipelines = [self._build() for _ in range(pipelines)]
        self.waiting: deque[tuple[int, EncodedBatch, str]] = deque()
        self.turn = self.failed = 0
        self.works = False
        self.given: torch.Tensor | None = None
        self.in_use: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()
        self.noted: set[str] = set()

    def put(self, batch: EncodedBatch) -> None:
        """Starts work on a batch, in the pipeline whose turn it is."""
        for note in batch.notes:
            if note not in self.noted:
                self.noted.add(note)
                tqdm.write(f"clips decoded by PyAV on the CPU: {note}", file=sys.stderr)
        error = ""
        if batch.rows:
            inputs = {name: list(values.numpy()) for name, values in batch.inputs.items()}
            inputs["encoded"] = np.split(batch.data.numpy(), np.cumsum(batch.sizes)[:-1])
            try:
                start_graph(self.pipelines[self.turn], inputs)
            except FAILURES as failure:
                error = _line(failure)
        self.waiting.append((self.turn, batch, error))
        self.turn = (self.turn + 1) % len(self.pipelines)

    def take(self) -> Batch:
        """The oldest batch, decoded."""
        self._keep()
        turn, batch, error = self.waiting.popleft()
        video: torch.Tensor | None = None
        if batch.rows and not error:
            try:
                self.given = video = finish_graph(self.pipelines[turn])
                self.works = True
            except FAILURES as failure:
                error = _line(failure)
        if error:
            self.pipelines[turn] = None  # gives its memory back before the next one takes it
            self.pipelines[turn] = self._build()
            return self._by_pyav(batch.step, error)
        if video is None or len(batch.rows) < len(batch.clips):
            every = torch.zeros((len(batch.clips), *batch.video.shape[1:]), dtype=torch.uint8, device=self.device)
            every[batch.decoded] = batch.video.to(self.device)
            if video is not None:
                every[batch.rows] = video
            video = every
        return Batch(**{field.name: getattr(batch, field.name) for field in fields(Batch)} | {"video": video})

    def _keep(self) -> None:
        """Keeps the memory of the last batch, which is DALI's, until all that torch was told to do with it is done."""
        if self.given is not None and self.given.is_cuda:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
            self.in_use.append((self.given, event))
        self.given = None
        while self.in_use and self.in_use[0][1].query():
            self.in_use.popleft()

    def _by_pyav(self, step: int, error: str) -> Batch:
        self.failed += 1
        if not self.works and self.failed == PATIENCE:
            raise DataError(f"DALI failed with each of the first {PATIENCE} batches ({error}); try --decoder pyav")
        tqdm.write(f"step {step + 1}: DALI failed, so PyAV decodes this batch ({error})", file=sys.stderr)
        plain, since = self.encoded.plain, self.encoded.plain.clocks()
        tried: list[int] = []
        bad: list[tuple[int, str]] = []
        samples = [plain._sample(step, slot, tried, bad) for slot in self.encoded.slots]
        batch = plain.batch(samples, tried, bad, since)
        return replace(batch, video=batch.video.to(self.device))

    def _build(self) -> Any:
        recolour = self.encoded.data.augment.colour_jitter > 0
        number = None
        if self.device.type == "cuda":
            number = torch.cuda.current_device() if self.device.index is None else self.device.index
        try:
            pipeline = build_graph(
                self.encoded.kind,
                rows=len(self.encoded.slots),
                size=self.encoded.model.video.size,
                recolour=recolour,
                threads=self.threads,
                device_id=number,
            )
            pipeline.build()
        except (ImportError, OSError, *FAILURES) as error:
            raise DataError(f"DALI cannot start on {self.device} ({_line(error)}); try --decoder pyav") from error
        return pipeline


def _kind(device: torch.device) -> str:
    return "gpu" if device.type == "cuda" else "cpu"


def _missing(device: torch.device) -> str | None:
    """What DALI lacks on `device`, None if nothing."""
    if device.type != "cuda" or torch.version.cuda is None:
        return f"DALI needs an NVIDIA GPU, and the device is {device}"
    if not torch.cuda.is_available():
        return "there is no CUDA GPU here"
    if not COPIES_PACKETS:
        return f"DALI needs packets that PyAV copies, and {av.__version__} is older than 14.2"
    try:
        import nvidia.dali  # noqa: F401
    except (ImportError, OSError) as error:
        return f"DALI cannot be imported ({_line(error)}); pip install -e '.[dali]' in the project's folder brings it"
    return None


def _trial(dataset: ClipDataset, device: torch.device) -> str | None:
    """Why DALI cannot decode the clips of `dataset`, None if it can: decodes a few by both ways and compares them."""
    clips = EncodedClips(dataset, _kind(device))
    clips.slots = range(1)
    why, works = None, False
    try:
        decoder = _Decoder(clips, device, pipelines=1, threads=1)
        for index in np.unique(np.linspace(0, len(dataset.clips) - 1, TRIAL_CLIPS).astype(int)).tolist():
            clip = dataset.clips[index]
            try:
                sample = clips._read(clip, np.random.default_rng(index))
                expected = dataset._read(clip, np.random.default_rng(index)).video
            except BadClip:
                continue  # the loader's to tell
            batch = clips.encoded(0, [sample], [], [], clips.clocks())
            if not batch.rows or expected is None:
                why = why or "".join(batch.notes) or "its clips have no video"
                continue
            decoder.put(batch)
            _, _, error = decoder.waiting.popleft()
            if error:
                return error
            got = finish_graph(decoder.pipelines[0])[0].cpu().numpy()
            apart = float(np.abs(got.astype(np.int16) - expected).mean())
            if apart > TRIAL_LIMIT:
                return f"{clip.name}: its frames are {apart:.0f} levels of 255 from those that PyAV decodes"
            works = True
    except (DataError, *FAILURES) as error:
        return _line(error)
    return None if works else why


def _line(error: BaseException) -> str:
    """DALI's messages fill a page: the line that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = [line for line in lines if "failed" in line or "not supported" in line]
    return (telling or [line for line in lines if line] or [type(error).__name__])[0]
