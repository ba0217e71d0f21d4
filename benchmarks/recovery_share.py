"""Which share of a study's time training should have: the same study with several shares.

Preparation takes what it takes; of the time after it, training gets the share and the search the
rest. The answer's accuracy on test is told for each. Caches are left aside, so that every study
prepares anew; multiply-adds are limited rather than time, so that timings do not choose the answer.

    python benchmarks/recovery_share.py --json [--study NAME] [--budget LIMIT] [--minutes N]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from autocompress.results.trial import Phase
from autocompress.run import session
from autocompress.run.study import StudyConfig, load_study
from autocompress.workloads.cache import cache_folder


def outcome(study: StudyConfig, share: float, images: Path) -> dict[str, Any]:
    """A study with a share for training: what its phases took, and its answer on test."""
    session.RECOVERY_SHARE = share
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        cache.mkdir()
        (cache / "images").symlink_to(images)
        os.environ["AUTOCOMPRESS_CACHE"] = str(cache)
        done = session.run_study(study, Path(folder) / "run")
        trials, best = done.view.trials, done.view.best
    spent: dict[str, float] = {}
    for trial in trials:
        spent[trial.phase.kind] = spent.get(trial.phase.kind, 0.0) + trial.seconds
    found = {
        "share": share,
        "search_trials": sum(t.phase.kind == "search" for t in trials),
        "seconds": {kind: round(seconds, 1) for kind, seconds in spent.items()},
        "epochs": max((t.phase.epochs for t in trials), default=0.0),
    }
    if best is None or best.measurement is None:
        return found
    phase = Phase("verify", best.phase.epochs, best.phase.rung)
    verified = [t for t in trials if t.phase == phase and t.policy == best.policy]
    test = [t.measurement.score for t in verified if t.measurement]
    return found | {"val": best.measurement.score, "test": test[-1] if test else None}


def main() -> None:
    """One line per share."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--study", default="cifar10_resnet20")
    options.add_argument("--budget", default="macs<=40%")
    options.add_argument("--minutes", type=float, default=3.0)
    options.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.7, 0.85])
    options.add_argument("--epochs", type=float, help="at most; the study's own if not given")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    study = load_study(args.study).model_copy(
        update={"baseline": None, "max_accuracy_drop": None, "budget": (args.budget,)}
    )
    study = study.changed(timeout_s=60 * args.minutes, tracking={"mlflow": False})
    ends = study.search.model_copy(update={"trials": None, "timeout_s": None})
    study = study.model_copy(update={"search": ends})
    if args.epochs is not None:
        recovery = study.recovery.model_copy(update={"epochs": args.epochs})
        study = study.model_copy(update={"recovery": recovery})
    images = cache_folder() / "images"
    for share in args.shares:
        found = {"budget": args.budget, "minutes": args.minutes, **outcome(study, share, images)}
        print(json.dumps(found) if args.json else found, flush=True)


if __name__ == "__main__":
    main()
