"""Recipes of a finished run: which trial, and what it claims."""

from __future__ import annotations

import platform
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from autocompress.build.state import state_file, weights_kept
from autocompress.errors import AutocompressError, InputError, nearest
from autocompress.machine.progress import Progress, silent
from autocompress.policy.claims import (
    CascadeClaim,
    CascadeStage,
    Claim,
    Recovered,
    TargetClaim,
)
from autocompress.policy.files import check_output
from autocompress.policy.policy import Policy
from autocompress.policy.recipe import ModelIdentity, Recipe
from autocompress.policy.writing import replacing
from autocompress.report.cascades import cascades, on_test
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial
from autocompress.run.retarget import retarget
from autocompress.run.study import StudyConfig, read_study
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView


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
        policy=trial.policy,
        settings=study.settings,
        recovery=Recovered(
            epochs=trial.phase.epochs,
            rung=trial.phase.rung,
            seed=trial.seed,
            split="test" if trial.phase.kind == "verify" else "val",
            final=trial.phase.kind != "search",
        ),
        model=ModelIdentity(architecture=identity["architecture"], weights=identity["weights"]),
        data=identity["data"],
        target=TargetClaim.read(
            trial.measurement.context.get("target") or study.target.model_dump(mode="json")
        ),
        measurement=Claim.read(trial.measurement.as_dict()),
        baseline=Claim.read(baseline.as_dict()),
        environment=environment(),
        weights=weights,
    )


def environment() -> dict[str, str]:
    """Versions of what shapes a result."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("autocompress", "torch", "onnx", "onnxruntime", "optuna"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def write_recipe(
    view: RunView,
    folder: RunFolder,
    trial: Trial,
    path: Path,
    study: StudyConfig | None = None,
) -> Recipe:
    """Write the recipe of a run's trial, and its trained weights beside it.

    Args:
        view: of the run.
        folder: of the run.
        trial: complete, of the search or recovery phase.
        path: of the recipe.
        study: where it is not the run's own.
    """
    check = view.verified(trial)
    baseline = (view.test_baseline if check is not None else None) or view.baseline
    claims = check or trial
    return recipe_of(view, folder, trial, path, claims=claims, baseline=baseline, study=study)


def recipe_of(
    view: RunView,
    folder: RunFolder,
    trial: Trial,
    path: Path,
    *,
    claims: Trial,
    baseline: Measurement,
    study: StudyConfig | None = None,
    **more: Any,
) -> Recipe:
    """Write the recipe of a trial that claims what another one measured of it.

    Args:
        view, folder, trial, path: as for ``write_recipe``.
        claims: the trial itself, or its verification.
        baseline: the uncompressed model, on the same split.
        study: as for ``write_recipe``.
        more: further fields of the recipe.
    """
    check_output(path)
    study = study or read_study(folder.read_study(), where=str(folder.study))
    identity = view.baseline.context.get("identity") or {}
    lacking = {"architecture", "weights", "data"} - set(identity)
    if lacking:
        raise InputError(
            f"{folder.baseline()} does not say which model and data were measured (`identity` "
            f"lacks {', '.join(sorted(lacking))}). Delete the file; --resume writes it again."
        )
    weights = None
    if weights_kept(study.settings, trial.policy, claims.phase):
        state = state_file(folder.models, trial.policy, trial.phase.epochs, trial.seed)
        if state.is_file():
            weights = path.with_suffix(".safetensors").name
            with replacing(path.with_suffix(".safetensors")) as new:
                shutil.copyfile(state, new)
        elif claims.phase.epochs > 0:  # what was only refined can be refined again
            raise InputError(
                f"The trained weights of trial {trial.number} are gone: {state}. Put them back, or "
                "export a trial that was not trained with --pick."
            )
    recipe = make_recipe(study, claims, baseline, identity, weights).model_copy(update=more)
    recipe.save(path)
    return recipe


def export(
    run: str,
    pick: str,
    output: Path,
    progress: Progress = silent,
    *,
    target: str | None = None,
    python: str | None = None,
    trust: bool = False,
) -> dict[str, Any]:
    """Write a recipe for a front member of a run.

    Args:
        run: its folder.
        pick: as for ``pick_trial``, or a cascade's number.
        output: the recipe.
        progress: told what is going on.
        target, python, trust: whose costs it claims, as of ``retarget``.
    """
    folder = RunFolder.open(run)
    view, study = RunView.load(folder), None
    if target is not None:
        check_output(output)
        view, study = _there(folder, view, target, progress, python, trust=trust)
    cascade = next((t for t in cascades(view) if str(t.number) == pick), None)
    trial = cascade or pick_trial(view, pick)
    if cascade is not None:
        recipe = write_cascade_recipe(view, folder, trial, output)
    else:
        recipe = write_recipe(view, folder, trial, output, study)
    return {
        "trial": trial.number,
        "recipe": str(output),
        "weights": recipe.weights,
        "policy": trial.policy.as_dict(),
        "measurement": recipe.measurement.values,
    }


def _there(
    folder: RunFolder,
    view: RunView,
    target: str,
    progress: Progress,
    python: str | None,
    *,
    trust: bool,
) -> tuple[RunView, StudyConfig]:
    if target.endswith(".json"):
        raise InputError(
            "A recipe claims what was measured, and a table foretells it. Name the device itself "
            "(`--target ssh://user@host`), or leave --target out."
        )
    return retarget(folder, view, target, progress, python=python, trust=trust)


def write_cascade_recipe(view: RunView, folder: RunFolder, trial: Trial, path: Path) -> Recipe:
    """Write the recipe of a cascade, and one of each member beside it.

    Args:
        view, folder: of the run.
        trial: of the phase ``cascade``.
        path: of the recipe.
    """
    assert trial.measurement is not None
    told, base = trial.measurement.context["cascade"], view.baseline
    stages = []
    for stage in told["stages"]:
        names = []
        for number in stage["trials"]:
            word = "uncompressed" if number is None else f"trial-{number}"
            place = path.with_name(f"{path.stem}-{word}{path.suffix}")
            member = Trial(0, Policy(), measurement=base) if number is None else None
            member = member or view.by_number[number]
            recipe_of(view, folder, member, place, claims=member, baseline=base)
            names.append(place.name)
        stages.append(
            CascadeStage(
                recipes=tuple(names),
                temperatures=tuple(stage["temperatures"]),
                threshold=stage["threshold"],
                exit=stage.get("exit"),
                takes=stage.get("takes", "inputs"),
            )
        )
    claim = CascadeClaim(
        confidence=told["confidence"],
        scores=told["scores"],
        output=told["output"],
        stages=tuple(stages),
    )
    claims = replace(trial, measurement=on_test(trial))
    return recipe_of(
        view,
        folder,
        trial,
        path,
        claims=claims,
        baseline=view.test_baseline or base,
        cascade=claim,
        recovery=Recovered(split="test"),
    )


def pick_trial(view: RunView, pick: str) -> Trial:
    """A front member by name, or any complete trial by its number.

    Raises:
        InputError: no such trial.
        NoAnswer: for ``best``, a run without an answer; the message says why.
    """
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
