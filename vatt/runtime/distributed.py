"""Several processes, one batch: who they are and what they tell each other.

`torchrun --nproc-per-node=N -m vatt.train --fused` starts them. Every process ("rank") builds and computes an equal,
consecutive part of each batch. PyTorch's process groups carry all of it: NCCL between GPUs, gloo between CPUs and for
everything that is not a tensor. A process that runs alone is a world of one, and nothing here then costs or changes
anything.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ConfigError, RankFinished, RemoteError, RunError

T = TypeVar("T")
LOOK_SECONDS = 1.0  # how often a process looks whether its launcher lives
GRACE = 300.0  # seconds that it then has to end by itself: to finish a step and save
# PyTorch 2.13 renamed both, and warns of the old names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


class World:
    """The processes of this run.

    Raises `RunError` from any of its methods when another process is gone.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> float:
        """Spent so far in waiting for the others: by this process, or where tensors are on a GPU by its stream."""
        for begin, end in self._events:
            end.synchronize()
            self._seconds += begin.elapsed_time(end) / 1000
        self._events.clear()
        return self._seconds

    @property
    def is_first(self) -> bool:
        """The first rank writes files and speaks."""
        return self.rank == 0

    def batch_slice(self, batch_size: int) -> range:
        """Return this rank's part of a batch. Raises `ConfigError` when it cannot be divided."""
        if batch_size % self.size:
            raise ConfigError(
                f"a batch of {batch_size} clips cannot be divided among {self.size} processes; choose a "
                f"multiple of {self.size}"
            )
        share = batch_size // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def all_gather_object(self, value: T) -> list[T]:
        """Return the values of all ranks in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        return any(self.all_gather_object(flag))

    def on_main(self, action: Callable[[], T]) -> T:
        """Return what `action` returns on rank 0, which alone runs it; if it fails there, it fails everywhere."""
        error: Exception | None = None
        result: Any = None
        if self.is_first:
            try:
                result = action()
            except Exception as caught:
                error = caught
        if self.size > 1:
            box = [result, error]
            with self._waiting():
                dist.broadcast_object_list(box, src=0)
            result, error = box
        if error is not None:
            raise error if self.is_first else RemoteError(error)
        return result

    def require_same(self, label: str, value: object) -> None:
        """Raise `RunError` when the processes have different values of `label`."""

        def compare() -> None:
            if len(set(values)) > 1:
                raise RunError(
                    f"the processes have different {label} ({', '.join(map(str, values))}); the run's folder "
                    "and its data must be the same files for all of them"
                )

        values = self.all_gather_object(value)
        self.on_main(compare)

    def require_equal(self, values: Mapping[str, object]) -> None:
        """Raise `RunError` naming the first of `values` that the ranks do not have in common."""
        everyone = self.all_gather_object(dict(values))

        def compare() -> None:
            for name in dict.fromkeys(name for one in everyone for name in one):
                first = everyone[0].get(name)
                for rank, one in enumerate(everyone):
                    if one.get(name) != first:
                        raise RunError(
                            f"the processes differ: {name} is {first!r} for process 0 and {one.get(name)!r} "
                            f"for process {rank}; start all with the same settings and code"
                        )

        self.on_main(compare)

    def only_main_continues(self) -> None:
        """Raise `RankFinished` on all ranks but the first, which alone goes on."""
        if not self.is_first:
            raise RankFinished

    def leave(self) -> None:
        """Do as `only_main_continues`, and for good: nobody waits for the others any more, as ends of NCCL's groups
        would.

        Nothing that `parallelize` returned may be left. The last reference to a process group ends it, and if that is
        DDP's it does so with the interpreter's lock, for which the group's threads may be waiting.
        """
        if self.size > 1:
            gc.collect()
            dist.destroy_process_group()
        self.only_main_continues()

    def gather(self, x: Tensor) -> Tensor:
        """Return the tensors [B, ...] of all ranks as one [ranks * B, ...], in float32 at least.

        The gradients of all ranks' copies add up.
        """
        if x.is_floating_point():
            x = x.to(torch.promote_types(x.dtype, torch.float32))
        return x if self.size == 1 else _Gather.apply(x, self)

    def gather_many(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Gather several tensors [B, ...] with the same B in one call each way: many ranks wait for calls, not
        bytes.
        """
        if self.size == 1:
            return [self.gather(x) for x in tensors]
        together = self.gather(torch.cat([x.flatten(1) for x in tensors], dim=1))
        parts = together.split([x[0].numel() for x in tensors], dim=1)
        return [part.reshape(-1, *x.shape[1:]) for part, x in zip(parts, tensors, strict=True)]

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """Return the sum of all ranks' x. The gradients of all ranks' sums add up."""
        return x if self.size == 1 else _AllReduceSum.apply(x, self)

    def mean(self, x: Tensor) -> Tensor:
        """Return the mean of all ranks' x, without gradients; the same bits on each."""
        return x.detach() if self.size == 1 else self._sum(x) / self.size

    def _sum(self, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        with self._waiting(total):
            dist.all_reduce(total)
        return total

    @contextlib.contextmanager
    def _waiting(self, x: Tensor | None = None) -> Iterator[None]:
        """Add the time spent inside to that of communication; `x` is sent.

        A GPU's calls only enqueue, so its stream is timed.
        """
        tick = time.perf_counter()
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if x is not None and x.is_cuda else []
        if events:
            events[0].record()
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, RunError | torch.OutOfMemoryError):
                raise
            raise _gone(error) from error
        if events:
            events[1].record()
            self._events.append((events[0], events[1]))
        else:
            self._seconds += time.perf_counter() - tick


SINGLE_PROCESS = World()


def _gone(error: RuntimeError) -> RunError:
    return RunError(f"another process of this run is gone; its own message says why ({error})")


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        whole = x.new_empty((world.size * x.shape[0], *x.shape[1:]))
        with world._waiting(x):
            _all_gather(whole, x.contiguous())
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (whole,) = gradients
        world: World = ctx.world
        own = whole.new_empty((whole.shape[0] // world.size, *whole.shape[1:]))
        with world._waiting(own):
            _reduce_scatter(own, whole.contiguous())
        return own, None


class _AllReduceSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world._sum(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        world: World = ctx.world
        return world._sum(gradients[0]), None


def _end_with_launcher() -> None:
    """Make this process end when its launcher does: one that was killed cannot tell.

    It is asked to first, as the launcher would have, so that a run saves.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(LOOK_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os.kill(os.getpid(), signal.SIGKILL)

    if launcher > 1:  # not what was left alone from the start, or started by a container itself
        threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def init_world(device: str) -> Iterator[World]:
    """Join the world that torchrun's environment variables describe; without them it is a world of one.

    `device`: as in the settings. NCCL is used where it is, or with "auto" may be, a GPU. What ranks but the
    first print goes nowhere, until an error ends them.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE_PROCESS
        return
    gpus = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if gpus and device not in ("auto", "cuda"):
        raise ConfigError(f"--device {device} is one GPU for all processes; --device cuda gives each its own")
    if gpus and local >= count:
        raise ConfigError(
            f"process {local} of this machine has no GPU, there are {count}; start as many processes "
            "(--nproc-per-node), or add --device cpu"
        )
    if gpus:
        torch.cuda.set_device(local)
    _end_with_launcher()
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")
    world = World(dist.get_rank(), size, local)
    with contextlib.ExitStack() as stack:
        if not world.is_first:
            silence = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(silence))
            stack.enter_context(contextlib.redirect_stderr(silence))
        try:
            yield world
        except RuntimeError as error:
            # What DDP and FSDP2 send themselves, beside the backward pass.
            if isinstance(error, dist.DistError) or ("by peer" in str(error) and not isinstance(error, RunError)):
                raise _gone(error) from error
            raise
    # Not after an error: it would wait for processes that are gone, and the message with it.
    if dist.is_initialized():
        dist.destroy_process_group()
