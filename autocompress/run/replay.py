"""A recipe becomes a model again, and is held to its claims."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import AutocompressError, InputError, nearest
from autocompress.machine.scratch import scratch_folder
from autocompress.policy.costs import EXTRA
from autocompress.policy.files import check_output
from autocompress.policy.recipe import Recipe
from autocompress.results.metric import Measurement
from autocompress.results.trial import Phase
from autocompress.run.cascade_files import check_claim, check_folder, measure_built, write_built
from autocompress.run.comparing import compare_claims, limited_shares, unsettled_claims
from autocompress.run.factories import from_elsewhere
from autocompress.run.formats import known_suffixes, writer_of
from autocompress.run.study import GIVEN, StudyConfig, read_study

_AGAIN = "Export the recipe again: `autocompress export RUN -o recipe.yaml`."

if TYPE_CHECKING:
    from autocompress.exporters.write import Writer
    from autocompress.model.earlier import Earlier
    from autocompress.run.assembly import Assembly
    from autocompress.techniques.compressed import Compressed


def load_recipe(path: Path) -> Recipe:
    """Read a recipe and all that it holds, before anything is built.

    Raises:
        InputError: no such file, or a section that cannot be used; both are named.
    """
    recipe = Recipe.load(path)
    read_study(recipe.study, where=f"{path}: `study`")
    claims_of(recipe, where=str(path))
    if recipe.cascade is not None:
        try:
            check_claim(recipe.cascade)
        except InputError as error:
            raise InputError(f"{path}: `cascade`: {error} {_AGAIN}") from None
        _member_recipes(recipe, path.parent)
    return recipe


def claims_of(recipe: Recipe, *, where: str = "the recipe") -> tuple[Measurement, Measurement]:
    """What a recipe claims of the compressed model, and of the uncompressed one.

    Raises:
        InputError: they cannot be compared with a measurement.
    """
    found = []
    for name in ("measurement", "baseline"):
        try:
            claim = Measurement.of(getattr(recipe, name))
        except AutocompressError as error:
            raise InputError(f"{where}: `{name}`: {error} {_AGAIN}") from None
        if "latency_ms" not in claim or claim["latency_ms"] <= 0:
            raise InputError(f"{where}: `{name}` claims no latency above 0. {_AGAIN}")
        found.append(claim)
    return found[0], found[1]


def open_recipe(
    recipe: Recipe,
    model: Any = None,
    checkpoint: str | None = None,
    *,
    data: Any = None,
    folder: Path,
    reached: bool = True,
) -> tuple[Assembly, bool]:
    """Assemble the study of a recipe, with its own or another model.

    Args:
        recipe: as loaded.
        model: ``package.module:factory``, a module, or ``None`` for the study's own.
        checkpoint: weights for the factory's model.
        data: ``package.module:factory`` or splits, in place of the study's.
        folder: for files of evaluations.
        reached: see that a device of another place is there; nothing is timed without it.

    Returns:
        The assembly, and whether its weights are those that the recipe was found on.

    Raises:
        InputError: the model has another architecture.
    """
    from autocompress.run.assembly import assemble

    study = _study_of(recipe, model, checkpoint, data)
    if isinstance(model, str) or checkpoint is not None:
        model = None
    if isinstance(data, str):
        data = None
    options = {
        "a model": "--model package.module:factory --checkpoint weights.safetensors",
        "data": "--data package.module:factory",
    }
    absent = (model is None and study.model.factory == GIVEN) * ["a model"]
    absent += (data is None and study.data.factory == GIVEN) * ["data"]
    if absent:
        raise InputError(
            f"This recipe was found on {' and '.join(absent)} handed over in Python; say where to "
            f"find them with {' '.join(options[name] for name in absent)}, or call "
            "`autocompress.apply(recipe, model, data)`."
        )
    parts = assemble(study, folder, model=model, data=data, reached=reached)
    if from_earlier(recipe, parts) is None and (
        parts.inventory.architecture != recipe.model.architecture
    ):
        raise InputError(
            "The recipe was found on another architecture "
            f"(fingerprint {recipe.model.architecture}, this model has "
            f"{parts.inventory.architecture}). {_nearest_layer(recipe, parts)}"
        )
    earlier = from_earlier(recipe, parts)
    if earlier is None:
        return parts, parts.inventory.weights == recipe.model.weights
    # trained weights of layers that computed theirs from others have no place in plain layers
    usable = earlier.tensors or recipe.weights is None
    return parts, usable and earlier.weights == recipe.model.weights


def from_earlier(recipe: Recipe, parts: Assembly) -> Earlier | None:
    """How an earlier version saw the model, if the recipe is of that version."""
    earlier = parts.earlier
    known = earlier is not None and recipe.model.architecture in earlier.architectures
    return earlier if known else None


def _study_of(recipe: Recipe, model: Any, checkpoint: str | None, data: Any) -> StudyConfig:
    """The recipe's study, with the model and the data that were named in place of its own."""
    study = read_study(recipe.study, where="the recipe's study")
    plain = study.model_dump()
    if isinstance(data, str):
        # what they are for, and how they are read, stays
        plain["data"].update(factory=data, args={})
    if isinstance(model, str) or checkpoint is not None:
        plain["baseline"] = None
        plain["model"]["checkpoint"] = checkpoint
    if isinstance(model, str):
        plain["model"].update(factory=model, args={})
    return StudyConfig(**plain)


def _nearest_layer(recipe: Recipe, parts: Assembly) -> str:
    names = parts.inventory.by_name
    for layer in recipe.policy:
        if layer not in names:
            return f"Its layer {layer!r} is not in this model; {nearest(layer, names)}"
    return "The layers have the same names but other shapes."


def rebuild(recipe: Recipe, parts: Assembly, same_weights: bool, beside: Path) -> Compressed:
    """The compressed model of a recipe.

    Args:
        recipe: as loaded.
        parts: as ``open_recipe`` gave them.
        same_weights: take the trained weights beside the recipe, if it has any; otherwise the
            policy is carried out (and fine-tuned) again on the model's own weights.
        beside: folder of the recipe.
    """
    if recipe.cascade is not None:
        raise InputError(
            "This recipe is of a cascade, several models that answer together, and none of them is "
            "it alone. `autocompress apply` writes its files; its members have recipes of their "
            "own beside it."
        )
    policy = written = recipe.policy
    earlier = from_earlier(recipe, parts)
    if earlier is not None:
        policy = replace(policy, layers={earlier.now(n): p for n, p in policy.layers.items()})
    if recipe.weights is not None and same_weights:
        now = None if earlier is None else earlier.now
        return parts.pipeline.restore(policy, beside / recipe.weights, written, now)
    return parts.pipeline.build(policy, _phase(recipe), recipe.recovery.seed)


def _phase(recipe: Recipe) -> Phase:
    got = recipe.recovery
    return Phase("verify", got.epochs, got.rung) if got.final else Phase("search")


def apply(
    recipe_path: Path,
    output: Path,
    model: str | None,
    checkpoint: str | None,
    data: str | None = None,
    *,
    trust: bool = False,
) -> dict[str, Any]:
    """Rebuild the compressed model of a recipe and write it.

    Args:
        recipe_path: of the recipe.
        output: its suffix names the format; see ``writer_of``.
        model, checkpoint, data: as for ``open_recipe``.
        trust: run whatever functions the recipe names; see ``factories``.
    """
    recipe = load_recipe(recipe_path)
    target = read_study(recipe.study, where="the recipe's study").target.config()
    # said before anything is loaded
    if recipe.cascade is None:
        write: Writer | None = writer_of(output, target)
        check_output(output)
    else:
        write = None
        check_folder(output, formats=known_suffixes())
    with scratch_folder("replay") as scratch, _trusting(recipe_path, model, data, trust):
        parts, same = open_recipe(
            recipe, model, checkpoint, data=data, folder=scratch, reached=False
        )
        if write is None:
            built = _members(recipe, parts, same, recipe_path.parent)
            size = write_built(recipe, built, parts, output)
        else:
            compressed = rebuild(recipe, parts, same, recipe_path.parent)
            size = write(compressed, output, parts.data.train.inputs(2)).size_bytes
    note = (
        ""
        if same
        else (
            "Other weights than the recipe's: its policy was carried out again on "
            "them; measure it with `autocompress verify`."
        )
    )
    return {
        "model": str(output),
        "size_bytes": size,
        "same_weights": same,
        "note": note,
    }


def _member_recipes(recipe: Recipe, beside: Path) -> dict[str, Recipe]:
    """Recipes of a cascade's members by their names.

    Raises:
        InputError: one of them is missing, or is of another model.
    """
    assert recipe.cascade is not None
    names = [name for stage in recipe.cascade.stages for name in stage.recipes]
    recipes = {name: Recipe.load(beside / name) for name in names}
    for name, member in recipes.items():
        if member.cascade is not None or member.model != recipe.model:
            raise InputError(f"{beside / name} is no recipe of the cascade's own model. {_AGAIN}")
    return recipes


def _members(
    recipe: Recipe, parts: Assembly, same_weights: bool, beside: Path
) -> dict[str, Compressed]:
    """Members of a cascade by the names of their recipes, built again."""
    recipes = _member_recipes(recipe, beside)
    return {name: rebuild(one, parts, same_weights, beside) for name, one in recipes.items()}


def _trusting(
    recipe_path: Path, model: Any, data: Any, trust: bool
) -> AbstractContextManager[None]:
    return from_elsewhere(f"recipe {recipe_path}", named=(model, data), trust=trust)


def verify(
    recipe_path: Path,
    model: str | None,
    checkpoint: str | None,
    data: str | None = None,
    *,
    trust: bool = False,
) -> dict[str, Any]:
    """Check a recipe in a fresh process; see ``apply`` for the arguments."""
    load_recipe(recipe_path)  # a bad file is said at once, from here
    arguments = json.dumps([str(recipe_path), model, checkpoint, data, trust, os.getpid()])
    done = subprocess.run(
        # without the folder that it is started in on the path: a recipe may come from anybody
        [sys.executable, "-P", "-m", "autocompress.run.verify_worker", arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if not done.stdout:
        raise AutocompressError(
            f"The verifying process ended with code {done.returncode} and "
            "said nothing; its messages stand above."
        )
    found: dict[str, Any] = json.loads(done.stdout)
    if "error" in found:
        raise (InputError if found["exit_code"] == 2 else AutocompressError)(found["error"])
    return found


def check(
    recipe_path: Path,
    model: Any,
    checkpoint: str | None,
    *,
    data: Any = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Apply a recipe, measure it on its split beside the uncompressed model, and compare.

    Args:
        recipe_path: of the recipe.
        model, checkpoint, data, trust: as for ``apply``; model and data may be objects, too.
    """
    recipe = load_recipe(recipe_path)
    with scratch_folder("replay") as scratch, _trusting(recipe_path, model, data, trust):
        parts, same = open_recipe(recipe, model, checkpoint, data=data, folder=scratch)
        evaluator = parts.evaluator
        if recipe.cascade is not None:
            built = _members(recipe, parts, same, recipe_path.parent)
            found = measure_built(recipe, built, parts, scratch / "cascade")
        else:
            compressed = rebuild(recipe, parts, same, recipe_path.parent)
            found = evaluator.measurer.measure(compressed, recipe.recovery.split)
    claimed, baseline = claims_of(recipe)
    same_data = parts.data.fingerprint == recipe.data
    sides, limited = (found, evaluator.baseline, claimed, baseline), evaluator.measurer.asked
    reasons = compare_claims(*sides, same_weights=same, same_data=same_data, limited=limited)
    return {
        "ok": not reasons,
        found.quality.name: found.get(found.quality.name),
        f"claimed_{found.quality.name}": claimed.get(claimed.quality.name),
        "quality": found.quality.as_dict(),
        "latency_ms": found["latency_ms"],
        "latency_ratio": found["latency_ms"] / evaluator.baseline["latency_ms"],
        "claimed_latency_ratio": claimed["latency_ms"] / baseline["latency_ms"],
        "size_bytes": found["size_bytes"],
        **{cost.name: found[cost.name] for cost in EXTRA if cost.name in found},
        "limited": {
            name: {"found": now, "claimed": then}
            for name, (now, then) in limited_shares(*sides, limited).items()
        },
        "same_weights": same,
        "same_data": same_data,
        "reasons": reasons,
        "unsettled": unsettled_claims(*sides),
    }
