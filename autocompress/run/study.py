"""A study file: which model, data, target, space and budget, and how to search and recover.

Reading a study loads no heavy library. A name without a path or suffix means a shipped study or
search space; ``${NAME}`` in any text stands for an environment variable.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from autocompress.cascade.amounts import asked_amounts
from autocompress.controller.config import SearchConfig
from autocompress.controller.time_budget import RECOVERY_SHARE
from autocompress.errors import InputError, close_to
from autocompress.policy.budget import Budget
from autocompress.policy.claims import Points
from autocompress.policy.costs import MOST_TARGETS, ON_OTHERS, WORST, extra
from autocompress.policy.federation import FederationSection
from autocompress.policy.reading import read_mapping
from autocompress.policy.recovery import ModelSection, RecoveryConfig, Schedule
from autocompress.policy.section import CONTRADICTION, Section
from autocompress.policy.settings import CompressionSettings, RefineConfig
from autocompress.policy.space_config import SpaceConfig
from autocompress.policy.ways import LEVELS, ZEROS, space_of
from autocompress.results.metric import Allowance
from autocompress.run.target_section import ByRuntime, TargetSection

AUTO = "auto"
"""The space that is measured first."""
GIVEN = "given-in-python"
"""Stands for a model or data that were handed over as objects, not by a factory."""


T = TypeVar("T")
NameOr = Annotated[
    Annotated[str, Tag("(by name)")] | Annotated[T, Tag("(inline)")],
    Discriminator(lambda data: "(by name)" if isinstance(data, str) else "(inline)"),
]
"""Something by its name, or itself; an error is that of the one which was meant."""


class TaskSection(Section):
    """What the model is for.

    Args:
        factory: a ready-made task's name, or ``package.module:function`` that returns an
            ``autocompress.Task``.
        args: keyword arguments of the factory.
    """

    factory: str
    args: dict[str, Any] = Field(default_factory=dict)


class DataSection(Section):
    """The data.

    Args:
        factory: ``package.module:function`` that returns an ``autocompress.Data`` or anything
            with the three splits.
        args: keyword arguments of the factory.
        task: what the model is for: a ready-made task's name (``regression``), or its ``factory``
            and ``args``; a factory may also be ``package.module:function`` that returns an
            ``autocompress.Task``. ``null`` takes the data's own, or reads it from the targets where
            that is certain.
        input_fn: ``package.module:function`` from a batch to the model's inputs, where a batch
            does not say what is what.
        target_fn: the same for the targets.
        memory: budget of decoded samples, such as ``2GB``; ``null`` is
            ``AUTOCOMPRESS_DATA_MEMORY``, or a quarter of what the machine has free.
        length: samples to take of streams without a length, for all splits or by split.
        dynamic: input name to its free axes beside the batch, each with a name
            (``{input_ids: {1: sequence}}``) or only by number (``{input_ids: [1]}``), or ``auto``
            to find them.
    """

    factory: str
    args: dict[str, Any] = Field(default_factory=dict)
    input_fn: str | None = None
    target_fn: str | None = None
    memory: str | int | None = None
    length: int | dict[str, int] | None = None
    dynamic: Literal["auto"] | dict[str, dict[int, str] | list[int]] | None = None
    task: NameOr[TaskSection] | None = None


class BaselineSection(Section):
    """Train the model on the spot before anything else; the weights are cached.

    Args:
        schedule: as in ``recovery.schedule``.
        patience: stop when this many epochs brought no better validation quality; ``null``
            trains to the schedule's end.
        min_delta: a gain no larger than this does not count as better for ``patience``; in the
            metric's unit (0.004: 0.4 points of accuracy).
        max_rounds: with ``patience``, train the schedule at most so many times.
    """

    schedule: Schedule = Schedule()
    patience: int | None = None
    min_delta: float = Field(0.0, ge=0)
    max_rounds: int | None = Field(None, ge=1)


class TrackingConfig(Section):
    """Where trials are shown.

    Args:
        mlflow: log to MLflow.
        uri: tracking store; ``null`` is an SQLite file beside the runs.
        experiment: name; ``null`` is the study's.
        register_best: register the best model's ONNX file in the model registry.
        storage: one of Optuna's storages (``sqlite:///study.db``, ``postgresql://...``,
            ``journal:FILE``) that the search's trials are mirrored to. Several drivers that name
            the same one share a study: each policy is evaluated once.
    """

    mlflow: bool = True
    uri: str | None = None
    experiment: str | None = None
    register_best: bool = True
    storage: str | None = None


class ResourcesSection(Section):
    """What Ray reserves for each worker.

    Args:
        cpus: cores, or a share of one; ``null`` shares out this machine's.
        gpus: graphics cards, or a share of one.
    """

    cpus: float | None = Field(None, gt=0)
    gpus: float = Field(0.0, ge=0)


_ONE_PART = {"pattern": r"^[^/\\\x00-\x1f\x7f]{1,100}$"}


def _one_part(name: str) -> str:
    """It names the run's folder, which must not lie elsewhere."""
    slashes = {"/", "\\"} & {*name}
    if 1 <= len(name) <= 100 and name.isprintable() and not slashes and name.strip("."):
        return name
    said = "must be 1 to 100 printable characters without slashes, not dots alone; got"
    raise PydanticCustomError(CONTRADICTION, "{said}", {"said": f"{said} {name[:100]!r}."})


def _further(listed: Any) -> Any:
    """Read each with its place, for messages."""
    if not isinstance(listed, list | tuple):
        return listed
    return [TargetSection.of(data, f"also_on.{i}") for i, data in enumerate(listed)]


class DynamicConfig(Section):
    """A cascade of the run's members as its last phase; one of the two.

    Args:
        min_accuracy: at most so many points of accuracy below the uncompressed model (``0.2%``), on
            inputs that were not seen and with 95 % confidence; the quickest cascade is made.
        mean_latency: that is not exceeded (``0.3ms``), with the same confidence; the most accurate
            cascade is made.
    """

    min_accuracy: str | float | None = None
    mean_latency: str | float | None = None


class StudyConfig(Section):
    """A whole study: what to compress, for which target, and how to search.

    Args:
        name: of the run's folder; by default the file's name.
        model: uncompressed and trained.
        data: its three splits.
        baseline: trains the model first; ``null`` takes it as it is.
        target: where the compressed model is to run: ``runtime``, ``threads``, ``batch``.
        also_on: further targets, three at most: every file is timed on them too, as ``latency_2``,
            ``latency_3``, ... and ``latency_worst``, the largest share of the uncompressed latency.
        space: what may be done to which layers: a shipped space's name, a file, or a space itself;
            ``auto`` measures what each way gains here before the search, and takes what does; see
            ``advise``.
        settings: how compression is carried out, the same for every policy.
        budget: limits such as ``latency<=0.5x``, ``macs<=40%``, ``size<=1MB``.
        max_accuracy_drop: in points of a classification's accuracy; limits the answer, not the
            search.
        max_quality_drop: the same for any task: in the metric's unit (``0.3``), or a share of the
            uncompressed model's value (``2%``). ``null`` takes what the task says.
        timeout_s: seconds for the whole study, from reading the model to the report; its phases
            are planned to end in time. ``null`` sets no limit.
        search: how policies are found.
        recovery: how the best policies are trained.
        dynamic: let small models of the run answer what they are sure of, as its last phase;
            ``null`` makes no cascade.
        tracking: where trials are shown.
        federation: how it runs where its data lie with many clients.
        executor: ``local``, ``ray`` (its actors) or ``ray_tune`` (trials of Ray Tune).
        workers: evaluations at once; latency is still measured one at a time.
        ray_address: of a running Ray cluster; ``null`` starts one here.
        resources: of each worker under Ray.
    """

    name: Annotated[str, AfterValidator(_one_part), Field(json_schema_extra=_ONE_PART)]
    model: ModelSection
    data: DataSection
    baseline: BaselineSection | None = None
    target: Annotated[TargetSection, ByRuntime()] = Field(
        default_factory=lambda: TargetSection.of({})
    )
    also_on: Annotated[
        tuple[Annotated[TargetSection, ByRuntime()], ...],
        BeforeValidator(_further),
        Field(max_length=MOST_TARGETS - 1),
    ] = ()
    space: NameOr[SpaceConfig] = AUTO
    settings: CompressionSettings = CompressionSettings()
    budget: tuple[str, ...] = ()
    max_accuracy_drop: Points | None = None
    max_quality_drop: str | float | None = None
    timeout_s: float | None = Field(None, gt=0)
    search: SearchConfig = SearchConfig()
    recovery: RecoveryConfig = RecoveryConfig()
    dynamic: DynamicConfig | None = None
    tracking: TrackingConfig = TrackingConfig()
    federation: FederationSection | None = None
    executor: Literal["local", "ray", "ray_tune"] = "local"
    workers: int = Field(1, ge=1, le=10_000)
    ray_address: str | None = None
    resources: ResourcesSection = ResourcesSection()

    def limits(self) -> Budget:
        """The budget as a value."""
        return Budget.parse(self.budget)

    def extra_costs(self) -> frozenset[str]:
        """Costs that are measured because the budget or the objectives name them."""
        on_others = (*ON_OTHERS[: len(self.also_on)], WORST) if self.also_on else ()
        return extra({*self.limits().metrics, *self.search.objectives, *on_others})

    def space_config(self) -> SpaceConfig:
        """The search space, by name, path or inline; of ``auto``, all that it may come to."""
        if self.space == AUTO:
            ways = [way for way in LEVELS if way != ZEROS]
            return SpaceConfig.read(space_of(ways), where="the space")
        if isinstance(self.space, str):
            return SpaceConfig.load(find_file(self.space, "search_spaces"))
        return self.space

    @property
    def trains(self) -> bool:
        """Whether its last phases train, with labels or without."""
        return self.recovery.epochs > 0 or self.settings.finish == "refine"

    def timed_refine(self) -> RefineConfig:
        """How ``finish: refine`` trains, with a limit where the study's time has one.

        Half of the study's time is for the candidates and one more, a quarter where labels train
        them as well.
        """
        asked = self.settings.refine
        if self.settings.finish != "refine" or self.timeout_s is None:
            return asked
        share = RECOVERY_SHARE / (2 if self.recovery.epochs > 0 else 1)
        each = share * self.timeout_s / (self.recovery.candidates + 1)
        seconds = each if asked.seconds is None else min(asked.seconds, each)
        return asked.model_copy(update={"seconds": seconds})

    def changed(self, **changes: Any) -> StudyConfig:
        """A checked copy; a value that is a mapping is laid over the section it names."""
        data = self.model_dump(mode="json")
        for key, value in changes.items():
            if isinstance(value, Mapping) and isinstance(data.get(key), dict):
                data[key] = {**data[key], **value}
            elif value is not None:
                data[key] = value
        return read_study(data, where=f"study {self.name!r}")


def load_study(name: str | Path) -> StudyConfig:
    """Read a study by path, or a shipped one by name.

    Raises:
        InputError: no such study, unreadable, or not valid; the message names the nearest.
    """
    path = find_file(str(name), "studies")
    data = read_mapping(path, "study")
    data.setdefault("name", path.stem)
    if isinstance(data.get("space"), str) and data["space"].endswith((".yaml", ".yml")):
        beside = path.parent / data["space"]
        if os.path.isfile(beside):
            data["space"] = str(beside.resolve())
    return read_study(data, where=str(path))


def read_study(data: Mapping[str, Any], *, where: str = "the study") -> StudyConfig:
    """Check plain data; every level refuses unknown keys with the nearest valid one."""
    study = StudyConfig.read(dict(data), where=where)
    try:
        study.limits()
        if study.dynamic is not None:
            asked_amounts(study.dynamic.min_accuracy, study.dynamic.mean_latency)
        if study.max_quality_drop is not None:
            Allowance.parse(study.max_quality_drop)
            if study.max_accuracy_drop is not None:
                raise InputError("Give `max_accuracy_drop` or `max_quality_drop`, not both.")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return study


def shipped(kind: Literal["studies", "search_spaces"]) -> dict[str, Path]:
    """Files that come with the package: name to path."""
    here = Path(__file__).parent.parent
    folders = (here / "_shipped" / kind, here.parent / kind)
    folder = next((f for f in folders if f.is_dir()), None)
    return {p.stem: p for p in sorted(folder.glob("*.yaml"))} if folder else {}


def find_file(name: str, kind: Literal["studies", "search_spaces"]) -> Path:
    """A path, or the shipped file of that name."""
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path):  # also says no to a name that no file can have
        return path
    known = shipped(kind)
    if path.name == name and name in known:
        return known[name]
    # `studies/quickstart.yaml` works from any folder, not only from a clone
    if path.suffix in (".yaml", ".yml") and path.parent.name in ("", kind) and path.stem in known:
        return known[path.stem]
    if os.path.exists(path):
        return path  # whatever it is, its reader tells
    what = "study" if kind == "studies" else "search space"
    beside = [str(p) for p in path.parent.glob("*.yaml")] if os.path.isdir(path.parent) else []
    close = close_to(name, [*known, *beside])
    raise InputError(
        f"There is no {what} {name!r}{f'; {close}' if close else '.'} "
        f"Shipped: {', '.join(known) or 'none'}."
    )
