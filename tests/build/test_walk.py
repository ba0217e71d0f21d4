"""Recorded runs: they answer what the network answers, whatever its forward is written like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_networks import example, make
from torch import nn

from autocompress.build.walk import Steps, Walk
from autocompress.errors import UnsupportedModel
from autocompress.model.attention import opened

_SMALL = ("plain", "residual", "concat", "nested", "dense", "unet", "odd", "depthwise", "grouped")


def _ids(seed: int) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 50, (6, 9), generator=draws)
    mask = torch.ones_like(ids)
    mask[:, 6:] = torch.randint(0, 2, (6, 1), generator=draws)
    mask[0, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def _bert() -> nn.Module:
    import transformers

    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, num_attention_heads=4)
    return transformers.BertForSequenceClassification(config)


def _llama() -> nn.Module:
    import transformers

    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config)


def _swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=5)


class InPlace(nn.Module):
    """Changes what it holds, also through views and in a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.act(self.conv(x))
        y[:, :2] += 1
        y *= 2
        z = torch.zeros_like(y)
        z[:, 4:] = y[:, :4]
        return (y - z).mean((2, 3))


_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{name: (lambda name=name: make(name)) for name in _SMALL},
    "in place": InPlace,
    "bert": _bert,
    "llama": _llama,
    "swin": _swin,
}


def _inputs(name: str, seed: int) -> Any:
    if name in ("bert", "llama"):
        return _ids(seed)
    if name in ("in place", "swin"):
        return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return example(name, 4, seed=seed)


@pytest.mark.parametrize("name", _NETWORKS)
def test_the_steps_of_one_batch_are_those_of_another(name: str) -> None:
    torch.manual_seed(0)
    model = _NETWORKS[name]().eval()
    linear = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    ran: list[str] = []
    names = {module: n for n, module in model.named_modules()}
    handles = [
        model.get_submodule(n).register_forward_hook(lambda m, a, o: ran.append(names[m]))
        for n in linear
    ]
    steps = Steps(model, linear, _inputs(name, 1))
    for handle in handles:
        handle.remove()
    layers = [str(n.target) for n in steps.layers().values()]
    assert [n for n in layers if n in linear] == ran
    assert len(set(steps.keys.values())) == len(steps.keys)
    steps.check(model, _inputs(name, 2))  # raises where they answer anything else


@pytest.mark.parametrize("name", ["swin", "encoder"])
def test_an_opened_model_answers_the_same_with_the_same_weights(name: str) -> None:
    torch.manual_seed(0)
    if name == "swin":
        model, inputs = _swin().eval(), _inputs("swin", 1)
    else:
        layer = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=False)
        model, inputs = (
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(),
            torch.randn(5, 3, 16),
        )
    wide = opened(model)
    with torch.no_grad():
        torch.testing.assert_close(wide(inputs), model(inputs))
    old, new = dict(model.named_parameters()), dict(wide.named_parameters())
    assert old.keys() == new.keys()
    assert all(old[n] is new[n] for n in old)
    layers = [str(n.target) for n in Steps(wide, [], inputs).layers().values()]
    assert sum(n.endswith(("out_proj", "attn.proj")) for n in layers) == 2


class Picky(nn.Module):
    """Its way depends on what comes in: openly, or where no operator shows it."""

    def __init__(self, openly: bool) -> None:
        super().__init__()
        self.openly, self.linear = openly, nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = bool(x.sum() > 0) if self.openly else float(x.detach().numpy().sum()) > 0
        return self.linear(x) if up else -self.linear(x)


@pytest.mark.parametrize("openly", [True, False])
def test_a_way_that_depends_on_values_is_noticed(openly: bool) -> None:
    torch.manual_seed(0)
    model, inputs = Picky(openly).eval(), torch.rand(4, 3)
    inputs[2:] *= -1
    walk = Walk(model, [], inputs)
    assert walk.varies
    for part in (inputs[:2], inputs[2:]):
        walk.steps(part).check(model, part)
    with pytest.raises(UnsupportedModel, match="depends on what comes in"):
        walk.steps(inputs[:2]).check(model, inputs[2:])
    assert not Walk(nn.Sequential(nn.Linear(3, 3)).eval(), [], inputs).varies


def test_a_model_that_fails_says_so() -> None:
    with pytest.raises(UnsupportedModel, match="fails while it is watched"):
        Steps(nn.Sequential(nn.Linear(3, 3)), [], torch.rand(2, 4))
