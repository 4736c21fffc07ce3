"""Batches of evaluation clips: equal or middle windows, nothing drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator

import numpy as np

from ...config.data import DataConfig
from ...config.model import ModelConfig
from ..clip import Clip, Manifest
from ..decoding.audio import to_float
from ..decoding.container import BadClip
from ..tokenizer import Tokenizer
from .augment import Frames, centre_crop
from .base import Clips, Sample
from .batch import MODALITIES, Batch
from .windows import Window


class EvalDataset(Clips):
    """Every clip once, in order, `windows` evenly spaced windows each, centre crop, nothing random.

    `dataset[i]` holds clips `i * batch_size` and following, with a windows axis V: video uint8 [B, V, T, H, W, 3],
    audio float32 [B, V, S]. Clips that cannot be decoded, or lack what the task `needs`, are left out and told in
    `bad`, so B may be 0. `frames`, `read` and `needs` as in `ClipDataset`. With `moments`, clips are spans of files in
    their order, as `cut_moments` makes them: batches asked for one after the other decode each frame of a file once.
    A subclass may take several crops a window: video is then [B, V * crops, ...], the crops of a window side by side.
    """

    def __init__(
        self,
        clips: Manifest,
        data: DataConfig,
        model: ModelConfig,
        tokenizer: Tokenizer,
        windows: int = 4,
        batch_size: int | None = None,
        *,
        frames: int | None = None,
        read: Collection[str] = MODALITIES,
        needs: Collection[str] = ("video",),
        moments: bool = False,
    ) -> None:
        super().__init__(clips, data, model, tokenizer, batch_size, windows, frames, read, needs)
        self.moments = moments
        self._reading: tuple[int, Iterator[list[Window] | BadClip]] | None = None  # the next batch, and its windows

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_reading": None}

    crops_per_window = 1
    chosen = slice(None)  # of the evenly spaced windows, those that are read

    def crops(self, frames: Frames) -> Frames:
        """uint8 [T, h, w, 3] -> [crops_per_window, T, size, size, 3]."""
        return centre_crop(frames, self.model.video.size)[None]

    @property
    def video_axes(self) -> tuple[int, ...]:
        return (self.windows_per_clip * self.crops_per_window,)

    @property
    def audio_axes(self) -> tuple[int, ...]:
        return (self.windows_per_clip,)

    def __len__(self) -> int:
        return -(-len(self.clips) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        since = self.clocks()
        if not 0 <= index < len(self):
            raise IndexError(index)
        samples: list[Sample] = []
        bad: list[tuple[int, str]] = []
        chunk = self.clips[index * self.batch_size : (index + 1) * self.batch_size]
        moments = self._moments_of(index) if self.moments else None
        for clip in chunk:
            try:
                self.require_text(clip)
                read = self.windows(0).read_spaced
                windows = next(moments) if moments else read(clip, self.windows_per_clip, self.chosen)
                if isinstance(windows, BadClip):
                    raise windows
                samples.append(self._sample(clip, windows))
            except BadClip as error:
                bad.append((clip.index, error.reason))
        return self.batch(samples, [clip.index for clip in chunk], bad, since)

    def _moments_of(self, index: int) -> Iterator[list[Window] | BadClip]:
        """The windows of clip after clip from batch `index` on; goes on where the batch before it ended."""
        if self._reading is None or self._reading[0] != index:
            files = itertools.groupby(self.clips[index * self.batch_size :], lambda clip: (clip.path, clip.end is None))
            self._reading = index, itertools.chain.from_iterable(self._read_file(list(clips)) for _, clips in files)
        self._reading = index + 1, self._reading[1]
        return self._reading[1]

    def _read_file(self, clips: list[Clip]) -> Iterator[list[Window] | BadClip]:
        reader, count = self.windows(0), self.windows_per_clip
        if clips[0].end is None:  # pictures, and what cannot be read
            for clip in clips:
                try:
                    yield reader.read_spaced(clip, count)
                except BadClip as error:
                    yield error
            return
        fps = self.model.video.fps
        spans: list[tuple[float, float, int]] = []  # of each window, and which clip it is of
        for number, clip in enumerate(clips):
            assert clip.end is not None
            last = max(0, math.floor((clip.end - clip.start) * fps + 0.01) - reader.steps)
            offsets = np.linspace(0, last, count).astype(int).tolist()
            spans += [(clip.start + offset / fps, clip.end, number) for offset in offsets]
        spans.sort(key=lambda span: span[0])
        found: list[list[Window | BadClip]] = [[] for _ in clips]
        done = 0
        for (*_, number), window in zip(
            spans, reader.read_moments(clips[0], [span[:2] for span in spans]), strict=True
        ):
            found[number].append(window)
            while done < len(clips) and len(found[done]) == count:
                windows, found[done] = found[done], []
                bad = next((one for one in windows if isinstance(one, BadClip)), None)
                yield bad or [one for one in windows if isinstance(one, Window)]
                done += 1

    def _sample(self, clip: Clip, windows: list[Window]) -> Sample:
        silence = np.zeros(self.model.audio.samples, np.float32)
        views = [self.crops(window.video) for window in windows if window.video is not None]
        sounds = [None if window.audio is None else to_float(window.audio) for window in windows]
        audio = None
        if any(sound is not None for sound in sounds):
            audio = np.stack([silence if sound is None else sound for sound in sounds])
        return Sample(clip, np.concatenate(views) if views else None, audio, *self.text(clip, None))


class CentreDataset(EvalDataset):
    """One window of every clip, from its middle; of its sound or its pictures."""

    chosen = slice(1, 2)  # of three

    def __init__(self, clips: Manifest, data: DataConfig, model: ModelConfig, modality: str, batch_size: int) -> None:
        only = (modality,)
        super().__init__(clips, data, model, Tokenizer([]), 3, batch_size, read=only, needs=only)

    @property
    def video_axes(self) -> tuple[int, ...]:
        return (1,)

    @property
    def audio_axes(self) -> tuple[int, ...]:
        return (1,)
