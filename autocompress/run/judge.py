"""Anyone's files on one measured footing: quality, latency, memory, and what the runtime ran."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import InputError
from autocompress.machine.progress import Progress
from autocompress.machine.scratch import scratch_folder
from autocompress.measure.gate import inspect_file
from autocompress.results.metric import Metric
from autocompress.run.study import StudyConfig

if TYPE_CHECKING:
    from autocompress.run.evaluator import StudyEvaluator
    from autocompress.task.task import Result


def judge(
    study: StudyConfig, files: Sequence[Path], progress: Progress, *, split: str = "val"
) -> dict[str, Any]:
    """Score and time exported files beside the study's uncompressed model.

    Args:
        study: says the data, the metric, the target and the uncompressed model.
        files: in the target's format; of the study's model or of any other that takes its inputs.
        progress: told what is going on.
        split: that the files are scored on.

    Raises:
        InputError: a file that is missing or that the target cannot open.
    """
    from autocompress.run.assembly import assemble

    missing = [str(f) for f in files if not f.is_file()]
    if missing:
        raise InputError(f"There is no file {', '.join(missing)}.")
    with scratch_folder("judge") as scratch:
        parts = assemble(study, scratch, progress=progress)
        evaluator = parts.evaluator
        base = evaluator.measurer.quality(evaluator.measurer.baseline_file, split)
        rows = []
        for i, file in enumerate(files):
            progress(f"measuring {file.name}", i / len(files))
            rows.append(_row(evaluator, file, split, base))
    quality = parts.task.quality
    shown = {**_scores(base), "latency_ms": evaluator.baseline["latency_ms"]}
    shown["size_bytes"] = evaluator.baseline["size_bytes"]
    return {
        "study": study.name,
        "split": split,
        "quality": quality.as_dict(),
        "baseline": shown,
        "files": _worth(rows, shown, quality),
    }


def _scores(result: Result) -> dict[str, Any]:
    """Every figure that could be told, with its standard error."""
    found: dict[str, Any] = {}
    for name, score in result.scores.items():
        found |= {name: score.value, f"{name}_stderr": score.stderr}
    return found


def _row(evaluator: StudyEvaluator, file: Path, split: str, base: Result) -> dict[str, Any]:
    measurer = evaluator.measurer
    timing, base_ms = measurer.timing(file, max_seconds=3.0), evaluator.baseline["latency_ms"]
    extras = measurer.beside_latency(
        file, timing, timing.ratio * base_ms, evaluator.baseline.values
    )
    found = measurer.quality(file, split)
    judged = inspect_file(measurer.target, file).judged(timing)
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
        "problems": [*found.problems, *judged.problems],
        "notes": [*timing.notes, *judged.notes],
    }
    return row | _difference(evaluator.measurer.pipeline.task.quality.name, found, base)


def _difference(name: str, found: Result, base: Result) -> dict[str, Any]:
    """The quality beside the uncompressed model's on the same samples, where each has one."""
    from autocompress.measure.accuracy import Accuracy, paired

    both = [result.scores.get(name) for result in (found, base)]
    if any(s is None or s.each is None or s.each.dtype != bool for s in both):
        return {}
    first, second = (
        Accuracy(s.value, s.stderr or 0.0, len(s.each), s.each)
        for s in both
        if s is not None and s.each is not None
    )
    compared = paired(first, second)
    return {
        f"{name}_difference": compared.difference,
        f"{name}_low": compared.low,
        f"{name}_high": compared.high,
    }


def _worth(
    rows: list[dict[str, Any]], baseline: dict[str, Any], quality: Metric
) -> list[dict[str, Any]]:
    """Say of each file which ones are as good and faster by more than noise.

    One that none beats, the uncompressed model included, is worth shipping.
    """
    uncompressed = {**baseline, "file": "uncompressed", "ratio_low": 1.0, "ratio_high": 1.0}
    name = quality.name
    for row in rows:
        row["beaten_by"] = [
            other["file"]
            for other in (uncompressed, *rows)
            if name in other
            and not (name in row and quality.better(row[name], other[name]))
            and other["ratio_high"] < row["ratio_low"]
        ]
        row["worth_shipping"] = not row["beaten_by"]
    return rows
