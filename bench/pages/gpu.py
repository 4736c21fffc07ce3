"""The report of gpu_report: what follows from its rows, the page, the figure and the table that is printed last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness import timing
from harness.pages import BLACK, BLUE, GREEN, ORANGE, PINK, number, table
from harness.report import Report

Row = dict[str, Any]
DATASHEET = 989e12  # dense bf16 FLOP/s of H100 and H200 SXM, against which the field quotes MFU
DIRECTIONS = ("forward", "backward")
COLOURS = (BLUE, ORANGE, GREEN, PINK, BLACK, "#56b4e9")
MARKERS = "os^vDPX<>*"
DRY = "**A dry run on a CPU with tiny shapes: it shows that every path works. None of its numbers means anything.**"


def of_kind(report: Report, kind: str) -> list[Row]:
    return [row for row in report.rows if row["kind"] == kind]


def trouble(row: Row) -> str:
    """Why a row has no time: its error, its red numerics, or what it cannot do; empty if it has one."""
    return str(row.get("error") or row.get("red") or row.get("unable") or "")


def derive(report: Report) -> None:
    """Quantiles, rates, shares of the floor and ratios of all rows, and the gate, from what was measured.

    A time beside a kernel that is red in some case of the dtype it was timed in, or a step of such kernels, says so in
    `doubted`: its ratios are there, marked, and do not reach README.
    """
    measured = next(iter(of_kind(report, "ceilings")), {})
    matmul, copy = measured.get("matmul", {}), measured.get("copy")
    red = [row for row in report.rows if not row.get("green", True)]
    wrong = {(row["operation"], row["dtype"]) for row in red if "operation" in row}
    kernels, steps = of_kind(report, "kernel"), of_kind(report, "training")
    ours = {(*case_of(row), row.get("compiled")): row for row in kernels if row.get("provider") == "ours"}
    for row in kernels:
        row["doubted"] = doubts(wrong, [row["operation"]], row["dtype"])
        for direction in DIRECTIONS:
            if direction not in row:
                continue
            timed, peak = row[direction], matmul.get("float32" if row["dtype"] == "float32" else "bfloat16")
            timed.update(timing.quantiles(timed["seconds"]))
            timed["rate"], timed["bandwidth"] = timed["flops"] / timed["p50"], timed["bytes"] / timed["p50"]
            floor = max(timed["flops"] / peak, timed["bytes"] / copy) if peak and copy else None
            timed["of_floor"] = floor / timed["p50"] if floor else None
            own = ours.get((*case_of(row), row["compiled"]), {}).get(direction)
            own_p50 = own and timing.quantiles(own["seconds"])["p50"]
            timed["over_ours"] = timed["p50"] / own_p50 if own_p50 else None
    by_step = {step_of(row): row for row in steps}
    for row in steps:
        row["doubted"] = doubts(wrong, row.get("operations", ()), row.get("dtype", ""))
        if "seconds" not in row:
            continue
        row.update(timing.quantiles(row["seconds"]))
        row["mfu_datasheet"] = row["flops"] / row["p50"] / DATASHEET
        row["mfu_measured"] = row["flops"] / row["p50"] / matmul["bfloat16"] if matmul else None
        row["clips_per_second"] = row["batch"] / row["p50"]
    for row in steps:
        whole = by_step.get((*step_of(row)[:4], 0.0, row.get("implementation")), {})
        eager = by_step.get((*step_of(row)[:5], "eager"), {})
        p50 = row.get("p50")
        ratio = whole["flops"] / row["flops"] if whole.get("flops") and row.get("flops") else None
        row["flop_ratio"] = ratio
        row["speedup"] = whole["p50"] / p50 if whole.get("p50") and p50 else None
        row["speedup_of_ideal"] = row["speedup"] / ratio if row["speedup"] and ratio else None
        row["eager_over_this"] = eager["p50"] / p50 if eager.get("p50") and p50 else None
    report.gate["checks"] = summaries(of_kind(report, "correctness"))
    checked = bool(report.gate["checks"])
    report.gate["green"] = all(row["green"] for row in report.rows if "green" in row) if checked else None


def case_of(row: Row) -> tuple[str, ...]:
    return row["operation"], row["case"], row["dtype"]


def step_of(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(key) for key in ("preset", "part", "dropout", "batch", "drop_rate", "implementation"))


def doubts(wrong: set[tuple[str, str]], operations: Iterable[str], dtype: str) -> str:
    """What is red of the operations in the dtype that was timed."""
    return ", ".join(f"{name} {dtype}" for name in operations if (name, dtype) in wrong)


def marked(row: Row, value: float | None) -> str:
    """A ratio, marked where the row is doubted."""
    return number(value) + (" (red)" if value and row["doubted"] else "")


def summaries(rows: list[Row]) -> list[Row]:
    """Of each operation and dtype: how many cases, how many red, and the largest share of what is allowed."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["operation"], row["dtype"]), []).append(row)
    return [
        {
            "operation": operation,
            "dtype": dtype,
            "cases": len(group),
            "red": sum(not row["green"] for row in group),
            "worst": max((row["of_allowed"] for row in group if row.get("of_allowed") is not None), default=None),
            "green": all(row["green"] for row in group),
        }
        for (operation, dtype), group in groups.items()
    ]


# tables


def correctness_table(report: Report) -> str:
    return table(
        ["operation", "dtype", "cases", "red", "largest error / allowed"],
        [
            [c["operation"], c["dtype"], str(c["cases"]), str(c["red"]), number(c["worst"])]
            for c in report.gate["checks"]
        ],
        left=2,
    )


def time_cells(row: Row, direction: str) -> list[str]:
    timed = row.get(direction, {})
    p20, p50, p80 = (number(timed[q] * 1e6 if timed else None, 1) for q in ("p20", "p50", "p80"))
    rate, bandwidth = (
        number(timed.get(key) and timed[key] / scale, digits)
        for key, scale, digits in (("rate", 1e12, 1), ("bandwidth", 1e9, 0))
    )
    share, over = timed.get("of_floor"), timed.get("over_ours")
    return [p20, p50, p80, rate, bandwidth, number(share and 100 * share, 0, " %"), marked(row, over)]


def kernel_table(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        for direction in DIRECTIONS:
            if direction in row:
                peak = row.get("peak_bytes")
                lines.append(
                    [
                        row["case"],
                        row["dtype"],
                        row["provider"],
                        direction,
                        *time_cells(row, direction),
                        number(peak and peak / 2**20, 0),
                    ]
                )
    columns = [
        "case",
        "dtype",
        "provider",
        "direction",
        "p20 us",
        "p50 us",
        "p80 us",
        "TFLOP/s",
        "GB/s",
        "of the floor",
        "time / ours",
        "peak MiB",
    ]
    return table(columns, lines, left=4)


def training_table(rows: Iterable[Row]) -> str:
    def percent(value: float | None) -> str:
        return number(value and 100 * value, 1, " %")

    columns = [
        "preset",
        "part",
        "dropout",
        "batch",
        "dropped",
        "operations",
        "p50 ms",
        "clips/s",
        "MFU of 989",
        "of measured",
        "speed-up",
        "FLOP ratio",
        "share of it",
        "eager / this",
        "peak GiB",
    ]
    return table(
        columns,
        [
            [
                r["preset"],
                r["part"],
                f"{r['dropout']:g}",
                str(r["batch"]),
                f"{r['drop_rate']:.0%}",
                r["implementation"],
                number(1e3 * r["p50"], 1),
                number(r["clips_per_second"], 0),
                percent(r["mfu_datasheet"]),
                percent(r["mfu_measured"]),
                marked(r, r["speedup"]),
                number(r["flop_ratio"]),
                marked(r, r["speedup_of_ideal"]),
                marked(r, r["eager_over_this"]),
                number(r.get("peak_bytes") and r["peak_bytes"] / 2**30, 1),
            ]
            for r in rows
            if "seconds" in r
        ],
        left=6,
    )


def best_rival(rows: list[Row], row: Row, direction: str) -> Row | None:
    """Of the same case, by the time relative to ours of the same run."""
    others = [
        r
        for r in rows
        if case_of(r) == case_of(row) and r["provider"] != "ours" and r.get(direction, {}).get("over_ours")
    ]
    return min(others, key=lambda r: r[direction]["over_ours"], default=None)


def summary(report: Report) -> str:
    """One line a case: ours, the best rival, and what of the floor is reached; then steps; then what is red."""
    rows, lines = of_kind(report, "kernel"), []
    for row in rows:
        if row["provider"] != "ours" or row["compiled"]:
            continue
        if trouble(row):
            lines.append([row["operation"], row["case"], row["dtype"], trouble(row), *["–"] * 4])
        for direction in DIRECTIONS:
            if direction in row:
                rival = best_rival(rows, row, direction)
                cells = time_cells(row, direction)
                over = rival[direction]["over_ours"] if rival else None
                lines.append(
                    [
                        f"{row['operation']} {direction}",
                        row["case"],
                        cells[1],
                        cells[3],
                        cells[4],
                        cells[5],
                        rival["provider"] if rival else "–",
                        marked(row, over),
                    ]
                )
    for r in of_kind(report, "training"):
        if r["implementation"] == "fused":
            label = f"{r['preset']} {r['part']} step, batch {r['batch']}, dropout {r['dropout']:g}"
            lines.append(
                [
                    label,
                    f"{r['drop_rate']:.0%} dropped",
                    number(r.get("p50") and 1e6 * r["p50"], 1),
                    number(r.get("p50") and r["flops"] / r["p50"] / 1e12, 1),
                    "–",
                    number(r.get("mfu_measured") and 100 * r["mfu_measured"], 0, " %"),
                    "eager",
                    marked(r, r["eager_over_this"]),
                ]
            )
    columns = ["what", "case", "p50 us", "TFLOP/s", "GB/s", "of the floor", "best rival", "its time / ours"]
    return table(columns, lines, left=2)


def failures(report: Report) -> list[str]:
    """Everything of ours that is wrong or did not run, a line each."""
    return [
        " ".join(
            str(row[key]) for key in ("kind", "operation", "preset", "part", "case", "drop_rate", "dtype") if key in row
        )
        + f": {trouble(row)}"
        for row in report.rows
        if not row.get("green", True)
    ]


def page(report: Report) -> str:
    parts = [DRY] if report.settings["dry_run"] else []
    left_out = report.method.get("left_out")
    if left_out:
        parts.append(f"Left out for lack of time ({len(left_out)}): {'; '.join(left_out)}.")
    wrong = failures(report)
    if wrong:
        parts.append("## Red\n\n" + "\n".join(f"- {line}" for line in wrong))
    parts.append(
        "## Correctness\n\nOutput and every gradient against the literal operation in float64, in memory filled with "
        "NaN before. Green: at most twice the error of the literal operation in the same dtype, plus a floor of a few "
        "roundings.\n\n" + correctness_table(report)
    )
    watched = of_kind(report, "sanitizer")
    if watched:
        parts.append(
            "compute-sanitizer's memcheck: "
            + "; ".join(
                " ".join(filter(None, [row["operation"], row["case"], row["variant"]]))
                + ": "
                + (f"skipped, {row['skipped']}" if "skipped" in row else trouble(row) or "nothing found")
                for row in watched
            )
            + "."
        )
    for measured in of_kind(report, "ceilings"):
        rates = ", ".join(f"{name} {rate / 1e12:.1f} TFLOP/s" for name, rate in measured.get("matmul", {}).items())
        copied = number(measured.get("copy") and measured["copy"] / 1e12)
        parts.append(f"Measured ceilings: matrix product {rates}; copy {copied} TB/s, read plus written.")
    kernels = of_kind(report, "kernel")
    parts.append(
        "The floor is the larger of FLOPs over the measured product and bytes, each input and output once, over the "
        "measured copy. Time / ours is of the same run, above 1 where ours is faster, and marked where ours was red in "
        "some case of that dtype; providers that must be compiled ran in a run of their own with ours. Peak: device "
        "memory of a forward and backward beyond the inputs."
    )
    for operation in dict.fromkeys(row["operation"] for row in kernels):
        rows = [row for row in kernels if row["operation"] == operation]
        parts.append(f"## {operation}\n\n{kernel_table(rows)}")
        reasons = sorted({f"{row['provider']}: {trouble(row)}" for row in rows if trouble(row)})
        if reasons:
            parts.append("Not measured: " + "; ".join(reasons) + ".")
    parts.append(
        "## Training steps\n\nVideo: forward and backward of the video backbone. Full: all three modalities, loss, "
        "clipping and the update. bfloat16 autocast, float32 weights. FLOPs are 2 x MAC of every product that the kept "
        "tokens need. Eager: literal operations with PyTorch's fused attention.\n\n"
        + training_table(of_kind(report, "training"))
    )
    missing = sorted(
        {
            f"{r['preset']} {r['part']}, {r['drop_rate']:.0%} dropped, {r['implementation']}: {trouble(r)}"
            for r in of_kind(report, "training")
            if trouble(r)
        }
    )
    if missing:
        parts.append("Not measured: " + "; ".join(missing) + ".")
    decoded = of_kind(report, "decode")
    if decoded:
        parts.append("## Decoding by DALI, beside PyAV\n\n" + decode_table(decoded))
    return "\n\n".join(parts)


def decode_table(rows: list[Row]) -> str:
    """Frames of each kind of clip, rates for each number of pipelines, and why the rest was skipped."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if reason := row.get("skipped") or row.get("error"):
            reasons.setdefault(reason, []).append(row["source"])
    blocks = [f"Skipped, {reason}: {', '.join(names)}." for reason, names in reasons.items()]
    frames = [
        [
            row["source"],
            f"{row['start']:g}",
            number(row["levels"]),
            number(row["largest"], 0),
            "yes" if row["in_order"] else "NO",
            "yes" if row["first_right"] else "NO",
        ]
        for row in rows
        if "levels" in row
    ]
    rates = [
        [str(row["pipelines"]), number(row["frames_per_second"], 0), f"{row['waiting']:.1%}"]
        for row in rows
        if "pipelines" in row
    ]
    if frames:
        columns = ["clip", "from s", "mean levels apart", "largest", "frames in order", "first frame right"]
        blocks.append(table(columns, frames))
    if rates:
        blocks.append(table(["pipelines", "frames/s", "of MBS video steps waits"], rates))
    return "\n\n".join(blocks)


def readme_rows(report: Report) -> list[tuple[str, str]]:
    """README's lines: the video steps without dropout, and the most important case of each operation."""
    lines, rows = [], [row for row in of_kind(report, "kernel") if not row["doubted"]]
    steps = [r for r in of_kind(report, "training") if r["implementation"] == "fused" and not r["doubted"]]
    for r in steps:
        if r["part"] == "video" and not r["dropout"] and r.get("p50"):
            result = f"{r['clips_per_second']:.0f} clips/s, MFU {r['mfu_datasheet']:.0%} of 989 TFLOP/s"
            if r["eager_over_this"]:
                result += f", {r['eager_over_this']:.2f}x as fast as eager"
            lines.append((f"video step of `{r['preset']}`, {r['drop_rate']:.0%} dropped, bf16", result))
    measured: set[tuple[str, str]] = set()
    for row in rows:
        for direction in DIRECTIONS:
            if row["provider"] != "ours" or direction not in row or (row["operation"], direction) in measured:
                continue
            measured.add((row["operation"], direction))
            rival = best_rival(rows, row, direction)
            result = f"{row[direction]['p50'] * 1e6:.0f} us"
            if rival:
                result += f", best rival ({rival['provider']}) takes {rival[direction]['over_ours']:.2f}x that"
            lines.append((f"`{row['operation']}` {direction}, {row['case']}, {row['dtype']}", result))
    return lines


# figure


def figure(report: Report, plt: Any) -> Any:
    """Time of ours and its rivals for the first cases of three operations; steps: MFU, and speed-up by dropping."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    kernels = of_kind(report, "kernel")
    for axis, (operation, direction) in zip(
        axes.flat,
        (
            ("attention", "forward"),
            ("attention", "backward"),
            ("project_voxels", "forward"),
            ("contrastive_loss", "forward"),
        ),
        strict=False,
    ):
        rows = [r for r in kernels if r["operation"] == operation and direction in r and not r["compiled"]]
        cases = list(dict.fromkeys(r["case"] for r in rows))[:4]
        names = list(dict.fromkeys(r["provider"] for r in rows))
        for index, name in enumerate(names):
            times = {r["case"]: r[direction]["p50"] * 1e6 for r in rows if r["provider"] == name}
            positions = [cases.index(c) + 0.8 * (index + 0.5) / len(names) - 0.4 for c in cases if c in times]
            style = {
                "color": BLUE if name == "ours" else BLACK,
                "marker": MARKERS[index % len(MARKERS)],
            }
            axis.plot(positions, [times[c] for c in cases if c in times], linestyle="none", label=name, **style)
        axis.set(title=f"{operation}, {direction}", ylabel="us (median)", yscale="log" if rows else "linear")
        axis.set_xticks(range(len(cases)), [c.replace(", ", "\n") for c in cases], fontsize=7)
        if names:
            axis.legend(fontsize=7)
    rate, gain = axes.flat[4:6]
    steps = [r for r in of_kind(report, "training") if r.get("p50") and r["part"] == "video" and not r["dropout"]]
    for (name, implementation), colour in zip(
        sorted({(r["preset"], r["implementation"]) for r in steps}), COLOURS, strict=False
    ):
        mine = sorted(
            (r for r in steps if (r["preset"], r["implementation"]) == (name, implementation)),
            key=lambda r: r["drop_rate"],
        )
        style = {"label": f"{name} {implementation}", "color": colour, "marker": "o"}
        rate.plot([100 * r["drop_rate"] for r in mine], [100 * r["mfu_datasheet"] for r in mine], **style)
        faster = [r for r in mine if r["speedup"]]
        gain.plot([100 * r["drop_rate"] for r in faster], [r["speedup"] for r in faster], **style)
    ideal = sorted({(100 * r["drop_rate"], r["flop_ratio"]) for r in steps if r["flop_ratio"]})
    gain.plot([x for x, _ in ideal], [y for _, y in ideal], ".", color=BLACK, label="FLOP ratio")
    rate.set(title="Video step", ylabel="MFU (% of 989 TFLOP/s)", xlabel="tokens dropped (%)", ylim=(0, None))
    gain.set(title="Gained by dropping", ylabel="speed-up over own 0 %", xlabel="tokens dropped (%)")
    for axis in (rate, gain):
        axis.grid(alpha=0.3)
        if steps:
            axis.legend(fontsize=7)
    return figure
