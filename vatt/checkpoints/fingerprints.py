"""Digests of clips and weights, which a resumed run and a file of features compare."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..data.clip import Clip, Manifest


def weights_fingerprint(model: nn.Module) -> str:
    """Return SHA-256 of names, types, shapes and values: equal for equal weights, whatever file they lie in."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def fingerprint(rows: Iterable[Clip | str]) -> str:
    """Return a digest that changes when a clip, its span, its captions or its split do, or a word."""
    if isinstance(rows, Manifest) and rows.rows is not None:
        return rows.rows.fingerprint
    digest = hashlib.sha256()
    for row in rows:
        content = row if isinstance(row, str) else (row.name, row.start, row.end, row.captions, row.label, row.split)
        digest.update(repr(content).encode())
    return digest.hexdigest()
