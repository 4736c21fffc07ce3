"""Containers times codecs: however a file is read, no frame is another one, and sound is within 1 ms of pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.media import numbers, onset, steady, tone_burst, write_clip

from vatt.data.decoding.container import probe
from vatt.data.decoding.span import decode_span

# Samples by which an encoder's sound is late where the container has no place to say so: they belong to the file.
DELAY = {(".avi", "libmp3lame"): 1105, (".avi", "ac3"): 256}
RATES = {"libopus": 48_000}

GRID = [
    *(
        (".mp4", video, sound)
        for video in ("libx264", "libx265", "mpeg4", "libsvtav1", "mjpeg", "libvpx-vp9")
        for sound in ("aac",)
    ),
    *((".mp4", "libx264", sound) for sound in ("libmp3lame", "libopus", "flac", "ac3")),
    *((".mov", video, sound) for video, sound in (("libx264", "pcm_s16le"), ("mpeg4", "aac"), ("mjpeg", "pcm_s16le"))),
    *((".mkv", video, "libopus") for video in ("libx264", "libx265", "mpeg4", "mpeg2video", "libvpx", "ffv1")),
    *((".mkv", "libx264", sound) for sound in ("aac", "flac", "pcm_s16le", "libmp3lame", "ac3")),
    *((".webm", video, "libopus") for video in ("libvpx", "libvpx-vp9", "libsvtav1")),
    # The muxer of AVI makes room for MP3's delay by a frame that is shown twice, where no B-frame leaves it room.
    *((".avi", video, "pcm_s16le") for video in ("mpeg4", "libx264", "mjpeg", "mpeg2video")),
    (".avi", "libx264", "libmp3lame"),
    (".avi", "mpeg4", "ac3"),
    *((".ts", video, sound) for video, sound in (("libx264", "aac"), ("libx265", "aac"), ("mpeg2video", "mp2"))),
    *((".flv", video, sound) for video, sound in (("libx264", "aac"), ("flv", "libmp3lame"))),
    (".wmv", "wmv2", "wmav2"),
    (".3gp", "libx264", "aac"),
    (".m4v", "libx264", "aac"),
]


@pytest.mark.parametrize(("suffix", "video", "sound"), GRID)
def test_frames_and_sound_of(suffix: str, video: str, sound: str, tmp_path: Path) -> None:
    times, rate = steady(3.0, 25), RATES.get(sound, 44_100)
    path = write_clip(tmp_path / f"clip{suffix}", times, tone_burst(3.0, 2.0, rate), rate, video, sound, ticks=25)
    assert probe(path).duration == pytest.approx(3.0, abs=0.12)
    late = DELAY.get((suffix, sound), 0)
    for start in (0.0, 1.24):
        span = decode_span(path, start=start, fps=10.0, frames=16 if start else 24, rate=48_000)
        assert span.video is not None
        shown = [int((start + k / 10) * 25 + 1e-6) for k in range(len(span.video))]
        assert [a - b for a, b in zip(numbers(span.video), shown, strict=True)] == [0] * len(shown)
        assert span.audio is not None
        # The burst's first sample that counts is found to a fraction of a period of its 1 kHz.
        assert start + onset(span.audio, 48_000) == pytest.approx(2.0 + late / rate, abs=1e-3)
