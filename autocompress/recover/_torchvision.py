"""Import torchvision beside a CPU-only torch.

The wheel's compiled operators need CUDA libraries there, and ``import torchvision`` then fails on
the missing schemas of ``nms``. Models, transforms and data sets use neither, so declaring the two
schemas first is enough.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

_FRAGMENT: list[Any] = []


def torchvision() -> ModuleType:
    """The module, imported on first use."""
    import torch

    if torch.version.cuda is None and not _FRAGMENT:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for schema in (
            "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        ):
            library.define(schema)
        _FRAGMENT.append(library)
    import torchvision as module
    import torchvision.datasets
    import torchvision.models
    import torchvision.transforms.v2

    return module
