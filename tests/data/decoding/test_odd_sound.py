"""Sound that is odd: channels that cannot be mixed, silence, opposites, lost packets, one picture with a long sound."""

from __future__ import annotations

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.loader_corpus import DATA, MODEL, words_of
from helpers.loader_corpus import RATE as LOADER_RATE
from helpers.media import numbered_frame, onset, steady, tone_burst, write_clip

from vatt.config.data import AugmentConfig
from vatt.data.clip import Clip, Manifest
from vatt.data.datasets.training import ClipDataset
from vatt.data.decoding.audio import OPPOSED, SILENT, UNMIXED, read_sound
from vatt.data.decoding.container import probe
from vatt.data.decoding.span import DecodedSpan, decode_span
from vatt.data.remarks import Remarks
from vatt.data.transcode import encode
from vatt.data.transcode.encode import Encoding, encode_clip

RATE = 48_000


def write_sound_of(path: Path, channels: np.ndarray, codec: str, layout: str, skip: range = range(0)) -> Path:
    """`channels` int16 [C, S]; packets of the numbers `skip` are left out, as if they were lost on the way."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE, layout=layout)
        number = 0

        def mux(packets: list[av.Packet]) -> None:
            nonlocal number
            for packet in packets:
                if number not in skip:
                    container.mux(packet)
                number += 1

        for first in range(0, channels.shape[1], 960):
            data = np.ascontiguousarray(channels[:, first : first + 960].T.reshape(1, -1))
            piece = av.AudioFrame.from_ndarray(data, "s16", layout)
            piece.sample_rate, piece.time_base, piece.pts = RATE, Fraction(1, RATE), first
            mux(stream.encode(piece))
        mux(stream.encode(None))
    return path


def heard(path: Path, start: float = 0.0, seconds: float = 2.0) -> DecodedSpan:
    return decode_span(path, start=start, fps=10.0, frames=round(seconds * 10), rate=RATE, read=("audio",), needs=())


def tone(seconds: float, hertz: float = 440.0, loud: float = 12_000) -> np.ndarray:
    return (np.sin(np.arange(round(seconds * RATE)) * 2 * np.pi * hertz / RATE) * loud).astype(np.int16)


def test_sound_of_channels_that_nothing_mixes_is_its_first_channel(tmp_path: Path) -> None:
    first = tone(2.0)
    # 32 channels that no speaker is named for, as WAV files of microphone arrays and ambisonics have them.
    channels = np.stack([first, *(np.roll(first, i * 7) // 2 for i in range(1, 32))])
    body = np.ascontiguousarray(channels.T).tobytes()
    form = struct.pack("<HHIIHH", 1, 32, RATE, RATE * 64, 64, 16)
    data = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(body)) + body
    path = tmp_path / "a.wav"
    path.write_bytes(b"RIFF" + struct.pack("<I", len(data)) + data)
    span = heard(path)
    assert span.audio is not None
    assert (span.audio == first).all()
    assert span.remarks == {UNMIXED}
    assert (read_sound(path, RATE, 30.0) == first).all()


@pytest.mark.parametrize(
    ("codec", "suffix"), [("pcm_s16le", ".wav"), ("flac", ".flac"), ("aac", ".m4a"), ("libopus", ".ogg")]
)
def test_silence_and_opposite_channels_are_named(tmp_path: Path, codec: str, suffix: str) -> None:
    silent = write_sound_of(tmp_path / f"silent{suffix}", np.zeros((2, 2 * RATE), np.int16), codec, "stereo")
    assert heard(silent).remarks == {SILENT}
    left = tone(2.0)
    opposed = write_sound_of(tmp_path / f"opposed{suffix}", np.stack([left, -left]), codec, "stereo")
    assert heard(opposed).remarks == {OPPOSED}
    for right in (left, left // 50, np.roll(left, 20)):
        fine = write_sound_of(tmp_path / f"fine{suffix}", np.stack([left, right]), codec, "stereo")
        assert not heard(fine).remarks
    faint = write_sound_of(tmp_path / f"faint{suffix}", np.stack([left, left]) // 60, codec, "stereo")
    assert not heard(faint).remarks


def test_remarks_reach_whoever_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = []
    for i, sound in enumerate((np.zeros(2 * LOADER_RATE, np.int16), tone_burst(2.0, 0.5, LOADER_RATE))):
        path = write_clip(tmp_path / f"{i}.mp4", steady(2.0, 25), sound, LOADER_RATE, gop=25)
        clips.append(Clip(i, path, path.name, captions=("one",)))
    corpus = Manifest(tuple(clips), tmp_path, ())
    data = replace(DATA, batch_size=2, augment=AugmentConfig(audio_noise=0.0))
    dataset = ClipDataset(corpus, data, MODEL, words_of(corpus), 1)
    remarks = Remarks(corpus)
    for step in range(3):
        remarks.add(dataset[step].remarks)
    assert remarks.counts()[SILENT] >= 1
    remarks.tell()
    said = capsys.readouterr().err
    assert said.count("0.mp4: " + SILENT) <= 1
    assert SILENT in said


@pytest.mark.parametrize(("lost", "seconds"), [(range(40, 42), 0.04), (range(40, 41), 0.02), (range(40, 45), 0.1)])
def test_what_is_lost_moves_nothing(tmp_path: Path, lost: range, seconds: float) -> None:
    """Packets of 20 ms that never arrived are silence; what comes after them stays where it was."""
    sound = tone_burst(3.0, 2.0, RATE) + tone_burst(3.0, 0.3, RATE)
    whole = heard(write_sound_of(tmp_path / "whole.mkv", sound[None], "libopus", "mono"), seconds=3.0).audio
    holed = heard(write_sound_of(tmp_path / "holed.mkv", sound[None], "libopus", "mono", lost), seconds=3.0).audio
    assert whole is not None
    assert holed is not None
    late = round(1.5 * RATE)
    assert onset(holed, RATE) == pytest.approx(onset(whole, RATE), abs=1e-3)
    assert onset(holed[late:], RATE) == pytest.approx(onset(whole[late:], RATE), abs=1e-3), seconds


def test_one_picture_stays_while_its_sound_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "still.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width = video.height = 64  # type: ignore[union-attr]
        video.pix_fmt = "yuv420p"  # type: ignore[union-attr]
        audio = container.add_stream("aac", rate=RATE, layout="mono")
        container.mux(video.encode(av.VideoFrame.from_ndarray(numbered_frame(77), format="rgb24")))  # type: ignore
        container.mux(video.encode(None))  # type: ignore[union-attr]
        sound = tone_burst(4.0, 3.0, RATE)
        for first in range(0, len(sound), 1024):
            piece = av.AudioFrame.from_ndarray(sound[None, first : first + 1024], "s16", "mono")
            piece.sample_rate, piece.time_base, piece.pts = RATE, Fraction(1, RATE), first
            container.mux(audio.encode(piece))  # type: ignore[arg-type]
        container.mux(audio.encode(None))
    assert probe(path).duration == pytest.approx(4.0, abs=0.03)
    for start in (0.0, 2.5):
        span = decode_span(path, start=start, fps=10.0, frames=40, rate=RATE)
        assert span.video is not None
        assert len(span.video) == pytest.approx(40 - start * 10, abs=1)
        assert (span.video == span.video[0]).all()
        assert span.audio is not None
        assert start + onset(span.audio, RATE) == pytest.approx(3.0, abs=1e-3)
    made = encode_clip(Clip(0, path, path.name), tmp_path / "new", Encoding(size=64), 60.0)
    assert made.frames in (40, 41)


@pytest.mark.parametrize(
    ("codec", "suffix", "rate"),
    [
        ("libopus", ".mkv", 48_000),
        ("wmav2", ".wmv", 44_100),
        ("libmp3lame", ".flv", 44_100),
        ("aac", ".mp4", 44_100),
    ],
)
def test_pieces_of_a_transcoded_clip_meet_without_a_jump(
    tmp_path: Path, codec: str, suffix: str, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = (np.sin(np.arange(6 * rate) * 2 * np.pi * 220 / rate) * 8000).astype(np.int16)
    kind = {".wmv": "wmv2", ".flv": "flv"}.get(suffix, "libx264")
    path = write_clip(tmp_path / f"a{suffix}", steady(6.0, 25), sound, rate, kind, codec, ticks=25)
    monkeypatch.setattr(encode, "CHUNK", 10)
    heard_pieces = [piece.audio for piece in encode._Source(path, 0.0, 55, Encoding(size=64), 60.0)]
    whole = decode_span(path, start=0.0, fps=10.0, frames=55, rate=RATE).audio
    assert len(heard_pieces) == 6
    assert whole is not None
    assert (np.concatenate([piece for piece in heard_pieces if piece is not None]) == whole).all()
    steps = np.abs(np.diff(whole[RATE // 5 :].astype(int)))
    assert steps.max() < 2 * 8000 * 2 * np.pi * 220 / RATE  # that of the tone is half of it: nowhere a jump


def test_a_sound_alone_is_transcoded_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sound_of(tmp_path / "a.ogg", tone(6.0)[None], "libopus", "mono")
    monkeypatch.setattr(encode, "CHUNK", 10)
    pieces = list(encode._Source(path, 0.0, 60, Encoding(), 60.0, has_video=False))
    assert len(pieces) == 1
