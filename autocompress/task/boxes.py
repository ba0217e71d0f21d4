"""Boxes in images: as detectors' data sets have them, another number in each, and as one tensor.

Everywhere behind the door targets are one tensor ``(N, M, 5)``: class and corners x1, y1, x2, y2,
with class -1 where an image has fewer than ``M`` boxes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError

NONE = -1.0
"""Class of a row that is no box."""


def has_boxes(value: Any) -> bool:
    """Whether this is what torchvision's detectors are given of one image."""
    return isinstance(value, Mapping) and "boxes" in value and "labels" in value


def is_list_of_boxes(value: Any) -> bool:
    """Whether these are the targets of several images, one mapping each."""
    return isinstance(value, list | tuple) and bool(value) and all(has_boxes(v) for v in value)


def is_boxes(tensor: Tensor) -> bool:
    """Whether targets are ``(N, M, 5)`` as above, and no numbers that are as many by chance."""
    if tensor.dim() != 3 or tensor.shape[-1] != 5 or not tensor.is_floating_point():
        return False
    kinds, corners = tensor[..., 0], tensor[..., 1:]
    classes = bool(((kinds >= NONE) & (kinds == kinds.round())).all())
    return classes and bool((corners[..., 2:] >= corners[..., :2]).all())


def as_boxes(images: Sequence[Mapping[str, Any]]) -> Tensor:
    """One tensor of the boxes of several images.

    Args:
        images: of each, ``boxes`` ``(K, 4)`` as corners and ``labels`` ``(K,)``; other keys are
            left out.

    Returns:
        ``(N, M, 5)``, as many rows as the image with the most boxes has.

    Raises:
        InputError: not as many labels as boxes, or boxes that are no corners.
    """
    return join_boxes([_of_one(image)[None] for image in images])


def _of_one(image: Mapping[str, Any]) -> Tensor:
    corners, labels = image["boxes"], torch.as_tensor(image["labels"])
    form = getattr(corners, "format", None)  # of torchvision's own kind of tensor
    if form is not None and getattr(form, "name", "XYXY") != "XYXY":
        raise InputError(
            f"Boxes must be corners (x1, y1, x2, y2), got the format {form.name}. Convert them in "
            "the data set: torchvision.ops.box_convert(boxes, ..., 'xyxy')."
        )
    plain = torch.as_tensor(corners).as_subclass(Tensor).float().reshape(-1, 4)
    labels = labels.as_subclass(Tensor).reshape(-1)
    if len(plain) != len(labels):
        raise InputError(
            f"Every box of an image needs one label, found {len(plain)} boxes and "
            f"{len(labels)} labels."
        )
    return torch.cat([labels[:, None].float(), plain], 1)


def join_boxes(parts: Sequence[Tensor]) -> Tensor:
    """Tensors ``(N, M, 5)`` of unlike ``M``, one after another."""
    most = max(part.shape[1] for part in parts)
    return torch.cat([F.pad(p, (0, 0, 0, most - p.shape[1]), value=NONE) for p in parts])


def listed(targets: Tensor) -> list[dict[str, Tensor]]:
    """The boxes and labels of each image, as torchvision's detectors take them.

    Args:
        targets: ``(N, M, 5)``.
    """
    kept = [image[image[:, 0] >= 0] for image in targets]
    return [{"boxes": image[:, 1:], "labels": image[:, 0].long()} for image in kept]


def digest_boxes(digest: Any, targets: Tensor) -> None:
    """Add boxes to a digest, the same whatever the number of rows that are none.

    Args:
        digest: of hashlib.
        targets: ``(N, M, 5)``.
    """
    for image in targets:
        kept = image[image[:, 0] >= 0].contiguous()
        digest.update(hashlib.sha256(kept.numpy().tobytes()).digest())
