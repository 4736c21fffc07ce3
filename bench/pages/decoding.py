"""The page of `bench/decode.py`: decoders side by side, where the time of a window is, and how long training waits."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from harness import timing
from harness.pages import BLACK, BLUE, GREEN, ORANGE, PINK, SKY, number, table
from harness.report import Report

from workloads.video_decoders import DECODERS, FPS, FRAMES, OURS, SEQUENCE

COLOURS = dict(zip(DECODERS, (BLUE, BLACK, ORANGE, SKY, GREEN, PINK), strict=True))


def stage_rows(report: Report) -> list[list[str]]:
    """Of each clip: milliseconds to open, decode and convert a window, and ratios of medians."""
    rows = []
    for row in (row for row in report.rows if row["kind"] == "stages"):
        p50 = {name: statistics.median(seconds) for name, seconds in row["seconds"].items()}
        cells = [p50["open"], p50["decode"] - p50["open"], p50["window"] - p50["decode"], p50["window"]]
        other = number(p50["other"] / p50["window"]) if "other" in p50 else "-"
        same = {None: "-", True: "yes", False: "no"}[row.get("same")]
        ratio = number(p50["every second"] / p50["through"])
        rows.append([row["clip"], *(number(1000 * seconds, 1) for seconds in cells), other, same, ratio])
    return rows


def summary(report: Report, name: str, job: str, clips: Sequence[str]) -> dict[str, float]:
    """Return, of the medians over `clips`, frames and clips a second, and milliseconds a clip."""
    rows = [
        row
        for row in report.rows
        if row["kind"] == "decoder" and row["decoder"] == name and row["job"] == job and row["clip"] in clips
    ]
    seconds = sum(row["p50"] for row in rows)
    return {
        "frames": sum(row["frames"] for row in rows) / seconds,
        "clips": len(rows) / seconds,
        "milliseconds": 1000 * seconds / len(rows),
    }


def beside_torchcodec(report: Report) -> tuple[int, float]:
    """Return the number of clips, and how many times as fast ours is: the geometric mean over them.

    Of a clip the fastest of torchcodec's ways counts that was measured and has the right frames.
    """
    windows = [row for row in report.rows if row["kind"] == "decoder" and row["job"] == "window"]
    ours = {row["clip"]: row["p50"] for row in windows if row["decoder"] == OURS}
    best: dict[str, float] = {}
    for row in windows:
        if row["decoder"].startswith("torchcodec"):
            best[row["clip"]] = min(row["p50"], best.get(row["clip"], math.inf))
    return len(best), statistics.geometric_mean(best[clip] / ours[clip] for clip in best) if best else math.nan


def beside_checkout(report: Report) -> list[tuple[str, int, float, float]]:
    """Return which clips, how many, and how many times as fast as the other checkout: geometric mean and least."""
    ratios = {}
    for row in report.rows:
        if row["kind"] == "stages" and "other" in row["seconds"]:
            p50 = {name: statistics.median(seconds) for name, seconds in row["seconds"].items()}
            ratios[row["clip"]] = p50["other"] / p50["window"], row["unneeded"]
    every = [ratio for ratio, _ in ratios.values()]
    some = [ratio for ratio, share in ratios.values() if share]
    kinds = (("clips", every), ("clips of H.264 with pictures that nothing builds on", some))
    return [(what, len(of), statistics.geometric_mean(of), min(of)) for what, of in kinds if of]


def taking_part(report: Report) -> list[dict[str, Any]]:
    return [c for c in report.gate["checks"] if c["clips"]]


def page(report: Report) -> str:
    parts = [
        f"A window is {FRAMES} frames at {FPS:g} a second from the middle of a clip: open, seek, decode. A "
        f"sequence is up to {SEQUENCE} frames one after the other. Every figure is of one CPU thread, at the "
        'stored size but for "training", which scales to a shorter side of 336 and reads the sound too. Each '
        "decoder is compared with ours on the clips that it takes."
    ]
    memory = {row["decoder"]: row for row in report.rows if row["kind"] == "memory"}
    rows = []
    for c in taking_part(report):
        window, ours = (summary(report, name, "window", c["clips"]) for name in (c["decoder"], OURS))
        sequence = summary(report, c["decoder"], "sequence", c["clips"])
        rows.append(
            [
                c["decoder"],
                str(len(c["clips"])),
                number(window["milliseconds"], 1),
                number(window["clips"], 1),
                number(ours["milliseconds"] / window["milliseconds"]),
                number(sequence["frames"], 0),
                number(memory[c["decoder"]]["peak_bytes"] / 2**20, 0),
                number(c["worst"], 2),
            ]
        )
    columns = [
        "decoder",
        "clips",
        "window ms",
        "windows/s",
        "speed against pyav",
        "frames/s in sequence",
        "peak MiB",
        "frames differ by (of 255)",
    ]
    parts += ["## Decoders", table(columns, rows)]
    count, times = beside_torchcodec(report)
    if count:
        parts.append(
            f"Beside torchcodec, of each clip the fastest of its ways in the table that has the right frames, a window "
            f"here is {times:.2f}x as fast (geometric mean over {count} clips)."
        )
    refused = [f"- {c['decoder']}: {text}" for c in report.gate["checks"] for text in c["refused"]]
    if refused:
        parts += ["Left out:", "\n".join(refused)]
    columns = ["clip", "open ms", "seek and decode ms", "convert ms", "window ms"]
    columns += ["speed against the other checkout", "same frames", "every second / once through"]
    parts += [
        "## Where the time of a window is",
        f"Windows every second, each {FRAMES / FPS:g} s long, are read of a whole clip with their sound, and beside "
        "them windows that follow each other.",
        table(columns, stage_rows(report)),
        *(
            f"{count} {what}: {mean:.2f}x as fast as the other checkout (geometric mean; least {least:.2f}x)."
            for what, count, mean, least in beside_checkout(report)
        ),
    ]
    for row in (row for row in report.rows if row["kind"] == "long"):
        p50 = {name: statistics.median(seconds) for name, seconds in row["seconds"].items()}
        every, once, alone = p50["every second"], p50["through"], p50["frames alone"]
        parts += [
            f"## {row['minutes']:g} minutes of 1280x720",
            f"A window of {FRAMES / FPS:g} s every second, scaled and with its sound, takes {every:.1f} s, and windows "
            f"that follow each other {once:.1f} s: {every / once:.2f}x. All frames decoded by PyAV alone, not scaled "
            f"and without sound, take {alone:.1f} s (medians of {len(row['seconds']['every second'])} rounds in turn).",
        ]
    loader = [row for row in report.rows if row["kind"] == "loader"]
    if loader:
        rows = [
            [
                str(r["workers"]),
                number(r["clips_per_second"], 1),
                f"{r['wait_share']:.1%}",
                *(
                    number(timing.quantiles(r[f"{key}_seconds"])["p50"], 3)
                    for key in ("step", "wait", "build", "decode")
                ),
            ]
            for r in loader
        ]
        columns = ["workers", "clips/s", "waiting", "step s", "wait s", "build s", "decode s"]
        parts += [
            "## The loader before a training step",
            f"Preset `{report.settings['preset']}`, batches of {report.settings['batch']}, nothing cached. "
            "Waiting: share of the time of all steps. Build and decode: what a batch cost where it was built.",
            table(columns, rows),
        ]
    return "\n\n".join(parts)


def readme_rows(report: Report) -> list[tuple[str, str]]:
    lines = []
    for c in taking_part(report):
        result = summary(report, c["decoder"], "window", c["clips"])
        label = f"open, seek and {FRAMES} frames with {c['decoder']}, one CPU thread, {len(c['clips'])} clips"
        lines.append((label, f"{result['milliseconds']:.1f} ms a clip"))
    loader = [row for row in report.rows if row["kind"] == "loader"]
    count, times = beside_torchcodec(report)
    if count:
        lines.append((f"the same beside torchcodec, the fastest of its ways measured, {count} clips", f"{times:.2f}x"))
    lines += [
        (f"the same beside {report.settings['beside']}, {count} {what}", f"{mean:.2f}x")
        for what, count, mean, _ in beside_checkout(report)
    ]
    return lines + [
        (
            f"waiting for data, preset `{report.settings['preset']}` on a CPU, {row['workers']} workers",
            f"{row['wait_share']:.1%} of a step",
        )
        for row in loader
    ]


def figure(report: Report, plt: Any) -> Any:
    """Draw windows of every clip as bars, and the waiting of the training step."""
    figure, (bars, waits) = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained", width_ratios=(3, 2))
    clips = list(dict.fromkeys(row["clip"] for row in report.rows if row["kind"] == "decoder"))
    names = [c["decoder"] for c in taking_part(report)]
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        rows = [
            row for row in report.rows if row["kind"] == "decoder" and row["decoder"] == name and row["job"] == "window"
        ]
        at = [clips.index(row["clip"]) + (index - (len(names) - 1) / 2) * width for row in rows]
        bars.bar(at, [1000 * row["p50"] for row in rows], 0.9 * width, color=COLOURS[name], label=name)
    bars.set(xticks=range(len(clips)), ylabel="ms, median", title=f"Open, seek, {FRAMES} frames")
    bars.set_xticklabels([clip if len(clip) < 14 else f"{clip[:11]}..." for clip in clips], rotation=45, ha="right")
    loader = [row for row in report.rows if row["kind"] == "loader"]
    drawn = waits.bar(
        [str(row["workers"]) for row in loader],
        [100 * row["wait_share"] for row in loader],
        0.6,
        color=BLUE,
        label="waiting",
    )
    waits.bar_label(drawn, fmt="%.0f %%", fontsize=8)
    waits.set(xlabel="workers", ylabel="% of the time of a step", ylim=(0, 110), title="Training waits for data")
    for axes in (bars, waits):
        axes.grid(alpha=0.3, axis="y")
        axes.set_axisbelow(True)
        axes.legend(fontsize=8)
    return figure
