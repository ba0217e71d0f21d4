"""Anyone's files on one measured footing: quality, latency, memory, and what the runtime ran.

A file is worth shipping where it keeps to what the study asks for, its runtime shows nothing odd,
and no other file, the uncompressed one included, is clearly better in quality or latency and in
neither clearly worse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import InputError
from autocompress.machine.progress import Progress
from autocompress.machine.scratch import scratch_folder
from autocompress.measure.gate import inspect_file
from autocompress.policy.costs import said
from autocompress.results.answer import allowed
from autocompress.results.difference import HITS, SCORES, difference, pack_hits, pack_scores
from autocompress.results.metric import Measurement, Metric
from autocompress.results.trial import exceeded
from autocompress.run.study import StudyConfig
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

if TYPE_CHECKING:
    from autocompress.run.assembly import Assembly
    from autocompress.task.split import Split
    from autocompress.task.task import Result


_NAMED = 3
"""Files that a sentence names."""
_SAME = 0.01
"""Of latency: the same file timed twice may differ by as much."""


@dataclass(frozen=True)
class Judged:
    """One file.

    Args:
        name: of the file.
        low, high: interval of its latency, as a share of the uncompressed file's.
        quality: with what came of each sample; ``None`` where it could not be told.
    """

    name: str
    low: float
    high: float
    quality: Measurement | None


def judge(
    study: StudyConfig, files: Sequence[Path], progress: Progress, *, split: str = "val"
) -> dict[str, Any]:
    """Score and time exported files beside the study's uncompressed model.

    Args:
        study: says the data, the metric, the target, the uncompressed model, the budget and the
            largest drop.
        files: in the target's format; of the study's model or of any other that takes its inputs.
        progress: told what is going on.
        split: that the files are scored on.

    Raises:
        InputError: a file that is missing; or the target can open none of them.
    """
    from autocompress.run.assembly import assemble

    missing = [str(f) for f in files if not f.is_file()]
    if missing:
        raise InputError(f"There is no file {', '.join(missing)}.")
    with scratch_folder("judge") as scratch:
        parts = assemble(study, scratch, progress=progress)
        evaluator, measurer = parts.evaluator, parts.evaluator.measurer
        base = measurer.quality(measurer.baseline_file, split)
        uncompressed = Judged("uncompressed", 1.0, 1.0, _measured(base, split, parts.task.figures))
        judged, rows = [uncompressed], []
        unread: list[dict[str, Any]] = []
        for i, file in enumerate(files):
            progress(f"measuring {file.name}", i / len(files))
            try:
                row, quality = _row(parts, file, split)
            except InputError as error:  # somebody's file says nothing about the others
                unread.append(_unread(file, error))
                if len(unread) == len(files):
                    raise
                continue
            rows.append(row)
            judged.append(Judged(str(file), row["ratio_low"], row["ratio_high"], quality))
        for row, one in zip(rows, judged[1:], strict=True):
            row |= _difference(one, uncompressed)
            found = {other.name: beats(other, one) for other in judged if other is not one}
            row["beaten_by"] = {name: how for name, how in found.items() if how}
            row["reasons"] = [
                *_reasons(row, one, parts, uncompressed),
                *_says_nothing(one, uncompressed, getattr(parts.data, split)),
            ]
            row["worth_shipping"] = not row["reasons"]
        shown = {**_scores(base), "latency_ms": evaluator.baseline["latency_ms"]}
        shown["size_bytes"] = evaluator.baseline["size_bytes"]
        shown |= measurer.extras.memory(measurer.baseline_file)
    return {
        "study": study.name,
        "split": split,
        "quality": parts.task.quality.as_dict(),
        "budget": str(study.limits()),
        "baseline": shown,
        "files": [*rows, *unread],
    }


def _unread(file: Path, error: InputError) -> dict[str, Any]:
    """A file of which nothing could be measured, with the reason."""
    told = {"problems": [], "notes": [], "beaten_by": {}, "reasons": [str(error)]}
    return {"file": str(file), **told, "worth_shipping": False}


def _scores(result: Result) -> dict[str, Any]:
    """Every figure that could be told, with its standard error."""
    found: dict[str, Any] = {}
    for name, score in result.scores.items():
        found |= {name: score.value, f"{name}_stderr": score.stderr}
    return found


def _measured(result: Result, split: str, figures: tuple[Metric, ...]) -> Measurement | None:
    """The quality with what came of each sample; ``None`` where it could not be told."""
    name = figures[0].name
    score = result.scores.get(name)
    if score is None:
        return None
    context: dict[str, Any] = {"images": result.count, "split": split}
    if score.each is not None:
        hits = score.each.dtype == bool
        context |= {HITS: pack_hits(score.each)} if hits else {SCORES: pack_scores(score.each)}
    error = {} if score.stderr is None else {name: score.stderr}
    return Measurement({name: score.value}, error, context, figures)


def _row(parts: Assembly, file: Path, split: str) -> tuple[dict[str, Any], Measurement | None]:
    """What was measured of a file, and its quality by sample."""
    evaluator, measurer = parts.evaluator, parts.evaluator.measurer
    timing, base_ms = measurer.timing(file, max_seconds=3.0), evaluator.baseline["latency_ms"]
    extras = measurer.beside_latency(
        file, timing, timing.ratio * base_ms, evaluator.baseline.values
    )
    found = measurer.quality(file, split)
    seen = inspect_file(measurer.target, file).judged(timing)
    row = {
        "file": str(file),
        **_scores(found),
        "latency_ms": timing.ratio * base_ms,
        "latency_ratio": timing.ratio,
        "ratio_low": timing.ratio_low,
        "ratio_high": timing.ratio_high,
        "size_bytes": timing.size_bytes,
        **measurer.extras.memory(file),
        **extras,
        "problems": [*found.problems, *seen.problems],
        "notes": [*timing.notes, *seen.notes, *(_built_again(file) if split == "val" else ())],
    }
    return row, _measured(found, split, parts.task.figures)


def _built_again(file: Path) -> Iterator[str]:
    """Why ``front`` shows another val of a run's own file, where it does."""
    folder = RunFolder(file.resolve().parent.parent)
    if file.resolve().parent != folder.models or not folder.is_run:
        return
    try:
        view = RunView.load(folder)
    except InputError as error:  # which says nothing about the file
        yield f"Its run cannot be read: {error}"
        return
    named = (t for t in view.front if file.stem == f"trial-{t.number}")
    trial = view.best if file.stem == "best" else next(named, None)
    if trial is not None and view.rebuilt(trial):
        yield (
            f"`front` tells val of trial {trial.number} after the search's quick reconstruction; "
            "this file is of the thorough one."
        )


def _difference(one: Judged, uncompressed: Judged) -> dict[str, Any]:
    """The quality less the uncompressed model's, with a 95 % interval, in the metric's unit."""
    if one.quality is None or uncompressed.quality is None:
        return {}
    found = difference(one.quality, uncompressed.quality)
    name, scale = found.metric.name, found.metric.shown(1.0)
    ends = {"difference": found.points, "low": found.low, "high": found.high}
    return {f"{name}_{key}": value / scale for key, value in ends.items()}


def beats(one: Judged, other: Judged) -> str:
    """How one file beats another, beyond what is noise; empty where it does not."""
    quicker = one.high * (1 + _SAME) < other.low
    slower = one.low > other.high * (1 + _SAME)
    better, worse = other.quality is None, one.quality is None
    if one.quality is not None and other.quality is not None:
        found = difference(one.quality, other.quality)
        sure = abs(found.points) > 1.96 * found.stderr
        better, worse = sure and found.gain > 0, sure and found.gain < 0
    if slower or worse or not (quicker or better):
        return ""
    if quicker and better:
        return "better and faster"
    return "as good and faster" if quicker else "better and as fast"


def beaten(names: Sequence[str], how: str) -> str:
    """One sentence for all files that beat another in the same way, however many there are."""
    rest = len(names) - _NAMED
    told = [*names[:_NAMED], *([f"{rest} more"] if rest > 0 else [])]
    if len(told) == 1:
        return f"{told[0]} is {how}."
    return f"{', '.join(told[:-1])} and {told[-1]} are {how}."


def _says_nothing(one: Judged, uncompressed: Judged, data: Split) -> Iterator[str]:
    """That a file tells classes no better than an answer that is always the same, where it does."""
    labels = data.labels
    if labels is None or one.quality is None or uncompressed.quality is None:
        return
    if one.quality.quality.name != "accuracy" or len(labels) != one.quality.context["images"]:
        return
    share = max(Counter(labels.tolist()).values()) / len(labels)
    value, error = one.quality.score, one.quality.spread.get("accuracy", 0.0)
    if value - 1.96 * error <= share < uncompressed.quality.score:
        yield f"It is not clearly better than to say one class of every sample ({share:.1%})."


def _reasons(
    row: dict[str, Any], one: Judged, parts: Assembly, uncompressed: Judged
) -> Iterator[str]:
    """Why a file is not worth shipping, one sentence each."""
    study, quality = parts.study, parts.task.quality
    for how in dict.fromkeys(row["beaten_by"].values()):
        yield beaten([name for name, each in row["beaten_by"].items() if each == how], how)
    base = parts.evaluator.baseline.values
    over = study.limits().on(row).violations(row, base)
    for metric, excess in exceeded(over).items():
        yield f"Its {said(metric)} is {excess:.0%} over the limit of the study's budget."
    if one.quality is None or uncompressed.quality is None:
        yield f"Its {quality.name} could not be told."
    else:
        most = allowed(uncompressed.quality, study.max_accuracy_drop, study.max_quality_drop)
        lost = quality.lost(one.quality.score, uncompressed.quality.score)
        if most is not None and lost > most + 1e-6:
            told = (quality.gap(quality.shown(x), signed=False) for x in (lost, most))
            yield f"It loses {next(told)}, more than the {next(told)} allowed."
    yield from row["problems"]
