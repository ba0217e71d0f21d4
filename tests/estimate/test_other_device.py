"""Tables that other devices wrote: their own kernels, or whole models that place them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from known_times import device_table, kernel_ms, random_policies, true_ms
from scipy.stats import spearmanr
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.estimate.kernel_table import KernelTable, keep
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_model import LatencyModel, choose_variants
from autocompress.estimate.other_device import (
    DeviceTable,
    check_foretold,
    device_model,
    remarks,
)
from autocompress.model.inventory import take_inventory
from autocompress.model.kernels import Kernel
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Space


def test_a_device_table_predicts_that_device(
    plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(device_table(plan, space, inventory)))
    model = device_model(path, inventory, None, path.parent / "cache")
    base = true_ms(plan, Policy())
    for policy in random_policies(space, 20, seed=6):
        assert model.predict(policy)[0] == pytest.approx(true_ms(plan, policy), abs=0.05 * base)
    assert model.table.facts["machine"]["cpu"] == "elsewhere"


def test_a_table_of_kernels_alone_adds_them_up(
    plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    data = device_table(plan, space, inventory)
    del data["baseline_ms"], data["models"]
    path = tmp_path / "table.json"
    path.write_text(json.dumps(data))
    model = device_model(path, inventory, None, path.parent / "cache")
    sums = [sum(kernel_ms(k) for k in plan.kernels([p])) for p in random_policies(space, 20, 7)]
    predicted = [model.predict(p)[0] for p in random_policies(space, 20, 7)]
    assert spearmanr(sums, predicted).statistic > 0.95


def test_tables_that_cannot_be_used_are_said(
    plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"run_kernels\.py"):
        DeviceTable.load(tmp_path / "absent.json")
    path = tmp_path / "table.json"
    path.write_bytes(b"\xff\xfe not text")
    with pytest.raises(InputError, match="not readable"):
        DeviceTable.load(path)
    for other in ("{ half a file", "[]"):
        path.write_text(other)
        with pytest.raises(InputError, match="not readable"):
            DeviceTable.load(path)
    for other, says in (
        ("{}", "holds no kernel"),
        ('{"kernels": [1]}', "`kernels` must be a mapping"),
        ('{"kernels": {}, "baseline_ms": 1.0}', "fewer than 4 whole models"),
    ):
        path.write_text(other)
        with pytest.raises(InputError, match=says):
            DeviceTable.load(path)
    data = device_table(plan, space, inventory)
    path.write_text(json.dumps({**data, "architecture": "0123"}))
    with pytest.raises(InputError, match="another model"):
        device_model(path, inventory, None, path.parent / "cache")
    path.write_text(json.dumps({**data, "version": 99}))
    with pytest.raises(InputError, match="version 99"):
        device_model(path, inventory, None, path.parent / "cache")
    path.write_text(json.dumps({**data, "kernels": {"nonsense": 1.0}}))
    with pytest.raises(InputError, match="'nonsense'"):
        device_model(path, inventory, None, path.parent / "cache")
    key = next(iter(data["kernels"]))
    path.write_text(json.dumps({**data, "kernels": dict.fromkeys(data["kernels"], 0.0)}))
    with pytest.raises(InputError, match="no kernel takes any time"):
        device_model(path, inventory, None, path.parent / "cache")
    path.write_text(json.dumps({**data, "kernels": {key: "fast"}}))
    with pytest.raises(InputError, match="fast"):
        device_model(path, inventory, None, path.parent / "cache")
    for damaged in ([{"ms": 1.0}], [{"policy": {"layers": {}}, "ms": None}], [5]):
        path.write_text(json.dumps({**data, "models": damaged}))
        with pytest.raises(InputError, match=r"table\.json.*`models\.0"):
            device_model(path, inventory, None, path.parent / "cache")


def slow_at_integers(kernel: Kernel) -> float:
    """A device without integer units, on which narrow layers are not much faster than wide ones."""
    return float((0.004 if kernel.precision == "fp32" else 0.006) * kernel.out_channels**0.3)


def latency(plan: LayerPlan, policy: Policy, times: Callable[[Kernel], float]) -> float:
    """Of a device on which everything takes 2.5 times as long."""
    return 2.5 * true_ms(plan, policy, times)


@pytest.fixture
def cache(plan: LayerPlan, space: Space, tmp_path: Path) -> Path:
    """Two known devices, another file, and a device that cannot tell anything of integers."""
    folder = tmp_path / "cache"
    folder.mkdir()
    kernels = plan.space_kernels(space)
    for name, times in (("quick", kernel_ms), ("slow", slow_at_integers)):
        facts = {
            "machine": {"cpu": f"the {name} one"},
            "target": {"runtime": "onnxruntime", "threads": 1},
        }
        table = KernelTable({k.key: times(k) for k in kernels}, facts)
        keep(folder / f"kernels-{name}.json", table.as_dict())
    floats = {k.key: slow_at_integers(k) for k in kernels if k.precision == "fp32"}
    keep(folder / "kernels-floats.json", KernelTable(floats, {}).as_dict())
    keep(folder / "model-slow.json", {})
    return folder


@pytest.mark.parametrize("name", ["quick", "slow"])
def test_a_device_is_placed_by_a_dozen_models(
    name: str, cache: Path, plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    times = {"quick": kernel_ms, "slow": slow_at_integers}[name]
    path, base = tmp_path / "table.json", latency(plan, Policy(), times)
    models = [(p, latency(plan, p, times)) for p in choose_variants(space, 12)]
    told = {
        "version": 1,
        "architecture": inventory.architecture,
        "facts": {"machine": {"cpu": "new"}},
        "baseline_ms": base,
        "models": [{"policy": p.as_dict(), "ms": ms} for p, ms in models],
    }
    path.write_text(json.dumps(told))
    model = device_model(path, inventory, None, cache)
    found = model.facts["placed"]
    assert found["by"] == f"the {name} one (onnxruntime, threads: 1)"
    assert f"the {name} one" in "".join(remarks(model))
    assert model.facts["machine"]["cpu"] == "new"

    def error(of: LatencyModel) -> float:
        """Mean error on models that nobody timed there, as a share of the uncompressed latency."""
        policies = random_policies(space, 20, seed=6)
        true = np.array([latency(plan, p, times) for p in policies])
        return float(np.mean(abs(np.array([of.predict(p)[0] for p in policies]) - true) / base))

    (cache / f"kernels-{name}.json").unlink()
    other = device_model(path, inventory, None, cache)
    assert other.facts["placed"]["by"] != found["by"]
    assert error(model) < 0.05
    assert error(model) < error(other)
    assert found["error"] < other.facts["placed"]["error"]


def test_a_table_of_many_models_places_as_quickly(
    plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    """Every model more would be one fit more, of all the others; far more than this takes hours."""
    path, data = tmp_path / "table.json", device_table(plan, space, inventory)
    path.write_text(json.dumps({**data, "kernels": {}, "models": data["models"] * 200}))
    model = device_model(path, inventory, None, tmp_path / "none")
    assert len(model.measured) == 200 * len(data["models"])
    assert model.facts["placed"]["error"] < 0.01  # each was timed several times


def test_a_device_that_resembles_none_is_predicted_by_its_models(
    plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    data = {**device_table(plan, space, inventory), "kernels": {}}
    path.write_text(json.dumps(data))
    model = device_model(path, inventory, None, tmp_path / "none")
    assert model.facts["placed"]["by"] == "multiply-adds at one speed"
    policies = random_policies(space, 20, seed=6)
    true = np.array([true_ms(plan, p) for p in policies])
    errors = abs(np.array([model.predict(p)[0] for p in policies]) - true)
    naive = abs(np.mean([one["ms"] for one in data["models"]]) - true)
    assert errors.mean() < 0.5 * naive.mean()


def test_a_device_that_timed_its_kernels_is_known_from_then_on(
    plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    path, data = tmp_path / "table.json", device_table(plan, space, inventory)
    path.write_text(json.dumps(data))
    assert remarks(device_model(path, inventory, None, tmp_path / "cache")) == []
    path.write_text(json.dumps({**data, "kernels": {}}))
    model = device_model(path, inventory, None, tmp_path / "cache")
    assert model.facts["placed"]["by"] == "elsewhere"


@pytest.mark.parametrize("text", ["", "[1]", '{"version": 1}', '{"version": 1, "facts": {}}'])
def test_a_damaged_table_of_a_known_device_is_left_out(
    plan: LayerPlan,
    space: Space,
    inventory: Inventory,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    text: str,
) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**device_table(plan, space, inventory), "kernels": {}}))
    (tmp_path / "kernels-damaged.json").write_text(text)
    model = device_model(path, inventory, None, tmp_path)
    assert model.facts["placed"]["by"] == "multiply-adds at one speed"
    assert "kernels-damaged.json" in caplog.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("baseline_ms", 1e300),
        ("baseline_ms", 0.0),
        ("baseline_ms", float("nan")),
        ("baseline_ms", -1.0),
        ("baseline_ms", True),
        ("baseline_ms", "0.5"),
        ("architecture", None),
        ("models", [{"policy": {"layers": {}}, "ms": float("inf")}]),
        ("facts", {"machine": "a board"}),
        ("facts", {"target": ["onnxruntime"]}),
        ("facts", {"footprint": "large"}),
        ("facts", {"footprint": 0}),
    ],
)
def test_odd_times_and_facts_are_said(
    name: str, value: object, plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({**device_table(plan, space, inventory), name: value}))
    with pytest.raises(InputError, match=rf"table\.json: `{name}"):
        device_model(path, inventory, None, tmp_path / "cache")


def of_floats(plan: LayerPlan, space: Space, inventory: Inventory) -> dict[str, Any]:
    """The table of a device on which nothing with integer layers was timed."""
    data = device_table(plan, space, inventory)
    kernels = {key: ms for key, ms in data["kernels"].items() if ":fp32:" in key}
    models = []
    for share in (0.25, 0.5, 0.75, 0.8):
        policy = Policy({name: LayerPolicy(prune_ratio=share) for name in ("first", "last")})
        models.append({"policy": policy.as_dict(), "ms": true_ms(plan, policy)})
    return {**data, "kernels": kernels, "models": models}


@pytest.mark.parametrize("known", [True, False], ids=["a known device", "none"])
@pytest.mark.parametrize("kernels", [True, False])
def test_arithmetic_of_which_nothing_was_timed_is_not_foretold(
    known: bool,
    kernels: bool,
    cache: Path,
    plan: LayerPlan,
    space: Space,
    inventory: Inventory,
    tmp_path: Path,
) -> None:
    path, data = tmp_path / "table.json", device_table(plan, space, inventory)
    whole = {**data, "kernels": {}}
    path.write_text(json.dumps(whole))
    check_foretold(device_model(path, inventory, None, cache), space)
    told = of_floats(plan, space, inventory)
    path.write_text(json.dumps(told if kernels else {**told, "kernels": {}}))
    model = device_model(path, inventory, None, cache if known else tmp_path / "none")
    policies = random_policies(space, 40, seed=6)
    integer = [p for p in policies if any(x.activation_bits == 8 for x in p.layers.values())]
    assert 0 < len(integer) < len(policies)
    for policy in policies:
        if policy in integer:
            with pytest.raises(InputError, match="int8 arithmetic"):
                model.predict(policy)
        else:
            assert model.predict(policy)[0] > 0
    with pytest.raises(InputError, match="int8 arithmetic"):
        check_foretold(model, space)


def test_a_table_that_does_not_name_its_model_says_so(
    plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    path, data = tmp_path / "table.json", device_table(plan, space, inventory)
    for kernels, also in ((data["kernels"], "4 of its 4 kernels"), ({}, "")):
        path.write_text(json.dumps({**data, "architecture": "", "kernels": kernels}))
        said = remarks(device_model(path, inventory, None, tmp_path / "cache"))
        assert "does not say which model" in said[0]
        assert also in said[0]
        assert len(said) == (1 if kernels else 2)


def test_a_table_of_a_student_is_refused(
    plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    path, data = tmp_path / "table.json", device_table(plan, space, inventory)
    told = [{"policy": {"layers": {}, "student": "small"}, "ms": 1.0}]
    path.write_text(json.dumps({**data, "models": told}))
    with pytest.raises(InputError, match="a student, 'small'"):
        device_model(path, inventory, None, tmp_path / "cache")


@pytest.mark.parametrize("kernels", [True, False])
def test_a_table_of_layers_that_the_model_lacks_is_refused(
    kernels: bool, plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    path, data = tmp_path / "table.json", device_table(plan, space, inventory)
    if kernels:  # one image size larger than any of the model
        larger = {
            k.key: replace(k, size=tuple(99 for _ in k.size)) for k in plan.space_kernels(space)
        }
        odd: dict[str, Any] = {
            "kernels": {k.key: data["kernels"][key] for key, k in larger.items()}
        }
        says = "none of this one's kernels"
    else:
        odd = {"models": [{"policy": {"layers": {"elsewhere": {"prune_ratio": 0.5}}}, "ms": 1.0}]}
        says = "no layer 'elsewhere'"
    path.write_text(json.dumps({**data, "architecture": "", **odd}))
    with pytest.raises(InputError, match=says):
        device_model(path, inventory, None, tmp_path / "cache")


def test_a_table_is_told_from_one_that_says_something_else(
    plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    path, data = tmp_path / "table.json", device_table(plan, space, inventory)
    digests = []
    kernel = next(iter(data["kernels"]))
    for changed in (
        {},
        {"baseline_ms": 2 * data["baseline_ms"]},
        {"kernels": {**data["kernels"], kernel: 9.0}},
        {"models": data["models"][1:]},
        {"models": [{**one, "ms": 2 * one["ms"]} for one in data["models"]]},
        {"facts": {}},
    ):
        path.write_text(json.dumps({**data, **changed}))
        digests.append(device_model(path, inventory, None, tmp_path / "cache").facts["digest"])
        path.write_text(json.dumps(dict(reversed({**data, **changed}.items())), indent=1))
        again = device_model(path, inventory, None, tmp_path / "cache")
        assert again.facts["digest"] == digests[-1]
    assert len(set(digests)) == len(digests)


def test_a_kernel_too_quick_for_the_clock_is_taken(
    plan: LayerPlan, space: Space, inventory: Inventory, tmp_path: Path
) -> None:
    """The profiler counts microseconds: what takes less reads 0."""
    path, data = tmp_path / "table.json", device_table(plan, space, inventory)
    quick = min(data["kernels"], key=lambda key: float(data["kernels"][key]))
    path.write_text(json.dumps({**data, "kernels": {**data["kernels"], quick: 0.0}}))
    model = device_model(path, inventory, None, tmp_path / "cache")
    assert all(model.predict(policy)[0] > 0 for policy in random_policies(space, 20, seed=6))


def test_a_model_without_kernels_is_placed_by_its_multiply_adds(tmp_path: Path) -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(64, 128, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0].sum((1, 2))

    inventory = take_inventory(Sums().eval(), torch.randn(2, 50, 64))
    assert not LayerPlan(inventory, CompressionSettings()).kernels([Policy()])
    path, model = tmp_path / "table.json", {"policy": {"layers": {}}, "ms": 1.0}
    path.write_text(json.dumps({"version": 1, "baseline_ms": 1.0, "models": [model] * 4}))
    found = device_model(path, inventory, None, tmp_path / "cache")
    assert found.predict(Policy())[0] == pytest.approx(1.0, rel=0.01)


def test_a_cache_that_cannot_be_written_costs_later_devices_only(
    plan: LayerPlan,
    space: Space,
    inventory: Inventory,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps(device_table(plan, space, inventory)))
    (tmp_path / "cache").write_text("no folder")
    model = device_model(path, inventory, None, tmp_path / "cache")
    assert model.predict(Policy())[0] > 0
    assert "No later device can be placed by this one" in caplog.text
