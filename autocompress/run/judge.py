"""Anyone's files on one measured footing: quality, latency, memory, and what the runtime ran."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import InputError
from autocompress.run.study import StudyConfig

if TYPE_CHECKING:
    from autocompress.build.pipeline import Progress
    from autocompress.measure.accuracy import Accuracy
    from autocompress.run.evaluator import StudyEvaluator


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
    with tempfile.TemporaryDirectory() as scratch:
        parts = assemble(study, Path(scratch), progress=progress)
        evaluator = parts.evaluator
        base = evaluator.measurer.score(evaluator.measurer.baseline_file, split)
        rows = []
        for i, file in enumerate(files):
            progress(f"measuring {file.name}", i / len(files))
            rows.append(_row(evaluator, file, split, base))
    baseline = evaluator.baseline
    shown = {
        "accuracy": base.value,
        "accuracy_stderr": base.stderr,
        "latency_ms": baseline["latency_ms"],
        "size_bytes": baseline["size_bytes"],
    }
    return {"study": study.name, "split": split, "baseline": shown, "files": _worth(rows, shown)}


def _row(evaluator: StudyEvaluator, file: Path, split: str, base: Accuracy) -> dict[str, Any]:
    from autocompress.measure.accuracy import paired
    from autocompress.measure.gate import check_file

    measurer = evaluator.measurer
    timing = measurer.timing(file, max_seconds=3.0)
    found = measurer.score(file, split)
    row = {
        "file": str(file),
        "accuracy": found.value,
        "accuracy_stderr": found.stderr,
        "latency_ms": timing.ratio * evaluator.baseline["latency_ms"],
        "latency_ratio": timing.ratio,
        "ratio_low": timing.ratio_low,
        "ratio_high": timing.ratio_high,
        "size_bytes": timing.size_bytes,
        **measurer.memory(file),
        "problems": check_file(measurer.target, file, timing=timing),
        "notes": list(timing.notes),
    }
    if found.correct is not None and base.correct is not None:
        compared = paired(found, base)
        row["accuracy_difference"] = compared.difference
        row["accuracy_low"], row["accuracy_high"] = compared.low, compared.high
    return row


def _worth(rows: list[dict[str, Any]], baseline: dict[str, Any]) -> list[dict[str, Any]]:
    """Say of each file which ones are as accurate and faster by more than noise.

    One that none beats, the uncompressed model included, is worth shipping.
    """
    uncompressed = {**baseline, "file": "uncompressed", "ratio_low": 1.0, "ratio_high": 1.0}
    for row in rows:
        row["beaten_by"] = [
            other["file"]
            for other in (uncompressed, *rows)
            if other["accuracy"] >= row["accuracy"] and other["ratio_high"] < row["ratio_low"]
        ]
        row["worth_shipping"] = not row["beaten_by"]
    return rows
