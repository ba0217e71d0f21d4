"""What a recipe and the records of a run say was measured, and how: the form of plain data."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    Strict,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import CoreSchema, core_schema

from autocompress.policy.defaults import DEFAULT_RUNTIME
from autocompress.policy.section import STRICT, AsWritten


def _unchanged(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    check(value)
    return value


_SAME = PlainSerializer(lambda value: value)
Number = Annotated[FiniteFloat, Strict(), WrapValidator(_unchanged), _SAME]
"""Neither text nor ``true``; a whole number stays as it was written, without a point."""
_NotNegative = Annotated[FiniteFloat, Strict(), Field(ge=0), WrapValidator(_unchanged), _SAME]
Points = Annotated[float, Field(gt=0, le=100)]
"""A loss of accuracy that is allowed, in points."""
Count = Annotated[int, Strict(), Field(ge=0)]
Flag = Annotated[bool, Strict()]


class ReadsAs:
    """Plain data that is checked as a section or dataclass, and kept as it was written.

    Args:
        kind: whose form it must have; its JSON Schema is told.
    """

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(
            _unchanged,
            TypeAdapter(self.kind).core_schema,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda data: data),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return handler(TypeAdapter(self.kind).core_schema)


class MetricClaim(AsWritten):
    """A metric of the task.

    Args:
        name: key in ``values``.
        unit: for people.
        goal: ``maximize`` or ``minimize``.
        margin: by how much worse than the uncompressed model is of no use.
    """

    name: str
    unit: str
    goal: Literal["maximize", "minimize"]
    margin: str | float | None = None


class _Open(AsWritten):
    """What may hold more than is named here; only what others rely on has a form."""

    model_config = ConfigDict({**STRICT, "extra": "allow"})


class TimingFacts(_Open):
    """Under what circumstances a latency was timed.

    Args:
        target: as it tells of itself.
        machine: the computer.
        load_before: load average.
        earlier: whether the timing is that of an earlier trial, in a quieter moment.
    """

    target: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None
    load_before: Number | None = None
    earlier: Flag = False


class TimingClaim(_Open):
    """How a latency was timed, beside the uncompressed model.

    Args:
        ratio: share of the uncompressed model's latency.
        ratio_low, ratio_high: its interval.
        confidence: of the interval.
        latency_ms, iqr_ms: median and interquartile range.
        baseline_ms, baseline_iqr_ms: those of the uncompressed model, in the same rounds.
        rounds: interleaved rounds.
        noisy: the interval stayed wider than asked.
        disturbed: something else slowed the machine.
        facts: circumstances.
        p99_ms, baseline_p99_ms: 99th percentile of single inferences.
    """

    ratio: Number | None = None
    ratio_low: Number | None = None
    ratio_high: Number | None = None
    confidence: Number | None = None
    latency_ms: Number | None = None
    iqr_ms: Number | None = None
    baseline_ms: Number | None = None
    baseline_iqr_ms: Number | None = None
    rounds: Count | None = None
    noisy: Flag | None = None
    disturbed: Flag | None = None
    facts: TimingFacts | None = None
    p99_ms: Number | None = None
    baseline_p99_ms: Number | None = None


def _packed(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"it is no base64 ({error})") from None
    return text


Packed = Annotated[str, AfterValidator(_packed)]


class Circumstances(_Open):
    """How something was measured.

    Args:
        split: on which.
        images: samples of it.
        target: as it tells of itself.
        identity: fingerprints of the model and the data.
        waited_s: for a quiet machine.
        timing: of the latency.
        expected: ``latency_ms`` as it was estimated before, and ``sigma_ms``, the estimate's
            standard deviation.
        problems, notes: for people.
        hits: which samples were answered rightly, packed.
        scores: of the first samples, packed.
    """

    split: str | None = None
    images: Count | None = None
    target: dict[str, Any] | None = None
    identity: dict[str, str] | None = None
    waited_s: Number = 0.0
    timing: TimingClaim | None = None
    expected: dict[str, Number] | None = None
    problems: tuple[str, ...] | None = None
    notes: tuple[str, ...] | None = None
    hits: Packed | None = None
    scores: Packed | None = None


class Claim(AsWritten):
    """What one evaluation found.

    Args:
        values: metric name to value.
        spread: metric name to standard error, or of the latency to interquartile range.
        context: how it was measured.
        metrics: of the task, the quality first; a classification's accuracy where it is left out.
    """

    values: dict[str, Number]
    spread: dict[str, Number] = Field(default_factory=dict)
    context: Annotated[dict[str, Any], ReadsAs(Circumstances)] = Field(default_factory=dict)
    metrics: tuple[MetricClaim, ...] | None = None


class Recovered(AsWritten):
    """The training that the claimed model got.

    Args:
        epochs: of fine-tuning, by the study's ``recovery.schedule``.
        rung: of the recovery, from 1; 0 outside it.
        seed: of everything random in it.
        split: on which it was measured.
        final: whether it was finished as for the ``verify`` phase.
    """

    epochs: _NotNegative = 0.0
    rung: Count = 0
    seed: Annotated[int, Strict()] = 0
    split: Literal["val", "test"] = "val"
    final: Flag = False


class CascadeStage(AsWritten):
    """Members that are asked at once.

    Args:
        recipes: names of their recipes in the folder of this one.
        temperatures: of each member's probabilities.
        threshold: the stage answers what it is so sure of; ``null``: all that is left.
        exit: tensor of the member's file at which a head answers; ``null``: the member's end.
        takes: the network's inputs, or the features at the exit of the stage before.
    """

    recipes: tuple[str, ...]
    temperatures: tuple[Number, ...]
    threshold: Number | None = None
    exit: str | None = None
    takes: Literal["inputs", "features"] = "inputs"


class CascadeClaim(AsWritten):
    """How members of a run answer together.

    Args:
        confidence: by which a stage answers or hands on.
        scores: what the output holds, logits of classes or one logit of yes.
        output: place of that output among the files' outputs.
        stages: the first to be asked first.
    """

    confidence: Literal["margin", "entropy", "probability", "agreement"]
    scores: Literal["softmax", "sigmoid"]
    output: Count
    stages: tuple[CascadeStage, ...]


class TargetClaim(_Open):
    """The runtime that was measured in, as it tells of itself; each may tell more.

    Args:
        runtime: the target's name.
        version: of the runtime.
        device: ``cpu``, ``cuda``, ...
        threads: of one inference.
        batch: samples per inference.
    """

    runtime: str = DEFAULT_RUNTIME
    version: str = ""
    device: str = "cpu"
    threads: Annotated[int, Strict(), Field(ge=1)] = 1
    batch: Annotated[int, Strict(), Field(ge=1)] = 1
