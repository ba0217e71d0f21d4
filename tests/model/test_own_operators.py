"""Operators of the user's own between layers: left alone, or as what the user says they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from autocompress.build.bank import LayerBank
from autocompress.build.calibrate import calibrate
from autocompress.errors import ExportError, InputError
from autocompress.exporters.write import export
from autocompress.model.inventory import take_inventory
from autocompress.policy import operators
from autocompress.policy.inventory import Inventory
from autocompress.policy.operators import operator
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.targets import get_target
from autocompress.task.data import Split
from autocompress.techniques.compressed import Compressed

IMAGES = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.library.custom_op("testing::gate", mutates_args=())
def gate(x: Tensor, scale: float) -> Tensor:
    """As a kernel would: no operator of torch is seen in here."""
    return torch.from_numpy((x.detach().numpy() * scale).clip(0))


@torch.library.custom_op("testing::scale_by", mutates_args=())
def scale_by(x: Tensor, weight: Tensor) -> Tensor:
    """Half the height, one weight per channel."""
    found = x.detach().numpy()[:, :, ::2] * weight.detach().numpy()[:, None, None]
    return torch.from_numpy(found)


@torch.library.custom_op("testing::clone", mutates_args=())
def clone(x: Tensor) -> Tensor:
    """No copy at all, whatever it is called: channels go round."""
    return torch.from_numpy(x.detach().numpy()[:, ::-1].copy())


@gate.register_fake
def _(x: Tensor, scale: float) -> Tensor:
    return torch.empty_like(x)


@scale_by.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x[:, :, ::2].contiguous()


def plain_gate(x: Tensor, scale: float) -> Tensor:
    return (x * scale).relu()


def plain_scale_by(x: Tensor, weight: Tensor) -> Tensor:
    return x[:, :, ::2] * weight[:, None, None]


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind = kind
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.weight = nn.Parameter(torch.rand(12))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.kind == "gate":
            x = gate(x, 2.0)
        elif self.kind == "scale_by":
            x = torch.ops.testing.scale_by(x, self.weight)
        else:
            x = clone(x)
        return self.head(self.b(x).relu().mean((2, 3)))


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "KNOWN", found := {})
    monkeypatch.setattr("autocompress.model.plain_operators.KNOWN", found)


def listed(kind: str) -> tuple[nn.Module, Inventory]:
    model = Net(kind).eval()
    return model, take_inventory(model, IMAGES[:2])


def compressed(model: nn.Module, inventory: Inventory, **policy: Any) -> Compressed:
    split = Split(IMAGES, torch.zeros(len(IMAGES), dtype=torch.long))
    settings = CompressionSettings(calibration_images=24, importance="l1")
    bank = LayerBank.build(model, inventory, split, settings)
    return bank.stitch(Policy({"a": LayerPolicy(**policy)} if policy else {}))


@pytest.mark.parametrize("kind", ["gate", "scale_by", "clone"])
def test_layers_around_an_unknown_operator_are_left_alone_with_the_reason(kind: str) -> None:
    _, inventory = listed(kind)
    assert "a" not in inventory.groups_by_name
    assert "b" in inventory.groups_by_name
    assert f"the operator testing::{kind}" in inventory.cannot_prune


def test_a_file_without_what_stands_for_an_operator_says_what_is_missing(tmp_path: Path) -> None:
    model, inventory = listed("gate")
    made = compressed(model, inventory)
    with pytest.raises(ExportError, match="testing::gate"):
        export(made, tmp_path / "model.onnx", IMAGES[:2])


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize(
    ("kind", "own", "plain"),
    [("gate", gate, plain_gate), ("scale_by", "testing::scale_by", plain_scale_by)],
)
def test_channels_and_files_go_through_what_stands_for_an_operator(
    kind: str, own: Any, plain: Any, suffix: str, tmp_path: Path
) -> None:
    operator(own, plain)
    model, inventory = listed(kind)
    made = compressed(model, inventory, prune_ratio=0.5)
    assert made.module.a.out_channels == 6
    path = tmp_path / f"model{suffix}"
    export(made, path, IMAGES[:2])
    target = get_target("onnxruntime" if suffix == ".onnx" else "torch")
    session = target.open(path)
    (found,) = session.run([IMAGES[:1].numpy()])
    session.close()
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), made.module(IMAGES[:1]))
    if suffix == ".onnx":
        assert {node.domain for node in onnx.load(path).graph.node} == {""}
        integer = calibrate(compressed(model, inventory, weight_bits=8, activation_bits=8), IMAGES)
        export(integer, path, IMAGES[:2])


@pytest.mark.parametrize(("kind", "says"), [("gate", "elementwise"), ("scale_by", "per_channel")])
def test_channels_pass_as_the_user_says(kind: Any, says: Any) -> None:
    operator(f"testing::{kind}", channels=says)
    model, inventory = listed(kind)
    made = compressed(model, inventory, prune_ratio=0.5)
    assert made.module.a.out_channels == 6
    assert len(made.module.weight) == (6 if kind == "scale_by" else 12)
    with torch.no_grad():
        assert made.module(IMAGES).shape == (24, 4)


def test_what_is_said_wrongly_is_found_by_trying() -> None:
    operator(clone, channels="elementwise")
    _, inventory = listed("clone")
    assert "a" not in inventory.groups_by_name
    assert "answers differently" in inventory.cannot_prune
    operator(gate, plain_gate, channels="mixed")
    _, inventory = listed("gate")
    assert "a" not in inventory.groups_by_name


class Numpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


@pytest.mark.parametrize("function", [Numpy, Doubled])
def test_an_autograd_function_is_followed_as_far_as_torch_sees_it(
    function: Any, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.Identity(), nn.Conv2d(12, 8, 3), nn.ReLU())
    model[1].forward = function.apply
    model.append(nn.Flatten()).append(nn.Linear(128, 4)).eval()
    inventory = take_inventory(model, IMAGES[:2])
    followed = function is Doubled
    assert ("0" in inventory.groups_by_name) == followed
    assert ("0" in inventory.cannot_prune) != followed
    made = compressed(model, inventory)
    if followed:
        export(made, tmp_path / "model.onnx", IMAGES[:2])
    else:
        with pytest.raises(ExportError):
            export(made, tmp_path / "model.onnx", IMAGES[:2])


def test_what_says_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"`plain`.*`channels`"):
        operator(gate)
    with pytest.raises(InputError, match="must be one of elementwise"):
        operator(gate, channels="all")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(InputError, match="such as 'library::name', got 3"):
        operator(3, plain_gate)
    for form in (torch.ops.testing.gate, torch.ops.testing.gate.default, gate, "testing::gate"):
        operators.KNOWN.clear()
        operator(form, plain_gate)
        assert set(operators.KNOWN) == {"testing::gate"}
