"""From a study to the working parts: model, data, inventory, space, target, pipeline, evaluator."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline, identity
from autocompress.controller.warm import WarmStart
from autocompress.errors import InputError, UnsupportedModel
from autocompress.estimate.latency_model import LatencyModel
from autocompress.estimate.other_device import check_foretold, remarks
from autocompress.machine.facts import cores_to_use
from autocompress.machine.progress import Progress, silent
from autocompress.model.cost import outside_of_layers
from autocompress.model.earlier import Earlier
from autocompress.model.fingerprint import fingerprint
from autocompress.model.inventory import take_inventory
from autocompress.model.prepare import prepare
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import Policy
from autocompress.policy.registry import by_knob
from autocompress.policy.space import Space
from autocompress.policy.writing import replacing
from autocompress.quality.saturation import settled
from autocompress.recover.distill import Distillation
from autocompress.results.metric import Measurement
from autocompress.run.evaluator import StudyEvaluator, make_evaluator
from autocompress.run.loading import load_data, load_importance, load_model, load_teacher, with_axes
from autocompress.run.study import AUTO, StudyConfig, read_study
from autocompress.run.target_fit import fitting_target, other_targets, tell
from autocompress.run.tasks import asked_of, judged_alike, settled_data
from autocompress.run.variables import with_variables
from autocompress.run.warm import warm_start
from autocompress.targets import get_target
from autocompress.task.calling import call, without_cache
from autocompress.task.mixing import SAMPLES, told_by_others
from autocompress.workloads.baseline import train_baseline
from autocompress.workloads.cache import cache_folder, digest, latency_folder
from autocompress.workloads.students import build_student

if TYPE_CHECKING:
    from torch import nn

    from autocompress.task.data import Data
    from autocompress.task.task import Task

_CLASSES = ("classification", "binary classification")
"""Tasks whose loss is that of earlier versions, so that what these kept is still good."""

_log = logging.getLogger(__name__)


@dataclass
class Assembly:
    """The parts of one study, made late and only once.

    Args:
        study: with its environment variables still named, so that what is written stays portable.
        model: uncompressed, in eval mode.
        data: three splits.
        inventory: of the model; once the layer bank is there, with the factors that it chose.
        folder: where the evaluator writes files.
        progress: told what is going on.
        given: the model and the data that were handed over in place of the study's factories.
        notes: what was changed on the copy of the model before its inventory was taken.
        earlier: the model before that, if anything was.
        advice: where the study asked for a space, what was measured for it.
    """

    study: StudyConfig
    model: nn.Module
    data: Data
    inventory: Inventory
    folder: Path
    progress: Progress = silent
    given: tuple[Any, Any] = (None, None)
    notes: tuple[str, ...] = ()
    earlier: Earlier | None = None
    advice: dict[str, Any] | None = None

    @cached_property
    def space(self) -> Space:
        """What may be done; where the bank settles what levels stand for, as it did."""
        bound = self.bind()
        settled = {knob for knob, technique in by_knob().items() if technique.settled_by_bank}
        if settled.isdisjoint(choice.kind for choice in bound.choices):
            return bound
        self.inventory = self.bank.inventory
        return self.bind()

    def bind(self) -> Space:
        """The space on the inventory as it is now.

        Raises:
            InputError: a pattern matches no layer, or nothing is left to search.
        """
        multiple = self.study.settings.channel_multiple
        return self.study.space_config().bind(self.inventory, channel_multiple=multiple)

    @cached_property
    def bank(self) -> LayerBank:
        """The layer bank, computed or read from the cache."""
        bank = LayerBank.build(
            self.model,
            self.inventory,
            self.data.train,
            self.study.settings,
            self._bank_folder,
            lambda text, done: self.progress(f"layer bank: {text}", done),
            self.task.criterion,
        )
        for sentence in bank.inventory.never_read:
            _log.info(sentence)
        return bank

    @cached_property
    def identity(self) -> dict[str, str]:
        """Fingerprints of the model and the data, for recipes and for runs that go on."""
        return identity(self.inventory, self.data)

    @cached_property
    def warm(self) -> WarmStart:
        """What the search takes over of the run that its study names."""
        return warm_start(self.study.search.warm_from, self.identity["architecture"])

    @cached_property
    def pipeline(self) -> Pipeline:
        """Builds compressed models from the layer bank."""
        self.inventory = self.bank.inventory
        return Pipeline(
            self.model,
            self.data,
            self.inventory,
            self.bank,
            self.study.settings,
            self.study.recovery.schedule,
            qat=self.study.recovery.qat,
            distillation=self._distillation(),
            students=self.students,
            refine=self.study.timed_refine(),
        )

    @cached_property
    def evaluator(self) -> StudyEvaluator:
        """Measures policies in the study's target, without a latency model yet."""
        return make_evaluator(
            self.pipeline,
            get_target(self.study.target.config()),
            self.folder,
            asked=self.study.extra_costs(),
            others=other_targets(self.study),
            progress=self.progress,
        )

    def latency_model(self) -> LatencyModel:
        """From a device's table, the cache, or measured; in the milliseconds of its own time."""
        evaluator, measurer = self.evaluator, self.evaluator.measurer
        if isinstance(other := measurer.other_device, LatencyModel):
            for sentence in remarks(other, measurer.target.config):
                _log.warning(sentence)
            check_foretold(other, self.space)
            return other
        model = LatencyModel.build(
            measurer.target,
            self.inventory,
            self.space,
            evaluator.export_variant,
            latency_folder(),
            settings=self.study.settings,
            baseline=measurer.baseline_file,
            quiet=measurer.quiet_speed,
            progress=lambda text, done: self.progress(f"latency table: {text}", done),
        )
        model.students = {n: evaluator.student_ratio(n) for n in self.pipeline.students}
        return model

    @property
    def latency_kept(self) -> bool:
        """Whether ``latency_model`` need measure nothing: a table tells it, or the cache does."""
        measurer, settings = self.evaluator.measurer, self.study.settings
        return measurer.other_device is not None or LatencyModel.is_kept(
            measurer.target, self.inventory, self.space, latency_folder(), settings=settings
        )

    def predict_latency(self) -> None:
        """Give the evaluator its latency model, scaled to the uncompressed model as it runs now."""
        model = self.latency_model()
        base = None
        if self.evaluator.measurer.other_device is None:
            base = self.evaluator.baseline
            model.baseline_ms = base["latency_ms"]
        self.evaluator.estimator.predict_with(model, base)

    def evaluator_factory(self, shared: Path | None = None) -> EvaluatorFactory:
        """Builds the evaluator again in another process.

        Args:
            shared: folder on this machine from whose file processes map a model and data that were
                handed over, instead of each holding a copy.
        """
        import torch

        given: Any = self.given
        if shared is not None and given != (None, None):
            with replacing(shared / "given.pt") as partial:
                torch.save(given, partial)
            given = shared / "given.pt"
        return EvaluatorFactory(
            self.study.model_dump(mode="json"),
            str(self.folder),
            self.evaluator.baseline.as_dict(),
            given,
            inventory=self.inventory,
        )

    @property
    def task(self) -> Task:
        """What the model is for."""
        assert self.data.task is not None  # `assemble` settled it
        return self.data.task

    @property
    def _bank_folder(self) -> Path:
        """Where layer banks are cached; orders that another loss gave lie apart."""
        folder = cache_folder() / "banks"
        plain = self.task.name in _CLASSES or self.study.settings.importance != "taylor"
        return folder if plain else folder / digest(str(self.task))

    def _distillation(self) -> Callable[[Policy], Any]:
        config = self.study.recovery.distillation

        @cache
        def teachers() -> list[nn.Module]:
            # late, because a teacher may be trained on the spot
            return [load_teacher(t) for t in config.teachers] or [self.model]

        return lambda policy: Distillation.of(config, teachers(), policy.distill)

    @cached_property
    def students(self) -> dict[str, Callable[[], nn.Module]]:
        """Factories of the architectures that may take the model's place."""
        names = self.study.space_config().students
        if not names:
            return {}
        shape = self.inventory.input_shape[0]
        return {name: partial(build_student, name, shape, self.data.classes) for name in names}


def assemble(
    study: StudyConfig,
    folder: Path,
    *,
    model: nn.Module | None = None,
    data: Any = None,
    inventory: Inventory | None = None,
    progress: Progress = silent,
    reached: bool = True,
) -> Assembly:
    """Load model and data, train the baseline if the study asks for it, and bind the space.

    Args:
        study: as read; variables are resolved here. ``space: auto`` is all that it may come to.
        folder: where files of the evaluation go; nothing is written yet.
        model, data: take the place of the study's factories.
        inventory: of this model, as another process took it; how far the clock lets channels be
            tried may differ from process to process.
        progress: told what is going on.
        reached: see that a device of another place is there, before anything else.

    Raises:
        InputError: anything in the study that does not fit the model or this machine.
    """
    target = fitting_target(study, reached=reached)
    load_importance(study.settings.importance)
    study.space_config()  # a file that cannot be read is said before a model is trained
    progress("data", 0.0)
    section = with_variables(study.data)
    given_data, data = data, load_data(section, data)
    progress("model", 0.0)
    raw = load_model(with_variables(study.model)) if model is None else model
    prepared = prepare(raw)
    for note in prepared.notes:
        _log.info(note)
    given, model = (None if model is None else prepared.model, given_data), prepared.model
    data = data.in_float32().fitted(without_cache(model))
    data = settled_data(study, section.task, model, data)
    if study.baseline is not None:
        model = _train_baseline(study, model, data, progress)
    data = with_axes(data, model)
    mixed = told_by_others(partial(call, model), data.train.inputs(SAMPLES))
    for warning in mixed if inventory is None else ():  # workers need not say it again
        _log.warning(warning)
    for note in data.notes:
        progress(f"data: {note}", 0.0)
    try:
        inventory = _inventory(model, data, inventory)
    except UnsupportedModel as error:
        raise UnsupportedModel(" ".join([str(error), *mixed])) from error
    wider = {"prune_residual": True} if study.space_config().prune_residual else {}
    settings = settled(study.settings, target).model_copy(update=wider)
    study = study.model_copy(update={"settings": settings, **asked_of(study, data.task)})
    notes = (*prepared.notes, *mixed, *outside_of_layers(model, inventory))
    earlier = Earlier.of(raw, prepared)
    parts = Assembly(study, model, data, inventory, folder, progress, given, notes, earlier)
    space = parts.bind()  # what fits nothing is said before anything is computed
    if study.space != AUTO:
        tell(space, study.space_config(), inventory, type(target))
    return parts


def _inventory(model: nn.Module, data: Data, known: Inventory | None) -> Inventory:
    """The inventory of a model: taken now, or by another process on the same model."""
    inventory = known or take_inventory(model, data.train.inputs(2), data.dynamic)
    if inventory.cannot_prune:
        _log.info(inventory.cannot_prune)
    for sentence in outside_of_layers(model, inventory):
        _log.info(sentence)
    if known is not None and fingerprint(model) != (inventory.architecture, inventory.weights):
        raise InputError(
            "Every process of a study must work on the same model, but this one made other weights "
            "than the one that started it. Let the model's factory give the same weights at every "
            "call (load them, or set the seed in it), or evaluate in one process."
        )
    return inventory


def _train_baseline(
    study: StudyConfig, model: nn.Module, data: Data, progress: Progress
) -> nn.Module:
    assert study.baseline is not None
    return train_baseline(
        model,
        data,
        study.baseline.schedule,
        cache_folder() / "baselines",
        patience=study.baseline.patience,
        min_delta=study.baseline.min_delta,
        max_rounds=study.baseline.max_rounds,
        progress=lambda text, done: progress(f"baseline: {text}", done),
    )


def _mapped(file: Path) -> Any:
    """Objects of this study's own making, with their tensors mapped from the file."""
    import torch

    return torch.load(file, mmap=True, weights_only=False)


@dataclass(frozen=True)
class EvaluatorFactory:
    """Builds the evaluator again in a worker process; picklable.

    Args:
        study: plain data of the resolved study.
        folder: shared with the parent.
        baseline: the parent's measurement of the uncompressed model.
        given: model and data that were handed over in Python, or the file that holds them.
        inventory: of the model, as the parent took it.
    """

    study: dict[str, Any]
    folder: str
    baseline: dict[str, Any] | None = None
    given: Any = (None, None)
    inventory: Inventory | None = None

    def __call__(self) -> StudyEvaluator:
        """The worker's evaluator; the layer bank comes from the cache."""
        import torch

        torch.set_num_threads(min(torch.get_num_threads(), cores_to_use()))
        model, data = self.given if not isinstance(self.given, Path) else _mapped(self.given)
        parts = assemble(
            read_study(self.study),
            Path(self.folder),
            model=model,
            data=data,
            inventory=self.inventory,
        )
        if self.baseline is None:
            return parts.evaluator

        measured = Measurement.from_dict(self.baseline)
        judged_alike(measured.quality, parts)
        parts.evaluator.measurer.set_baseline(measured)
        return parts.evaluator
