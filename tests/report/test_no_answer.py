"""A report of a budget that nothing meets: it tells the nearest, and what to do about it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from autocompress.mlflow.labels import trial_metrics
from autocompress.policy.budget import Budget, Limit
from autocompress.report.html import write_report
from autocompress.report.tables import trial_json
from autocompress.report.verdict import verdict
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

LAYERS = ["layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1"]


@pytest.fixture
def unmet(run: RunFolder) -> RunFolder:
    """The same run, asked for more than it found."""
    run.write_study({**run.read_study(), "budget": ["latency<=0.01x", "size<=0.9x"]})
    assert not len(RunView.load(run).front)
    return run


def test_the_nearest_follows_the_budget(opened: Callable[..., Any], run: RunFolder) -> None:
    """Against what Python decides of the same trials under the same limits."""
    page, view = opened(write_report(run)), RunView.load(run)
    least = {
        name: min(t.measurement[name] for t in view.compared if t.measurement)
        for name in ("latency_ms", "size_bytes", "macs")
    }
    for shares in ({"latency_ms": 0.9}, {"size_bytes": 0.6, "latency_ms": 1.2}, {"macs": 0.3}):
        bounds = {name: share * least[name] for name, share in shares.items()}
        told = [{"metric": name, "bound": bound} for name, bound in bounds.items()]
        page.evaluate("limits => { state.limits = limits; update(); }", told)
        now = view.under(Budget(*(Limit(name, bound) for name, bound in bounds.items())))
        assert now.best is None
        assert now.nearest is not None
        text = page.locator("#answer").inner_text()
        assert f"The nearest is trial {now.nearest.number}: " in text
        assert "Loosen the budget" in text
        for name, excess in now.nearest.violations.items():
            assert (f"{100 * excess:.1f} % over" in text) == (0 < excess < 1), name
    page.evaluate("state.limits = []; update()")
    assert "The nearest is" not in page.locator("#answer").inner_text()


def test_what_was_measured_is_shown_all_the_same(
    opened: Callable[..., Any], unmet: RunFolder
) -> None:
    page, view = opened(write_report(unmet)), RunView.load(unmet)
    assert view.nearest is not None
    near = view.nearest.number
    shown = page.locator("#trials td:first-child button").all_inner_texts()
    assert {int(x) for x in shown} == {t.number for t in view.compared}
    assert "nearest" in page.locator(f"#trials tr[data-trial='{near}']").inner_text()
    chosen = [page.locator(f"#{side}").input_value() for side in ("first", "second")]
    assert chosen == [str(near), "null"], "the nearest beside the uncompressed model"
    differ = {n for n in view.layer_names if not view.nearest.policy[n].identity}
    assert set(page.locator("#pair td.name").all_inner_texts()) == differ
    assert str(near) in page.locator("#heat tr").first.inner_text().split()
    page.get_by_role("button", name="front (0)").click()
    assert "No trial is within the budget." in page.locator("#more").inner_text()


def test_what_was_not_measured_meets_no_limit(opened: Callable[..., Any], unmet: RunFolder) -> None:
    page = opened(write_report(unmet))
    feasible = """metric => {
        for (const trial of measured) trial[metric] = null;
        state.limits = [{metric, bound: 1e12}];
        update();
        return [front.length, document.getElementById("answer").textContent];
    }"""
    length, text = page.evaluate(feasible, "macs")
    assert length == 0
    assert "which was not measured" in text


def test_layers_that_share_channels_name_each_other(
    opened: Callable[..., Any], run: RunFolder
) -> None:
    facts = {name: {"macs": 1, "group": LAYERS[0]} for name in LAYERS}
    run.write_front({**run.read_front(), "facts": facts})
    page = opened(write_report(run))
    told = {
        row.locator("td").first.inner_text(): row.inner_text()
        for row in page.locator("#heat tr").all()
        if row.locator("td.name").count()
    }
    assert f"{LAYERS[1]} +1" in told[LAYERS[0]]
    for name in LAYERS[1:]:
        assert LAYERS[0] in told[name]


def test_the_uncompressed_models_label_hides_no_trial(
    opened: Callable[..., Any], run: RunFolder
) -> None:
    page = opened(write_report(run))
    boxes = """all => all.map(e => e.getBoundingClientRect()).map(
        b => [b.left, b.right, b.top, b.bottom])"""
    scores = page.evaluate("measured.map(t => t.quality)")
    assert len(scores) > 10
    for score in sorted(scores)[len(scores) // 3 :: 4]:
        page.evaluate("q => { base.quality = q; base.latency_ms = 1e3; update(); }", score)
        page.wait_for_selector("#pareto .annotation-text")
        ((left, right, top, bottom),) = page.eval_on_selector_all("#pareto .annotation-text", boxes)
        marks = page.eval_on_selector_all("#pareto .scatterlayer .point", boxes)
        middles = [((a + b) / 2, (c + d) / 2) for a, b, c, d in marks]
        assert not [at for at in middles if left < at[0] < right and top < at[1] < bottom]
    assert len(marks) > 10


def test_who_leads_a_level_group_is_not_said_to_differ_from_itself(
    opened: Callable[..., Any], run: RunFolder
) -> None:
    page = opened(write_report(run))
    groups = page.evaluate(
        "[...new Set(groups.values())].map(g => [g.leader.number, g.members.map(t => t.number)])"
    )
    said = page.locator("#levels p").all_inner_texts()
    wanted = [(leader, [n for n in group if n != leader]) for leader, group in groups]
    wanted = [(leader, others) for leader, others in wanted if others]
    assert len(said) == len(wanted) > 0
    for text, (leader, others) in zip(said, wanted, strict=True):
        names = f"trials {', '.join(map(str, others))} differ"
        one = f"trial {others[0]} differs"
        assert f"{one if len(others) == 1 else names} from trial {leader} by" in text


def test_what_a_trial_was_not_measured_by_is_told_in_words(run: RunFolder) -> None:
    base = run.read_baseline()
    assert base is not None
    run.write_baseline(replace(base, values={**base.values, "sample_ms": 1.0}))
    run.write_study({**run.read_study(), "budget": ["throughput>=1.1x"]})
    view = RunView.load(run)
    said = " ".join(verdict(view).sentences)
    assert "throughput, which was not measured" in said
    assert view.nearest is not None
    json.dumps(trial_json(view.nearest, view.baseline), allow_nan=False)
    for entry in view.entries:
        told = trial_metrics(entry, view.baseline, view.layer_names)
        assert all(math.isfinite(number) for number in told.values())


@pytest.mark.parametrize("kind", ["REJECTED", "DUPLICATE"])
def test_states_are_explained_where_there_are_any(run: RunFolder, kind: str) -> None:
    word = {"REJECTED": "Rejected ones were", "DUPLICATE": "Duplicates took"}[kind]
    lines = run.trials.read_text().splitlines(keepends=True)
    rejected = [line for line in lines if '"state":"REJECTED"' in line]
    assert rejected
    others = [line for line in lines if line not in rejected]
    run.trials.write_text("".join(others))
    assert word not in write_report(run).read_text()
    some = "".join(rejected).replace("REJECTED", kind)
    run.trials.write_text("".join(others) + some)
    assert word in write_report(run).read_text()
