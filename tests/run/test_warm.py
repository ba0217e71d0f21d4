"""A study that begins with what the run of another one left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_study import FEW, study_of

import autocompress as ac
from autocompress.errors import InputError

pytestmark = pytest.mark.timeout(900)
SHORT: dict[str, Any] = study_of(trials=4, space=FEW, budget=["macs<=0.6x"])


def other(**model: Any) -> dict[str, Any]:
    """Other weights of the network, or another network."""
    study = study_of(trials=2, space=FEW, budget=["macs<=0.7x"])
    study["baseline"] = {"schedule": {**SHORT["baseline"]["schedule"], "epochs": 3}}
    study["model"] = {**study["model"], "args": {"width": 12, **model}}
    return study


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> ac.Result:
    return ac.run_study(SHORT, out=tmp_path_factory.mktemp("warm") / "earlier", quiet=True)


def test_other_weights_begin_with_the_earlier_front(earlier: ac.Result, tmp_path: Path) -> None:
    warm = {"warm_from": earlier.folder}  # a path, as `Result` has it
    result = ac.run_study(other(), out=tmp_path / "run", search=warm, quiet=True)
    first = result.view.trials[0]
    assert first.origin == "warm"
    assert first.policy.untrained_digest in {t.policy.untrained_digest for t in earlier.front}
    assert result.baseline.context["identity"] != earlier.baseline.context["identity"]


def test_another_architecture_is_refused_before_anything_is_measured(
    earlier: ac.Result, tmp_path: Path
) -> None:
    warm = {"warm_from": str(earlier.folder)}
    with pytest.raises(InputError, match="another architecture"):
        ac.run_study(other(width=8), out=tmp_path / "run", search=warm, quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    warm = {"warm_from": str(tmp_path / "nowhere")}
    with pytest.raises(InputError, match="nowhere"):
        ac.run_study(other(), out=tmp_path / "run", search=warm, quiet=True)
    assert not (tmp_path / "run").exists()
