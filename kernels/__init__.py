"""Operations of VATT that are worth a kernel, usable on their own: torch only, nothing of `vatt`.

Every operation takes `impl`: "reference" (a few literal lines, the specification), "portable" (drops before it
computes, never materialises what it can stream, any device), "triton" (the same algorithms as GPU kernels) or None,
which follows the device: "triton" for CUDA tensors if Triton is installed, and for CPU tensors when TRITON_INTERPRET=1
asks for Triton's interpreter, else "portable". What is asked for by name and cannot run is an error.

Importing this package imports neither triton nor a GPU driver.
"""

from .contrastive.api import contrastive_loss
from .droptoken.api import gather_tokens, sample_keep
from .projection.api import project_voxels, project_waveform
from .self_attention.api import attention

__all__ = ["attention", "contrastive_loss", "gather_tokens", "project_voxels", "project_waveform", "sample_keep"]
