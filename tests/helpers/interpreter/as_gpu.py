"""Triton's interpreter made like a GPU, for tests that run with TRITON_INTERPRET=1.

- bfloat16 has values: products and sums are float32, results are rounded to nearest even.
- exp2 and division are approximate as those of a GPU are (2 ulp), numbers too small for a normal float32 are 0.
- Programs run in random order.
- Every access lies inside a tensor of the launch, and no program touches what another one writes.
- Device assertions hold, as under TRITON_DEBUG=1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from vatt_kernels import device

Handle, Builder = interpreter.TensorHandle, interpreter.InterpreterBuilder
SMALLEST = np.float32(2.0**-126)
EXP2_ERROR, DIVISION_ERROR = 2.0**-22, 2.0**-23  # relative, of ex2.approx.ftz and div.full


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16, which the interpreter holds as uint16, to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrowed(values: np.ndarray) -> np.ndarray:
    """float32 to the bits of the nearest bfloat16, of two the even one."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + ((bits >> 16) & 1) + 0x7FFF) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def values(x: Any) -> np.ndarray:
    """What a handle holds, as numbers that numpy can compute with."""
    found: np.ndarray = widened(x.data) if x.dtype.scalar == tl.bfloat16 else x.data
    return found


def handle(data: np.ndarray, dtype: Any) -> Any:
    return Handle(narrowed(data) if dtype == tl.bfloat16 else data.astype(interpreter._get_np_dtype(dtype)), dtype)


class Memory:
    """Who reads and writes which byte of one launch; what is wrong goes to `problems`."""

    def __init__(self, name: str, arguments: list[Any], problems: list[str]) -> None:
        self.name, self.problems = name, problems
        spans: list[list[int]] = []
        for x in arguments:
            if isinstance(x, torch.Tensor) and x.numel():
                last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
                spans.append([x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()])
        merged: list[list[int]] = []
        for begin, end in sorted(spans):
            if merged and begin <= merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([begin, end])
        self.begins, self.ends = (np.array([span[side] for span in merged], np.uint64) for side in (0, 1))
        self.writer, self.reader = ([np.full(end - begin, -1, np.int64) for begin, end in merged] for _ in range(2))

    def access(self, pointers: Any, mask: Any, program: int, *, store: bool) -> None:
        shape = np.broadcast_shapes(pointers.data.shape, mask.data.shape)
        chosen = np.broadcast_to(mask.data, shape).ravel().astype(bool)
        places = np.broadcast_to(pointers.data, shape).ravel()[chosen].astype(np.uint64)
        if not places.size:
            return
        size = np.uint64(pointers.get_element_ty().primitive_bitwidth // 8)
        owner = np.searchsorted(self.begins, places, side="right").astype(np.int64) - 1
        outside = (owner < 0) | (places + size > self.ends[np.maximum(owner, 0)])
        if outside.any():
            self.note(f"{'store' if store else 'load'} outside of all tensors ({outside.sum()} elements)")
            places, owner = places[~outside], owner[~outside]
        for index in np.unique(owner):
            offsets = (places[owner == index] - self.begins[index]).astype(np.int64)
            writer, reader = self.writer[index], self.reader[index]
            if ((writer[offsets] >= 0) & (writer[offsets] != program)).any():
                self.note("two programs write one address" if store else "reads what another program wrote")
            if not store:
                reader[offsets] = program
                continue
            if ((reader[offsets] >= 0) & (reader[offsets] != program)).any():
                self.note("writes what another program has read")
            if np.unique(offsets).size != offsets.size:
                self.note("one store writes an address twice")
            writer[offsets] = program

    def note(self, what: str) -> None:
        if (line := f"{self.name}: {what}") not in self.problems:
            self.problems.append(line)


def install(patch: pytest.MonkeyPatch, seed: int = 0) -> list[str]:
    """Change the interpreter of this process until `patch` is undone; bfloat16 is no longer refused.

    Returns:
        A list to which every access that is wrong is added, each kind of a kernel once.
    """
    random = np.random.default_rng(seed)
    problems: list[str] = []
    launch = Memory("", [], problems)

    def cast(self: Any, source: Any, target: Any, *_: Any) -> Any:
        return handle(values(source), target.scalar)

    def dot(self: Any, a: Any, b: Any, sum_: Any, *_: Any) -> Any:
        product = np.matmul(values(a).astype(np.float32), values(b).astype(np.float32))
        return handle(product + values(sum_), sum_.dtype.scalar)

    def binary(self: Any, left: Any, right: Any, operation: Callable[..., np.ndarray]) -> Any:
        found, dtype = operation(values(left), values(right)), left.dtype.scalar
        if found.dtype == bool:
            return Handle(found, tl.int1)
        if dtype == tl.bfloat16 or not interpreter._validate_np_data_size(found, dtype):
            return handle(found, dtype)
        return Handle(found, dtype)

    def unary(self: Any, x: Any, operation: Callable[..., np.ndarray]) -> Any:
        if x.dtype.scalar == tl.bfloat16:
            return handle(operation(values(x)), tl.bfloat16)
        return Handle(operation(x.data), x.dtype.scalar)

    def flushed(x: np.ndarray) -> np.ndarray:
        return np.where(np.abs(x) < SMALLEST, np.float32(0), x)

    def exp2(self: Any, x: Any) -> Any:
        if x.data.dtype != np.float32:
            return unary(self, x, np.exp2)
        argument = flushed(x.data)
        with np.errstate(over="ignore"):
            found = np.exp2(argument.astype(np.float64))
            found *= 1 + random.uniform(-EXP2_ERROR, EXP2_ERROR, found.shape) * (argument != np.round(argument))
            return Handle(flushed(found.astype(np.float32)), x.dtype.scalar)

    def divide(self: Any, left: Any, right: Any) -> Any:
        if left.data.dtype != np.float32:
            return binary(self, left, right, np.divide)
        found = left.data.astype(np.float64) / right.data.astype(np.float64)
        found *= 1 + random.uniform(-DIVISION_ERROR, DIVISION_ERROR, np.shape(found))
        return Handle(found.astype(np.float32), left.dtype.scalar)

    masked_load, masked_store = Builder.create_masked_load, Builder.create_masked_store

    def program(builder: Any) -> int:
        (x, y, z), (_, height, depth) = builder.grid_idx, builder.grid_dim
        return int((x * height + y) * depth + z)

    def load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        launch.access(pointers, mask, program(self), store=False)
        return masked_load(self, pointers, mask, *rest)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        launch.access(pointers, mask, program(self), store=True)
        return masked_store(self, pointers, value, mask, *rest)

    arguments_of = interpreter.GridExecutor._init_args_hst

    def arguments(self: Any, given: Any, named: Any) -> Any:
        found, others = arguments_of(self, given, named)
        launch.__init__(self.fn.__name__, [*found, *others.values()], problems)  # type: ignore[misc]
        return found, others

    set_grid, set_place = Builder.set_grid_dim, Builder.set_grid_idx

    def grid(self: Any, *sizes: int) -> None:
        set_grid(self, *sizes)
        self.order = random.permutation(int(np.prod(sizes)))

    def place(self: Any, x: int, y: int, z: int) -> None:
        _, height, depth = self.grid_dim
        number = int(self.order[(x * height + y) * depth + z])
        set_place(self, number // (height * depth), number // depth % height, number % depth)

    changes: dict[str, Any] = {
        "cast_impl": cast,
        "create_fp_to_fp": cast,
        "create_dot": dot,
        "binary_op": binary,
        "unary_op": unary,
        "create_exp2": exp2,
        "create_fdiv": divide,
        "create_masked_load": load,
        "create_masked_store": store,
        "set_grid_dim": grid,
        "set_grid_idx": place,
    }
    for name, change in changes.items():
        patch.setattr(Builder, name, change)
    patch.setattr(interpreter.GridExecutor, "_init_args_hst", arguments)
    debugging = dataclasses.replace(interpreter.interpreter_builder.options, debug=True)
    patch.setattr(interpreter.interpreter_builder, "options", debugging)
    patch.setattr(device, "MISREAD_PRODUCTS", frozenset())
    return problems
