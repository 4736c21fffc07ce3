"""What the kernels compile to for GPUs that are not here: registers, spills, shared memory, matrix instructions.

Runs `python -m vatt_kernels.aot --all` and keeps its figures. They are the compiler's, so they do not depend on the
machine that compiles; nothing is timed, and a kernel that compiles well may still be slow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import cli
from harness import report as harness
from harness.pages import ReportPage, table
from harness.report import Report, ReportError

NAME = "aot_table"
ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
FAMILIES = ("attention", "contrastive", "projection", "tokens")
EXAMPLES = """examples:
  python bench/aot_table.py                   all kernels and dtypes for four architectures, about 15 minutes
  python bench/aot_table.py --quick           the first case of each kernel, two minutes

exit codes: 0 every expectation holds, 1 a kernel misses one or nothing compiles, 2 wrong usage."""


def family(name: str) -> str:
    """The operation a case belongs to: the first word of its name."""
    return name.partition(" ")[0]


def compile_all(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of `python -m vatt_kernels.aot` with these arguments. Raises `ReportError` when it does not end well."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "aot.json"
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "vatt_kernels.aot", *arguments, "--json", str(path)]
        done = subprocess.run(command, cwd=harness.ROOT, env=environment, stdout=subprocess.DEVNULL, check=False)
        if not path.exists():
            raise ReportError(f"{' '.join(command[1:])} ended with exit code {done.returncode} and without figures")
        rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


def expected(row: dict[str, Any]) -> bool:
    """Whether something is expected of a row: of the chosen bfloat16 and float16 configurations, on NVIDIA GPUs."""
    return " fp32" not in row["name"] and not row["arch"].startswith("gfx")


def page(report: Report) -> str:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in report.rows:
        groups[family(row["name"]), row["arch"]].append(row)
    summary = []
    for (name, arch), rows in sorted(groups.items()):
        held = [row for row in rows if expected(row)]
        summary.append(
            [
                name,
                arch,
                str(len(rows)),
                str(len(held)),
                str(max(row["registers"] for row in rows)),
                str(max((row["spilled"] for row in held), default=0)),
                str(max(row["spilled"] for row in rows)),
                str(max(row["shared"] for row in rows)),
                str(sum(bool(row["failures"]) for row in rows)),
            ]
        )
    columns = [
        "kernels of",
        "arch",
        "compiled",
        "held to expectations",
        "most registers",
        "spilled bytes of these",
        "of all",
        "most shared bytes",
        "missed",
    ]
    every = [
        [
            row["name"],
            row["arch"],
            str(row["warps"]),
            str(row["stages"]),
            str(row["registers"]),
            str(row["spilled"]),
            str(row["shared"]),
            counts(row["matrix"]),
            counts(row["copies"]),
            f"{row['waits']}/{row['products']}" if row["products"] else "",
            "; ".join(row["failures"]) or "ok",
        ]
        for row in report.rows
    ]
    heads = [
        "kernel",
        "arch",
        "warps",
        "stages",
        "registers",
        "spilled",
        "shared",
        "matrix",
        "async copies",
        "waits/wgmma",
        "verdict",
    ]
    return "\n\n".join(
        [
            "Expected of bfloat16 and float16 on sm_80, sm_90 and sm_100: no spills, shared "
            "memory within the limit, and "
            "in kernels with tiles of 64 rows or more HGMMA (sm_90) or UTCHMMA (sm_100), wide asynchronous loads, and "
            "fewer waits than wgmma. Float32 products are IEEE, not TF32, and run on "
            "ordinary cores: reported only, as is "
            "gfx942.",
            table(columns, summary, left=2),
            "## Every case",
            table(heads, every, left=2),
        ]
    )


def counts(kinds: dict[str, int] | None) -> str:
    return " ".join(f"{kind} {number}" for kind, number in (kinds or {}).items())


def readme_rows(report: Report) -> list[tuple[str, str]]:
    held = [row for row in report.rows if expected(row)]
    good = sum(not row["failures"] for row in held)
    return [
        (
            "kernels compiled ahead of time for sm_80, sm_90, sm_100 in bfloat16 and float16 (never run on a GPU)",
            f"{good} of {len(held)} without spills and as expected, Triton {report.settings['triton']}",
        )
    ]


REPORT_PAGE = ReportPage(page, None, readme_rows)


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.make_parser("aot_table", __doc__.partition("\n")[0], EXAMPLES)
    parser.add_argument("--arch", nargs="+", default=list(ARCHS), choices=ARCHS, help="default: all four")
    cli.add_common_flags(parser)
    args = parser.parse_args(argv)
    try:
        import triton

        arguments = ["--first" if args.quick else "--all", "--arch", *args.arch]
        report, path = harness.open_report(
            NAME,
            "The kernels, compiled ahead of time",
            settings={"arch": args.arch, "triton": triton.__version__},
            method={"compiler": f"Triton {triton.__version__} with its own ptxas; cases equal in all constants once"},
            out=cli.output_folder(args),
            resume=False,
            quick=args.quick,
        )
        report.rows = compile_all(arguments)
        failures = [
            f"{row['name']} {row['arch']}: {'; '.join(row['failures'])}" for row in report.rows if row["failures"]
        ]
        report.gate = {"green": None, "checks": failures}  # numerics are not what a compiler can show
        report.finished = True
        report.save(path)
        cli.publish(path, REPORT_PAGE, path.parents[1])
    except ImportError as error:
        print(f"error: {error}; compiling needs the package triton", file=sys.stderr)
        return 1
    except ReportError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(failures) or f"all {len(report.rows)} compilations are as expected")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
