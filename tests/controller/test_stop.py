"""Requests to end that come at a bad moment: while a module is imported."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autocompress.controller import stop
from autocompress.controller.stop import answering, interrupting

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals")

#: as compiled modules do: what stopped them is lost, and they cannot be imported
_SWALLOWS = """
import time
try:
    time.sleep({seconds})
except BaseException:
    raise ImportError("initialization failed") from None
"""


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Shells let processes in the background ignore Ctrl-C, and so would these tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], str]:
    """Write a module that takes a while to import and does not survive an interrupt meanwhile."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(seconds: float) -> str:
        name = f"swallows_{tmp_path.name}"
        (tmp_path / f"{name}.py").write_text(_SWALLOWS.format(seconds=seconds))
        importlib.invalidate_caches()
        return name

    return write


def _ask(after_s: float) -> None:
    threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT)).start()


def _import_and_wait(name: str) -> None:
    importlib.import_module(name)
    time.sleep(30)


def test_a_plain_handler_loses_an_interrupt_in_an_import(module: Callable[[float], str]) -> None:
    """The fault that the one below excludes; where Python mends it, ``interrupting`` can go."""
    name = module(1.0)
    with answering(signal.default_int_handler):
        _ask(0.2)
        with pytest.raises(ImportError):
            importlib.import_module(name)


def test_an_interrupt_waits_for_the_import_that_runs(module: Callable[[float], str]) -> None:
    name = module(1.0)
    with answering(interrupting()):
        _ask(0.2)
        with pytest.raises(KeyboardInterrupt):
            _import_and_wait(name)
    assert name in sys.modules


@pytest.mark.parametrize("asked", [(0.2, 0.6), (0.2,)], ids=["twice", "long"])
def test_no_import_is_waited_for_forever(
    module: Callable[[float], str], monkeypatch: pytest.MonkeyPatch, asked: tuple[float, ...]
) -> None:
    monkeypatch.setattr(stop, "_IMPORTS_S", 60.0 if len(asked) > 1 else 0.3)
    name = module(30.0)  # where nobody interrupts it, it is imported
    with answering(interrupting()):
        for after_s in asked:
            _ask(after_s)
        with pytest.raises(ImportError):
            importlib.import_module(name)


def test_outside_of_imports_it_comes_at_once() -> None:
    with answering(interrupting()):
        _ask(0.2)
        with pytest.raises(KeyboardInterrupt):
            time.sleep(30)
