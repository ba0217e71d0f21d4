"""What the tests ask of an exported file: its score, and what the gate finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autocompress.measure.gate import inspect_file
from autocompress.measure.latency import Timing
from autocompress.quality.answers import file_answers
from autocompress.quality.score import Accuracy, MetricFunction, score
from autocompress.targets.base import Target
from autocompress.task.split import Split
from autocompress.techniques.compressed import Compressed


def file_accuracy(
    target: Target, path: Path, split: Split, metric: MetricFunction | None = None, **reading: Any
) -> Accuracy:
    """Of a file in its runtime; ``reading`` as in ``file_answers``."""
    return score(file_answers(target, path, split, **reading), metric)


def check_file(
    target: Target, path: Path, compressed: Compressed | None = None, timing: Timing | None = None
) -> list[str]:
    """One sentence for each promise that a file, or its time, breaks."""
    return inspect_file(target, path, compressed).judged(timing).problems
