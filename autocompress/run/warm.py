"""Reads what a search takes over from the run that its study names."""

from __future__ import annotations

import logging

from autocompress.controller.warm import WarmStart
from autocompress.errors import InputError
from autocompress.run.variables import resolve_variables
from autocompress.track.folder import RunFolder
from autocompress.track.screened import read_screened
from autocompress.track.view import RunView

_log = logging.getLogger(__name__)


def warm_start(run: str | None, architecture: str) -> WarmStart:
    """The front and the screened policies of an earlier run; nothing where none is named.

    Args:
        run: its folder, or ``None``.
        architecture: fingerprint of the model that is to be searched.

    Raises:
        InputError: no run is there, or its model has another architecture.
    """
    if run is None:
        return WarmStart()
    folder = RunFolder.open(str(resolve_variables(run)))
    view = RunView.load(folder)
    known = (view.baseline.context.get("identity") or {}).get("architecture")
    if known != architecture:
        raise InputError(
            f"`search.warm_from`: the run in {folder.root} is of another architecture (fingerprint "
            f"{known}, this model has {architecture}), whose policies say nothing here. Leave it "
            "out."
        )
    policies = {
        trial.policy.untrained_digest: trial.policy.untrained
        for trial in view.front
        if trial.policy.student is None
    }
    screened = read_screened(folder.screened)
    _log.info(
        "Begins with %d policies of the front in %s, and with what it screened (%d policies).",
        len(policies),
        folder.root,
        len(screened),
    )
    divergences = {policy: found.kl for policy, found in screened.items()}
    return WarmStart(tuple(policies.values()), divergences)
