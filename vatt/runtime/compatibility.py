"""What differs between the releases of libraries that this project runs with, each with the releases it differs in.

PyAV 14.1 to 19 brings FFmpeg 7.1 to 9. Older releases tell no cover picture from a video.
"""

from __future__ import annotations

import gc
from typing import Any

import av
from av.codec import Codec
from av.filter import Graph
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

_PYAV = tuple(int(part) for part in av.__version__.split(".")[:2])

# PyAV decodes a container's metadata when it opens it. Up to release 18 a byte that is no UTF-8 (old AVI files hold any
# encoding) fails the file unless told otherwise; from release 19 on there is no such argument, and no such failure. The
# metadata are of no use here and must not fail a clip.
OPEN_OPTIONS: dict[str, Any] = {} if _PYAV >= (19, 0) else {"metadata_errors": "ignore"}


def options_of_streams(options: list[dict[str, str]] | None) -> dict[str, Any]:
    """Return the argument of `av.open` that gives each stream's decoder options; release 19 has no such argument.

    They save time and change nothing: without them pictures are looked at in a file that is opened for its sound.
    """
    return {"stream_options": options} if options is not None and _PYAV < (19, 0) else {}


# Before release 14.2 a stream that is made after another one is opened to encode, with the encoder's parameters in its
# header: packets of H.264 that are copied into it cannot be decoded, and those of AV1 not be copied.
COPIES_PACKETS = _PYAV >= (14, 2)

# FFmpeg 9 (PyAV 19) has a format of its own for animated WebP, which FFmpeg 8 refuses as damaged; a name that a release
# does not know is no error in a list of allowed formats.
ANIMATED_WEBP = "webp_anim"

# libswscale shrinks 4:2:0 frames to an even width with half the colours across, and by another route that takes two
# levels of 255 off white and grey; to an odd width it interpolates all colours, and white stays white. Flags that ask
# for the second at every width. As a number: PyAV combines its own names from release 18 on only.
SCALING = 2 | 0x2000  # bilinear, and "full chroma horizontal interpolation"


def one_thread(graph: Graph) -> Graph:
    """Keep a graph without filters from starting a thread for each core; PyAV can from release 17.0.1 on only."""
    if hasattr(graph, "threads"):
        graph.threads = 1
    return graph


def release(graph: Graph) -> None:
    """Free a graph of filters, which must not be used afterwards.

    From release 19 on a filter holds its graph, as the graph holds its filters: a circle that waits for Python's
    garbage collector, which sees a few small objects and not FFmpeg's memory behind them, 60 to 300 KB a sound.
    """
    for held in gc.get_referents(graph):
        if isinstance(held, dict):  # the graph's own, of its filters
            held.clear()


def frame_duration(frame: VideoFrame, of_packet: int) -> int:
    """Return how long a frame is shown, in its time base; 0 where that is not known.

    Before PyAV 15 a frame does not tell: then it is what the packet with its timestamp tells.
    """
    return getattr(frame, "duration", of_packet) or 0


# PyAV up to 18.1 fails on all side data of a frame when FFmpeg attached some of a type that PyAV has no name for, such
# as the EXIF data of FFmpeg 8 and the view of MV-HEVC. Such a type gets a name; those that PyAV knows are untouched.
def _unnamed(cls: type[SideDataType], value: object) -> Any:
    member: Any = object.__new__(cls)
    member._name_, member._value_ = f"UNNAMED_{value}", value
    return member


SideDataType._missing_ = classmethod(_unnamed)  # type: ignore[assignment, method-assign]


def display_matrix(frame: VideoFrame) -> bytes | None:
    """Return the nine int32 of a frame's display matrix, in the machine's byte order; None where it has none."""
    # `frame.side_data` is kept by the frame that it keeps: such frames would wait for the garbage collector.
    made_of: Any = SideDataContainer
    data = made_of(frame).get(SideDataType.DISPLAYMATRIX)
    return None if data is None else bytes(data)


# Decoders that are not named for what they decode.
_DECODERS = {"libdav1d": "av1", "libaom-av1": "av1", "libvpx": "vp8", "libvpx-vp9": "vp9"}


def codec_name(codec: Codec) -> str:
    """Return what a decoder decodes, h264 or av1, whatever its own name is. PyAV 14.1 tells that name only."""
    return getattr(codec, "canonical_name", None) or _DECODERS.get(codec.name, codec.name)


def converted(
    reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int, pixel_format: str
) -> VideoFrame:
    """Return `frame` in another size and pixel format, converted by the calling thread alone.

    From PyAV 17 on the conversion starts threads unless told not to; before, it had none and no such argument.
    """
    options: dict[str, Any] = {"threads": 1} if _PYAV >= (17, 0) else {}
    if (width, height) != (frame.width, frame.height):
        options["interpolation"] = SCALING
    return reformatter.reformat(frame, width, height, pixel_format, **options)
