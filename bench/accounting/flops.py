"""True FLOPs: 2 x MAC of every product of the model, Q K^T included, forward and backward.

Softmax, norms, GELU, biases, residual sums and gathers are not counted, nor the spline that resamples position tables
of another grid (once a call, whatever the batch). The GFLOPs printed in the paper's tables follow another rule, which
leaves Q K^T out: `paper_flops`.

Legend: n patches of the whole grid, K kept ones, N tokens in the encoder (K + AGG), d width, a = heads x head width,
f MLP width, L layers, P values a patch, B clips, C captions a clip, D width of a common space, p width after an
agnostic encoder.

    projection  2 P d n                      n = kept patches where tokens are dropped before projecting, else all
    dense       2 N (4 d a + 2 d f) L        q, k, v, output; two MLP layers
    attention   2 N N 2 a L                  Q K^T and P V
    words       2 N 300 d                    the text tokeniser's layer, a caption; AGG passes it in a specific model
    agnostic    2 K d d + 2 N d p            before the positions (video, audio) and after the encoder
    head        one product a layer          video 3, audio 1, text 1 (a caption)
    loss        2 B B C D 2 + 2 B C D        a pair of modalities: both directions and the positives; C = 1 for audio

Backward: a product y = x W needs two products of the same size, one for W and one for x, and Q K^T, P V and the loss
likewise, so twice the forward. A projection's input is pixels or samples, which need no gradient: once the forward.
Scores that an implementation computes again in its backward are its own expense and are not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from vatt.config.model import AudioConfig, EncoderConfig, ModelConfig, VideoConfig, kept_tokens
from vatt.model.vatt import MODALITIES


@dataclass(frozen=True)
class Flops:
    """Products in FLOPs. `projection`: those whose input needs no gradient; `dense`: all others but `attention`."""

    projection: int = 0
    dense: int = 0
    attention: int = 0

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

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.projection + other.projection, self.dense + other.dense, self.attention + other.attention)

    def __rmul__(self, times: int) -> Flops:
        return Flops(times * self.projection, times * self.dense, times * self.attention)


def encoder_flops(encoder: EncoderConfig, tokens: int) -> Flops:
    """Return one sequence of `tokens` tokens, AGG among them."""
    inner = encoder.heads * encoder.head_width
    return Flops(
        dense=encoder.layers * 2 * tokens * (4 * encoder.width * inner + 2 * encoder.width * encoder.mlp),
        attention=encoder.layers * 2 * tokens * tokens * 2 * inner,
    )


def video_flops(encoder: EncoderConfig, video: VideoConfig, kept: int | None = None, *, project_all: bool) -> Flops:
    """Return FLOPs of the video tokeniser and encoder for one clip of which `kept` patches (None: all) enter the
    encoder.

    project_all: whether dropped patches are projected too, as the literal model does.
    """
    return _patch_flops(encoder, math.prod(video.patch) * 3, video.tokens, kept, project_all)


def audio_flops(encoder: EncoderConfig, audio: AudioConfig, kept: int | None = None, *, project_all: bool) -> Flops:
    """Return the same for one waveform."""
    return _patch_flops(encoder, audio.patch, audio.tokens, kept, project_all)


def _patch_flops(encoder: EncoderConfig, values: int, patches: int, kept: int | None, project_all: bool) -> Flops:
    kept = patches if kept is None else kept
    projected = patches if project_all else kept
    return Flops(projection=2 * values * encoder.width * projected) + encoder_flops(encoder, kept + 1)


def encoder_of(model: ModelConfig, modality: str) -> EncoderConfig:
    if model.kind == "agnostic":
        return model.shared_encoder
    return {"video": model.video_encoder, "audio": model.audio_encoder, "text": model.text_encoder}[modality]


def backbone_flops(model: ModelConfig, modality: str, *, drop: bool, project_all: bool) -> Flops:
    """Return the FLOPs of tokeniser and encoder of `modality` for one clip, of text for one caption.

    drop: whether DropToken leaves out the share `model.drop.rate` of video or audio.
    """
    encoder, agnostic = encoder_of(model, modality), model.kind == "agnostic"
    width = encoder.width
    if modality == "text":
        text = model.text
        words = 2 * text.embedding * width * (text.words if agnostic else text.words + 1)
        # An agnostic model's AGG joins later: without it the layer's input is the word table alone.
        frozen = agnostic and text.freeze_embedding
        kept = text.words
        total = Flops(projection=words) if frozen else Flops(dense=words)
        total += encoder_flops(encoder, kept + 1)
    else:
        patches = model.video.tokens if modality == "video" else model.audio.tokens
        kept = kept_tokens(patches, model.drop.rate, model.drop.align) if drop else patches
        if modality == "video":
            total = video_flops(encoder, model.video, kept, project_all=project_all)
        else:
            total = audio_flops(encoder, model.audio, kept, project_all=project_all)
        if agnostic:
            total += Flops(dense=2 * kept * width * width)
    if agnostic:
        total += Flops(dense=2 * (kept + 1) * width * model.post_width)
    return total


def head_flops(model: ModelConfig, captions: int) -> Flops:
    """Return the common-space head for one clip with `captions` captions."""
    audio_space, text_space = model.head.video_audio, model.head.video_text
    agnostic = model.kind == "agnostic"
    video, audio, text = (model.post_width if agnostic else encoder_of(model, m).width for m in MODALITIES)
    of_video = video * audio_space + audio_space * audio_space + audio_space * text_space
    return Flops(dense=2 * (of_video + audio * audio_space + captions * text * text_space))


def loss_flops(model: ModelConfig, batch: int) -> Flops:
    """Return both contrastive pairs of a whole batch, as the literal loss computes them."""
    pairs = ((1, model.head.video_audio), (model.text.captions, model.head.video_text))
    return Flops(dense=sum(2 * batch * candidates * width * (2 * batch + 1) for candidates, width in pairs))


def vatt_flops(model: ModelConfig, *, drop: bool, project_all: bool, batch: int = 1, loss: bool = False) -> Flops:
    """Return the whole model for a batch of clips with `model.text.captions` captions each; with `loss` that too."""
    video, audio, text = (backbone_flops(model, m, drop=drop, project_all=project_all) for m in MODALITIES)
    captions = model.text.captions
    total = batch * (video + audio + captions * text + head_flops(model, captions))
    return total + loss_flops(model, batch) if loss else total
