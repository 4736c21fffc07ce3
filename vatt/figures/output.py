"""Colours and markers of the figures, and how figures and arrays are saved."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..inference.npz import Arrays, write_npz

EXTRA = "pip install -e '.[figures]' in the project's folder"
VideoFeatures = tuple[NDArray[np.float32], NDArray[np.int64]]  # [C,D], and rows of the manifest [C]


def check_output(out: Path, method: str, resume: bool) -> Path:
    """Return FILE.npz of FILE.png.

    Raises `ConfigError` unless the figure can be drawn and nothing would be overwritten.
    """
    if out.suffix != ".png" or not out.parent.is_dir():
        raise ConfigError(f"--out {out}: name a file that ends in .png, in a folder that exists")
    arrays = out.with_suffix(".npz")
    for path in (out, arrays):
        if path.exists() and not resume:
            raise ConfigError(f"{path} exists; delete it, choose another --out or, of t-SNE, go on with --resume")
    for package in ("matplotlib", "sklearn.manifold") if method == "tsne" else ("matplotlib",):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"{error}; pip install -e '.[figures]' in the project's folder brings it, and "
                "--method pca does without scikit-learn"
            ) from error
    return arrays


def write_arrays(path: Path, arrays: Arrays, metadata: dict[str, Any], earlier: dict[str, VideoFeatures]) -> None:
    """Write arrays, and the features that made them, to `path`.

    Args:
        earlier: features by the identity of what made them, which `read_earlier` gives back.
    """
    content: dict[str, Any] = {**arrays, "metadata": np.array(json.dumps(metadata | {"identities": list(earlier)}))}
    for i, (features, rows) in enumerate(earlier.values()):
        content |= {f"features_{i}": features, f"rows_{i}": rows}
    write_npz(path, content.items())
