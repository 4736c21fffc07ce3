"""Operations of VATT that are worth a kernel, usable on their own: torch only, nothing of `vatt`.

Every operation takes `impl`: "reference" (a few literal lines, the specification), "portable" (drops before it
computes, never materialises what it can stream, any device), "triton" (the same algorithms as GPU kernels) or None,
which follows the device: "triton" for CUDA tensors if Triton is installed, and for CPU tensors when TRITON_INTERPRET=1
asks for Triton's interpreter, else "portable". What is asked for by name and cannot run is an error.

Importing this package imports neither triton nor a GPU driver. Note that `vatt_kernels.attention` is the function;
write `from vatt_kernels.attention import ...` to reach into the module of the same name.
"""

from .attention import attention
from .contrastive import contrastive_loss
from .projection import project_voxels, project_waveform
from .tokens import gather_tokens, sample_keep

__all__ = ["attention", "contrastive_loss", "gather_tokens", "project_voxels", "project_waveform", "sample_keep"]
