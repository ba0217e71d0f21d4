"""Commands that tests fork are as much apart as new processes are."""

from __future__ import annotations

from pathlib import Path

import yaml
from tiny_study import call, study_of

FACTORY = """
import numpy as np
print("drawn", np.random.rand(), flush=True)
def make():
    raise ValueError
"""


def test_each_draws_numbers_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "drawing.py").write_text(FACTORY)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(study_of(model={"factory": "drawing:make"})))
    found = [
        call(tmp_path, f"search tiny.yaml --dry-run --out {run}", check=2).stdout
        for run in ("first", "second")
    ]
    drawn = [line for text in found for line in text.splitlines() if line.startswith("drawn")]
    assert len(drawn) == len(set(drawn)) == 2
