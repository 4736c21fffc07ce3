"""Files that releases of PyAV and FFmpeg read differently give the same with each of them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from helpers.media import numbers, steady, write_clip
from helpers.media_alone import write_sound

from vatt.data.decoding.audio import PaddingCut, read_sound
from vatt.data.decoding.container import BadClip, probe
from vatt.data.decoding.span import decode_span

RATE = 48_000


@pytest.mark.parametrize("samples", [47_000, 48_000])
def test_sound_of_mp4_ends_where_the_track_does(samples: int, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.m4a", np.full(samples, 9000, np.int16), RATE)
    with av.open(str(path)) as container:
        duration = container.streams.audio[0].duration
    assert duration is not None
    assert duration <= samples
    sound = read_sound(path, RATE, 30.0)
    assert len(sound) == duration
    span = decode_span(path, start=0.0, fps=10, frames=20, rate=RATE, needs=())
    assert span.audio is not None
    np.testing.assert_array_equal(span.audio, sound)


class Frames:
    """A track whose header declares half of what there is."""

    duration, start_time, time_base = 2048, 0, Fraction(1, RATE)


def test_sound_far_beyond_the_declared_end_is_kept(tmp_path: Path) -> None:
    """A header may declare less than there is: only padding, less than a packet, is cut."""
    path = write_sound(tmp_path / "a.m4a", np.full(8192, 9000, np.int16), RATE)
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
        cut = PaddingCut(container, Frames())  # type: ignore[arg-type]
        kept = cut(frames) + cut.rest()
    assert sum(frame.samples for frame in kept) == sum(frame.samples for frame in frames) >= 8192


def test_metadata_in_any_encoding_fail_no_clip(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_clip(path, steady(1.0, 10), video_codec="mpeg4", ticks=10)
    data = path.read_bytes()
    name = data.index(b"Lavf")
    path.write_bytes(data[:name] + b"\xe9\xff\xfe\x80" + data[name + 4 :])
    assert probe(path).has_video


def test_animated_webp_is_a_video_where_it_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    if "libwebp_anim" not in av.codecs_available:
        pytest.skip("this FFmpeg has no encoder of animated WebP")
    with av.open(str(path), "w", format="webp") as container:
        stream = container.add_stream("libwebp_anim", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "bgra"
        for i in range(8):
            pixels = np.full((64, 64, 4), 255, np.uint8)
            pixels[..., :3] = 255 if i % 2 else 0
            frame = av.VideoFrame.from_ndarray(pixels, "bgra")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    if av.library_versions["libavformat"][0] < 63:  # FFmpeg 8 and older
        with pytest.raises(BadClip):
            decode_span(path, start=0.0, fps=10, frames=8, rate=8000)
        return
    span = decode_span(path, start=0.0, fps=10, frames=8, rate=8000)
    assert span.video is not None
    assert [n > 0 for n in numbers(span.video)] == [False, True] * 4
