"""Recipes: writing one from a run, applying it, and proving that it replays."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from autocompress.build.state import state_file
from autocompress.errors import AutocompressError, InputError, nearest
from autocompress.policy.recipe import ModelIdentity, Recipe
from autocompress.results.metric import ACCURACY, Measurement
from autocompress.results.trial import Phase, Trial
from autocompress.run.study import GIVEN, StudyConfig, read_study
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

if TYPE_CHECKING:
    from autocompress.run.assembly import Assembly
    from autocompress.techniques.compressed import Compressed

ACCURACY_TOLERANCE = 0.005
"""Half a point: the same weights, rounded and summed by another build of the runtime."""

LATENCY_TOLERANCE = 0.15
"""Of the claimed ratio, on top of the interval: what two runs on one quiet machine differ by."""


def make_recipe(
    study: StudyConfig,
    trial: Trial,
    baseline: Measurement,
    identity: dict[str, str],
    weights: str | None = None,
) -> Recipe:
    """Put a recipe together.

    Args:
        study: with its environment variables still named.
        trial: the finished trial that it claims.
        baseline: the uncompressed model, on the trial's split.
        identity: ``architecture``, ``weights`` and ``data`` fingerprints.
        weights: name of the file of trained weights beside the recipe.
    """
    if trial.measurement is None:
        raise AutocompressError(f"Trial {trial.number} has no measurement to claim.")
    return Recipe(
        study=study.model_dump(mode="json"),
        policy=trial.policy.as_dict(),
        settings=study.settings,
        recovery={
            "epochs": trial.phase.epochs,
            "rung": trial.phase.rung,
            "seed": trial.seed,
            "split": "test" if trial.phase.kind == "verify" else "val",
            "final": trial.phase.kind != "search",
        },
        model=ModelIdentity(architecture=identity["architecture"], weights=identity["weights"]),
        data=identity["data"],
        target=dict(trial.measurement.context.get("target", study.target)),
        measurement=trial.measurement.as_dict(),
        baseline=baseline.as_dict(),
        environment=environment(),
        weights=weights,
    )


def environment() -> dict[str, str]:
    """Versions of what shapes a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("autocompress", "torch", "onnx", "onnxruntime", "optuna", "torch-pruning"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def write_recipe(view: RunView, folder: RunFolder, trial: Trial, path: Path) -> Recipe:
    """Write the recipe of a run's trial, and its trained weights beside it.

    Args:
        view: of the run.
        folder: of the run.
        trial: complete, of the search or recovery phase.
        path: of the recipe.
    """
    study = read_study(folder.read_study(), where=str(folder.study))
    identity = view.baseline.context["identity"]
    check = view.verified(trial)
    baseline = (view.test_baseline if check is not None else None) or view.baseline
    weights = None
    if trial.phase.epochs > 0:
        state = state_file(folder.models, trial.policy, trial.phase.epochs, trial.seed)
        if not state.is_file():
            raise InputError(f"The trained weights of trial {trial.number} are gone: {state}")
        weights = path.with_suffix(".safetensors").name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(state, path.with_suffix(".safetensors"))
    recipe = make_recipe(study, check or trial, baseline, identity, weights)
    recipe.save(path)
    return recipe


def export(run: str, pick: str, output: Path) -> dict[str, Any]:
    """Write a recipe for a front member of a run."""
    folder = RunFolder.open(run)
    view = RunView.load(folder)
    trial = pick_trial(view, pick)
    recipe = write_recipe(view, folder, trial, output)
    return {
        "trial": trial.number,
        "recipe": str(output),
        "weights": recipe.weights,
        "policy": trial.policy.as_dict(),
        "measurement": recipe.measurement["values"],
    }


def pick_trial(view: RunView, pick: str) -> Trial:
    """A front member by name, or any complete trial by its number."""
    if pick.lstrip("-").isdigit():
        found = [t for t in view.compared if t.number == int(pick)]
        if not found:
            raise InputError(
                f"The run has no complete trial {pick}; front members are "
                f"{', '.join(str(t.number) for t in view.front) or 'none'}."
            )
        return found[0]
    names = ("best", "knee", "fastest", "smallest", "most-accurate")
    if pick not in names:
        raise InputError(
            f"--pick must be one of {', '.join(names)} or a trial number, got "
            f"{pick!r}; {nearest(pick, names)}"
        )
    if pick == "best" or not len(view.front):
        return view.decision.answer()
    return view.front.pick(pick)  # type: ignore[arg-type]  # one of `names`


def open_recipe(
    recipe: Recipe,
    model: Any = None,
    checkpoint: str | None = None,
    *,
    data: Any = None,
    folder: Path,
) -> tuple[Assembly, bool]:
    """Assemble the study of a recipe, with its own or another model.

    Args:
        recipe: as loaded.
        model: ``package.module:factory``, a module, or ``None`` for the study's own.
        checkpoint: weights for the factory's model.
        data: splits in place of the study's.
        folder: for files of evaluations.

    Returns:
        The assembly, and whether its weights are those that the recipe was found on.

    Raises:
        InputError: the model has another architecture.
    """
    from autocompress.run.assembly import assemble

    study = read_study(recipe.study, where="the recipe's study")
    if isinstance(model, str) or checkpoint is not None:
        changes: dict[str, Any] = {"checkpoint": checkpoint}
        if isinstance(model, str):
            changes.update(factory=model, args={})
        study = StudyConfig(
            **{
                **study.model_dump(),
                "baseline": None,
                "model": {**study.model.model_dump(), **changes},
            }
        )
        model = None
    if model is None and study.model.factory == GIVEN:
        raise InputError(
            "This recipe was found on a model handed over in Python; name one with "
            "--model package.module:factory --checkpoint weights.safetensors."
        )
    if data is None and study.data.factory == GIVEN:
        raise InputError(
            "This recipe was found on data handed over in Python; call "
            "`autocompress.apply(recipe, model, data)` instead."
        )
    parts = assemble(study, folder, model=model, data=data)
    if parts.inventory.architecture != recipe.model.architecture:
        raise InputError(
            "The recipe was found on another architecture "
            f"(fingerprint {recipe.model.architecture}, this model has "
            f"{parts.inventory.architecture}). {_nearest_layer(recipe, parts)}"
        )
    return parts, parts.inventory.weights == recipe.model.weights


def _nearest_layer(recipe: Recipe, parts: Assembly) -> str:
    names = parts.inventory.by_name
    for layer in recipe.policy.get("layers", {}):
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
    policy = recipe.as_policy()
    if recipe.weights is not None and same_weights:
        return parts.pipeline.restore(policy, beside / recipe.weights)
    return parts.pipeline.build(policy, _phase(recipe), int(recipe.recovery.get("seed", 0)))


def _phase(recipe: Recipe) -> Phase:
    if not recipe.recovery.get("final", False):
        return Phase("search")
    return Phase(
        "verify", float(recipe.recovery.get("epochs", 0.0)), int(recipe.recovery.get("rung", 0))
    )


def apply(
    recipe_path: Path,
    output: Path,
    model: str | None,
    checkpoint: str | None,
    *,
    quiet: bool = False,
) -> dict[str, Any]:
    """Rebuild the compressed model of a recipe and write it."""
    from autocompress.exporters.write import export as write

    if output.suffix not in (".onnx", ".pt2", ".safetensors"):
        raise InputError(f"-o must end in .onnx, .pt2 or .safetensors, got {output.name!r}.")
    recipe = Recipe.load(recipe_path)
    with tempfile.TemporaryDirectory() as scratch:
        parts, same = open_recipe(recipe, model, checkpoint, folder=Path(scratch))
        compressed = rebuild(recipe, parts, same, recipe_path.parent)
        output.parent.mkdir(parents=True, exist_ok=True)
        written = write(compressed, output, parts.data.train.inputs(1))
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
        "size_bytes": written.size_bytes,
        "same_weights": same,
        "note": note,
    }


def verify(recipe_path: Path, model: str | None, checkpoint: str | None) -> dict[str, Any]:
    """Check a recipe in a fresh process."""
    Recipe.load(recipe_path)  # a bad file is said at once, from here
    arguments = json.dumps([str(recipe_path), model, checkpoint])
    done = subprocess.run(
        [sys.executable, "-m", "autocompress.run.verify_worker", arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = done.stdout.strip().splitlines()
    if not lines:
        raise AutocompressError(
            f"The verifying process ended with code {done.returncode} and "
            "said nothing; its messages stand above."
        )
    found: dict[str, Any] = json.loads(lines[-1])
    if "error" in found:
        raise (InputError if found["exit_code"] == 2 else AutocompressError)(found["error"])
    return found


def check(recipe_path: Path, model: str | None, checkpoint: str | None) -> dict[str, Any]:
    """Apply a recipe, measure it on its split beside the uncompressed model, and compare."""
    recipe = Recipe.load(recipe_path)
    with tempfile.TemporaryDirectory() as scratch:
        parts, same = open_recipe(recipe, model, checkpoint, folder=Path(scratch))
        evaluator = parts.evaluator
        compressed = rebuild(recipe, parts, same, recipe_path.parent)
        found = evaluator.measure(compressed, recipe.recovery.get("split", "val"))
    claimed = Measurement.from_dict(recipe.measurement)
    baseline = Measurement.from_dict(recipe.baseline)
    reasons = compare_claims(
        found,
        evaluator.baseline,
        claimed,
        baseline,
        same_weights=same,
        same_data=parts.data.fingerprint == recipe.data,
    )
    return {
        "ok": not reasons,
        "accuracy": found["accuracy"],
        "claimed_accuracy": claimed["accuracy"],
        "latency_ms": found["latency_ms"],
        "latency_ratio": found["latency_ms"] / evaluator.baseline["latency_ms"],
        "claimed_latency_ratio": claimed["latency_ms"] / baseline["latency_ms"],
        "size_bytes": found["size_bytes"],
        "same_weights": same,
        "reasons": reasons,
    }


def compare_claims(
    found: Measurement,
    found_base: Measurement,
    claimed: Measurement,
    claimed_base: Measurement,
    *,
    same_weights: bool,
    same_data: bool,
) -> list[str]:
    """Reasons why a measurement does not bear a recipe's claims out; empty if it does.

    With other weights or data, only the latency is claimed. A file that is faster, or more
    accurate, than claimed is as wrong as one that is worse only in accuracy.
    """
    reasons = []
    if same_weights and same_data:
        gap = abs(found[ACCURACY.name] - claimed[ACCURACY.name])
        if gap > ACCURACY_TOLERANCE:
            reasons.append(
                f"accuracy {found[ACCURACY.name]:.4f} differs from the claimed "
                f"{claimed[ACCURACY.name]:.4f} by more than {ACCURACY_TOLERANCE}"
            )
    ratio = found["latency_ms"] / found_base["latency_ms"]
    promised = claimed["latency_ms"] / claimed_base["latency_ms"]
    if ratio > promised * (1 + LATENCY_TOLERANCE):
        reasons.append(
            f"latency is {ratio:.3f} of the uncompressed model's, claimed {promised:.3f} "
            f"(tolerance {LATENCY_TOLERANCE:.0%})"
        )
    return reasons


def show_verification(found: dict[str, Any], console: Console) -> None:
    """What was found beside what is claimed, and the verdict."""
    table = Table("", "found", "claimed")
    table.add_row("accuracy", f"{found['accuracy']:.2%}", f"{found['claimed_accuracy']:.2%}")
    table.add_row(
        "latency / uncompressed",
        f"{found['latency_ratio']:.3f}",
        f"{found['claimed_latency_ratio']:.3f}",
    )
    console.print(table)
    if not found["same_weights"]:
        console.print(
            "These are other weights than the recipe's; accuracy is not claimed for them."
        )
    for reason in found["reasons"]:
        console.print(f"[red]{reason}[/red]")
    console.print(
        "[green]The recipe holds.[/green]"
        if found["ok"]
        else "[red]The recipe does not hold.[/red]"
    )
