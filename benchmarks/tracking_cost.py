"""What keeping track of a study costs: journal, MLflow, report. Trials are made up, costs are not.

python benchmarks/tracking_cost.py [--quick] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autocompress.mlflow.sink import MlflowSink
from autocompress.mlflow.store import Store, sync
from autocompress.policy.budget import Budget
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.report.html import write_report
from autocompress.results.metric import Measurement
from autocompress.results.trial import Trial
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal
from autocompress.track.view import RunView

BASELINE = Measurement({"accuracy": 0.9, "latency_ms": 1.0, "macs": 4e7, "size_bytes": 1e6})
LAYERS = [f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)]


def make_trial(number: int, rng: random.Random) -> Trial:
    """A trial with a trade-off between accuracy and latency."""
    ratios = {name: rng.choice([0.0, 0.25, 0.5, 0.75]) for name in LAYERS}
    policy = Policy(
        {n: LayerPolicy(prune_ratio=r, weight_bits=8, activation_bits=8) for n, r in ratios.items()}
    )
    keep = 1 - sum(ratios.values()) / len(ratios)
    values = {
        "accuracy": 0.9 - 0.3 * (1 - keep) ** 2 + rng.gauss(0, 0.01),
        "latency_ms": 0.1 + 0.8 * keep,
        "macs": 4e7 * keep,
        "size_bytes": 1e6 * keep,
    }
    over = Budget("latency<=0.6x").violations(values, BASELINE.values)
    found = Measurement(values, {"accuracy": 0.005, "latency_ms": 0.01})
    return Trial(number, policy, origin="random", measurement=found, violations=over, seconds=1.0)


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(count: int, root: Path) -> dict[str, float]:
    """All costs, in the units that the names carry."""
    rng = random.Random(0)
    trials = [make_trial(i, rng) for i in range(count)]
    folder = RunFolder.create(root / "journal")
    folder.write_study({"name": "cost", "budget": ["latency<=0.6x"]})
    folder.write_baseline(BASELINE)
    with Journal(folder) as journal:
        written = timed(lambda: [journal.record(t) for t in trials])
    view = RunView.load(folder)
    store = timed(lambda: Store.beside(root).client().search_experiments())
    first, again = timed(lambda: sync(folder)), timed(lambda: sync(folder))
    with Journal(root / "live") as journal:
        sink = MlflowSink(journal, BASELINE, experiment="live")
        seen = []
        start = time.perf_counter()
        for trial in trials:
            journal.record(trial)
            seen.append(timed(lambda t=trial: sink.record(t)))
        sink.close()
        thread = time.perf_counter() - start
    report = timed(lambda: write_report(folder))
    return {
        "trials": count,
        "journal_ms_per_trial": 1e3 * written / count,
        "sink_record_ms_max": 1e3 * max(seen),
        "mlflow_thread_ms_per_trial": 1e3 * thread / count,
        "mlflow_new_store_s": store,
        "sync_ms_per_trial": 1e3 * first / count,
        "sync_again_s": again,
        "view_s": timed(lambda: (RunView.load(folder).history, view.hypervolume)),
        "report_s": report,
        "report_mb": folder.report.stat().st_size / 1e6,
    }


def main() -> None:
    """Print the costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="30 trials instead of 300")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        found = measure(30 if options.quick else 300, Path(root))
    found["load_average"] = os.getloadavg()[0]
    if options.json:
        print(json.dumps(found))
    else:
        for name, number in found.items():
            print(f"{name:28} {number:.3g}")


if __name__ == "__main__":
    main()
