"""What a run leaves: its answer first, then whatever may still fail."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autocompress.controller.limits import Durations
from autocompress.errors import explained
from autocompress.execute.limit import time_limit
from autocompress.policy.writing import replacing
from autocompress.report.html import write_report
from autocompress.report.tables import write_summary
from autocompress.results.failures import failed_phases
from autocompress.results.metric import objectives
from autocompress.results.trial import Phase
from autocompress.run.model_facts import each_alone, kept_channels, layer_facts, packed_labels
from autocompress.track.view import RunView

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from autocompress.controller.loop import StopReason
    from autocompress.controller.time_budget import TimeBudget
    from autocompress.mlflow.sink import MlflowSink
    from autocompress.run.assembly import Assembly
    from autocompress.track.folder import RunFolder

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass
class EndedRun:
    """A run that came to its end.

    Args:
        folder, view, parts: of the run.
        summary: the ``--json`` object; ``unfinished`` names what could not be written at the end.
        stopped: why the search phase ended.
    """

    folder: RunFolder
    view: RunView
    parts: Assembly
    summary: dict[str, Any]
    stopped: StopReason


def end_run(
    folder: RunFolder,
    parts: Assembly,
    references: dict[str, int],
    mlflow: MlflowSink | None,
    stopped: StopReason,
    budget: TimeBudget,
    losses: Sequence[NDArray[Any]],
    cascade_failed: str = "",
) -> EndedRun:
    """Write summary, recipe, model and report, and close MLflow.

    The trials are safe by now. Whatever fails here is said and costs itself alone.
    """
    from autocompress.run.recipes import write_recipe

    failed = [cascade_failed] if cascade_failed else []
    attempt = partial(_attempt, failed)
    study, view = parts.study, _view(folder, parts, references)
    suffix = parts.evaluator.measurer.target.suffix
    attempt("the answer of an earlier session", lambda: _forget_answer(folder, suffix))
    if view.best is not None:
        best, path = view.best, folder.recipes / "best.yaml"
        attempt("the recipe", lambda: write_recipe(view, folder, best, path))
    model = attempt("the models", lambda: _keep_models(folder, parts, view))
    limit = Durations(view.trials).limit_s(study.search.trial_timeout_s, Phase("verify"))
    test = attempt(
        "the uncompressed model on test", lambda: parts.evaluator.measurer.baseline_test, limit
    )
    if test is not None:
        attempt("the uncompressed model on test", lambda: folder.write_baseline(test, "test"))
        view = _view(folder, parts, references)
    view = replace(view, kept=kept_channels(parts, view))
    facts = attempt("the times of layers", lambda: layer_facts(parts), limit)
    labels = attempt("the classes of samples", lambda: packed_labels(parts), limit)
    before = None if losses else folder.read_front().get("alone")  # nothing was left to search
    alone = before or attempt("layers alone", lambda: each_alone(parts, view, losses), limit)
    told = {"facts": facts or {}, "labels": labels, "alone": alone}
    summary = write_summary(folder, view, model, told)
    summary["stopped"] = stopped
    summary["time"] = budget.as_dict()
    for phase in failed_phases(view.trials):
        _log.warning("%s", phase)
    attempt("the report", lambda: write_report(folder, view))
    if mlflow is not None:
        registered = model if study.tracking.register_best else None
        attempt("MLflow", lambda: mlflow.close(view, registered))
    summary["unfinished"] = failed
    summary["time"] = budget.as_dict()  # the end included
    return EndedRun(folder, view, parts, summary, stopped)


def _view(folder: RunFolder, parts: Assembly, references: dict[str, int]) -> RunView:
    return RunView.load(
        folder,
        reference_policies=references,
        layers=tuple(layer.name for layer in parts.inventory.layers),
        cannot_prune=parts.inventory.cannot_prune,
        budget=parts.study.limits(),
        objectives=objectives(parts.study.search.objectives, parts.evaluator.baseline.metrics),
    )


def _attempt(
    failed: list[str], what: str, work: Callable[[], _T], limit_s: float | None = None
) -> _T | None:
    """Do something that the answer does not depend on; say why where it fails or hangs."""
    try:
        with time_limit(limit_s, lambda: None):
            return work()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's metric may throw, or exit, as in a trial
        failed.append(f"{what}: {explained(error)}")
        _log.warning(
            "The end of the run failed at %s: %s. All trials are kept; `--resume` tries again.",
            what,
            explained(error),
        )
        return None


def _forget_answer(folder: RunFolder, suffix: str) -> None:
    """A run that goes on may have had another answer, or one where it has none now."""
    names = [folder.recipes / "best.yaml", folder.recipes / "best.safetensors"]
    for path in (*names, folder.models / f"best{suffix}"):
        path.unlink(missing_ok=True)


def _keep_models(folder: RunFolder, parts: Assembly, view: RunView) -> Path | None:
    """Give the verified files readable names; the answer's becomes ``best``.

    An interrupted study verified nothing; a recovered answer's own file is still there.
    """
    found = None
    for trial in view.front:
        last = view.verified(trial) or trial
        path = parts.evaluator.model_path(last.policy, last.phase)
        if not path.exists():
            continue
        named = folder.models / f"trial-{trial.number}{path.suffix}"
        _copy(path, named)
        if view.best is not None and trial.number == view.best.number:
            found = folder.models / f"best{path.suffix}"
            _copy(path, found)
    return found


def _copy(path: Path, place: Path) -> None:
    with replacing(place) as new:
        shutil.copyfile(path, new)
