"""Models that are written for torch's usual order of values train in the faster one as well."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from autocompress.policy.policy import Distill
from autocompress.policy.recovery import Schedule
from autocompress.recover.distill import Distillation
from autocompress.recover.finetune import fine_tune
from autocompress.task.data import Data, Split

WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: x.flatten(1),
    "view": lambda x: x.view(x.size(0), -1),
    "view of a literal size": lambda x: x.view(-1, 128),
    "view_as": lambda x: x.view_as(torch.empty(len(x), 128)),
}


class Net(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.way = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(128, 3), way

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.conv(x)), 2)
        answer: Tensor = self.head(WAYS[self.way](x))
        return answer


@pytest.mark.parametrize("way", WAYS)
def test_a_view_of_images_trains_as_flatten_does(way: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 3, 8, 8, generator=generator), torch.arange(32) % 3
    data = Data(Split(x, y), Split(x[:8], y[:8]), Split(x[8:16], y[8:16]), classes=3)
    trained = []
    for name in ("flatten", way):
        net = Net(name)
        spoken = Distillation([copy.deepcopy(net)], Distill(weight=0.5))
        fine_tune(net, data, Schedule(epochs=1, batch_size=8, lr=0.05), distillation=spoken)
        trained.append(net.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
