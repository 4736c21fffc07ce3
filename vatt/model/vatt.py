"""The models: `VATT` (pre-training: three modalities into common spaces) and `Classifier` (one modality, fine-tuning).

Shapes: B batch, N tokens with AGG first, D width of the backbone's output. Source: paper sections 3.1-3.4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.model import EncoderConfig, ModelConfig
from ..errors import ConfigError
from ..ops import REFERENCE, Ops
from .heads import ClassHead, CommonSpace, Embeddings, Pooled
from .initializers import linear
from .randomness import BatchRows, mix_seed
from .tokens import AudioTokens, TextTokens, VideoTokens
from .transformer import Encoder

MODALITIES = ("video", "audio", "text")


class Backbone(nn.Module):
    """Tokenisers and encoders of the given modalities.

    `kind` "specific": an encoder each. "agnostic": Linear + GELU before the positions, one shared encoder that is
    called once a modality (sequences are never mixed), Linear + GELU to `post_width` after it.
    """

    def __init__(self, config: ModelConfig, ops: Ops = REFERENCE, modalities: tuple[str, ...] = MODALITIES):
        super().__init__()
        if config.kind not in ("specific", "agnostic"):
            raise ConfigError(f'model.kind is "specific" or "agnostic", got {config.kind!r}')
        self.config = config
        agnostic = config.kind == "agnostic"
        self.tokens = nn.ModuleDict()
        self.encoder = nn.ModuleDict()
        self.post = nn.ModuleDict()
        if agnostic:
            self.encoder["shared"] = Encoder(config.shared_encoder, ops)
        for name in modalities:
            encoder = self.encoder_config(name)
            if name == "video":
                self.tokens[name] = VideoTokens(
                    config.video, encoder.width, inner=agnostic, drop=config.drop, dropout=encoder.dropout, ops=ops
                )
            elif name == "audio":
                self.tokens[name] = AudioTokens(
                    config.audio, encoder.width, inner=agnostic, drop=config.drop, dropout=encoder.dropout, ops=ops
                )
            else:
                self.tokens[name] = TextTokens(config.text, encoder.width, positions=agnostic, dropout=encoder.dropout)
            if agnostic:
                self.post[name] = linear(encoder.width, config.post_width)
            elif name == "text":
                text = config.text
                self.encoder[name] = Encoder(encoder, ops, buckets=text.buckets, max_distance=text.max_distance)
            else:
                self.encoder[name] = Encoder(encoder, ops)

    def encoder_config(self, modality: str) -> EncoderConfig:
        c = self.config
        if c.kind == "agnostic":
            return c.shared_encoder
        return {"video": c.video_encoder, "audio": c.audio_encoder, "text": c.text_encoder}[modality]

    def width(self, modality: str) -> int:
        """Width D of `features(modality, ...)`."""
        return self.config.post_width if self.config.kind == "agnostic" else self.encoder_config(modality).width

    def forward(
        self, video: Tensor, audio: Tensor, text: Tensor, *, seed: int = 0, rows: BatchRows | None = None
    ) -> Pooled:
        """Video [B,T,H,W,3], audio [B,S], text ids [B,captions,L] -> the pooled feature of each."""
        words = self.features("text", text.flatten(0, 1), seed=seed, rows=rows)[:, 0]
        # A view would keep the features of all tokens.
        return Pooled(
            self.features("video", video, seed=seed, rows=rows)[:, 0].clone(),
            self.features("audio", audio, seed=seed, rows=rows)[:, 0].clone(),
            words.unflatten(0, text.shape[:2]).clone(),
        )

    def features(
        self, modality: str, x: Tensor, *, seed: int = 0, keep: Tensor | None = None, rows: BatchRows | None = None
    ) -> Tensor:
        """Raw input -> features [B,N,D]; index 0 is the pooled feature, the rest are the tokens' own.

        Video [B,T,H,W,3] uint8 or float in [-1,1], audio [B,S] float or int16, text [B,L] word ids. In training,
        DropToken and attention dropout are functions of `seed`; `keep` ([K] or [B,K]) fixes the kept tokens instead.
        `rows`: where x lies in a larger batch, whose draws DropToken makes; attention dropout differs by `rows.first`.
        """
        place = MODALITIES.index(modality)
        if modality == "text":
            tokens, mask = self.tokens[modality](x)
        else:
            tokens, mask = self.tokens[modality](x, keep=keep, seed=mix_seed(seed, place), rows=rows)
        encoder = self.encoder["shared" if self.config.kind == "agnostic" else modality]
        out = encoder(tokens, mask, seed=mix_seed(mix_seed(seed, 10 + place), rows.first if rows else 0))
        return F.gelu(self.post[modality](out)) if modality in self.post else out


class VATT(nn.Module):
    """The pre-training model: backbone and common-space head (paper figure 1)."""

    def __init__(self, config: ModelConfig, ops: Ops = REFERENCE):
        super().__init__()
        self.backbone = Backbone(config, ops)
        widths = {name: self.backbone.width(name) for name in MODALITIES}
        self.head = CommonSpace(**widths, video_audio=config.head.video_audio, video_text=config.head.video_text)

    def forward(self, video: Tensor, audio: Tensor, text: Tensor, *, seed: int = 0) -> Embeddings:
        """Video [B,T,H,W,3], audio [B,S], text ids [B,captions,L] -> `Embeddings`."""
        return self.head(self.backbone(video, audio, text, seed=seed))

    def embed_video(self, video: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """[B,T,H,W,3] -> (to compare with audio [B,512], to compare with text [B,256])."""
        return self.head.embed_video(self.backbone.features("video", video, seed=seed)[:, 0])

    def embed_audio(self, audio: Tensor, *, seed: int = 0) -> Tensor:
        """[B,S] -> [B,512]."""
        return self.head.audio(self.backbone.features("audio", audio, seed=seed)[:, 0])

    def embed_text(self, text: Tensor, *, seed: int = 0) -> Tensor:
        """Word ids [B,captions,L] -> [B,captions,256]."""
        pooled = self.backbone.features("text", text.flatten(0, 1), seed=seed)[:, 0]
        return self.head.text(pooled).unflatten(0, text.shape[:2])


class Classifier(nn.Module):
    """One backbone and a class head. In eval mode the logits of `views` views a clip are averaged."""

    def __init__(
        self, config: ModelConfig, modality: str, classes: int, *, head_dropout: float = 0.0, ops: Ops = REFERENCE
    ):
        super().__init__()
        self.modality = modality
        self.backbone = Backbone(config, ops, (modality,))
        width = self.backbone.width(modality)
        self.head = ClassHead(width, classes, dropout=head_dropout, video=modality == "video")

    def forward(self, x: Tensor, *, views: int = 1, seed: int = 0, rows: BatchRows | None = None) -> Tensor:
        """x [B*views, ...], views of a clip side by side -> logits [B,classes]; in training [B*views,classes]."""
        logits = self.head(self.backbone.features(self.modality, x, seed=seed, rows=rows)[:, 0])
        return logits if self.training else logits.unflatten(0, (-1, views)).mean(dim=1)


def count_parameters(model: nn.Module) -> int:
    """All numbers a checkpoint holds, as the release counts: frozen table and moving statistics too, no counters."""
    tensors = [*model.parameters(), *(b for b in model.buffers() if torch.is_floating_point(b))]
    return sum(t.numel() for t in tensors)
