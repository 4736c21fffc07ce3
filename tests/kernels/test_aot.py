"""Kernels compiled for GPUs that are not here: what their machine code must look like, and that a miss is noticed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.interpreter.needs import few

SPEC = importlib.util.find_spec("triton")
BIN = Path(SPEC.origin).parent / "backends" / "nvidia" / "bin" if SPEC and SPEC.origin else None
if BIN is None or not all((BIN / name).exists() for name in ("ptxas", "cuobjdump")):
    pytest.skip("needs triton with its ptxas and cuobjdump", allow_module_level=True)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, as this one may run Triton's interpreter."""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=inherited | environment)


def test_every_kernel_compiles_well(tmp_path: Path) -> None:
    """The first case of each kernel, bfloat16: no spills, tensor cores, wgmma not serialised.

    On sm_90, in `make full` also on sm_80 and sm_100.
    """
    figures, archs = tmp_path / "aot.json", few("sm_90", "sm_80", "sm_100")
    done = run("-m", "vatt_kernels.aot", "--first", "--arch", *archs, "--json", str(figures))
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(figures.read_text())["rows"]
    assert all(row["spilled"] == 0 and row["registers"] > 0 for row in rows)
    on_hopper = {row["name"]: row for row in rows if row["arch"] == "sm_90"}
    for name in ("forward", "dq", "dk dv", "dq dk dv"):
        row = on_hopper[f"attention {name} dense bf16 D=64"]
        assert row["matrix"]["HGMMA"] > row["products"] > row["waits"] > 0
        assert row["copies"]["LDGSTS.128"] > 0


def test_no_case_is_lost() -> None:
    """One for each machine code: who adds one raises the number in the same commit."""
    done = run("-c", "from vatt_kernels import aot; print(len(aot.gather_cases()))")
    assert done.stdout == "416\n", done.stderr


SERIALISED = """
from vatt_kernels import aot
cases = [case for case in aot.gather_cases() if case.name == "attention forward dense bf16 D=64"]
case = next(case for case in cases if 90 in case.archs)
bad = case._replace(constexprs=case.constexprs | {"ROWS": 128, "KEYS": 128}, warps=4)
print(aot.check(case, "sm_90").failures, *aot.check(bad, "sm_90").failures, sep="\\n")
broken = case._replace(constexprs=case.constexprs | {"ROWS": 48})
print(*aot.check(broken, "sm_90").failures)
"""


def test_serialised_wgmma_and_failed_compilations_are_noticed() -> None:
    """128 x 128 scores in four warps need more registers than there are, so ptxas waits after each wgmma."""
    done = run("-c", SERIALISED)
    good, *bad, broken = done.stdout.splitlines()
    assert good == "()", done.stderr
    assert any("wgmma serialised" in line for line in bad)
    assert "does not compile" in broken


def test_interpreter_is_refused() -> None:
    done = run("-m", "vatt_kernels.aot", TRITON_INTERPRET="1")
    assert done.returncode == 2
    assert "unset it" in done.stderr


def test_no_match_is_an_error() -> None:
    done = run("-m", "vatt_kernels.aot", "--match", "no such kernel")
    assert done.returncode == 2
    assert "no case matches 'no such kernel'" in done.stderr


TRANSPOSED = """
import triton, triton.language as tl
from vatt_kernels import aot
from vatt_kernels.aot_case import AotCase
import sys
sys.path.insert(0, sys.argv[1])
import kernels
for name in sys.argv[2:]:
    case = AotCase("a", getattr(kernels, name), {"X": "*bf16", "Y": "*bf16"}, {}, ("X", "Y"), 4, 1, True, "")
    print(aot.transposed_operands(aot.compiled(case, "sm_90").asm["ttgir"]))
"""
KERNEL = """
@triton.jit
def {name}(X, Y):
    i = tl.arange(0, 64)
    x = tl.load(X + i[:, None] * 64 + i[None, :])
    y = tl.dot(x, x)
    {line}
    tl.store(Y + i[:, None] * 64 + i[None, :], z.to(tl.bfloat16))
"""


def test_transposed_results_that_are_operands_are_noticed(tmp_path: Path) -> None:
    expected = {
        "z = tl.dot(tl.trans(y.to(tl.bfloat16)), x)": 1,
        "z = tl.dot(tl.trans(y).to(tl.bfloat16), x)": 1,
        "z = tl.dot(y.to(tl.bfloat16), x)": 0,
        "z = tl.trans(y)": 0,
        "z = tl.dot(tl.trans(x), x)": 0,
    }
    named = {f"kernel_{number}": line for number, line in enumerate(expected)}
    kernels = [KERNEL.format(name=name, line=line) for name, line in named.items()]
    (tmp_path / "kernels.py").write_text("".join(["import triton, triton.language as tl", *kernels]))
    done = run("-c", TRANSPOSED, str(tmp_path), *named)
    assert done.stdout.split() == list(map(str, expected.values())), done.stderr


LOOP = """
$L__BB0_1:
{ahead}
wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {{%r1}}, %rd1, %rd2;
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
{behind}
@%p1 bra $L__BB0_1;
bar.sync 0;
st.shared.v4.b32 [%r9], {{%r1}};
ret;
"""


@pytest.mark.parametrize(
    ("ahead", "behind", "early"),
    [
        ("", "bar.sync 0;\ncp.async.cg.shared.global [%r2], [%rd3], 0x10;", 0),
        ("", "cp.async.cg.shared.global [%r2], [%rd3], 0x10;\nbar.sync 0;", 1),
        ("@%p2 st.shared.b32 [%r2], %r3;\nbar.sync 0;", "", 1),  # of the next turn
        ("", "@%p3 bra $L__BB0_1;\nst.shared.b32 [%r2], %r3;", 1),
        ("bar.sync 0;\nst.shared.b32 [%r2], %r3;", "ld.shared.b32 %r4, [%r2];\nst.global.b32 [%rd4], %r4;", 0),
        ("", "cp.async.commit_group;\ncp.async.wait_group 0;", 0),
        ("add.s32 %r2, %r5, 4000;", "st.shared::cta.b32 [ %r2 + 96 ], {%r3};", 0),  # behind all tiles
        ("add.s32 %r2, %r5, 4000;", "st.shared::cta.b32 [ %r2 + 92 ], {%r3};", 1),
    ],
)
def test_writes_before_the_barrier_after_wgmma_are_noticed(ahead: str, behind: str, early: int) -> None:
    from vatt_kernels.aot import early_writes

    assert len(early_writes(LOOP.format(ahead=ahead, behind=behind), shared=4096 + 512)) == early


EARLY = """
from vatt_kernels import aot
cases = [case for case in aot.gather_cases() if case.name == "projection forward voxels bf16 128x128"]
for early in (cases[0].early, ()):
    print(*aot.check(cases[0]._replace(early=early), "sm_90").failures)
"""


def test_only_writes_that_are_known_to_be_harmless_may_come_early() -> None:
    stated, unstated = run("-c", EARLY).stdout.splitlines()
    assert stated == ""
    assert "before a barrier after wgmma (cp.async" in unstated


ASSERTING = """
import triton
from vatt_kernels import aot
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
named = {case.name: case for case in aot.gather_cases()}
for name in ("tokens gather 16-bit", "projection forward voxels bf16 64x64", "attention dk dv packed bf16 D=64"):
    case = named[name]
    source = ASTSource(case.kernel, case.signature, case.constexprs)
    for debug in (True, False):
        kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"debug": debug})
        print("__assertfail" in kernel.asm["ptx"])
"""


def test_indices_and_lengths_are_held_to_their_range_when_debugging() -> None:
    """What a GPU reads is not looked at on the host; TRITON_DEBUG=1 lets kernels stop there."""
    done = run("-c", ASSERTING)
    assert done.stdout.split() == ["True", "False"] * 3, done.stderr
