"""compute-sanitizer over kernels that come near open reports of wrong reads of shared memory, where the tool is there.

As a script, `python sanitized_case.py OPERATION CASE DTYPE [spare]`, it is what the tool watches: one case forward and
backward, `spare` with the tile that takes the place of one that is red.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import Any

import torch
from vatt_kernels.catalog import SPECS
from vatt_kernels.spec.cases import Case

Row = dict[str, Any]
SECONDS = 120.0  # of one case, most of which Triton compiles
FAULTY = 99  # what the tool returns where it has found something
WIDE = "130 clips, width 512"
# Operands of wgmma that are 16 or 32 wide beside a second product: heads 128 and 16 wide, vectors of 512.
WATCHED = (
    ("attention", "plain, N = 65, D = 128", ""),
    ("attention", "plain, N = 63", ""),
    ("contrastive_loss", WIDE, ""),
    ("contrastive_loss", WIDE, "spare"),
)


def case_of(operation: str, name: str) -> Case:
    spec = next(spec for spec in SPECS if spec.name == operation)
    by_name = {case.name: case for case in spec.cases()}
    if operation == "contrastive_loss":
        by_name[WIDE] = Case(WIDE, by_name["130 clips, width 63"].sizes | {"width": 512})
    return by_name[name]


def sanitizer(operation: str, case: str, variant: str, device: str) -> list[Row]:
    """One row: green, red with what the tool said, or skipped with the reason why it could not look."""
    row: Row = {"kind": "sanitizer", "operation": operation, "case": case, "dtype": "bfloat16", "variant": variant}
    program = shutil.which("compute-sanitizer")
    if device == "cpu":
        return [row | {"skipped": "no GPU"}]
    if program is None:
        return [row | {"skipped": "compute-sanitizer, of the CUDA toolkit, is not on PATH"}]
    command = [
        program,
        "--tool",
        "memcheck",
        "--error-exitcode",
        str(FAULTY),
        sys.executable,
        __file__,
        operation,
        case,
        "bfloat16",
        *filter(None, [variant]),
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [row | {"skipped": f"took longer than {SECONDS:.0f} s"}]
    return [row | verdict(done.returncode, done.stdout + done.stderr)]


def verdict(code: int, output: str) -> Row:
    """What the tool's exit code and words mean."""
    count = re.search(r"ERROR SUMMARY: (\d+) error", output)
    lines = [line.strip("= ").strip() for line in output.splitlines() if line.strip("= ").strip()]
    if count and int(count[1]):
        invalid = [line for line in lines if "Invalid" in line or "Error" in line][:3]
        return {"green": False, "red": f"{count[1]} errors: {'; '.join(invalid)}"}
    if "Traceback" in output:
        return {"green": False, "error": lines[-1] if lines else "failed"}
    if count and code == 0:
        return {"green": True}
    return {"skipped": f"compute-sanitizer refused (exit code {code}): {lines[-1] if lines else 'said nothing'}"}


def main(operation: str, case: str, dtype: str, variant: str = "") -> None:
    if variant == "spare":
        from vatt_kernels.contrastive import triton_forward

        triton_forward.LAUNCHES[:] = [
            (*row[:4], triton_forward.SPARE.get(row[:4], row[4])) for row in triton_forward.LAUNCHES
        ]
    spec = next(spec for spec in SPECS if spec.name == operation)
    inputs = spec.make(case_of(operation, case), getattr(torch, dtype), "cuda", 0).differentiable()
    out = spec.call(inputs, "triton")
    torch.autograd.grad(out, list(inputs.leaves.values()), torch.ones_like(out))
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(*sys.argv[1:])
