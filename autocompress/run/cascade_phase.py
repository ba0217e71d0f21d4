"""A cascade as the last phase of a study."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from autocompress.errors import InputError, explained
from autocompress.run.cascading import asked_of, make_cascade
from autocompress.track.view import RunView

if TYPE_CHECKING:
    from autocompress.controller.context import Context
    from autocompress.mlflow.sink import MlflowSink
    from autocompress.run.assembly import Assembly
    from autocompress.track.journal import Journal

_log = logging.getLogger(__name__)


def cascade_phase(
    parts: Assembly, context: Context, journal: Journal, mlflow: MlflowSink | None
) -> str:
    """Let members of the run answer together, if the study asks for it.

    Where none are better, it says so. The answer does not depend on it.

    Returns:
        What failed, in a sentence.
    """
    asked = asked_of(parts.study)
    if asked is None or any(t.phase.kind == "cascade" for t in journal.load()):
        return ""  # or made by an earlier session
    members = sum(t.measurement is not None for t in context.ledger.trials)
    plan = context.time.plan_cascade(members, context.ledger.durations)
    if plan is None:
        return ""
    folder, progress = journal.folder, parts.progress
    try:
        view = RunView.load(folder)
        found, trial = make_cascade(folder, view, parts, asked, progress=progress, plan=plan)
    except InputError as error:
        _log.warning("No cascade was made: %s", error)
        return ""
    except Exception as error:  # of an exporter or a runtime: recipe and report come first
        _log.warning("No cascade was made: %s", explained(error))
        return f"the cascade: {explained(error)}"
    if found["no_gain"]:
        _log.warning("The cascade is of no use. %s", found["no_gain"])
    for sink in (journal, mlflow):
        if sink is not None:
            sink.record(trial)
    return ""
