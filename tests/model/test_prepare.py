"""What is done to a copy of the model before its inventory is taken."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from odd_layers import Conv1D, Standardized
from small_networks import NETWORKS, example, make
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline
from autocompress.build.state import save_state
from autocompress.errors import UnsupportedModel
from autocompress.model.fingerprint import fingerprint
from autocompress.model.inventory import take_inventory
from autocompress.model.prepare import prepare
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.settings import CompressionSettings, RefineConfig
from autocompress.results.trial import Phase
from autocompress.run.assembly import assemble
from autocompress.run.study import GIVEN, read_study
from autocompress.task.data import Data, Split

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def masked(module: nn.Module) -> nn.Module:
    return prune.l1_unstructured(module, "weight", 0.3)


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old spectral_norm": spectral_norm,
    "masked": masked,
    "masked twice": lambda m: masked(masked(m)),
}


def network(wrap: Callable[[nn.Module], nn.Module] = lambda m: m) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            wrap(nn.Conv2d(3, 8, 3, padding=1)),
            nn.ReLU(),
            nn.Conv2d(8, 6, 3),
            nn.Flatten(),
            wrap(nn.Linear(216, 5)),
        ).eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


@pytest.mark.parametrize("name", WRAPS)
def test_computed_weights_become_plain_ones_on_the_copy(name: str) -> None:
    model = network(WRAPS[name])
    with torch.no_grad():
        wanted = model(IMAGES)
    before = state(model)
    prepared = prepare(model)
    plain = network()
    assert {n: t.shape for n, t in prepared.model.state_dict().items()} == {
        n: t.shape for n, t in plain.state_dict().items()
    }
    assert all(type(a) is type(b) for a, b in zip(prepared.model, plain, strict=True))
    torch.testing.assert_close(prepared.model(IMAGES), wanted)
    assert len(prepared.notes) == 1
    assert "folded into the weights of 0, 4" in prepared.notes[0]
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(IMAGES), wanted)


@pytest.mark.parametrize("name", ["plain", "residual", "option_a", "lstm", "tokens"])
def test_a_plain_model_comes_out_the_same(name: str) -> None:
    model = make(name)
    prepared = prepare(model)
    assert prepared.notes == ()
    assert fingerprint(prepared.model) == fingerprint(model)
    inputs = example(name)
    with torch.no_grad():
        assert torch.equal(prepared.model(inputs), model(inputs))
    assert name in NETWORKS


class Inner(nn.Module):
    """A compiled part inside a model."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.compile(network())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.parametrize(
    ("wrapped", "called"),
    [
        (lambda: nn.DataParallel(network()), "DataParallel"),
        (lambda: torch.compile(network()), "OptimizedModule"),
        (lambda: nn.DataParallel(torch.compile(network())), "DataParallel and OptimizedModule"),
        (Inner, "OptimizedModule"),
    ],
)
def test_wrappers_are_taken_off(wrapped: Callable[[], nn.Module], called: str) -> None:
    model = wrapped()
    prepared = prepare(model)
    assert prepared.notes == (f"{called} taken off a copy.",)
    assert not any(
        type(m).__name__ in ("DataParallel", "OptimizedModule") for m in prepared.model.modules()
    )
    with torch.no_grad():
        assert torch.equal(prepared.model(IMAGES), network()(IMAGES))


def test_a_distributed_wrapper_is_taken_off(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        model = nn.parallel.DistributedDataParallel(network())
        prepared = prepare(model)
    finally:
        torch.distributed.destroy_process_group()
    assert isinstance(prepared.model, nn.Sequential)
    assert "DistributedDataParallel" in prepared.notes[0]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("how", [torch.jit.script, lambda m: torch.jit.trace(m, IMAGES)])
def test_scripted_and_traced_models_are_refused_with_a_remedy(
    how: Callable[[nn.Module], nn.Module],
) -> None:
    with pytest.raises(UnsupportedModel, match="load_state_dict"):
        prepare(how(network()))
    with pytest.raises(UnsupportedModel, match="'1' is scripted or traced"):
        prepare(nn.Sequential(nn.ReLU(), how(network())))


def test_models_without_values_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="Run the model once"):
        prepare(nn.Sequential(nn.LazyLinear(3)))
    with torch.device("meta"):
        empty = nn.Linear(2, 3)
    with pytest.raises(UnsupportedModel, match="Load its weights"):
        prepare(empty)


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_other_number_types_become_float32(kind: torch.dtype) -> None:
    model = network().to(kind)
    prepared = prepare(model)
    assert next(model.parameters()).dtype == kind
    assert {p.dtype for p in prepared.model.parameters()} == {torch.float32}
    assert str(kind).removeprefix("torch.") in prepared.notes[0]
    wanted = copy.deepcopy(model).float()(IMAGES)
    assert torch.equal(prepared.model(IMAGES), wanted)


def test_frozen_parameters_are_thawed_on_the_copy_only() -> None:
    model = network().requires_grad_(False)
    prepared = prepare(model)
    assert not any(p.requires_grad for p in model.parameters())
    assert all(p.requires_grad for p in prepared.model.parameters())
    assert "6 frozen parameters" in prepared.notes[0]


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    prepared = prepare(model.double())
    assert prepared.model[1].weight is prepared.model[0].weight
    assert prepared.model[1].weight is not model[0].weight


def test_layers_that_compute_their_weight_become_plain() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(
            Standardized(3, 8, 3, stride=2, padding=1), nn.Flatten(2), Conv1D(5, 16)
        )
        model.eval()
    prepared = prepare(model)
    assert type(prepared.model[0]) is nn.Conv2d
    assert type(prepared.model[2]) is nn.Linear
    with torch.no_grad():
        torch.testing.assert_close(prepared.model(IMAGES), model(IMAGES))
    assert prepared.notes == (
        "0 (Standardized), 2 (Conv1D) became plain layers that compute the same.",
    )


def test_a_synchronized_batch_norm_can_be_trained_here() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    ).eval()
    prepared = prepare(model)
    with torch.no_grad():
        torch.testing.assert_close(prepared.model(IMAGES), model(IMAGES))
    prepared.model.train()(IMAGES).sum().backward()


def test_a_tensor_that_is_kept_from_a_run_does_not_stop_the_copy() -> None:
    model = network()
    model.last = model(IMAGES)
    assert not model.last.is_leaf
    assert torch.equal(prepare(model).model.last, model.last)


def test_a_study_on_doubles_and_frozen_masked_weights_goes_through_the_door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))
    model = network(masked).double().requires_grad_(False)
    images = torch.randn(24, 3, 8, 8, dtype=torch.float64)
    split = Split(images, torch.arange(24) % 5)
    study = read_study(
        {
            "name": "wrapped",
            "model": {"factory": GIVEN},
            "data": {"factory": GIVEN},
            "space": "joint",
            "settings": {"calibration_images": 16},
        },
        where="here",
    )
    parts = assemble(study, tmp_path, model=nn.DataParallel(model), data=Data(split, split, split))
    assert len(parts.notes) == 4
    assert {layer.name for layer in parts.inventory.layers} == {"0", "2", "4"}
    with torch.no_grad():
        found = parts.model(parts.data.val.inputs(4))
        torch.testing.assert_close(found, model(images[:4]).float(), rtol=1e-4, atol=1e-5)
    assert (
        parts.bank.stitch(parts.space.decode(parts.space.hardest)).module(images[:2].float()).shape
    )


class Hooked(nn.Module):
    """What one layer gives is kept by a hook and read later on."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)
        self.kept: dict[str, Tensor] = {}
        if how == "closure":
            self.one.register_forward_hook(lambda m, args, out: self.kept.__setitem__("x", out))
        elif how == "default":

            def keep(m: nn.Module, args: object, out: Tensor, owner: nn.Module = self) -> None:
                owner.kept["x"] = out

            self.one.register_forward_hook(keep)
        elif how == "container":
            kept = self.kept
            self.one.register_forward_hook(lambda m, args, out: kept.__setitem__("x", out))
        elif how == "parameter":
            weight = self.two.weight
            self.curve = lambda x: x @ weight
        elif how == "attribute":
            self.curve = lambda x: torch.tanh(x * self.two.bias.sum())
        else:
            self.one.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: object, out: Tensor) -> None:
        self.kept["x"] = out

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(torch.relu(self.one(x)))
        return self.curve(y) if hasattr(self, "curve") else y + self.kept["x"]


@pytest.mark.parametrize("how", ["closure", "default", "attribute", "container", "parameter"])
def test_functions_that_hold_the_model_are_refused(how: str) -> None:
    """A copy would read what the original kept: nothing tells that the numbers are old ones."""
    with pytest.raises(UnsupportedModel, match=r"refers to the model itself.*Make it a method"):
        prepare(Hooked(how))


def test_methods_as_hooks_belong_to_the_copy() -> None:
    torch.manual_seed(0)
    model = Hooked("method").eval()
    with torch.no_grad():
        model(torch.randn(4, 8))
    copied, x = prepare(model).model, torch.randn(4, 8)
    torch.testing.assert_close(copied(x), model(x))


class Told(nn.Sequential):
    """Layers with a state that is no tensor."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.about = {"classes": ["a", "b"]}

    def get_extra_state(self) -> dict[str, list[str]]:
        return self.about

    def set_extra_state(self, state: dict[str, list[str]]) -> None:
        self.about = state


def test_states_that_are_no_tensors_go_along(tmp_path: Path) -> None:
    """Through fingerprint, bank, refinement, training and the saved weights."""
    torch.manual_seed(0)
    model, inputs = prepare(Told()).model, torch.randn(64, 8)
    splits = [Split(inputs, torch.arange(64) % 4) for _ in range(3)]
    own, inventory = Data(*splits, classes=4), take_inventory(model, inputs[:1])
    quick = RefineConfig(images=64, block_steps=2, steps=2, batch_size=16)
    settings = CompressionSettings(finish="refine", refine=quick)
    bank = LayerBank.build(model, inventory, own.train, settings)
    parts = Pipeline(model, own, inventory, bank, settings, Schedule(device="cpu", batch_size=16))
    policy = Policy({"0": LayerPolicy(prune_ratio=0.5)})
    built = parts.build(policy, Phase("recover", 1.0, 1))
    path = save_state(tmp_path / "weights.safetensors", built)
    again = parts.restore(policy, path)
    assert again.module.about == {"classes": ["a", "b"]}
    torch.testing.assert_close(again.module(inputs), built.module(inputs))


def test_encoders_run_as_they_are_written() -> None:
    """The fused path would use the weights of whatever stands in a layer's place."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    copied, x = prepare(model).model, torch.randn(4, 5, 8)
    with torch.inference_mode():
        torch.testing.assert_close(copied(x), model(x), rtol=1e-4, atol=1e-5)
        before = copied(x)
        copied.get_submodule("layers.1").linear1 = Doubled(copied.get_submodule("layers.1.linear1"))
        assert float((copied(x) - before).abs().max()) > 0.1
    assert layer.activation_relu_or_gelu == 1  # the user's keeps its fused path


class Doubled(nn.Module):
    """Another layer that tells its weight."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.layer(x)


class Stubbed(nn.Module):
    """As models are written that torch may quantize later; everything in it is float."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = nn.Identity(), nn.Identity()
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, 4)
        self.sum = torch.ao.nn.quantized.FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.quant(x))
        return self.dequant(self.two(self.sum.add_relu(x, x)))


def test_arithmetic_that_could_be_quantized_later_is_float() -> None:
    torch.manual_seed(0)
    model, x = Stubbed().eval(), torch.randn(4, 8)
    copied = prepare(model).model
    torch.testing.assert_close(copied(x), model(x))
    assert [g.name for g in take_inventory(copied, x).channel_groups] == ["one"]
    with pytest.raises(UnsupportedModel, match="quantized already"):
        prepare(nn.Sequential(nn.Linear(8, 4), torch.ao.nn.quantized.QFunctional()))
