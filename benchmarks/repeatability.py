"""How well a latency repeats on this machine: policies timed again and again, apart in time.

Every repeat times each policy's file twice, in random order: without memory (two repetitions that
agree are believed) and with it (rounds count as quiet only if the uncompressed model ran about as
quickly as it has before). On a quiet machine both columns agree within a few percent.
Where the first one spreads and the second does not, something else uses the processor for seconds
at a time; where both spread, timings on that machine are worth little.

    python benchmarks/repeatability.py --json [--study cifar10_resnet20] [--repeats 6]

Data and weights are found through AUTOCOMPRESS_DATA and AUTOCOMPRESS_WEIGHTS.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from autocompress.controller.starts import ladders
from autocompress.measure.latency import paired_timing
from autocompress.measure.quiet import QuietSpeed
from autocompress.measure.sampling import Plan
from autocompress.run.assembly import assemble
from autocompress.run.study import load_study


def spread(ratios: list[float]) -> float:
    """From the lowest to the highest, as a share of the lowest."""
    return round(max(ratios) / min(ratios) - 1, 4)


def repeat(study: str, count: int, repeats: int, apart_s: float) -> dict[str, Any]:
    """The first policies of the study's ladders, each timed ``repeats`` times in both ways."""
    config = load_study(study).model_copy(update={"baseline": None})
    quiet, draw = QuietSpeed(), random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        parts = assemble(config, Path(folder))
        evaluator, space = parts.evaluator, parts.space
        files = [
            evaluator.export_variant(space.decode(levels))
            for _, levels in [*ladders(space)][:count]
        ]
        found: list[dict[str, list[Any]]] = [
            {"without": [], "with": [], "disturbed": []} for _ in files
        ]
        for _ in range(repeats):
            for file, row in zip(files, found, strict=True):
                plan = Plan(max_seconds=3.0, apart_s=apart_s)
                for way in draw.sample(["without", "with"], 2):
                    known = quiet if way == "with" else QuietSpeed()
                    measurer = evaluator.measurer
                    timing = paired_timing(
                        measurer.target, file, measurer.baseline_file, plan=plan, quiet=known
                    )
                    row[way].append(round(timing.ratio, 4))
                    if way == "with":
                        row["disturbed"].append(timing.disturbed)
    kept = [[r for r, bad in zip(f["with"], f["disturbed"], strict=True) if not bad] for f in found]
    return {
        "policies": found,
        "spread_without": [spread(f["without"]) for f in found],
        "spread_with": [spread(ratios) if ratios else None for ratios in kept],
        "disturbed": sum(sum(f["disturbed"]) for f in found),
        "timings": repeats * len(files),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="two policies, two times")
    parser.add_argument("--study", default="cifar10_resnet20")
    parser.add_argument("--policies", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--apart", type=float, default=1.5, help="seconds between two repetitions")
    args = parser.parse_args()
    count, repeats = (2, 2) if args.quick else (args.policies, args.repeats)
    found = repeat(args.study, count, repeats, args.apart)
    print(json.dumps(found, indent=None if args.json else 1))


if __name__ == "__main__":
    main()
