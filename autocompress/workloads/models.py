"""Ready-made networks: the CIFAR ResNets and VGG-16-BN, and a small net for digits."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InputError, nearest


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's CPU generator with a seed, and put its state back afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class ShortcutA(nn.Module):
    """Option A of He et al. (2016), section 4.2: stride-2 subsampling, zero-padded channels."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        """Halve the image ``(N, C, H, W)`` and add ``extra`` zero channels, half on either side."""
        half = self.extra // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.extra - half))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = (
            ShortcutA(channels - in_channels)
            if stride != 1 or in_channels != channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        """From ``(N, C, H, W)`` to ``(N, C', H/stride, W/stride)``."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for small images, He et al. (2016), section 4.2.

    Args:
        blocks: residual blocks in each of the three stages (3 makes ResNet-20, 9 ResNet-56).
        widths: channels of the three stages.
        classes: size of the output.
        in_channels: channels of the image.
    """

    layer1: nn.Module
    layer2: nn.Module
    layer3: nn.Module

    def __init__(
        self,
        blocks: int,
        widths: Sequence[int] = (16, 32, 64),
        classes: int = 10,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        width = widths[0]
        for stage, channels in enumerate(widths, 1):
            layers = []
            for i in range(blocks):
                layers.append(BasicBlock(width, channels, 2 if stage > 1 and i == 0 else 1))
                width = channels
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """From images ``(N, C, H, W)`` to logits ``(N, classes)``."""
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            out = stage(out)
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


def resnet20(classes: int = 10) -> CifarResNet:
    """0.27 million parameters, 41 million multiply-adds at 32x32."""
    return CifarResNet(3, classes=classes)


def resnet56(classes: int = 10) -> CifarResNet:
    """0.85 million parameters, 127 million multiply-adds at 32x32."""
    return CifarResNet(9, classes=classes)


_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


class CifarVGG(nn.Module):
    """VGG with batch norm for 32x32 images, one linear classifier (Simonyan and Zisserman 2015).

    Args:
        plan: output channels of each convolution, ``"M"`` for a 2x2 max-pool.
        classes: size of the output.
        width: factor on all channels.
    """

    def __init__(
        self, plan: Sequence[int | str] = _VGG16, classes: int = 10, width: float = 1.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for step in plan:
            if isinstance(step, str):
                layers.append(nn.MaxPool2d(2, 2))
                continue
            out = max(1, round(step * width))
            layers += [
                nn.Conv2d(channels, out, 3, padding=1, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(inplace=True),
            ]
            channels = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """From images ``(N, 3, 32, 32)`` to logits ``(N, classes)``."""
        return self.classifier(self.features(x).flatten(1))


def vgg16_bn(classes: int = 10, width: float = 1.0) -> CifarVGG:
    """14.7 million parameters, 313 million multiply-adds at 32x32 (width 1)."""
    return CifarVGG(classes=classes, width=width)


def digits_resnet(classes: int = 10, width: int = 32, seed: int = 0) -> CifarResNet:
    """A ResNet for scikit-learn's digits, upsampled to 16x16: seconds to train on two cores.

    The same seed draws the same first weights in every process, so that weights trained from them
    are found again in the cache.
    """
    with seeded(seed):
        return CifarResNet(1, (width, 2 * width, 4 * width), classes, in_channels=1)


def load_weights(model: nn.Module, path: str) -> nn.Module:
    """Load a safetensors or torch state dict into the model, cast to its own dtypes.

    Raises:
        InputError: no such file, one that is not readable, or a checkpoint of another
            architecture.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"There is no checkpoint at {file}. Set AUTOCOMPRESS_WEIGHTS to the "
            "folder that holds it, or correct `model.checkpoint` in the study."
        )
    return load_state(model, _read_state(file), file.name)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> nn.Module:
    """Load a state dict into the model, cast to its own dtypes.

    Args:
        model: changed in place.
        state: all of the model's tensors by name.
        source: file or package of the state, for errors.

    Raises:
        InputError: the state of another architecture.
    """
    own = model.state_dict()
    for name, tensor in state.items():
        if name not in own:
            raise InputError(
                f"{source} is the checkpoint of another architecture: it has "
                f"{name!r}, the model has not; {nearest(name, own)}"
            )
        if own[name].shape != tensor.shape:
            raise InputError(
                f"{source} is the checkpoint of another architecture: {name!r} has "
                f"shape {tuple(tensor.shape)}, the model's {tuple(own[name].shape)}."
            )
    missing = [n for n in own if n not in state and not n.endswith("num_batches_tracked")]
    if missing:
        raise InputError(
            f"{source} is the checkpoint of another architecture: the model's "
            f"{missing[0]!r} is not in it ({len(missing)} tensors are missing)."
        )
    model.load_state_dict({n: t.to(own[n].dtype) for n, t in state.items()}, strict=False)
    return model.eval()


def _read_state(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        # old formats would go to a reader that fails on what is no checkpoint in any way
        if not zipfile.is_zipfile(file):
            raise pickle.UnpicklingError("no archive, or a torn one")
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
        raise InputError(
            f"The checkpoint {file} is not readable ({error}). It must hold a state dict, as "
            "safetensors or written by `torch.save`."
        ) from None
    found: dict[str, Tensor] = state.get("state_dict", state)
    return found
