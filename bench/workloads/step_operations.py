"""`python bench/workloads/step_operations.py trace|replay`: the operations of a training step, as JSON.

Runs in a process of its own and imports vatt and vatt_kernels from --tree; it knows the layout of commit 20a74a7, too.
Nothing is computed: "trace" runs a step of a preset on fake tensors that take the paths of CUDA, and lets TorchInductor
write kernels for one layer of each shape; "replay" launches what the step calls of `torch.ops.vatt` on the pretended
GPU. An operation of PyTorch is one launch, but for those of LAUNCHES.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PARTS = {  # of a step, by the operations of PyTorch that they consist of
    "products": ("mm", "addmm", "bmm", "baddbmm"),
    "dtype casts": ("_to_copy", "copy_"),
    "LayerNorm": ("native_layer_norm", "native_layer_norm_backward"),
    "GELU": ("gelu", "gelu_backward"),
    "dropout": ("native_dropout", "native_dropout_backward"),
    "adds": ("add", "add_"),
    "bias gradients": ("sum",),
    "gradients of q, k, v put together": ("stack", "cat", "select_backward", "slice_backward"),
}
FREE = {
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "detach",
    "_unsafe_view",
    "lift_fresh",
}
LAUNCHES = {"native_layer_norm_backward": 2}  # sums over rows are a kernel of their own
SEED = 2**20  # for all larger numbers, so that calls that differ in them alone are one
CHUNK, CHUNKS = 65_536, 320  # elements and chunks of a launch of PyTorch's kernels for many tensors


class Trace(TorchDispatchMode):
    """Counts launches and bytes of what runs within it: `found[part] = [launches, bytes]`, and `calls` of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.calls: dict[str, dict[str, Any]] = {}
        self.phase = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        if func.namespace == "vatt":
            values = [SEED if type(x) is int and abs(x) > SEED else describe(x) for x in args]
            call = {"name": name, "arguments": values, "times": 0}
            self.calls.setdefault(json.dumps(call), call)["times"] += 1
            return out
        many = name.startswith(("_foreach", "_fused_adam"))
        if func.is_view or name in FREE or not (made or many or name == "copy_"):
            return out
        if many:
            first = args[0]
            if all(x.numel() == 1 for x in first) and self.phase:  # numbers of steps, on the host
                return out
            launches = math.ceil(sum(math.ceil(x.numel() / CHUNK) for x in first) / CHUNKS)
        else:
            launches = LAUNCHES.get(name, 1)
        entry = self.found[self.phase or part_of(name)]
        entry[0] += launches
        if part_of(name) != "products":
            entry[1] += sum(size(x) for x in given) + sum(size(x) for x in made)
        return out


def part_of(name: str) -> str:
    return next((part for part, names in PARTS.items() if name in names), "rest")


def size(x: Tensor) -> int:
    """Bytes of the memory that a tensor covers: what is expanded is read once."""
    shown = math.prod(n for n, step in zip(x.shape, x.stride(), strict=True) if step or n == 1)
    return shown * x.element_size()


def describe(x: Any) -> Any:
    """An argument of an operation as JSON."""
    if isinstance(x, Tensor):
        return {"shape": list(x.shape), "stride": list(x.stride()), "dtype": str(x.dtype).removeprefix("torch.")}
    if isinstance(x, torch.dtype):
        return {"dtype": str(x).removeprefix("torch.")}
    if isinstance(x, list | tuple):
        return [describe(y) for y in x]
    return (
        x if isinstance(x, bool | float | str | None) else {"device": str(x)} if isinstance(x, torch.device) else int(x)
    )


def restored(x: Any) -> Any:
    """The argument again, with tensors of zeros."""
    if isinstance(x, dict) and "shape" in x:
        return (
            torch.zeros(1, dtype=getattr(torch, x["dtype"]))
            .expand(1)
            .new_zeros(1 + sum((n - 1) * step for n, step in zip(x["shape"], x["stride"], strict=True) if n))
            .as_strided(x["shape"], x["stride"])
        )
    if isinstance(x, dict):
        return getattr(torch, x["dtype"]) if "dtype" in x else torch.device(x["device"])
    return [restored(y) for y in x] if isinstance(x, list) else x


class Tree:
    """What the tree that is asked about has, whichever layout."""

    def __init__(self) -> None:
        try:
            from vatt.config.model import DropConfig
            from vatt.config.presets import preset
            from vatt.model.losses import pretraining_loss
            from vatt.training import optimizers

            for name in ("is_whole", "on_one_gpu"):  # now and before: one kernel for all, as on a GPU
                setattr(optimizers, name, lambda parameter: True)
            self.adam, self.clip = optimizers.Adam, optimizers.clip_gradients
        except ModuleNotFoundError:
            from vatt.model.loss import pretraining_loss  # type: ignore[import-not-found,no-redef]
            from vatt.optim import Adam  # type: ignore[import-not-found]
            from vatt.presets import preset  # type: ignore[import-not-found,no-redef]

            from vatt.config import DropConfig

            self.adam, self.clip = Adam, lambda parameters, largest: nn.utils.clip_grad_norm_(parameters, math.inf)
        self.drop, self.preset, self.loss = DropConfig, preset, pretraining_loss
        from vatt.model.vatt import VATT
        from vatt.ops import Ops

        self.model, self.ops = VATT, Ops("triton", "as on CUDA")

    def config(self, name: str, dropout: float, rate: float, layers: int | None) -> Any:
        config = self.preset(name)
        changes: dict[str, Any] = {"dropout": dropout} | ({"layers": layers} if layers else {})
        encoders = {
            f"{m}_encoder": replace(getattr(config.model, f"{m}_encoder"), **changes)
            for m in ("video", "audio", "text")
        }
        return replace(config, model=replace(config.model, drop=self.drop(rate=rate), **encoders))


def launchers() -> Any:
    """Import all that launches, which keeps the interpreter's rules to itself; return the module that asks for them."""
    try:
        for name in ("contrastive", "droptoken", "projection", "self_attention"):
            import_module(f"vatt_kernels.{name}.triton_op")
        return import_module("vatt_kernels.dispatch")
    except ModuleNotFoundError:
        for name in ("contrastive", "tokens", "projection", "attention"):
            import_module(f"vatt_kernels.{name}_triton")
        return import_module("vatt_kernels.checks")


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """CPU tensors take the paths of CUDA ones: kernels of Triton, one launch for dropout, many tensors at once."""
    foreach: Any = import_module("torch.utils._foreach_utils")
    launchers().interpreting = lambda: True
    nn.init.trunc_normal_ = lambda x, **_: x  # looks at what it has drawn
    adam: Any = import_module("torch.optim.adam")
    adam._get_value = lambda x: 1.0  # the number of a step, which lies on the host
    supported = foreach._get_foreach_kernels_supported_devices
    foreach._get_foreach_kernels_supported_devices = lambda: [*supported(), "cpu"]
    foreach._foreach_supported_types.append(FakeTensor)
    foreach._get_fused_kernels_supported_devices = lambda: [*supported(), "cpu"]
    dropout: Any = nn.Dropout
    dropout.forward = lambda self, x: torch.native_dropout(x, self.p, True)[0] if self.training and self.p else x
    yield


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Values are not looked at, as PyTorch's own tracers do not."""
    before = torch.compiler.is_compiling
    torch.compiler.is_compiling = lambda: True
    try:
        yield
    finally:
        torch.compiler.is_compiling = before


def trace(tree: Tree, config: Any, batch: int, narrow: bool) -> dict[str, Any]:
    """A step of one process: parts with launches and bytes, calls of our operations, and inputs of its layers."""
    model = config.model
    layers: dict[str, dict[str, Any]] = {}

    def seen(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        encoder = "text" if any(isinstance(m, nn.RMSNorm) for m in module.children()) else "plain"
        entry = {"kind": encoder, "width": inputs[0].shape[-1], "inputs": [describe(x) for x in inputs[:-1]]}
        layers.setdefault(json.dumps(entry), {**entry, "module": module, "times": 0})["times"] += 1

    decide_as_for_a_gpu()
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_cuda():
        vatt = tree.model(model, tree.ops).train()
        for module in vatt.modules():
            if type(module).__name__ == "Layer":
                module.register_forward_pre_hook(seen)
            if type(module).__name__ == "Encoder":
                module.narrow = narrow  # type: ignore[assignment]
        frames = torch.empty(batch, model.video.frames, model.video.size, model.video.size, 3, dtype=torch.uint8)
        samples = torch.empty(batch, model.audio.samples)
        words = torch.empty(batch, model.text.captions, model.text.words, dtype=torch.int64)
        valid = torch.ones(batch)
        optimizer = tree.adam(vatt.parameters(), config.optim)
        for group in optimizer.param_groups:
            group["foreach"] = not group.get("fused")
        for parameter in optimizer.param_groups[0]["params"]:  # the state of a step that is not the first
            optimizer.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": torch.empty_like(parameter),
                "exp_avg_sq": torch.empty_like(parameter),
            }
        counted = Trace()
        with counted:
            with tracing():
                with torch.autocast("cpu", torch.bfloat16):
                    out = vatt(frames, samples, words, seed=1)
                tree.loss(out, valid, valid, config.loss, tree.ops).total.backward()
            counted.phase = "optimizer"
            tree.clip(vatt.parameters(), config.optim.clip)
            optimizer.step()
        result: dict[str, Any] = {"parts": dict(counted.found), "calls": list(counted.calls.values()), "layers": []}
        for entry in layers.values():
            module = entry.pop("module")
            result["layers"].append({**entry, **of_layer(module, entry)})
    return result


def of_layer(module: nn.Module, entry: dict[str, Any]) -> dict[str, Any]:
    """A layer alone, forward and backward: eager, and as TorchInductor writes it for a GPU."""
    inputs = [restored(x) for x in entry["inputs"]]
    for x in inputs:
        if isinstance(x, Tensor) and x.is_floating_point():
            x.requires_grad_()
    parts = type(module).compile is not nn.Module.compile
    seed = torch.ones((), dtype=torch.int64) if parts else 1

    def run(call: Callable[..., Tensor]) -> None:
        module.zero_grad(set_to_none=True)
        with tracing(), torch.autocast("cpu", torch.bfloat16):
            out = call(*inputs, seed)
        with tracing():
            out.backward(torch.empty_like(out))

    eager = Trace()
    with eager:
        run(module)
    kernels: list[int] = []
    if parts:
        torch.compile = lambda part: compiled(module, part, kernels)  # type: ignore[assignment]
        module.compile()
        run(module)
    else:
        run(compiled(module, module.forward, kernels))
    return {"eager": dict(eager.found), "compiled": [len(kernels), sum(kernels)]}


class Written(Exception):
    """TorchInductor has written its kernels."""


class Part(nn.Module):
    """A method of a module, with the module's parameters as its own."""

    def __init__(self, module: nn.Module, method: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *inputs: Any) -> Tensor:
        return self.method(*inputs)


def decide_as_for_a_gpu() -> None:
    """TorchInductor divides sums, reorders loops and joins kernels as for an H200, though tensors are a CPU's."""
    scheduler: Any = import_module("torch._inductor.scheduler")
    ir: Any = import_module("torch._inductor.ir")
    hints: Any = import_module("torch._inductor.runtime.hints")
    h200 = hints.DeviceProperties(
        type="cuda",
        index=0,
        multi_processor_count=132,
        cc=90,
        major=9,
        regs_per_multiprocessor=65_536,
        max_threads_per_multi_processor=2048,
        warp_size=32,
    )
    hints.DeviceProperties.create = lambda device: h200
    create = scheduler.Scheduler.create_backend

    def create_backend(self: Any, device: torch.device) -> Any:
        scheduler.is_gpu = lambda kind: False  # it asks for the number of a GPU
        made = create(self, device)
        scheduler.is_gpu = lambda kind: True
        return made

    scheduler.Scheduler.create_backend = create_backend
    scheduler.is_gpu = ir.is_gpu = lambda kind: True
    scheduler.BaseSchedulerNode.is_gpu = lambda self: True
    scheduler.BaseSchedulerNode.is_cpu = lambda self: False
    scheduler._is_gpu_triton_backend = lambda one, other: True


def compiled(module: nn.Module, method: Callable[..., Tensor], kernels: list[int]) -> Callable[..., Tensor]:
    """A method of a layer; `kernels` gets the bytes of each kernel that TorchInductor writes for it but products, ours.

    It writes Triton for a CPU as it does for a GPU, and goes no further: nothing is compiled.
    """
    from torch._functorch.aot_autograd import aot_function, make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor import config as inductor
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.exc import InductorError
    from torch._inductor.fx_passes.joint_graph import joint_graph_passes
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from triton.runtime import driver

    from workloads.pretended_gpu import Driver

    driver.set_active(Driver())
    inductor.cpu_backend, inductor.compile_threads = "triton", 1

    def write(graph: Any) -> None:
        graph.codegen()
        for node in graph.scheduler.nodes:
            said = str(getattr(getattr(node, "node", None), "python_kernel_name", ""))
            kind = type(node).__name__
            if kind == "NopKernelSchedulerNode" or type(getattr(node, "node", None)).__name__ == "MultiOutput":
                continue
            if kind != "ExternKernelSchedulerNode":
                kernels.append(node.get_read_write_buffers_sizes())
            elif "vatt" not in said and not said.endswith(("mm", "mm.out", "mm.default")):
                kernels.append(0)  # such as the seed of dropout
        raise Written

    def lower(gm: Any, example_inputs: Any) -> Any:
        try:
            compile_fx_inner(gm, example_inputs)
        except InductorError as error:
            if not isinstance(error.inner_exception, Written):
                raise
        return make_boxed_func(gm.forward)

    def divide(graph: Any, inputs: Any, **options: Any) -> Any:
        with V.set_fake_mode(torch._guards.detect_fake_mode(inputs)):
            joint_graph_passes(graph)
        return min_cut_rematerialization_partition(graph, inputs, compiler="inductor", **options)

    GraphLowering.compile_to_module = write  # type: ignore[method-assign,assignment]
    part = Part(module, method)
    parameters = dict(part.named_parameters())

    def call(values: list[Tensor], *inputs: Any) -> Any:
        return torch.func.functional_call(part, dict(zip(parameters, values, strict=True)), inputs)

    made = aot_function(call, lower, lower, partition_fn=divide, decompositions=select_decomp_table())
    return lambda *inputs: made(list(parameters.values()), *inputs)


def replay(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each call with what it launches: kernels of Triton by name, and operations of PyTorch as `Trace` counts them."""
    import torch.distributed.tensor  # which would not like the pretended generators

    from workloads import pretended_gpu as gpu

    define, sinks = torch.library.impl, [Trace()]

    def recording(name: Any, *rest: Any, **options: Any) -> Any:
        if not str(name).startswith("vatt::"):
            return define(name, *rest, **options)

        def register(function: Callable[..., Any]) -> Any:
            def counted(*arguments: Any) -> Any:
                with sinks[-1]:
                    return function(*arguments)

            return define(name, *rest, **options)(counted)

        return register

    torch.library.impl = recording  # type: ignore[assignment]
    arguments = [[restored(x) for x in call["arguments"]] for call in calls]
    gpu.install()
    launchers()

    for call, given in zip(calls, arguments, strict=True):
        gpu.launches.clear()
        sinks.append(Trace())
        with torch.no_grad():
            getattr(torch.ops.vatt, call["name"])(*given)
        found = sinks.pop().found.values()
        call["kernels"] = [launch["kernel"] for launch in gpu.launches]
        call["launches"], call["bytes"] = len(call["kernels"]) + sum(n for n, _ in found), sum(b for _, b in found)
    return calls


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=("trace", "replay"))
    parser.add_argument("file", type=Path, help="written, or for a replay read and written")
    parser.add_argument("--tree", required=True, help="a folder with vatt and vatt_kernels")
    parser.add_argument("--preset", default="mbs")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--drop", type=float, default=0.5)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--narrow", action="store_true", help="a residual stream of bfloat16")
    parser.add_argument("--layers", type=int, help="of each encoder, for tests")
    options = parser.parse_args()
    sys.path[:0] = [options.tree, str(Path(__file__).resolve().parents[1])]
    if options.mode == "trace":
        tree = Tree()
        config = tree.config(options.preset, options.dropout, options.drop, options.layers)
        found = trace(tree, config, options.batch, options.narrow)
    else:
        found = json.loads(options.file.read_text())
        found["calls"] = replay(found["calls"])
    options.file.write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
