"""FLOPs of the video encoder: 2 x MAC of every product of the model, Q K^T included.

Softmax, norms, GELU, biases and residual sums are not counted. These are true counts; the GFLOPs printed in the paper's
tables follow another rule, which leaves Q K^T out.

Legend: n patches of the whole grid, N tokens in the encoder (kept patches + AGG), d width, a = heads x head width,
f MLP width, L layers, P values a patch.

    projection  2 P d n                      n = kept patches where tokens are dropped before projecting, else all
    dense       2 N (4 d a + 2 d f) L        q, k, v, output; two MLP layers
    attention   2 N N 2 a L                  Q K^T and P V

Backward: a product y = x W needs two products of the same size, one for W and one for x, and Q K^T and P V likewise, so
twice the forward. The projection's input is pixels, which need no gradient: once the forward. Scores that an
implementation computes again in its backward are its own expense and are not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vatt.config import EncoderConfig, VideoConfig


@dataclass(frozen=True)
class Flops:
    """Products of one clip, in FLOPs."""

    projection: int
    dense: int
    attention: int

    @property
    def forward(self) -> int:
        return self.projection + self.dense + self.attention

    @property
    def backward(self) -> int:
        return self.projection + 2 * (self.dense + self.attention)

    @property
    def step(self) -> int:
        """Forward and backward."""
        return self.forward + self.backward


def video_flops(encoder: EncoderConfig, video: VideoConfig, kept: int | None = None, *, project_all: bool) -> Flops:
    """FLOPs of the video tokeniser and encoder for one clip of which `kept` patches (None: all) enter the encoder.

    project_all: whether dropped patches are projected too, as the literal model does.
    """
    kept = video.tokens if kept is None else kept
    tokens = kept + 1
    inner = encoder.heads * encoder.head_width
    values = math.prod(video.patch) * 3
    return Flops(
        projection=2 * values * encoder.width * (video.tokens if project_all else kept),
        dense=encoder.layers * 2 * tokens * (4 * encoder.width * inner + 2 * encoder.width * encoder.mlp),
        attention=encoder.layers * 2 * tokens * tokens * 2 * inner,
    )
