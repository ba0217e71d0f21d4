"""Training of models that answer otherwise while they train."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.build.bank import LayerBank
from autocompress.model.inventory import take_inventory
from autocompress.policy.policy import Distill, LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings
from autocompress.recover import modes
from autocompress.recover.distill import Distillation
from autocompress.recover.finetune import fine_tune
from autocompress.task.data import Data, Split
from autocompress.techniques.quantize import QuantizedLayer, trainable

SCHEDULE = Schedule(epochs=2, batch_size=8, lr=0.05)


class Supervised(nn.Module):
    """Two heads in training, one in use.

    Args:
        plain: never has the second one.
    """

    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.head = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.drop, self.aux, self.plain = nn.Dropout(0.2), nn.Linear(8, 3), plain

    def forward(self, x: Tensor) -> Any:
        h = self.drop(torch.relu(self.norm(self.a(x))))
        y = self.head(h)
        return (y, self.aux(h)) if self.training and not self.plain else y


def both(outputs: Any, targets: Tensor) -> Tensor:
    parts = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.stack([F.cross_entropy(part, targets) for part in parts]).sum()


def made(**more: Any) -> Data:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(32, 5, generator=generator), torch.arange(32) % 3
    return Data(Split(x, y), Split(x[:8], y[:8]), Split(x[8:16], y[8:16]), classes=3, **more)


def trained(model: nn.Module, data: Data, **more: Any) -> dict[str, Tensor]:
    return fine_tune(copy.deepcopy(model), data, SCHEDULE, seed=3, **more).module.state_dict()


@pytest.fixture(autouse=True)
def nothing_was_said() -> None:
    """What is said once may have been said by another test."""
    modes._say.cache_clear()


@pytest.mark.parametrize("teaches", [False, True])
def test_a_loss_of_one_answer_trains_what_is_used(
    teaches: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As the same model without its second head is trained: norms and dropout at work."""
    caplog.set_level(logging.INFO, "autocompress")
    more = {}
    data = made(loss=both) if teaches else made()
    if teaches:
        more = {"distillation": Distillation([Supervised().eval()], Distill())}
    found = trained(Supervised(), data, **more)
    trained(Supervised(), data, **more)
    assert caplog.text.count("answers with other parts") == 1
    assert "in training only stay as they are: aux" in caplog.text
    wanted = trained(Supervised(plain=True), data, **more)
    start = Supervised().state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    assert torch.equal(found["aux.weight"], start["aux.weight"])
    assert not torch.equal(found["head.weight"], start["head.weight"])
    assert not torch.equal(found["norm.running_mean"], start["norm.running_mean"])


def test_a_loss_of_both_answers_trains_both() -> None:
    start, found = Supervised().state_dict(), trained(Supervised(), made(loss=both))
    assert not torch.equal(found["aux.weight"], start["aux.weight"])


@pytest.mark.parametrize("loss", [None, both])
def test_a_model_that_was_cut_below_its_second_head_is_trained_on_what_is_used(
    loss: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "autocompress")
    data = made(loss=loss) if loss else made()

    def cut(plain: bool) -> nn.Module:
        model = Supervised(plain)
        inventory = take_inventory(model.eval(), data.val.inputs(2))
        bank = LayerBank.build(model, inventory, data.train, CompressionSettings())
        return bank.stitch(Policy({"a": LayerPolicy(prune_ratio=0.5)})).module

    found, wanted = trained(cut(plain=False), data), trained(cut(plain=True), data)
    assert found["a.weight"].shape == (4, 5)
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    trained(cut(plain=False), data)
    assert caplog.text.count("the model does not run on inputs (RuntimeError)") == 1


def test_ranges_follow_the_data_where_the_answer_is_the_one_in_use() -> None:
    model, data = Supervised().eval(), made()
    bank = LayerBank.build(
        model, take_inventory(model, data.val.inputs(2)), data.train, CompressionSettings()
    )
    integers = LayerPolicy(weight_bits=8, activation_bits=8)
    training = trainable(bank.stitch(Policy({"a": integers, "head": integers})))
    fine_tuned = fine_tune(training, data, SCHEDULE, seed=3).module
    found = [m for m in fine_tuned.modules() if isinstance(m, QuantizedLayer)]
    assert len(found) == 2
    assert all(float(layer.high) > float(layer.low) for layer in found)
