"""The sound of one time span as mono int16, placed on the clip's clock to the sample.

Sound is forgiving: broken packets and gaps become silence, and a track of which nothing decodes counts as none.
"""

from __future__ import annotations

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.error import FFmpegError
from numpy.typing import NDArray

from vatt.data.reader import Late, Reader, seconds_of

LEAD = 0.5  # seconds decoded ahead of a span: codecs overlap frames, MP3 reaches back several
GAP = 0.05  # seconds by which timestamps may stray before the sound is cut and placed anew


def read_audio(reader: Reader, start: float, rate: int, samples: int) -> NDArray[np.int16] | None:
    """`samples` samples at `rate` Hz from `start` seconds on; None without a usable sound track."""
    if reader.audio is None or reader.audio.codec_context is None:
        return None
    for position in (start - LEAD, start - 2.0 - LEAD, None):
        if not reader.move(reader.audio, position):
            continue
        try:
            return _audio_from(reader, start, rate, samples)
        except Late:
            continue
    raise AssertionError("reading from the beginning cannot be late")


def _audio_from(reader: Reader, start: float, rate: int, samples: int) -> NDArray[np.int16] | None:
    stream = reader.audio
    assert stream is not None
    origin = reader.origin or 0.0
    begins = (seconds_of(stream.start_time, stream) or 0.0) - origin
    track = _Track(start, rate, samples)
    heard = failed = False
    for packet in reader.packets(stream):
        try:
            decoded = stream.decode(packet)
        except FFmpegError:
            failed = True
            track.cut()
            continue
        for frame in decoded:
            assert isinstance(frame, AudioFrame)
            at = seconds_of(frame.pts, stream)
            at = track.expected if at is None else at - origin
            if not heard and not reader.from_start and at > max(start, begins + GAP):
                raise Late
            heard = True
            if at >= start + samples / rate:
                return track.finish()
            track.add(frame, at)
    if not heard and reader.from_start:
        return None
    if not heard and failed:
        raise Late  # only the whole track tells one broken place from a track that does not decode
    return track.finish()


class _Track:
    """Resamples frames to mono and places them by their timestamps; what no frame covers stays silent."""

    def __init__(self, start: float, rate: int, samples: int) -> None:
        self.start, self.rate = start, rate
        self.samples = np.zeros(samples, np.int16)
        self.expected = 0.0
        self.cut()

    def cut(self) -> None:
        """The next frame starts a new piece."""
        self.resampler: av.AudioResampler | None = None

    def add(self, frame: AudioFrame, at: float) -> None:
        seconds = frame.samples / frame.sample_rate
        if self.resampler is not None and abs(at - self.expected) > GAP:
            self._flush()
        if self.resampler is None:
            if at + seconds < self.start - GAP:  # decoded for the codec's state only
                return
            self.resampler = av.AudioResampler("s16", "mono", self.rate)
            self.expected = at
            self.position = round((at - self.start) * self.rate)
        self.expected += seconds
        try:
            self._place(self.resampler.resample(frame))
        except (FFmpegError, ValueError):  # the format changed within the stream
            self.cut()

    def finish(self) -> NDArray[np.int16]:
        self._flush()
        return self.samples

    def _flush(self) -> None:
        if self.resampler is not None:
            self._place(self.resampler.resample(None))
            self.cut()

    def _place(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            piece = frame.to_ndarray().reshape(-1)
            first, last = max(0, self.position), min(len(self.samples), self.position + len(piece))
            if first < last:
                self.samples[first:last] = piece[first - self.position : last - self.position]
            self.position += len(piece)
