"""Settings that every training run has, and which of them a resumed run may not change."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from .data import DataConfig
from .model import ModelConfig

Dtype = Literal["auto", "float32", "bfloat16"]
Parallel = Literal["ddp", "fsdp"]
AttentionBy = Literal["auto", "triton", "sdpa", "xformers"]
AttentionBackward = Literal["two_pass", "one_pass"]
Residual = Literal["float32", "bfloat16"]
DROPOUT_VERSION = 2  # of new runs, see `RunConfig.dropout`

# Metadata of a field, which hold for everything below it that is not marked itself.
FIXED: dict[str, Any] = {"fixed": True}  # a resumed run cannot change it
FREE: dict[str, Any] = {"fixed": False}  # it may, though what contains the field is fixed


@dataclass(frozen=True)
class RunConfig:
    """What pre-training (`Config`) and fine-tuning (`FinetuneConfig`) have in common.

    Args:
        preset: what the other settings began as.
        fused: run the fast operations in place of the literal ones.
        attention: who computes attention without mask and bias, see `vatt.ops`; sdpa and xformers need a dropout of 0.
        steps: number of updates.
        device: as PyTorch names it; "auto" is a GPU where there is one.
        dtype: compute type under autocast (parameters stay float32); "auto" is bfloat16 on GPUs and float32 on CPUs.
        save_every, log_every: in steps.
        max_nonfinite: steps without update, in a row, after which a run gives up.
        eval_windows: temporal windows a test clip is read at.
        parallel: on several processes, "ddp" keeps a whole model on each, "fsdp" a part.
        recompute: activation checkpointing.
        compile: torch.compile of each layer's halves; it rounds otherwise, and draws other element-wise dropout.
        attention_backward: of the Triton kernels; "one_pass" is faster and does not repeat to the bit.
        residual: what the layers of video and sound add to, under autocast; "bfloat16" needs that dtype.
        dropout: version of the hash by which attention drops. A run keeps that with which it began; records that do not
            say it are of version 1.
    """

    preset: str = field(default="", metadata=FIXED)
    model: ModelConfig = field(default_factory=ModelConfig, metadata=FIXED)
    data: DataConfig = field(default_factory=DataConfig)
    fused: bool = False
    attention: AttentionBy = "auto"
    seed: int = 1
    steps: int = 100_000
    device: str = "auto"
    dtype: Dtype = "auto"
    save_every: int = 1_000
    max_nonfinite: int = 10
    keep_checkpoints: int = 3
    log_every: int = 10
    eval_windows: int = 4
    tensorboard: bool = False
    parallel: Parallel = "ddp"
    recompute: bool = False
    compile: bool = False
    attention_backward: AttentionBackward = "two_pass"
    residual: Residual = "float32"
    dropout: int = field(default=DROPOUT_VERSION, metadata=FIXED)
