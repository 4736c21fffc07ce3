"""A folder of recordings with sizes of its own, written by our model: what `verify` must read from config.json alone.

Nothing here is square, a multiple of 8 or equal to something else, so that no size can stand in for another.
"""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helpers.bundle_writer import write
from vatt.config.model import AudioConfig, EncoderConfig, HeadConfig, ModelConfig, TextConfig, VideoConfig
from vatt.official.convert import build
from vatt.official.infer_config import Description
from vatt.official.variable_names import VALUE, place, variable
from vatt.official.verify.checks import CHECKS
from vatt.official.verify.recording import DEFAULT, Fixtures, Recording, Tolerance
from vatt.ops import REFERENCE

VIDEO, AUDIO = EncoderConfig(18, 3, 2, 6, 22), EncoderConfig(14, 2, 3, 4, 26)
TEXT, SHARED = EncoderConfig(10, 2, 2, 7, 12), EncoderConfig(16, 2, 3, 5, 34)
SPECIFIC = ModelConfig(
    video=VideoConfig(frames=6, size=9, patch=(2, 3, 3), tables=(3, 3, 5)),
    audio=AudioConfig(samples=12 * 11, patch=12),
    text=TextConfig(words=7, captions=2, vocabulary=41, embedding=9, buckets=6, max_distance=9),
    head=HeadConfig(13, 8),
    video_encoder=VIDEO,
    audio_encoder=AUDIO,
    text_encoder=TEXT,
    post_width=19,
)
AGNOSTIC_VIDEO = replace(SPECIFIC, kind="agnostic", shared_encoder=VIDEO)
SQUARE = VideoConfig(frames=6, size=12, patch=(2, 3, 3))  # the unified model has one length for both axes
UNIFIED = replace(AGNOSTIC_VIDEO, shared_encoder=SHARED, video=SQUARE)
MODELS = {
    "tx_fac": Description(SPECIFIC),
    "ut_fac": Description(UNIFIED),
    "finetune_video": Description(SPECIFIC, "video", 6),
    "finetune_audio": Description(SPECIFIC, "audio", 11),
    "finetune_video_from_agnostic": Description(AGNOSTIC_VIDEO, "video", 6),
}


def _section(e: EncoderConfig) -> dict[str, int]:
    return {"d_model": e.width, "d_kv": e.head_width, "d_ff": e.mlp, "num_layers": e.layers, "num_heads": e.heads}


SETTINGS = {
    "video": _section(VIDEO) | {"temporal_patch_size": 2, "max_vertical_buckets": 3, "max_horizontal_buckets": 5},
    "audio": _section(AUDIO) | {"max_temporal_buckets": 11},
    "text": _section(TEXT) | {"num_relative_buckets": 6, "max_relative_distance": 9},
    "unified": _section(SHARED) | {"max_vid_spatial_buckets": 4, "d_post_proj": 19},
    "text_len": 7,
}


class Recorder(Recording):
    """Writes down what it is given instead of comparing it."""

    def check(self, name: str, ours: Tensor | float, tolerance: Tolerance = DEFAULT, note: str = "") -> None:
        self.arrays[name] = torch.as_tensor(ours).detach().float().numpy()


def make_folder(folder: Path, fixtures: Path) -> Path:
    """Checkpoints and recordings of random models below `folder`; `fixtures` lends the keys and what has no sizes."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    rng = np.random.default_rng(7)
    for name, description in MODELS.items():
        with (fixtures / f"ckpt_{name}.keys.csv").open() as file:
            keys = [row["checkpoint_key"] for row in csv.DictReader(file)]
        (folder / f"ckpt_{name}").mkdir()
        write(folder / f"ckpt_{name}" / "ckpt-5", _variables(description, keys, rng))
    recordings = Fixtures(folder, REFERENCE)
    for name, arrays in _inputs(rng).items():
        recorder = Recorder(name, arrays, recordings)
        CHECKS[name](recorder)
        np.savez(folder / f"{name}.npz", **recorder.arrays)  # type: ignore[arg-type]
    for name in CHECKS:
        if not (folder / f"{name}.npz").exists():
            shutil.copy(fixtures / f"{name}.npz", folder)
    return folder


def _variables(description: Description, keys: list[str], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A random value for every model variable, in the release's shapes."""
    tensors = build(description).state_dict()
    kernels = {"backbone.tokens.video.weight": (2, 3, 3, 3, -1), "backbone.tokens.audio.weight": (12, 1, -1)}
    values = {}
    for name in filter(None, map(variable, keys)):
        where = place(name, description.modality, description.agnostic)
        assert where is not None
        part = where.part(tensors[where.name])
        part = part.T if where.transpose else part.reshape(kernels.get(where.name, part.shape))
        shape = tuple(part.shape)
        value = rng.normal(size=shape) * (0.3 if len(shape) > 1 else 0.5) + (1.0 if "gamma" in name else 0.0)
        values[name + VALUE] = (np.abs(value) + 0.5 if "variance" in name else value).astype(np.float32)
    return values


def _inputs(rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def words(rows: int) -> np.ndarray:
        ids = rng.integers(1, 41, size=(rows, 7)).astype(np.int32)
        ids[1, 4:], ids[-1] = 0, 0
        return ids

    def full(height: int, width: int) -> dict[str, np.ndarray]:
        masks = {"in.audio_mask": np.array([1, 0, 1], np.float32), "in.text_mask": np.array([1, 1, 0], np.float32)}
        clips = {"in.video": normal(3, 6, height, width, 3), "in.audio": normal(3, 132, 1)}
        return clips | masks | {"in.text": words(6)}

    def fine_tuning(classes: int, *shape: int) -> dict[str, np.ndarray]:
        onehot = np.eye(classes, dtype=np.float32)[rng.integers(0, classes, 4)]
        return {
            "in.views": normal(4, *shape),
            "num_views": np.array(2),
            "in.train": normal(4, *shape),
            "in.onehot": onehot,
        }

    video = {"video": normal(2, 6, 9, 15, 3), "big_video": normal(2, 4, 15, 12, 3)}
    audio = {"audio": normal(2, 132, 1), "big_audio": normal(2, 180, 1)}
    return {
        "video_vit": video | {"drop_perm": rng.permutation(45), "drop_kept": np.array(20)},
        "audio_wat": audio | {"drop_perm": rng.permutation(11), "drop_kept": np.array(5)},
        "text_t5": {"text_ids": words(3)},
        "unified": {"video.in": normal(2, 6, 12, 12, 3), "audio.in": normal(2, 132, 1), "text.in": words(3)},
        "tx_fac_full": full(9, 15),
        "ut_fac_full": full(12, 12),
        "finetune_video": fine_tuning(6, 6, 9, 15, 3),
        "finetune_audio": fine_tuning(11, 132, 1),
        "finetune_video_from_agnostic": fine_tuning(6, 6, 9, 15, 3),
    }
