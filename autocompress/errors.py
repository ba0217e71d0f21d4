"""Every error that autocompress raises on purpose.

A message names the invariant, where it broke, what was found and what to do. All of them survive
pickling, so that a worker process can hand one to its parent unchanged.
"""

from __future__ import annotations

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


class MeasurementError(AutocompressError):
    """A measurement is missing a value or holds one that is not finite."""


def nearest(name: str, valid: Iterable[str], *, limit: int = 3) -> str:
    """Say which valid names come nearest to ``name``, for the end of an error message."""
    names = sorted({str(v) for v in valid})
    close = get_close_matches(name, names, n=limit, cutoff=0.4)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return f"valid: {shown}" if names else "there is nothing valid to choose from"
