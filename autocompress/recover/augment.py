"""Augmentation of whole batches of stored images, reproducible from a generator.

Geometric ones work per image on ``uint8`` tensors; the learned policies of torchvision draw one
operation for a handful of images at a time, which keeps them affordable on a CPU. Mixing (CutMix,
Mixup) works on prepared inputs and pairs of targets, so that it serves any loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, get_args

import torch
from torch import Tensor

from autocompress.errors import InputError, nearest
from autocompress.policy.recovery import Augmentation
from autocompress.recover._torchvision import torchvision
from autocompress.task.nested import take

MIXING = ("cutmix", "mixup")
NAMES: tuple[str, ...] = get_args(Augmentation)

#: images that share one draw of a learned policy
_GROUP = 8


@dataclass(frozen=True)
class Augment:
    """Batch augmentation by names; picklable.

    Args:
        names: of ``crop`` (pad and crop at random), ``flip`` (left-right, half of the images),
            ``autoaugment`` (the CIFAR-10 policy), ``randaugment``, ``trivialaugment``, ``erase``
            (a random rectangle set to the mean gray), applied in this order of theirs; ``cutmix``
            and ``mixup`` are drawn later, by ``mix``, one of them per batch.
        padding: pixels that a crop may move by.

    References:
        AutoAugment: Cubuk et al. 2019. RandAugment: Cubuk et al. 2020. TrivialAugment: Mueller
        and Hutter 2021. Random erasing: Zhong et al. 2020.
    """

    names: tuple[str, ...]
    padding: int = 4

    def __post_init__(self) -> None:
        for name in self.names:
            if name not in NAMES:
                raise InputError(f"There is no augmentation {name!r}; {nearest(name, NAMES)}")

    @property
    def mixing(self) -> tuple[str, ...]:
        """The names that mix images of a batch with each other."""
        return tuple(n for n in self.names if n in MIXING)

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Augment ``(N, C, H, W)`` images; the same generator state gives the same result."""
        if not isinstance(images, Tensor) or images.dim() != 4:
            found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise InputError(
                f"Augmentations {self.names} need images (N, C, H, W), got {found}. Set "
                "`augment: []` in the schedule, or give the data an `augment` of their own."
            )
        for name in self.names:
            if name == "crop":
                images = random_crop(images, self.padding, generator)
            elif name == "flip":
                images = random_flip(images, generator)
            elif name == "erase":
                images = random_erase(images, generator)
            elif name not in MIXING:
                images = _learned(images, name, generator)
        return images


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Pad with zeros and crop back, every image at its own offset."""
    count, _, high, wide = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    offset = torch.randint(2 * padding + 1, (2, count), generator=generator).to(images.device)
    windows = padded.unfold(2, high, 1).unfold(3, wide, 1)  # a view: (N, C, span, span, H, W)
    return windows[torch.arange(count, device=images.device), :, offset[0], offset[1]]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images left to right."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(-1), images)


def random_erase(images: Tensor, generator: torch.Generator, share: float = 0.5) -> Tensor:
    """Set a rectangle of 2 to 25 % of the area to mid gray, on a share of the images."""
    count, _, high, wide = images.shape
    area = 0.02 + 0.23 * torch.rand(count, generator=generator)
    aspect = torch.exp((torch.rand(count, generator=generator) * 2 - 1) * 1.2)
    area = area * (torch.rand(count, generator=generator) < share)
    tall, broad = (area * aspect).sqrt() * high, (area / aspect).sqrt() * wide
    middle_y = torch.rand(count, generator=generator) * high
    middle_x = torch.rand(count, generator=generator) * wide
    y, x = torch.arange(high) + 0.5, torch.arange(wide) + 0.5
    inside = ((y - middle_y[:, None]).abs() < tall[:, None] / 2)[:, :, None] & (
        (x - middle_x[:, None]).abs() < broad[:, None] / 2
    )[:, None, :]
    gray = 124 if images.dtype == torch.uint8 else 0
    return images.masked_fill(inside[:, None].to(images.device), gray)


def _learned(images: Tensor, name: str, generator: torch.Generator) -> Tensor:
    """torchvision's policies draw from the global generator: seed a fork of it from ours."""
    if images.dtype != torch.uint8:
        raise InputError(
            f"The augmentation {name!r} needs images stored as uint8, got {images.dtype}. Store "
            "them as uint8 and normalize in the split's `preprocess`."
        )
    seed = int(torch.randint(2**31, (1,), generator=generator))
    policy = _policy(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return torch.cat([policy(part) for part in images.split(_GROUP)])


@cache
def _policy(name: str) -> Callable[[Tensor], Tensor]:
    v2 = torchvision().transforms.v2
    if name == "autoaugment":
        return v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    return v2.RandAugment() if name == "randaugment" else v2.TrivialAugmentWide()


@dataclass(frozen=True)
class Mixed:
    """A batch whose images were mixed in pairs.

    Args:
        inputs: prepared inputs.
        targets: of the image that a share ``keep`` comes from.
        others: targets of the other image.
        keep: share of the first image, in [0, 1].
    """

    inputs: Any
    targets: Any
    others: Any
    keep: float

    def loss(self, criterion: Callable[[Any, Any], Tensor], outputs: Any) -> Tensor:
        """The criterion towards both targets, weighted."""
        if self.keep == 1.0:
            return criterion(outputs, self.targets)
        first, second = criterion(outputs, self.targets), criterion(outputs, self.others)
        return self.keep * first + (1 - self.keep) * second


def mix(inputs: Any, targets: Any, names: Sequence[str], generator: torch.Generator) -> Mixed:
    """Mix a batch with a shuffled copy of itself by one of the named ways.

    Args:
        inputs: floats ``(N, C, H, W)`` (Mixup: any shape with ``N`` first).
        targets: ``(N, ...)``.
        names: of ``cutmix`` and ``mixup``; empty leaves the batch as it is.
        generator: source of all draws.

    References:
        CutMix: Yun et al. 2019, section 3.1, with alpha 1. Mixup: Zhang et al. 2018, eq. 1, with
        alpha 0.2.
    """
    if not names:
        return Mixed(inputs, targets, targets, 1.0)
    if not isinstance(inputs, Tensor):
        raise InputError(
            f"{' and '.join(names)} mix single tensors, this batch holds {type(inputs).__name__}. "
            "Leave them out of `augment` for models with several inputs."
        )
    name = names[int(torch.randint(len(names), (1,), generator=generator))]
    order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
    others = take(targets, order)
    if name == "mixup":
        keep = _beta(0.2, generator)
        return Mixed(torch.lerp(inputs[order], inputs, keep), targets, others, keep)
    if inputs.dim() != 4:
        raise InputError(f"cutmix needs images (N, C, H, W), got {tuple(inputs.shape)}.")
    high, wide = inputs.shape[-2:]
    cut = (1 - float(torch.rand(1, generator=generator))) ** 0.5  # alpha 1: Beta(1, 1) is uniform
    y, x = (int(v) for v in torch.rand(2, generator=generator) * torch.tensor([high, wide]))
    top, bottom = max(0, y - int(high * cut) // 2), min(high, y + int(high * cut) // 2)
    left, right = max(0, x - int(wide * cut) // 2), min(wide, x + int(wide * cut) // 2)
    mixed = inputs.clone()
    mixed[:, :, top:bottom, left:right] = inputs[order, :, top:bottom, left:right]
    keep = 1 - (bottom - top) * (right - left) / (high * wide)
    return Mixed(mixed, targets, others, keep)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha) by Joehnk's method, from our own generator."""
    while True:
        u, v = (torch.rand(2, generator=generator, dtype=torch.float64) ** (1 / alpha)).tolist()
        if 0 < u + v <= 1:
            return u / (u + v)
