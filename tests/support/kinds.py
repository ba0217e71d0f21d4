"""Small networks of every kind of layer, and what fits them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.workloads.models import seeded

_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Decoder(nn.Module):
    """A convolution, a transposed one and another convolution, of one to three axes."""

    def __init__(self, axes: int, groups: int = 1) -> None:
        super().__init__()
        self.down = _CONV[axes](3, 8, 3, 2, 1)
        self.up = _TRANSPOSED[axes](8, 6, 3, 2, 1, output_padding=1, groups=groups)
        self.last = _CONV[axes](6, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.up(F.relu(self.down(x)))))


class Volume(nn.Module):
    """Three-dimensional convolutions with batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.b, self.m = nn.Conv3d(8, 8, (1, 3, 2), 2, dilation=(1, 2, 1)), nn.BatchNorm3d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.m(self.b(F.relu(self.n(self.a(x))))))
        return self.head(x.mean((2, 3, 4)))


class Words(nn.Module):
    """A table of words, a mean over them, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up, self.head = nn.Embedding(300, 16), nn.Linear(16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(self.table(x).mean(1))))


class Stepped(nn.Module):
    """A recurrent cell in a loop of the model's own."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.enter, self.cell, self.head = nn.Linear(6, 7), kind(7, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in F.relu(self.enter(x)).unbind(1):
            state = self.cell(step, state)
        return self.head(state[0] if isinstance(state, tuple) else state)


class Loop(nn.Module):
    """A plain recurrent layer, an LSTM with projected states, or a GRU."""

    def __init__(self, cell: nn.Module, width: int) -> None:
        super().__init__()
        self.enter, self.cell, self.head = nn.Linear(6, 7), cell, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(F.relu(self.enter(x)))[0][:, -1])


KINDS: dict[str, Callable[[], nn.Module]] = {
    **{f"transposed {n}d": (lambda n=n: Decoder(n)) for n in (1, 2, 3)},
    "transposed in groups": lambda: Decoder(2, groups=2),
    "volume": Volume,
    "words": Words,
    **{
        f"{kind.__name__}": (lambda kind=kind: Stepped(kind))
        for kind in (nn.RNNCell, nn.LSTMCell, nn.GRUCell)
    },
    "rnn": lambda: Loop(nn.RNN(7, 8, 2, batch_first=True, bidirectional=True), 16),
    "projected lstm": lambda: Loop(nn.LSTM(7, 8, 2, batch_first=True, proj_size=3), 3),
}


def kind(name: str) -> nn.Module:
    """A network in eval mode, its norms away from the identity."""
    with seeded(4):
        model = KINDS[name]()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def fitting(name: str, count: int = 3) -> Tensor:
    """Inputs that fit."""
    drawn = torch.Generator().manual_seed(6)
    if name == "words":
        return torch.randint(300, (count, 7), generator=drawn)
    axes = {"transposed 1d": 1, "transposed 3d": 3, "volume": 3}.get(name, 2)
    if name.startswith(("transposed", "volume")):
        return torch.randn(count, 3, *(8, 6, 10)[:axes], generator=drawn)
    return torch.randn(count, 5, 6, generator=drawn)
