"""A study whose model and data are objects at hand instead of factories in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import InputError
from autocompress.policy.budget import Budget
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.run.study import GIVEN, StudyConfig, read_study

if TYPE_CHECKING:
    from torch import nn


def given_study(name: str, budget: Budget | str | None, **sections: Any) -> StudyConfig:
    """The study that a call describes, checked like a file.

    Args:
        name: of the study.
        budget: limits; ``None`` has none.
        **sections: of a study file; ``None`` leaves one at its defaults.
    """
    limits = Budget(budget) if isinstance(budget, str) else (budget or Budget())
    given = {
        "name": name,
        "model": {"factory": GIVEN},
        "data": {"factory": GIVEN},
        "budget": [str(limit) for limit in limits.limits],
    }
    said = {k: _plain(v) for k, v in sections.items() if v is not None}
    return read_study(given | said, where="the call")


def _plain(value: Any) -> Any:
    """A section as a study file would hold it."""
    if isinstance(value, SpaceConfig | CompressionSettings):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    return str(value) if isinstance(value, Path) else value


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
