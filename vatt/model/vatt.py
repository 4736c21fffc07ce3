"""The models: `VATT` (pre-training: three modalities into common spaces) and `Classifier` (one modality, fine-tuning).

What their methods do with files (`from_pretrained`, `embed`, `predict`, ...) is on higher floors, `checkpoints/hub.py`
and `inference/one_file.py`, which are imported by name when such a method is called.

Shapes: B batch, N tokens with AGG first, D width of the backbone's output. Source: paper sections 3.1-3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.model import EncoderConfig, ModelConfig
from ..config.pretraining import Config
from ..config.run import RunConfig
from ..errors import ConfigError
from ..ops import REFERENCE, Ops
from .heads import ClassHead, CommonSpace, Embeddings, PooledFeatures
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
        """Return width D of `features(modality, ...)`."""
        return self.config.post_width if self.config.kind == "agnostic" else self.encoder_config(modality).width

    def tower(self, modality: str) -> list[nn.Parameter]:
        """Parameters of one modality alone: of its tokens, and of its encoder where that is not shared."""
        parts = (group[modality] for group in (self.tokens, self.encoder, self.post) if modality in group)
        return [parameter for part in parts for parameter in part.parameters()]

    def forward(
        self, video: Tensor, audio: Tensor, text: Tensor, *, seed: int | Tensor = 0, rows: BatchRows | None = None
    ) -> PooledFeatures:
        """Video [B,T,H,W,3], audio [B,S], text ids [B,captions,L] -> the pooled feature of each."""
        words = self.features("text", text.flatten(0, 1), seed=seed, rows=rows)[:, 0]
        # A view would keep the features of all tokens.
        return PooledFeatures(
            self.features("video", video, seed=seed, rows=rows)[:, 0].clone(),
            self.features("audio", audio, seed=seed, rows=rows)[:, 0].clone(),
            words.unflatten(0, text.shape[:2]).clone(),
        )

    def features(
        self,
        modality: str,
        x: Tensor,
        *,
        seed: int | Tensor = 0,
        keep: Tensor | None = None,
        rows: BatchRows | None = None,
    ) -> Tensor:
        """Raw input -> features [B,N,D]; index 0 is the pooled feature, the rest are the tokens' own.

        Video [B,T,H,W,3] uint8 or float in [-1,1], audio [B,S] float or int16, text [B,L] word ids. In training,
        DropToken and attention dropout are functions of `seed`, a number or an int64 tensor below 2^31; `keep` ([K] or
        [B,K]) fixes the kept tokens instead.
        `rows`: where x lies in a larger batch, whose draws DropToken makes; attention dropout differs by `rows.first`.
        """
        index = MODALITIES.index(modality)
        if modality == "text":
            tokens, mask = self.tokens[modality](x)
        else:
            tokens, mask = self.tokens[modality](x, keep=keep, seed=mix_seed(seed, index), rows=rows)
        encoder = self.encoder["shared" if self.config.kind == "agnostic" else modality]
        out = encoder(tokens, mask, seed=mix_seed(mix_seed(seed, 10 + index), rows.first if rows else 0))
        return F.gelu(self.post[modality](out)) if modality in self.post else out


def _floor_above(module: str) -> Any:
    """Return a module that builds on this one, for methods that hand over to it.

    The models are what users hold, so that their methods are where one looks for `save_pretrained` or `predict`; but
    nothing in this folder may depend on files, decoders or the hub.
    """
    return import_module(f"...{module}", __name__)


class VATT(nn.Module):
    """The pre-training model: backbone and common-space head (paper figure 1).

    Attributes:
        settings: all settings of a loaded model; `settings.model` holds its sizes.
        folder: where it was loaded from, None for a new one.
        tokenizer: its word list; None for a model without one.
    """

    def __init__(self, config: ModelConfig, ops: Ops = REFERENCE):
        super().__init__()
        self.backbone = Backbone(config, ops)
        widths = {name: self.backbone.width(name) for name in MODALITIES}
        self.head = CommonSpace(**widths, video_audio=config.head.video_audio, video_text=config.head.video_text)
        self.settings: RunConfig = Config(preset="custom", model=config)
        self.folder: Path | None = None
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        if self._tokenizer is None and self.folder is not None:
            self._tokenizer = _floor_above("checkpoints.model_folder").tokenizer_of(self.folder)
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        device: str | torch.device = "cpu",
        fused: bool | None = None,
    ) -> VATT:
        """Return a pre-trained model in eval mode, from a folder or from the Hugging Face hub.

        Args:
            name: a folder, as `vatt.load` takes it, or user/name on the hub.
            revision, cache_dir, force_download, local_files_only, token: of `huggingface_hub.snapshot_download`.
            device, fused: as in `vatt.load`.

        Raises:
            MissingPackage: `name` is no folder, and huggingface_hub is not installed.
            RunError: no model there, or a fine-tuned one.
        """
        model: VATT = _floor_above("checkpoints.hub").load_pretrained(
            name,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
            device=device,
            fused=fused,
        )
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights, settings, word list and a card to `folder`; needs huggingface_hub for the card."""
        _floor_above("checkpoints.hub").save_pretrained(self, folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload a VATT",
    ) -> str:
        """Upload what `save_pretrained` writes to `repo_id` (user/name) and return its address."""
        hub = _floor_above("checkpoints.hub")
        address: str = hub.push_to_hub(self, repo_id, private=private, token=token, message=commit_message)
        return address

    def __getattr__(self, name: str) -> Any:
        if name in ("predict", "classes"):
            raise AttributeError(
                f"a pre-trained model has no {name}: `rank_texts` compares a file with sentences, and `python -m "
                "vatt.finetune` makes a model of classes"
            )
        return super().__getattr__(name)

    def forward(self, video: Tensor, audio: Tensor, text: Tensor, *, seed: int = 0) -> Embeddings:
        """Video [B,T,H,W,3], audio [B,S], text ids [B,captions,L] -> `Embeddings`."""
        return self.head(self.backbone(video, audio, text, seed=seed))

    def embed_video(self, video: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Embed frames in both common spaces.

        Args:
            video: [B, T, H, W, 3], uint8 or float in [-1, 1], as `vatt.read_clip` gives them.
            seed: of DropToken and dropout in training.

        Returns:
            [B, 512] to compare with `embed_audio`, and [B, 256] to compare with `embed_text`.
        """
        _check_frames("embed_video", video, self.backbone.config)
        _check_range("embed_video", "frames are uint8", video, 1.01)
        return self.head.embed_video(self.backbone.features("video", video, seed=seed)[:, 0])

    def embed_audio(self, audio: Tensor, *, seed: int = 0) -> Tensor:
        """Embed sound [B, S], float in [-1, 1] or int16 -> [B, 512]."""
        _check_samples("embed_audio", audio, self.backbone.config)
        _check_range("embed_audio", "samples are int16", audio, 10.0)  # loud sound may leave the range a little
        return self.head.audio(self.backbone.features("audio", audio, seed=seed)[:, 0])

    def embed_text(self, text: Tensor | str | Sequence[str], *, seed: int = 0) -> Tensor:
        """Embed words in the space of video and text.

        Args:
            text: word ids [B, captions, L] of `tokenizer`; or a sentence, or several, then without gradients.
            seed: of dropout in training.

        Returns:
            [B, captions, 256]; [256] for a sentence, [n, 256] for several.

        Raises:
            ConfigError: a sentence has no word that the model knows.
            VocabularyError: sentences, and the model has no word list.
        """
        if not isinstance(text, Tensor):
            embedded: Tensor = _floor_above("inference.one_file").embed_sentences(self, text)
            return embedded
        _check_input("embed_text", "word ids", text, "clips, captions, words", (None,) * 3)
        words = self.backbone.config.text.vocabulary
        if text.is_floating_point() or (text.numel() and not 0 <= int(text.min()) <= int(text.max()) < words):
            raise ValueError(f"embed_text: word ids are whole numbers from 0 to {words - 1}, those of `tokenizer`")
        pooled = self.backbone.features("text", text.flatten(0, 1), seed=seed)[:, 0]
        return self.head.text(pooled).unflatten(0, text.shape[:2])

    def embed(
        self, path: str | Path, *, windows: int | None = None, start: float = 0.0, end: float | None = None
    ) -> dict[str, Tensor]:
        """Embed a video, a picture or a sound.

        Args:
            path: the file.
            windows: evenly spaced temporal windows, over which embeddings are averaged; None: the model's setting.
            start, end: seconds of the file; end None is its end.

        Returns:
            Vectors, of what there is: video_pooled, video_to_audio, video_to_text, audio_pooled, audio_embedding. See
            `vatt.inference.features_file` for what they are.

        Raises:
            DataError: the file cannot be read.
        """
        vectors: dict[str, Tensor] = _floor_above("inference.one_file").embed_file(self, path, windows, start, end)
        return vectors

    def rank_texts(
        self,
        path: str | Path,
        texts: Sequence[str] | Mapping[str, Sequence[str]],
        *,
        windows: int | None = None,
        start: float = 0.0,
        end: float | None = None,
    ) -> list[tuple[str, float]]:
        """Rank texts by how well they fit a video, without any training on them ("zero-shot").

        Args:
            path: a video or a picture.
            texts: sentences, or a name of each class with its sentences, whose embeddings are averaged.
            windows, start, end: as in `embed`.

        Returns:
            (text or name, cosine in the space of video and text), best first.
        """
        one_file = _floor_above("inference.one_file")
        ranked: list[tuple[str, float]] = one_file.rank_texts(self, path, texts, windows, start, end)
        return ranked


class Classifier(nn.Module):
    """One backbone and a class head. In eval mode the logits of `views` views a clip are averaged.

    Attributes:
        settings: all settings of a loaded model.
        record: what its folder says of classes and of how it is tested.
    """

    def __init__(
        self, config: ModelConfig, modality: str, classes: int, *, head_dropout: float = 0.0, ops: Ops = REFERENCE
    ):
        super().__init__()
        self.modality = modality
        self.backbone = Backbone(config, ops, (modality,))
        width = self.backbone.width(modality)
        self.head = ClassHead(width, classes, dropout=head_dropout, video=modality == "video")
        self.settings: RunConfig = Config(preset="custom", model=config)
        self.record: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name in ("rank_texts", "embed_text", "embed_video", "embed_audio", "tokenizer"):
            raise AttributeError(f"a fine-tuned model has no {name}: it has classes, and no spaces to compare in")
        return super().__getattr__(name)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs in their order; "0", "1", ... for a model that has none."""
        count = self.head.linear.out_features
        return tuple(map(str, self.record.get("labels") or range(count)))

    def forward(
        self,
        x: Tensor,
        *,
        views: int = 1,
        seed: int = 0,
        rows: BatchRows | None = None,
        keep: Tensor | None = None,
        headless: bool = False,
    ) -> Tensor:
        """x [B*views, ...], views of a clip side by side -> logits [B,classes]; in training [B*views,classes].

        `headless`: return what `Backbone.features` does, to which `keep` goes.
        """
        check = _check_samples if self.modality == "audio" else _check_frames
        check("a classifier", x, self.backbone.config)
        features = self.backbone.features(self.modality, x, seed=seed, keep=keep, rows=rows)
        if headless:
            return features
        logits = self.head(features[:, 0])
        return logits if self.training else logits.unflatten(0, (-1, views)).mean(dim=1)

    def predict(
        self,
        path: str | Path,
        *,
        top: int | None = 5,
        windows: int | None = None,
        start: float = 0.0,
        end: float | None = None,
    ) -> list[tuple[str, float]]:
        """Classify a file.

        Args:
            path: a video, a picture or a sound, as the model's task has it.
            top: classes to return, None: all.
            windows: evenly spaced temporal windows, over which logits are averaged; None: as the model is tested.
            start, end: seconds of the file; end None is its end.

        Returns:
            (class, probability), best first.

        Raises:
            DataError: the file cannot be read, or has not what the model looks at.
        """
        one_file = _floor_above("inference.one_file")
        if top is not None and (not isinstance(top, int) or top < 1):
            raise ConfigError(f"top is a number of classes from 1, or None for all, got {top!r}")
        best: list[tuple[str, float]] = one_file.predict_file(self, path, windows, start, end)[:top]
        return best

    def embed(
        self, path: str | Path, *, windows: int | None = None, start: float = 0.0, end: float | None = None
    ) -> dict[str, Tensor]:
        """Return the pooled feature of a file, "video_pooled" or "audio_pooled"; see `VATT.embed`."""
        vectors: dict[str, Tensor] = _floor_above("inference.one_file").embed_file(self, path, windows, start, end)
        return vectors


def _check_frames(function: str, x: Any, config: ModelConfig) -> None:
    v = config.video
    height, width = v.size, v.size
    if v.tables and isinstance(x, Tensor) and x.shape[2:4] == (v.tables[1] * v.patch[1], v.tables[2] * v.patch[2]):
        height, width = x.shape[2:4]  # what the position tables are for, which need not be square
    _check_input(function, "frames", x, "clips, frames, height, width, 3", (None, v.frames, height, width, 3))


def _check_samples(function: str, x: Any, config: ModelConfig) -> None:
    _check_input(function, "samples", x, "clips, samples", (None, config.audio.samples))


def _check_input(function: str, name: str, x: Any, layout: str, sizes: tuple[int | None, ...]) -> None:
    """Raise TypeError or ValueError unless x is a tensor of `sizes`, of which None is any."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{function}: {name} are a torch.Tensor [{layout}], got {type(x).__name__}")
    if x.ndim != len(sizes) or any(size not in (None, found) for size, found in zip(sizes, x.shape, strict=True)):
        wanted = [word if size is None else str(size) for word, size in zip(layout.split(", "), sizes, strict=True)]
        raise ValueError(f"{function}: {name} of this model are [{', '.join(wanted)}] ({layout}), got {list(x.shape)}")


def _check_range(function: str, kind: str, x: Tensor, most: float) -> None:
    if x.is_floating_point() and x.numel() and not (largest := float(x.detach().abs().amax())) <= most:
        raise ValueError(f"{function}: {kind}, or floats in [-1, 1]; the largest of these is {largest:g}")


def count_parameters(model: nn.Module) -> int:
    """Return all numbers a checkpoint holds, as the release counts: frozen table and moving statistics too, no
    counters.
    """
    tensors = [*model.parameters(), *(b for b in model.buffers() if torch.is_floating_point(b))]
    return sum(t.numel() for t in tensors)
