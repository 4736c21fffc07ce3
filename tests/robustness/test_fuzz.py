"""Damaged files: whatever is cut off or changed in them, the decoders answer in time, and nothing stays behind."""

import os
import signal
from pathlib import Path

import pytest
from faults import damaged_files
from helpers.media import steady, tone_burst, write_clip
from helpers.media_alone import write_sound

RATE = 16_000
CLIPS = {
    "h264.mp4": ("libx264", "aac"),
    "vp8.webm": ("libvpx", "libopus"),
    "mpeg4.avi": ("mpeg4", "libmp3lame"),
}


@pytest.fixture(scope="module")
def child() -> damaged_files.Child:
    with damaged_files.Child() as child:
        yield child


@pytest.mark.parametrize("name", list(CLIPS))
def test_damaged_clips_end_as_frames_or_as_a_reason(child: damaged_files.Child, tmp_path: Path, name: str) -> None:
    video, audio = CLIPS[name]
    rate = 48_000 if audio == "libopus" else RATE
    clip = write_clip(tmp_path / name, steady(1.0, 12), tone_burst(1.0, 0.5, rate), rate, video, audio, ticks=12)
    row = damaged_files.fuzz(child, clip, 36, seed=5)
    assert row["failures"] == []
    assert row["files_left_open"] == 0
    assert row["good"] >= 1
    assert row["bad"] >= 1
    assert row["peak_bytes"] < 2**30


def test_every_variant_is_the_same_again_and_none_is_the_file() -> None:
    data = bytes(range(256)) * 64
    first = list(damaged_files.variants(data, 60, seed=3))
    assert first == list(damaged_files.variants(data, 60, seed=3))
    assert first[1:] != list(damaged_files.variants(data, 60, seed=4))[1:]
    assert all(variant != data for _, variant in first)
    sizes = [len(variant) for name, variant in first if name.startswith("cut")]
    assert len(sizes) == 20
    assert sizes[0] < len(data) // 20 < len(data) * 19 // 20 < sizes[-1] + len(data) // 15


def test_a_process_that_dies_or_hangs_is_a_failure_and_is_replaced(tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "a.flac", tone_burst(0.5, 0.1, RATE), RATE)
    with damaged_files.Child() as child:
        os.kill(child.pid, signal.SIGKILL)
        assert child.try_clip(sound) == ("died with exit code -9", None)
        assert child.try_clip(sound)[0] == "good"
        child.silent = 0.2
        os.kill(child.pid, signal.SIGSTOP)
        assert child.try_clip(sound) == ("hung for 0.2 s", None)
