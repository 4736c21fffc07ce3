"""SPECS: every operation with its cases, inputs, costs and the error allowed."""

from __future__ import annotations

from .contrastive.api import contrastive_loss
from .contrastive.spec import LOSS, LOSS_VATT, literal_loss, loss_bytes, loss_floor, loss_flops, make_loss
from .droptoken.api import gather_tokens, sample_keep
from .droptoken.spec import (
    GATHER,
    GATHER_VATT,
    SAMPLE,
    SAMPLE_VATT,
    gather_bytes,
    make_gather,
    make_sample,
    no_flops,
    sample_bytes,
)
from .projection.api import project_voxels, project_waveform
from .projection.spec import (
    VOXELS,
    VOXELS_VATT,
    WAVEFORM,
    WAVEFORM_VATT,
    make_voxels,
    make_waveform,
    projection_bytes,
    projection_flops,
)
from .self_attention.api import attention
from .self_attention.spec import (
    ATTENTION,
    ATTENTION_VATT,
    attention_bytes,
    attention_floor,
    attention_flops,
    make_attention,
)
from .spec.kernel_spec import KernelSpec

# Files that list cases for the ahead-of-time check, below this folder.
TRITON_FILES = (
    "self_attention.triton_backward",
    "self_attention.triton_op",
    "contrastive.triton_backward",
    "contrastive.triton_forward",
    "projection.triton_op",
    "droptoken.triton_op",
)

SPECS = (
    KernelSpec("project_voxels", project_voxels, make_voxels, VOXELS, VOXELS_VATT, projection_flops, projection_bytes),
    KernelSpec(
        "project_waveform", project_waveform, make_waveform, WAVEFORM, WAVEFORM_VATT, projection_flops, projection_bytes
    ),
    KernelSpec("sample_keep", sample_keep, make_sample, SAMPLE, SAMPLE_VATT, no_flops, sample_bytes),
    KernelSpec("gather_tokens", gather_tokens, make_gather, GATHER, GATHER_VATT, no_flops, gather_bytes),
    KernelSpec(
        "attention",
        attention,
        make_attention,
        ATTENTION,
        ATTENTION_VATT,
        attention_flops,
        attention_bytes,
        floor=attention_floor,
    ),
    KernelSpec(
        "contrastive_loss",
        contrastive_loss,
        make_loss,
        LOSS,
        LOSS_VATT,
        loss_flops,
        loss_bytes,
        literal_loss,
        loss_floor,
    ),
)
