"""The report of a run: one HTML file that opens anywhere, without a network."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from shlex import quote
from typing import Any

from autocompress.policy.claims import TimingClaim, TimingFacts
from autocompress.policy.costs import EXTRA, CostMetric
from autocompress.report.cascades import answered_shares, asked_text, cascades, on_test
from autocompress.report.course import course, screening
from autocompress.report.library import drawing_library
from autocompress.report.review import review
from autocompress.report.tables import (
    BUILDS_DIFFER,
    elsewhere,
    number_text,
    quality_text,
    what,
    where,
)
from autocompress.report.verdict import verdict
from autocompress.results.difference import Difference, difference
from autocompress.results.failures import reasons
from autocompress.results.metric import Measurement, Metric
from autocompress.results.rank import rank_correlation
from autocompress.results.screened import Screened
from autocompress.results.trial import Trial, TrialState
from autocompress.track.folder import RunFolder, write_atomically
from autocompress.track.screened import read_screened
from autocompress.track.view import RunView, score, value

_SCRIPTS = (
    *("base.js", "front.js", "sketch.js", "table.js", "layers.js", "study.js", "samples.js"),
    "start.js",
)


def write_report(
    run: str | Path | RunFolder, view: RunView | None = None, place: Path | None = None
) -> Path:
    """Write ``report.html`` into a run's folder.

    Args:
        run: the folder; also of a run that is still going on, or was stopped.
        view: of the run, where it was read before.
        place: of the file, where it is another.

    Returns:
        The file.
    """
    folder = run if isinstance(run, RunFolder) else RunFolder.open(run)
    view = view or RunView.load(folder)
    page = render(view, read_screened(folder.screened), folder.read_front())
    place = place or folder.report
    place.parent.mkdir(exist_ok=True)
    write_atomically(place, page)
    return place


def render(
    view: RunView,
    screened: Mapping[str, Screened] | None = None,
    summary: Mapping[str, Any] | None = None,
) -> str:
    """The report as HTML.

    Args:
        view: of the run.
        screened: what it looked at quickly, by the digest of the policy.
        summary: what ``front.json`` tells of layers (``facts``) and val samples (``labels``).
    """
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_part("report.html.j2"))
    answer = view.best or view.nearest
    screened, summary = screened or {}, summary or {}
    data = {**review(view, screened, summary), "course": course(view)}
    return template.render(
        title=str(view.study.name or Path(view.run).name or "study") + where(view),
        run=view.run,
        quality=view.quality,
        unit=f" {view.quality.unit}" if not view.quality.fraction else " %",
        useless=_useless(view.quality, view.baseline),
        verdict=verdict(view),
        facts=_facts(view),
        cannot_prune=view.cannot_prune,
        cascades=[_cascade(view, t) for t in cascades(view)],
        tested=any(view.verified(t) for t in (*view.front, *([answer] if answer else []))),
        beside=_beside(view),
        builds_differ=BUILDS_DIFFER if view.builds_differ else "",
        extras=[cost.word.replace("_", " ") for cost in _extras(view)],
        pairs=distillation_pairs(view),
        rungs=_rungs(view),
        forecasts=rung_forecasts(view),
        latency=_latency(view, answer),
        duration=_duration,
        screening=screening(view, screened),
        states=_states(view),
        commands=_commands(view),
        sampled=data["baseline"]["hits"] is not None,
        layered=bool(data["techniques"]),
        sensitive=any("sensitivity" in found for found in data["facts"].values()),
        expected=bool(data["course"]["expected"]),
        spent=bool(data["course"]["spent"]),
        has_growth=view.hypervolume > 0,
        thinned=_thinned(view, data),
        css=_part("report.css"),
        data=_embedded(data),
        library=drawing_library(),
        scripts=[*map(_part, _SCRIPTS)],
    )


def _part(name: str) -> str:
    """A file of the page."""
    source = resources.files("autocompress.report") / "page" / name
    return source.read_text(encoding="utf-8")


def _embedded(data: Mapping[str, Any]) -> str:
    """Data for the page's own script; what would end its element is escaped."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _thinned(view: RunView, data: Mapping[str, Any]) -> str:
    """That the page does not hold every trial, where it does not."""
    held = sum(not rejected for rejected in data["trials"].get("rejected", ()))
    every = len(view.compared)
    return "" if held == every else f"Of {every} measured trials the page holds {held}."


@dataclass(frozen=True, slots=True)
class Pair:
    """One policy, trained with and without a teacher, everything else equal.

    Args:
        without, with_teacher: the two trials.
        gain: quality with the teacher less that without.
    """

    without: Trial
    with_teacher: Trial
    gain: Difference

    @property
    def reading(self) -> str:
        """What the teacher did, where noise does not hide it."""
        if abs(self.gain.gain) <= 1.96 * self.gain.stderr:
            return "not told apart from noise"
        return "it helped" if self.gain.gain > 0 else "it hurt"


def distillation_pairs(view: RunView) -> list[Pair]:
    """Recovered trials that differ in distillation alone."""
    plain: dict[tuple[str, float, int, int], Trial] = {}
    guided: dict[tuple[str, float, int, int], Trial] = {}
    for trial in view.compared:
        if trial.phase.kind == "recover":
            phase = trial.phase
            digest = trial.policy.untrained_digest
            key = (digest, phase.epochs, phase.rung, trial.seed)
            (guided if trial.policy.distill else plain)[key] = trial
    pairs = []
    for key in plain.keys() & guided.keys():
        a, b = plain[key], guided[key]
        assert a.measurement is not None
        assert b.measurement is not None
        pairs.append(Pair(a, b, difference(b.measurement, a.measurement)))
    return sorted(pairs, key=lambda pair: pair.without.number)


def _facts(view: RunView) -> list[tuple[str, str]]:
    """The line of figures under the headline."""
    counts = Counter(t.state for t in view.trials)
    found = [("budget", str(view.budget)), ("time in trials", _duration(view.seconds))]
    found.append(("trials", f"{counts[TrialState.COMPLETE]} complete of {len(view.trials)}"))
    found.append(("front", f"{len(view.front)} policies"))
    found.append(("hypervolume", f"{view.hypervolume:.4g}"))
    return found


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _useless(quality: Metric, baseline: Measurement) -> str:
    """The first coordinate of the hypervolume's reference, in words."""
    if quality.fraction and quality.margin is None:
        side = "under" if quality.goal == "maximize" else "over"
        return f"ten points {side} the uncompressed {quality.name}"
    return f"{quality.name} {quality.text(quality.useless(baseline.score))}"


def _extras(view: RunView) -> list[CostMetric]:
    """Costs that not every study measures, of those that this one did."""
    return [cost for cost in EXTRA if cost.name in view.baseline]


def _row(view: RunView, trial: Trial) -> dict[str, Any]:
    check = view.verified(trial)
    ratio = view.ratio(trial)
    return {
        "number": trial.number,
        "mark": "chosen" if view.best is not None and view.best.number == trial.number else "",
        "quality": quality_text(trial.measurement),
        "test": quality_text(check.measurement) if check else "-",
        "latency": number_text("latency_ms", value(trial, "latency_ms")),
        "ratio": "-" if ratio is None else f"{ratio:.2f}",
        "macs": number_text("macs", value(trial, "macs")),
        "size": number_text("size_bytes", value(trial, "size_bytes")),
        "extras": [number_text(c.name, value(check or trial, c.name)) for c in _extras(view)],
        "what": what(trial, view),
        "feasible": trial.feasible,
    }


def _cascade(view: RunView, trial: Trial) -> dict[str, Any]:
    """Members that answer together, beside the single ones of the front."""
    test = on_test(trial)
    told = {"test": "-" if test is None else quality_text(test), "asked": asked_text(trial)}
    return {**_row(view, trial), **told, "shares": answered_shares(trial)}


def _beside(view: RunView) -> list[dict[str, Any]]:
    """Rows that set the answer beside the uncompressed model and the reference policies."""
    base, test = view.baseline, view.test_baseline
    rows: list[dict[str, Any]] = [
        {
            "name": "uncompressed",
            "quality": quality_text(base),
            "test": quality_text(test) if test else "-",
            "latency": number_text("latency_ms", base.get("latency_ms")),
            "ratio": "1.00",
            "macs": number_text("macs", base.get("macs")),
            "size": number_text("size_bytes", base.get("size_bytes")),
            "extras": [number_text(c.name, base.get(c.name)) for c in _extras(view)],
            "what": "unchanged",
            "feasible": view.baseline_within,
        }
    ]
    rows += [{**_row(view, t), "name": name} for name, t in view.reference_trials.items()]
    answer = view.best or view.nearest
    if answer is not None:
        mark = "chosen" if view.best is not None else "nearest"
        rows.append({**_row(view, answer), "name": mark, "mark": mark})
    return rows


def _rungs(view: RunView) -> list[dict[str, Any]]:
    """Every recovered trial beside the trial that it started from."""
    rows = []
    for trial in view.compared:
        if trial.phase.kind != "recover":
            continue
        before = view.by_number.get(trial.parent) if trial.parent is not None else None
        start, end = score(before), score(trial)
        shown = view.quality.shown
        gain = None if start is None or end is None else view.quality.gap(shown(end - start))
        rows.append(
            {
                "number": trial.number,
                "rung": trial.phase.rung,
                "epochs": f"{trial.phase.epochs:g}",
                "parent": trial.parent,
                "before": quality_text(before.measurement if before else None),
                "after": quality_text(trial.measurement),
                "gain": gain or "-",
                "distilled": trial.policy.distill is not None,
                "feasible": trial.feasible,
            }
        )
    return rows


def rung_forecasts(view: RunView) -> list[tuple[int, float, int]]:
    """Per rung: its number, the rank correlation of untrained and trained quality, the pairs."""
    pairs: dict[int, list[tuple[float, float]]] = {}
    for trial in view.compared:
        before = view.by_number.get(trial.parent) if trial.parent is not None else None
        if trial.phase.kind != "recover" or trial.phase.epochs <= 0 or before is None:
            continue
        start, end = score(before), score(trial)
        if start is not None and end is not None:
            pairs.setdefault(trial.phase.rung, []).append((start, end))
    found = ((rung, rank_correlation(both), len(both)) for rung, both in sorted(pairs.items()))
    return [(rung, rho, count) for rung, rho, count in found if rho is not None]


def _latency(view: RunView, answer: Trial | None) -> dict[str, Any]:
    """How far the milliseconds can be trusted."""
    compared = [(t.number, t.measurement) for t in view.compared if t.measurement is not None]
    timed = [(number, found.timing) for number, found in compared if found.timing != TimingClaim()]
    noisy = [number for number, timing in timed if timing.noisy]
    disturbed = [number for number, timing in timed if timing.disturbed]
    found: dict[str, Any] = {"timed": len(timed), "noisy": noisy, "disturbed": disturbed}
    found |= {"rows": [], "remarks": []}
    if answer is None or answer.measurement is None:
        return found
    timing, rows = answer.measurement.timing, found["rows"]
    ratio, low, high = timing.ratio, timing.ratio_low, timing.ratio_high
    if ratio is not None and low is not None and high is not None:
        share = timing.confidence
        label = "interval" if share is None else f"{share:.0%} interval"
        text = f"{ratio:.3f} ({label} {low:.3f} to {high:.3f})"
        rows.append(("share of the uncompressed latency", text))
    for text, median, iqr in (
        (f"trial {answer.number}, median and IQR", timing.latency_ms, timing.iqr_ms),
        ("uncompressed, in the same rounds", timing.baseline_ms, timing.baseline_iqr_ms),
    ):
        if median is not None and iqr is not None:
            rows.append((text, f"{median:.4g} ms, IQR {iqr:.2g} ms"))
    if timing.rounds is not None:
        rows.append(("interleaved rounds", str(timing.rounds)))
    facts = timing.facts or TimingFacts()
    target = facts.target or answer.measurement.context.get("target") or {}
    rows += [("target", _pairs(target))] if target else []
    others = enumerate(answer.measurement.context.get("also_on") or (), 2)
    rows += [(f"target {i}, of latency_{i}", _pairs(other)) for i, other in others]
    rows += [("machine", _pairs(facts.machine))] if facts.machine else []
    if facts.load_before is not None:
        rows.append(("load average before", f"{facts.load_before:.2f}"))
    for key in ("problems", "notes"):
        found["remarks"] += [str(r) for r in answer.measurement.context.get(key) or ()]
    return found


def _pairs(facts: Mapping[str, Any]) -> str:
    """Facts in one line."""
    shown: dict[str, Any] = {
        k: ", ".join(map(str, v)) if isinstance(v, list | tuple) else v
        for k, v in facts.items()
        if v is not None
    }
    if "memory_bytes" in shown:
        shown["memory"] = f"{shown.pop('memory_bytes') / 2**30:.0f} GiB"
    return "; ".join(f"{k.replace('_', ' ')} {v}" for k, v in shown.items())


_MEANING = {
    "rejected": "Rejected ones were over the budget by their estimate and cost no training.",
    "duplicate": "Duplicates took the result of an earlier trial.",
}
"""Of states that do not explain themselves."""


def _states(view: RunView) -> dict[str, Any]:
    """How the trials ended, and what went wrong."""
    counts = Counter(str(t.state).lower() for t in view.trials)
    why = reasons(view.trials)[:8]
    return {"counts": counts.most_common(), "meaning": _MEANING, "reasons": why}


def _commands(view: RunView) -> list[tuple[str, str]]:
    run = view.run or "runs/NAME"
    if there := elsewhere(view):
        again = shlex.join(["autocompress", "front", run, *there, "--open"])
        return [("This page again, and what is measured since", again)]
    found = [
        (
            "Run the same study again",
            f"autocompress search {quote(f'{run}/study.yaml')} --out {quote(f'{run}-again')}",
        ),
        (
            "Go on searching",
            f"autocompress search {quote(f'{run}/study.yaml')} --out {quote(run)} --resume",
        ),
    ]
    found.append(("Look at every trial", f"autocompress ui {quote(str(Path(run).parent))}"))
    return found
