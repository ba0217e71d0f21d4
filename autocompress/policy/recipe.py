"""The recipe: everything needed to build a compressed model again, and what was claimed of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from autocompress.errors import InputError, nearest
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings

SCHEMA_VERSION = 1


class ModelIdentity(BaseModel):
    """Which model a recipe was found on: digests of its structure and of its weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    weights: str


class Recipe(BaseModel):
    """A policy with its whole context. Saved as YAML; ``apply`` and ``verify`` read it.

    Args:
        schema_version: of this file's form.
        study: the resolved study (model, data, target, ...), so that the recipe stands alone.
        policy: as ``Policy.as_dict`` gives it.
        settings: how compression was carried out.
        recovery: epochs and seed of the fine-tuning that the claimed model got, and its schedule.
        model, data: identity of the model and fingerprint of the data it was measured on.
        target: runtime, threads, batch, providers.
        measurement, baseline: claims for the compressed and the uncompressed model; the
            ``verify`` phase's when there was one.
        environment: versions and machine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = SCHEMA_VERSION
    study: dict[str, Any]
    policy: dict[str, Any]
    settings: CompressionSettings
    recovery: dict[str, Any] = Field(default_factory=dict)
    model: ModelIdentity
    data: str
    target: dict[str, Any]
    measurement: dict[str, Any]
    baseline: dict[str, Any]
    environment: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = Field(
        None, description="file name, beside the recipe, of trained weights (safetensors)"
    )

    @model_validator(mode="before")
    @classmethod
    def _full_range(cls, data: Any) -> Any:
        """A recipe that does not say was made with all levels, whatever this machine would take."""
        if isinstance(data, Mapping) and isinstance(data.get("settings"), Mapping):
            settings = {"weight_range": "full", **data["settings"]}
            study = data.get("study")
            if isinstance(study, Mapping):
                study = {**study, "settings": {**(study.get("settings") or {}), **settings}}
            data = {**data, "settings": settings, "study": study}
        return data

    def as_policy(self) -> Policy:
        """The policy as a value."""
        return Policy.from_dict(self.policy)

    def save(self, path: str | Path) -> Path:
        """Write YAML (or JSON, by the suffix); parent folders are made."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = self.model_dump(mode="json")
        text = (
            json.dumps(data, indent=2)
            if path.suffix == ".json"
            else yaml.safe_dump(data, sort_keys=False)
        )
        path.write_text(text, encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a recipe.

        Raises:
            InputError: no such file, not a recipe, or of a newer schema.
        """
        path = Path(path)
        if not path.is_file():
            raise InputError(
                f"There is no recipe at {path}. `autocompress export RUN -o "
                "recipe.yaml` writes one."
            )
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not readable as YAML: {error}") from None
        if not isinstance(data, dict) or "policy" not in data:
            raise InputError(f"{path} is not a recipe: it has no `policy`.")
        version = data.get("schema_version")
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema_version {version!r}, this autocompress reads "
                f"{SCHEMA_VERSION}. Install the version that wrote it."
            )
        try:
            return cls(**data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(
                f"{path} is not a valid recipe: {where}: {first['msg']}; "
                f"{nearest(where, cls.model_fields)}"
            ) from None
