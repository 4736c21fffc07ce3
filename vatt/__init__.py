"""VATT: video-audio-text transformers in PyTorch (Akbari et al., NeurIPS 2021)."""

import os

# Before torch is imported: OpenMP threads that spin while they wait make a step 10 times slower as soon as a decoding
# worker shares the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__version__ = "0.1.0"
