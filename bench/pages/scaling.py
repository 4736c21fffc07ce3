"""The page and the figure of scaling.py, drawn from its JSON."""

from __future__ import annotations

from typing import Any

from harness.pages import BLUE, GREEN, ORANGE, PINK, ReportPage, legend_below, table
from harness.report import Report

from accounting.communication import KINDS

NAME = "scaling"
LIMIT = 0.1  # of a step: from here on a kind of communication is said to limit it
SHOWN = (8, 64, 1024)
TITLES = {"ddp": "DDP", "fsdp": "FSDP2"}
COLOURS = {"compute": "#dddddd", "embeddings": BLUE, "batch norm": GREEN, "gradients": ORANGE, "parameters": PINK}


def steps_of(report: Report, **values: Any) -> list[dict[str, Any]]:
    return [
        row for row in report.rows if row["kind"] == "step" and all(row[key] == value for key, value in values.items())
    ]


def share(row: dict[str, Any], kind: str) -> float:
    """Of a step in which nothing overlaps."""
    return row["seconds"][kind] / row["step_seconds"]


def page(report: Report) -> str:
    presets = [row for row in report.rows if row["kind"] == "preset"]
    settings = report.settings
    return "\n\n".join(
        [
            "**Nothing here was measured on GPUs.** Bytes are counted in our models, and a "
            "test holds the formulas against "
            "what two processes of a small one send, to the byte; times follow from FLOPs, bytes and the inputs below, "
            "which are data sheets' values and assumptions. Batches are of all GPUs; a clip has 32 frames of 224x224, "
            f"3.2 s of sound and {settings['captions']} captions, and half of the video and audio tokens are dropped.",
            "## Where the limit is",
            _answer(report),
            _limits(report),
            "## Expected scaling",
            "Share of a step that is computing, first with all overlap that the order of a "
            "step allows, then (in brackets) "
            "with none. Overlapped: gradients with the backward pass (of the last "
            "micro-batch), FSDP2's parameters with "
            "all computing; embeddings and batch norm's sums stand between forward and backward and overlap "
            "with nothing. Micro-batches (exact accumulation, where the clips of a GPU do "
            "not fit) cost one more forward, "
            "which counts as computing.",
            _efficiency(report, "ddp"),
            _efficiency(report, "fsdp"),
            "## Clips a second",
            _throughput(report),
            "## Communication of a step",
            "GB that each GPU sends over NVLink + over the network.",
            _bytes(report),
            "## Memory of a GPU",
            "GB: parameters, gradients and Adam's moments in float32; activations of the "
            "clips computed at a time, with "
            "bfloat16 copies of the weights; the loss (linear: no similarity is stored); what FSDP2 holds whole. "
            f"{settings['free_memory']:.0%} of the memory stay free for libraries.",
            _memory(report),
            "## What a preset sends and keeps",
            _presets(presets),
            "## Inputs",
            _inputs(settings["inputs"]),
        ]
    )


def _answer(report: Report) -> str:
    """The limits in words: the greatest shares of each kind, and where they are."""
    lines = []
    for kind in KINDS:
        for parallel in TITLES:
            rows = steps_of(report, parallel=parallel)
            worst = max(rows, key=lambda row: share(row, kind))
            over = [row["clips"] for row in rows if share(row, kind) > LIMIT]
            if worst["seconds"][kind] == 0:
                continue
            example = f"{worst['preset']}, batch {worst['batch']:,} on {worst['gpus']:,} GPUs"
            bound = (
                f"over {LIMIT:.0%} of a step only where a GPU has at most {max(over)} clips"
                if over
                else f"never over {LIMIT:.0%} of a step"
            )
            lines.append(f"- **{kind}, {TITLES[parallel]}**: {bound}; at most {share(worst, kind):.0%} ({example})")
    last = max(report.settings["gpus"])
    rows = steps_of(report, parallel="ddp", gpus=last)
    moved = {
        kind: max(row["sent_bytes"][kind] / row["sent_bytes"]["gradients"] for row in rows)
        for kind in ("embeddings", "batch norm")
    }
    return "\n".join(lines) + (
        "\n\nBytes are not what makes gathers dear. Embeddings, whose bytes grow with the batch and not with the "
        f"number of GPUs, are at most {moved['embeddings']:.1f} times the gradients' (DDP, {last:,} GPUs, the largest "
        f"batch), batch norm's at most {moved['batch norm']:.2g} times. What grows with the GPUs is the way around the "
        "ring, once a call: two calls for embeddings and masks, three a layer for FSDP2; while all-reduce (batch norm, "
        "DDP's gradients) climbs a tree. The fewer clips a GPU has, the less computing there is to set against it. "
        "Embeddings and batch norm take as long with FSDP2 as with DDP; their shares are smaller beside its gathers."
    )


def _limits(report: Report) -> str:
    names = report.settings["presets"]
    rows = []
    for parallel in TITLES:
        for name in names:
            for batch in report.settings["batches"]:
                steps = steps_of(report, parallel=parallel, preset=name, batch=batch)
                first = [next((f"{row['gpus']}" for row in steps if share(row, kind) > LIMIT), "–") for kind in KINDS]
                rows.append([TITLES[parallel], name, f"{batch:,}", *first])
    return (
        f"Number of GPUs from which a kind takes more than {LIMIT:.0%} of a step without overlap (–: not up to "
        f"{max(report.settings['gpus']):,}):\n\n" + table(["", "preset", "batch", *KINDS], rows, left=2)
    )


def _efficiency(report: Report, parallel: str) -> str:
    rows = []
    for name in report.settings["presets"]:
        for batch in report.settings["batches"]:
            steps = steps_of(report, parallel=parallel, preset=name, batch=batch)
            rows.append(
                [
                    name,
                    f"{batch:,}",
                    *(f"{row['efficiency_overlapped']:.0%} ({row['efficiency']:.0%})" for row in steps),
                ]
            )
    return table([f"{TITLES[parallel]}, GPUs:", "batch", *(f"{n:,}" for n in report.settings["gpus"])], rows)


def _throughput(report: Report) -> str:
    rows = []
    for parallel in TITLES:
        for name in report.settings["presets"]:
            for batch in report.settings["batches"]:
                steps = steps_of(report, parallel=parallel, preset=name, batch=batch)
                rows.append(
                    [
                        TITLES[parallel],
                        name,
                        f"{batch:,}",
                        *(f"{row['clips_per_second']:,.0f}{'*' if row['passes'] > 1 else ''}" for row in steps),
                    ]
                )
    columns = ["", "preset", "batch", *(f"{n:,} GPUs" for n in report.settings["gpus"])]
    return "Of all GPUs, overlapped. *: in micro-batches.\n\n" + table(columns, rows, left=2)


def _bytes(report: Report) -> str:
    rows = [
        [
            row["preset"],
            TITLES[row["parallel"]],
            f"{row['batch']:,}",
            f"{row['gpus']:,}",
            *(f"{row['nvlink_bytes'][kind] / 1e9:.3f} + {row['network_bytes'][kind] / 1e9:.3f}" for kind in KINDS),
        ]
        for row in _corners(report)
    ]
    return table(["preset", "", "batch", "GPUs", *KINDS], rows, left=2)


def _memory(report: Report) -> str:
    parts = ("parameters", "gradients", "moments", "gathered", "loss", "activations", "inputs")
    rows = [
        [
            row["preset"],
            TITLES[row["parallel"]],
            f"{row['batch']:,}",
            f"{row['gpus']:,}",
            f"{row['clips']:,}",
            f"{row['micro_batch']:,}",
            *(f"{row['memory'][part] / 1e9:.2f}" for part in parts),
            f"{sum(row['memory'].values()) / 1e9:.1f}",
        ]
        for row in _corners(report)
    ]
    return table(["preset", "", "batch", "GPUs", "clips", "at a time", *parts, "sum"], rows, left=2)


def _corners(report: Report) -> list[dict[str, Any]]:
    """Steps of the smallest and the largest batch on a few numbers of GPUs."""
    ends = (min(report.settings["batches"]), max(report.settings["batches"]))
    return [row for row in steps_of(report) if row["batch"] in ends and row["gpus"] in SHOWN]


def _presets(presets: list[dict[str, Any]]) -> str:
    facts = {
        "trained parameters": lambda row: f"{row['trained']:,}",
        "frozen parameters (the word table)": lambda row: f"{row['frozen']:,}",
        "gradients, GB": lambda row: f"{row['gradient_bytes'] / 1e9:.3f}",
        "embeddings, kB a clip": lambda row: f"{row['embedding_bytes_a_clip'] / 1e3:.2f}",
        "batch norm's sums, kB a step": lambda row: f"{row['norm_bytes'] / 1e3:.2f}",
        "GFLOPs a clip, forward and backward": lambda row: f"{row['gflops_a_clip']:,.0f}",
        "activations, MB a clip": lambda row: f"{row['plain']['bytes_a_clip'] / 1e6:,.0f}",
        "with checkpointing, MB a clip": lambda row: f"{row['checkpointed']['bytes_a_clip'] / 1e6:,.0f}",
        "clips at a time in 80 GB (checkpointing)": lambda row: _fit(row, "clips_in_80_gb"),
        "clips at a time in 141 GB (checkpointing)": lambda row: _fit(row, "clips_in_141_gb"),
    }
    rows = [[name, *(text(row) for row in presets)] for name, text in facts.items()]
    return table(["", *(row["preset"] for row in presets)], rows)


def _fit(row: dict[str, Any], name: str) -> str:
    return f"{row['plain'][name]} ({row['checkpointed'][name]})"


def _inputs(inputs: list[dict[str, Any]]) -> str:
    rows = [
        [entry["input"].replace("_", " "), f"{entry['value']:g}", entry["kind"], entry["source"]] for entry in inputs
    ]
    return "FLOP/s, bytes, bytes/s a GPU and direction, seconds.\n\n" + table(["input", "value", "", "source"], rows)


def readme_rows(report: Report) -> list[tuple[str, str]]:
    """Nothing: the front page lists what was measured."""
    return []


def figure(report: Report, plt: Any) -> Any:
    """Share of computing over GPUs for each preset (DDP), and what a step consists of at both ends of the batches."""
    names, batches, counts = (report.settings[key] for key in ("presets", "batches", "gpus"))
    figure, axes = plt.subplots(2, 3, figsize=(14, 8.6), layout="constrained")
    for axis, name in zip(axes[0], names, strict=False):
        for batch, colour in zip(batches, (BLUE, ORANGE, GREEN, PINK), strict=False):
            steps = steps_of(report, parallel="ddp", preset=name, batch=batch)
            axis.plot(
                counts, [row["efficiency_overlapped"] for row in steps], "o-", color=colour, label=f"batch {batch:,}"
            )
            axis.plot(counts, [row["efficiency"] for row in steps], ":", color=colour)
        axis.set(title=f"{name}, DDP (dotted: nothing overlaps)", ylabel="computing, share of a step", ylim=(0, 1.03))
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3)
    legend_below(axes[0, 1], len(batches))
    middle = names[len(names) // 2]
    for axis, (parallel, batch) in zip(
        axes[1], (("ddp", min(batches)), ("fsdp", min(batches)), ("ddp", max(batches))), strict=True
    ):
        steps = steps_of(report, parallel=parallel, preset=middle, batch=batch)
        below = [0.0] * len(steps)
        for kind, colour in COLOURS.items():
            parts = [
                (row["compute_seconds"] if kind == "compute" else row["seconds"][kind]) / row["step_seconds"]
                for row in steps
            ]
            axis.bar(range(len(steps)), parts, bottom=below, color=colour, edgecolor="white", label=kind)
            below = [low + part for low, part in zip(below, parts, strict=True)]
        axis.set(
            title=f"{middle}, {TITLES[parallel]}, batch {batch:,}, no overlap",
            ylabel="share of a step",
            ylim=(0, 1.03),
            xticks=range(len(steps)),
        )
    legend_below(axes[1, 1], len(COLOURS))
    for axis in axes.flat:
        axis.set_xlabel("GPUs")
    for axis in axes[0]:
        axis.set_xticks(counts, [str(n) for n in counts])
    for axis in axes[1]:
        axis.set_xticklabels([str(n) for n in counts])
    return figure


REPORT_PAGE = ReportPage(page, figure, readme_rows)
