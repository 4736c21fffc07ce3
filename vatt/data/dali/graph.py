"""The DALI graph of the GPU path: encoded clips in, augmented uint8 [R, T, size, size, 3] out, on the GPU or the CPU.

decode (NVDEC, the chosen frames only) -> shrink like the PyAV path -> crop, scale jitter, flip and display orientation
as one bilinear warp in float32 -> the file's own matrix of colours -> colour jitter in float32 -> uint8, rounded once.
What is drawn at random is not drawn here: it comes in as numbers, from the same function as in the PyAV path
(`vatt.data.datasets.augment.draw_video`), so that both paths crop and colour a clip alike. The colour jitter is that of
the same file, in the same order, with DALI's arithmetic: its own `hsv` and `color_twist` are another thing, linear in
YIQ.

How far the two paths may differ: same frames and same taps, so without shrinking by one level of 255 (float32 against
float32, rounded) on top of the colour conversion of the decoders. Shrinking is where they part: here RGB is shrunk with
a triangle filter, there libswscale shrinks Y, U and V, rounded to 8 bits, with its own. On linear ramps every symmetric
filter agrees, see tests/data/test_dali.py for the bound; at edges the difference is that of the filters' widths.

The same function builds the graph for "gpu" and "cpu". The CPU graph runs in the tests (VP9 and MJPEG clips); the GPU
graph has been constructed and serialised, and has never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..datasets.augment import VideoDraw
from ..decoding.orientation import UPRIGHT, Orientation

UNCHANGED = (0.0, 1.0, 1.0, 0.0)  # brightness, saturation, contrast, hue
TINY = 1e-12  # keeps grey and black, whose hue and saturation are 0 whatever they are divided by, from 0 / 0


def build_graph(
    device: str, *, rows: int, size: int, recolour: bool, threads: int = 2, device_id: int | None = None
) -> Any:
    """A `nvidia.dali.Pipeline` for up to `rows` clips at a time, to be fed with `run_graph`.

    `device`: "gpu", or "cpu", which decodes VP8, VP9 and MJPEG only. `threads` decode clips in parallel: as many as
    there are decoding engines keep these busy. One batch at a time is in the pipeline, so that a broken clip spoils its
    own batch and no other. `device_id` None: a graph to look at, which needs no GPU.

    Raises:
        ImportError: DALI is not installed.
    """
    from nvidia.dali import Pipeline, fn, math, types

    pipeline = Pipeline(
        batch_size=rows, num_threads=threads, device_id=device_id, prefetch_queue_depth=1, exec_dynamic=True
    )
    with pipeline:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
        frames = fn.external_source(name="frames", dtype=types.INT32, ndim=1)
        shrunk = fn.external_source(name="shrunk", dtype=types.FLOAT, ndim=1)
        matrix = fn.external_source(name="matrix", dtype=types.FLOAT, ndim=2)
        video = fn.decoders.video(encoded, frames=frames, device="mixed" if device == "gpu" else "cpu")
        video = fn.resize(video, size=shrunk, interp_type=types.INTERP_LINEAR, antialias=True)
        video = fn.warp_affine(
            video, matrix=matrix, size=(size, size), interp_type=types.INTERP_LINEAR, dtype=types.FLOAT
        )
        rgb = fn.external_source(name="rgb", dtype=types.FLOAT, ndim=2)
        video = math.clamp(fn.coord_transform(video, M=rgb), 0.0, 255.0)
        if recolour:
            colour = fn.external_source(name="colour", dtype=types.FLOAT, ndim=5)
            video = _recoloured(video, colour.gpu() if device == "gpu" else colour)
        pipeline.set_outputs(fn.cast(video, dtype=types.UINT8))  # rounds and saturates
    return pipeline


def start_graph(pipeline: Any, inputs: Mapping[str, Sequence[NDArray[Any]]]) -> None:
    """Starts work on one batch. `inputs`: for each input by its name an array a clip, as listed here.

    encoded uint8 [bytes], a whole file; frames int32 [T], positions in order of display; shrunk float32 [2], (height,
    width) after the shrinking; matrix float32 [2, 3] of `warp_matrix`; rgb float32 [3, 3] of
    `colour_matrix`; colour float32 [4, 1, 1, 1, 1], if the graph
    recolours: `VideoDraw.colour` or `UNCHANGED`.
    """
    for name, arrays in inputs.items():
        pipeline.feed_input(name, list(arrays))
    pipeline.schedule_run()


def finish_graph(pipeline: Any) -> Any:
    """Waits for the batch begun last: a `torch.Tensor` uint8 [R, T, size, size, 3], DALI's own memory, not a copy."""
    import torch

    (output,) = pipeline.outputs()
    return torch.from_dlpack(output.as_tensor())


def warp_matrix(
    draw: VideoDraw, size: int, width: int, height: int, orientation: Orientation = UPRIGHT
) -> NDArray[np.float32]:
    """float32 [2, 3]: where in a stored frame of `width` x `height` pixels the corner (x, y) of the output lies.

    `orientation`: what makes the stored frame upright; `draw` is of the upright one.
    """
    upright_w, upright_h = orientation.shown(width, height)
    scale_x, scale_y = upright_w / draw.width, upright_h / draw.height
    one = np.array([0.0, 0.0, 1.0])
    x = np.array([scale_x, 0.0, scale_x * draw.left])
    if draw.mirror:
        x = np.array([-scale_x, 0.0, scale_x * (draw.left + size)])
    y = np.array([0.0, scale_y, scale_y * draw.top])
    if orientation.mirrored:
        x = upright_w * one - x
    if orientation.upside_down:
        y = upright_h * one - y
    return np.stack((y, x) if orientation.transposed else (x, y)).astype(np.float32)


def _recoloured(video: Any, colour: Any) -> Any:
    """`vatt.data.datasets.augment._colour` on DALI's float FHWC in [0, 255], `colour` as in `start_graph`."""
    from nvidia.dali import fn, math, types

    brightness, saturation, contrast, hue = (colour[i] for i in range(4))
    x = video * (1 / 255) + brightness
    value, spread = _value_and_spread(x)
    x = (x - value) * math.clamp(value / math.max(spread, TINY), 0.0, saturation) + value
    mean = fn.reductions.mean(x, axes=[1, 2], keep_dims=True)
    x = (x - mean) * contrast + mean

    red, green, blue = (x[:, :, :, i : i + 1] for i in range(3))
    value, spread = _value_and_spread(x)
    by_red = fn.cast(red == value, dtype=types.FLOAT)
    by_green = fn.cast(green == value, dtype=types.FLOAT) * (1.0 - by_red)
    by_blue = 1.0 - by_red - by_green
    ahead = by_red * (green - blue) + by_green * (blue - red) + by_blue * (red - green)
    turned = ahead / math.max(spread, TINY) + by_green * 2.0 + by_blue * 4.0 + hue * 6.0  # sixths of a turn
    channels = []
    for offset in (5.0, 3.0, 1.0):
        k = turned + offset
        k = k - math.floor(k * (1 / 6)) * 6.0
        channels.append(value - math.clamp(math.min(k, 4.0 - k), 0.0, 1.0) * spread)
    return math.clamp(fn.cat(*channels, axis=3), 0.0, 1.0) * 255.0


def _value_and_spread(x: Any) -> tuple[Any, Any]:
    from nvidia.dali import fn

    value = fn.reductions.max(x, axes=[3], keep_dims=True)
    return value, value - fn.reductions.min(x, axes=[3], keep_dims=True)
