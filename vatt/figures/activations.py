"""Figure 4: mean activations of every MLP for each modality."""

from __future__ import annotations

import argparse
import logging
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..checkpoints.fingerprints import weights_fingerprint
from ..checkpoints.loading import load
from ..checkpoints.model_folder import load_config, load_tokenizer
from ..data.datasets.evaluation import EvalDataset
from ..data.loader import make_loader
from ..data.manifest import choose_clips
from ..data.tokenizer import Tokenizer
from ..errors import DataError
from ..inference.npz import Arrays
from ..model.vatt import VATT, Backbone, Classifier
from ..runtime.device import autocast_for, compute_dtype, pick_device
from ..runtime.files import COLOURS, MARKERS, write_figure
from ..runtime.progress import progress_bar
from ..runtime.provenance import environment
from .output import check_output, write_arrays
from .tsne import panel_name

log = logging.getLogger(__name__)


@torch.no_grad()
def mlp_activations(backbone: Backbone, modality: str, x: Tensor) -> Tensor:
    """Return output of each MLP before the residual, mean over a clip's tokens -> [B,L,D], float32 at least.

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


def average_activations(
    model: VATT | Classifier, dataset: EvalDataset, clips: int, autocast: Any
) -> tuple[Arrays, list[int]]:
    """Return mean activations float32 [L,D] by modality of the first `clips` clips that have all, and their rows.

    `dataset` gives one clip a batch. Raises `DataError` when no clip has all modalities of `model`.
    """
    device, rows, reason = next(model.parameters()).device, list[int](), ""
    collected: dict[str, list[Tensor]] = {name: [] for name in model.backbone.tokens}
    with progress_bar(min(clips, len(dataset)), "activations", "clip") as bar:
        # Not `map_clips`, which goes through all clips: this ends as soon as it has enough of them.
        for batch in make_loader(dataset, 0, len(dataset), 0):
            reason = batch.bad[0][1] if batch.bad else reason
            if batch.clips:
                batch = batch.to(device)
                inputs = {"video": batch.video[:, 0], "audio": batch.audio[:, 0], "text": batch.text[:, 0]}
                with autocast:
                    for name, parts in collected.items():
                        parts.append(mlp_activations(model.backbone, name, inputs[name]))
                rows += batch.clips
                bar.update()
            if len(rows) == clips:
                break
    if not rows:
        raise DataError(
            f"{dataset.clips.root}: none of {len(dataset)} clips has all that the model reads "
            f"({', '.join(collected)}); the last: {reason}"
        )
    if len(rows) < clips:
        log.info("note: only %d of %d clips are usable; the last of the others: %s", len(rows), len(dataset), reason)
    return {name: torch.cat(parts).mean(0).cpu().numpy() for name, parts in collected.items()}, rows


def activations(args: argparse.Namespace) -> None:
    arrays_file, device = check_output(args.out, "", False), pick_device(args.device)
    clips, config = choose_clips(args.data, args.split, args.columns), load_config(args.model)
    model = load(args.model, device=device, fused=args.fused)
    modalities = tuple(model.backbone.tokens)
    tokenizer = load_tokenizer(args.model) if "text" in modalities else Tokenizer([])
    dataset = EvalDataset(clips, config.data, config.model, tokenizer, 1, 1, read=modalities, needs=modalities)
    autocast = autocast_for(device, compute_dtype(config.dtype, device))
    means, rows = average_activations(model, dataset, args.clips, autocast)
    metadata = {
        "model": str(args.model),
        "kind": config.model.kind,
        "weights_sha256": weights_fingerprint(model),
        "data": args.data,
        "split": args.split,
        "environment": environment(device),
    }
    write_arrays(arrays_file, means | {"row": np.array(rows)}, metadata, {})
    counted = f"{len(rows)} clip{'s' if rows[1:] else ''}"
    title = f"{panel_name(args.model)} ({config.model.kind}): mean MLP output, {counted}"
    write_figure(activations_figure(means, title), args.out)
    print(f"done: {args.out}, {arrays_file}: {', '.join(means)}, {counted}")


def activations_figure(means: Arrays, title: str) -> Any:
    """Draw [L,D] of each modality: a map of layers and nodes each, on one colour scale, and below them their size by
    layer.
    """
    from matplotlib.figure import Figure

    heights = [1.0 + 0.14 * len(mean) for mean in means.values()] + [2.2]
    figure = Figure(figsize=(9, sum(heights) + 0.6), layout="constrained")
    *maps, lines = figure.subplots(len(heights), 1, height_ratios=heights)
    limit = float(np.percentile(np.abs(np.concatenate([mean.ravel() for mean in means.values()])), 99)) or 1.0
    for i, ((name, mean), panel) in enumerate(zip(means.items(), maps, strict=True)):
        layers, nodes = mean.shape
        image = panel.imshow(
            mean,
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
            aspect="auto",
            origin="lower",
            interpolation="nearest",
            extent=(0.5, nodes + 0.5, 0.5, layers + 0.5),
        )
        panel.set(title=name, xlabel="node", ylabel="layer", yticks=range(1, layers + 1, 1 + layers // 8))
        lines.plot(range(1, layers + 1), np.abs(mean).mean(1), label=name, color=COLOURS[i], marker=MARKERS[i])
    figure.colorbar(image, ax=maps, extend="both", aspect=40, label="average activation")
    lines.set(xlabel="layer", ylabel="mean |activation|", ylim=(0, None))
    lines.xaxis.get_major_locator().set_params(integer=True)
    lines.grid(alpha=0.3)
    lines.legend()
    figure.suptitle(title, fontsize=11)
    return figure
