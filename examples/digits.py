"""A small CNN on scikit-learn's digits, at half its latency: the shortest way to a front.

python examples/digits.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import autocompress as ac


def splits() -> dict[str, tuple[Tensor, Tensor]]:
    """Images ``(N, 1, 8, 8)`` and classes; the search never sees test."""
    found = load_digits()
    images = torch.tensor(found.images / 16, dtype=torch.float32).unsqueeze(1)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    parts = zip(("train", "val", "test"), order.split([1077, 360, 360]), strict=True)
    return {name: (images[part], torch.tensor(found.target)[part]) for name, part in parts}


def fit(model: nn.Module, images: Tensor, classes: Tensor, epochs: int, lr: float) -> nn.Module:
    """Plain training, of the model or of what became of it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    model.train()
    for _ in range(epochs):
        for part in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[part]), classes[part]).backward()
            optimizer.step()
    return model.eval()


def trained(seed: int = 0) -> nn.Module:
    """Three convolutions and a linear layer; seeds give other weights."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 64), (64, 64)):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 64, 10))
    return fit(model, *splits()["train"], epochs=6, lr=3e-3)


def searched(out: str = "runs/digits") -> ac.Result:
    """No space is named: what gains on this machine is measured first."""
    return ac.search(trained(), splits(), budget="latency<=0.5x", out=out, search={"trials": 8})


if __name__ == "__main__":
    result = searched()
    for trial in result.front:
        found = trial.measurement
        print(f"trial {trial.number}: {found.score:.1%} right, {found['latency_ms']:.3f} ms")
    print("chosen:", result.best.trial.number, "report:", result.report())
