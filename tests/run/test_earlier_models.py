"""Recipes of versions that compressed models as they were given, wrappers and all.

Fingerprints and names of tensors are those that version 0.1 wrote for these models.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from autocompress.errors import InputError
from autocompress.model.earlier import Earlier
from autocompress.model.fingerprint import fingerprint
from autocompress.model.prepare import prepare
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recipe import Recipe
from autocompress.run.replay import open_recipe, rebuild
from autocompress.run.resuming import differences

WRITTEN = {
    "parallel": ("afdc9212f442af3b", "45134a31f5305d00"),
    "computed": ("3540d25362a9e812", "9b204afc7e12b952"),
    "normed": ("6c172830dfc39f30", "e4cbdd3d5453568e"),  # under PyTorch 2.11
}


def layers(wrap: Any = lambda layer: layer) -> nn.Module:
    torch.manual_seed(0)
    first, second = wrap(nn.Conv2d(1, 8, 3, padding=1)), wrap(nn.Conv2d(8, 8, 3, padding=1))
    last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), *last).eval()


def parallel() -> nn.Module:
    return nn.DataParallel(layers()).eval()


def computed() -> nn.Module:
    return layers(weight_norm)


def normed() -> nn.Module:
    torch.manual_seed(0)
    first = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.GroupNorm(2, 4))
    return nn.Sequential(*first, nn.Flatten(), nn.LayerNorm(784), nn.Linear(784, 10)).eval()


def recipe(name: str, policy: Policy, **more: Any) -> Recipe:
    architecture, weights = WRITTEN[name]
    return Recipe(
        study={
            "name": name,
            "model": {"factory": f"{__name__}:{name}"},
            "data": {"factory": "autocompress.workloads.data:digits"},
            "settings": {"calibration_images": 32, "sequential_images": 32},
        },
        policy=policy.as_dict(),
        settings={"calibration_images": 32, "sequential_images": 32},
        model={"architecture": architecture, "weights": weights},
        data="",
        target={},
        measurement={"values": {"latency_ms": 1.0}},
        baseline={"values": {"latency_ms": 1.0}},
        **more,
    )


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_CACHE", str(tmp_path))


def test_layers_of_a_parallel_model_are_found_under_their_names_of_now(tmp_path: Path) -> None:
    own = LayerPolicy(prune_ratio=0.5), LayerPolicy(weight_bits=8, activation_bits=8)
    written = Policy({"module.0": own[0], "module.6": own[1]})
    parts, same = open_recipe(recipe("parallel", written), folder=tmp_path)
    assert same
    found = rebuild(recipe("parallel", written), parts, same, tmp_path)
    wanted = parts.pipeline.build(Policy({"0": own[0], "6": own[1]}))
    assert found.policy == wanted.policy
    assert found.module[0].out_channels == 4
    for a, b in zip(found.module.parameters(), wanted.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_trained_weights_beside_it_find_their_places(tmp_path: Path) -> None:
    written = Policy({"module.2": LayerPolicy(rank_ratio=0.5, factorization="spatial")})
    asked = recipe("parallel", written, weights="trained.safetensors")
    parts, same = open_recipe(asked, folder=tmp_path)
    state = parts.pipeline.stitch(Policy({"2": written.layers["module.2"]})).module.state_dict()
    trained = {f"module.{name}": torch.randn(value.shape) for name, value in state.items()}
    file = tmp_path / "trained.safetensors"
    save_file(trained, file, {"policy": written.digest, "qat": "false"})
    found = rebuild(asked, parts, same, tmp_path).module.state_dict()
    assert len(found) == len(trained) > len(parts.model.state_dict())
    assert all(torch.equal(found[n.removeprefix("module.")], v) for n, v in trained.items())
    save_file({"0.weight": torch.zeros(1)}, file, {"policy": written.digest})
    with pytest.raises(InputError, match="weights of another module"):
        rebuild(asked, parts, same, tmp_path)


def test_a_model_with_computed_weights_is_the_same_model(tmp_path: Path) -> None:
    asked = recipe("computed", Policy({"6": LayerPolicy(weight_bits=8, activation_bits=8)}))
    parts, same = open_recipe(asked, folder=tmp_path)
    assert same
    assert rebuild(asked, parts, same, tmp_path).quantized
    # trained tensors of what computed the weights have no place any more: trained again
    assert not open_recipe(
        asked.model_copy(update={"weights": "trained.safetensors"}), folder=tmp_path
    )[1]
    known = {"architecture": WRITTEN["computed"][0], "weights": WRITTEN["computed"][1]}
    before: Any = SimpleNamespace(context={"identity": known})
    assert differences(before, {}, parts) == []
    before.context["identity"] = {**known, "weights": "others"}
    assert differences(before, {}, parts) == ["other weights"]


def test_a_model_with_norms_is_the_one_that_an_earlier_pytorch_told_less_of(tmp_path: Path) -> None:
    asked = recipe("normed", Policy({"0": LayerPolicy(weight_bits=8, activation_bits=8)}))
    parts, same = open_recipe(asked, folder=tmp_path)
    assert same
    assert parts.inventory.architecture != WRITTEN["normed"][0]
    assert rebuild(asked, parts, same, tmp_path).quantized
    known = dict(zip(("architecture", "weights"), WRITTEN["normed"], strict=True))
    before: Any = SimpleNamespace(context={"identity": known})
    assert differences(before, {}, parts) == []
    now = {"architecture": parts.inventory.architecture, "weights": "others"}
    before.context["identity"] = now
    assert differences(before, {}, parts) == ["other weights"]


def test_another_model_is_still_refused(tmp_path: Path) -> None:
    other = recipe("parallel", Policy({"module.0": LayerPolicy(prune_ratio=0.5)}))
    study = {**other.study, "model": {"factory": f"{__name__}:computed"}}
    with pytest.raises(InputError, match="another architecture"):
        open_recipe(other.model_copy(update={"study": study}), folder=tmp_path)


def test_a_wrapper_inside_is_left_out_of_names() -> None:
    model = nn.Sequential(nn.DataParallel(layers()), nn.Linear(10, 2)).eval()
    found = Earlier.of(model, prepare(model))
    assert found is not None
    assert found.now("0.module.6.weight") == "0.6.weight"
    assert found.now("1") == "1"
    assert found.tensors


def test_weights_of_sixteen_bits_have_a_fingerprint() -> None:
    assert fingerprint(layers().bfloat16())[0] != fingerprint(layers())[0]
