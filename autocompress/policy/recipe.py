"""The recipe: everything needed to build a compressed model again, and what was claimed of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter, model_validator
from pydantic_core import CoreSchema, core_schema

from autocompress.errors import InputError
from autocompress.policy.policy import Policy
from autocompress.policy.reading import read_mapping
from autocompress.policy.section import Section
from autocompress.policy.settings import CompressionSettings

SCHEMA_VERSION = 1


class _Policy:
    """Plain data that reads as a policy; kept as it was written."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(TypeAdapter(Policy).core_schema)

    @staticmethod
    def _check(data: dict[str, Any]) -> dict[str, Any]:
        Policy.read(data, where="`policy`")
        return data


class ModelIdentity(Section):
    """Which model a recipe was found on.

    Args:
        architecture: digest of its structure.
        weights: digest of its weights.
    """

    architecture: str
    weights: str


class Recipe(Section):
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
        weights: file name, beside the recipe, of trained weights (safetensors).
    """

    schema_version: int = SCHEMA_VERSION
    study: dict[str, Any]
    policy: Annotated[dict[str, Any], _Policy()]
    settings: CompressionSettings
    recovery: dict[str, Any] = Field(default_factory=dict)
    model: ModelIdentity
    data: str
    target: dict[str, Any]
    measurement: dict[str, Any]
    baseline: dict[str, Any]
    environment: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None

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
        return Policy.read(self.policy, where="the policy of the recipe")

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
        missing = "`autocompress export RUN -o recipe.yaml` writes one."
        data = read_mapping(path, "recipe", missing=missing)
        version = data.get("schema_version")
        if "policy" in data and version != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema_version {version!r}, this autocompress reads "
                f"{SCHEMA_VERSION}. Install the version that wrote it."
            )
        return cls.read(data, where=str(path))
