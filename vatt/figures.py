"""Looking at what was learned: `python -m vatt.figures tsne` and `activations` (Figures 2 and 4 of the paper).

`tsne` lays the pooled features of the vision tower out in two dimensions, a panel a model, the same clips in each.
`activations` shows what every node of every MLP gives, on average, before the residual is added, a panel a modality.
FILE.png is the figure, FILE.npz the arrays behind it, both readable without pickle.

Shapes: C clips, M models, D width, L layers, B batch, N tokens.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from .config import ConfigError, to_dict
from .data.bad_clips import bad_share
from .data.loader import DataError, EvalDataset, make_loader
from .data.manifest import Manifest, ManifestError
from .data.text import Tokenizer, VocabularyError
from .embed import choose_clips
from .features import Arrays
from .files import write_atomically
from .model.vatt import VATT, Backbone, Classifier
from .pretrained import load, load_config, load_tokenizer, weights_fingerprint
from .progress import progress_bar
from .records import environment, write_figure
from .run import RunError, autocast_for, compute_dtype, fingerprint, pick_device
from .runtime.forms import printable
from .runtime.lock import add_force_flag, owned

EXTRA = "pip install -e '.[figures]' in the project's folder"
VideoFeatures = tuple[NDArray[np.float32], NDArray[np.int64]]  # [C,D], and rows of the manifest [C]
VIEWS = 32  # windows of video at once
LEGEND = 40  # more classes have no legend
# Okabe and Ito's colours, which colour-blind people tell apart; with 7 signs, 56 pairs before the first comes again.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#f0e442", "#000000")
MARKERS = "os^Dv*P"
EXAMPLES = """examples:
  python -m vatt.figures tsne --model runs/mbs runs/ma_medium runs/scratch --data kinetics.csv --out figure2.png
  python -m vatt.figures tsne --model runs/tiny --data clips.csv --method pca --out pca.png     without scikit-learn
  python -m vatt.figures activations --model runs/ma_medium --data clips.csv --clips 64 --out figure4.png
Models are folders of runs (pre-trained or fine-tuned) or of converted checkpoints. `python -m vatt.figures tsne --help`
tells all of one command. Needs pip install -e '.[figures]'.
exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 interrupted."""
TSNE = """arrays of FILE.npz (C clips that every model could read, M models):
  points [M,C,2]   path row label [C]   features_0 rows_0, features_1 ...: of each model alone   metadata: JSON
--resume takes features that are in FILE.npz already, where model, clips and windows are the same: after a crash, to add
a model, to draw them by another method. In t-SNE distances between far groups and sizes of groups mean nothing, so each
panel says how often the nearest other clip, by the cosine in all D dimensions, has a clip's class."""
ACTIVATIONS = """arrays of FILE.npz: video, audio, text [L,D], those that the model has; row [C]; metadata: JSON
An activation is the output of a layer's MLP before the residual addition, averaged over a clip's tokens (AGG is one,
padding is none), then over clips: the first that have all of the model's modalities, with first window and caption."""


def choose_classes(clips: Manifest, classes: int, per_class: int, seed: int) -> Manifest:
    """At most `per_class` clips of each of at most `classes` classes, drawn by `seed`; clips with one label only.

    Raises `ConfigError` when there are not two classes.
    """
    groups: dict[str, list[int]] = {}
    for place, clip in enumerate(clips):
        if len(clip.labels) == 1:
            groups.setdefault(clip.labels[0], []).append(place)
    if len(groups) < 2:
        raise ConfigError(f"{clips.root}: clips of {len(groups)} classes, at least 2 are needed; the column is `label`")
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(sorted(groups))[:classes].tolist())
    places = sorted(groups[name][i] for name in chosen for i in rng.permutation(len(groups[name]))[:per_class])
    return Manifest(tuple(clips[place] for place in places), clips.root, tuple(chosen))


@torch.no_grad()
def video_features(model: VATT | Classifier, dataset: EvalDataset, autocast: Any, name: str) -> VideoFeatures:
    """The vision tower's pooled features, means over the windows; clips that cannot be read are named and left out.

    Raises `DataError` when more than `data.max_bad_share` of the clips are.
    """
    device = next(model.parameters()).device
    features, rows = list[NDArray[np.float32]](), list[int]()
    names = {clip.index: clip.name for clip in dataset.clips}
    with progress_bar(len(dataset.clips), f"features of {name}", "clip") as bar:
        for batch in make_loader(dataset, 0, len(dataset), dataset.data.workers):
            for index, reason in batch.bad:
                tqdm.write(printable(f"bad clip, left out: {names[index]}: {reason}"), file=sys.stderr)
            if batch.clips:
                with autocast:
                    pooled = model.backbone.features("video", batch.video.flatten(0, 1).to(device))[:, 0]
                features.append(pooled.float().unflatten(0, (len(batch.clips), -1)).mean(1).cpu().numpy())
                rows += batch.clips
            bar.update(len(batch.tried))
    if not rows or bad_share(len(names) - len(rows), len(names), len(names)) > dataset.data.max_bad_share:
        raise DataError(f"only {len(rows)} of {len(names)} clips could be used, the others are named above; mend them, "
                        "or leave their rows out of the manifest")  # fmt: skip
    return np.concatenate(features), np.array(rows, np.int64)


@torch.no_grad()
def mlp_activations(backbone: Backbone, modality: str, x: Tensor) -> Tensor:
    """Output of each MLP before the residual, mean over a clip's tokens -> [B,L,D], float32 at least.

    `x` as in `Backbone.features`. AGG is one of the tokens, padding of a text is not. Source: paper, Figure 4.
    """
    outputs: list[Tensor] = []  # [B,N,D] each
    encoder: Any = backbone.encoder["shared" if backbone.config.kind == "agnostic" else modality]
    hooks = [layer.mlp.register_forward_hook(lambda module, x, out: outputs.append(out)) for layer in encoder.layers]
    try:
        backbone.features(modality, x)
    finally:
        for hook in hooks:
            hook.remove()
    mask = F.pad(x != 0, (1, 0), value=True) if modality == "text" else torch.ones_like(outputs[0][..., 0])
    kept = mask[..., None].to(torch.promote_types(outputs[0].dtype, torch.float32))
    return torch.stack([(output * kept).sum(1) / kept.sum(1) for output in outputs], dim=1)


def average_activations(model: VATT | Classifier, dataset: EvalDataset, clips: int,
                        autocast: Any) -> tuple[Arrays, list[int]]:  # fmt: skip
    """Modality -> mean activations float32 [L,D] of the first `clips` clips that have all modalities, and their rows.

    `dataset` gives one clip a batch. Raises `DataError` when no clip has all modalities of `model`.
    """
    device, rows, reason = next(model.parameters()).device, list[int](), ""
    found: dict[str, list[Tensor]] = {name: [] for name in model.backbone.tokens}
    with progress_bar(min(clips, len(dataset)), "activations", "clip") as bar:
        for batch in make_loader(dataset, 0, len(dataset), 0):
            reason = batch.bad[0][1] if batch.bad else reason
            if batch.clips:
                batch = batch.to(device)
                inputs = {"video": batch.video[:, 0], "audio": batch.audio[:, 0], "text": batch.text[:, 0]}
                with autocast:
                    for name, parts in found.items():
                        parts.append(mlp_activations(model.backbone, name, inputs[name]))
                rows += batch.clips
                bar.update()
            if len(rows) == clips:
                break
    if not rows:
        raise DataError(f"{dataset.clips.root}: none of {len(dataset)} clips has all that the model reads "
                        f"({', '.join(found)}); the last: {reason}")  # fmt: skip
    if len(rows) < clips:
        print(f"note: only {len(rows)} of {len(dataset)} clips are usable; the last of the others: {reason}")
    return {name: torch.cat(parts).mean(0).cpu().numpy() for name, parts in found.items()}, rows


def neighbour_share(features: NDArray[Any], labels: NDArray[Any]) -> tuple[float, float]:
    """Share of the clips whose nearest other by the cosine of features [C,D] has their label, and that of any other."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    same = labels[:, None] == labels
    others = same.sum() - len(same), len(same) * (len(same) - 1)
    return float(same[np.arange(len(same)), similarity.argmax(1)].mean()), float(others[0] / others[1])


def principal_components(features: NDArray[Any]) -> tuple[NDArray[np.float32], list[float]]:
    """Coordinates [C,2] along the two directions of largest variance, and their shares of all variance."""
    centred = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    return (u[:, :2] * s[:2]).astype(np.float32), (s[:2] ** 2 / max((s**2).sum(), 1e-300)).tolist()


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m vatt.figures", epilog=EXAMPLES, formatter_class=raw,
        description="Draw what a model has learned: its features (Figure 2) or its activations (Figure 4).",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="tsne|activations")
    tsne = commands.add_parser("tsne", epilog=TSNE, formatter_class=raw, help="features of the vision tower")
    activations = commands.add_parser("activations", epilog=ACTIVATIONS, formatter_class=raw,
                                      help="mean MLP output of each node and layer")  # fmt: skip
    tsne.add_argument("--model", type=Path, nargs="+", required=True, metavar="DIR", help="a panel each")
    activations.add_argument("--model", type=Path, required=True, metavar="DIR", help="folder of a run or model")
    for command in (tsne, activations):
        add = command.add_argument
        add("--data", required=True, metavar="PATH", help="manifest CSV or folder of clips")
        add("--out", type=Path, required=True, metavar="FILE", help="figure to write, .png; its arrays go beside it")
        add_force_flag(command)
        add("--split", metavar="NAME", help="only these rows of the manifest (default: all)")
        add("--device", default="auto", metavar="NAME", help="cpu, cuda, ... (default auto: a GPU if there is one)")
        add("--fused", action="store_true", default=None, help="fast operations (default: as the model was trained)")
    add = tsne.add_argument
    add("--names", nargs="+", metavar="NAME", help="titles of the panels (default: the folders' names)")
    add("--method", choices=("tsne", "pca"), default="tsne", help="pca does without scikit-learn (default tsne)")
    add("--classes", type=int, default=100, metavar="N", help="so many classes, drawn at random (default 100)")
    add("--per-class", type=int, default=50, metavar="N", help="at most so many clips of each (default 50)")
    add("--windows", type=int, metavar="N", help="temporal windows a clip (default: each model's own)")
    add("--perplexity", type=float, default=30.0, metavar="P", help="of t-SNE, at most a third of C (default 30)")
    add("--seed", type=int, default=0, metavar="N", help="of the draw of classes and clips, and of t-SNE (default 0)")
    add("--resume", action="store_true", help="take what is in FILE.npz already")
    activations.add_argument("--clips", type=int, default=1, metavar="N", help="clips to average over (default 1)")
    args = parser.parse_args(argv)
    for name, least in (("classes", 2), ("per_class", 1), ("windows", 1), ("perplexity", 1), ("clips", 1)):
        value = getattr(args, name, None)
        if value is not None and not value >= least:  # so that NaN is refused
            parser.error(f"--{name.replace('_', '-')} is at least {least}, got {value:g}")
    if args.command == "tsne":
        args.names = args.names or [panel_name(folder) for folder in args.model]
        if len(args.names) != len(args.model):
            parser.error(f"--names has {len(args.names)} titles for {len(args.model)} models; give one each")
    return args


def check_output(out: Path, method: str, resume: bool) -> Path:
    """FILE.npz of FILE.png. Raises `ConfigError` unless the figure can be drawn and nothing would be overwritten."""
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
            raise ConfigError(f"{error}; pip install -e '.[figures]' in the project's folder brings it, and "
                              "--method pca does without scikit-learn") from error  # fmt: skip
    return arrays


def panel_name(folder: Path) -> str:
    """The model of runs/NAME/model is known as NAME, as the run is."""
    return folder.absolute().parent.name if folder.name == "model" else folder.absolute().name


def write_arrays(path: Path, arrays: Arrays, metadata: dict[str, Any], found: dict[str, VideoFeatures]) -> None:
    """FILE.npz. `found`: features by what makes them what they are, which `read_earlier` gives back."""
    content: dict[str, Any] = {**arrays, "metadata": np.array(json.dumps(metadata | {"identities": list(found)}))}
    for i, (features, rows) in enumerate(found.values()):
        content |= {f"features_{i}": features, f"rows_{i}": rows}
    buffer = io.BytesIO()
    np.savez(buffer, **content)
    write_atomically(path, buffer.getvalue())


def read_earlier(path: Path) -> dict[str, VideoFeatures]:
    """Features that an earlier call left in `path`. Raises `RunError` for a file that is not ours."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            identities = json.loads(str(archive["metadata"]))["identities"]
            return {name: (archive[f"features_{i}"], archive[f"rows_{i}"]) for i, name in enumerate(identities)}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} holds no features ({error}); delete it, or choose another --out") from error


def tsne(args: argparse.Namespace) -> None:
    arrays_file = check_output(args.out, args.method, args.resume)
    device = pick_device(args.device)
    clips = choose_classes(choose_clips(args.data, args.split), args.classes, args.per_class, args.seed)
    print(f"{len(clips)} clips of {len(clips.labels)} classes, {len(args.model)} models, {device}")
    configs = [load_config(folder) for folder in args.model]  # a wrong folder is told before hours of work
    known = read_earlier(arrays_file) if arrays_file.exists() else {}
    identities, chosen = list[str](), fingerprint([*clips, str([clip.index for clip in clips])])
    for folder, name, config in zip(args.model, args.names, configs, strict=True):
        model = load(folder, device=device, fused=args.fused)
        if "video" not in model.backbone.tokens:
            raise ConfigError(f"{folder} is a classifier of sound and has no vision tower")
        windows, dtype = args.windows or config.eval_windows, compute_dtype(config.dtype, device)
        identity = json.dumps({"weights": weights_fingerprint(model), "video": to_dict(config.model.video),
                               "clips": chosen, "windows": windows, "dtype": str(dtype)})  # fmt: skip
        identities.append(identity)
        if identity not in known:
            dataset = EvalDataset(clips, config.data, config.model, Tokenizer([]), windows, max(1, VIEWS // windows),
                                  read=("video",), needs=("video",))  # fmt: skip
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
    arrays: Arrays = {"points": np.stack(points), "row": np.array([clip.index for clip in shown]), "label": labels,
                      "path": np.array([str(clip.path) for clip in shown])}  # fmt: skip
    metadata: dict[str, Any] = {name: str(value) for name, value in vars(args).items()}
    metadata |= {"perplexity": perplexity, "titles": titles, "environment": environment(device)}
    write_arrays(arrays_file, arrays, metadata, {identity: known[identity] for identity in identities})
    axis = "t-SNE" if args.method == "tsne" else "component"
    write_figure(points_figure(arrays["points"], labels, titles, axis), args.out)
    print(f"done: {args.out}, {arrays_file}: {len(shown)} clips of {len(np.unique(labels))} classes")


def activations(args: argparse.Namespace) -> None:
    arrays_file, device = check_output(args.out, "", False), pick_device(args.device)
    clips, config = choose_clips(args.data, args.split), load_config(args.model)
    model = load(args.model, device=device, fused=args.fused)
    modalities = tuple(model.backbone.tokens)
    tokenizer = load_tokenizer(args.model) if "text" in modalities else Tokenizer([])
    dataset = EvalDataset(clips, config.data, config.model, tokenizer, 1, 1, read=modalities, needs=modalities)
    autocast = autocast_for(device, compute_dtype(config.dtype, device))
    means, rows = average_activations(model, dataset, args.clips, autocast)
    metadata = {"model": str(args.model), "kind": config.model.kind, "weights_sha256": weights_fingerprint(model),
                "data": args.data, "split": args.split, "environment": environment(device)}  # fmt: skip
    write_arrays(arrays_file, means | {"row": np.array(rows)}, metadata, {})
    counted = f"{len(rows)} clip{'s' if rows[1:] else ''}"
    title = f"{panel_name(args.model)} ({config.model.kind}): mean MLP output, {counted}"
    write_figure(activations_figure(means, title), args.out)
    print(f"done: {args.out}, {arrays_file}: {', '.join(means)}, {counted}")


def points_figure(points: NDArray[Any], labels: NDArray[Any], titles: list[str], axis: str) -> Any:
    """points [M,C,2], a panel a model. Few classes have a colour and a sign each, many a place on a colour scale."""
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


def activations_figure(means: Arrays, title: str) -> Any:
    """Modality -> [L,D]: a map of layers and nodes each, on one colour scale, and below them their size by layer."""
    from matplotlib.figure import Figure

    heights = [1.0 + 0.14 * len(mean) for mean in means.values()] + [2.2]
    figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
    *maps, lines = figure.subplots(len(heights), 1, height_ratios=heights)
    limit = float(np.percentile(np.abs(np.concatenate([mean.ravel() for mean in means.values()])), 99)) or 1.0
    for i, ((name, mean), panel) in enumerate(zip(means.items(), maps, strict=True)):
        layers, nodes = mean.shape
        image = panel.imshow(mean, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", origin="lower",
                             interpolation="nearest", extent=(0.5, nodes + 0.5, 0.5, layers + 0.5))  # fmt: skip
        panel.set(title=name, xlabel="node", ylabel="layer", yticks=range(1, layers + 1, 1 + layers // 8))
        lines.plot(range(1, layers + 1), np.abs(mean).mean(1), label=name, color=COLOURS[i], marker=MARKERS[i])
    figure.colorbar(image, ax=maps, extend="both", aspect=40, label="average activation")
    lines.set(xlabel="layer", ylabel="mean |activation|", ylim=(0, None))
    lines.xaxis.get_major_locator().set_params(integer=True)
    lines.grid(alpha=0.3)
    lines.legend()
    figure.suptitle(title, fontsize=11)
    return figure


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        check_output(args.out, getattr(args, "method", ""), getattr(args, "resume", False))
        with owned(args.out, force=args.force):
            (tsne if args.command == "tsne" else activations)(args)
    except (ConfigError, ManifestError, VocabularyError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2
    except (RunError, DataError, OSError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
