"""The flagship: is a ten times faster VGG-16 found, at a point's loss, by one command in an hour?

Runs `studies/cifar10_vgg16.yaml` as `autocompress search` does, then looks at the file that came
out as a stranger would: it is timed anew beside the uncompressed one in the same runtime, and both
are scored on the whole test split. The study first finishes its model's training; that takes hours
on two cores, is kept between runs, and its time is listed by itself. A run that was cut off goes on
with the same ``--out``; its ``search_minutes`` are then those of this session only.

    python benchmarks/flagship.py --json [--quick] [--rounds N] [--out DIR]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from autocompress.errors import AutocompressError
from autocompress.measure.latency import paired_timing
from autocompress.measure.sampling import Plan
from autocompress.policy.policy import Policy
from autocompress.quality.answers import file_answers
from autocompress.quality.score import paired, score
from autocompress.report.display import Display
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.session import EndedRun, run_study
from autocompress.run.study import StudyConfig, load_study
from autocompress.track.folder import RunFolder

#: minutes of search and recovery, times faster, points of accuracy lost, share of the bytes
GOALS = {"search_minutes": 60.0, "speedup": 10.0, "points_lost": 1.0, "size_share": 0.1}


def study_of(quick: bool, rounds: int | None) -> StudyConfig:
    """The shipped study; a fraction of data, trials and training if it must be quick."""
    study = load_study("cifar10_vgg16")
    if not quick:
        return study.changed(baseline={"max_rounds": rounds})
    return study.model_copy(update={"baseline": None}).changed(
        data={"factory": study.data.factory, "args": {**study.data.args, "limit": 2000}},
        search={"trials": 8, "timeout_s": 60},
        recovery=study.recovery.model_copy(update={"epochs": 1.0, "candidates": 1}),
    )


def finished_training(study: StudyConfig, folder: Path) -> tuple[Assembly, float]:
    """Everything assembled, its model trained to the end, and the minutes that this took."""
    start, said = time.perf_counter(), 0.0

    def tell(text: str, done: float) -> None:
        nonlocal said
        if time.perf_counter() - said > 60:
            said = time.perf_counter()
            print(f"{(said - start) / 60:6.1f} min  {text}", file=sys.stderr, flush=True)

    parts = assemble(study, folder, progress=tell)
    return parts, (time.perf_counter() - start) / 60


def judged(parts: Assembly, model: Path, scratch: Path) -> dict[str, Any]:
    """The answer's file beside the uncompressed one, both as a stranger would look at them."""
    base = scratch / "uncompressed.onnx"
    parts.evaluator.measurer.export(parts.pipeline.stitch(Policy()), base)
    target = parts.evaluator.measurer.target
    timing = paired_timing(target, model, base, plan=Plan(precision=0.02, max_seconds=30.0))
    full, small = (score(file_answers(target, path, parts.data.test)) for path in (base, model))
    pair = paired(full, small)
    return {
        "uncompressed_ms": round(timing.baseline_ms, 4),
        "latency_ms": round(timing.latency_ms, 4),
        "speedup": round(1 / timing.ratio, 2),
        "speedup_95": [round(1 / timing.ratio_high, 2), round(1 / timing.ratio_low, 2)],
        "uncompressed_test": round(full.value, 4),
        "test": round(small.value, 4),
        "points_lost": round(100 * pair.difference, 2),
        "points_lost_95": [round(100 * pair.low, 2), round(100 * pair.high, 2)],
        "size_bytes": model.stat().st_size,
        "size_share": round(model.stat().st_size / base.stat().st_size, 4),
    }


def measure(study: StudyConfig, out: Path) -> dict[str, Any]:
    """Train, search, judge."""
    resumed = RunFolder(out).is_run
    with tempfile.TemporaryDirectory() as scratch:
        parts, training = finished_training(study, Path(scratch))
        start = time.perf_counter()
        with Display() as shown:
            done: EndedRun = run_study(study, out, resume=resumed, watcher=shown)
        found: dict[str, Any] = {
            "threads": torch.get_num_threads(),
            "training_minutes": round(training, 1),
            "resumed": resumed,
            "search_minutes": round((time.perf_counter() - start) / 60, 1),
            "trials": len(done.view.trials),
        }
        model = done.folder.best_model()
        if done.view.best is None or model is None:
            return {**found, "answer": None}
        found |= judged(parts, model, Path(scratch))
    at_least = {"speedup"}
    found["reached"] = {
        name: (found[name] >= goal if name in at_least else found[name] <= goal)
        for name, goal in GOALS.items()
    }
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one line")
    parser.add_argument("--quick", action="store_true", help="shows that it works, no more")
    parser.add_argument(
        "--rounds", type=int, help="at most so many rounds of finishing the training"
    )
    parser.add_argument("--out", type=Path, help="the run's folder; a temporary one if not given")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        try:
            found = measure(study_of(args.quick, args.rounds), args.out or Path(temporary) / "run")
        except AutocompressError as error:
            raise SystemExit(str(error)) from None
    print(
        json.dumps({"quick": args.quick, "goals": GOALS, **found}, indent=None if args.json else 1)
    )


if __name__ == "__main__":
    main()
