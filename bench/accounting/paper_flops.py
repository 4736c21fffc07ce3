"""The paper's GFLOPs (Tables 1, 5 and 6), op by op: what TensorFlow's profiler of that time counts in the release.

They are not 2 x MAC of the model:

- counted: matrix products and convolutions at 2 x MAC, 1 for each element of a bias, a product, a quotient, a
  difference and a mean, 5 for each of a softmax; a dropout is 2 products and 1 comparison an element.
- not counted: einsum, and with it all of Q K^T (P V is a plain product and counted); sums (residuals, masks, the
  1 + erf of GELU), erf, gathers, concatenations.
- weights are initialised in the same graph: 2 for each random number.
- all patches are projected and given a position before DropToken; N = kept + 1 tokens reach the encoder.
- rows with DropToken are training graphs, with all their dropouts; rows without it are evaluation graphs.

The closed form reproduces every row of Table 6 within 0.01 % and Table 1 to the printed digits (there without
initialisers). In Table 5 it leaves 0.1 to 0.4 %, less with one text row more (drop rows) or four to five (0 %) than the
one counted here; what those rows are is not established.

Legend as in `flops`; h heads. Forward only: the paper gives no other.
"""

from __future__ import annotations

import math
from collections import Counter

from vatt.config.model import EncoderConfig, ModelConfig, kept_tokens

from .flops import encoder_of, head_flops

GELU = 3  # x * 0.5 * (1 + erf(x / sqrt 2)): two products and a quotient; the sum and erf are free
NORM = 8  # mean, squared difference, mean, and five elementwise products and differences
RMS_NORM = 4  # square, mean, two products
DROPOUT = 3


def encoder_ops(encoder: EncoderConfig, tokens: int, *, training: bool, t5: bool = False) -> Counter[str]:
    """Return one sequence. The `t5` encoder has no biases, and RMS norms before attention and at its end."""
    d, f, layers, n = encoder.width, encoder.mlp, encoder.layers, tokens
    inner = encoder.heads * encoder.head_width
    ops = Counter(
        {
            "dense products": layers * 2 * n * (4 * d * inner + 2 * d * f),
            "P V": layers * 2 * n * n * inner,
            "softmax and scale": layers * 6 * n * n * encoder.heads,
            "GELU": layers * GELU * n * f,
            "biases": 0 if t5 else layers * n * (3 * inner + 2 * d + f),
            "norms": n * d * (NORM * layers + (RMS_NORM if t5 else NORM) * (layers + 1)),
        }
    )
    if training:
        elements = layers * (n * n * encoder.heads + 2 * n * d + n * f) + n * d
        ops["dropout"] = DROPOUT * elements
    return ops


def modality_ops(model: ModelConfig, modality: str) -> Counter[str]:
    """Return the operations of tokeniser and encoder for one clip, of text for one caption.

    It is a training graph where `model.drop.rate` > 0.
    """
    encoder, agnostic, training = encoder_of(model, modality), model.kind == "agnostic", model.drop.rate > 0
    d = encoder.width
    if modality == "text":
        words = model.text.words
        tokens, dense = words + 1, 2 * (words if agnostic else words + 1) * model.text.embedding * d
        ops = Counter({"dense products": dense, "GELU": GELU * (tokens - agnostic) * d})
        ops += encoder_ops(encoder, tokens, training=training, t5=not agnostic)
        if training:
            ops["dropout"] += DROPOUT * tokens * d
    else:
        patches = model.video.tokens if modality == "video" else model.audio.tokens
        tokens = kept_tokens(patches, model.drop.rate) + 1
        ops = Counter({"patch products": 2 * _values(model, modality) * d * patches, "biases": patches * d})
        ops["norms"] += NORM * patches * d  # of the positions
        if agnostic:
            ops += _layer(patches, d, d)
        ops += encoder_ops(encoder, tokens, training=training)
        if training:
            ops["dropout"] += DROPOUT * patches * d
    if agnostic:
        if modality == "text":
            ops += Counter({"biases": model.text.words * d, "norms": NORM * model.text.words * d})
        ops += _layer(tokens, d, model.post_width)
    return ops


def _layer(rows: int, inputs: int, outputs: int) -> Counter[str]:
    """Return a linear layer with bias and GELU."""
    products = 2 * rows * inputs * outputs
    return Counter({"dense products": products, "biases": rows * outputs, "GELU": GELU * rows * outputs})


def _values(model: ModelConfig, modality: str) -> int:
    return math.prod(model.video.patch) * 3 if modality == "video" else model.audio.patch


def encoder_weights(encoder: EncoderConfig) -> int:
    """Return randomly initialised weights of an encoder: matrices; biases and norms start as constants."""
    return encoder.layers * (4 * encoder.width * encoder.heads * encoder.head_width + 2 * encoder.width * encoder.mlp)


def tokeniser_weights(model: ModelConfig, modality: str) -> int:
    """Return randomly initialised weights around the encoder of `modality`: projections, position tables, AGG,
    words.
    """
    d, agnostic = encoder_of(model, modality).width, model.kind == "agnostic"
    after = d * model.post_width if agnostic else 0
    if modality == "text":
        text, encoder = model.text, encoder_of(model, modality)
        around = text.words * d + d if agnostic else text.buckets * encoder.heads + text.embedding
        return text.vocabulary * text.embedding + text.embedding * d + around + after
    rows = sum(model.video.tables or model.video.grid) if modality == "video" else model.audio.tokens
    return _values(model, modality) * d + (rows + 1) * d + (d * d if agnostic else 0) + after


def video_paper_flops(model: ModelConfig, *, initialisers: bool = True) -> Counter[str]:
    """Return FLOPs of the video backbone for one clip as Table 6 counts them (`initialisers=False`: as Table 1), by
    kind.

    `model.drop.rate` > 0 is a row with DropToken; `.total()` of what is returned is the row.
    """
    ops = modality_ops(model, "video")
    if initialisers:
        weights = encoder_weights(encoder_of(model, "video")) + tokeniser_weights(model, "video")
        ops["initialisers"] = 2 * weights
    return ops


def vatt_paper_flops(model: ModelConfig, *, text_rows: int = 1, initialisers: bool = True) -> Counter[str]:
    """Return FLOPs of the whole model for one clip as Table 5 counts them, by kind; `text_rows` captions."""
    ops = modality_ops(model, "video") + modality_ops(model, "audio")
    for _ in range(text_rows):
        ops += modality_ops(model, "text")
    head = model.head
    ops["dense products"] += head_flops(model, text_rows).forward
    ops["biases"] += head.video_audio + text_rows * head.video_text
    ops["norms"] += 5 * (2 * head.video_audio + head.video_text)  # batch norm with moving statistics
    if initialisers:
        kinds = ("video",) if model.kind == "agnostic" else ("video", "audio", "text")
        weights = sum(encoder_weights(encoder_of(model, m)) for m in kinds)
        weights += sum(tokeniser_weights(model, m) for m in ("video", "audio", "text"))
        ops["initialisers"] = 2 * weights + head_flops(model, 1).forward  # a product of one row is 2 for each weight
    return ops
