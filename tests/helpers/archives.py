"""Small archives with random vectors, made without a model."""

from __future__ import annotations

import numpy as np

from vatt.inference.search.archive import KnownFile

WIDTHS = {"video_to_text": 8, "video_to_audio": 16, "audio_embedding": 16}
RECORD = {"weights_sha256": "a", "windows": 1, "every": 1.0, "window": 2.0, "model": "m"}


def rows(path: str, count: int, seed: int = 0, label: str | None = None) -> list[dict]:
    rng = np.random.default_rng([seed, *path.encode()])
    vectors = {name: rng.standard_normal((count, width)).astype(np.float32) for name, width in WIDTHS.items()}
    return [
        {"path": path, "start": float(i), "end": i + 2.0, "label": label, **{name: v[i] for name, v in vectors.items()}}
        for i in range(count)
    ]


def stamp(*paths: str) -> dict[str, KnownFile]:
    return {path: KnownFile(1, 2, "c", "r") for path in paths}
