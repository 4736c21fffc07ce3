"""Every real file, ordinary and awkward, and what is expected of it."""

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from vatt.data.decoding.container import BadClip, probe
from vatt.data.decoding.span import DecodedSpan, decode_span
from vatt.data.manifest import read_manifest

RATE = 48_000


class Good(NamedTuple):
    """`frames` of the first 3.2 s at 10 a second, upright, and the sound: None, silent or heard; seconds of video."""

    frames: int
    width: int
    height: int
    sound: str | None
    seconds: float


# Or else the beginning of the reason for which it cannot be used.
EXPECTED: dict[str, Good | str] = {
    "R6llTwEh07w.mp4": Good(32, 340, 256, "heard", 10.10),
    "SOX5yA1l24A.mp4": Good(32, 340, 256, "heard", 11.08),
    "RATRACE_wave_f_nm_np1_fr_goo_37.avi": Good(25, 560, 240, None, 2.43),
    "SchoolRulesHowTheyHelpUs_wave_f_nm_np1_ba_med_0.avi": Good(25, 320, 240, None, 2.50),
    "v_SoccerJuggling_g23_c01.avi": Good(32, 320, 240, None, 8.01),
    "test.avi": Good(32, 320, 240, "heard", 6.56),
    "test.mp4": Good(32, 340, 256, None, 10.00),
    "flipping_a_pancake.mkv": Good(32, 426, 240, "heard", 10.33),
    "bbaf2n.mpg": Good(30, 360, 288, "heard", 3.00),
    "brbk7n.mpg": Good(30, 360, 288, "heard", 3.00),
    "lbax4n.mpg": Good(30, 360, 288, "heard", 3.00),
    "lbbc2a.mpg": Good(30, 360, 288, "heard", 3.00),
    "pwij3p.mpg": Good(30, 360, 288, "heard", 3.00),
    "sbia1a.mpg": Good(30, 360, 288, "heard", 3.00),
    "nasa_13013.mp4": Good(32, 480, 270, "heard", 13.01),
    "realshort.mp4": Good(12, 320, 240, "heard", 1.20),
    "bikes.mp4": Good(32, 640, 272, None, 10.00),
    "chaplin.mp4": Good(32, 640, 360, "heard", 9.64),
    "big_buck_bunny_0_30.webm": Good(32, 1280, 720, "heard", 30.00),
    "sample.avi": Good(32, 960, 400, "heard", 4.09),
    "sample_with_increasing_timestamps_320w_240h.mp4": Good(32, 320, 240, "heard", 15.53),
    "boat.mp4": Good(32, 592, 336, "heard", 6.04),
    "dog_barking.mp4": Good(32, 854, 480, "heard", 7.08),
    "in.mp4": Good(32, 320, 240, "silent", 6.97),
    "awkward/hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": Good(28, 320, 240, None, 2.80),
    "awkward/corrupted.mp4": "damaged at 2.80 s of 5.00 s",
    "awkward/chunk_out_of_range.mp4": "not a video",
    "awkward/no_timescale.mp4": "damaged at 0.27 s of 6.04 s",
    "awkward/invalid_userdata.mp4": "no frames",
    "awkward/bipbop_nonfragment_header.mp4": "no frames",
    "awkward/invalid-bitstream.webm": "no frame decodes",
    "awkward/result.webm": "empty file",
    "awkward/bitmap.mp4": Good(32, 1, 1, None, 5.00),
    "awkward/no_duration.webm": Good(32, 1280, 720, "silent", 4.94),
    "awkward/fire2.mp4": Good(24, 1280, 720, "heard", 2.38),
    "awkward/video_90.mov": Good(1, 320, 568, None, 0.10),
    "awkward/video_1.mp4": Good(8, 288, 352, "heard", 0.77),
    "awkward/skateboarding_dog.mp4": Good(32, 576, 1024, "heard", 14.05),
    "awkward/sample_android_slow_motion.mp4": Good(6, 1280, 720, None, 0.53),
    "awkward/bigbuckbunny.mp4": Good(32, 1280, 720, "heard", 5.28),
    "awkward/cockatoo.mp4": Good(32, 1280, 720, "silent", 14.00),
    "awkward/bear-vp9-odd-dimensions.webm": Good(10, 161, 121, None, 1.00),
    "awkward/h265_10bits.mp4": Good(10, 200, 200, None, 1.00),
    "awkward/av1_video.mkv": Good(32, 640, 360, None, 5.00),
    "awkward/video_not_seekable.ts": Good(1, 640, 426, "silent", 0.10),
    "awkward/sample.flv": Good(10, 1080, 720, "heard", 1.14),
    "awkward/sample_fragmented.mp4": Good(11, 1080, 720, "heard", 1.00),
    "awkward/opus_audioinit.mp4": "no video stream",
    "awkward/unordered.mov": Good(2, 50, 50, None, 0.12),
    "awkward/demo.mp4": Good(32, 340, 256, None, 10.00),
}
SOUND_ONLY = {"awkward/opus_audioinit.mp4": 3.2}  # seconds, of 3.2


def names() -> list[str]:
    shared = Path(os.environ.get("VATT_SHARED", Path(__file__).resolve().parents[3] / "shared"))
    return list(EXPECTED) if (shared / "data/clips").is_dir() else ["the real clips"]


def decode(path: Path, start: float = 0.0, **options: object) -> DecodedSpan:
    return decode_span(path, start=start, fps=10.0, frames=32, rate=RATE, **options)  # type: ignore[arg-type]


def test_no_file_is_left_out(shared: Path) -> None:
    folder = shared / "data/clips"
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files - {"manifest.csv"} == set(EXPECTED)
    assert {clip.name for clip in read_manifest(folder / "manifest.csv")} == set(EXPECTED)


@pytest.mark.parametrize("name", names())
def test_walk(shared: Path, name: str) -> None:
    path, expected = shared / "data/clips" / name, EXPECTED[name]
    if isinstance(expected, str):
        with pytest.raises(BadClip) as error:
            decode(path)
        assert error.value.reason.startswith(expected)
        if name in SOUND_ONLY:
            alone = decode(path, needs=("audio",))
            assert alone.video is None
            assert alone.audio is not None
            assert len(alone.audio) == SOUND_ONLY[name] * RATE
        return
    info, span = probe(path), decode(path)
    assert info.duration == pytest.approx(expected.seconds, abs=0.006)
    assert span.video is not None
    assert span.video.shape == (expected.frames, expected.height, expected.width, 3)
    assert info.has_audio == (expected.sound is not None)
    if span.audio is None:
        assert expected.sound is None
        with pytest.raises(BadClip, match="no sound"):
            decode(path, read=("audio",), needs=("audio",))
    else:
        assert len(span.audio) == expected.frames * RATE // 10
        assert expected.sound == ("heard" if span.audio.any() else "silent")
        alone = decode(path, read=("audio",), needs=("audio",)).audio
        assert alone is not None
        assert abs(len(alone) / RATE - min(3.2, info.duration)) < 0.3  # sound may end before or after the pictures
    # The end of the file is reached by seeking.
    last = decode(path, max(0.0, info.duration - 0.5), short_side=64).video
    assert last is not None
    assert 1 <= len(last) <= 7
