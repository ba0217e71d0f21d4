"""Random small networks out of blocks that rearrange, join, scale and share channels."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from field_networks import ChunkedAttention, FrozenNorm, FusedAttention, SeparateAttention, shuffled
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

SIZE = 4
"""Of the square maps."""


class Block(nn.Module):
    """Maps with some channels to maps with others; ``outputs`` says how many.

    Args:
        inputs: channels.
        draw: of everything that a block may choose.
    """

    outputs: int

    def __init__(self, inputs: int, draw: random.Random) -> None:
        super().__init__()
        self.outputs = inputs
        self.make(inputs, draw)

    def make(self, inputs: int, draw: random.Random) -> None:
        """Make the layers."""


class Dense(Block):
    """A convolution, perhaps in groups."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.outputs = draw.choice([8, 12, 16])
        fitting = [g for g in (1, 1, 2, 4) if inputs % g == 0 and self.outputs % g == 0]
        self.layer = nn.Conv2d(inputs, self.outputs, 3, padding=1, groups=draw.choice(fitting))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x))


class Depthwise(Block):
    """A filter for each channel."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.layer = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.layer(x))


class Norm(Block):
    """A norm of one of several kinds."""

    def make(self, inputs: int, draw: random.Random) -> None:
        kinds: list[Callable[[int], nn.Module]] = [
            nn.BatchNorm2d,
            FrozenNorm,
            lambda c: nn.GroupNorm(4, c) if c % 4 == 0 else nn.BatchNorm2d(c),
            lambda c: nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
        ]
        self.layer = draw.choice(kinds)(inputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Shuffle(Block):
    """Channels of groups in turn, as a function or as a module."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.groups = draw.choice([g for g in (1, 2, 4) if inputs % g == 0])
        self.layer = nn.ChannelShuffle(self.groups) if draw.random() < 0.5 else None

    def forward(self, x: Tensor) -> Tensor:
        return shuffled(x, self.groups) if self.layer is None else self.layer(x)


class Permute(Block):
    """Channels in another order."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.order = draw.sample(range(inputs), inputs)
        self.how, self.turn = draw.choice(["order", "flip", "roll"]), draw.randint(-inputs, inputs)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "roll":
            return x.roll((1, self.turn), (-1, 1))
        return x.flip(1) if self.how == "flip" else x[:, self.order]


class Join(Block):
    """Beside it: a constant, a parameter, some of its own channels, or two convolutions of it."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.kind = draw.choice(["ones", "parameter", "own", "branches"])
        self.first = draw.random() < 0.5
        more = draw.randint(2, min(4, inputs))
        self.more = more
        if self.kind == "parameter":
            self.grid = nn.Parameter(torch.randn(1, more, SIZE, SIZE))
        if self.kind == "branches":
            self.left, self.right = nn.Conv2d(inputs, 8, 1), nn.Conv2d(inputs, 4, 1)
            self.outputs = 12
        else:
            self.outputs = inputs + more

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "branches":
            return torch.cat([self.left(x), self.right(x)], 1)
        other = {
            "ones": lambda: torch.ones(len(x), self.more, SIZE, SIZE, dtype=x.dtype),
            "parameter": lambda: self.grid.expand(len(x), -1, -1, -1),
            "own": lambda: x[:, : self.more],
        }[self.kind]()
        return torch.cat([other, x] if self.first else [x, other], 1)


class Cut(Block):
    """Halves: one goes on through a convolution, both are joined, perhaps with their sum."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.half = inputs // 2
        self.how = draw.choice(["chunk", "split", "slice"] if inputs % 2 == 0 else ["split"])
        self.adds = draw.random() < 0.5 and inputs % 2 == 0
        self.rest = inputs - self.half
        self.layer = nn.Conv2d(self.rest, self.half, 3, padding=1)
        self.outputs = 2 * self.half + (self.half if self.adds else 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "slice":
            a, b = x[:, : self.half], x[:, self.half :]
        elif self.how == "split":
            a, b = x.split([self.half, self.rest], 1)
        else:
            a, b = x.chunk(2, 1)
        c = F.relu(self.layer(b))
        return torch.cat([a, c, a + c] if self.adds else [a, c], 1)


class Residual(Block):
    """The stream and a branch, perhaps with a gate per channel, perhaps scaled."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.inner, self.outer = nn.Conv2d(inputs, 8, 1), nn.Conv2d(8, inputs, 3, padding=1)
        self.scale = nn.Parameter(torch.rand(inputs, 1, 1) + 0.5)
        self.gate = nn.Linear(inputs, inputs) if draw.random() < 0.5 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.scale * self.outer(F.relu(self.inner(x)))
        if self.gate is not None:
            y = y * torch.sigmoid(self.gate(y.mean((2, 3))))[:, :, None, None]
        return x + y


class Halved(Block):
    """A gated linear unit, or pixels out of channels."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.widen = nn.Conv2d(inputs, 16, 1)
        self.pixels = draw.random() < 0.5
        self.outputs = 4 if self.pixels else 8

    def forward(self, x: Tensor) -> Tensor:
        x = self.widen(x)
        return F.avg_pool2d(F.pixel_shuffle(x, 2), 2) if self.pixels else F.glu(x, 1)


class Attention(Block):
    """Attention over pixels, written in one of three ways."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.enter, self.outputs = nn.Conv2d(inputs, 8, 1), 8
        kind = draw.choice([FusedAttention, SeparateAttention, ChunkedAttention])
        self.attention = kind(8, draw.choice([2, 4]))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.enter(x).flatten(2).transpose(1, 2)
        return self.attention(tokens).transpose(1, 2).unflatten(2, (SIZE, SIZE))


class Heads(Block):
    """Torch's attention over pixels."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.enter, self.outputs = nn.Conv2d(inputs, 8, 1), 8
        self.attention = nn.MultiheadAttention(8, draw.choice([2, 4]), batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.enter(x).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return tokens.transpose(1, 2).unflatten(2, (SIZE, SIZE))


class Tied(Block):
    """One weight in two layers, one after the other or side by side."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.once, self.again = (nn.Conv2d(inputs, inputs, 3, padding=1) for _ in range(2))
        self.again.weight = self.once.weight
        self.beside = draw.random() < 0.5

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.once(x))
        return y + F.silu(self.again(x)) if self.beside else F.relu(self.again(y))


class Recurrent(Block):
    """Pixels one after another through a recurrent layer."""

    def make(self, inputs: int, draw: random.Random) -> None:
        kind, both, layers = (
            draw.choice([nn.LSTM, nn.GRU]),
            draw.random() < 0.5,
            draw.choice([1, 2]),
        )
        self.outputs = 12 if both else 6
        self.layer = kind(inputs, 6, layers, batch_first=True, bidirectional=both)

    def forward(self, x: Tensor) -> Tensor:
        return (
            self.layer(x.flatten(2).transpose(1, 2))[0].transpose(1, 2).unflatten(2, (SIZE, SIZE))
        )


class Line(Block):
    """Pixels in a line, through convolutions of one axis, perhaps in groups."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.outputs = draw.choice([8, 12])
        self.first = nn.Conv1d(inputs, 8, draw.choice([1, 3]), padding="same")
        self.second = nn.Conv1d(8, self.outputs, 3, padding=1, groups=draw.choice([1, 2, 4]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x.flatten(2))))
        return y.view(len(y), self.outputs, SIZE, SIZE)


class Solid(Block):
    """Convolutions of three axes, on maps that lie one above the other."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.outputs = draw.choice([8, 12])
        self.first = nn.Conv3d(inputs, 8, (2, 3, 3), padding=(0, 1, 1))
        self.norm, self.second = nn.BatchNorm3d(8), nn.Conv3d(8, self.outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.stack([x, x.flip(-1)], 2)
        return self.second(F.relu(self.norm(self.first(x)))).squeeze(2)


class Rise(Block):
    """A transposed convolution, perhaps in groups, and back to the size before."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.outputs = draw.choice([8, 12])
        fitting = [g for g in (1, 2, 4) if inputs % g == 0 and self.outputs % g == 0]
        self.layer = nn.ConvTranspose2d(inputs, self.outputs, 2, 2, groups=draw.choice(fitting))

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.relu(self.layer(x)), 2)


class Places(Block):
    """A table has a row for each pixel, which is added or goes beside."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.adds = draw.random() < 0.5
        self.table = nn.Embedding(SIZE**2, inputs if self.adds else 4)
        self.outputs = inputs if self.adds else inputs + 4

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table(torch.arange(SIZE**2)).t().unflatten(1, (SIZE, SIZE))
        return x + rows if self.adds else torch.cat([x, rows.expand(len(x), -1, -1, -1)], 1)


class Computed(Block):
    """A convolution whose weight is computed at each call."""

    def make(self, inputs: int, draw: random.Random) -> None:
        self.outputs = draw.choice([8, 12])
        wrap = draw.choice([parametrizations.weight_norm, parametrizations.spectral_norm])
        self.layer = wrap(nn.Conv2d(inputs, self.outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layer(x))


KINDS: dict[str, type[Block]] = {
    kind.__name__: kind
    for kind in (
        *(Dense, Depthwise, Norm, Shuffle, Permute, Join, Cut, Residual, Halved, Attention),
        *(Heads, Tied, Recurrent, Line, Solid, Rise, Places, Computed),
    )
}


class RandomNetwork(nn.Module):
    """Blocks one after another, between a convolution and a linear layer.

    Args:
        kinds: names of blocks.
        seed: of all choices within blocks.
        literal: the linear layer reads all pixels through a view with a literal size.
    """

    def __init__(self, kinds: Sequence[str], seed: int, literal: bool) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.stem = nn.Conv2d(3, draw.choice([8, 12]), 3, padding=1)
        width, blocks = self.stem.out_channels, []
        for kind in kinds:
            blocks.append(KINDS[kind](width, draw))
            width = blocks[-1].outputs
        self.blocks = nn.Sequential(*blocks)
        self.features = width * SIZE**2 if literal else width
        self.literal = literal
        self.head = nn.Linear(self.features, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.stem(x)))
        return self.head(x.reshape(-1, self.features) if self.literal else x.mean((2, 3)))
