"""A run with a record of every sample, and its report in a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import pages

from autocompress.policy.budget import Budget
from autocompress.results.difference import pack_hits
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal
from autocompress.track.view import RunView


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[..., Any]]:
    """Opens a report without a network; whatever goes wrong in its script fails the test."""
    wrong: list[str] = []
    with pages(1300, 900) as new:

        def show(path: Path, width: int = 1300, dark: bool = False, plots: bool = True) -> Any:
            page = new()
            page.context.set_offline(True)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on("dialog", lambda dialog: wrong.append(dialog.message))
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme="dark" if dark else "light")
            page.goto(path.as_uri())
            if plots:
                page.wait_for_selector("#pareto .main-svg")
            return page

        yield show
        assert wrong == []


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose records tell which samples were answered rightly."""
    import handmade_run

    rng = np.random.default_rng(0)
    folder = handmade_run.make_run(tmp_path / "resnet20", 40)
    easy = rng.random(400)
    trials = RunView.load(folder).trials

    def told(found: Measurement) -> Measurement:
        hits = easy + 0.03 * rng.standard_normal(400) < found.score
        expected = {"latency_ms": found["latency_ms"] + rng.normal(0, 0.03), "sigma_ms": 0.02}
        context = {**found.context, "images": 400, "hits": pack_hits(hits), "expected": expected}
        values = {**found.values, "accuracy": float(hits.mean())}
        return Measurement(values, {**found.spread, "accuracy": 0.016}, context)

    baseline = told(handmade_run.BASELINE)
    other = RunFolder.create(tmp_path / "other")
    other.write_study(folder.read_study())
    other.write_baseline(baseline)
    with Journal(other) as journal:
        for trial in trials:
            found = trial.measurement
            scored = found is not None and "accuracy" in found
            journal.record(_with(trial, told(found) if found and scored else found, baseline))
    other.write_front({"layers": handmade_run.LAYERS})
    return other


def _with(trial: Trial, found: Measurement | None, baseline: Measurement) -> Trial:
    from dataclasses import replace

    if found is None:
        return trial
    over = Budget("latency<=0.5x").violations(found.values, baseline.values)
    return replace(trial, measurement=found, violations=over)
