"""Small networks with every kind of coupling, with random but lively weights and statistics."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.task.data import Data, Split
from autocompress.workloads.models import CifarResNet, seeded
from autocompress.workloads.sequences import SequenceLSTM


class Plain(nn.Module):
    """Two convolutions with batch norm and two linear layers; the feature map is flattened."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width + 4, 3, stride=2, padding=1)
        self.bn2 = nn.BatchNorm2d(width + 4)
        self.fc1 = nn.Linear((width + 4) * 4, 12)
        self.fc2 = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Residual(nn.Module):
    """A stem, an identity block and a strided block with a projection."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.project = nn.Conv2d(width, 2 * width, 1, stride=2)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        x = F.relu(self.project(x) + self.conv4(F.relu(self.conv3(x))))
        return self.head(x.mean((2, 3)))


class Concat(nn.Module):
    """A dense block: each layer reads all that came before it."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(3 * width)
        self.mix = nn.Conv2d(3 * width, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], 1)
        return self.head(F.relu(self.mix(F.relu(self.norm3(x)))).mean((2, 3)))


class Nested(nn.Module):
    """Concatenations of concatenations before a pointwise, a depthwise and two strided layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 16, 3, padding=1)
        self.right = nn.Conv2d(3, 16, 3, padding=1)
        self.third = nn.Conv2d(32, 8, 1)
        self.norm = nn.BatchNorm2d(40)
        self.depth = nn.Conv2d(40, 40, 3, padding=1, groups=40)
        self.point = nn.Conv2d(40, 12, 3, stride=4, padding=1)
        self.side = nn.Conv2d(16, 6, 3, stride=4, padding=1)
        self.head = nn.Linear(18 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.left(x)), F.relu(self.right(x))
        both = torch.cat([left, right], 1)
        x = torch.cat([both, F.relu(self.third(both))], 1)
        x = F.relu(self.depth(self.norm(x)))
        return self.head(torch.cat([self.point(x), self.side(right)], 1).flatten(1))


class Dense(nn.Module):
    """Two dense blocks with bottlenecks and a transition, as in a DenseNet; read flattened."""

    def __init__(self, width: int = 8, growth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.layers = nn.ModuleList()
        for last in (False, False, True, False, False, True):
            self.layers.append(
                nn.Sequential(
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    nn.Conv2d(width, 2 * growth, 1, bias=False),
                    nn.BatchNorm2d(2 * growth),
                    nn.ReLU(),
                    nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False),
                )
            )
            width += growth
            if last:
                pool = nn.AvgPool2d(2)
                halve = nn.Conv2d(width, width // 2, 1)
                self.layers.append(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), halve, pool))
                width //= 2
        self.head = nn.Linear(width * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1) if len(layer) == 6 else layer(x)
        return self.head(x.flatten(1))


class UNet(nn.Module):
    """Down, up, and at each size what was there on the way down; at the end also the image.

    Args:
        transposed: rises by transposed convolutions, which no policy touches.
    """

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.down2 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.bottom = nn.Conv2d(12, 16, 3, stride=2, padding=1)
        self.rise2 = nn.ConvTranspose2d(16, 16, 2, 2) if transposed else nn.Upsample(scale_factor=2)
        self.up2 = nn.Conv2d(28, 12, 3, padding=1)
        self.rise1 = nn.ConvTranspose2d(12, 12, 2, 2) if transposed else nn.Upsample(scale_factor=2)
        self.up1 = nn.Conv2d(20, 8, 3, padding=1)
        self.last = nn.Conv2d(8 + 3, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = F.relu(self.norm(self.down1(x)))
        second = F.relu(self.down2(first))
        y = self.rise2(F.relu(self.bottom(second)))
        y = self.rise1(F.relu(self.up2(torch.cat([y, second], 1))))
        y = F.relu(self.up1(torch.cat([y, first], 1)))
        return self.last(torch.cat([y, x], 1)).mean((2, 3))


class GroupedConcat(nn.Module):
    """Convolutions in groups: behind a concatenation, where they fit its parts and where not."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 16, 3, padding=1)
        self.uneven = nn.Conv2d(24, 16, 3, padding=1, groups=4)
        self.twice = nn.Conv2d(16, 12, 3, padding=1)
        self.even = nn.Conv2d(24, 12, 3, padding=1, groups=2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.uneven(torch.cat([self.left(x), self.right(x)], 1)))
        x = F.relu(self.twice(x))
        return self.head(F.relu(self.even(torch.cat([x, x], 1))).mean((2, 3)))


class Odd(nn.Module):
    """Sizes that strides do not divide, no padding, and two filters for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.pairs = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.wide = nn.Conv2d(16, 12, (3, 5), (2, 3), (1, 2))
        self.last = nn.Conv2d(12, 8, 2)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.pairs(F.relu(self.stem(x))))
        x = F.pad(F.relu(self.wide(x)), (0, 1))
        return self.head(F.relu(self.last(x)).flatten(1))


class Depthwise(nn.Module):
    """An inverted residual block with squeeze and excitation, between two convolutions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.depth = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width, bias=False)
        self.depth_norm = nn.BatchNorm2d(2 * width)
        self.squeeze = nn.Conv2d(2 * width, 4, 1)
        self.excite = nn.Conv2d(4, 2 * width, 1)
        self.project = nn.Conv2d(2 * width, width, 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.depth_norm(self.depth(F.relu(self.expand(x)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.head((x + self.project(y * gate)).mean((2, 3)))


class Grouped(nn.Module):
    """A bottleneck around a convolution with four groups."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=4, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(F.relu(self.conv3(x)).mean((2, 3)))


class Shared(nn.Module):
    """One convolution that runs twice, on its own output."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.twice = nn.Conv2d(width, width, 3, padding=1)
        self.last = nn.Conv2d(width, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.twice(x))
        x = F.relu(self.twice(x))
        return self.head(F.relu(self.last(x)).mean((2, 3)))


class Recurrent(nn.Module):
    """An LSTM or GRU between two linear layers.

    Args:
        kind: of recurrent layer.
        depth, both: how many are stacked; whether it runs in both directions.
        read: what the head reads: the ``last`` step's outputs, the final ``state`` of the last
            layer (of both directions), or the outputs and that state (``all``).
    """

    def __init__(
        self, kind: type[nn.Module], depth: int = 1, both: bool = False, read: str = "last"
    ) -> None:
        super().__init__()
        self.read = read
        self.embed = nn.Linear(6, 8)
        self.cell = kind(8, 8, depth, batch_first=True, bidirectional=both)
        self.head = nn.Linear(8 * (1 + both) * (1 + (read == "all")), 5)

    def forward(self, x: Tensor) -> Tensor:
        outputs, states = self.cell(F.relu(self.embed(x)))
        final = states[0] if isinstance(states, tuple) else states
        final = torch.cat([final[i] for i in range(-1 - self.cell.bidirectional, 0)], 1)
        read = {"last": outputs[:, -1], "state": final}
        read["all"] = torch.cat([outputs[:, -1], final], 1)
        return self.head(read[self.read])


class Tokens(nn.Module):
    """Token embeddings and one layer of nn.TransformerEncoder."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        layer = nn.TransformerEncoderLayer(width, 2, 16, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "concat": Concat,
    "nested": Nested,
    "dense": Dense,
    "unet": UNet,
    "unet_transposed": lambda: UNet(transposed=True),
    "grouped_concat": GroupedConcat,
    "odd": Odd,
    "depthwise": Depthwise,
    "grouped": Grouped,
    "shared": Shared,
    "option_a": lambda: CifarResNet(1, (4, 8, 12), classes=5),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
    "stacked_lstm": lambda: Recurrent(nn.LSTM, depth=3),
    "two_way_lstm": lambda: Recurrent(nn.LSTM, depth=2, both=True),
    "two_way_gru": lambda: Recurrent(nn.GRU, both=True),
    "lstm_state": lambda: Recurrent(nn.LSTM, read="state"),
    "gru_state": lambda: Recurrent(nn.GRU, depth=2, read="state"),
    "two_way_state": lambda: Recurrent(nn.LSTM, depth=2, both=True, read="state"),
    "lstm_all": lambda: Recurrent(nn.LSTM, read="all"),
    "sequence": lambda: SequenceLSTM(6, 8, 8, 5),
    "tokens": Tokens,
}
RECURRENT = (
    *("lstm", "gru", "stacked_lstm", "two_way_lstm", "two_way_gru"),
    *("lstm_state", "gru_state", "two_way_state", "lstm_all"),
)
IMAGE_NETWORKS = ("plain", "residual", "concat", "depthwise", "grouped", "shared", "option_a")


def make(name: str, seed: int = 0) -> nn.Module:
    """A network in eval mode, its batch norms away from the identity."""
    with seeded(seed):
        return enliven(NETWORKS[name]())


def enliven(network: nn.Module) -> nn.Module:
    """Random batch-norm parameters and statistics, so that an oversight there shows."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def example(name: str, count: int = 2, seed: int = 1) -> Tensor:
    """Inputs that fit a network: correlated images, sequences or tokens."""
    generator = torch.Generator().manual_seed(seed)
    if name == "tokens":
        return torch.randint(20, (count, 7), generator=generator)
    if name == "sequence" or name in RECURRENT:
        return torch.randn(count, 5, 6, generator=generator)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    # smooth images: neighbouring pixels and channels go together, as in photographs
    return F.avg_pool2d(images, 3, 1, 1) * 2 + images.mean(1, keepdim=True)


def data(name: str, count: int = 48) -> Data:
    """Three splits of such inputs with random labels."""
    splits = []
    for seed in (1, 2, 3):
        targets = torch.randint(5, (count,), generator=torch.Generator().manual_seed(seed))
        splits.append(Split(example(name, count, seed), targets))
    return Data(*splits, classes=5)


def hook_macs(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """Multiply-adds of convolutions and linear layers of one sample, counted call by call."""
    counts: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            per_output = layer.weight[0].numel()
            counts[name] = counts.get(name, 0) + output[0].numel() * per_output

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
    ]
    with torch.no_grad():
        model(inputs[:1])
    for handle in handles:
        handle.remove()
    return counts
