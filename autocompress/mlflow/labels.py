"""What MLflow is told about a run, as plain data: tags, parameters, metrics and tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from math import isfinite
from typing import Any

from autocompress.policy.writing import printable
from autocompress.report.tables import trial_json
from autocompress.report.verdict import verdict
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial
from autocompress.track.journal import Entry
from autocompress.track.view import RunView, latency_ratio, policy_summary

#: MLflow refuses longer ones
_TAG_LIMIT = 4000


def trial_tags(trial: Trial, *, front: bool) -> dict[str, str]:
    """Tags of a child run: what people filter by that is not a number."""
    tags = {
        "state": str(trial.state),
        "phase": trial.phase.kind,
        "origin": trial.origin or "unknown",
        "feasible": str(trial.feasible).lower(),
        "front": str(front).lower(),
        "best": "false",  # known at the end only
        "seed": str(trial.seed),
        "policy": trial.policy.digest,
    }
    context = trial.measurement.context if trial.measurement else {}
    for key in ("problems", "notes"):
        if remarks := context.get(key):
            tags[key] = " ".join(map(str, remarks))[:_TAG_LIMIT]
    if trial.reason:
        tags["reason"] = trial.reason[:_TAG_LIMIT]
    if trial.parent is not None:
        tags["parent_trial"] = str(trial.parent)
    return tags


def trial_params(trial: Trial, layers: Sequence[str]) -> dict[str, str]:
    """Parameters of a child run: a handful that sum the policy up, and nothing else.

    MLflow's page of comparison begins with the first three of the alphabet that differ.
    """
    if trial.phase.kind == "cascade":
        return {"method": "cascade"}
    found = policy_summary(trial.policy, layers)
    return {k: v if isinstance(v, str) else f"{v:.4g}" for k, v in found.items()}


def trial_metrics(entry: Entry, baseline: Measurement, layers: Sequence[str]) -> dict[str, float]:
    """Metrics of a child run; the policy's numbers too, as parameters compare as text only."""
    trial = entry.trial
    found = {"seconds": trial.seconds, "elapsed_s": entry.elapsed_s}
    found["epochs"] = trial.phase.epochs
    found |= {f"violation.{name}": v for name, v in trial.violations.items() if isfinite(v)}
    summary = policy_summary(trial.policy, layers)
    found |= {f"policy.{k}": v for k, v in summary.items() if isinstance(v, float)}
    if trial.measurement is not None:
        found |= trial.measurement.values
        found |= {f"{name}_spread": v for name, v in trial.measurement.spread.items()}
        ratio = latency_ratio(trial.measurement, baseline)
        if ratio is not None:
            found["latency_ratio"] = ratio
    return {name: float(number) for name, number in found.items()}


def answer_metrics(view: RunView) -> dict[str, float]:
    """Metrics of the parent run: those of its answer, for the study's row of a table."""
    found = view.best.measurement if view.best is not None else None
    if found is None:
        return {}
    ratio = latency_ratio(found, view.baseline)
    told = dict(found.values) | ({} if ratio is None else {"latency_ratio": ratio})
    return {name: float(number) for name, number in told.items()}


def study_params(view: RunView) -> dict[str, str]:
    """Parameters of the parent run: what stays the same however often the study is resumed."""
    study = view.study
    found: dict[str, Any] = {
        "study": study.name,
        "objectives": [m.name for m in view.objectives],
    }
    found |= {"model": study.model.factory, "data": study.data.factory}
    found["space"] = study.space if isinstance(study.space, str) else None
    found |= {f"quality.{k}": v for k, v in view.quality.as_dict().items()}
    for name, number in view.baseline.values.items():
        found[f"baseline.{name}"] = f"{number:.6g}"
    return {k: _text(v) for k, v in found.items() if v is not None}


def study_tags(view: RunView) -> dict[str, str]:
    """Tags of the parent run: what a resume may change."""
    judged = verdict(view)
    words = [judged.headline, *(f"- {sentence}" for sentence in judged.sentences)]
    tags = {"mlflow.note.content": "\n".join(words)}
    tags |= {
        "budget": str(view.budget),
        "feasible": str(len(view.front) > 0).lower(),
        "answered": str(view.best is not None).lower(),
    }
    if view.best is not None:
        tags["best_trial"] = str(view.best.number)
    tags |= {f"search.{k}": _text(v) for k, v in view.study.search.said().items() if v is not None}
    return {k: v[:_TAG_LIMIT] for k, v in tags.items()}


def front_rows(view: RunView) -> tuple[list[str], list[list[Any]]]:
    """The front as a table: column names and rows; ``None`` what is not told of a trial."""
    summary = [
        {
            **{k: v for k, v in trial_json(t, view.baseline).items() if k != "policy"},
            **policy_summary(t.policy, view.layer_names),
        }
        for t in view.front
    ]
    # some costs are not told of every trial: a 99th percentile needs many undisturbed calls
    columns = list(dict.fromkeys(name for row in summary for name in row))
    return columns, [[row.get(c) for c in columns] for row in summary]


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table as CSV text."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return stream.getvalue()


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return printable(str(value))
