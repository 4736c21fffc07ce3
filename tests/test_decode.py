"""Decoding: the right frames and the right sound, from any container; and a plain reason for whatever is broken."""

import os
import struct
import time
from pathlib import Path

import av
import numpy as np
import pytest
from media import numbers, onset, steady, tone_burst, write_clip

from vatt.data.decode import DecodedSpan, decode_span
from vatt.data.manifest import read_manifest
from vatt.data.reader import BadClip, Reader, probe

RATE = 48_000


def decode(path: Path, start: float = 0.0, frames: int = 20, fps: float = 10.0, **options: object) -> DecodedSpan:
    return decode_span(path, start=start, fps=fps, frames=frames, rate=RATE, **options)  # type: ignore[arg-type]


def shown_at(times: list[float], start: float, frames: int, fps: float = 10.0) -> list[int]:
    """What a viewer sees: the latest frame that is not later (a tick of grace for rounded timestamps)."""
    return [max(0, int(np.searchsorted(times, start + i / fps + 1e-5, "right")) - 1) for i in range(frames)]


@pytest.mark.parametrize("rate", [24.0, 30_000 / 1001, 60.0])
def test_constant_rates(tmp_path: Path, rate: float) -> None:
    times = steady(4.0, rate)
    clip = write_clip(tmp_path / "clip.mp4", times, tone_burst(4.0, 2.0, RATE))
    for start in (0.0, 0.37, 1.1):
        span = decode(clip, start)
        assert span.video.shape == (20, 64, 64, 3)
        assert numbers(span.video) == shown_at(times, start, 20)
        assert span.audio is not None
        assert len(span.audio) == 2 * RATE
        if start + 2 > 2.1:
            assert start + onset(span.audio, RATE) == pytest.approx(2.0, abs=1e-3)


def test_variable_rate(tmp_path: Path) -> None:
    gaps = np.random.default_rng(0).choice([0.011, 0.04, 0.3], 60)
    times = [0.0, *np.cumsum(gaps).tolist()]
    clip = write_clip(tmp_path / "clip.mp4", times)
    for start in (0.0, 1.03, 2.5):
        assert numbers(decode(clip, start).video) == shown_at(times, start, 20)


@pytest.mark.parametrize(
    ("name", "codecs", "ticks"),
    [
        ("clip.mov", ("libx264", "aac"), 90_000),
        ("clip.mkv", ("libx264", "libopus"), 90_000),
        ("clip.webm", ("libvpx", "libopus"), 90_000),
        ("clip.ts", ("libx264", "aac"), 90_000),
        ("clip.flv", ("libx264", "aac"), 90_000),
        ("clip.mpg", ("mpeg1video", "mp2"), 25),
        ("clip.avi", ("libx264", "libmp3lame"), 25),
    ],
)
def test_containers(tmp_path: Path, name: str, codecs: tuple[str, str], ticks: int) -> None:
    """Clocks that do not start at 0 (TS, FLV), headers without durations, decoding times only (AVI); seeking in all."""
    times = steady(6.0, 25)
    path = write_clip(tmp_path / name, times, tone_burst(6.0, 3.0, RATE), RATE, *codecs, ticks=ticks)
    assert probe(path).duration == pytest.approx(6.0, abs=0.2)
    for start in (0.0, 1.44, 2.5):
        span = decode(path, start)
        assert numbers(span.video) == shown_at(times, start, 20)
        assert span.audio is not None
        if start > 1.2:
            # MP2 and MP3 outside MP4 carry their encoder's delay (481 and 1105 samples) with them.
            assert start + onset(span.audio, RATE) == pytest.approx(
                3.0, abs=2e-3 if codecs[1] in ("aac", "libopus") else 0.03
            )


def test_seeking_gives_what_decoding_from_the_beginning_gives(tmp_path: Path) -> None:
    chirp = np.sin(np.arange(8 * RATE) ** 2 * 1e-7)  # noise will not do: AAC decoders make up their own
    clip = write_clip(tmp_path / "clip.mp4", steady(8.0, 25), (chirp * 16000).astype(np.int16), gop=50)
    whole = decode(clip, 0.0, 80)
    part = decode(clip, 3.7, 20)
    assert whole.audio is not None
    assert part.audio is not None
    assert (part.video == whole.video[37:57]).all()
    ours, theirs = part.audio.astype(int), whole.audio[round(3.7 * RATE) :][: len(part.audio)].astype(int)
    assert min(np.abs(ours[1:-1] - theirs[1 + s : len(theirs) - 1 + s]).max() for s in (-1, 0, 1)) <= 1


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_sound_is_resampled_in_place(tmp_path: Path, rate: int) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(3.0, 25), tone_burst(3.0, 1.5, rate), rate)
    for start in (0.0, 1.2):
        span = decode(clip, start, 15 if start else 20)
        assert span.audio is not None
        assert start + onset(span.audio, RATE) == pytest.approx(1.5, abs=2e-3)
        tone = span.audio[round((1.52 - start) * RATE) :][: RATE // 20].astype(float)
        assert np.abs(np.fft.rfft(tone)).argmax() * 20 == pytest.approx(1000, abs=20)


def test_sound_that_ends_early_is_padded_with_silence(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(4.0, 25), tone_burst(1.0, 0.5, RATE))
    span = decode(clip, 0.0, 40)
    assert span.audio is not None
    assert len(span.audio) == 4 * RATE
    assert not span.audio[round(1.1 * RATE) :].any()
    later = decode(clip, 2.0, 20)
    assert later.audio is not None  # there is a track, it is silent here
    assert not later.audio.any()


def test_no_sound(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(1.0, 25))
    assert decode(clip, 0.0, 10).audio is None
    assert not probe(clip).has_audio


def test_the_span_ends_with_the_row_or_the_file(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(2.0, 25), tone_burst(2.0, 1.0, RATE))
    span = decode(clip, 0.5, 32)
    assert len(span.video) == 15
    assert span.audio is not None
    assert len(span.audio) == 1.5 * RATE
    assert len(decode(clip, 0.5, 32, end=1.3).video) == 8
    with pytest.raises(BadClip, match=r"no frames at 2\.50 s: the video ends at 2\.00 s"):
        decode(clip, 2.5)


def test_short_side(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(1.0, 25), size=64)
    assert decode(clip, frames=3, short_side=32).video.shape == (3, 32, 32, 3)
    assert decode(clip, frames=3, short_side=100).video.shape == (3, 64, 64, 3)


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotation(tmp_path: Path, matrix: tuple[int, int, int, int], turns: int) -> None:
    """The display matrix (a, b, c, d) of the track header maps (x, y) to (ax + cy, bx + dy), y downwards."""
    clip = write_clip(tmp_path / "clip.mp4", steady(1.0, 25))
    upright = decode(clip, frames=3).video
    data = bytearray(clip.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip.write_bytes(data)
    assert (decode(clip, frames=3).video == np.rot90(upright, turns, axes=(1, 2))).all()


def test_missing_empty_foreign_and_endless_files(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video at all\n" * 100)
    os.mkfifo(tmp_path / "pipe.mp4")
    for name, reason in (
        ("gone.mp4", "missing"),
        ("empty.mp4", "empty file"),
        ("text.mp4", "not a video"),
        ("pipe.mp4", "not a file"),
        (".", "not a file"),
        ("a\0b.mp4", "no path of a file"),
        ("\ud800.mp4", "no path of a file"),
    ):
        with pytest.raises(BadClip) as error:
            decode(tmp_path / name)
        assert error.value.reason.startswith(reason)
        with pytest.raises(BadClip):
            probe(tmp_path / name)


def test_what_the_headers_make_the_library_raise_is_a_bad_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_clip(tmp_path / "a.mp4", steady(1.0, 10.0))

    def wrong(*_: object) -> None:
        raise ZeroDivisionError("a rate of 1/0")

    monkeypatch.setattr("vatt.data.reader.Reader._open", wrong)
    with pytest.raises(BadClip, match="1/0"):
        decode(tmp_path / "a.mp4")


def test_an_end_beyond_all_numbers_is_the_end_of_the_file(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", steady(1.0, 10.0))
    assert len(decode(tmp_path / "a.mp4", frames=100, end=1e308).video) == 10


def test_sound_only_and_cover_pictures_are_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=RATE)
        frame = av.AudioFrame.from_ndarray(tone_burst(1.0, 0.5, RATE)[None], "s16", "mono")
        frame.sample_rate = RATE
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(BadClip, match="no video stream"):
        decode(tmp_path / "sound.mp4")


def test_a_file_cut_off_is_good_up_to_the_cut(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sound = (rng.standard_normal(8 * RATE) * 3000).astype(np.int16)
    clip = write_clip(tmp_path / "clip.mkv", steady(8.0, 25), sound)
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])
    assert numbers(decode(clip, 1.0).video) == shown_at(steady(8.0, 25), 1.0, 20)
    with pytest.raises(BadClip, match=r"(ends|damaged) at \d.\d\d s of 8.00 s") as error:
        decode(clip, 3.0)
    assert not error.value.whole
    with pytest.raises(BadClip):
        decode(clip, 6.0)


def test_damage_in_the_middle(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(8.0, 25))
    with av.open(str(clip)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    data = bytearray(clip.read_bytes())
    for packet in packets:
        assert packet.pts is not None
        assert packet.pos is not None
        if 3.0 <= packet.pts * packet.time_base < 4.0:
            data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    clip.write_bytes(data)
    assert len(decode(clip, 0.0).video) == 20
    with pytest.raises(BadClip, match=r"damaged at [23]\."):
        decode(clip, 2.0)
    assert numbers(decode(clip, 5.5).video) == shown_at(steady(8.0, 25), 5.5, 20)


def test_deadline_cuts_off_a_file_that_goes_on_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(4.0, 25), tone_burst(4.0, 1.0, RATE))
    honest = Reader.packets

    def slow(self: Reader, stream: object) -> object:
        for packet in honest(self, stream):  # type: ignore[arg-type]
            time.sleep(0.05)
            yield packet

    monkeypatch.setattr(Reader, "packets", slow)
    began = time.monotonic()
    with pytest.raises(BadClip, match=r"took longer than 0\.3 s"):
        decode(clip, time_limit=0.3)
    assert time.monotonic() - began < 2.0  # all packets would take 10 s


def test_files_are_closed(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "clip.mp4", steady(2.0, 25), tone_burst(2.0, 1.0, RATE))
    (tmp_path / "text.mp4").write_text("no video " * 100)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        decode(clip, 0.5)
        probe(clip)
        for bad in (tmp_path / "text.mp4", clip):
            with pytest.raises(BadClip):
                decode(bad, 50.0)
    assert len(os.listdir("/proc/self/fd")) == before


BAD = {
    "awkward/corrupted.mp4": "damaged at 2.80 s of 5.00 s",
    "awkward/chunk_out_of_range.mp4": "not a video",
    "awkward/no_timescale.mp4": "damaged at 0.27 s of 6.04 s",
    "awkward/invalid_userdata.mp4": "no frames",
    "awkward/bipbop_nonfragment_header.mp4": "no frames",
    "awkward/invalid-bitstream.webm": "no frame decodes",
    "awkward/result.webm": "empty file",
    "awkward/opus_audioinit.mp4": "no video stream",
}
ROTATED = {"awkward/video_90.mov": (568, 320), "awkward/video_1.mp4": (352, 288), "awkward/fire2.mp4": (720, 1280)}
# Frames of the first 3.2 s at 10 fps for files that are shorter.
SHORT = {
    "RATRACE_wave_f_nm_np1_fr_goo_37.avi": 25,
    "SchoolRulesHowTheyHelpUs_wave_f_nm_np1_ba_med_0.avi": 25,
    "realshort.mp4": 12,
    "awkward/hmdb51_Turnk_r_Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi": 28,
    "awkward/fire2.mp4": 24,
    "awkward/video_90.mov": 1,
    "awkward/video_1.mp4": 8,
    "awkward/sample_android_slow_motion.mp4": 6,
    "awkward/bear-vp9-odd-dimensions.webm": 10,
    "awkward/h265_10bits.mp4": 10,
    "awkward/video_not_seekable.ts": 1,
    "awkward/sample.flv": 10,
    "awkward/sample_fragmented.mp4": 11,
    "awkward/unordered.mov": 2,
}


def real_clips() -> list[str]:
    shared = Path(os.environ.get("VATT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    source = shared / "data/clips/manifest.csv"
    return [clip.name for clip in read_manifest(source)] if source.is_file() else ["the real clips"]


def test_real_avi_frames_come_in_the_order_they_are_shown(shared: Path) -> None:
    path = shared / "data/clips/RATRACE_wave_f_nm_np1_fr_goo_37.avi"  # timestamps 1, 4, 3, 5, 7, 6, ...
    with av.open(str(path)) as container:
        wanted = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    got = decode(path, frames=74, fps=30.0).video
    changes = [0, *(i for i in range(1, len(got)) if (got[i] != got[i - 1]).any())]
    assert len(changes) == len(wanted)
    assert all((got[i] == frame).all() for i, frame in zip(changes, wanted, strict=True))


@pytest.mark.parametrize("name", real_clips())
def test_real_clips(shared: Path, name: str) -> None:
    path = shared / "data/clips" / name
    if name in BAD:
        with pytest.raises(BadClip) as error:
            decode(path, frames=32)
        assert error.value.reason.startswith(BAD[name])
        return
    info = probe(path)
    frames = SHORT.get(name, 30 if name.endswith(".mpg") else 32)
    span = decode(path, frames=32, short_side=None if name in ROTATED else 120)
    assert len(span.video) == frames
    if name in ROTATED:
        assert span.video.shape[1:3] == ROTATED[name]
    else:
        assert min(span.video.shape[1:3]) == min(120, info.width, info.height)
    assert (span.audio is not None) == info.has_audio
    if span.audio is not None:
        assert len(span.audio) == frames * RATE // 10
        silent = name in ("in.mp4", "awkward/cockatoo.mp4", "awkward/no_duration.webm", "awkward/video_not_seekable.ts")
        assert bool(span.audio.any()) != silent
    # The end of the file is reached by seeking.
    last = max(0.0, info.duration - 0.5)
    assert 1 <= len(decode(path, last, short_side=64).video) <= 7
