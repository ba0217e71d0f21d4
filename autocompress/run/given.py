"""A study whose model and data are objects at hand instead of factories in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.controller.config import SearchConfig, asked
from autocompress.errors import InputError
from autocompress.policy.budget import Budget
from autocompress.policy.recovery import RecoveryConfig
from autocompress.policy.section import Section
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.run.reading import file_part
from autocompress.run.study import GIVEN, StudyConfig, TrackingConfig, load_study, read_study
from autocompress.targets.config import TargetConfig

if TYPE_CHECKING:
    from torch import nn


def given_study(
    name: str, budget: Budget | str | Sequence[str] | None, task: Any = None, **sections: Any
) -> StudyConfig:
    """The study that a call describes, checked like a file.

    Args:
        name: of the study.
        budget: limits; ``None`` has none.
        task: a name or a section; an object belongs to the data, see ``told``.
        **sections: of a study file; ``None`` leaves one at its defaults.

    Raises:
        InputError: anything that a study file could not hold.
    """
    named = task if isinstance(task, str) else dict(task) if isinstance(task, Mapping) else None
    given = {
        "name": name,
        "model": {"factory": GIVEN},
        "data": {"factory": GIVEN, "task": named, **sections.pop("data", {})},
        "budget": _limits(budget),
    }
    said = _said(sections)
    if isinstance(search := said.get("search", {}), Mapping):
        said["search"] = asked(search, timed="timeout_s" in said)
    return read_study(given | said, where="the call")


def changed_study(
    study: Any, budget: Budget | str | Sequence[str] | None, **sections: Any
) -> StudyConfig:
    """A study with what a call says in place of what its file says.

    Args:
        study: name of a shipped one, path of a file, or a mapping as a file holds it.
        budget: limits in place of its own; ``None`` leaves these.
        **sections: laid over those of the study; ``None`` leaves one as it is.

    Raises:
        InputError: no such study, or anything that a study file could not hold.
    """
    if isinstance(study, Mapping):
        config = read_study({"name": "python", **study}, where="the call")
    else:
        config = load_study(as_path(study, "study"))
    said = _said(sections) | ({} if budget is None else {"budget": _limits(budget)})
    if isinstance(search := said.get("search", {}), Mapping) and "timeout_s" in said:
        said["search"] = asked(search, timed=True)
    return config.changed(**said)


def _said(sections: Mapping[str, Any]) -> dict[str, Any]:
    """Sections that were given, as a study file would hold them."""
    return {name: _plain(name, value) for name, value in sections.items() if value is not None}


def _limits(budget: Budget | str | Sequence[str] | None) -> list[str]:
    """Limits as a study file holds them; several may come as a list, as there."""
    if isinstance(budget, list | tuple) and all(isinstance(one, str) for one in budget):
        budget = Budget(*budget)
    if not isinstance(budget, str | Budget | None):
        raise InputError(
            f"`budget` must be a text such as 'latency<=0.5x', a list of these, or a Budget such "
            f"as Budget('latency<=0.5x', 'size<=1MB'), got {budget!r}."
        )
    limits = Budget(budget) if isinstance(budget, str) else (budget or Budget())
    return [str(limit) for limit in limits.limits]


def told(
    data: Any, task: Any = None, reading: Mapping[str, Any] | None = None, *, by_file: bool = True
) -> Any:
    """Data with what was said of them in a call.

    Args:
        data: anything that ``Data.wrap`` takes; not changed.
        task: a name, a section or an object.
        reading: keywords of ``Data.wrap``.
        by_file: whether a study says what a file can say: a task by name, memory, length and axes.

    Raises:
        InputError: there are no data.
    """
    from autocompress.task.data import Data, Described

    if data is None:
        raise InputError("`data` must hold a `train` split, e.g. {'train': loader}, got None.")
    said = dict(reading or {})
    named = task is None or isinstance(task, str | Mapping)
    if named and by_file:
        beside = {k: v for k, v in said.items() if k not in file_part(said)}
        return Described(data, beside) if beside else data
    if task is None:
        return Described(data, said) if said else data
    from autocompress.run.tasks import make_task

    return replace(Data.wrap(data, **said), task=make_task(task))


_TYPED: dict[str, type[Section]] = {
    "target": TargetConfig,
    "space": SpaceConfig,
    "search": SearchConfig,
    "recovery": RecoveryConfig,
    "settings": CompressionSettings,
    "tracking": TrackingConfig,
}
"""The class of each section that a call may hand over."""


def _plain(name: str, value: Any) -> Any:
    """A section as a study file would hold it.

    Raises:
        InputError: it is another section's.
    """
    if isinstance(value, Section):
        if not isinstance(value, _TYPED[name]):
            wanted, found = _TYPED[name].__name__, type(value).__name__
            raise InputError(f"`{name}` must be a mapping or a {wanted}, got a {found}.")
        # of how a search ends, and where it tracks, only what was said counts: a file says no more
        said = value.model_dump(mode="json", exclude_unset=name not in ("space", "settings"))
        return {"runtime": value.runtime, **said} if isinstance(value, TargetConfig) else said
    if isinstance(value, Mapping):
        return dict(value)
    if name == "also_on" and isinstance(value, list | tuple):
        return [_plain("target", one) for one in value]
    return str(value) if isinstance(value, Path) else value


def as_path(given: Any, name: str) -> Path:
    """A path that was given.

    Raises:
        InputError: it is none.
    """
    if isinstance(given, str | Path):
        return Path(given)
    raise InputError(f"`{name}` must be a path, got {given!r:.80}.")


def check_flags(**given: Any) -> dict[str, bool]:
    """Switches that were given, by their names.

    Raises:
        InputError: one is neither true nor false; a text such as ``"no"`` would count as true.
    """
    for name, value in given.items():
        if not isinstance(value, bool):
            raise InputError(f"`{name}` must be True or False, got {value!r:.80}.")
    return given


def as_module(model: nn.Module | str | Path) -> nn.Module:
    """A model as it was given, or read from an ONNX file.

    Raises:
        InputError: neither a module nor the path of an ONNX file.
    """
    from torch import nn

    if isinstance(model, nn.Module):
        return model
    if isinstance(model, str | Path) and Path(model).suffix == ".onnx":
        from autocompress.workloads.onnx_file import onnx_model

        return onnx_model(str(model))
    raise InputError(
        f"A model must be a torch.nn.Module or the path of an .onnx file, got {model!r}. A Hugging "
        "Face or timm model is one; of a wrapper hand over what it wraps."
    )
