"""Symmetric matrices as their upper triangles, which halves what is sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def triangle(second: Tensor) -> NDArray[Any]:
    """The upper triangles of ``(groups, n, n)``, as ``(groups, n (n + 1) / 2)``."""
    rows, columns = np.triu_indices(second.shape[-1])
    return second.numpy()[:, rows, columns]


def whole(triangles: NDArray[Any]) -> Tensor:
    """The symmetric matrices again."""
    size = int((2 * triangles.shape[-1]) ** 0.5)
    rows, columns = np.triu_indices(size)
    found = np.zeros((len(triangles), size, size), triangles.dtype)
    found[:, rows, columns] = triangles
    found[:, columns, rows] = triangles
    return torch.from_numpy(found)
