"""Every error that autocompress raises on purpose.

A message names the invariant, where it broke, what was found and what to do. All of them survive
pickling, so that a worker process can hand one to its parent unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches


class AutocompressError(Exception):
    """Base class: the command line prints it without a traceback."""

    exit_code = 1


class InputError(AutocompressError):
    """What the user gave cannot be used: a study, a pattern, a folder, a recipe. Exit code 2."""

    exit_code = 2


class InfeasibleBudget(InputError):
    """No policy of the space can meet the budget, known before any compute was spent."""


class NoAnswer(InputError):
    """A run found no policy that meets what was asked: no mistake of the input. Exit code 1."""

    exit_code = 1


class Interrupted(AutocompressError):
    """Ended from outside, by Ctrl-C or a signal. Exit code 130."""

    exit_code = 130


class UnsupportedModel(InputError):
    """The model, or one of its layers, cannot be handled by the asked technique."""


class PolicyError(AutocompressError):
    """A policy asks a layer for something that it cannot do; the trial fails, the study goes on."""


class CalibrationError(AutocompressError):
    """Calibration inputs are empty, not finite, or of the wrong shape."""


class TrainingDiverged(AutocompressError):
    """Loss or weights became NaN or infinite during fine-tuning."""


class ExportError(AutocompressError):
    """The exported file does not do what the compressed model does."""


class TargetUnavailable(InputError):
    """The asked runtime, device or provider is not present on this machine."""


class DeviceLost(AutocompressError):
    """A device that was there cannot be reached any more, however long one waited for it."""


class DeviceChanged(DeviceLost, TargetUnavailable):
    """Where a device was, another one answers: times of the two cannot stand side by side."""


class MeasurementError(AutocompressError):
    """A measurement is missing a value or holds one that is not finite."""


def close_to(name: str, valid: Iterable[str], *, limit: int = 3) -> str:
    """Ask whether a valid name like ``name`` was meant; nothing where there is none like it."""
    close = get_close_matches(name, sorted({str(v) for v in valid}), n=limit, cutoff=0.4)
    return "did you mean " + " or ".join(repr(c) for c in close) + "?" if close else ""


def nearest(name: str, valid: Iterable[str], *, limit: int = 3) -> str:
    """Say which valid names come nearest to ``name``, for the end of an error message."""
    names = sorted({str(v) for v in valid})
    if close := close_to(name, names, limit=limit):
        return close
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"valid: {shown}" if names else "there is nothing valid to choose from"


_PLAIN: tuple[tuple[type[BaseException], str], ...] = (
    (KeyError, "a name is looked up that is not there"),
    (IndexError, "an index lies outside of what is there"),
    (AttributeError, "something is asked for that the object does not have"),
    (NotImplementedError, "an operation that is needed is not implemented"),
    (RecursionError, "calls are nested without an end"),
    (ImportError, "a module cannot be imported"),
    (MemoryError, "the memory does not suffice"),
    (ZeroDivisionError, "a number is divided by zero"),
    (AssertionError, "the code's own check fails"),
    (TimeoutError, "it takes too long"),
    (OSError, "the system refuses a file or a connection"),
    (SyntaxError, "the code is no valid Python"),
    (TypeError, "a function is given what it does not take"),
)
_SIZES = re.compile(
    r"\b(sizes?|shapes?|dimensions?|channels|split_sizes|broadcast\w*)\b", re.IGNORECASE
)
_TYPES = re.compile(r"\b(dtypes?|scalar types?|data types?|input type)\b", re.I)
_LONGEST = 300


def explained(error: BaseException) -> str:
    """What happened, in plain words first, then the exception's own first line in parentheses.

    Ours are sentences already and stay as they are. The rule for every reason that is told of an
    exception which others raised: torch, exporters, runtimes, a user's code.

    >>> explained(KeyError("width"))
    "a name is looked up that is not there (KeyError: 'width')"
    >>> explained(RuntimeError("The size of tensor a (3) must match that of tensor b (4)"))[:30]
    'sizes do not fit each other (R'
    """
    if isinstance(error, AutocompressError):
        return str(error)
    lines = str(error).strip().splitlines()
    own = type(error).__name__ + (f": {lines[0].rstrip('.')[:_LONGEST]}" if lines else "")
    words = next((said for kind, said in _PLAIN if isinstance(error, kind)), "")
    if not words and "OutOfMemory" in type(error).__name__:
        words = "the memory does not suffice"
    elif not words and lines and _TYPES.search(lines[0]):
        words = "number types do not fit each other"
    elif not words and lines and _SIZES.search(lines[0]):
        words = "sizes do not fit each other"
    return f"{words or 'its code stops with an error'} ({own})"
