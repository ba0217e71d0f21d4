"""The trials of runs in optuna-dashboard: parameters, constraints, front; from the journals."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from autocompress.controller.shared_trials import listed
from autocompress.errors import InputError
from autocompress.machine.ports import free_port
from autocompress.policy.policy import LayerPolicy
from autocompress.policy.writing import printable
from autocompress.results.trial import Trial, TrialState
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView, natural, value

if TYPE_CHECKING:
    import optuna

_STATES = {
    TrialState.COMPLETE: "COMPLETE",
    TrialState.FAILED: "FAIL",
    TrialState.REJECTED: "PRUNED",
    TrialState.DUPLICATE: "PRUNED",
}
Announce = Callable[[str, Sequence[str], Mapping[str, str]], None]
"""Told the address, the names of the runs shown, and why others were left out."""


def serve(runs: str | Path, announce: Announce, *, host: str, port: int) -> None:
    """Show the runs of a folder in optuna-dashboard until Ctrl-C; nothing is written.

    Args:
        runs: folder of the runs.
        announce: called once the server is up.
        host, port: where to listen; of a taken port the next free one, of 0 any.

    Raises:
        InputError: no such folder, optuna-dashboard is not installed, or nothing can listen there.
    """
    try:
        import optuna_dashboard
    except ImportError:
        raise InputError(
            "optuna-dashboard is not installed: `pip install autocompress[dashboard]`."
        ) from None
    import optuna

    if not Path(runs).is_dir():
        raise InputError(f"There is no folder of runs at {runs}. `autocompress search` makes one.")
    storage = optuna.storages.InMemoryStorage()
    shown, skipped = [], {}
    for folder in RunFolder.all(runs):
        try:
            add_run(storage, RunView.load(folder), printable(folder.name))
            shown.append(folder.name)
        except Exception as error:  # one bad run must not hide the others
            skipped[folder.name] = str(error)
    port = free_port(host, port)
    application = optuna_dashboard.wsgi(storage)
    with warnings.catch_warnings(), make_server(host, port, application, _Server, _Quiet) as server:
        # older dashboards ask for importances in a way that Optuna warns of at every page
        warnings.filterwarnings("ignore", message=r"\w+ computes the importances of params")
        announce(f"http://{host}:{port}", shown, skipped)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def add_run(storage: optuna.storages.BaseStorage, view: RunView, name: str) -> optuna.Study:
    """Make a study of Optuna's out of a run's trials.

    Its parameters are the settings of layers that differ between trials; what was rejected on an
    estimate is shown as pruned.

    Args:
        storage: takes the study.
        view: of the run.
        name: of the study there.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        storage=storage, study_name=name, directions=[m.goal for m in view.objectives]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.set_metric_names([m.name for m in view.objectives])
    settings = [_settings(trial) for trial in view.trials]
    names = sorted({n for each in settings for n in each}, key=natural)
    columns = {n: [each.get(n, _default(n)) for each in settings] for n in names}
    varied = {n: found for n, found in columns.items() if len({*map(str, found)}) > 1}
    spaces = {n: _distribution(found) for n, found in varied.items()}
    for place, trial in enumerate(view.trials):
        params = {n: _as_parameter(found[place], spaces[n]) for n, found in varied.items()}
        study.add_trial(_frozen(view, trial, params, spaces))
    return study


def _settings(trial: Trial) -> dict[str, Any]:
    found = {
        f"{layer}.{field}": number
        for layer, policy in trial.policy.layers.items()
        for field, number in policy.as_dict().items()
    }
    found["distill"] = trial.policy.distill is not None
    found["student"] = trial.policy.student
    return found


def _default(name: str) -> Any:
    return getattr(LayerPolicy(), name.rpartition(".")[2], None)


def _distribution(values: Sequence[Any]) -> optuna.distributions.BaseDistribution:
    import optuna

    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return optuna.distributions.FloatDistribution(min(values), max(values))
    return optuna.distributions.CategoricalDistribution(sorted({str(v) for v in values}))


def _as_parameter(found: Any, space: optuna.distributions.BaseDistribution) -> Any:
    import optuna

    numeric = isinstance(space, optuna.distributions.FloatDistribution)
    return float(found) if numeric else str(found)


def _frozen(
    view: RunView,
    trial: Trial,
    params: Mapping[str, Any],
    spaces: Mapping[str, optuna.distributions.BaseDistribution],
) -> optuna.trial.FrozenTrial:
    import optuna

    found = [value(trial, m.name) for m in view.objectives]
    values = [number for number in found if number is not None]
    state = _STATES[trial.state]
    if state == "COMPLETE" and len(values) < len(found):
        state = "FAIL"
    told = {"trial": trial.number, "phase": trial.phase.kind, "origin": trial.origin or "unknown"}
    told |= {"reason": trial.reason} if trial.reason else {}
    return optuna.trial.create_trial(
        state=optuna.trial.TrialState[state],
        values=values if state == "COMPLETE" else None,
        params=dict(params),
        distributions=dict(spaces),
        user_attrs=told,
        system_attrs=listed(trial.violations),
    )


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Requests are nobody's business."""
