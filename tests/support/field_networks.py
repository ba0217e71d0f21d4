"""Small networks of the kinds that people report as broken by compression tools, as ``CASES``.

Each maps a name to a factory, an example input (or a tuple of them) and what is right:

``EQUAL``: pruned is masked, and there is something to prune.
``HEADS``: the same, and the attention's heads are among it.
``TIED``: the same; one parameter in two layers is counted once and stays one.
``FOLDED``: weights that are computed are folded first; then ``EQUAL``.
``ALONE``: layers that cannot be cut are left alone, with a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from field_answers import OUTPUTS, TwoOutputs, UnlikeInputs
from field_attention import ChunkedAttention, FusedAttention, SeparateAttention, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, weight_norm

EQUAL, HEADS, TIED, FOLDED, ALONE = "equal", "heads", "tied", "folded", "alone"


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class CrossStage(nn.Module):
    """A map is cut in two; a chain of blocks goes on with one half; all are joined again.

    Args:
        inputs, outputs: channels.
        depth: blocks in the chain.
        shortcut: whether each block adds its input.
        chunk: halves by ``chunk``, otherwise by ``split`` with literal sizes.
    """

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool, chunk: bool) -> None:
        super().__init__()
        self.half, self.shortcut, self.chunk = outputs // 2, shortcut, chunk
        self.enter = ConvNorm(inputs, outputs)
        self.leave = ConvNorm((2 + depth) * self.half, outputs)
        self.chain = nn.ModuleList(
            nn.Sequential(ConvNorm(self.half, self.half, 3), ConvNorm(self.half, self.half, 3))
            for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        found = [*(x.chunk(2, 1) if self.chunk else x.split((self.half, self.half), 1))]
        for block in self.chain:
            last = found[-1]
            found.append(last + block(last) if self.shortcut else block(last))
        return self.leave(torch.cat(found, 1))


class Detector(nn.Module):
    """The backbone of a current detector in small."""

    def __init__(self, chunk: bool, shortcut: bool = True) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, 3, 2)
        self.first = CrossStage(16, 16, 2, shortcut, chunk)
        self.down = ConvNorm(16, 24, 3, 2)
        self.second = CrossStage(24, 24, 1, shortcut, chunk)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.down(self.first(self.stem(x))))
        return self.head(x.mean((2, 3)))


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels of the groups in turn."""
    count, channels, height, width = x.shape
    x = x.view(count, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(count, channels, height, width)


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half are changed; then both are shuffled."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        passed, changed = x.chunk(2, 1)
        return shuffled(torch.cat([passed, self.branch(changed)], 1), 2)


class ShuffleNet(nn.Module):
    """Two shuffle units between convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.units = nn.Sequential(ShuffleUnit(16), ShuffleUnit(16))
        self.last, self.head = nn.Conv2d(16, 24, 1), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.units(F.relu(self.stem(x)))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class BetweenDense(nn.Module):
    """Something that rearranges channels, between two dense convolutions."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 8, 3, padding=1)
        self.head, self.between = nn.Linear(8, 5), between

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(F.relu(self.first(x)))
        return self.head(F.relu(self.second(x)).mean((2, 3)))


class Joined(nn.Module):
    """The image (x), an inner stream (y) and a constant (g), concatenated in an order."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(sum({"y": 8}.get(c, 3) for c in order), 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        known = {"x": x, "y": F.relu(self.first(x)), "g": torch.ones_like(x)}
        x = torch.cat([known[part] for part in self.order], 1)
        return self.head(F.relu(self.second(x)).mean((2, 3)))


class TiedConvolutions(nn.Module):
    """Two convolutions, one after the other, with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.once, self.again = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.again.weight = self.once.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.once(F.relu(self.stem(x))))
        return self.head(F.relu(self.again(x)).mean((2, 3)))


class Siamese(nn.Module):
    """Two streams read by linear layers with one weight and one bias."""

    def __init__(self) -> None:
        super().__init__()
        self.enter_left, self.enter_right = nn.Linear(6, 8), nn.Linear(6, 8)
        self.left, self.right, self.head = nn.Linear(8, 12), nn.Linear(8, 12), nn.Linear(24, 5)
        self.right.weight, self.right.bias = self.left.weight, self.left.bias

    def forward(self, x: Tensor) -> Tensor:
        left = F.relu(self.left(F.relu(self.enter_left(x))))
        right = F.relu(self.right(F.relu(self.enter_right(x))))
        return self.head(torch.cat([left, right], 1))


class TiedTokens(nn.Module):
    """Tokens are embedded, and told apart, by one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.down(F.gelu(self.up(x))))


class Autoencoder(nn.Module):
    """The decoder applies the encoder's weight, transposed, as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.inner, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(12, 5)
        self.shift = nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.inner(F.relu(self.encode(x))))
        return self.head(F.relu(F.linear(code, self.encode.weight.t(), self.shift)))


class Wrapped(nn.Module):
    """Layers whose weight is computed at each call."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.first = wrap(nn.Conv2d(3, 8, 3, padding=1))
        self.second = wrap(nn.Conv2d(8, 8, 3, padding=1))
        self.third, self.head = nn.Conv2d(8, 6, 3, padding=1), wrap(nn.Linear(6, 5))

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.second, self.third):
            x = F.relu(layer(x))
        return self.head(x.mean((2, 3)))


def masked(module: nn.Module) -> nn.Module:
    """With torch's own mask on three tenths of the weights."""
    prune.l1_unstructured(module, "weight", 0.3)
    return module


class UNet(nn.Module):
    """Down, up by a transposed convolution, and joined."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.bottom = nn.Conv2d(16, 16, 3, padding=1)
        self.rise = nn.ConvTranspose2d(16, 8, 2, 2, groups=groups)
        self.norm, self.join = nn.BatchNorm2d(8), nn.Conv2d(16, 8, 3, padding=1)
        self.leave = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x))
        low = F.relu(self.bottom(F.relu(self.down(x))))
        high = F.relu(self.norm(self.rise(low)))
        return self.leave(F.relu(self.join(torch.cat([high, x], 1))))


class Generator(nn.Module):
    """A linear layer, viewed as maps with literal sizes, then transposed convolutions only."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(10, 16 * 16)
        self.rise = nn.ConvTranspose2d(16, 8, 4, 2, 1)
        self.paint = nn.ConvTranspose2d(8, 3, 4, 2, 1)

    def forward(self, noise: Tensor) -> Tensor:
        x = F.relu(self.enter(noise)).view(-1, 16, 4, 4)
        return torch.tanh(self.paint(F.relu(self.rise(x))))


class Volume(nn.Module):
    """Three dimensions of space."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm = nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.down, self.rise = nn.Conv3d(8, 8, 3, 2, 1), nn.ConvTranspose3d(8, 6, 2, 2)
        self.leave = nn.Conv3d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.down(F.relu(self.norm(self.enter(x)))))
        return self.leave(F.relu(self.rise(x)))


class FrozenNorm(nn.Module):
    """A batch norm of four buffers, as detection backbones have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(channels) + 0.5)
        self.register_buffer("bias", torch.randn(channels) * 0.1)
        self.register_buffer("running_mean", torch.randn(channels) * 0.1)
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


class Normed(nn.Module):
    """Two convolutions with a norm behind each."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), norm(16)
        self.second, self.norm2 = nn.Conv2d(16, 16, 3, padding=1), norm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.first(x)))
        return self.head(F.relu(self.norm2(self.second(x))).mean((2, 3)))


class InnerScale(nn.Module):
    """A parameter of the model's own for each inner channel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.gamma, self.head = nn.Parameter(torch.rand(16, 1, 1) + 0.5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x) * self.gamma)))
        return self.head(x.mean((2, 3)))


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _tokens(*shape: int) -> Tensor:
    return torch.randint(20, shape, generator=torch.Generator().manual_seed(1))


_IMAGE = _drawn(8, 3, 8, 8)
Case = tuple[Callable[[], nn.Module], Any, str]

CASES: dict[str, Case] = {
    "yolo c2f, chunk": (lambda: Detector(chunk=True), _drawn(4, 3, 32, 32), EQUAL),
    "yolo c2f, split": (lambda: Detector(chunk=False), _drawn(4, 3, 32, 32), EQUAL),
    "yolo c2f, split, no shortcut": (
        lambda: Detector(chunk=False, shortcut=False),
        _drawn(4, 3, 32, 32),
        EQUAL,
    ),
    "shufflenet": (ShuffleNet, _drawn(4, 3, 16, 16), EQUAL),
    "shuffle between dense": (
        lambda: BetweenDense(lambda x: shuffled(x, 4)),
        _drawn(4, 3, 16, 16),
        EQUAL,
    ),
    "nn.ChannelShuffle": (lambda: BetweenDense(nn.ChannelShuffle(4)), _drawn(4, 3, 16, 16), EQUAL),
    **{
        f"concatenated {order}": (lambda order=order: Joined(order), _IMAGE, EQUAL)
        for order in ("xy", "yx", "gy", "yg", "xyy", "yxy")
    },
    "tied convolutions": (TiedConvolutions, _IMAGE, TIED),
    "tied linears on two streams": (Siamese, _drawn(8, 6), TIED),
    "tied embedding and head": (TiedTokens, _tokens(8, 7), TIED),
    "transposed decoder": (Autoencoder, _drawn(8, 12), ALONE),
    "weight_norm": (lambda: Wrapped(parametrizations.weight_norm), _IMAGE, FOLDED),
    "weight_norm, old": (lambda: Wrapped(weight_norm), _IMAGE, FOLDED),
    "spectral_norm": (lambda: Wrapped(parametrizations.spectral_norm), _IMAGE, FOLDED),
    "masked by torch": (lambda: Wrapped(masked), _IMAGE, FOLDED),
    "u-net": (UNet, _IMAGE, EQUAL),
    "u-net, grouped transposed": (lambda: UNet(groups=2), _IMAGE, EQUAL),
    "generator": (Generator, _drawn(8, 10), EQUAL),
    "volume": (Volume, _drawn(4, 1, 6, 6, 6), EQUAL),
    "frozen batch norm": (lambda: Normed(FrozenNorm), _IMAGE, EQUAL),
    "group norm": (lambda: Normed(lambda c: nn.GroupNorm(4, c)), _IMAGE, EQUAL),
    "instance norm, tracked": (
        lambda: Normed(lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True)),
        _IMAGE,
        EQUAL,
    ),
    "vit, fused": (lambda: VisionTransformer(FusedAttention), _IMAGE, HEADS),
    "vit, separate": (lambda: VisionTransformer(SeparateAttention), _IMAGE, HEADS),
    "vit, chunked": (lambda: VisionTransformer(ChunkedAttention), _IMAGE, HEADS),
    "inner scale": (InnerScale, _IMAGE, EQUAL),
    **{f"two outputs, {how}": (lambda how=how: TwoOutputs(how), _IMAGE, EQUAL) for how in OUTPUTS},
    "unlike inputs": (UnlikeInputs, (_tokens(8, 6), _drawn(8, 4)), EQUAL),
}
