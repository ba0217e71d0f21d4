"""A study file: which model, data, target, space and budget, and how to search and recover.

Reading a study loads no heavy library. A name without a path or suffix means a shipped study or
search space; ``${NAME}`` in any text stands for an environment variable.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autocompress.errors import InputError, nearest
from autocompress.policy.budget import Budget
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig

GIVEN = "given-in-python"
"""Stands for a model or data that were handed over as objects, not by a factory."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

#: what a missing variable should hold, for the error message
_VARIABLES = {
    "AUTOCOMPRESS_DATA": "the folder with the data sets (for the shipped studies: one that holds "
    "`cifar10/{train,val,test}/CLASS/*.jpg` or `cifar10.tar.xz`)",
    "AUTOCOMPRESS_WEIGHTS": "the folder with the trained checkpoints",
    "IMAGENET": "the ImageNet folder, with `train` and `val`",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSection(_Section):
    """The trained model.

    Args:
        factory: ``package.module:function`` that returns an ``nn.Module``.
        args: keyword arguments of the factory.
        checkpoint: safetensors or torch state dict, or ``None`` to take the factory's weights.
    """

    factory: str
    args: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None


class DataSection(_Section):
    """The data: ``factory`` returns an ``autocompress.Data`` or anything with the three splits."""

    factory: str
    args: dict[str, Any] = Field(default_factory=dict)


class BaselineSection(_Section):
    """Train the model on the spot before anything else; the weights are cached.

    Args:
        schedule: as in ``recovery.schedule``.
        patience: stop when this many epochs brought no better validation accuracy; ``None``
            trains to the schedule's end.
        min_delta: a gain no larger than this does not count as better for ``patience``; in the
            metric's unit (0.004: 0.4 points of accuracy).
        max_rounds: with ``patience``, train the schedule at most so many times.
    """

    schedule: dict[str, Any] = Field(default_factory=dict)
    patience: int | None = None
    min_delta: float = Field(0.0, ge=0)
    max_rounds: int | None = Field(None, ge=1)


class RecoverySection(_Section):
    """How the best policies win accuracy back.

    Args:
        epochs: of the first rung; 0 skips recovery.
        schedule: fields of ``recover.schedule.Schedule`` (epochs aside).
        qat: train quantized policies through fake quantization.
        distillation: fields of ``recover.distill.DistillationConfig``: temperature, weight,
            features, teachers; says how policies with distillation on are trained.
        rungs, candidates, compare_distillation: see ``search.config.RecoveryPlan``.
    """

    epochs: float = Field(0.0, ge=0)
    rungs: int = Field(1, ge=1, le=6)
    candidates: int = Field(3, ge=1)
    compare_distillation: bool = True
    qat: bool = True
    schedule: dict[str, Any] = Field(default_factory=dict)
    distillation: dict[str, Any] = Field(default_factory=dict)


class TrackingSection(_Section):
    """Where trials are shown.

    Args:
        mlflow: log to MLflow.
        uri: tracking store; ``None`` is an SQLite file beside the runs.
        experiment: name; ``None`` is the study's.
        register_best: register the best model's ONNX file in the model registry.
    """

    mlflow: bool = True
    uri: str | None = None
    experiment: str | None = None
    register_best: bool = True


class StudyConfig(_Section):
    """A whole study, resolved; an unknown key is an error that names the nearest valid one."""

    name: str
    model: ModelSection
    data: DataSection
    baseline: BaselineSection | None = None
    target: dict[str, Any] = Field(default_factory=dict)
    space: str | dict[str, Any] = "joint"
    settings: CompressionSettings = CompressionSettings()
    budget: tuple[str, ...] = ()
    max_accuracy_drop: float | None = Field(
        None, gt=0, le=100, description="in points; limits the answer, not the search"
    )
    search: dict[str, Any] = Field(default_factory=dict)
    recovery: RecoverySection = RecoverySection()
    tracking: TrackingSection = TrackingSection()
    executor: Literal["local", "ray"] = "local"
    workers: int = Field(1, ge=1)
    ray_address: str | None = None

    def limits(self) -> Budget:
        """The budget as a value."""
        return Budget.parse(self.budget)

    def space_config(self) -> SpaceConfig:
        """The search space, by name, path or inline."""
        if isinstance(self.space, str):
            return SpaceConfig.load(find_file(self.space, "search_spaces"))
        return SpaceConfig.read(self.space, where="`space` of the study")

    def changed(self, **changes: Any) -> StudyConfig:
        """A checked copy; a value that is a mapping is laid over the section it names."""
        data = self.model_dump(mode="json")
        for key, value in changes.items():
            if isinstance(value, Mapping) and isinstance(data.get(key), dict):
                data[key] = {**data[key], **value}
            elif value is not None:
                data[key] = value
        return read_study(data, where=f"study {self.name!r}")


def load_study(name: str | Path) -> StudyConfig:
    """Read a study by path, or a shipped one by name.

    Raises:
        InputError: no such study, unreadable, or not valid; the message names the nearest.
    """
    path = find_file(str(name), "studies")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as YAML: {error}") from None
    if not isinstance(data, dict):
        raise InputError(
            f"{path} is not a study: it must be a mapping with `model`, `data` and `budget`."
        )
    data.setdefault("name", path.stem)
    if isinstance(data.get("space"), str) and data["space"].endswith((".yaml", ".yml")):
        beside = path.parent / data["space"]
        if beside.is_file():
            data["space"] = str(beside.resolve())
    return read_study(data, where=str(path))


def read_study(data: Mapping[str, Any], *, where: str = "the study") -> StudyConfig:
    """Check plain data; every level refuses unknown keys with the nearest valid one."""
    try:
        study = StudyConfig(**data)
    except ValidationError as error:
        raise InputError(_explain(error, where)) from None
    study.limits()
    return study


def resolve_variables(value: Any) -> Any:
    """Replace ``${NAME}`` by environment variables, at any depth.

    Raises:
        InputError: a variable is not set; the message says what it should hold.
    """
    if isinstance(value, str):
        return _VARIABLE.sub(_lookup, value)
    if isinstance(value, Mapping):
        return {k: resolve_variables(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [resolve_variables(v) for v in value]
    return value


def _lookup(found: re.Match[str]) -> str:
    name = found.group(1)
    value = os.environ.get(name)
    if not value:
        raise InputError(
            f"The study needs the environment variable {name}: "
            f"{_VARIABLES.get(name, 'it stands in the study file')}. Set it, or write "
            "the path into the study."
        )
    return value


def shipped(kind: Literal["studies", "search_spaces"]) -> dict[str, Path]:
    """Files that come with the package: name to path."""
    here = Path(__file__).parent.parent
    folders = (here / "_shipped" / kind, here.parent / kind)
    folder = next((f for f in folders if f.is_dir()), None)
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))} if folder else {}


def find_file(name: str, kind: Literal["studies", "search_spaces"]) -> Path:
    """A path, or the shipped file of that name."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = shipped(kind)
    if path.name == name and name in known:
        return known[name]
    # `studies/quickstart.yaml` works from any folder, not only from a clone
    if path.suffix in (".yaml", ".yml") and path.parent.name in ("", kind) and path.stem in known:
        return known[path.stem]
    what = "study" if kind == "studies" else "search space"
    beside = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    raise InputError(
        f"There is no {what} {name!r}; {nearest(name, [*known, *beside])} "
        f"Shipped: {', '.join(known) or 'none'}."
    )


def _explain(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    location = [str(part) for part in first["loc"]]
    at = ".".join(location)
    if first["type"] == "extra_forbidden":
        return (
            f"{where} has an unknown key {at!r}; "
            f"{nearest(location[-1], _valid_keys(location[:-1]))}"
        )
    if first["type"] == "missing":
        return f"{where} lacks `{at}`."
    return f"{where}: `{at}`: {first['msg']}, got {first.get('input')!r}."


def _valid_keys(path: list[str]) -> Iterator[str]:
    model: Any = StudyConfig
    for part in path:
        annotation = model.model_fields[part].annotation
        options = getattr(annotation, "__args__", (annotation,))
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    yield from model.model_fields


def import_factory(path: str) -> Any:
    """The object behind ``package.module:name``.

    Raises:
        InputError: no such module or name.
    """
    import importlib
    import sys

    module_name, _, name = path.partition(":")
    if not name:
        raise InputError(f"A factory reads `package.module:function`, got {path!r}.")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # a user's own module beside the study
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise
        raise InputError(
            f"There is no module {module_name!r} (factory {path!r}). Install it, or "
            "run from the folder that holds it."
        ) from None
    if not hasattr(module, name):
        raise InputError(f"{module_name} has no {name!r}; {nearest(name, dir(module))}")
    return getattr(module, name)
