"""The form of the files of a run, as far as anyone relies on it; they may hold more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field

from autocompress.errors import InputError
from autocompress.policy.budget import Budget
from autocompress.policy.claims import Count, Flag, Number, Packed, Points
from autocompress.policy.section import STRICT, Section


class _Open(Section):
    model_config = ConfigDict({**STRICT, "extra": "ignore"})


T = TypeVar("T")
_OrNothing = Annotated[T, BeforeValidator(lambda data: {} if data is None else data)]
"""A section, or a key with nothing behind it."""


class SearchForm(_Open):
    """How policies were found; all that was said of it is kept."""

    model_config = ConfigDict({**STRICT, "extra": "allow"})

    objectives: tuple[str, ...] | None = None
    sampler: str | None = None

    def said(self) -> dict[str, Any]:
        """Everything that the file says of the search."""
        return self.model_dump(exclude_unset=True)


class FactoryForm(_Open):
    """A model, or data, by what makes them."""

    factory: str | None = None


class TrackingForm(_Open):
    """Where trials were shown."""

    uri: str | None = None
    experiment: str | None = None
    register_best: Flag = True


class StudyForm(_Open):
    """What is read of ``study.yaml`` without assembling the study; early versions say less."""

    name: str | None = None
    model: _OrNothing[FactoryForm] = FactoryForm()
    data: _OrNothing[FactoryForm] = FactoryForm()
    target: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    space: str | dict[str, Any] | None = None
    budget: tuple[str, ...] | str | None = None
    max_accuracy_drop: Points | None = None
    max_quality_drop: str | Number | None = None
    search: _OrNothing[SearchForm] = SearchForm()
    tracking: _OrNothing[TrackingForm] = TrackingForm()


class _TrialForm(_Open):
    number: Count


class _KeptForm(_Open):
    number: Count
    layers: dict[str, tuple[Count, Annotated[Count, Field(gt=0)]]]


class LayerFacts(_Open):
    """What is known of a layer of the uncompressed model; times are in ms."""

    macs: Number | None = None
    ms: Number | None = None
    group: str | None = None


class AloneForm(_Open):
    """What each layer's change costs by itself; see ``model_facts.each_alone``."""

    layers: tuple[str, ...]
    table: tuple[tuple[float, float | None], ...]
    trials: dict[str, tuple[int, ...]]


class SummaryForm(_Open):
    """What is read of ``front.json``."""

    model: str | None = None
    budget: tuple[str, ...] | str | None = None
    objectives: tuple[str, ...] | None = None
    baselines: dict[str, Count | _TrialForm] | None = None
    layers: tuple[str, ...] | None = None
    cannot_prune: str | None = None
    kept: tuple[_KeptForm, ...] | None = None
    facts: dict[str, LayerFacts] | None = None
    labels: Packed | None = None
    alone: AloneForm | None = None


class PooledForm(_Open):
    """The answer of a federated run beside the same policy on pooled samples."""

    trial: Count
    split: str
    federated: Number
    pooled: Number


class FederatedForm(_Open):
    """What is read of ``federated.json``."""

    pooled: PooledForm | None = None


FORMAT = 1
"""Of a run's files. A version that writes what this one would misread counts further."""


class NewerFormat(InputError):
    """A newer version wrote this."""


def check_format(found: Any, what: str) -> None:
    """Refuse what a newer version wrote, which only looks damaged from here.

    Args:
        found: ``format`` as it was read; files of early versions have none.
        what: the file, or its line.

    Raises:
        NewerFormat: it is.
    """
    if isinstance(found, int) and not isinstance(found, bool) and found > FORMAT:
        raise NewerFormat(
            f"{what} was written by a newer version of autocompress (format {found}, this version "
            f"reads {FORMAT}). Install that version; the run stays as it is."
        )


class IdentityForm(_Open):
    """What ``run.json`` holds; early versions do not say for which folder it was made."""

    id: str
    format: int = FORMAT
    folder: str | None = None


class TimesForm(Section):
    """The times of a line of the journal."""

    elapsed_s: Annotated[Number, Field(ge=0)] = 0.0
    finished: str = ""


def read_budget(limits: str | Sequence[str], path: Path) -> Budget:
    """The budget that a file of the run holds.

    Raises:
        InputError: it is none; the file is named.
    """
    try:
        return Budget.parse([limits] if isinstance(limits, str) else limits)
    except InputError as error:
        raise InputError(f"{path}: `budget`: {error}") from None


def trial_numbers(entries: Mapping[str, Any]) -> dict[str, int]:
    """Trial numbers from either form: a number, or a trial as ``--json`` prints it."""
    found = {}
    for name, entry in entries.items():
        number = entry.get("number") if isinstance(entry, Mapping) else entry
        if isinstance(number, int):
            found[name] = number
    return found


def kept_channels(
    entries: Sequence[Mapping[str, Any]],
) -> dict[int, Mapping[str, tuple[int, int]]]:
    """Per trial number and layer, the channels that it keeps and those that it had."""
    return {
        entry["number"]: {name: (left, whole) for name, (left, whole) in entry["layers"].items()}
        for entry in entries
    }
