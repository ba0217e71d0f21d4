"""Small architectures that a search space may put in the model's place, by name.

A name is an architecture, optionally with a width: ``resnet8``, ``vgg8-w0.5``, ``mobile-small-w2``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import InputError, nearest
from autocompress.workloads.models import CifarResNet, seeded
from autocompress.workloads.sequences import SequenceLSTM

Shape = tuple[int, ...]
Builder = Callable[[Shape, int, float], nn.Module]

_NAME = re.compile(r"(?P<base>.+?)(?:-w(?P<width>\d+(?:\.\d+)?))?")


def build_student(name: str, shape: Sequence[int], classes: int | None, seed: int = 0) -> nn.Module:
    """A student with fresh weights.

    Args:
        name: of a student, with ``-wFACTOR`` for a factor on all widths.
        shape: of one sample, without the batch: ``(C, H, W)`` for images, ``(T, D)`` for the
            sequence students.
        classes: size of the output.
        seed: of the weights; the same in every process.

    Raises:
        InputError: an unknown name, an impossible width, or inputs of another kind.
    """
    found = _NAME.fullmatch(name)
    base, width = (found["base"], float(found["width"] or 1)) if found else (name, 1.0)
    if base not in _STUDENTS:
        raise InputError(
            f"There is no student {name!r}; {nearest(base, _STUDENTS)} A width is written as "
            "`-w0.5`."
        )
    if not 0.05 <= width <= 8:
        raise InputError(f"The width of student {name!r} must lie in [0.05, 8], got {width:g}.")
    if not classes:
        raise InputError(
            f"The student {name!r} needs the number of classes: set `classes` of the data."
        )
    with seeded(seed):
        return _STUDENTS[base](tuple(shape), classes, width).eval()


class SmallVGG(nn.Module):
    """Stages of 3x3 convolutions with max-pooling between them and an average at the end.

    Args:
        in_channels: of the image.
        stages: output channels of each convolution, per stage.
        classes: size of the output.
    """

    def __init__(self, in_channels: int, stages: Sequence[Sequence[int]], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for number, stage in enumerate(stages):
            if number:
                layers.append(nn.MaxPool2d(2))
            for out in stage:
                layers += [
                    nn.Conv2d(channels, out, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out),
                    nn.ReLU(),
                ]
                channels = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """From images ``(N, C, H, W)`` to logits ``(N, classes)``."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


class MobileSmall(nn.Module):
    """Depthwise separable convolutions, after MobileNet (Howard et al. 2017), for small images.

    Args:
        in_channels: of the image.
        stem: channels of the first convolution.
        blocks: output channels and stride of each separable convolution.
        classes: size of the output.
    """

    def __init__(
        self, in_channels: int, stem: int, blocks: Sequence[tuple[int, int]], classes: int
    ) -> None:
        super().__init__()
        layers = _conv(in_channels, stem, 3)
        channels = stem
        for out, stride in blocks:
            layers += _conv(channels, channels, 3, stride, groups=channels)
            layers += _conv(channels, out, 1)
            channels = out
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """From images ``(N, C, H, W)`` to logits ``(N, classes)``."""
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def _conv(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]


def _widths(plain: Sequence[int], factor: float) -> tuple[int, ...]:
    """Scaled, at least 4, and a multiple of 4: odd widths gain nothing in the runtimes."""
    return tuple(max(4, 4 * round(w * factor / 4)) for w in plain)


def _image(shape: Shape, smallest: int) -> int:
    if len(shape) != 3 or min(shape[1:]) < smallest:
        raise InputError(
            f"This student takes images (C, H, W) of at least {smallest} pixels, the model's "
            f"input is {shape}. Choose another student."
        )
    return shape[0]


def _resnet(blocks: int) -> Builder:
    def build(shape: Shape, classes: int, width: float) -> nn.Module:
        return CifarResNet(blocks, _widths((16, 32, 64), width), classes, _image(shape, 4))

    return build


def _vgg(stages: Sequence[Sequence[int]]) -> Builder:
    def build(shape: Shape, classes: int, width: float) -> nn.Module:
        channels = _image(shape, 2 ** (len(stages) - 1))
        return SmallVGG(channels, [_widths(s, width) for s in stages], classes)

    return build


def _mobile(shape: Shape, classes: int, width: float) -> nn.Module:
    plain = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1))
    blocks = [(_widths((out,), width)[0], stride) for out, stride in plain]
    return MobileSmall(_image(shape, 4), _widths((32,), width)[0], blocks, classes)


def _lstm(shape: Shape, classes: int, width: float) -> nn.Module:
    if len(shape) != 2:
        raise InputError(
            f"The student 'lstm' takes sequences (T, D), the model's input is {shape}. Choose "
            "another student."
        )
    embed, hidden = _widths((32, 64), width)
    return SequenceLSTM(shape[1], embed, hidden, classes)


_STUDENTS: dict[str, Builder] = {
    "resnet8": _resnet(1),
    "resnet14": _resnet(2),
    "resnet20": _resnet(3),
    "resnet32": _resnet(5),
    "vgg4": _vgg(((32,), (64,), (128,))),
    "vgg8": _vgg(((32, 32), (64, 64), (128, 128))),
    "vgg11": _vgg(((64,), (128,), (256, 256), (512, 512))),
    "mobile-small": _mobile,
    "lstm": _lstm,
}
