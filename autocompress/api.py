"""The Python surface: run a study on objects at hand, and rebuild a model from a recipe."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from autocompress.errors import nearest
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

    from autocompress.run.study import StudyConfig
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


class Reading(TypedDict, total=False):
    """How data are read; keywords of ``search`` and of ``Data.wrap``.

    Args:
        input_fn: from a batch to the model's inputs, where the batch does not say what is what.
        target_fn: from a batch to the targets, likewise.
        memory: budget of decoded samples, such as ``"2GB"``; by default a quarter of what the
            machine has free.
        length: samples to take of streams without a length, for all splits or by split.
        groups: per sample of ``train``, what belongs together, where splits are cut from it.
        dynamic: input name to its free axes beside the batch, e.g.
            ``{"input_ids": {1: "sequence"}}``, or ``"auto"`` to find them.
    """

    input_fn: Callable[[Any], Any]
    target_fn: Callable[[Any], Any]
    memory: str | int
    length: int | Mapping[str, int]
    groups: Any
    dynamic: Mapping[str, Mapping[int, str]] | str


def search(
    model: nn.Module,
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
    quiet: bool = False,
    **reading: Unpack[Reading],
) -> Result:
    """Search the policies of a model under a budget; everything lands in a run's folder.

    Args:
        model: trained; not changed.
        data: anything with ``train``, and ``val`` and ``test`` or not (they are then cut from
            it): DataLoaders, data sets (torch's or Hugging Face's) of pairs, triples or
            dictionaries; optional ``metric``, ``loss``, ``augment``, ``classes``.
        budget: ``Budget(latency_ms=2.0)``, ``Budget("latency<=0.5x", "size<=1MB")``, or a text.
        space: a shipped space's name, a path, or plain data.
        out: folder of the run.
        target, search, recovery, settings, tracking: sections of a study file, e.g.
            ``search={"trials": 100, "timeout_s": 600}``, ``recovery={"epochs": 3}``. The
            ``sampler`` of the search may be an ``optuna.samplers.BaseSampler`` itself.
        max_accuracy_drop: in points; the cheapest policy that keeps to it is the answer.
        executor, workers: ``local`` or ``ray``, and how many evaluations at once.
        resume: go on with the run in ``out``.
        quiet: nothing on the terminal.
        **reading: how the data are read, where they do not say it themselves; see ``Reading``.

    Raises:
        InputError: anything that cannot be used, before an existing run is touched.
        InfeasibleBudget: not even the cheapest policy meets the budget.
    """
    from autocompress.run.session import run_study

    data, section = _described(data, reading)
    searching, sampler = _sampler_apart(search or {})
    sections: dict[str, Any] = {
        "data": section,
        "target": target,
        "space": space,
        "search": searching,
    }
    sections |= {"recovery": recovery, "settings": settings, "tracking": tracking}
    more = {"max_accuracy_drop": max_accuracy_drop, "executor": executor, "workers": workers}
    study = _study(Path(out).name, budget, sections | more)
    with Display(quiet) as shown:
        done = run_study(
            study, Path(out), resume=resume, model=model, data=data, sampler=sampler, watcher=shown
        )
    return Result(done.folder.root, done.summary, done.view)


def _sampler_apart(search: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """The section with its sampler's name, and the sampler where it is an object."""
    if isinstance(search.get("sampler", ""), str):
        return dict(search), None
    return {**search, "sampler": type(search["sampler"]).__name__}, search["sampler"]


def _described(data: Any, reading: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The data with what a file cannot say of them, functions and groups, and what it can."""
    for name in reading:
        if name not in Reading.__annotations__:
            raise TypeError(f"search() has no {name!r}; {nearest(name, Reading.__annotations__)}")
    section = {k: v for k, v in reading.items() if k in ("memory", "length", "dynamic")}
    beside = {k: v for k, v in reading.items() if k not in section}
    if not beside:
        return data, section
    from autocompress.task.data import Described

    return Described(data, beside), section


def _study(name: str, budget: Budget | str | None, sections: dict[str, Any]) -> StudyConfig:
    """The study that a call describes, checked like a file."""
    from autocompress.run.study import GIVEN, read_study

    limits = Budget(budget) if isinstance(budget, str) else (budget or Budget())
    given = {
        "name": name,
        "model": {"factory": GIVEN},
        "data": {"factory": GIVEN, **sections.pop("data", {})},
        "budget": [str(limit) for limit in limits.limits],
    }
    asked = {k: _plain(v) for k, v in sections.items() if v is not None}
    return read_study(given | asked, where="the search")


def _plain(value: Any) -> Any:
    """A section as a study file would hold it."""
    if isinstance(value, SpaceConfig | CompressionSettings):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    return str(value) if isinstance(value, Path) else value


def apply(
    recipe: str | Path | Recipe | SavedRecipe,
    model: nn.Module | None = None,
    data: Any = None,
) -> nn.Module:
    """Rebuild a recipe's compressed model.

    With the weights that the recipe was found on, the result is the same model, trained weights
    included; with others of the same architecture, its policy is carried out on them anew.

    Args:
        recipe: a path, or a recipe at hand (one that carries no trained weights).
        model: uncompressed; ``None`` takes the study's own. Not changed.
        data: the splits; ``None`` takes the study's own.

    Returns:
        A module in eval mode, physically smaller, in float: quantized layers round their weights
        and inputs as the exported file does. ``autocompress apply`` writes that file.

    Raises:
        InputError: another architecture, or a model or data that must be handed over.
    """
    from autocompress.run.replay import open_recipe, rebuild
    from autocompress.techniques.quantize import simulate

    if isinstance(recipe, SavedRecipe):
        recipe = recipe.path
    loaded = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    beside = Path() if isinstance(recipe, Recipe) else Path(recipe).parent
    with tempfile.TemporaryDirectory() as scratch:
        parts, same = open_recipe(loaded, model, data=data, folder=Path(scratch))
        compressed = rebuild(loaded, parts, same, beside)
    return simulate(compressed) if compressed.quantized else compressed.module
