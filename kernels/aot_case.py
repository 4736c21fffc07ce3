"""One configuration of one Triton kernel, as the ahead-of-time check compiles it for a GPU that is not there."""

from __future__ import annotations

from typing import NamedTuple


class AotCase(NamedTuple):
    """What fixes the machine code of a kernel; cases equal in all but `name` and `shape` are compiled once.

    Attributes:
        name: of the operation, the direction and the variant, for people and for expectations.
        kernel: the `@triton.jit` function.
        signature: type of every argument in order ("*bf16", "fp32", "i64", ..., "constexpr").
        constexprs: value of every constexpr argument.
        divisible: pointer, stride and size arguments that a launch finds divisible by 16.
        warps: per program.
        stages: of the software pipeline.
        tiles_of_64: whether its products have 64 rows or more, so that wgmma and tcgen05 are expected.
        shape: the VATT shape that launches it, for people.
        early: how writes to shared memory begin, in PTX, that may come before the barrier after wgmma, as wgmma reads
            nothing from where they go.
        archs: compute capabilities (80, 90, 100) it is chosen for; empty means all.
    """

    name: str
    kernel: object
    signature: dict[str, str]
    constexprs: dict[str, object]
    divisible: tuple[str, ...]
    warps: int
    stages: int
    tiles_of_64: bool
    shape: str
    archs: tuple[int, ...] = ()
    early: tuple[str, ...] = ()
