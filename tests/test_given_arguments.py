"""Whatever is handed to the Python surface: an error of ours, before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import autocompress as ac
from autocompress.errors import InputError


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


@pytest.mark.parametrize("value", [7, Odd(), None], ids=str)
def test_paths_are_paths(value: Any) -> None:
    with pytest.raises(InputError, match="`recipe` must be a path"):
        ac.verify(value)
    with pytest.raises(InputError, match="`recipe` must be a path"):
        ac.apply(value)
    with pytest.raises(InputError, match="`out` must be a path"):
        ac.search(network(), data, out=value, quiet=True)


@pytest.mark.parametrize("value", [7, "x", ["x"]], ids=str)
def test_policies_and_budgets_of_an_evaluation(value: Any) -> None:
    with pytest.raises(InputError):
        ac.evaluate(network(), data, value)
    with pytest.raises(InputError):
        ac.evaluate(network(), data, budget=value)
