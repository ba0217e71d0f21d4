"""The search beside other tools: same weights, same data, same validation split, no training.

Each peer is run the way its own documentation does it, to the same multiply-adds: Torch-Pruning's
global pruning with L1 and with Taylor importance, a plain Optuna loop as a user would write it,
and modelopt's FastNAS where it is installed (``make peers-env``); a peer that
is not there is named as missing. Accuracy is given as the tool leaves the model and with batch-norm
statistics re-estimated, since no peer does that by itself. Inner channels only, so that all work on
the same space; the search's own figure is that of ``search_quality.py --part half``.

    python benchmarks/peers.py --json [--quick]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contest.pruning import smallest_removed
from torch import nn
from torch.nn import functional as F

from autocompress.build.batch_norm import reestimate
from autocompress.quality.answers import module_answers
from autocompress.quality.score import score
from autocompress.task.data import Data
from autocompress.workloads.data import image_folder
from autocompress.workloads.models import load_weights, resnet20

_STEPS = 40
"""Of global pruning from nothing to nearly everything; it ends where the budget is met."""


class Task:
    """The model, its data, and how a peer's answer is judged.

    Args:
        images: of the validation split that are scored; ``None`` scores all.
    """

    def __init__(self, images: int | None) -> None:
        weights = Path(os.environ["AUTOCOMPRESS_WEIGHTS"]) / "resnet20_cifar10.safetensors"
        self.model = load_weights(resnet20(), str(weights)).eval()
        self.data: Data = image_folder(str(Path(os.environ["AUTOCOMPRESS_DATA"]) / "cifar10"))
        self.images = images
        self.example = self.data.train.inputs(1)
        inner = [n for n, m in self.model.named_modules() if n.endswith("conv1") and "." in n]
        self.inner = inner
        self.whole = self.macs(self.model)

    def macs(self, model: nn.Module) -> float:
        """Multiply-adds of one image."""
        from fvcore.nn import FlopCountAnalysis

        counted = FlopCountAnalysis(model, self.example)
        counted.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return float(counted.total())

    def score(self, model: nn.Module) -> float:
        """Accuracy on val."""
        model.eval()
        split = self.data.val
        if self.images is not None:
            split = split.sample(self.images, 0)
        return round(float(score(module_answers(model, split)).value), 4)

    def outcome(self, model: nn.Module, seconds: float, **more: Any) -> dict[str, Any]:
        """What is reported of a peer's answer."""
        found: dict[str, Any] = {"accuracy": self.score(model)}
        again = copy.deepcopy(model)
        reestimate(again, self.data.train.sample(1024, 0).inputs())
        found["accuracy_batch_norm"] = self.score(again)
        found["macs_share"] = round(self.macs(model) / self.whole, 4)
        return {**found, "seconds": round(seconds, 1), **more}

    def loss_backward(self, model: nn.Module, images: int) -> None:
        """Gradients of the loss on training images, for Taylor importance."""
        split = self.data.train.sample(images, 1)
        model.zero_grad()
        for i in range(0, len(split), 128):
            stored, targets = split.take(slice(i, i + 128))
            F.cross_entropy(model(split.prepare(stored)), targets).backward()


def torch_pruning(task: Task, share: float, importance: str) -> dict[str, Any]:
    """Global pruning in small steps until the multiply-adds are met."""
    import torch_pruning as tp

    start = time.perf_counter()
    model = copy.deepcopy(task.model)
    modules = dict(model.named_modules())
    ignored = [
        m
        for n, m in modules.items()
        if isinstance(m, nn.Conv2d | nn.Linear) and n not in task.inner
    ]
    measure = (
        tp.importance.MagnitudeImportance(p=1)
        if importance == "l1"
        else tp.importance.TaylorImportance()
    )
    # the dictionaries are given because the library's defaults are shared between instances
    pruner = tp.pruner.BasePruner(
        model,
        task.example,
        measure,
        global_pruning=True,
        pruning_ratio=0.95,
        iterative_steps=_STEPS,
        ignored_layers=ignored,
        pruning_ratio_dict={},
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
        customized_pruners={},
    )
    for _ in range(_STEPS):
        if task.macs(model) <= share * task.whole:
            break
        if importance == "taylor":
            task.loss_backward(model, 512)
        pruner.step()
    return task.outcome(model, time.perf_counter() - start)


def optuna_loop(task: Task, share: float, seconds: float) -> dict[str, Any]:
    """One ratio per layer, validation accuracy, a penalty over the budget; the default sampler."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial: optuna.Trial) -> float:
        ratios = {n: trial.suggest_float(n, 0.0, 0.9375, step=0.0625) for n in task.inner}
        model, _ = smallest_removed(task.model, task.example, ratios, 1)
        over = task.macs(model) / task.whole - share
        return task.score(model) - (10.0 * over if over > 0 else 0.0)

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    start = time.perf_counter()
    study.optimize(objective, timeout=seconds)
    spent = time.perf_counter() - start
    best, _ = smallest_removed(task.model, task.example, study.best_params, 1)
    return task.outcome(best, spent, evaluations=len(study.trials))


def fast_nas(task: Task, share: float) -> dict[str, Any]:
    """modelopt's FastNAS on the whole network, channels in fours, residual streams too."""
    import modelopt.torch.prune as mtp
    from modelopt.torch.prune.fastnas import FastNASConfig
    from torch.utils.data import DataLoader, TensorDataset

    start = time.perf_counter()
    split = task.data.train.sample(1024, 0)
    loader = DataLoader(TensorDataset(split.inputs(), split.targets), batch_size=128)
    rules = FastNASConfig().model_dump()
    rules["nn.Conv2d"]["*"]["channel_divisor"] = 4
    rules["nn.BatchNorm2d"]["*"]["feature_divisor"] = 4
    with contextlib.redirect_stdout(sys.stderr):  # it prints its search space and progress
        model, _ = mtp.prune(
            copy.deepcopy(task.model),
            mode=[("fastnas", rules)],
            constraints={"flops": 2 * share * task.whole},
            dummy_input=task.example,
            config={
                "data_loader": loader,
                "score_func": task.score,
                "collect_func": lambda batch: batch[0],
            },
        )
    return task.outcome(model, time.perf_counter() - start)


def attempt(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A peer's outcome; one that is not installed is named as missing."""
    try:
        return run()
    except ModuleNotFoundError as error:
        return {"missing": f"no module {error.name}; make peers-env"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="fewer images and seconds")
    parser.add_argument("--share", type=float, default=0.5055, help="of all multiply-adds")
    parser.add_argument("--seconds", type=float, default=None, help="of the Optuna loop")
    parser.add_argument("--threads", type=int, default=None)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    task = Task(512 if args.quick else None)
    seconds = args.seconds or (10.0 if args.quick else 180.0)
    result = {
        "model": "resnet20",
        "baseline": task.score(task.model),
        "macs": task.whole,
        "share": args.share,
        "torch_pruning_l1": attempt(lambda: torch_pruning(task, args.share, "l1")),
        "torch_pruning_taylor": attempt(lambda: torch_pruning(task, args.share, "taylor")),
        "optuna_loop": attempt(lambda: optuna_loop(task, args.share, seconds)),
        "modelopt_fastnas": attempt(lambda: fast_nas(task, args.share)),
    }
    print(json.dumps(result, indent=None if args.json else 1))


if __name__ == "__main__":
    main()
