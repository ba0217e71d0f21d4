"""A Ray of one's own, or one that runs already; here alone Ray is started."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

from autocompress.errors import InputError

_ANSWER_S = 20.0
_log = logging.getLogger(__name__)
_QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def connect(address: str | None) -> bool:
    """Connect to a cluster, or start one on this machine.

    Args:
        address: of a running one. ``None`` starts one that only this process uses, whatever a
            variable or a file of another program says of clusters.

    Returns:
        Whether it was connected here, and is to be shut down by whoever called.

    Raises:
        InputError: nothing answers at the address.
    """
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False
    if address is None:
        ray.init(address="local", **_QUIET)
    else:
        _check_answers(address)
        ray.init(address=address, **_QUIET)
    return True


def _check_answers(address: str) -> None:
    """Connect in a process of its own, for Ray goes on trying for minutes."""
    code = f"import ray; ray.init(address={json.dumps(address)}, **{_QUIET!r})"
    try:
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_ANSWER_S
        )
    except subprocess.TimeoutExpired:
        why = f"nothing answered within {_ANSWER_S:.0f} s"
    else:
        if found.returncode == 0:
            return
        why = (found.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    raise InputError(
        f"No Ray cluster at {address!r}: {why}. Start one (`ray start --head`) and give its "
        "address, or leave --ray-address out for one on this machine."
    )
