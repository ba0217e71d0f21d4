"""What ``--uniform`` may say, and that a file which cannot be read is said at once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from autocompress.errors import InputError
from autocompress.machine.progress import silent
from autocompress.run.assembly import assemble
from autocompress.run.evaluation import evaluate, read_uniform
from autocompress.run.study import StudyConfig


def test_values_are_read_and_bits_of_activations_follow() -> None:
    found = read_uniform("prune_ratio=0.5, weight_bits=8")
    assert found == {"prune_ratio": 0.5, "weight_bits": 8, "activation_bits": 8}


@pytest.mark.parametrize(
    "text",
    ["prune_ratio=abc", "prune_ratio=1", "prune_ratio=", "weight_bits=7", "rank_ratio=2", "x=1"],
)
def test_a_value_that_a_field_cannot_have_is_bad_input_and_not_no_change(text: str) -> None:
    with pytest.raises(InputError, match=text.partition("=")[0]):
        read_uniform(text)


UNREADABLE = {
    "bomb": "a: &a [x, x]\n"
    + "".join(f"{k}: &{k} [*{j}, *{j}]\n" for j, k in pairwise("abcdefghijklmnopqrst")),
    "deep": "rules: " + "[" * 5000 + "]" * 5000,
    "torn": "rules: [",
}


def never() -> Any:
    """Loads no data: what cannot be read must be said before."""
    raise AssertionError("data were loaded before every file of the study was read")


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_are_read_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    """Loading and training a model may take hours."""
    file = tmp_path / f"{name}.yaml"
    file.write_text(UNREADABLE[name])
    plain = {"model": {"factory": "torch.nn:Identity"}, "data": {"factory": f"{__name__}:never"}}
    study = StudyConfig.read({**plain, "name": "x", "budget": ["macs<=0.5x"], "space": str(file)})
    with pytest.raises(InputError, match="not readable as a search space"):
        assemble(study, tmp_path)
    with pytest.raises(InputError, match="not readable as a policy"):
        evaluate(study.changed(space="joint"), file, None, silent)
    with pytest.raises(InputError, match="weight_bits"):
        evaluate(study.changed(space="joint"), None, "weight_bits=7", silent)
