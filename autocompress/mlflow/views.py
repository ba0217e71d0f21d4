"""Saved views of MLflow's page of runs: what is filtered, sorted and drawn when one is opened.

A view is a tag of the experiment, which MLflow's interface reads; versions that do not know it show
a tag more and nothing else. A view that somebody changed or deleted is theirs from then on.
"""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from autocompress.results.metric import Metric

if TYPE_CHECKING:
    from mlflow import MlflowClient


KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Opens an experiment's page of runs rather than that of traces, where a version heeds it."""
VIEWS = ("front", "trials", "charts")
_PLACE = "mlflow.sharedViewState."
_WRITTEN = "autocompress.views"
"""The tag that holds digests of the views as they were written last."""
_LONGEST = 4500
"""Databases of MLflow's hold 5,000 characters for a tag of an experiment."""
_OURS, _REST = "autocompress", "autocompress-rest"


def key(view: str) -> str:
    """Under what a view is saved, and opened by ``viewStateShareKey``."""
    return f"autocompress-{view}"


def prepare(client: MlflowClient, experiment_id: str, objectives: Sequence[Metric]) -> None:
    """Let the interface open an experiment on what one wants to see first; repeating adds nothing.

    Args:
        client: of the store.
        experiment_id: as MLflow numbers it.
        objectives: quality first.
    """
    found = client.get_experiment(experiment_id)
    for name, text in tags(found.tags, objectives, found.creation_time or 0).items():
        client.set_experiment_tag(experiment_id, name, text)


def tags(known: Mapping[str, str], objectives: Sequence[Metric], created_ms: int) -> dict[str, str]:
    """Tags of the experiment that are missing or have become old.

    Args:
        known: its tags.
        objectives: quality first.
        created_ms: when the experiment was made, in milliseconds since 1970.
    """
    written = _written(known)
    wanted = {k: v for k, v in KIND.items() if k not in known}
    for view, (name, state) in _states(objectives).items():
        place = _PLACE + key(view)
        text = _envelope(name, state, created_ms)
        theirs = view in written and _digest(known.get(place, "")) != written[view]
        if not theirs and known.get(place) != text:
            wanted[place] = text
            written[view] = _digest(text)
    if any(place.startswith(_PLACE) for place in wanted):
        wanted[_WRITTEN] = json.dumps(written, sort_keys=True)
    return wanted


def _written(known: Mapping[str, str]) -> dict[str, str]:
    """Digests of the views as they were written last.

    Where somebody changed that tag, too, whose a view is cannot be told, and it stays as it is.
    """
    with suppress(ValueError, RecursionError):
        found = json.loads(known.get(_WRITTEN, "{}"))
        if isinstance(found, dict):
            return found
    return {view: "" for view in VIEWS if _PLACE + key(view) in known}


def _states(objectives: Sequence[Metric]) -> dict[str, tuple[str, dict[str, Any]]]:
    quality, cost = objectives[0].name, objectives[-1].name
    figures = [_metric(n) for n in dict.fromkeys((quality, cost, "latency_ratio", "size_bytes"))]
    front = {
        "searchFilter": "tags.front = 'true'",
        "orderByKey": _metric(cost),
        "orderByAsc": True,
        "selectedColumns": [*figures, "params.`method`", "tags.`best`", "tags.`phase`"],
    }
    # a window shows about six columns, and figures stand before tags
    told = ("phase", "origin", "feasible", "reason")
    # sorted by a figure: by date MLflow would fold all trials into the study's row
    trials = {
        "searchFilter": "tags.state != ''",
        "orderByKey": _metric("elapsed_s"),
        "orderByAsc": False,
        "selectedColumns": [*figures[:2], *(f"tags.`{name}`" for name in told)],
    }
    charts = {
        # those of the phase verify are scored on test, and would stand above the front on val
        "searchFilter": "tags.state = 'COMPLETE' and tags.phase != 'verify'",
        # a page has 100 runs: the front's first ("true" stands after "false"), then the latest
        "orderByKey": "tags.`front`",
        "orderByAsc": False,
        "selectedColumns": figures,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": _charts(quality, cost),
        "compareRunSections": [
            _section(_OURS, "Trials", display=True),
            # MLflow draws every other metric by itself: folded away
            _section(_REST, "Model metrics", display=False),
        ],
    }
    return {
        "front": ("Front", front),
        "trials": ("All trials", trials),
        "charts": ("Charts", charts),
    }


def _charts(quality: str, cost: str) -> list[dict[str, Any]]:
    telling = ["policy.mean_prune_ratio", "policy.mean_weight_bits", "policy.factorized_share"]
    return [
        _chart("scatter", "SCATTER", xaxis=_axis(cost), yaxis=_axis(quality)),
        _chart(
            "parallel",
            "PARALLEL",
            selectedParams=[],
            selectedMetrics=[*telling, cost, quality],
            showAllRuns=True,
        ),
        _chart("growth", "SCATTER", xaxis=_axis("elapsed_s"), yaxis=_axis("hypervolume")),
    ]


def _chart(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {
        "uuid": key(name),
        "type": kind,
        "metricSectionId": _OURS,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 100,
        **settings,
    }


def _section(identity: str, name: str, *, display: bool) -> dict[str, Any]:
    shown = {"display": display, "isReordered": False, "deleted": False, "columns": 2}
    return {"uuid": identity, "name": name, "isGenerated": not display, **shown}


def _axis(name: str) -> dict[str, str]:
    return {"key": name, "type": "METRIC"}


def _metric(name: str) -> str:
    return f"metrics.`{name}`"


def _envelope(name: str, state: Mapping[str, Any], created_ms: int) -> str:
    def enclosed(text: str) -> str:
        held = {"name": name, "createdAt": created_ms, "updatedAt": created_ms, "state": text}
        return json.dumps(held)

    plain = json.dumps(state)
    whole = enclosed(plain)
    if len(whole) <= _LONGEST:
        return whole
    return enclosed("deflate;" + base64.b64encode(zlib.compress(plain.encode(), 9)).decode())


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
