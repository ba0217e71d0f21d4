"""Qualities that a finished run foretells for other budgets, beside what measuring them gives.

    python benchmarks/forecast.py RUN [--json]

Every policy of ``autocompress front RUN --sweep`` is built as the search builds its trials and
scored on val. Told are the rank correlation, the share inside the interval, and the mean error.
Costs are estimates, and are not looked at here (see ``latency_model.py``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from autocompress.machine.progress import silent
from autocompress.machine.scratch import scratch_folder
from autocompress.policy.policy import Policy
from autocompress.results.trial import SEARCH
from autocompress.run.forecast import sweep
from autocompress.run.reopened import reopened
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView


def main() -> None:
    """Print one line per budget, then the summary."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("run", type=Path)
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    folder, view = RunFolder.open(given.run), RunView.load(given.run)
    told = sweep(str(given.run), silent, trust=True)
    rows = [row for row in told["sweep"] if row["expected"]]
    policies = {json.dumps(row["expected"]["policy"], sort_keys=True): row for row in rows}
    with scratch_folder("forecast") as scratch:
        evaluator = reopened(folder, view, scratch, silent).evaluator
        found = []
        for row in policies.values():
            policy = Policy.from_dict(row["expected"]["policy"])
            measured = evaluator.score(policy, SEARCH, 0).result.scores[view.quality.name].value
            expected = row["expected"][view.quality.name]
            found.append({"budget": row["budget"], "measured": measured, **expected})
            if not given.json:
                print(found[-1], flush=True)
    value, measured = (np.array([one[key] for one in found]) for key in ("value", "measured"))
    known = [one for one in found if one["low"] is not None]
    inside = [one["low"] <= one["measured"] <= one["high"] for one in known]
    summary = {
        "policies": len(found),
        "learned_from": told["learned_from"],
        "spearman": float(spearmanr(value, measured).statistic),
        "inside": float(np.mean(inside)) if inside else None,
        "mean_error": float(np.abs(value - measured).mean()),
        "seconds": told["seconds"],
    }
    print(json.dumps({"rows": found, **summary} if given.json else summary, indent=2))


if __name__ == "__main__":
    main()
