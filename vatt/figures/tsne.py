"""Figure 2: the clips of a few classes in the feature spaces of several models."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..checkpoints.fingerprints import fingerprint, weights_fingerprint
from ..checkpoints.loading import load
from ..checkpoints.model_folder import load_config
from ..config.serialization import to_dict
from ..data.clip import Manifest
from ..data.datasets.evaluation import EvalDataset
from ..data.manifest import choose_clips
from ..data.tokenizer import Tokenizer
from ..errors import ConfigError, DataError, RunError
from ..inference.npz import DAMAGED, Arrays, read_npz
from ..inference.pooled_features import pooled_features
from ..model.vatt import VATT, Classifier
from ..runtime.device import autocast_for, compute_dtype, pick_device
from ..runtime.files import COLOURS, MARKERS, write_figure
from ..runtime.forms import parse_json, printable
from ..runtime.provenance import environment
from .output import VideoFeatures, check_output, write_arrays

VIEWS = 32  # windows of video at once
LEGEND = 40  # more classes have no legend
TSNE = """arrays of FILE.npz (C clips that every model could read, M models):
  points [M,C,2]   path row label [C]   features_0 rows_0, features_1 ...: of each model alone   metadata: JSON
--resume takes features that are in FILE.npz already, where model, clips and windows are the same: after a crash, to add
a model, to draw them by another method. In t-SNE distances between far groups and sizes of groups mean nothing, so each
panel says how often the nearest other clip, by the cosine in all D dimensions, has a clip's class."""


def choose_classes(clips: Manifest, classes: int, per_class: int, seed: int) -> Manifest:
    """Draw at most `per_class` clips of each of at most `classes` classes, by `seed`.

    Only clips with one label are drawn.

    Raises `ConfigError` when there are not two classes.
    """
    groups: dict[str, list[int]] = {}
    for index, clip in enumerate(clips):
        if len(clip.labels) == 1:
            groups.setdefault(clip.labels[0], []).append(index)
    if len(groups) < 2:
        raise ConfigError(f"{clips.root}: clips of {len(groups)} classes, at least 2 are needed; the column is `label`")
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(sorted(groups))[:classes].tolist())
    places = sorted(groups[name][i] for name in chosen for i in rng.permutation(len(groups[name]))[:per_class])
    return Manifest(tuple(clips[index] for index in places), clips.root, tuple(chosen))


def video_features(model: VATT | Classifier, dataset: EvalDataset, autocast: Any, name: str) -> VideoFeatures:
    """Return the vision tower's pooled features, means over the windows, and the rows of the clips that have them.

    Raises:
        DataError: more than `data.max_bad_share` of the clips cannot be read; they are named on standard error.
    """
    label, share = f"features of {name}", dataset.data.max_bad_share
    pooled = pooled_features(model.backbone, "video", dataset, autocast, label, max_bad_share=share)
    return pooled.features.mean(1).numpy(), np.array(pooled.clips, np.int64)


def neighbour_share(features: NDArray[Any], labels: NDArray[Any]) -> tuple[float, float]:
    """Share of the clips whose nearest other by the cosine of features [C,D] has their label, and that of any other."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    same = labels[:, None] == labels
    others = same.sum() - len(same), len(same) * (len(same) - 1)
    return float(same[np.arange(len(same)), similarity.argmax(1)].mean()), float(others[0] / others[1])


def principal_components(features: NDArray[Any]) -> tuple[NDArray[np.float32], list[float]]:
    """Return coordinates [C,2] along the two directions of largest variance, and their shares of all variance."""
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return (u[:, :2] * s[:2]).astype(np.float32), (s[:2] ** 2 / max((s**2).sum(), 1e-300)).tolist()


def panel_name(folder: Path) -> str:
    """Return what a model is called: that of runs/NAME/model is known as NAME, as the run is."""
    return folder.absolute().parent.name if folder.name == "model" else folder.absolute().name


def read_earlier(path: Path) -> dict[str, VideoFeatures]:
    """Return features that an earlier call left in `path`. Raises `RunError` for a file that is not ours."""
    try:
        arrays = read_npz(path)
        identities = parse_json(str(arrays["metadata"]), {"identities": [str]})["identities"]
        return {name: (arrays[f"features_{i}"], arrays[f"rows_{i}"]) for i, name in enumerate(identities)}
    except DAMAGED as error:
        raise RunError(
            f"{path} holds no features ({printable(str(error))}); delete it, or choose another --out"
        ) from error


def tsne(args: argparse.Namespace) -> None:
    arrays_file = check_output(args.out, args.method, args.resume)
    device = pick_device(args.device)
    clips = choose_classes(choose_clips(args.data, args.split, args.columns), args.classes, args.per_class, args.seed)
    print(f"{len(clips)} clips of {len(clips.labels)} classes, {len(args.model)} models, {device}")
    configs = [load_config(folder) for folder in args.model]  # a wrong folder is told before hours of work
    known = read_earlier(arrays_file) if arrays_file.exists() else {}
    identities, chosen = list[str](), fingerprint([*clips, str([clip.index for clip in clips])])
    for folder, name, config in zip(args.model, args.names, configs, strict=True):
        model = load(folder, device=device, fused=args.fused)
        if "video" not in model.backbone.tokens:
            raise ConfigError(f"{folder} is a classifier of sound and has no vision tower")
        windows, dtype = args.windows or config.eval_windows, compute_dtype(config.dtype, device)
        identity = json.dumps(
            {
                "weights": weights_fingerprint(model),
                "video": to_dict(config.model.video),
                "clips": chosen,
                "windows": windows,
                "dtype": str(dtype),
            }
        )
        identities.append(identity)
        if identity not in known:
            dataset = EvalDataset(
                clips,
                config.data,
                config.model,
                Tokenizer([]),
                windows,
                max(1, VIEWS // windows),
                read=("video",),
                needs=("video",),
            )
            known[identity] = video_features(model, dataset, autocast_for(device, dtype), name)
            write_arrays(arrays_file, {}, {}, known)  # a crash loses the features of one model
    rows = set.intersection(*(set(known[identity][1].tolist()) for identity in identities))
    shown = [clip for clip in clips if clip.index in rows]
    if len(shown) < 3:
        raise DataError(f"{len(shown)} clips were read by all models; a figure needs 3")
    labels = np.array([clip.labels[0] for clip in shown])
    perplexity = min(args.perplexity, (len(shown) - 1) / 3)
    points, titles = [], []
    for name, identity in zip(args.names, identities, strict=True):
        features = known[identity][0][np.isin(known[identity][1], list(rows))]
        share, chance = neighbour_share(features, labels)
        title = f"{name}\nnearest neighbour of its class: {share:.0%} (chance {chance:.0%})"
        if args.method == "pca":
            flat, shares = principal_components(features)
            title += f"\nvariance shown: {shares[0]:.0%} + {shares[1]:.0%}"
        else:
            from sklearn.manifold import TSNE

            flat = TSNE(perplexity=perplexity, init="pca", random_state=args.seed).fit_transform(features)
        points.append(flat)
        titles.append(title)
    arrays: Arrays = {
        "points": np.stack(points),
        "row": np.array([clip.index for clip in shown]),
        "label": labels,
        "path": np.array([str(clip.path) for clip in shown]),
    }
    metadata: dict[str, Any] = {name: str(value) for name, value in vars(args).items()}
    metadata |= {"perplexity": perplexity, "titles": titles, "environment": environment(device)}
    write_arrays(arrays_file, arrays, metadata, {identity: known[identity] for identity in identities})
    axis = "t-SNE" if args.method == "tsne" else "component"
    write_figure(points_figure(arrays["points"], labels, titles, axis), args.out)
    print(f"done: {args.out}, {arrays_file}: {len(shown)} clips of {len(np.unique(labels))} classes")


def points_figure(points: NDArray[Any], labels: NDArray[Any], titles: list[str], axis: str) -> Any:
    """Draw points [M,C,2], a panel for each model.

    Few classes have a colour and a sign each, many a place on a colour scale.
    """
    from matplotlib.figure import Figure

    names, ids = np.unique(labels, return_inverse=True)
    few, columns, rows = len(names) <= LEGEND, min(len(points), 3), -(-len(points) // 3)
    across = max(1, int(4.4 * columns / (0.35 + 0.09 * max(map(len, names.tolist())))))  # entries side by side
    beside, below = (0.0, 0.3 + 0.22 * -(-len(names) // across)) if few else (0.9, 0.0)
    figure = Figure(figsize=(4.4 * columns + beside, 4.4 * rows + below), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    size = float(np.clip(6000 / len(labels), 4, 36))
    for panel in grid.flat[len(points) :]:
        panel.remove()
    for panel, xy, title in zip(grid.flat, points, titles, strict=False):
        for i, name in enumerate(names if few else ()):
            colour, sign = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
            panel.scatter(*xy[ids == i].T, size, colour, marker=sign, linewidths=0.3, edgecolors="black", label=name)
        if not few:
            scale = panel.scatter(*xy.T, size, ids + 1, cmap="viridis", linewidths=0)
        panel.set(xlabel=f"{axis} 1", ylabel=f"{axis} 2")
        panel.set_title(title, fontsize=10)
        if axis == "t-SNE":  # its coordinates have no unit
            panel.set(xticks=[], yticks=[])
    if few:
        figure.legend(*grid.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=across, fontsize=8)
    else:
        figure.colorbar(scale, ax=figure.axes, shrink=0.7, label=f"class, 1 to {len(names)} in alphabetical order")
    return figure
