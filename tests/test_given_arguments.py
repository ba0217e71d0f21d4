"""Whatever is handed to the Python surface: an error of ours, before anything is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import autocompress as ac
from autocompress.errors import InputError
from autocompress.run.given import given_study
from autocompress.targets import get_target


class Odd:
    """An object whose text is the same in every process."""

    def __repr__(self) -> str:
        return "Odd()"


ODD: list[Any] = [7, 1.5, b"x", Odd(), {"x": 1}, ["x"]]
ARGUMENTS = [
    "budget",
    "space",
    "target",
    "search",
    "recovery",
    "settings",
    "tracking",
    "executor",
    "workers",
    "max_accuracy_drop",
    "max_quality_drop",
]
FIT = {"workers": (7,), "max_accuracy_drop": (7, 1.5), "max_quality_drop": (7, 1.5)}


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))


def data() -> Any:
    raise AssertionError("the data are read")


@pytest.mark.parametrize(
    ("name", "value"), [(n, v) for n in ARGUMENTS for v in ODD if v not in FIT.get(n, ())]
)
def test_a_wrong_argument_of_a_search_leaves_nothing_behind(
    tmp_path: Path, name: str, value: Any
) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError):
        ac.search(network(), data, out=out, quiet=True, **{name: value})
    assert not out.exists()


@pytest.mark.parametrize("sampler", [7, Odd(), "tpee", ["tpe"]], ids=str)
def test_a_wrong_sampler_leaves_nothing_behind(tmp_path: Path, sampler: Any) -> None:
    out = tmp_path / "run"
    with pytest.raises(InputError, match="sampler"):
        ac.search(network(), data, out=out, quiet=True, search={"sampler": sampler})
    assert not out.exists()


SECTIONS: dict[str, tuple[Any, dict[str, Any]]] = {
    "target": (ac.TargetConfig(threads=2, lengths={16: 0.5, 32: 0.5}), {"threads": 2}),
    "search": (ac.SearchConfig(timeout_s=600.0), {"timeout_s": 600.0}),
    "recovery": (ac.RecoveryConfig(epochs=2.0), {"epochs": 2.0}),
    "settings": (ac.CompressionSettings(seed=3), {"seed": 3}),
    "tracking": (ac.TrackingConfig(mlflow=False), {"mlflow": False}),
}
SECTIONS["target"][1]["lengths"] = {16: 0.5, 32: 0.5}


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_by_its_class_is_the_same_study_as_by_a_mapping(name: str) -> None:
    typed, plain = (given_study("x", None, **{name: section}) for section in SECTIONS[name])
    assert typed.model_dump() | {"target": None} == plain.model_dump() | {"target": None}
    assert typed.target.config() == plain.target.config()
    assert getattr(typed, name) != getattr(given_study("x", None), name)


def test_further_targets_are_as_a_file_names_them() -> None:
    given = [ac.TargetConfig(threads=2), {"runtime": "torch"}]
    found = given_study("x", None, also_on=given)
    plain = given_study("x", None, also_on=[{"threads": 2}, {"runtime": "torch"}])
    assert [t.config() for t in found.also_on] == [t.config() for t in plain.also_on]
    assert [t.config().runtime for t in found.also_on] == ["onnxruntime", "torch"]


def test_a_typed_target_is_one_of_its_runtime() -> None:
    config = get_target("torch").config
    assert given_study("x", None, target=config).target.config() == config


@pytest.mark.parametrize("name", SECTIONS)
def test_another_sections_class_is_refused(tmp_path: Path, name: str) -> None:
    other = ac.SpaceConfig.read({"rules": []})
    with pytest.raises(InputError, match=f"`{name}` must be a mapping or a .*, got a SpaceConfig"):
        ac.search(network(), data, out=tmp_path / "run", quiet=True, **{name: other})


@pytest.mark.parametrize("value", [7, Odd(), None], ids=str)
def test_paths_are_paths(value: Any) -> None:
    with pytest.raises(InputError, match="`recipe` must be a path"):
        ac.verify(value)
    with pytest.raises(InputError, match="`recipe` must be a path"):
        ac.apply(value)
    with pytest.raises(InputError, match="`out` must be a path"):
        ac.search(network(), data, out=value, quiet=True)


@pytest.mark.parametrize("name", ["resume", "new_baseline", "quiet"])
def test_switches_are_true_or_false(tmp_path: Path, name: str) -> None:
    """A text would count as true, whatever it says."""
    out = tmp_path / "run"
    with pytest.raises(InputError, match=f"`{name}` must be True or False, got 'no'"):
        ac.search(network(), data, out=out, **{"quiet": True, name: "no"})
    with pytest.raises(InputError, match=f"`{name}` must be True or False, got 'no'"):
        ac.run_study("quickstart", out=out, **{"quiet": True, name: "no"})
    assert not out.exists()


def test_an_evaluation_is_not_quick_by_a_word() -> None:
    with pytest.raises(InputError, match="`quick` must be True or False, got 'no'"):
        ac.evaluate(network(), data, quick="no")


def test_strangers_are_not_trusted_by_a_word() -> None:
    for function in (ac.apply, ac.verify):
        with pytest.raises(InputError, match="`trust` must be True or False, got 'no'"):
            function("recipe.yaml", trust="no")


@pytest.mark.parametrize("value", [7, "x", ["x"]], ids=str)
def test_policies_and_budgets_of_an_evaluation(value: Any) -> None:
    with pytest.raises(InputError):
        ac.evaluate(network(), data, value)
    with pytest.raises(InputError):
        ac.evaluate(network(), data, budget=value)


KEYWORDS: list[tuple[str, dict[str, Any], str]] = [
    ("search", {"trials": 1}, "it is a key of the section `search`"),
    ("search", {"epochs": 1}, "it is a key of the section `recovery`"),
    ("search", {"seed": 1}, "it is a key of the section `search` or `settings`"),
    ("search", {"threads": 1}, "it is a key of the section `target`"),
    ("search", {"budgets": "macs<=0.5x"}, "did you mean 'budget'"),
    ("search", {"worker": 2}, "did you mean 'workers'"),
    ("search", {"memry": "2GB"}, "did you mean 'memory'"),
    ("evaluate", {"uniforms": {}}, "did you mean 'uniform'"),
    ("evaluate", {"epoch": 2}, "did you mean 'epochs'"),
    ("profile", {"threads": 1}, "it is a key of the section `target`"),
    ("profile", {"spaces": "joint"}, "did you mean 'space'"),
    ("apply", {"trusted": True}, "did you mean 'trust'"),
    ("verify", {"memry": "2GB"}, "did you mean 'memory'"),
    ("run_study", {"trials": 1}, "it is a key of the section `search`"),
    ("bench", {"targets": "torch"}, "did you mean 'target'"),
    ("export", {"exampel": None}, "did you mean 'example'"),
]


@pytest.mark.parametrize(("call", "given", "says"), KEYWORDS, ids=str)
def test_an_unknown_keyword_is_told_the_nearest_of_all_that_the_call_takes(
    call: str, given: dict[str, Any], says: str
) -> None:
    (name,) = given
    with pytest.raises(TypeError, match=re.escape(f"{call}() has no keyword {name!r}; {says}")):
        getattr(ac, call)("quickstart", **given)


def test_a_key_beside_the_section_that_it_belongs_into_is_told_so() -> None:
    study = {"model": {"factory": "m:f"}, "data": {"factory": "m:f"}, "trials": 3}
    with pytest.raises(InputError, match="'trials'; it is a key of the section `search`"):
        ac.run_study(study)


def test_a_budget_is_one_text_or_several_as_in_a_study_file() -> None:
    several = ["latency<=0.5x", "size<=1MB"]
    told = [given_study("x", budget).budget for budget in (several, tuple(several))]
    assert told == [given_study("x", ac.Budget(*several)).budget] * 2
    assert given_study("x", []).budget == given_study("x", None).budget
    assert given_study("x", several[:1]).budget == given_study("x", several[0]).budget
