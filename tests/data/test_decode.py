"""Decoding: the right frames and the right sound, from any container; and a plain reason for whatever is broken."""

import os
import struct
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from helpers.garbage import left_behind, of_ffmpeg
from helpers.media import numbered_frame, numbers, onset, steady, tone_burst, write_clip
from helpers.media_alone import IMAGES, SOUNDS, write_image, write_sound

from vatt.data.decoding import container as reader
from vatt.data.decoding.audio import read_sound
from vatt.data.decoding.container import BadClip, Reader, probe
from vatt.data.decoding.span import DecodedSpan, decode_span

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
    # MPEG-PS: libav's own 5.62 or 5.82 s are those of the last timestamp in the file, which stands for several frames.
    assert probe(path).duration == pytest.approx(6.0, abs=0.01 if name == "clip.mpg" else 0.2)
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


@pytest.mark.parametrize("suffix", list(IMAGES))
def test_an_image_is_one_frame_at_any_time(tmp_path: Path, suffix: str) -> None:
    image = write_image(tmp_path / f"%03d{suffix}", numbered_frame(77))
    for start in (0.0, 5.0):
        span = decode(image, start)
        assert numbers(span.video) == [77]
        assert span.audio is None
    assert probe(image).duration == 0
    whole = image.read_bytes()
    for size in (len(whole) // 2, len(whole) - 200):
        image.write_bytes(whole[:size])
        with pytest.raises(BadClip):  # half a picture is none
            decode(image)
    image.write_bytes(b"no picture " * 50)
    with pytest.raises(BadClip, match="not an image"):
        decode(image)


def test_an_image_is_what_it_holds_and_not_what_it_is_called(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", numbered_frame(5)).rename(tmp_path / "a.JPEG")
    assert numbers(decode(tmp_path / "a.JPEG").video) == [5]


def test_photographs_are_turned_upright(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.jpg", numbered_frame(77))
    orientation = struct.pack(">2sHIHHHIHxxI", b"MM", 42, 8, 1, 0x112, 3, 1, 6, 0)  # a quarter turn clockwise
    exif = b"Exif\0\0" + orientation
    data = image.read_bytes()
    image.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    assert numbers(np.rot90(decode(image).video, 1, axes=(1, 2))) == [77]


@pytest.mark.parametrize("suffix", list(SOUNDS))
def test_sound_alone(tmp_path: Path, suffix: str) -> None:
    sound = write_sound(tmp_path / f"a{suffix}", tone_burst(6.0, 4.0, RATE), RATE)
    assert probe(sound, needs=("audio",)).duration == pytest.approx(6.0, abs=0.05)
    for start, seconds in ((0.0, 2.0), (2.5, 2.0), (4.5, 1.5)):
        span = decode(sound, start, needs=("audio",))
        assert span.video is None
        assert span.audio is not None
        assert len(span.audio) / RATE == pytest.approx(seconds, abs=0.05)
        if start == 2.5:  # raw AAC carries its encoder's delay with it
            assert start + onset(span.audio, RATE) == pytest.approx(4.0, abs=0.03 if suffix == ".aac" else 1e-3)
    with pytest.raises(BadClip, match=r"no sound at 7\.00 s"):
        decode(sound, 7.0, needs=("audio",))
    with pytest.raises(BadClip, match="no video stream"):
        decode(sound)


def test_only_the_sound_of_a_clip_is_read_where_nothing_else_is_asked_for(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.mp4", steady(4.0, 25), tone_burst(1.5, 1.0, RATE))
    span = decode(clip, read=("audio",), needs=("audio",))
    assert span.video is None
    assert span.audio is not None
    assert len(span.audio) / RATE == pytest.approx(1.5, abs=0.03)  # its own end, not that of the pictures
    assert probe(clip, read=("audio",), needs=("audio",)).duration == pytest.approx(1.5, abs=0.03)
    assert onset(span.audio, RATE) == pytest.approx(1.0, abs=1e-3)
    silent = write_clip(tmp_path / "b.mp4", steady(1.0, 25))
    for check in (decode, probe):
        with pytest.raises(BadClip, match="no sound"):
            check(silent, read=("audio",), needs=("audio",))


def test_a_sound_file_cut_off_is_bad_where_it_is_missing(tmp_path: Path) -> None:
    noise = (np.random.default_rng(0).standard_normal(8 * RATE) * 3000).astype(np.int16)
    sound = write_sound(tmp_path / "a.flac", noise, RATE)
    sound.write_bytes(sound.read_bytes()[: sound.stat().st_size // 2])
    assert (np.asarray(decode(sound, 1.0, needs=("audio",)).audio) == noise[RATE : 3 * RATE]).all()
    with pytest.raises(BadClip, match=r"sound ends at [34]\.\d\d s of 8\.00 s") as error:
        decode(sound, 3.0, needs=("audio",))
    assert not error.value.whole


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

    monkeypatch.setattr("vatt.data.decoding.container.Reader._streams", wrong)
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
    honest, read = Reader.packets, 0

    def slow(self: Reader, stream: object) -> object:
        nonlocal read
        for packet in honest(self, stream):  # type: ignore[arg-type]
            read += 1
            yield packet

    monkeypatch.setattr(Reader, "packets", slow)
    monkeypatch.setattr(reader, "time", SimpleNamespace(monotonic=lambda: 0.05 * read))
    with pytest.raises(BadClip, match=r"took longer than 0\.3 s"):
        decode(clip, time_limit=0.3)
    assert 6 <= read <= 8  # of some hundred


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


def test_nothing_waits_for_the_garbage_collector(tmp_path: Path) -> None:
    """It sees few small objects, not FFmpeg's memory behind them: that of hundreds of clips would wait."""
    clip = write_clip(tmp_path / "clip.mp4", steady(2.0, 25), tone_burst(2.0, 0.5, RATE))
    with left_behind() as left:
        probe(clip)
        decode(clip, 0.5)
        decode_span(clip, start=0.0, fps=10.0, frames=4, rate=16_000)
        assert len(read_sound(clip, 16_000, 30.0)) >= 2 * 16_000
    assert not of_ffmpeg(left)


def test_real_avi_frames_come_in_the_order_they_are_shown(shared: Path) -> None:
    path = shared / "data/clips/RATRACE_wave_f_nm_np1_fr_goo_37.avi"  # timestamps 1, 4, 3, 5, 7, 6, ...
    with av.open(str(path)) as container:
        wanted = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    got = decode(path, frames=74, fps=30.0).video
    changes = [0, *(i for i in range(1, len(got)) if (got[i] != got[i - 1]).any())]
    assert len(changes) == len(wanted)
    assert all((got[i] == frame).all() for i, frame in zip(changes, wanted, strict=True))


def test_a_stream_that_no_header_tells_of_does_no_harm(tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "a.flv", steady(20.0, 25))
    data, at = clip.read_bytes(), 13
    for _ in range(250):
        at += 11 + int.from_bytes(data[at + 1 : at + 4], "big") + 4
    sound = b"\x2f\xff\xfb\x90\x64" + bytes(35)  # an MP3 frame in the middle
    tag = b"\x08" + len(sound).to_bytes(3, "big") + (9_900).to_bytes(3, "big") + bytes(4) + sound
    clip.write_bytes(data[:at] + tag + struct.pack(">I", len(tag)) + data[at:])
    assert numbers(decode(clip, 0.0, 210).video) == [n % 256 for n in shown_at(steady(20.0, 25), 0.0, 200)]
