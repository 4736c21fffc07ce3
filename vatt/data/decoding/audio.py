"""The sound of one time span as mono int16, placed on the clip's clock to the sample.

Sound beside pictures is forgiving: broken packets and gaps become silence, of channels that cannot be mixed the first
one is taken, and a track of which nothing decodes counts as none. Sound alone ends where it ends, and is held to the
length that its header declares, as video is.

Encoders fill their last packet up. FFmpeg up to 8 gives this padding of an MP4 track as sound, FFmpeg 9 cuts it off
where the track's edit list ends; here it is cut at the track's declared end, so that both give the same samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from av.frame import Frame
from numpy.typing import NDArray

from ...config.model import AudioConfig
from ...runtime.compatibility import OPEN_OPTIONS
from .clock import clock_of, seconds_of
from .container import OPTIONS, BadClip, Deadline, Late, Reader, decoders_own, plain
from .mono import Mono, first_channel, kind_of, opposed

LEAD = 0.5  # seconds decoded ahead of a span: codecs overlap frames, MP3 reaches back several
GAP = 0.05  # seconds by which timestamps may stray before the sound is cut and placed anew
STEP = 0.01  # seconds of a step of the timestamps behind which, if they stay there, the sound is placed anew
STAYS = 4  # frames that tell a step from one frame that strays
KEPT = 64  # frames of two channels that are kept to look at when their mix is quiet
TOGETHER = 32  # frames resampled at once: most of the time of one goes into the call
QUIET = 512  # of 32768: the peak of a mix of which one may ask whether its channels are each other's opposite
END_TOLERANCE = 1.0  # seconds by which a stream may end before its declared end

UNMIXED = "its channels cannot be mixed down: the first one is its sound"
OPPOSED = "its two channels are each other's opposite, so that their mix is silent"
SILENT = "its sound is all zero where it was read"


def read_audio(reader: Reader, start: float, rate: int, samples: int) -> NDArray[np.int16] | None:
    """`samples` samples at `rate` Hz from `start` seconds on; None without a usable sound track."""
    track = _read_track(reader, start, rate, samples)
    return None if track is None else track.samples


def read_audio_alone(reader: Reader, start: float, rate: int, samples: int) -> NDArray[np.int16] | None:
    """The same of a reader without video: fewer samples where the sound ends earlier.

    Raises:
        BadClip: no sound at `start`, or a track that ends more than `END_TOLERANCE` before its declared end and
            before the asked-for span is complete.
    """
    track = _read_track(reader, start, rate, samples)
    if track is None:
        return None
    ends = start + track.end / rate
    if track.end < samples and reader.declared is not None and reader.declared - ends > END_TOLERANCE:
        raise BadClip(reader.path, f"sound ends at {ends:.2f} s of {reader.declared:.2f} s", whole=False)
    if track.end <= 0:
        raise BadClip(reader.path, f"no sound at {start:.2f} s: it ends before", whole=False)
    return track.samples[: track.end]


def _read_track(reader: Reader, start: float, rate: int, samples: int) -> _Track | None:
    if reader.audio is None or reader.audio.codec_context is None:
        return None
    for position in (start - LEAD, start - 2.0 - LEAD, None):
        if not reader.move(reader.audio, position):
            continue
        try:
            track = _track_from(reader, start, rate, samples)
        except Late:
            continue
        if track is not None:
            reader.remarks |= track.remarks()
        return track
    raise AssertionError("reading from the beginning cannot be late")


def _track_from(reader: Reader, start: float, rate: int, samples: int) -> _Track | None:
    stream = reader.audio
    assert stream is not None
    origin = reader.origin or 0.0
    begins = (seconds_of(stream.start_time, stream) or 0.0) - origin
    seconds = clock_of(stream)
    track = _Track(start, rate, samples)
    begun_there = failed = False
    cut = PaddingCut(reader.container, stream)
    part = None
    for packet in reader.packets(stream):
        if part is not None and reader.part != part:
            track.finish()  # the sound of another recording is placed by its own times
        part = reader.part
        try:
            with decoders_own(reader.path):
                decoded = stream.decode(packet)
                if any(frame.sample_rate < 1 for frame in decoded):
                    raise ValueError("a sound of 0 Hz")
        except FFmpegError:
            failed = True
            track.cut()
            continue
        for frame in cut(decoded):
            at = seconds(frame.pts)
            at = track.expected if at is None else at - origin
            if not begun_there and not reader.from_start and at > max(start, begins + GAP):
                raise Late
            begun_there = True
            if at >= start + samples / rate:
                track.finish()
                track.end = samples
                return track
            track.add(frame, at)
    if not begun_there and reader.from_start:
        return None
    if not begun_there and failed:
        raise Late  # only the whole track tells one broken place from a track that does not decode
    for frame in cut.rest():
        at = seconds(frame.pts)
        assert at is not None  # only frames with a time are held back
        track.add(frame, at - origin)
    track.finish()
    return track


class PaddingCut:
    """Cuts the padding off the decoded frames of an MP4 track; those of other containers pass as they are."""

    def __init__(self, container: InputContainer, stream: AudioStream) -> None:
        self.end: int | None = None  # in ticks of `base` seconds, whose parts are whole numbers: sums of them are exact
        self.base = base = stream.time_base
        if "mp4" in container.format.name.split(",") and stream.duration and base:
            self.end = (stream.start_time or 0) + stream.duration
            self.ticks, self.second = base.numerator, base.denominator
        self.held: list[AudioFrame] = []

    def __call__(self, frames: Iterable[Frame]) -> list[AudioFrame]:
        """Return those of the next frames, in order, that lie before the end; what reaches beyond is held back."""
        passed: list[AudioFrame] = []
        for frame in frames:
            assert isinstance(frame, AudioFrame)
            if self.end is None or frame.pts is None:
                passed.append(frame)
                continue
            # What is left behind the frame's beginning, and the frame's length, as numbers of one unit of time.
            left = (self.end - frame.pts) * self.ticks * frame.sample_rate
            length = frame.samples * self.second
            if left < -length:  # more than the rest of a packet: this is sound, and the declared end is none
                passed += [*self.held, frame]
                self.held, self.end = [], None
            elif left < length:
                self.held.append(frame)
            else:
                passed.append(frame)
        return passed

    def rest(self) -> list[AudioFrame]:
        """Return what was held back, cut at the track's end; to be asked when there are no more frames."""
        kept = []
        for frame in self.held:
            assert self.end is not None
            assert self.base is not None
            assert frame.pts is not None
            samples = round((self.end - frame.pts) * self.base * frame.sample_rate)
            if samples > 0:
                kept.append(frame if samples >= frame.samples else _shortened(frame, samples))
        return kept


def _shortened(frame: AudioFrame, samples: int) -> AudioFrame:
    channels = 1 if frame.format.is_planar else frame.layout.nb_channels
    data: Any = np.ascontiguousarray(frame.to_ndarray()[:, : samples * channels])
    short = AudioFrame.from_ndarray(data, frame.format.name, frame.layout.name)
    short.sample_rate, short.pts, short.time_base = frame.sample_rate, frame.pts, frame.time_base
    return short


class _Track:
    """Resamples frames to mono and places them by their timestamps; what no frame covers stays silent.

    Timestamps stray a little, and a sound that is cut at each of them crackles: it is placed anew where they are off by
    more than `GAP`, or where they step by more than `STEP` and stay there, as behind a packet that was lost.

    `end`: samples up to the end of the last frame placed. `unmixed`: channels of a sound of which the first is taken,
    as nothing says how they are mixed. `stereo`: the first frames of two channels, to see what became of them.
    """

    def __init__(self, start: float, rate: int, samples: int) -> None:
        self.start, self.rate = start, rate
        self.samples = np.zeros(samples, np.int16)
        self.expected = 0.0
        self.strayed: deque[float] = deque(maxlen=STAYS + 1)  # what the last timestamps were off by
        self.end = self.unmixed = 0
        self.stereo: list[AudioFrame] = []
        self.placed = False
        self.pending: list[tuple[AudioFrame, float]] = []
        self.stepped = 0.0  # where the first pending one was expected
        self.gathered, self.count = av.AudioFifo(), 0  # frames of `kind`, to be resampled together
        self.cut()

    def cut(self) -> None:
        """The sound breaks off; the next frame is placed by its timestamp."""
        self._resample_gathered()
        self.resampler: Mono | None = None
        self.kind: tuple[str, str, int] | None = None  # of the frames that the resampler has seen
        self.pending.clear()

    def add(self, frame: AudioFrame, at: float) -> None:
        seconds = frame.samples / frame.sample_rate
        if self.resampler is not None and abs(at - self.expected) > GAP:
            self.finish()
        if self.resampler is None:
            if at + seconds < self.start - GAP:  # decoded for the codec's state only
                return
            self._begin(at)
        strayed = at - self.expected
        self.expected += seconds
        if self.pending:
            if abs(strayed - (self.pending[0][1] - self.stepped)) <= STEP / 2:
                self.pending.append((frame, at))
                if len(self.pending) == STAYS:
                    self._step()
                return
            for early, _ in self.pending:  # it was one that strayed
                self._mix(early)
            self.pending.clear()
        elif abs(strayed - (sorted(self.strayed)[len(self.strayed) // 2] if self.strayed else 0.0)) > STEP:
            self.stepped = at - strayed
            self.pending.append((frame, at))
            return
        self.strayed.append(strayed)
        self._mix(frame)

    def finish(self) -> None:
        """Places what the resampler still holds."""
        if self.pending:
            self._step()
        if self.resampler is not None:
            self._resample_gathered()
            self._place(self.resampler.resample(None))
            self.cut()

    def _begin(self, at: float) -> None:
        self.resampler = Mono(self.rate)
        self.expected = at
        self.strayed.clear()
        self.position = round((at - self.start) * self.rate)

    def _step(self) -> None:
        """Places the frames from a step of the timestamps on by these."""
        stepped = list(self.pending)
        self.pending.clear()
        self.finish()
        self._begin(stepped[0][1])
        for frame, _ in stepped:
            self.expected += frame.samples / frame.sample_rate
            self._mix(frame)

    def _mix(self, frame: AudioFrame) -> None:
        if frame.layout.nb_channels == 2 and len(self.stereo) < KEPT:
            self.stereo.append(frame)
        if self.resampler is None:  # the frames of a step before it did not mix
            return
        kind = kind_of(frame)
        if kind == self.kind:
            mono = first_channel(frame) if self.unmixed else frame
            mono.pts = None  # the queue takes no times that stray
            self.gathered.write(mono)
            self.count += 1
            if self.count == TOGETHER:
                self._resample_gathered()
            return
        self._resample_gathered()
        try:
            mixed = self.resampler.resample(first_channel(frame) if self.unmixed else frame)
        except (FFmpegError, ValueError):
            if self.unmixed or self.placed:  # the format changed in the stream
                self.cut()
                return
            self.unmixed = frame.layout.nb_channels
            self.resampler = Mono(self.rate)
            self._mix(frame)
            return
        self.kind = kind
        self._place(mixed)

    def _resample_gathered(self) -> None:
        if self.count:
            assert self.resampler is not None
            together = self.gathered.read(0, partial=True)
            self.gathered, self.count = av.AudioFifo(), 0
            if together is not None:  # None of frames that hold no sample
                self._place(self.resampler.resample(together))

    def _place(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            plane: Any = frame.planes[0]
            piece = np.frombuffer(plane, np.int16, frame.samples)
            first, last = max(0, self.position), min(len(self.samples), self.position + len(piece))
            if first < last:
                self.samples[first:last] = piece[first - self.position : last - self.position]
                self.end = max(self.end, last)
            self.position += len(piece)
            self.placed = True

    def remarks(self) -> set[str]:
        """What a user should know of this sound."""
        remarks = {UNMIXED} if self.unmixed else set()
        if not self.end or np.abs(self.samples).max() > QUIET:
            return remarks
        if opposed(self.stereo):
            return remarks | {OPPOSED}
        return remarks if self.samples.any() else remarks | {SILENT}


def to_float(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """int16 samples to float32 in [-1, 1)."""
    return samples.astype(np.float32) / np.float32(32768)


def read_sound_windows(path: Path, audio: AudioConfig, windows: int, time_limit: float) -> NDArray[np.float32]:
    """float32 [windows, audio.samples], about [-1, 1], mono at `audio.rate`: evenly spaced, first at the start and last
    at the end; a shorter sound repeats. Raises `BadClip` for a file without a sound that decodes in time."""
    sound = read_sound(path, audio.rate, time_limit)
    last = max(0, len(sound) - audio.samples)
    offsets = np.linspace(0, last, windows).astype(int)
    places = offsets[:, None] + np.arange(audio.samples)[None]
    return to_float(sound[places % len(sound)])


def read_sound(path: Path, rate: int, time_limit: float) -> NDArray[np.int16]:
    """The whole best sound track, int16 [S], mono at `rate` Hz; broken packets are skipped."""
    deadline, fault = Deadline(path, time_limit), "its sound cannot be read"
    if not path.is_file():
        raise BadClip(path, "not a file" if path.exists() else "missing")
    frames: list[AudioFrame] = []
    unmixed = False
    resampler = Mono(rate)

    def mixed(frame: AudioFrame) -> list[AudioFrame]:
        nonlocal unmixed, resampler
        if not unmixed and not frames:
            try:
                return resampler.resample(frame)
            except (FFmpegError, ValueError):
                unmixed, resampler = True, Mono(rate)
        with decoders_own(path, fault):
            return resampler.resample(first_channel(frame) if unmixed else frame)

    try:
        with decoders_own(path, fault):
            container = av.open(str(path), "r", timeout=time_limit, container_options=OPTIONS, **OPEN_OPTIONS)
        with container:
            stream = container.streams.best("audio")
            if not isinstance(stream, AudioStream):
                raise BadClip(path, "no sound in it")
            cut = PaddingCut(container, stream)
            for packet in container.demux(stream):
                deadline.check()
                try:
                    with decoders_own(path, fault):
                        decoded = stream.decode(packet)
                except FFmpegError:
                    continue
                for frame in cut(decoded):
                    frames += mixed(frame)
            for frame in cut.rest():
                frames += mixed(frame)
            frames += resampler.resample(None)
    except (FFmpegError, OSError) as error:
        raise BadClip(path, f"{fault} ({plain(error)})") from error
    if not sum(frame.samples for frame in frames):
        raise BadClip(path, "no sound in it decodes")
    return np.concatenate([frame.to_ndarray().reshape(-1) for frame in frames]).astype(np.int16, copy=False)
