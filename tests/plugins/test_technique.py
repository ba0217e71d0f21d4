"""The example package with a technique: from a study's rule to a measured policy and a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from autocompress.errors import InputError, PolicyError
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.space_config import SpaceConfig

#: whole studies run in processes of their own, which may have to wait for a quiet machine
pytestmark = pytest.mark.timeout(900)

FIXTURES = Path(__file__).parent.parent / "fixtures" / "run_0_1"
RULE = {"match": "*", "kinds": ["conv", "linear"], "cluster_count": [0, 16, 4], "weight_bits": 32}

Called = Callable[..., str]


@pytest.fixture(scope="module")
def clusters(installed: Callable[[str], Called]) -> Called:
    return installed("technique_clusters")


def study(folder: Path, **changes: Any) -> str:
    """The small study of the fixtures, with a rule for the technique."""
    found = yaml.safe_load((FIXTURES / "study.yaml").read_text())
    found["model"]["checkpoint"] = str(FIXTURES / "weights.safetensors")
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**found, "space": {"rules": [RULE]}, **changes}))
    return str(path)


@pytest.mark.parametrize("name", ["technique_clusters", "technique_widths"])
def test_it_keeps_the_contract_where_it_is_installed(
    installed: Callable[[str], Called], name: str
) -> None:
    told = installed(name)("-m", "pytest", "-q", "--rootdir", "package", "package/tests")
    assert " passed" in told
    assert " skipped" not in told


def test_a_uniform_policy_and_a_policy_file_are_measured(clusters: Called, tmp_path: Path) -> None:
    given = ["-m", "autocompress", "evaluate", study(tmp_path), "--json"]
    uniform = json.loads(clusters(*given, "--uniform", "cluster_count=4"))
    layers = uniform["trial"]["policy"]["layers"]
    assert len(layers) > 5
    assert all(layer == {"cluster_count": 4} for layer in layers.values())
    assert uniform["trial"]["accuracy"] < uniform["baseline"]["accuracy"]
    policy = tmp_path / "policy.yaml"
    policy.write_text(yaml.safe_dump(uniform["trial"]["policy"]))
    again = json.loads(clusters(*given, "--policy", str(policy)))
    assert again["trial"]["policy"] == uniform["trial"]["policy"]
    assert again["trial"]["accuracy"] == uniform["trial"]["accuracy"]


@pytest.mark.slow
def test_a_search_takes_it_and_its_recipe_holds_it(clusters: Called, tmp_path: Path) -> None:
    smaller = {"budget": ["size<=1.1x"], "search": {"trials": 3}, "recovery": {"epochs": 0}}
    path, run = study(tmp_path, **smaller), str(tmp_path / "run")
    found = json.loads(
        clusters("-m", "autocompress", "search", path, "--out", run, "--json", "--seed", "0")
    )
    fields = [set(p) for t in found["trials"] for p in t["policy"]["layers"].values()]
    assert {"cluster_count"} in fields
    named = found["baselines"]["sixteen"]["policy"]["layers"].values()
    assert {layer["cluster_count"] for layer in named} == {16}
    clusters("-m", "autocompress", "front", run)
    resolved = yaml.safe_load((tmp_path / "run" / "study.yaml").read_text())
    assert resolved["space"]["rules"][0]["cluster_count"] == [0, 16, 4]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "sixteen" in page
    assert "clusters in 100%" in page  # of every trial; the answer's own fields depend on timing


_STARTS = """
import json
from autocompress.controller.config import SearchConfig
from autocompress.controller.context import Context
from autocompress.controller.loop import run_search
from autocompress.controller.phases import run_reference_policies
from autocompress.controller.samplers import make_proposer
from autocompress.execute.local import InProcessExecutor
from autocompress.policy.budget import Budget
from autocompress.policy.space_config import SpaceConfig
from autocompress.testing.sampler import ChainEvaluator, chain_space
from autocompress.track.view import RunView

rule = {"prune_ratio": [0, 0.5], "cluster_count": [0, 16, 4]}
space = SpaceConfig.read({"rules": [rule]}).bind(chain_space(4, 2).inventory)
by = ChainEvaluator(4)
budget = Budget("latency<=1x")
study = Context(space, by, InProcessExecutor(by), budget, SearchConfig(trials=6), [])
run_search(study, make_proposer(study))
told = RunView.of(study.ledger.trials, by.baseline).reference_trials
named = [t for t in study.ledger.trials if t.origin == "sixteen"]
print(json.dumps({
    "policies": [t.policy.as_dict()["layers"] for t in named],
    "told": told["sixteen"].number == named[0].number,
    "references": run_reference_policies(study)["sixteen"] == named[0].number,
}))
"""


def test_what_it_names_begins_a_search_and_is_a_reference(clusters: Called) -> None:
    found = json.loads(clusters("-c", _STARTS))
    (policy,) = found["policies"]
    assert set(policy) == {"l0", "l1", "l2", "l3", "head"}
    assert all(layer == {"cluster_count": 16} for layer in policy.values())
    assert found["told"]
    assert found["references"]


def test_profile_tells_what_it_does_to_each_layer(clusters: Called, tmp_path: Path) -> None:
    found = json.loads(clusters("-m", "autocompress", "profile", study(tmp_path), "--json"))
    for row in found["layers"]:
        told = row["kl"].get("cluster_count=4")
        assert (told is not None) == (row["kind"] in ("conv", "linear")), row["name"]
        assert told is None or told > 0


def test_targets_say_that_they_gain_nothing_by_it(clusters: Called) -> None:
    found = json.loads(clusters("-m", "autocompress", "targets", "--json"))["targets"]
    assert all("as a float" in row["no_gain"]["clusters"] for row in found)
    assert "clusters on onnxruntime" in clusters("-m", "autocompress", "targets")


def test_its_field_is_in_the_schemas(clusters: Called) -> None:
    space = json.loads(clusters("-m", "autocompress", "schema", "space"))
    field = space["$defs"]["Rule"]["properties"]["cluster_count"]
    assert field["anyOf"][0] == {"enum": [0, 64, 16, 4]}
    assert field["description"]
    recipe = json.loads(clusters("-m", "autocompress", "schema", "recipe"))
    assert recipe["$defs"]["LayerPolicy"]["properties"]["cluster_count"]["default"] == 0


def test_without_the_package_a_file_says_what_may_be_missing() -> None:
    with pytest.raises(InputError, match=r"unknown key 'rules.0.cluster_count'.*installed"):
        SpaceConfig.read({"rules": [RULE]})
    with pytest.raises(InputError, match=r"unknown key 'layers.a.cluster_count'.*installed"):
        Policy.read({"layers": {"a": {"cluster_count": 4}}}, where="x")
    with pytest.raises(PolicyError, match=r"no 'cluster_count'.*installed"):
        LayerPolicy.from_dict({"cluster_count": 4})
    for where in (
        {"layers": {"a": {"more": [["cluster_count", 4]]}}},
        {"layers": {"a": {"more": 1}}},
    ):
        with pytest.raises(InputError, match=r"unknown key 'layers.a.more'"):
            Policy.read(where, where="x")
    with pytest.raises(InputError, match=r"unknown key 'rules.0.more'"):
        SpaceConfig.read({"rules": [{"more": []}]})
