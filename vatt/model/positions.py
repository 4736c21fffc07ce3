"""Learned position tables, and their resampling to other grids by a spline."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn


@lru_cache(maxsize=64)
def spline_matrix(source: int, target: int) -> Tensor:
    """Return matrix [target, source] that resamples a table of `source` rows to `target` rows, float64.

    A natural cubic spline through x_i = i / source, read at y_j = j / target, linear beyond the last knot. This is the
    release's order-3 polyharmonic interpolation, solved stably: the official float32 solve loses digits from 8 rows
    on and has none left at 1200.
    """
    if source == 1:
        return torch.ones(target, 1, dtype=torch.float64)
    x = np.arange(source) / source
    step = 1.0 / source
    # Second derivatives m solve a tridiagonal system; natural ends have m = 0.
    second = np.zeros((source, source))
    if source > 2:
        inner = source - 2
        system = 4 * np.eye(inner) + np.eye(inner, k=1) + np.eye(inner, k=-1)
        right = np.zeros((inner, source))
        rows = np.arange(inner)
        right[rows, rows] = right[rows, rows + 2] = 6 / step**2
        right[rows, rows + 1] = -12 / step**2
        second[1:-1] = np.linalg.solve(system, right)
    y = np.arange(target) / target
    left = np.clip((y * source).astype(np.int64), 0, source - 2)
    t = (y - x[left]) / step
    eye = np.eye(source)
    value_left, value_right, m_left, m_right = eye[left], eye[left + 1], second[left], second[left + 1]
    u = t[:, None]
    inside = (
        (1 - u) * value_left
        + u * value_right
        + step**2 / 6 * (((1 - u) ** 3 - (1 - u)) * m_left + (u**3 - u) * m_right)
    )
    # Beyond the last knot: straight on with the slope there (m_right is 0 at a natural end).
    slope = (value_right - value_left) + step**2 / 6 * (m_left + 2 * m_right)
    outside = value_right + (u - 1) * slope
    return torch.from_numpy(np.where(u > 1, outside, inside))


def resample_table(table: Tensor, target: int) -> Tensor:
    """Return position table [n, D] -> [target, D]; differentiable, the identity when n == target."""
    if table.shape[0] == target:
        return table
    matrix = spline_matrix(table.shape[0], target).to(table.device)
    return (matrix @ table.double()).to(table.dtype)


class PositionTables(nn.Module):
    """Factorised learned positions: one table an axis, their sum, then LayerNorm on the sum alone (eps 1e-6)."""

    def __init__(self, sizes: tuple[int, ...], width: int):
        super().__init__()
        self.tables = nn.ParameterList(nn.Parameter(torch.empty(n, width)) for n in sizes)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for table in self.tables:
            std = width**-0.5
            nn.init.trunc_normal_(table, std=std, a=-2 * std, b=2 * std)

    def forward(self, sizes: tuple[int, ...]) -> Tensor:
        """Return positions [prod(sizes), D] of a grid, last axis fastest.

        Other grid sizes than the tables' use the spline.
        """
        total: Tensor | None = None
        for axis, (table, size) in enumerate(zip(self.tables, sizes, strict=True)):
            shape = [1] * len(sizes) + [table.shape[1]]
            shape[axis] = size
            rows = resample_table(table, size).reshape(shape)
            total = rows if total is None else total + rows
        assert total is not None
        return self.norm(total.expand(*sizes, -1).reshape(-1, total.shape[-1]))
