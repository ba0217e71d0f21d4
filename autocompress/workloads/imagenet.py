"""ImageNet from the user's own folder, read when needed, and torchvision's MobileNetV2."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.recover.augment import random_flip
from autocompress.task.data import Data, Split
from autocompress.workloads._torchvision import torchvision
from autocompress.workloads.cache import digest
from autocompress.workloads.data import IMAGENET_MEAN, IMAGENET_STD, Normalize, stratified
from autocompress.workloads.images import ImageFile, decode_image, list_images


@dataclass(frozen=True)
class Reader:
    """Reads the images behind stored numbers, in parallel; picklable.

    A split stores ``(N, 2)`` numbers: an image's place in ``files`` and a digest of its path and
    size, which makes the data's fingerprint depend on the files.

    Args:
        root: folder.
        files: paths inside it.
        size: shorter side after resizing; then a square of ``crop`` from the middle.
        crop: side of the model's input.
    """

    root: str
    files: tuple[str, ...] = field(repr=False)
    size: int
    crop: int

    def __call__(self, stored: Tensor) -> Tensor:
        """Normalized images; numbers are read first, ``uint8`` images are taken as they are."""
        images = stored if stored.dtype == torch.uint8 else self.center(stored)
        return Normalize(IMAGENET_MEAN, IMAGENET_STD)(images)

    def center(self, stored: Tensor) -> Tensor:
        """The middle of each image as ``uint8`` ``(N, 3, crop, crop)``."""
        margin = (self.size - self.crop) // 2
        middle = slice(margin, margin + self.crop)
        return self._read(stored, self.size, lambda i, image: image[:, middle, middle])

    def random(self, stored: Tensor, generator: torch.Generator) -> Tensor:
        """A random crop of each image at a random scale, as ``uint8``."""
        scale = 1.0 + 0.5 * float(torch.rand(1, generator=generator))
        side = round(self.crop * scale)
        offset = torch.randint(side - self.crop + 1, (len(stored), 2), generator=generator).tolist()

        def cut(i: int, image: np.ndarray) -> np.ndarray:
            top, left = offset[i]
            return image[:, top : top + self.crop, left : left + self.crop]

        return self._read(stored, side, cut)

    def _read(
        self, stored: Tensor, size: int, cut: Callable[[int, np.ndarray], np.ndarray]
    ) -> Tensor:
        out = np.empty((len(stored), 3, self.crop, self.crop), np.uint8)
        places = stored[:, 0].tolist()

        def one(i: int) -> None:
            path = self.files[places[i]]
            out[i] = cut(i, decode_image(Path(self.root, path).read_bytes(), path, size))

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
            for _ in pool.map(one, range(len(places))):
                pass
        return torch.from_numpy(out)


@dataclass(frozen=True)
class ReadAugmented:
    """Random crop and flip, while reading."""

    reader: Reader

    def __call__(self, stored: Tensor, generator: torch.Generator) -> Tensor:
        """From stored numbers to augmented ``uint8`` images."""
        return random_flip(self.reader.random(stored, generator), generator)


def imagenet(
    root: str,
    *,
    size: int = 256,
    crop: int = 224,
    train_limit: int | None = 50_000,
    val_limit: int | None = 5_000,
    seed: int = 0,
) -> Data:
    """``root/{train,val}/CLASS/*.JPEG``; nothing is read before it is needed.

    Args:
        root: folder with ``train`` and ``val``, one folder per class, named so that their
            alphabetical order is the order of the model's outputs (as the original names are).
        size: shorter side after resizing, at least ``crop``.
        crop: side of the model's input.
        train_limit: a random share of the training images; ``None`` takes all.
        val_limit: of the images that the search scores its trials on.
        seed: the official validation images become ``val`` and ``test``, half each per class.

    Raises:
        InputError: no such folder, or one without ``train`` and ``val``.
    """
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"There is no ImageNet folder {folder}. ImageNet must be obtained from image-net.org; "
            "unpack it to ROOT/{train,val}/CLASS/*.JPEG and set IMAGENET to ROOT."
        )
    if size < crop:
        raise InputError(f"`size` must be at least `crop` ({crop}), got {size}.")
    files = list_images(folder, ("train", "val"))
    classes = sorted({f.label for f in files if f.split == "train"})
    reader = Reader(str(folder), tuple(f.path for f in files), size, crop)
    stored, targets = _numbers(files, classes)
    is_train = torch.tensor([f.split == "train" for f in files])
    train = Split(stored[is_train], targets[is_train], reader)
    rest, rest_targets = stored[~is_train], targets[~is_train]
    val_index, test_index = stratified(rest_targets, (0.5, 0.5), seed)
    val = Split(rest[val_index], rest_targets[val_index], reader)
    test = Split(rest[test_index], rest_targets[test_index], reader)
    return Data(
        train if train_limit is None else train.sample(train_limit, seed),
        val if val_limit is None else val.sample(val_limit, seed),
        test,
        classes=len(classes),
        augment=ReadAugmented(reader),
        name="imagenet",
        extra={"classes": tuple(classes)},
    )


def _numbers(files: list[ImageFile], classes: list[str]) -> tuple[Tensor, Tensor]:
    index = {name: i for i, name in enumerate(classes)}
    for file in files:
        if file.label not in index:
            raise InputError(f"The split 'val' has a class {file.label!r} that `train` has not.")
    rows = [[i, int(digest(f.path, f.size)[:15], 16)] for i, f in enumerate(files)]
    return torch.tensor(rows), torch.tensor([index[f.label] for f in files])


def mobilenet_v2(weights: str = "IMAGENET1K_V2") -> nn.Module:
    """torchvision's MobileNetV2 with its trained weights, fetched on first use.

    Args:
        weights: one of torchvision's names, or ``""`` for fresh weights.

    Raises:
        InputError: an unknown name, or the weights are neither at hand nor can be fetched.
    """
    models = torchvision().models
    try:
        return models.mobilenet_v2(weights=weights or None).eval()
    except KeyError:
        known = [w.name for w in models.MobileNet_V2_Weights]
        raise InputError(f"MobileNetV2 has no weights {weights!r}; valid: {known}.") from None
    except OSError as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"torchvision's weights {weights!r} are neither in {folder} nor could they be fetched "
            f"({error}). Fetch them on another machine and put the file there."
        ) from None
