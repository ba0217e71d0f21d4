"""Eight bits after some seconds of training: through fake quantization, or rounded afterwards.

ResNet-20 pruned uniformly, the same wall time for each way with and without the uncompressed model
as a teacher; accuracy of the exported int8 file. Nothing is searched.

    python benchmarks/rounding.py --json [--seconds 50] [--ratio 0.5] [--network resnet20]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from autocompress.machine.scratch import scratch_folder
from autocompress.policy.policy import Distill, Policy
from autocompress.quality.answers import file_answers
from autocompress.quality.score import score
from autocompress.results.trial import Phase
from autocompress.run.assembly import Assembly, assemble
from autocompress.run.study import load_study


def accuracy(parts: Assembly, policy: Policy, epochs: float, path: Path) -> dict[str, float]:
    """Train, export, and score the file on val and test."""
    measurer = parts.evaluator.measurer
    measurer.export(parts.evaluator.builder(policy, Phase("recover", epochs, 1), 0), path)
    splits = {"val": parts.data.val, "test": parts.data.test}
    return {n: score(file_answers(measurer.target, path, s)).value for n, s in splits.items()}


def main() -> None:
    """One line per way."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--network", default="resnet20")
    options.add_argument("--seconds", type=float, nargs="+", default=[50.0])
    options.add_argument("--ratio", type=float, default=0.5, help="share of channels removed")
    options.add_argument("--json", action="store_true")
    args = options.parse_args()
    study = load_study(f"cifar10_{args.network}").model_copy(update={"baseline": None})
    with scratch_folder("rounding") as scratch:
        parts = assemble(study, scratch)
        values = {"prune_ratio": args.ratio, "weight_bits": 8, "activation_bits": 8}
        layers = parts.space.decode(parts.space.uniform(**values)).layers
        found = accuracy(parts, Policy(layers), 0.0, scratch / "untrained.onnx")
        print(json.dumps({"epochs": 0.0, **found}), flush=True)
        for seconds in args.seconds:
            for qat in (True, False):
                for teacher in (None, Distill()):
                    parts.pipeline.qat = qat
                    policy = Policy(layers, teacher)
                    epoch_s = parts.pipeline.epoch_s(policy, 3.0)
                    start = time.perf_counter()
                    path = scratch / f"{qat}-{teacher is not None}.onnx"
                    row = {
                        "qat": qat,
                        "teacher": teacher is not None,
                        "epoch_s": round(epoch_s, 1),
                        "epochs": round(seconds / epoch_s, 3),
                        **accuracy(parts, policy, seconds / epoch_s, path),
                        "seconds": round(time.perf_counter() - start, 1),
                    }
                    print(json.dumps(row) if args.json else row, flush=True)


if __name__ == "__main__":
    main()
