"""Tiny trained networks whose task is no classification, with their data; made in a second."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.task.data import Data, Split
from autocompress.task.task import Loss

_SPLITS = {"train": 512, "val": 256, "test": 256}


def _inputs(seed: int) -> Tensor:
    return torch.randn(sum(_SPLITS.values()), 6, generator=torch.Generator().manual_seed(seed))


def _split(inputs: Tensor, targets: Tensor) -> Data:
    parts = [
        Split(x, y)
        for x, y in zip(
            inputs.split(list(_SPLITS.values())), targets.split(list(_SPLITS.values())), strict=True
        )
    ]
    return Data(*parts, name="small task")


def numbers() -> Data:
    """A smooth function of six numbers; targets ``(N,)`` beside outputs ``(N, 1)``."""
    x = _inputs(0)
    return _split(x, torch.sin(x[:, 0]) + x[:, 1] * x[:, 2] - 0.5 * x[:, 3])


def tags() -> Data:
    """Three labels that six numbers tell, any number of them at once."""
    x = _inputs(1)
    return _split(x, torch.stack([x[:, 0] > 0, x[:, 1] > x[:, 2], x[:, 3] > 0.5], 1).long())


def _network(outputs: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs)
        )


def _trained(network: nn.Sequential, data: Data, loss: Loss) -> nn.Module:
    inputs, targets = data.train.inputs(), data.train.targets
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(150):
        optimizer.zero_grad()
        outputs = network(inputs)
        loss(outputs, targets.reshape(outputs.shape).float()).backward()
        optimizer.step()
    return network.eval()


def regressor() -> nn.Module:
    """Trained on ``numbers``."""
    return _trained(_network(1), numbers(), F.mse_loss)


def tagger() -> nn.Module:
    """Trained on ``tags``."""
    return _trained(_network(3), tags(), F.binary_cross_entropy_with_logits)
