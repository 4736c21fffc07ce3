"""Providers: who computes an operation in a benchmark, ours beside what people use instead.

A provider takes the inputs of `vatt_kernels.spec` and computes the same function, so that one budget judges all of
them. It may prepare what a real program would prepare once (compile, build a block mask). What it cannot do here it
says with `Unable`, and the benchmark lists the reason.

"reference" is the literal operation in the inputs' dtype: of the projection, normalise, unfold (im2col), multiply all
patches, add positions, gather; of the loss, both matrices of scores with its sums.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from vatt_kernels import portable as portable_form
from vatt_kernels.reference import gather_tokens, relative_bias, relative_buckets
from vatt_kernels.spec.cases import Case, smaller
from vatt_kernels.spec.error_budget import Expected, expect
from vatt_kernels.spec.inputs import Inputs
from vatt_kernels.spec.kernel_spec import KernelSpec

from vatt.ops import Ops

Run = Callable[[Inputs], Tensor]
CHUNK_ROWS = 4096  # of a matrix of scores at a time


class Unable(RuntimeError):
    """This provider cannot compute this case here; the message is the reason."""


class Provider(NamedTuple):
    """name, and (spec, inputs) -> what computes these inputs, any number of times. `compiles`: that takes seconds."""

    name: str
    prepare: Callable[[KernelSpec, Inputs], Run]
    compiles: bool = False


def ours(spec: KernelSpec, inputs: Inputs) -> Run:
    return lambda inputs: spec.call(inputs, None)


def portable(spec: KernelSpec, inputs: Inputs) -> Run:
    """Ours without Triton: on a GPU a rival of its kernels, on a CPU ours itself."""
    if device_of(inputs).type == "cpu":
        raise Unable('on a CPU "ours" is the portable form')
    return lambda inputs: spec.call(inputs, "portable")


def reference(spec: KernelSpec, inputs: Inputs) -> Run:
    return spec.literal


def reference_compiled(spec: KernelSpec, inputs: Inputs) -> Run:
    on_a_gpu(inputs, "compiling for a CPU takes longer than all else here")
    compiled = torch.compile(lambda leaves, rest: spec.literal(Inputs(leaves, rest)), dynamic=False)
    return lambda inputs: compiled(inputs.leaves, inputs.rest)


def device_of(inputs: Inputs) -> torch.device:
    return next((x.device for x in inputs.leaves.values()), torch.device(inputs.rest.get("device", "cpu")))


def on_a_gpu(inputs: Inputs, otherwise: str) -> None:
    if device_of(inputs).type == "cpu":
        raise Unable(otherwise)


def first_words(error: BaseException) -> str:
    """What an exception says, in one short line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else f"{text[:97]}..."


# attention


def plain_only(inputs: Inputs, *, mask: bool = False, bias: bool = False) -> None:
    """Raises where the case needs what the provider lacks; `mask`, `bias`: what it has beside plain attention."""
    if "cu_seqlens" in inputs.rest:
        raise Unable("no packed sequences")
    if inputs.rest["dropout_p"]:
        raise Unable("drops other probabilities, so that its numbers cannot be checked")
    if "key_mask" in inputs.rest and not mask:
        raise Unable("no key mask")
    if "bias_table" in inputs.leaves and not bias:
        raise Unable("no additive bias")


def fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    key_mask: Tensor | None = None,
    bias_table: Tensor | None = None,
    max_distance: int = 64,
    scale: float | None = None,
    dropout_p: float = 0.0,
    **_: Any,
) -> Tensor:
    """`scaled_dot_product_attention` for q, k, v [B, N, H, D], mask and bias as an additive mask: no blind rows."""
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if bias_table is not None:
        bias = relative_bias(bias_table, q.shape[1], max_distance).to(q.dtype)[None]
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, dropout_p=dropout_p).transpose(1, 2)


def sdpa(backend: SDPBackend) -> Callable[[KernelSpec, Inputs], Run]:
    def prepare(spec: KernelSpec, inputs: Inputs) -> Run:
        others = backend != SDPBackend.FLASH_ATTENTION
        plain_only(inputs, mask=others, bias=others)

        def run(inputs: Inputs) -> Tensor:
            arguments: dict[str, Any] = inputs.leaves | inputs.rest
            with sdpa_kernel(backend):
                return fused_attention(**arguments)

        return run

    return prepare


def flex(spec: KernelSpec, inputs: Inputs) -> Run:
    """FlexAttention: the mask as a block mask, the bias as a table of diagonals that `score_mod` reads."""
    plain_only(inputs, mask=True, bias=True)
    on_a_gpu(inputs, "has no backward on a CPU")
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    compiled = torch.compile(flex_attention, dynamic=False, mode="max-autotune-no-cudagraphs")
    q, key_mask = inputs.leaves["q"], inputs.rest.get("key_mask")
    batch, tokens = q.shape[:2]
    block_mask = None
    if key_mask is not None:
        block_mask = create_block_mask(
            lambda b, h, query, key: key_mask[b, key], batch, None, tokens, tokens, device=q.device
        )
    steps = torch.arange(1 - tokens, tokens, device=q.device)

    def run(inputs: Inputs) -> Tensor:
        score_mod = None
        table = inputs.leaves.get("bias_table")
        if table is not None:
            diagonals = table[relative_buckets(steps, table.shape[0], inputs.rest["max_distance"])]

            def score_mod(score: Tensor, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return score + diagonals[key - query + tokens - 1, h]

        q, k, v = (inputs.leaves[name].transpose(1, 2) for name in "qkv")
        out = compiled(q, k, v, score_mod=score_mod, block_mask=block_mask, scale=inputs.rest["scale"])
        return out.transpose(1, 2)

    return run


def xformers(spec: KernelSpec, inputs: Inputs) -> Run:
    """Its wheel for recent torch mostly calls torch's own kernels."""
    try:
        from xformers.ops import fmha
    except ImportError as error:
        raise Unable(f"xformers is not installed ({error})") from error
    on_a_gpu(inputs, "has no CPU kernels")
    if inputs.rest["dropout_p"] or "key_mask" in inputs.rest or "bias_table" in inputs.leaves:
        raise Unable("measured for plain and packed attention only")
    bias, edges = None, inputs.rest.get("cu_seqlens")
    if edges is not None:
        bias = fmha.attn_bias.BlockDiagonalMask.from_seqlens(edges.diff().tolist())

    def run(inputs: Inputs) -> Tensor:
        q, k, v = (inputs.leaves[name] if bias is None else inputs.leaves[name][None] for name in "qkv")
        out: Tensor = fmha.memory_efficient_attention(q, k, v, attn_bias=bias, scale=inputs.rest["scale"])
        return out if bias is None else out[0]

    return run


# projection


def convolve(spec: KernelSpec, inputs: Inputs) -> Run:
    """A strided convolution over the normalised clip, then positions, then the gather: how most models do it."""
    waveform = spec.name == "project_waveform"

    def run(inputs: Inputs) -> Tensor:
        rest, weight = inputs.rest, inputs.leaves["weight"]
        signal: Tensor = (inputs.leaves | rest)["samples" if waveform else "frames"]
        patch = rest["patch"]
        if waveform:
            signal, patch = signal[:, None, None, :, None], (1, 1, patch)
        scale, shift = {torch.uint8: (2 / 255, -1.0), torch.int16: (1 / 32768, 0.0)}.get(signal.dtype, (1.0, 0.0))
        x = signal.to(weight.dtype).permute(0, 4, 1, 2, 3)
        if not signal.is_floating_point():
            x = x * scale + shift
        kernel = weight.T.unflatten(1, (*patch, -1)).permute(0, 4, 1, 2, 3)
        tokens = F.conv3d(x, kernel, inputs.leaves.get("bias"), stride=patch).flatten(2).transpose(1, 2)
        if "position" in inputs.leaves:
            tokens = tokens + inputs.leaves["position"]
        return gather_tokens(tokens, rest["keep"]) if "keep" in rest else tokens

    return run


# contrastive loss


def unmasked(inputs: Inputs) -> None:
    """Raises where a loss has masks, other ranks or two averages, which the rivals do without."""
    if "all_video" in inputs.leaves or "mask" in inputs.rest or inputs.rest["symmetric"]:
        raise Unable("measured for a rank alone, without masks, asymmetric")


def materialised(spec: KernelSpec, inputs: Inputs) -> Run:
    """One matrix of scores B x B L, read along both axes; what a careful program without a kernel does."""
    unmasked(inputs)

    def run(inputs: Inputs) -> Tensor:
        video, other = inputs.leaves["video"], inputs.leaves["other"]
        clips, candidates = other.shape[:2]
        v, w = (F.normalize(x.float(), dim=-1).to(x.dtype) for x in (video, other))
        scores = (v @ w.flatten(0, 1).T).float() / inputs.rest["temperature"]
        forth = scores.logsumexp(dim=1)
        scores = scores.view(clips, clips, candidates)
        back = scores.logsumexp(dim=(0, 2))
        positives = scores.diagonal().logsumexp(dim=0)
        return torch.logaddexp(forth, back) - positives

    return run


def tiled(spec: KernelSpec, inputs: Inputs) -> Run:
    """As Inf-CL does it: sums over tiles of scores, which the backward computes again; of some tiles the fastest."""
    unmasked(inputs)
    on_a_gpu(inputs, 'on a CPU "ours" goes by tiles')

    def run(inputs: Inputs, block: int) -> Tensor:
        rest, leaves = inputs.rest, inputs.leaves
        return portable_form.contrastive_loss(
            leaves["video"],
            leaves["other"],
            leaves["video"],
            leaves["other"],
            mask=None,
            video_mask=None,
            temperature=rest["temperature"],
            symmetric=False,
            block=block,
        )

    def seconds(block: int) -> float:
        torch.cuda.synchronize()
        tick = time.perf_counter()
        run(inputs, block).sum().backward()
        torch.cuda.synchronize()
        return time.perf_counter() - tick

    blocks = (1024, 4096, 16_384)
    best = min(blocks, key=lambda block: min(seconds(block) for _ in range(3)))
    return lambda inputs: run(inputs, best)


def chunked(spec: KernelSpec, inputs: Inputs) -> Run:
    """As Liger does it: rows a chunk at a time, each compiled to one kernel beside its product, and computed again."""
    unmasked(inputs)
    on_a_gpu(inputs, "compiling for a CPU takes longer than all else here")

    def sums(rows: Tensor, columns: Tensor, inverse: float) -> tuple[Tensor, Tensor]:
        scores = (rows @ columns.T).float() * inverse
        return scores.logsumexp(dim=1), scores.logsumexp(dim=0)

    compiled = torch.compile(sums, dynamic=False)

    def run(inputs: Inputs) -> Tensor:
        video, other = inputs.leaves["video"], inputs.leaves["other"]
        inverse = 1 / inputs.rest["temperature"]
        v, w = (F.normalize(x.float(), dim=-1).to(x.dtype) for x in (video, other))
        parts = [
            checkpoint(compiled, rows, w.flatten(0, 1), inverse, use_reentrant=False) for rows in v.split(CHUNK_ROWS)
        ]
        forth = torch.cat([part[0] for part in parts])
        back = torch.stack([part[1] for part in parts]).logsumexp(dim=0).view(w.shape[:2]).logsumexp(dim=1)
        positives = ((v[:, None].float() * w.float()).sum(dim=2) * inverse).logsumexp(dim=1)
        return torch.logaddexp(forth, back) - positives

    return run


# numerics


def expect_fitting(spec: KernelSpec, case: Case, dtype: torch.dtype, device: torch.device | str) -> Expected:
    """`expect` for the case itself where float64 fits into the device's memory, else for one of fewer clips."""
    try:
        return expect(spec, case, dtype, device)
    except torch.OutOfMemoryError:
        pass  # what it held is free only after this block
    torch.cuda.empty_cache()
    return expect(spec, smaller(case), dtype, device)


COMMON = (
    Provider("ours", ours),
    Provider("portable", portable),
    Provider("reference", reference),
    Provider("reference, compiled", reference_compiled, compiles=True),
)
RIVALS: dict[str, tuple[Provider, ...]] = {
    "project_voxels": (Provider("Conv3d, then gather", convolve),),
    "project_waveform": (Provider("Conv, then gather", convolve),),
    "attention": (
        Provider("SDPA cuDNN", sdpa(SDPBackend.CUDNN_ATTENTION)),
        Provider("SDPA flash", sdpa(SDPBackend.FLASH_ATTENTION)),
        Provider("SDPA efficient", sdpa(SDPBackend.EFFICIENT_ATTENTION)),
        Provider("SDPA math", sdpa(SDPBackend.MATH)),
        Provider("FlexAttention", flex, compiles=True),
        Provider("xformers", xformers),
    ),
    "contrastive_loss": (
        Provider("materialised scores", materialised),
        Provider("Inf-CL-style tiles", tiled),
        Provider("Liger-style chunks", chunked, compiles=True),
    ),
}


def providers(name: str) -> tuple[Provider, ...]:
    """All that can be tried for the operation `name`; ours comes first."""
    return (*COMMON, *RIVALS.get(name, ()))


@dataclass(frozen=True)
class EagerOps(Ops):
    """A good eager model: the literal operations, but PyTorch's fused attention and random numbers."""

    def sample_keep(self, tokens: int, kept: int, **options: Any) -> Tensor:
        rows = (tokens,) if options.get("batch") is None else (options["batch"], tokens)
        return torch.rand(rows, device=options.get("device")).argsort(dim=-1)[..., :kept].sort(dim=-1).values

    def attention(self, qkv: Tensor, **options: Any) -> Tensor:
        return fused_attention(*qkv.unbind(-3), **options)
