"""The Python surface: run a study on objects at hand, and use what it found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.policy.budget import Budget
from autocompress.policy.recipe import Recipe
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.report.display import Display
from autocompress.results.front import ParetoFront
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial
from autocompress.track.folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

    from autocompress.track.view import RunView


@dataclass(frozen=True)
class Answer:
    """One trial of a finished run, with what is needed to use it.

    Args:
        trial: of the search or recovery phase, scored on val.
        verified: the same policy scored on the test split, or ``None``.
        recipe_path: where its recipe lies, trained weights beside it.
        model_path: its exported file, or ``None`` where the trial was not verified.
    """

    trial: Trial
    verified: Trial | None
    recipe_path: Path
    model_path: Path | None

    @property
    def recipe(self) -> SavedRecipe:
        """The recipe; ``save`` copies the trained weights along."""
        return SavedRecipe(self.recipe_path)


@dataclass(frozen=True)
class SavedRecipe:
    """A recipe on disk."""

    path: Path

    def load(self) -> Recipe:
        """Its content."""
        return Recipe.load(self.path)

    def save(self, path: str | Path) -> Path:
        """Write the recipe, and its trained weights beside it.

        Args:
            path: ends in ``.yaml`` or ``.json``.
        """
        import shutil

        path, recipe = Path(path), self.load()
        if recipe.weights is not None:
            source = self.path.parent / recipe.weights
            name = path.with_suffix(".safetensors").name
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path.parent / name)
            recipe = recipe.model_copy(update={"weights": name})
        return recipe.save(path)


@dataclass(frozen=True)
class Result:
    """A finished run.

    Args:
        folder: of the run.
        summary: what ``autocompress search --json`` prints.
        view: every question that one may ask of a run.
    """

    folder: Path
    summary: Mapping[str, Any]
    view: RunView

    @property
    def front(self) -> ParetoFront:
        """Feasible trials that no other beats, the cheapest first."""
        return self.view.front

    @property
    def baseline(self) -> Measurement:
        """The uncompressed model on val, in the target runtime."""
        return self.view.baseline

    @property
    def feasible(self) -> bool:
        """Whether there is an answer."""
        return self.view.best is not None

    @property
    def best(self) -> Answer:
        """The answer: the most accurate trial within the budget, or the cheapest within the drop.

        Raises:
            InputError: no policy met the budget, or none keeps to ``max_accuracy_drop``; the
                message says which, and ``summary`` shows the nearest.
        """
        trial = self.view.decision.answer()
        folder = RunFolder.open(self.folder)
        return Answer(
            trial, self.view.verified(trial), folder.recipes / "best.yaml", folder.best_model()
        )

    def report(self) -> Path:
        """The HTML report."""
        return RunFolder.open(self.folder).report


def search(
    model: nn.Module | str | Path,
    data: Any,
    *,
    budget: Budget | str | None = None,
    space: str | Path | Mapping[str, Any] | SpaceConfig = "joint",
    out: str | Path = "runs/python",
    target: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
    recovery: Mapping[str, Any] | None = None,
    settings: CompressionSettings | Mapping[str, Any] | None = None,
    tracking: Mapping[str, Any] | None = None,
    max_accuracy_drop: float | None = None,
    executor: str = "local",
    workers: int = 1,
    resume: bool = False,
    new_baseline: bool = False,
    quiet: bool = False,
) -> Result:
    """Search the policies of a model under a budget; everything lands in a run's folder.

    Args:
        model: trained; not changed. Or the path of an ONNX file.
        data: anything with ``train``, ``val`` and ``test``: DataLoaders or datasets of
            ``(input, target)``; optional ``metric``, ``loss``, ``augment``, ``classes``.
        budget: ``Budget(latency_ms=2.0)``, ``Budget("latency<=0.5x", "size<=1MB")``, or a text.
        space: a shipped space's name, a path, or plain data.
        out: folder of the run.
        target, search, recovery, settings, tracking: sections of a study file, e.g.
            ``search={"trials": 100, "timeout_s": 600}``, ``recovery={"epochs": 3}``. The
            ``sampler`` of the search may be an ``optuna.samplers.BaseSampler`` itself.
        max_accuracy_drop: in points; the cheapest policy that keeps to it is the answer.
        executor, workers: ``local`` or ``ray``, and how many evaluations at once.
        resume: go on with the run in ``out``.
        new_baseline: with ``resume``, where the model, the data, the target or the settings are
            others than the run's: set its trials aside and begin with a baseline of its own,
            instead of refusing.
        quiet: nothing on the terminal.

    Raises:
        InputError: anything that cannot be used, before an existing run is touched.
        InfeasibleBudget: not even the cheapest policy meets the budget.
    """
    from autocompress.run.given import as_module, given_study
    from autocompress.run.session import run_study

    searching, sampler = _with_sampler(search)
    sections = {"target": target, "space": space, "search": searching, "recovery": recovery}
    more = {"settings": settings, "tracking": tracking, "max_accuracy_drop": max_accuracy_drop}
    named = {**sections, **more, "executor": executor, "workers": workers}
    study = given_study(Path(out).name, budget, **named)
    given: dict[str, Any] = {"model": as_module(model), "data": data, "sampler": sampler}
    going_on: dict[str, Any] = {"resume": resume, "new_baseline": new_baseline}
    with Display(quiet) as shown:
        done = run_study(study, Path(out), watcher=shown, **going_on, **given)
    return Result(done.folder.root, done.summary, done.view)


def _with_sampler(search: Mapping[str, Any] | None) -> tuple[dict[str, Any], Any]:
    """The section of the search as a file would hold it, and a sampler that is an object."""
    section = dict(search or {})
    sampler = section.get("sampler")
    if sampler is None or isinstance(sampler, str):
        return section, None
    return {**section, "sampler": type(sampler).__name__}, sampler
