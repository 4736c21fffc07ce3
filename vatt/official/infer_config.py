"""Kind and sizes of an official model, from the names and shapes of its variables.

Two things leave no trace in them: how wide an attention head of the video, audio and shared encoders is (the release
always has 64) and the T5 bias's maximum distance (the release has 64, not T5's 128). They are assumed, or taken from
settings: a dictionary of sections with the release's own names,

    {"video":   {"d_kv": 64, "num_heads": 16, ...},     modality-specific and fine-tuned models
     "audio":   {"d_kv": 64, "num_heads": 12, ...},
     "text":    {"d_kv": 64, "num_heads": 8, "max_relative_distance": 64, ...},
     "unified": {"d_kv": 64, "num_heads": 16, ...},     the modality-agnostic pre-training model
     "text_len": 16}

Any other size of a section (d_model, num_layers, ...) may be given too and has to agree with the checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..config.model import AudioConfig, EncoderConfig, HeadConfig, ModelConfig, TextConfig, VideoConfig
from ..errors import VattError
from .variable_names import MODEL

Shape = tuple[int, ...]
HEAD_WIDTH, MAX_DISTANCE = 64, 64
_READ = ("video", "audio", "text", "unified", "text_len")


class SizeError(VattError, ValueError):
    """A checkpoint of no known model, or settings that contradict it."""


@dataclass
class Description:
    """What a checkpoint holds. `modality` and `classes` belong to fine-tuned models and are None for pre-trained ones.

    `assumed`: what keys and shapes cannot tell, a line each. `unread`: settings that no size of the model depends on.
    `heads_known` False: the assumed head width does not fit; the config counts one head and only `inspect` goes on.
    """

    config: ModelConfig
    modality: str | None = None
    classes: int | None = None
    assumed: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    heads_known: bool = True

    @property
    def agnostic(self) -> bool:
        return self.config.kind == "agnostic"

    def __str__(self) -> str:
        family = "modality-agnostic" if self.agnostic else "modality-specific"
        if self.modality is None:
            return f"pre-trained, {family} (video, audio, text and common-space head)"
        return f"fine-tuned for {self.modality} classification ({self.classes} classes), {family}"

    def sizes(self) -> Iterator[str]:
        """Yield the model's sizes, a line each."""
        c = self.config
        for name in ("video", "audio", "text") if self.modality is None else (self.modality,):
            if name == "video":
                t, h, w = c.video.patch
                grid = " x ".join(map(str, c.video.tables or c.video.grid))
                yield f"video      {c.video.frames} frames of {c.video.size} px, voxels {t} x {h} x {w}, grid {grid}"
            elif name == "audio":
                yield f"audio      {c.audio.samples} samples, patches of {c.audio.patch}, {c.audio.tokens} tokens"
            else:
                yield f"text       {c.text.vocabulary} words of width {c.text.embedding}, {c.text.words} a caption"
            if not self.agnostic:
                encoders = {"video": c.video_encoder, "audio": c.audio_encoder, "text": c.text_encoder}
                yield f"  encoder  {self._encoder_line(encoders[name])}"
        if self.agnostic:
            yield f"encoder    {self._encoder_line(c.shared_encoder)}, then {c.post_width}; one for all modalities"
        if self.modality is None:
            yield f"head       video-audio space {c.head.video_audio}, video-text space {c.head.video_text}"

    def _encoder_line(self, e: EncoderConfig) -> str:
        known = self.heads_known or e.heads > 1
        heads = f"{e.heads} heads of {e.head_width}" if known else f"unknown heads, {e.head_width} wide in all"
        return f"{e.layers} layers, width {e.width}, {heads}, MLP {e.mlp}"


def infer_description(
    shapes: Mapping[str, Shape], settings: Mapping[str, Any] | None = None, *, need_heads: bool = True
) -> Description:
    """Return kind and sizes from the shapes of the model's variables (names as in `names`). Raises `SizeError`.

    `need_heads` False: goes on, with a note, where the assumed head width does not fit.
    """
    return _Reader(shapes, settings or {}, need_heads).infer()


class _Reader:
    def __init__(self, shapes: Mapping[str, Shape], settings: Mapping[str, Any], need_heads: bool):
        self.shapes, self.settings, self.need_heads = shapes, settings, need_heads
        self.found = Description(ModelConfig())
        self.found.unread = [name for name in settings if name not in _READ]

    def infer(self) -> Description:
        if f"{MODEL}_base_layer/unified_backbone/unified_transformer/vid_agg_embedding" in self.shapes:
            config = self.agnostic()
        elif f"{MODEL}_base_layer/vid_backbone/_base/agg_embedding" in self.shapes:
            config = self.specific()
        elif f"{MODEL}_base/agg_embedding" in self.shapes:
            config = self.fine_tuned()
        else:
            first = next(iter(self.shapes), "none")
            raise SizeError(
                f"not a VATT checkpoint: expected variables below {MODEL}_base_layer/ (pre-trained) or "
                f"{MODEL}_base/ (fine-tuned), the first one here is {first}"
            )
        self.found.config = config
        return self.found

    def shape(self, name: str, rank: int) -> Shape:
        shape = self.shapes.get(MODEL + name)
        if shape is None:
            raise SizeError(f"the checkpoint has no variable {MODEL}{name}, which its other variables ask for")
        if len(shape) != rank:
            raise SizeError(f"{MODEL}{name} has shape {list(shape)}, expected {rank} dimensions")
        return shape

    def section(self, name: str) -> dict[str, Any]:
        section = self.settings.get(name, {})
        if not isinstance(section, dict):
            raise SizeError(f"settings: {name!r} holds sizes by name, got {section!r}")
        return section

    def whole(self, section: str, name: str) -> int | None:
        value = self.section(section).get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise SizeError(f"settings: {section}.{name} is a positive whole number, got {value!r}")
        return value

    def agree(self, section: str, facts: dict[str, Any]) -> None:
        """Require that settings say what the checkpoint itself tells; list the rest as unread."""
        for name, value in self.section(section).items():
            if name in ("d_kv", "num_heads", "max_relative_distance"):
                continue
            if name not in facts:
                self.found.unread.append(f"{section}.{name}")
            elif facts[name] != value:
                raise SizeError(f"settings say {section}.{name} = {value!r}, the checkpoint has {facts[name]}")

    def encoder(self, root: str, section: str, attention: str = "mha", heads: int | None = None) -> EncoderConfig:
        """Return encoder below `root`; `heads` where a variable tells it."""
        width, inner = self.shape(f"{root}layers/0/{attention}/q/kernel", 2)
        mlp = self.shape(f"{root}layers/0/feed_forward/mlp/wi/kernel", 2)[1]
        pattern = re.compile(re.escape(MODEL + root) + r"layers/(\d+)/")
        layers = 1 + max(int(match[1]) for name in self.shapes if (match := pattern.match(name)))
        head_width, number = self.whole(section, "d_kv"), self.whole(section, "num_heads") or heads
        if head_width is None and number is None:
            head_width = HEAD_WIDTH
            if inner % HEAD_WIDTH and not self.need_heads:
                self.found.heads_known = False
                note = f"{section}: nothing, heads of {HEAD_WIDTH} do not fit; convert needs --config"
                self.found.assumed.append(note)
                return EncoderConfig(width, layers, 1, inner, mlp)
            self.found.assumed.append(f"{section}: attention heads are {HEAD_WIDTH} wide")
        if head_width is None:
            head_width = inner // (number or 1)
        if number is None:
            number = inner // head_width
        if number * head_width != inner or (heads is not None and number != heads):
            raise SizeError(
                f"{section}: {number} heads of {head_width} do not make the checkpoint's q width of {inner}"
                f"{'' if heads is None else f' in {heads} heads'}; give d_kv and num_heads of {section!r} with --config"
            )
        return EncoderConfig(width, layers, number, head_width, mlp)

    @staticmethod
    def encoder_facts(encoder: EncoderConfig) -> dict[str, Any]:
        return {"d_model": encoder.width, "d_ff": encoder.mlp, "num_layers": encoder.layers}

    def tables(self, root: str, axes: tuple[str, ...]) -> Shape:
        return tuple(self.shape(f"{root}{axis}_position_embeddings/embeddings", 2)[0] for axis in axes)

    def video(self, kernel: str, positions: str) -> VideoConfig:
        t, h, w = self.shape(kernel, 5)[:3]
        frames, rows, columns = self.tables(positions, ("temporal", "vertical", "horizontal"))
        config = VideoConfig(frames=frames * t, size=rows * h, patch=(t, h, w))
        # Square clips are described by their size; for any other grid the tables keep lengths of their own.
        return config if config.grid == (frames, rows, columns) else replace(config, tables=(frames, rows, columns))

    def audio(self, kernel: str, positions: str) -> AudioConfig:
        patch = self.shape(kernel, 3)[0]
        return AudioConfig(samples=self.tables(positions, ("temporal",))[0] * patch, patch=patch)

    def specific_tower(self, modality: str, root: str) -> tuple[VideoConfig | AudioConfig, EncoderConfig]:
        encoder = self.encoder(f"{root}tx/", modality)
        positions, facts = f"{root}pos_embedding_lookup/", self.encoder_facts(encoder)
        sizes: VideoConfig | AudioConfig
        if modality == "video":
            sizes = video = self.video(f"{root}voxel_to_patch/kernel", positions)
            names = ("max_temporal_buckets", "max_vertical_buckets", "max_horizontal_buckets")
            facts |= dict(zip(names, video.tables or video.grid, strict=True))
            facts |= {"temporal_patch_size": video.patch[0], "spatial_patch_size": video.patch[1]}
        else:
            sizes = audio = self.audio(f"{root}wave_to_patch/kernel", positions)
            facts |= {"max_temporal_buckets": audio.tokens}
            facts |= {"temporal_patch_size": audio.patch, "temporal_patch_stride": audio.patch}
        self.agree(modality, facts)
        return sizes, encoder

    def words(self, table: str, words: int | None = None) -> TextConfig:
        vocabulary, embedding = self.shape(table, 2)
        if words is None:
            words = self.settings.get("text_len", TextConfig().words)
        self.found.assumed.append(f"data: 10 frames/s, 48 kHz, {words} words a caption, 5 captions a clip")
        return TextConfig(words=words, vocabulary=vocabulary, embedding=embedding)

    def head(self) -> HeadConfig:
        root = "_head_layer/_bridge_heads/0/"
        return HeadConfig(self.shape(f"{root}aud_to_va/bias", 1)[0], self.shape(f"{root}txt_to_vat/bias", 1)[0])

    def specific(self) -> ModelConfig:
        root = "_base_layer/txt_backbone/"
        video, video_encoder = self.specific_tower("video", "_base_layer/vid_backbone/_base/")
        audio, audio_encoder = self.specific_tower("audio", "_base_layer/aud_backbone/_base/")
        attention = "self_attention/attention"
        bias = f"{root}base_lm/layers/0/{attention}/relative_attention_bias/embeddings"
        buckets, heads = self.shape(bias, 2)
        text_encoder = self.encoder(f"{root}base_lm/", "text", attention, heads)
        distance = self.whole("text", "max_relative_distance")
        if distance is None:
            distance = MAX_DISTANCE
            self.found.assumed.append(f"text: T5 maximum distance {MAX_DISTANCE}")
        text = replace(self.words(f"{root}embedding/embeddings"), buckets=buckets, max_distance=distance)
        facts = {"d_embedding": text.embedding, "d_pre_proj": text_encoder.width, "vocab_size": text.vocabulary}
        self.agree("text", facts | {"num_relative_buckets": buckets} | self.encoder_facts(text_encoder))
        assert isinstance(video, VideoConfig)
        assert isinstance(audio, AudioConfig)
        return ModelConfig(
            video=video,
            audio=audio,
            text=text,
            video_encoder=video_encoder,
            audio_encoder=audio_encoder,
            text_encoder=text_encoder,
            head=self.head(),
        )

    def agnostic(self) -> ModelConfig:
        root = "_base_layer/unified_backbone/unified_transformer/"
        encoder = self.encoder(f"{root}tx/", "unified")
        video = self.video(f"{root}raw_to_embeddings/video/kernel", f"{root}pos_embedding_lookup/video/")
        audio = self.audio(f"{root}raw_to_embeddings/audio/kernel", f"{root}pos_embedding_lookup/audio/")
        words = self.tables(f"{root}pos_embedding_lookup/text/", ("temporal",))[0]
        text = self.words(f"{root}raw_to_embeddings/text/embeddings", words)
        post_width = self.shape(f"{root}post_proj/video/kernel", 2)[1]
        grid = video.tables or video.grid
        facts = {
            "vid_temporal_patch_size": video.patch[0],
            "vid_spatial_patch_size": video.patch[1],
            "aud_temporal_patch_size": audio.patch,
            "txt_vocab_size": text.vocabulary,
            "txt_embedding_dim": text.embedding,
            "max_vid_temporal_buckets": grid[0],
            "max_vid_spatial_buckets": grid[1],
            "max_aud_temporal_buckets": audio.tokens,
            "max_txt_temporal_buckets": words,
            "d_post_proj": post_width,
        }
        self.agree("unified", facts | self.encoder_facts(encoder))
        return ModelConfig(
            kind="agnostic",
            video=video,
            audio=audio,
            text=text,
            shared_encoder=encoder,
            post_width=post_width,
            head=self.head(),
        )

    def fine_tuned(self) -> ModelConfig:
        modality = "video" if f"{MODEL}_base/voxel_to_patch/kernel" in self.shapes else "audio"
        self.found.modality, self.found.classes = modality, self.shape("_ops/cls/bias", 1)[0]
        sizes, encoder = self.specific_tower(modality, "_base/")
        # The release fine-tunes at rates of its own: every second frame of 25 a second, every second sample of 48 kHz.
        rates: dict[str, Any] = {"fps": 12.5} if modality == "video" else {"rate": 24_000}
        self.found.assumed.append("data: 12.5 frames/s" if modality == "video" else "data: 24 kHz")
        parts: dict[str, Any] = {modality: replace(sizes, **rates)}
        if f"{MODEL}_base/pre_proj/kernel" in self.shapes:
            post_width = self.shape("_base/post_proj/kernel", 2)[1]
            return ModelConfig(kind="agnostic", shared_encoder=encoder, post_width=post_width, **parts)
        parts[f"{modality}_encoder"] = encoder
        return ModelConfig(**parts)
