"""Which tiles are fastest on this GPU: candidates of every launch table at VATT's shapes, in a minute.

What wins by more than 2 % over the choice of the code is written to kernels/measured_launches.json under the GPU's
name, and from then on launched there. A candidate whose results are off, or that does not compile, is left out.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness import cli
from harness.pages import table

import torch
from torch import Tensor
from vatt_kernels import tuning
from vatt_kernels.spec.cases import smaller
from vatt_kernels.spec.inputs import Draw, Inputs
from workloads import pretended_gpu
from workloads.gpu_measurements import BY_NAME, SEED, Clock

from vatt.runtime.files import write_atomically
from vatt.runtime.provenance import environment

GAIN = 1.02  # what a choice of the code must be beaten by
ROUNDS = 10
OFF = 4.0  # roundings, relative to the norm, by which two launches may differ
EXAMPLES = """examples:
  python bench/tune.py                        all kernels, at most a minute
  python bench/tune.py --seconds 30 --only attention
  python bench/tune.py --dry-run              no GPU: everything but the GPU, to runs/; its numbers mean nothing

exit codes: 0 done (what did not fit into the seconds is listed), 1 no candidate works, 2 wrong usage or no GPU."""


class Target(NamedTuple):
    """A launch by its name in `vatt_kernels.tuning`, what it is timed on, and launches to try."""

    name: str
    operation: str
    cases: tuple[str, ...]
    backward: bool
    candidates: tuple[tuple[int, ...], ...]
    settings: Mapping[str, Any] = {}  # of the operation, besides those of its cases


HALF, WHOLE = "Medium 224, 50% dropped", "Medium 224, 0% dropped"
DROPOUT = (f"{HALF}, dropout 0.1",)
TARGETS = (  # the most important first; all are (rows, keys or columns, ...) of the launch's own type
    Target(
        "attention dk dv 64",
        "attention",
        (HALF, WHOLE),
        True,
        ((64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 8, 2), (32, 64, 4, 2)),
    ),
    Target(
        "attention dq 64",
        "attention",
        (HALF, WHOLE),
        True,
        ((64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3)),
    ),
    Target(
        "attention dq dk dv 64",
        "attention",
        (HALF, WHOLE),
        True,
        ((64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 8, 2), (128, 64, 8, 2)),
        {"one_pass": True},
    ),
    Target(
        "attention forward 64",
        "attention",
        (HALF, WHOLE),
        False,
        ((64, 64, 4, 3), (128, 64, 8, 3), (64, 128, 4, 3), (128, 64, 4, 3), (128, 128, 8, 3), (64, 64, 4, 2)),
    ),
    Target(
        "attention forward with features 64",
        "attention",
        DROPOUT,
        False,
        ((64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2)),
    ),
    Target(
        "contrastive gradient 512",
        "contrastive_loss",
        ("NCE, 2048 clips",),
        True,
        ((64, 32, 8, 2), (64, 64, 8, 1), (64, 32, 4, 2)),
    ),
    Target(
        "contrastive gradient 256",
        "contrastive_loss",
        ("MIL-NCE, 2048 clips",),
        True,
        ((128, 64, 8, 2), (64, 64, 8, 2), (64, 64, 4, 2)),
    ),
    Target(
        "contrastive sums 256",
        "contrastive_loss",
        ("MIL-NCE, 2048 clips",),
        False,
        ((128, 128, 8, 2), (64, 128, 4, 2), (64, 64, 4, 2)),
    ),
    Target(
        "projection forward",
        "project_voxels",
        (HALF,),
        False,
        ((128, 256, 64, 8, 3, 1), (128, 128, 64, 8, 3, 1), (64, 128, 64, 4, 3, 3)),
    ),
    Target(
        "projection weight",
        "project_voxels",
        (HALF,),
        True,
        ((128, 128, 64, 8, 3, 2), (128, 256, 64, 8, 2, 1), (64, 128, 64, 4, 3, 3)),
    ),
)


class Subject(NamedTuple):
    """One case of a target, ready to be run."""

    spec: Any
    inputs: Inputs
    backward: bool
    clock: Clock

    def once(self) -> list[Tensor]:
        """Run it, timed by `clock`; return the output, or the gradients."""
        found: list[Tensor] = []
        out = self.spec.call(self.inputs, "triton")
        if not self.backward:
            self.clock.time(lambda: found.append(self.spec.call(self.inputs, "triton").detach()))
            return found
        grad = Draw(out.dtype, out.device, SEED).normal(*out.shape)
        self.clock.time(lambda: found.extend(torch.autograd.grad(out, list(self.inputs.leaves.values()), grad)))
        return found

    def seconds(self, rounds: int) -> float:
        times = []
        for _ in range(rounds):
            self.once()
            times.append(self.clock.seconds)
        return statistics.median(times)


def subjects(target: Target, device: str, dry: bool) -> list[Subject]:
    spec = BY_NAME[target.operation]
    cases = {case.name: case for case in spec.shapes()}
    made = []
    for name in target.cases[:1] if dry else target.cases:
        case = smaller(cases[name], clips=1, pairs=256) if dry else cases[name]
        inputs = spec.make(case, torch.bfloat16, device, SEED).differentiable()
        inputs.rest.update(target.settings)
        made.append(Subject(spec, inputs, target.backward, Clock("cpu" if dry else device)))
    return made


def off(found: list[list[Tensor]], expected: list[list[Tensor]]) -> bool:
    """Whether results differ by more than two orders of summation do."""
    pairs = [pair for one, other in zip(found, expected, strict=True) for pair in zip(one, other, strict=True)]
    allowed = OFF * torch.finfo(torch.bfloat16).eps
    return any(not float((a.double() - b.double()).norm()) <= allowed * float(b.double().norm()) for a, b in pairs)


def tune(target: Target, device: str, dry: bool, late: Callable[[], bool]) -> list[dict[str, Any]]:
    """A row for the launch of the code and for each candidate: seconds over all cases, or why there are none."""
    cases = subjects(target, device, dry)
    rounds = 1 if dry else ROUNDS
    expected = [case.once() for case in cases]
    rows = [{"launch": None, "seconds": sum(case.seconds(rounds) for case in cases)}]
    for launch in target.candidates[: 1 if dry else None]:
        if late():
            return [*rows, {"launch": list(launch), "left_out": "no time was left"}]
        with tuning.trying(target.name, launch):
            row: dict[str, Any] = {"launch": list(launch)}
            try:
                if not dry and off([case.once() for case in cases], expected):
                    row["left_out"] = "its results are off"
                else:
                    row["seconds"] = sum(case.seconds(rounds) for case in cases)
            except Exception as error:  # whatever a compiler raises; the other candidates are still worth a look
                row["left_out"] = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        rows.append(row)
    return rows


def write_table(path: Path, gpu: str, found: dict[str, list[dict[str, Any]]], made: dict[str, Any]) -> dict[str, Any]:
    """Put what beats the code into the file, beside other GPUs; return what was chosen by name."""
    chosen = {}
    for name, rows in found.items():
        timed = [row for row in rows if "seconds" in row]
        best = min(timed, key=lambda row: row["seconds"])
        if best["launch"] and rows[0]["seconds"] > GAIN * best["seconds"]:
            chosen[name] = best["launch"]
    entries = json.loads(path.read_text()) if path.exists() else {}
    kept = {name: launch for name, launch in entries.get(gpu, {}).get("launches", {}).items() if name not in found}
    entries[gpu] = {"made": made, "launches": kept | chosen}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(entries, indent=1) + "\n").encode())
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    parser = cli.make_parser("tune", __doc__.partition("\n")[0], EXAMPLES)
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE", help="the table (default kernels/measured_launches.json)")
    add("--seconds", type=float, default=60.0, metavar="S", help="time for all of it (default 60)")
    add("--only", default="", metavar="TEXT", help="only launches with TEXT in their names")
    add("--dry-run", action="store_true", help="a pretended GPU and small shapes, to see that everything works")
    args = parser.parse_args(argv)
    targets = [target for target in TARGETS if args.only in target.name]
    if not targets:
        parser.error(f"no launch has {args.only!r} in its name")
    if not args.dry_run and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU here; --dry-run shows what the program does without one")
    if args.dry_run:
        pretended_gpu.install()
    out = args.out or (Path("runs/measured_launches.json") if args.dry_run else tuning.TABLE)
    deadline, found = time.monotonic() + args.seconds, {}

    def late() -> bool:
        return time.monotonic() > deadline

    for target in targets:
        if late():
            print(f"left out: {target.name}", file=sys.stderr)
        else:
            found[target.name] = tune(target, "cuda", args.dry_run, late)
    made = environment("cpu" if args.dry_run else "cuda")
    made = {key: made[key] for key in ("commit", "versions")} | {"command": " ".join(sys.argv)}
    gpu = torch.cuda.get_device_name()
    chosen = write_table(out, gpu, found, made)
    lines = [
        [
            name,
            str(row["launch"] or "of the code"),
            f"{1e6 * row['seconds']:.1f}" if "seconds" in row else row["left_out"],
        ]
        for name, rows in found.items()
        for row in rows
    ]
    print(table(["launch", "tile", "us"], lines, left=2))
    print(f"{gpu}: {len(chosen)} of {len(found)} launches are faster than those of the code; {out}")
    return 0 if all(any("seconds" in row for row in rows) for rows in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
