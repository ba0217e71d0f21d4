"""The recipe: everything needed to build a compressed model again, and what was claimed of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, PlainSerializer, model_validator

from autocompress.errors import InputError
from autocompress.policy.claims import CascadeClaim, Claim, Recovered, TargetClaim
from autocompress.policy.policy import Policy
from autocompress.policy.reading import read_mapping
from autocompress.policy.section import Section
from autocompress.policy.settings import CompressionSettings, as_written
from autocompress.policy.writing import replacing

SCHEMA_VERSION = 1


class ModelIdentity(Section):
    """Which model a recipe was found on.

    Args:
        architecture: digest of its structure.
        weights: digest of its weights.
    """

    architecture: str
    weights: str


def _beside(name: str) -> str:
    """Refuse what is no bare file name: a recipe of a stranger may not choose files elsewhere."""
    if not name.strip(".") or any(c in name for c in "/\\:\0"):
        raise InputError(
            f"`weights` must be the bare name of a file beside the recipe, got {name!r}. Put the "
            "weights into the recipe's folder and write only their name."
        )
    return name


class Recipe(Section):
    """A policy with its whole context. Saved as YAML; ``apply`` and ``verify`` read it.

    Args:
        schema_version: of this file's form.
        study: the resolved study (model, data, target, ...), so that the recipe stands alone.
        policy: what is done to which layer.
        settings: how compression was carried out.
        recovery: the fine-tuning that the claimed model got.
        model, data: identity of the model and fingerprint of the data it was measured on.
        target: the runtime as it tells of itself: version, device, threads, batch, ...
        measurement, baseline: claims for the compressed and the uncompressed model; the
            ``verify`` phase's when there was one.
        environment: versions and machine.
        weights: name of a file of trained weights (safetensors) in the recipe's own folder.
        cascade: members that answer together, each with a recipe of its own; the policy is then
            empty.
    """

    schema_version: int = SCHEMA_VERSION
    study: dict[str, Any]
    policy: Annotated[Policy, PlainSerializer(Policy.as_dict)]
    settings: CompressionSettings
    recovery: Recovered = Recovered()
    model: ModelIdentity
    data: str
    target: TargetClaim
    measurement: Claim
    baseline: Claim
    environment: dict[str, str] = Field(default_factory=dict)
    weights: Annotated[str, AfterValidator(_beside)] | None = None
    cascade: CascadeClaim | None = None

    @model_validator(mode="after")
    def _members_beside(self) -> Recipe:
        """A recipe of a stranger may not choose files elsewhere."""
        for stage in self.cascade.stages if self.cascade is not None else ():
            for name in stage.recipes:
                _beside(name)
        return self

    @model_validator(mode="before")
    @classmethod
    def _settings_of_its_time(cls, data: Any) -> Any:
        """What a recipe of an earlier version leaves unsaid, in its study as well."""
        if isinstance(data, Mapping) and isinstance(data.get("settings"), Mapping):
            settings = as_written(data["settings"])
            study = data.get("study")
            if isinstance(study, Mapping) and isinstance(
                own := study.get("settings") or {}, Mapping
            ):
                study = {**study, "settings": {**own, **settings}}
            data = {**data, "settings": settings, "study": study}
        return data

    def save(self, path: str | Path) -> Path:
        """Write YAML (or JSON, by the suffix); parent folders are made."""
        path = Path(path)
        data = self.model_dump(mode="json")
        text = (
            json.dumps(data, indent=2)
            if path.suffix == ".json"
            else yaml.safe_dump(data, sort_keys=False)
        )
        with replacing(path.resolve()) as new:  # a link goes on pointing to its file
            new.write_text(text, encoding="utf-8")
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
        if "policy" not in data and {"budget", "search", "space"} & set(data):
            raise InputError(f"{path} is a study, not a recipe. {missing}")
        return cls.read(data, where=str(path))
