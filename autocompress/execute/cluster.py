"""A Ray of one's own, or one that runs already; here alone Ray is started."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from autocompress.errors import InputError

_ANSWER_S = 20.0
_MARK = "AUTOCOMPRESS_RAY"
_log = logging.getLogger(__name__)
_QUIET = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def connect(address: str | None) -> Callable[[], None]:
    """Connect to a cluster, or start one on this machine.

    Args:
        address: of a running one. ``None`` starts one that only this process uses, whatever a
            variable or a file of another program says of clusters.

    Returns:
        Disconnects, and ends a cluster that was started here; does nothing to a connection that
        was there before. May be called again.

    Raises:
        InputError: nothing answers at the address.
    """
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return lambda: None
    if address is None:
        return _start()
    _check_answers(address)
    with _own_answers():
        ray.init(address=address, **_QUIET)
    return lambda: ray.shutdown()


def _start() -> Callable[[], None]:
    """A cluster of one's own, all of which ends with this process, however that ends."""
    import ray

    mark = f"{_MARK}={uuid.uuid4().hex}"
    guard = subprocess.Popen(
        [sys.executable, "-I", str(Path(__file__).with_name("after_ray.py")), mark],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is not for it
    )
    os.environ[_MARK] = mark.partition("=")[2]
    try:
        with _in_their_own_session(), _own_answers():
            ray.init(address="local", **_QUIET)
    finally:
        del os.environ[_MARK]

    def end() -> None:
        ray.shutdown()
        assert guard.stdin is not None
        guard.stdin.close()

    return end


@contextmanager
def _own_answers() -> Iterator[None]:
    """Keep the study's answers to signals: Ray puts its own in their place, which end it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ends = [s for s in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(s) is not None]
    before = [signal.getsignal(s) for s in ends]
    try:
        yield
    finally:
        for number, handler in zip(ends, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _in_their_own_session() -> Iterator[None]:
    """Start Ray's processes where requests to end that the study's group gets do not reach them.

    Ray has no option for it. Without the class that it starts them by they stay in the group: then
    such a request costs the trials that are being evaluated.
    """
    from ray._private import services

    plain: Any = getattr(services, "ConsolePopen", None)
    if plain is None:
        yield
        return
    services.ConsolePopen = partial(plain, start_new_session=True)
    try:
        yield
    finally:
        services.ConsolePopen = plain


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
