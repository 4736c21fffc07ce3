"""Checkpoint variables of the official models and the parameters of ours that hold them.

A variable's name is its checkpoint key up to `/.ATTRIBUTES/VARIABLE_VALUE`. The layouts differ in three ways: dense
kernels are [in, out] there and [out, in] here; a convolution kernel [t, h, w, 3, out] is the matrix [t*h*w*3, out]
here, without a transpose; q, k and v are three layers there and the three thirds (rows) of one here.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from torch import Tensor

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
SLOT = "/.OPTIMIZER_SLOT/optimizer/"
MODEL = "model/layer_with_weights-0/"
_BOOKKEEPING = re.compile(r"_CHECKPOINTABLE_OBJECT_GRAPH|save_counter|optimizer/(iter|beta_1|beta_2|decay|momentum)")


class Place(NamedTuple):
    """Where a variable lives in our model: tensor `name`, or the third `third` (0 q, 1 k, 2 v) of its rows.

    `transpose`: our tensor is the variable transposed. Otherwise both hold the same numbers in the same order.
    """

    name: str
    third: int | None = None
    transpose: bool = False

    def __str__(self) -> str:
        rows = "" if self.third is None else f"[{'qkv'[self.third]}]"
        return f"{self.name}{rows}{' transposed' if self.transpose else ''}"

    def part(self, tensor: Tensor) -> Tensor:
        """Return the rows of our tensor that belong to the variable (a view)."""
        return tensor if self.third is None else tensor.chunk(3)[self.third]

    def shape(self, ours: Tensor, official: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape the variable must have for our tensor.

        `official` says how a convolution kernel is split up.
        """
        part = tuple(self.part(ours).shape)
        if self.transpose:
            return part[::-1]
        is_convolution = len(official) in (3, 5) and len(part) == 2
        if is_convolution and official[-1] == part[1] and math.prod(official[:-1]) == part[0]:
            return official
        return part

    def to_ours(self, value: Tensor, ours: Tensor) -> Tensor:
        """Return the variable's value in the shape of our part of `ours`."""
        return value.T if self.transpose else value.reshape(self.part(ours).shape)

    def to_official(self, ours: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return our tensor (a weight or its gradient) in the layout of the variable."""
        part = self.part(ours)
        return part.T if self.transpose else part.reshape(shape)


_LEAF = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

# Inside an encoder. Groups: layer, what, leaf.
_LAYER = re.compile(
    r"layers/(?P<layer>\d+)/(?:"
    r"(?P<attention_norm>(?:self_attention/)?layer_norm)"
    r"|(?:mha|self_attention/attention)/(?P<projection>[qkvo])"
    r"|(?P<mlp_norm>feed_forward/layer_norm)"
    r"|feed_forward/mlp/(?P<mlp>wi|wo)"
    r")/(?P<leaf>kernel|bias|gamma|beta|weight)"
)
_TABLES = {"temporal": 0, "vertical": 1, "horizontal": 2}
_HEAD = {
    "vid_to_hid": "video_hidden",
    "hid_to_va/pre_bn": "video_hidden_norm",
    "hid_to_va/dense": "video_audio",
    "hid_to_va/bn": "video_audio_norm",
    "va_to_vat/dense": "video_text",
    "va_to_vat/bn": "video_text_norm",
    "aud_to_va": "audio",
    "txt_to_vat": "text",
}
_SPECIFIC = {"vid": "video", "aud": "audio"}
_MODALITY = {**_SPECIFIC, "txt": "text"}


def variable(key: str) -> str | None:
    """Return the model variable that `key` holds the value of; None for optimiser state and bookkeeping.

    Anything that is neither counts as a model variable, so that nothing unknown is passed over.
    """
    name = key.removesuffix(VALUE)
    return None if SLOT in name or _BOOKKEEPING.fullmatch(name) else name


def place(name: str, fine_tuned: str | None, agnostic: bool) -> Place | None:
    """Return our place for the model variable `name`; None when it is none of ours.

    `fine_tuned`: the modality of a fine-tuned model, None for a pre-trained one. `agnostic`: one shared encoder.
    """
    if not name.startswith(MODEL):
        return None
    path = name.removeprefix(MODEL)
    if fine_tuned is not None:
        if path.startswith("_ops/cls/"):
            return _dense("head.linear", path.removeprefix("_ops/cls/"))
        if not path.startswith("_base/"):
            return None
        return _tower(path.removeprefix("_base/"), fine_tuned, "shared" if agnostic else fine_tuned)
    head, _, leaf = path.removeprefix("_head_layer/_bridge_heads/0/").rpartition("/")
    if path.startswith("_head_layer/_bridge_heads/0/"):
        return _dense(f"head.{_HEAD[head]}", leaf) if head in _HEAD else None
    if agnostic:
        root = "_base_layer/unified_backbone/unified_transformer/"
        return _unified(path.removeprefix(root)) if path.startswith(root) else None
    match = re.fullmatch(r"_base_layer/(?:(vid|aud)_backbone/_base|(txt)_backbone)/(.+)", path)
    if match is None:
        return None
    if match[2]:
        return _text(match[3])
    return _tower(match[3], _SPECIFIC[match[1]], _SPECIFIC[match[1]])


def _dense(ours: str, leaf: str) -> Place | None:
    if leaf not in {"bias", *_LEAF}:
        return None
    return Place(f"{ours}.{_LEAF.get(leaf, leaf)}", transpose=leaf == "kernel")


def _tower(path: str, modality: str, encoder: str) -> Place | None:
    """Return video or audio model of its own: pre-trained, or fine-tuned from either kind."""
    tokens = f"backbone.tokens.{modality}"
    patch = {"video": "voxel_to_patch", "audio": "wave_to_patch"}[modality]
    head, _, leaf = path.partition("/")
    if path == "agg_embedding":
        return Place(f"{tokens}.agg")
    if head == patch and leaf in ("kernel", "bias"):
        return Place(f"{tokens}.{_LEAF.get(leaf, leaf)}")
    if head == "pre_proj":
        return _dense(f"{tokens}.inner", leaf)
    if head == "post_proj":
        return _dense(f"backbone.post.{modality}", leaf)
    if head == "pos_embedding_lookup":
        return _positions(leaf, tokens)
    return _encoder(leaf, f"backbone.encoder.{encoder}") if head == "tx" else None


def _text(path: str) -> Place | None:
    """Return the T5-style text model of the modality-specific family."""
    fixed = {
        "agg_embedding": Place("backbone.tokens.text.agg"),
        "embedding/embeddings": Place("backbone.tokens.text.embedding.weight"),
        "pre_proj/kernel": Place("backbone.tokens.text.inner.weight", transpose=True),
        "base_lm/final_layer_norm/weight": Place("backbone.encoder.text.norm.weight"),
        "base_lm/layers/0/self_attention/attention/relative_attention_bias/embeddings": Place(
            "backbone.encoder.text.bias_table"
        ),
    }
    if path in fixed:
        return fixed[path]
    return _encoder(path.removeprefix("base_lm/"), "backbone.encoder.text") if path.startswith("base_lm/") else None


def _unified(path: str) -> Place | None:
    """Return the modality-agnostic model: everything but the encoder exists once a modality."""
    if match := re.fullmatch(r"(vid|aud|txt)_agg_embedding", path):
        return Place(f"backbone.tokens.{_MODALITY[match[1]]}.agg")
    if path.startswith("tx/"):
        return _encoder(path.removeprefix("tx/"), "backbone.encoder.shared")
    match = re.fullmatch(r"(raw_to_embeddings|pre_proj|pos_embedding_lookup|post_proj)/(video|audio|text)/(.+)", path)
    if match is None:
        return None
    layer, modality, leaf = match.groups()
    tokens = f"backbone.tokens.{modality}"
    if layer == "pre_proj":
        return _dense(f"{tokens}.inner", leaf)
    if layer == "post_proj":
        return _dense(f"backbone.post.{modality}", leaf)
    if layer == "pos_embedding_lookup":
        return _positions(leaf, tokens)
    if modality == "text":
        return Place(f"{tokens}.embedding.weight") if leaf == "embeddings" else None
    return Place(f"{tokens}.{_LEAF.get(leaf, leaf)}") if leaf in ("kernel", "bias") else None


def _positions(path: str, tokens: str) -> Place | None:
    if path in ("layernorm/gamma", "layernorm/beta"):
        return Place(f"{tokens}.position.norm.{_LEAF[path.removeprefix('layernorm/')]}")
    match = re.fullmatch(r"(temporal|vertical|horizontal)_position_embeddings/embeddings", path)
    return Place(f"{tokens}.position.tables.{_TABLES[match[1]]}") if match else None


def _encoder(path: str, encoder: str) -> Place | None:
    if path in ("final_layer_norm/gamma", "final_layer_norm/beta"):
        return Place(f"{encoder}.norm.{_LEAF[path.removeprefix('final_layer_norm/')]}")
    match = _LAYER.fullmatch(path)
    if match is None:
        return None
    layer, leaf = f"{encoder}.layers.{match['layer']}", _LEAF.get(match["leaf"], match["leaf"])
    if match["attention_norm"]:
        return Place(f"{layer}.attention_norm.{leaf}")
    if match["mlp_norm"]:
        return Place(f"{layer}.mlp_norm.{leaf}")
    transpose = match["leaf"] == "kernel"
    if match["mlp"]:
        return Place(f"{layer}.mlp.{match['mlp']}.{leaf}", transpose=transpose)
    if match["projection"] == "o":
        return Place(f"{layer}.attention.out.{leaf}", transpose=transpose)
    return Place(f"{layer}.attention.qkv.{leaf}", third="qkv".index(match["projection"]), transpose=transpose)
