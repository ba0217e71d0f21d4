"""What is asked of a cascade, and where none is made: told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finished_run import finished_run
from tiny_study import study_of

from autocompress.cascade.amounts import asked_amounts
from autocompress.cascade.choose import Asked
from autocompress.errors import InputError
from autocompress.machine.progress import silent
from autocompress.run.cascading import cascade
from autocompress.run.session import run_study
from autocompress.run.study import read_study


def test_a_study_asks_at_once_whether_its_target_runs_cascades(tmp_path: Path) -> None:
    study = study_of(2, dynamic={"mean_latency": "0.6ms"}, target={"batch": 8})
    with pytest.raises(InputError, match="batches of 8"):
        run_study(read_study(study), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ({"runtime": "torch"}, "Cascades run in ONNX Runtime"),
        ({"batch": 4}, "batches of 4"),
    ],
)
def test_targets_that_no_cascade_runs_on_are_refused(
    tmp_path: Path, target: dict[str, Any], says: str
) -> None:
    copy = finished_run(tmp_path / "run", 1.0)
    copy.write_study({**copy.read_study(), "target": target})
    with pytest.raises(InputError, match=says):
        cascade(str(copy.root), Asked(mean_ms=0.5), progress=silent)


def test_amounts_are_read() -> None:
    assert asked_amounts("0.2%", None) == {"most_lost": pytest.approx(0.002)}
    assert asked_amounts(0.2, None) == {"most_lost": pytest.approx(0.002)}
    assert asked_amounts(None, "0.3ms") == {"mean_ms": pytest.approx(0.3)}
    assert asked_amounts(0.00001, None) == {"most_lost": pytest.approx(1e-7)}
    assert asked_amounts(None, "3E-1 ms") == {"mean_ms": pytest.approx(0.3)}
    bad = (("0.2%", "0.3ms"), (None, None), ("-1%", None), ("much", None), (None, "0 ms"))
    for both in (*bad, ("100%", None), (None, "1e999ms"), (None, True), (None, "1e ms")):
        with pytest.raises(InputError):
            asked_amounts(*both)
