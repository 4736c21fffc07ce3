"""The channels of a sound mixed to one, as int16 at one rate."""

from __future__ import annotations

import contextlib
from typing import Any, cast

import numpy as np
from av.audio.frame import AudioFrame
from av.filter import Graph

from ...runtime.compatibility import one_thread, release

OPPOSITE = 1e-3  # of the energy of two channels that a mix of each other's opposite may have


class Mono:
    """Resamples the frames of one sound to mono int16.

    As `av.AudioResampler` does, whose graph of filters has a thread for each core: to start them, for every clip, takes
    longer than to mix its sound.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self.kind: tuple[str, str, int] | None = None  # of the frames
        self.graph: Graph | None = None  # None while `kind` is what is asked for

    def __del__(self) -> None:
        if self.graph is not None:
            release(self.graph)

    def resample(self, frame: AudioFrame | None) -> list[AudioFrame]:
        """Return what comes of the next frame, or, of None, the rest.

        Raises:
            FFmpegError, ValueError: channels that cannot be mixed, or a frame of another kind than the first.
        """
        if frame is not None:
            kind = kind_of(frame)
            if self.kind is None:
                self._begin(frame, kind)
            elif kind != self.kind:
                raise ValueError(f"{kind} after {self.kind}")
        if self.graph is None:
            return [] if frame is None else [frame]
        self.graph.push(frame)
        mixed: list[AudioFrame] = []
        with contextlib.suppress(BlockingIOError, EOFError):  # it wants another frame, or has no more
            while True:
                mixed.append(cast(AudioFrame, self.graph.pull()))
        return mixed

    def _begin(self, frame: AudioFrame, kind: tuple[str, str, int]) -> None:
        sample_format, layout, rate = kind
        if kind != ("s16", "mono", self.rate):
            graph = one_thread(Graph())
            times = {} if frame.time_base is None else {"time_base": str(frame.time_base)}
            source = {"sample_rate": str(rate), "sample_fmt": sample_format, "channel_layout": layout, **times}
            target = {"sample_rates": str(self.rate), "sample_fmts": "s16", "channel_layouts": "mono"}
            graph.link_nodes(graph.add("abuffer", **source), graph.add("aformat", **target), graph.add("abuffersink"))
            graph.configure()
            self.graph = graph
        self.kind = kind


def kind_of(frame: AudioFrame) -> tuple[str, str, int]:
    """Return sample format, layout of channels and rate."""
    return frame.format.name, frame.layout.name, frame.sample_rate


def first_channel(frame: AudioFrame) -> AudioFrame:
    """The first channel: of ambisonics the omnidirectional one."""
    data: Any = frame.to_ndarray()
    data = data[:1] if frame.format.is_planar else data[:, :: frame.layout.nb_channels]
    mono = AudioFrame.from_ndarray(np.ascontiguousarray(data), frame.format.name, "mono")
    mono.sample_rate, mono.pts, mono.time_base = frame.sample_rate, frame.pts, frame.time_base
    return mono


def opposed(frames: list[AudioFrame]) -> bool:
    """Whether two channels are each other's opposite, up to what a codec adds."""
    both, mixed = 0.0, 0.0
    for frame in frames:
        data = frame.to_ndarray().astype(np.float64)
        left, right = data if frame.format.is_planar else (data[0, ::2], data[0, 1::2])
        middle = (left.mean() + right.mean()) / 2  # of unsigned samples
        both += float(((left - middle) ** 2 + (right - middle) ** 2).sum())
        mixed += float(((left + right - 2 * middle) ** 2).sum()) / 2
    return both > 0 and mixed < OPPOSITE * both
