"""``autocompress.run_study``: what the command does, from Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_study import FEW, call, study_of

import autocompress as ac
from autocompress.errors import InputError
from autocompress.track.folder import RunFolder

pytestmark = pytest.mark.timeout(900)
PLAIN = study_of(
    trials=3, space=FEW, budget=["macs<=0.6x"], search={"trials": 3, "sampler": "random"}
)


def test_a_file_runs_as_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(PLAIN))
    call(tmp_path, f"search {file} --out {tmp_path / 'command'} --json")
    result = ac.run_study(file, out=tmp_path / "python", quiet=True)
    assert result.answered
    ran = [RunFolder.open(tmp_path / name).read_study() for name in ("python", "command")]
    assert ran[0] == ran[1]
    assert result.best.recipe_path.is_file()


def test_what_a_call_says_goes_before_the_file(tmp_path: Path) -> None:
    result = ac.run_study(
        PLAIN, out=tmp_path / "run", budget="macs<=0.7x", search={"trials": 2}, quiet=True
    )
    study = RunFolder.open(result.folder).read_study()
    assert study["budget"] == ["macs<=0.7x"]
    assert study["search"]["trials"] == 2
    assert study["search"]["sampler"] == "random"
    assert study["model"]["factory"] == PLAIN["model"]["factory"]


@pytest.mark.parametrize(
    ("study", "more", "named"),
    [
        ("quickstrt", {}, "quickstart"),
        (7, {}, "study"),
        ({"name": "x"}, {}, "model"),
        (PLAIN, {"budget": 7}, "budget"),
        (PLAIN, {"budget": "latncy<=0.5x"}, "latency"),
        (PLAIN, {"search": {"trails": 3}}, "trials"),
        (PLAIN, {"recovery": "none"}, "recovery"),
        (PLAIN, {"timeout_s": -1}, "timeout_s"),
        (PLAIN, {"space": "jont"}, "joint"),
    ],
)
def test_what_cannot_be_used_is_named_and_leaves_nothing(
    study: Any, more: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=named):
        ac.run_study(study, out=tmp_path / "run", quiet=True, **more)
    assert not (tmp_path / "run").exists()
