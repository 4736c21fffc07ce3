"""What a training step launches on a GPU, before and after: launches, bytes of element-wise work, and a time budget.

Nothing runs on a GPU and nothing is timed. Operations are those of a step on fake tensors, launches of our kernels
those on the pretended GPU, and kernels of `--compile` those that TorchInductor writes. The budget turns them into
milliseconds by rates that are assumptions (RATES): it ranks, and is no measurement.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import cli
from harness import report as harness
from harness.checkouts import checkout
from harness.pages import BLUE, GREEN, ORANGE, ReportPage, table
from harness.report import Report, ReportError

from accounting.flops import vatt_flops
from workloads.gpu_measurements import with_settings

from vatt.runtime.progress import progress_bar

NAME = "step_launches"
BEFORE = "20a74a7"
RATES = {  # assumptions for an H200, taken from what others measure at these shapes on an H100
    "products": 680e12,  # FLOP/s of dense layers in bfloat16
    "bytes": 3.8e12,  # a second, of element-wise kernels
    "launch": 2e-6,  # seconds that a kernel takes whatever it does
    "host": 6e-6,  # seconds that the host takes to launch one: what `batch` hides
    "attention forward": (340e12, 190e12),  # FLOP/s without and with dropout
    "attention backward": (250e12, 160e12),
    "projection, DropToken, losses": 500e12,
}
PEAK = 989e12
FORMS = (
    "after",
    "after, --compile",
    "after, --compile, one pass",
    "after, --compile, one pass, bfloat16 residual",
)
SHARES = {"kernels of --compile", "products", "attention forward", "attention backward"}
EXAMPLES = """examples:
  python bench/step_launches.py                   MBS, batch 64, half of the tokens dropped; about 10 minutes
  python bench/step_launches.py --quick           the preset tiny, a minute
  python bench/step_launches.py --before HEAD~3   another commit to compare with

exit codes: 0 done, 1 failed, 2 wrong usage."""


def operations(tree: Path, *flags: str, modes: Sequence[str] = ("trace", "replay")) -> dict[str, Any]:
    """What workloads/step_operations.py finds in `tree`; the second mode adds launches to its calls.

    Raises:
        ReportError: it fails.
    """
    script = Path(__file__).parent / "workloads" / "step_operations.py"
    path = tree / "operations.json"
    for mode in modes:
        command = [sys.executable, str(script), mode, str(path), "--tree", str(tree), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ReportError(f"{mode} of {tree.name} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def loops(tree: Path) -> dict[str, int]:
    """Instructions of the innermost loops of attention on sm_90, bfloat16, 64 wide heads; 0 where there is no kernel.

    Raises:
        ReportError: nothing compiles.
    """
    path = tree / "aot.json"
    arguments = ["--arch", "sm_90", "--match", "bf16 D=64", "--json", str(path)]
    code = f"import sys; sys.path.insert(0, {str(tree)!r}); from vatt_kernels.aot import main; main({arguments})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if not path.exists():
        raise ReportError(f"aot of {tree.name} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    counts = {row["name"]: row["loop"] for row in json.loads(path.read_text())["rows"]}
    found: dict[str, int] = {}
    for variant in ("dense", "dense dropout"):
        forward, dq, keys, one = (
            counts.get(f"attention {name} {variant} bf16 D=64", 0) for name in ("forward", "dq", "dk dv", "dq dk dv")
        )
        found |= {f"forward {variant}": forward, f"backward {variant}": dq + keys, f"one pass {variant}": one}
    return found


def parts_of(found: dict[str, Any], *, compiled: bool) -> dict[str, list[int]]:
    """Launches and bytes of each part of a step; with `compiled`, layers have the kernels of TorchInductor."""
    parts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(part: str, launches: int, size: int, times: int = 1) -> None:
        parts[part][0] += times * launches
        parts[part][1] += times * size

    for part, (launches, size) in found["parts"].items():
        add(part, launches, size)
    for call in found["calls"]:
        name = {"attention": "attention forward", "attention_backward": "attention backward"}.get(call["name"])
        add(name or "projection, DropToken, losses", call["launches"], 0 if name else call["bytes"], call["times"])
    for layer in found["layers"] if compiled else ():
        for part, (launches, size) in layer["eager"].items():
            if part not in SHARES:
                add(part, -launches, -size, layer["times"])
        launches, size = layer["compiled"]
        add("kernels of --compile", launches, size, layer["times"])
    return {part: value for part, value in parts.items() if value[0] > 0}


def budget(
    parts: dict[str, list[int]], flops: dict[str, float], dropout: float, faster: dict[str, float]
) -> dict[str, float]:
    """Milliseconds of each part by RATES; `faster`: by how much those of attention are higher."""
    times = {}
    for part, (launches, size) in parts.items():
        seconds = size / RATES["bytes"] + launches * RATES["launch"]  # type: ignore[operator]
        if part in flops:
            rate: Any = RATES[part]
            rate = rate[dropout > 0] if isinstance(rate, tuple) else rate
            seconds += flops[part] / (rate * faster.get(part, 1.0))
        times[part] = 1e3 * seconds
    return times


def measure(args: Any) -> Path:
    name, batch = ("tiny", 4) if args.quick else ("mbs", 64)
    report, path = harness.open_report(
        NAME,
        "A training step: launches and element-wise bytes",
        settings={"preset": name, "batch": batch, "drop": 0.5, "before": args.before},
        method={
            "operations": "one step on fake tensors under bfloat16 autocast, without data and communication",
            "launches": "one for each operation of PyTorch but views, two for the backward of a LayerNorm; kernels of "
            "Triton on the pretended GPU; many tensors of the optimizer in PyTorch's chunks",
            "bytes": "inputs and outputs of every element-wise operation, once each; products and attention left out",
            "compile": "kernels that TorchInductor writes for a layer of each shape, in place of the eager ones; it "
            "decides as for an H200",
            "attention": "its rates grow as the instructions of its kernels' loops on sm_90 become fewer",
            "budget": "assumed rates: " + ", ".join(f"{key} {value}" for key, value in RATES.items()),
        },
        out=cli.output_folder(args),
        resume=args.resume,
        quick=args.quick,
    )
    done = {(row["form"], row["dropout"]) for row in report.rows}
    work = [(form, dropout) for dropout in (0.0, 0.1) for form in ("before", "after") if (form, dropout) not in done]
    lengths: dict[str, dict[str, int]] = {row["form"]: row["loops"] for row in report.rows}
    bar = progress_bar(len(work), NAME, "step")
    for form, dropout in work:
        with TemporaryDirectory() as folder:
            tree = checkout(args.before if form == "before" else "", Path(folder))
            flags = ("--preset", name, "--batch", str(batch), "--dropout", str(dropout))
            found, length = operations(tree, *flags), lengths.get(form) or loops(tree)
            narrow = operations(tree, *flags, "--narrow") if form == "after" else found
        cost = vatt_flops(with_settings(name, dropout, 0.5).model, drop=True, project_all=False)
        flops = {
            "products": 3.0 * batch * cost.dense,
            "attention forward": 1.0 * batch * cost.attention,
            "attention backward": 2.5 * batch * cost.attention,  # scores again, once
            "projection, DropToken, losses": 2.0 * batch * cost.projection,
        }
        variant = "dense dropout" if dropout else "dense"
        lengths.setdefault(form, length)
        for label in FORMS if form == "after" else (form,):
            way = "one pass" if "one pass" in label else "backward"
            if not length[f"{way} {variant}"]:
                continue
            parts = parts_of(narrow if "residual" in label else found, compiled="--compile" in label)
            faster = {
                "attention forward": lengths["before"][f"forward {variant}"] / length[f"forward {variant}"],
                "attention backward": lengths["before"][f"backward {variant}"] / length[f"{way} {variant}"],
            }
            report.rows.append(
                {
                    "form": label,
                    "dropout": dropout,
                    "parts": parts,
                    "loops": length,
                    "milliseconds": budget(parts, flops, dropout, faster),
                    "flops": batch * cost.step,
                    "kernels": sorted({k for call in found["calls"] for k in call["kernels"]}),
                }
            )
        report.save(path)
        bar.update()
    bar.close()
    report.finished = True
    report.save(path)
    return path


def totals(row: dict[str, Any]) -> tuple[int, float, float]:
    """Launches, GB and milliseconds of a step."""
    launches, size = (sum(value[i] for value in row["parts"].values()) for i in (0, 1))
    return launches, size / 1e9, sum(row["milliseconds"].values())


def page(report: Report) -> str:
    blocks = [
        "Counted and computed, not measured: no GPU took part. Milliseconds follow from assumed rates; they say what "
        "weighs most, and leave out what the host takes where it is slower than the GPU.",
    ]
    summary = []
    for row in report.rows:
        launches, size, ms = totals(row)
        mfu = row["flops"] / (ms / 1e3) / PEAK
        host = launches * RATES["host"] * 1e3  # type: ignore[operator]
        summary.append(
            [row["form"], f"{row['dropout']:g}", str(launches), f"{size:.1f}", f"{ms:.1f}", f"{mfu:.0%}", f"{host:.1f}"]
        )
    columns = ["build", "dropout", "launches", "element-wise GB", "budget ms", "of 989 TFLOP/s", "host ms at 6 us"]
    blocks.append(table(columns, summary))
    names = {name: None for row in report.rows for name in row["loops"]}
    forms = {row["form"]: row["loops"] for row in report.rows if row["form"] in ("before", "after")}
    cells = [[name, *(str(loop[name] or "–") for loop in forms.values())] for name in names]
    blocks.append("Instructions of attention's innermost loops, 64 x 64 scores and 64 wide heads on sm_90:")
    blocks.append(table(["kernels", *forms], cells))
    for dropout in sorted({row["dropout"] for row in report.rows}):
        rows = [row for row in report.rows if row["dropout"] == dropout]
        order = sorted(
            {name for row in rows for name in row["parts"]},
            key=lambda name: -max(row["milliseconds"].get(name, 0.0) for row in rows),
        )
        cells = [
            [
                name,
                *(
                    f"{n} / {size / 1e9:.1f} / {row['milliseconds'][name]:.1f}" if name in row["parts"] else "–"
                    for row in rows
                    for n, size in [row["parts"].get(name, (0, 0))]
                ),
            ]
            for name in order
        ]
        blocks += [
            f"## Dropout {dropout:g}: launches / GB / ms",
            table(["part", *(row["form"] for row in rows)], cells),
        ]
    return "\n\n".join(blocks)


def figure(report: Report, plt: Any) -> Any:
    drawn, axes = plt.subplots(1, 3, figsize=(10, 3.6))
    labels = [f"{row['form']}\ndropout {row['dropout']:g}" for row in report.rows]
    colours = [{"before": ORANGE, "after": BLUE}.get(row["form"], GREEN) for row in report.rows]
    values = zip(*(totals(row) for row in report.rows), strict=True)
    for axis, title, heights in zip(axes, ("launches", "element-wise GB", "budget, ms"), values, strict=True):
        axis.barh(labels, heights, color=colours)
        axis.invert_yaxis()
        axis.set_title(title)
    for axis in axes[1:]:
        axis.set_yticks([])
    drawn.tight_layout(rect=(0, 0, 1, 0.86))
    return drawn


def readme_rows(report: Report) -> list[tuple[str, str]]:
    what = f"{report.settings['preset'].upper()} step, batch {report.settings['batch']}, half dropped"
    return [
        (
            f"{what}, {row['form']}, dropout {row['dropout']:g} (counted, no GPU)",
            f"{totals(row)[0]} launches, {totals(row)[1]:.0f} GB element-wise, budget {totals(row)[2]:.0f} ms",
        )
        for row in report.rows
    ]


REPORT_PAGE = ReportPage(page, figure, readme_rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.make_parser("step_launches", __doc__.partition("\n")[0], EXAMPLES)
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT", help=f"what to compare with (default {BEFORE})")
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    return cli.run_benchmark(lambda: measure(args), REPORT_PAGE, args)


if __name__ == "__main__":
    sys.exit(main())
