"""`python -m vatt_kernels.aot`: compile every Triton kernel for GPUs that are not here, and look at the machine code.

For each case of `catalog.TRITON_FILES`: registers, spilled bytes, shared memory, matrix instructions,
asynchronous copies by width in bits, and of the innermost loop its length and, for wgmma, waits beside products (as
many waits as products mean that ptxas serialised them). What is one machine code for several shapes is compiled once.

Expected of bfloat16 and float16 on NVIDIA: no spills, and shared memory within a block's limit; where tiles have 64
rows or more, wgmma (sm_90), not serialised, or tcgen05 (sm_100), and wide asynchronous copies if the loop is pipelined.
Where two groups of warps share a product (8 warps, wgmma), a barrier of the block lies between the wait for it and the
next write to shared memory: each group waits for itself alone. float32 and other vendors are reported only. The exit
code is 1 when an expectation fails.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from .aot_case import AotCase
from .catalog import TRITON_FILES

ARCHS = ("sm_80", "sm_90", "sm_100", "gfx942")
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448}  # bytes that a block may ask for
SHORT = {"*bf16", "*fp16"}
WRITES = re.compile(r"(st|red|atom)\b\S*\.shared|stmatrix|cp\.async\S*\.shared")  # of PTX, to shared memory
TILE = 1024  # bytes: tiles that wgmma reads begin and end at multiples of it
TENSOR = ("HMMA", "HGMMA", "UTCHMMA", "v_mfma")


class Found(NamedTuple):
    """What one compilation made of one case. `loop` counts the instructions of the innermost loop with products."""

    name: str
    arch: str
    shape: str
    warps: int
    stages: int
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    matrix: dict[str, int] | None = None
    copies: dict[str, int] | None = None
    loop: int = 0
    products: int = 0
    waits: int = 0
    failures: tuple[str, ...] = ()


def gather_cases() -> list[AotCase]:
    """The cases that the files of `catalog.TRITON_FILES` list, one for each machine code."""
    cases: dict[tuple[object, ...], AotCase] = {}
    for name in TRITON_FILES:
        for case in importlib.import_module(f".{name}", __package__).aot_cases():
            key = (id(case.kernel), *map(repr, case[2:8]), case.archs)
            shapes = [cases[key].shape] if key in cases else []
            if case.shape not in "; ".join(shapes).split("; "):
                shapes.append(case.shape)
            cases[key] = case._replace(shape="; ".join(shapes))
    return list(cases.values())


def short(case: AotCase) -> bool:
    return not SHORT.isdisjoint(case.signature.values())


def default(case: AotCase) -> bool:
    """Whether the case is compiled without --all: those of bfloat16, and those that hold no floating numbers."""
    types = set(case.signature.values())
    return "*bf16" in types or types.isdisjoint({"*fp16", "*fp32"})


def number_of(arch: str) -> int:
    """`sm_90` -> 90, `gfx942` -> 942, as in `AotCase.archs`."""
    return int(re.sub(r"\D", "", arch))


def tool(name: str) -> str:
    """A program of the CUDA toolkit that the triton wheel brings along.

    Raises:
        FileNotFoundError: this build of triton has none.
    """
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: install the triton wheel for Linux x86-64")
    return str(path)


def compiled(case: AotCase, arch: str) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    target = GPUTarget("hip", arch, 64) if arch.startswith("gfx") else GPUTarget("cuda", number_of(arch), 32)
    names = list(case.signature)
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in case.divisible}
    source = ASTSource(case.kernel, case.signature, case.constexprs, attributes)
    return triton.compile(source, target=target, options={"num_warps": case.warps, "num_stages": case.stages})


def opcode(instruction: str) -> str:
    """`@!P0 HGMMA.64x64x16.F32.BF16 R24, ...` -> `HGMMA.64x64x16.F32.BF16`."""
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]


def tally(opcodes: Iterable[str], kinds: tuple[str, ...]) -> dict[str, int]:
    counts = Counter(kind for code in opcodes for kind in kinds if code.startswith(kind))
    return {kind: counts[kind] for kind in kinds if counts[kind]}


def copies_by_width(opcodes: list[str]) -> dict[str, int]:
    """Asynchronous copies: LDGSTS by bits that a thread copies, and those of the tensor memory accelerator."""
    counts: Counter[str] = Counter()
    for code in opcodes:
        if code.startswith("LDGSTS"):
            width = re.search(r"\.(64|128)\b", code)
            counts[f"LDGSTS.{width[1] if width else 32}"] += 1
        elif code.startswith("UTMALDG"):
            counts["UTMALDG"] += 1
    return dict(counts)


def main_loop(sass: list[tuple[int, str]]) -> list[str]:
    """Opcodes of the innermost loop with most matrix instructions, of (address, instruction) in order of addresses."""
    index_of = {address: index for index, (address, _) in enumerate(sass)}
    loops = []
    for index, (address, instruction) in enumerate(sass):
        target = re.search(r"\bBRA\b.*\b(0x[0-9a-f]+)", instruction)
        begin = index_of.get(int(target[1], 16)) if target else None
        if begin is not None and sass[begin][0] < address:
            opcodes = [opcode(text) for _, text in sass[begin : index + 1]]
            loops.append((begin, index, sum(tally(opcodes, TENSOR).values()), opcodes))
    loops = [loop for loop in loops if loop[2]]
    inner = [a for a in loops if not any(a[:2] != b[:2] and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return max(inner, key=lambda loop: loop[2])[3] if inner else []


def inspect_nvidia(case: AotCase, kernel: Any, compiled: Found) -> Found:
    with TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        command = [tool("cuobjdump"), "-res-usage", "-sass", str(cubin)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if usage is None:
        raise RuntimeError(f"{compiled.name} on {compiled.arch}: cuobjdump printed no resource usage")
    sass = [(int(a, 16), code) for a, code in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\*", text, re.M)]
    opcodes, loop = [opcode(code) for _, code in sass], main_loop(sass)
    return compiled._replace(
        registers=int(usage[1]),
        spilled=int(usage[2]),
        shared=kernel.metadata.shared,
        matrix=tally(opcodes, TENSOR if short(case) else (*TENSOR, "FFMA")),
        copies=copies_by_width(opcodes),
        loop=len(loop),
        products=sum(tally(loop, ("HGMMA",)).values()),
        waits=sum(tally(loop, ("WARPGROUP.DEPBAR",)).values()),
    )


def inspect_amd(kernel: Any, compiled: Found) -> Found:
    text = kernel.asm["amdgcn"]

    def figure(name: str) -> int:
        match = re.search(rf"\.{name}:\s+(\d+)", text)
        return int(match[1]) if match else 0

    return compiled._replace(
        registers=figure("vgpr_count"),
        spilled=figure("private_segment_fixed_size"),
        shared=kernel.metadata.shared,
        matrix={"v_mfma": len(re.findall(r"\bv_mfma", text))},
    )


def unmet(case: AotCase, kernel: Any, compiled: Found) -> tuple[str, ...]:
    """Expectations that do not hold, in words."""
    failures = []
    if compiled.spilled:
        failures.append(f"spills {compiled.spilled} bytes")
    if compiled.shared > SHARED_LIMIT[compiled.arch]:
        failures.append(f"shared memory {compiled.shared} > {SHARED_LIMIT[compiled.arch]} bytes")
    instruction = {"sm_90": "HGMMA", "sm_100": "UTCHMMA"}.get(compiled.arch)
    if case.tiles_of_64 and instruction and instruction not in (compiled.matrix or {}):
        failures.append(f"no {instruction}")
    if case.tiles_of_64 and case.stages > 1 and compiled.loop and not set(compiled.copies or {}) - {"LDGSTS.32"}:
        failures.append("no wide asynchronous copy")
    if operands := transposed_operands(kernel.asm["ttgir"]):
        failures.append(f"{operands} operands of wgmma are transposed results of wgmma")
    writes = early_writes(kernel.asm["ptx"], compiled.shared) if case.warps > 4 else []
    if early := [write for write in writes if not write.startswith(case.early)]:
        failures.append(f"{len(early)} writes to shared memory before a barrier after wgmma ({early[0]})")
    if compiled.products > 1 and compiled.waits >= compiled.products:
        failures.append(f"wgmma serialised: {compiled.waits} waits for {compiled.products} products ({notes(kernel)})")
    return tuple(failures)


def notes(kernel: Any) -> str:
    """What ptxas says about serialised wgmma."""
    with TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernel.ptx"
        ptx.write_text(kernel.asm["ptx"])
        command = [tool("ptxas"), "-arch", "sm_90a", "-v", str(ptx), "-o", str(Path(folder) / "kernel.cubin")]
        remarks = subprocess.run(command, capture_output=True, text=True).stderr
    return "; ".join(sorted(set(re.findall(r"\(C75\d\d\)", remarks)))) or "ptxas gives no reason"


def transposed_operands(ttgir: str) -> int:
    """Operands of wgmma that are a transposed result of wgmma, which triton 3.4 to 3.7.0 computes wrongly.

    Follows each transposed value in an mma layout through what is computed of it, within the text of Triton's GPU IR.
    """
    tainted: set[str] = set()
    count = 0
    for line in ttgir.splitlines():
        made = re.match(r"\s*(%[\w-]+)(?::\d+)? = (\S+) (.*)", line)
        if made is None:
            continue
        name, operation, rest = made.groups()
        used = re.findall(r"%[\w-]+", rest)
        if operation == "ttng.warp_group_dot":
            count += sum(value in tainted for value in used[:2])
        elif (operation == "tt.trans" and re.search(r": tensor<[^>]*#mma", rest)) or not tainted.isdisjoint(used):
            tainted.add(name)
    return count


def early_writes(ptx: str, shared: int) -> list[str]:
    """Instructions that write to shared memory after a wait for wgmma, with no barrier of the block on the way.

    Another group of warps may still be multiplying: https://github.com/triton-lang/triton/issues/11047. Follows all
    branches. Of the place only a constant part is seen in the text: what lies behind the last whole `TILE` of the
    kernel's `shared` bytes is no operand of wgmma (triton 3.8 keeps sums there).
    """
    added = {name: (base, int(n)) for name, base, n in re.findall(r"add\.s32\s+(%r\d+), (%r\d+), (\d+);", ptx)}

    def behind_tiles(operands: str) -> bool:
        place = re.match(r"\[ ?(%r\d+)(?: ?\+ ?(\d+))?", operands)
        if place is None:
            return False
        base, offset = place[1], int(place[2] or 0)
        while base in added:
            base, offset = added[base][0], offset + added[base][1]
        return offset >= shared // TILE * TILE

    code: list[tuple[bool, str, str]] = []  # predicated?, opcode, operands
    labels: dict[str, list[int]] = {}  # names within braces, those of a wait for a barrier, stand more than once
    for line in ptx.splitlines():
        if label := re.match(r"\s*([$\w]+):", line):
            labels.setdefault(label[1], []).append(len(code))
        elif instruction := re.match(r"\s*(@\S+\s+)?([a-z][\w.:]*)\s*(.*)", line):
            code.append((bool(instruction[1]), instruction[2], instruction[3]))
    early, visited, paths = set[int](), set[tuple[int, bool]](), [(0, False)]
    while paths:
        at, waited = paths.pop()
        while at < len(code) and (at, waited) not in visited:
            visited.add((at, waited))
            predicated, operation, operands = code[at]
            if operation.startswith("wgmma.wait_group"):
                waited = True
            elif operation.startswith(("bar.sync", "barrier.sync", "barrier.cta.sync")):
                waited = False
            elif waited and WRITES.match(operation) and not behind_tiles(operands):
                early.add(at)
            elif operation.startswith("bra"):
                places = labels[operands.strip().rstrip(";")]
                paths.append((min(places, key=lambda target: abs(target - at)), waited))
            if operation.startswith(("bra", "ret", "exit")) and not predicated:
                break
            at += 1
    return [f"{operation} {operands}" for _, operation, operands in (code[at] for at in sorted(early))]


def check(case: AotCase, arch: str) -> Found:
    """Compile one case for one arch; what cannot be compiled is a failure as well."""
    result = Found(case.name, arch, case.shape, case.warps, case.stages)
    try:
        kernel = compiled(case, arch)
    except Exception as error:  # whatever triton's passes raise: the other cases are still worth a look
        return result._replace(failures=(f"does not compile: {type(error).__name__}: {' '.join(str(error).split())}",))
    if arch.startswith("gfx"):
        return inspect_amd(kernel, result)
    result = inspect_nvidia(case, kernel, result)
    return result._replace(failures=unmet(case, kernel, result)) if short(case) else result


def table(rows: list[Found]) -> str:
    """Markdown, one line for each case and arch."""
    head = "kernel|arch|warps|stages|registers|spills|shared|matrix|async copies|loop|waits/wgmma|"
    lines = [f"|{head}|", "|---" * (head.count("|") + 1) + "|"]
    for row in rows:
        counts = [" ".join(f"{kind} {n}" for kind, n in (kinds or {}).items()) for kinds in (row.matrix, row.copies)]
        waits = f"{row.waits}/{row.products}" if row.products else ""
        figures = (row.warps, row.stages, row.registers, row.spilled, row.shared, *counts, row.loop, waits)
        cells = (row.name, row.arch, *figures, "; ".join(row.failures) or "ok")
        lines.append("|" + "|".join(map(str, cells)) + "|")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vatt_kernels.aot", description="Compile for GPUs that are not here."
    )
    parser.add_argument("--arch", nargs="+", choices=ARCHS, default=list(ARCHS[:3]), help="default: %(default)s")
    parser.add_argument("--all", action="store_true", help="float16 and float32 too, not only bfloat16")
    parser.add_argument("--first", action="store_true", help="of each kernel only the case that is listed first")
    parser.add_argument("--match", default="", metavar="TEXT", help="only cases with TEXT in their names")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled; unset it")
    import triton
    from tqdm import tqdm

    cases = [case for case in gather_cases() if options.match in case.name]
    if not options.all:
        cases = [case for case in cases if default(case)]
    work: list[tuple[AotCase, str]] = []
    for arch in options.arch:
        fitting = [case for case in cases if not case.archs or number_of(arch) in case.archs]
        if options.first:
            fitting = list({id(case.kernel): case for case in reversed(fitting)}.values())[::-1]
        work += [(case, arch) for case in fitting]
    if not work:
        parser.error(f"no case matches {options.match!r}")
    rows = [check(case, arch) for case, arch in tqdm(work, unit="kernel")]
    failed = sum(bool(row.failures) for row in rows)
    print(f"triton {triton.__version__}: {len(rows)} compilations, {failed} miss an expectation\n\n{table(rows)}")
    if options.json:
        record = {"triton": triton.__version__, "argv": sys.argv[1:], "rows": [row._asdict() for row in rows]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
