"""Training on 8 to 1024 GPUs, computed: bytes sent, memory a rank and time of a step, for DDP and FSDP2.

Nothing is measured on a GPU. Bytes follow from the model (tests hold them against what two processes send), activations
from its saved tensors (activations.py), time from FLOPs, bytes and the rates of data sheets (communication.py).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness

from accounting import activations
from accounting.activations import Activations
from accounting.communication import FLOAT, KINDS, Hardware, Sizes, collectives, sizes_of
from accounting.flops import Flops, loss_flops, vatt_flops
from accounting.parameters import PRETRAINING
from pages.scaling import NAME, REPORT_PAGE

from vatt.config.model import ModelConfig
from vatt.config.presets import preset
from vatt.runtime.progress import progress_bar

PRESETS = ("bbs", "mbs", "lbs")
BATCHES = (2048, 8192, 32768, 65536)
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)
H200_MEMORY = 141e9
FREE = 0.1  # of the memory: for the allocator, libraries' workspaces and NCCL's buffers
# Where each input of `Hardware` is from. What is no data sheet's is an assumption, and so are all shares.
SOURCES = {
    "flops": ("data sheet", "NVIDIA H100 SXM: bfloat16 Tensor Core, dense (H200 SXM: the same)"),
    "memory": ("data sheet", "NVIDIA H100 SXM, 80 GB (H200 SXM: 141 GB)"),
    "gpus_a_node": ("data sheet", "NVIDIA DGX H100, 8 GPUs joined by NVLink"),
    "nvlink": ("data sheet", "NVIDIA H100 SXM: NVLink, 900 GB/s in both directions together"),
    "network": ("data sheet", "NVIDIA DGX H100: ConnectX-7, 400 Gb/s for each GPU"),
    "call": ("NCCL's cost model", "src/graph/tuning.cc, base latency of LL128"),
    "nvlink_hop": ("NCCL's cost model", "src/graph/tuning.cc, NVLink, ring, LL128"),
    "network_hop": ("NCCL's cost model", "src/graph/tuning.cc, network, ring, LL128"),
    "nvlink_hop_tree": ("NCCL's cost model", "src/graph/tuning.cc, NVLink, tree, LL128"),
    "network_hop_tree": ("NCCL's cost model", "src/graph/tuning.cc, network, tree, LL128"),
    "flop_share": ("assumption", "model FLOP utilisation; --mfu changes it"),
    "link_share": ("assumption", "of the links' rates; --link-share changes it"),
}
EXAMPLES = """examples:
  python bench/scaling.py                         under a minute; writes .json, .md and .png of the report
  python bench/scaling.py --mfu 0.5 --out runs/reports
  python bench/scaling.py --quick                 one preset, two batches, three numbers of GPUs

exit codes: 0 done, 1 failed or a count differs from the official one, 2 wrong usage."""


@dataclass(frozen=True)
class Subject:
    """A preset and what its steps cost. FLOPs and `inputs` (bytes) are those of a clip."""

    name: str
    model: ModelConfig
    sizes: Sizes
    plain: Activations
    checkpointed: Activations
    flops: Flops
    inputs: int

    @classmethod
    def of(cls, name: str) -> Subject:
        model = preset(name).model
        video, text = model.video, model.text
        inputs = video.frames * video.size**2 * 3 + FLOAT * model.audio.samples + 8 * text.captions * text.words
        cost = vatt_flops(model, drop=True, project_all=False)
        return cls(name, model, sizes_of(model), *activations.measure(model), cost, inputs)


def resident(subject: Subject, batch: int, ranks: int, kind: str, accumulating: bool) -> dict[str, int]:
    """Return bytes of a rank that do not depend on how many clips it computes at a time.

    "loss": embeddings of all clips as they came, one by one, as unit vectors, and their gradients; the similarities are
    never stored. "gathered": what FSDP2 holds whole: all but the layers, and two layers (one works, the next arrives).
    """
    sizes = subject.sizes
    part = 1 if kind == "ddp" else ranks
    whole = sizes.total - sum(sizes.layers) + 2 * max(sizes.layers)
    # FSDP2 keeps gradients whole until the last micro-batch lets them be scattered.
    gradients = sizes.trained if kind == "ddp" or accumulating else sizes.trained // ranks + max(sizes.layers)
    return {
        "parameters": FLOAT * (sizes.total // part),
        "gradients": FLOAT * gradients,
        "moments": 2 * FLOAT * (sizes.trained // part),
        "gathered": 0 if kind == "ddp" else FLOAT * whole,
        "loss": 4 * FLOAT * sizes.embedding * batch,
    }


def fitting(subject: Subject, kept: Activations, resident_bytes: int, memory: float) -> int:
    """Return clips that a rank can compute at a time."""
    return int(((1 - FREE) * memory - resident_bytes - kept.fixed) // (kept.clip + subject.inputs))


def preset_row(subject: Subject) -> dict[str, Any]:
    """Return a row with what a preset sends, keeps and computes, and the clips that fit on one of 8 GPUs at batch
    2048.
    """
    sizes = subject.sizes
    row: dict[str, Any] = {
        "kind": "preset",
        "preset": subject.name,
        "trained": sizes.trained,
        "frozen": sizes.frozen,
        "gradient_bytes": FLOAT * sizes.trained,
        "embedding_bytes_a_clip": FLOAT * sizes.embedding,
        "norm_bytes": 4 * FLOAT * sum(sizes.norms),
        "gflops_a_clip": subject.flops.step / 1e9,
        "input_bytes_a_clip": subject.inputs,
    }
    for name, kept in (("plain", subject.plain), ("checkpointed", subject.checkpointed)):
        there = sum(resident(subject, BATCHES[0], RANKS[0], "ddp", False).values())
        row[name] = {
            "fixed_bytes": kept.fixed,
            "bytes_a_clip": kept.clip,
            "clips_in_80_gb": fitting(subject, kept, there, 80e9),
            "clips_in_141_gb": fitting(subject, kept, there, H200_MEMORY),
        }
    return row


def step(subject: Subject, batch: int, ranks: int, kind: str, hardware: Hardware) -> dict[str, Any]:
    """Return a row: one step of `batch` clips on `ranks` GPUs.

    Seconds of communication by kind, and of the step without any overlap and with all of it that the order of a step
    allows.

    Where a rank's clips do not fit into its memory, it computes them in `passes` micro-batches (exact accumulation, one
    more forward). Embeddings and batch norm lie between forward and backward and never overlap. Gradients do so with
    the backward of the last micro-batch, but for the last bucket; FSDP2's parameters and gradients with all compute,
    but for the first layer and the last.
    """
    clips = batch // ranks
    there = resident(subject, batch, ranks, kind, False)
    passes = -(-clips // fitting(subject, subject.plain, sum(there.values()), hardware.memory))
    if passes > 1:
        there = resident(subject, batch, ranks, kind, True)
        passes = -(-clips // fitting(subject, subject.plain, sum(there.values()), hardware.memory))
    together = -(-clips // passes)
    rate = hardware.flops * hardware.flop_share
    again = subject.flops.forward * clips if passes > 1 else 0
    compute = (subject.flops.step * clips + again + loss_flops(subject.model, batch).step / ranks) / rate
    last_backward = subject.flops.backward * together / rate
    seconds = dict.fromkeys(KINDS, 0.0)
    sent, nvlink, network = (dict.fromkeys(KINDS, 0.0) for _ in range(3))
    ends = 0.0  # one call each of what otherwise overlaps
    for part in collectives(subject.sizes, batch, ranks, kind, passes):
        seconds[part.kind] += part.seconds(ranks, hardware)
        links = part.links(ranks, hardware)
        for total, value in ((sent, sum(links)), (nvlink, links[0]), (network, links[1])):
            total[part.kind] += value
        if part.kind in ("gradients", "parameters"):
            ends += part.seconds(ranks, hardware) / part.calls
    hidden = last_backward if kind == "ddp" else compute
    exposed = max(seconds["gradients"] + seconds["parameters"] - hidden, ends)
    apart, joined = compute + sum(seconds.values()), compute + seconds["embeddings"] + seconds["batch norm"] + exposed
    return {
        "kind": "step",
        "preset": subject.name,
        "parallel": kind,
        "batch": batch,
        "gpus": ranks,
        "clips": clips,
        "micro_batch": together,
        "passes": passes,
        "compute_seconds": compute,
        "seconds": seconds,
        "sent_bytes": _whole(sent),
        "nvlink_bytes": _whole(nvlink),
        "network_bytes": _whole(network),
        "step_seconds": apart,
        "step_seconds_overlapped": joined,
        "efficiency": compute / apart,
        "efficiency_overlapped": compute / joined,
        "clips_per_second": batch / joined,
        "memory": there | {"activations": subject.plain.of(together), "inputs": subject.inputs * together},
    }


def _whole(sizes: dict[str, float]) -> dict[str, int]:
    return {kind: round(size) for kind, size in sizes.items()}


def rounded(value: Any) -> Any:
    """Return six digits of every float: more would only lengthen the file."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.make_parser(
        "scaling", "Compute communication, memory and expected scaling of pre-training on many GPUs.", EXAMPLES
    )
    add = parser.add_argument
    add(
        "--mfu",
        type=float,
        default=Hardware().flop_share,
        metavar="SHARE",
        help="model FLOP utilisation: FLOPs of computing over the peak of its time (default %(default)s)",
    )
    add(
        "--link-share",
        type=float,
        default=Hardware().link_share,
        metavar="SHARE",
        help="what collectives get of the links' rates (default %(default)s)",
    )
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    if not (0 < args.mfu <= 1 and 0 < args.link_share <= 1):
        parser.error("--mfu and --link-share are shares in (0, 1]")
    return args


def run(args: argparse.Namespace) -> Path:
    """Measure what is missing of the report, and return the path of its JSON."""
    hardware = replace(Hardware(), flop_share=args.mfu, link_share=args.link_share)
    names, batches, counts = (("mbs",), (2048, 65536), (8, 64, 1024)) if args.quick else (PRESETS, BATCHES, RANKS)
    inputs = [
        {"input": name, "value": value, "kind": SOURCES[name][0], "source": SOURCES[name][1]}
        for name, value in asdict(hardware).items()
        if name in SOURCES
    ]
    report, path = harness.open_report(
        NAME,
        "Pre-training on 8 to 1024 GPUs, computed",
        settings={
            "presets": names,
            "batches": batches,
            "gpus": counts,
            "hardware": hardware.name,
            "inputs": inputs,
            "free_memory": FREE,
            "captions": preset("mbs").model.text.captions,
        },
        method={
            "result": "computed; nothing on this page was measured, on GPUs or elsewhere",
            "bytes": "parameters and embeddings of models built on PyTorch's meta device, all sent in float32",
            "activations": "saved tensors of a forward pass on fake tensors under bfloat16 autocast, with "
            "DropToken 0.5, 2 and 4 clips, linear in clips",
        },
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
    )
    report.rows, report.gate["checks"] = [], []
    bar = progress_bar(len(names), "computing", "preset")
    with bar:
        for name in names:
            subject = Subject.of(name)
            counted = subject.sizes.total + 2 * sum(subject.sizes.norms)  # moving statistics
            report.gate["checks"].append({"model": name, "green": counted == PRETRAINING[name]})
            report.rows.append(rounded(preset_row(subject)))
            report.rows += [
                rounded(step(subject, batch, ranks, kind, hardware))
                for kind in ("ddp", "fsdp")
                for batch in batches
                for ranks in counts
            ]
            bar.update()
    report.gate["green"] = all(check["green"] for check in report.gate["checks"])
    report.finished = True
    report.save(path)
    return path


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(None if argv is None else list(argv))
    return cli.run_benchmark(lambda: run(args), REPORT_PAGE, args, "parameters differ from the official model")


if __name__ == "__main__":
    sys.exit(main())
