"""Ready-made data sets, for a study's ``data.factory``.

Every factory returns ``Data`` with three disjoint splits held in memory as ``uint8``; the
normalization is each split's ``preprocess``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.recover.augment import Augment
from autocompress.task.data import Data, Split
from autocompress.workloads._torchvision import torchvision
from autocompress.workloads.images import read_images

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Normalize:
    """From ``uint8`` images ``(N, C, H, W)`` in 0..255 to normalized floats; picklable.

    Args:
        mean, std: per channel, of images scaled to 0..1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, stored: Tensor) -> Tensor:
        """``(x / 255 - mean) / std``, in one multiplication and one addition."""
        std = torch.tensor(self.std, device=stored.device).view(-1, 1, 1)
        mean = torch.tensor(self.mean, device=stored.device).view(-1, 1, 1)
        return torch.addcmul(-mean / std, stored.float(), 1 / (255 * std))


#: normalization of the digits
scale = Normalize((0.305,), (0.318,))


def stratified(targets: Tensor, shares: Sequence[float], seed: int) -> list[Tensor]:
    """Disjoint random index sets, each with (nearly) the same share of every class.

    How ready-made data are divided for good: recipes hold a digest of what came of it.

    Args:
        targets: class indices ``(N,)``.
        shares: fractions that sum to 1.
        seed: of the draw.

    Returns:
        One sorted index tensor per share; together they hold every index once.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[] for _ in shares]
    for label in range(int(targets.max()) + 1):
        index = (targets == label).nonzero().flatten()
        index = index[torch.randperm(len(index), generator=generator)]
        bounds = [round(len(index) * sum(shares[: i + 1])) for i in range(len(shares))]
        for i, bound in enumerate(bounds):
            parts[i].append(index[bounds[i - 1] if i else 0 : bound])
    return [torch.cat(part).sort().values for part in parts]


def digits(size: int = 16, dtype: Literal["uint8", "float32"] = "uint8", seed: int = 0) -> Data:
    """scikit-learn's 1,797 handwritten digits, in three splits of 60, 20 and 20 %.

    Args:
        size: images are upsampled from 8x8 to ``size`` x ``size``.
        dtype: ``uint8`` in 0..255, normalized when taken; or ``float32``, already normalized.
        seed: of the split; classes are spread evenly.

    Returns:
        Images ``(N, 1, size, size)``, ten classes.
    """
    from sklearn.datasets import load_digits

    if size < 8:
        raise InputError(f"`size` of the digits must be at least 8, got {size}.")
    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) * (255 / 16)
    if size != 8:
        images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    stored = images.round().clamp(0, 255).to(torch.uint8)
    targets = torch.from_numpy(bunch.target).long()
    parts = stratified(targets, (0.6, 0.2, 0.2), seed)
    if dtype == "uint8":
        splits = [Split(stored[i], targets[i], scale) for i in parts]
    else:
        splits = [Split(scale(stored[i]), targets[i]) for i in parts]
    train, val, test = splits
    augment = Augment(("crop",), padding=1)
    return Data(train, val, test, classes=10, augment=augment, name="digits")


def image_folder(
    root: str,
    *,
    name: str | None = None,
    size: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    augment: Sequence[str] = ("crop", "flip"),
    limit: int | None = None,
) -> Data:
    """Images as ``root/{train,val,test}/CLASS/*.jpg``, or in an archive ``root.tar.xz``.

    Decoded once, in parallel, into a file in the cache folder (``AUTOCOMPRESS_CACHE``).

    Args:
        root: folder; where it is missing, the archive beside it is read.
        name: for people; the folder's name by default.
        size: resize and crop to a square; needed where images differ in size.
        mean, std: per channel, of images scaled to 0..1.
        augment: names of ``recover.augment`` used in training unless the schedule names others.
        limit: keep a random sample of at most this many training images (and a fifth of it of
            val and test each), for trying things out.

    Raises:
        InputError: the folder, a split, or a class is missing; the message says what to do.
    """
    decoded = read_images(root, size=size, gray=len(tuple(mean)) == 1)
    normalize = Normalize(tuple(mean), tuple(std))
    splits = []
    for split in ("train", "val", "test"):
        part = Split(decoded.images[split], decoded.targets[split], normalize)
        if limit is not None:
            part = part.sample(limit if split == "train" else max(1, limit // 5))
        splits.append(part)
    padding = max(1, decoded.images["train"].shape[-1] // 8)
    train, val, test = splits
    return Data(
        train,
        val,
        test,
        classes=len(decoded.classes),
        augment=Augment(tuple(augment), padding=padding) if augment else None,
        name=name or Path(root).name,
        extra={"classes": decoded.classes},
    )


def torchvision_cifar10(root: str, *, download: bool = False, seed: int = 0) -> Data:
    """CIFAR-10 through torchvision's own loader.

    Args:
        root: folder that holds ``cifar-10-batches-py`` (or the archive it comes in).
        download: fetch it into ``root`` when it is not there.
        seed: val and test are two halves of the official test set, classes spread evenly, so
            that neither was seen by a model trained on the official train set.

    Raises:
        InputError: the folder holds no CIFAR-10 and no download was asked for.
    """
    sets = torchvision().datasets
    try:
        train = sets.CIFAR10(root, train=True, download=download)
        rest = sets.CIFAR10(root, train=False, download=download)
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{root} does not hold CIFAR-10 as torchvision stores it ({error}). Give the folder "
            "that holds `cifar-10-batches-py`, or ask for `download: true`."
        ) from None
    normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
    images = torch.from_numpy(rest.data).permute(0, 3, 1, 2).contiguous()
    targets = torch.tensor(rest.targets)
    val, test = stratified(targets, (0.5, 0.5), seed)
    return Data(
        Split(
            torch.from_numpy(train.data).permute(0, 3, 1, 2).contiguous(),
            torch.tensor(train.targets),
            normalize,
        ),
        Split(images[val], targets[val], normalize),
        Split(images[test], targets[test], normalize),
        classes=10,
        augment=Augment(("crop", "flip"), padding=4),
        name="cifar10",
        extra={"classes": tuple(train.classes)},
    )
