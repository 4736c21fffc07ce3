"""What differs between the releases of libraries that this project runs with, each with the releases it differs in.

PyAV 14.1 to 19 brings FFmpeg 7.1 to 9. Older releases tell no cover picture from a video.
"""

from __future__ import annotations

from typing import Any

import av
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

_PYAV = tuple(int(part) for part in av.__version__.split(".")[:2])

# PyAV decodes a container's metadata when it opens it. Up to release 18 a byte that is no UTF-8 (old AVI files hold any
# encoding) fails the file unless told otherwise; from release 19 on there is no such argument, and no such failure. The
# metadata are of no use here and must not fail a clip.
OPEN_OPTIONS: dict[str, Any] = {} if _PYAV >= (19, 0) else {"metadata_errors": "ignore"}

# FFmpeg 9 (PyAV 19) has a format of its own for animated WebP, which FFmpeg 8 refuses as damaged; a name that a release
# does not know is no error in a list of allowed formats.
ANIMATED_WEBP = "webp_anim"


def frame_duration(frame: VideoFrame, of_packet: int) -> int:
    """Return how long a frame is shown, in its time base; 0 where that is not known.

    Before PyAV 15 a frame does not tell: then it is what the packet with its timestamp tells.
    """
    return getattr(frame, "duration", of_packet) or 0


def converted(
    reformatter: VideoReformatter, frame: VideoFrame, width: int, height: int, pixel_format: str
) -> VideoFrame:
    """Return `frame` in another size and pixel format, converted by the calling thread alone.

    From PyAV 17 on the conversion starts threads unless told not to; before, it had none and no such argument.
    """
    single: dict[str, Any] = {"threads": 1} if _PYAV >= (17, 0) else {}
    return reformatter.reformat(frame, width, height, pixel_format, **single)
