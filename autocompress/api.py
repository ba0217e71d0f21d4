"""The Python surface: run a study on objects at hand, and use what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from autocompress.errors import InputError
from autocompress.policy.budget import Budget
from autocompress.policy.recipe import Recipe
from autocompress.policy.section import Section
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.policy.writing import replacing
from autocompress.report.display import Display
from autocompress.results.front import ParetoFront
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial
from autocompress.run.reading import Reading, file_part, own_keywords
from autocompress.track.folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

    from autocompress.controller.config import SearchConfig
    from autocompress.policy.recovery import RecoveryConfig
    from autocompress.run.study import TrackingConfig
    from autocompress.targets.config import TargetConfig
    from autocompress.task.task import Task
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

        Raises:
            InputError: its trained weights are gone.
        """
        import shutil

        path, recipe = Path(path), self.load()
        if recipe.weights is not None:
            source = self.path.parent / recipe.weights
            if not source.is_file():
                raise InputError(
                    f"The trained weights {source} of the recipe are missing; put them back beside "
                    "it, or export the recipe again."
                )
            name = path.with_suffix(".safetensors").name
            with replacing(path.parent / name) as new:
                shutil.copyfile(source, new)
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
        """Whether any policy met the budget, measured."""
        return len(self.front) > 0

    @property
    def answered(self) -> bool:
        """Whether there is an answer: a feasible policy that keeps to the largest drop."""
        return self.view.best is not None

    @property
    def best(self) -> Answer:
        """The answer: the best trial within the budget, or the cheapest within the drop.

        Raises:
            InputError: no policy met the budget, or none keeps to the largest drop; the
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


@own_keywords
def search(
    model: nn.Module | str | Path,
    data: Any,
    *,
    budget: Budget | str | Sequence[str] | None = None,
    space: str | Path | Mapping[str, Any] | SpaceConfig = "auto",
    out: str | Path = "runs/python",
    target: TargetConfig | Mapping[str, Any] | None = None,
    also_on: Sequence[TargetConfig | Mapping[str, Any]] | None = None,
    search: SearchConfig | Mapping[str, Any] | None = None,
    recovery: RecoveryConfig | Mapping[str, Any] | None = None,
    settings: CompressionSettings | Mapping[str, Any] | None = None,
    tracking: TrackingConfig | Mapping[str, Any] | None = None,
    task: Task | str | Mapping[str, Any] | None = None,
    max_accuracy_drop: float | None = None,
    max_quality_drop: str | float | None = None,
    timeout_s: float | None = None,
    executor: str = "local",
    workers: int = 1,
    resume: bool = False,
    new_baseline: bool = False,
    quiet: bool = False,
    **reading: Unpack[Reading],
) -> Result:
    """Search the policies of a model under a budget; everything lands in a run's folder.

    Args:
        model: trained; not changed. Or the path of an ONNX file.
        data: anything with ``train`` (``val`` and ``test`` are cut from it where missing): loaders,
            data sets (torch's or Hugging Face's) of pairs, triples or dictionaries.
        budget: ``Budget(latency_ms=2.0)``, ``"latency<=0.5x"``, or a list of such texts.
        space, out: a shipped space's name, a path, or plain data; and the folder of the run.
        target, search, recovery, settings, tracking: sections of a study file: mappings, or
            ``TargetConfig`` and so on; ``sampler`` may be an ``optuna.samplers.BaseSampler``.
        also_on: up to three further targets on which every file is timed.
        timeout_s: seconds for the whole study, which ends with its report by then.
        task: a ``Task``, or a ready-made one's name (``"regression"``); see ``docs/tasks.md``.
        max_accuracy_drop, max_quality_drop: in points, or of any task in its metric's unit or as a
            share (``"2%"``); the cheapest policy that keeps to it is the answer.
        executor, workers, quiet: ``local``, ``ray`` or ``ray_tune``; workers at once; in silence.
        resume, new_baseline: go on in ``out``; both: trials of other models or data are set aside.
        **reading: how the data are read, where they do not say it themselves; see ``Reading``.

    Raises:
        InputError: what cannot be used; InfeasibleBudget: nothing meets the budget.
    """
    from autocompress.run.given import as_module, as_path, check_flags, given_study, told
    from autocompress.run.session import run_study

    folder, (searching, sampler) = as_path(out, "out"), _with_sampler(search)
    named: dict[str, Any] = {"target": target, "space": space, "search": searching}
    named |= {"recovery": recovery, "settings": settings, "tracking": tracking}
    named |= {"max_accuracy_drop": max_accuracy_drop, "max_quality_drop": max_quality_drop}
    named |= {"timeout_s": timeout_s, "executor": executor, "workers": workers, "also_on": also_on}
    study = given_study(folder.name, budget, task, data=file_part(reading), **named)
    given = {"sampler": sampler, **check_flags(resume=resume, new_baseline=new_baseline)}
    given |= {"model": as_module(model), "data": told(data, task, reading)}
    with Display(silent=check_flags(quiet=quiet)["quiet"]) as shown:
        done = run_study(study, folder, watcher=shown, **given)
    return Result(done.folder.root, done.summary, done.view)


@own_keywords
def run_study(
    study: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    budget: Budget | str | Sequence[str] | None = None,
    space: str | Path | Mapping[str, Any] | SpaceConfig | None = None,
    target: TargetConfig | Mapping[str, Any] | None = None,
    search: SearchConfig | Mapping[str, Any] | None = None,
    recovery: RecoveryConfig | Mapping[str, Any] | None = None,
    settings: CompressionSettings | Mapping[str, Any] | None = None,
    tracking: TrackingConfig | Mapping[str, Any] | None = None,
    timeout_s: float | None = None,
    resume: bool = False,
    new_baseline: bool = False,
    quiet: bool = False,
) -> Result:
    """Run a study that stands in a file, as ``autocompress search`` does.

    Args:
        study: name of a shipped study, path of a file, or a mapping as a file holds it.
        out: folder of the run; ``runs/NAME`` by default.
        budget: limits in place of the study's own.
        space, target, search, recovery, settings, tracking, timeout_s: laid over the study, key by
            key where both are sections.
        resume, new_baseline, quiet: as of ``search``.

    Raises:
        InputError: what cannot be used; InfeasibleBudget: nothing meets the budget.
    """
    from autocompress.run.given import as_path, changed_study, check_flags
    from autocompress.run.session import run_study

    searching, sampler = (None, None) if search is None else _with_sampler(search)
    named: dict[str, Any] = {"space": space, "target": target, "search": searching}
    named |= {"recovery": recovery, "settings": settings, "tracking": tracking}
    config = changed_study(study, budget, timeout_s=timeout_s, **named)
    folder = None if out is None else as_path(out, "out")
    given: dict[str, Any] = {"sampler": sampler}
    given |= check_flags(resume=resume, new_baseline=new_baseline)
    with Display(silent=check_flags(quiet=quiet)["quiet"]) as shown:
        done = run_study(config, folder, watcher=shown, **given)
    return Result(done.folder.root, done.summary, done.view)


def _with_sampler(search: SearchConfig | Mapping[str, Any] | None) -> tuple[Any, Any]:
    """The section of the search without a sampler that is an object, and that."""
    if isinstance(search, Section):
        return search, None
    if not isinstance(search, Mapping | None):
        raise InputError(f"`search` must be a mapping such as {{'trials': 100}}, got {search!r}.")
    section = dict(search or {})
    sampler = section.get("sampler")
    if sampler is None or isinstance(sampler, str):
        return section, None
    return {**section, "sampler": type(sampler).__name__}, sampler
