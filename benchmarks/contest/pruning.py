"""Tools that remove channels; ONNX Runtime's static quantization follows each of them."""

from __future__ import annotations

import contextlib
import copy
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from contest.task import MARGIN, Task

Answer = tuple[Path, dict[str, Any]]
_STEPS = 4
"""Of iterative pruning with Taylor importance: gradients are taken anew in each."""
_STUDY_SHARE = 0.5
"""Of the time that is left, for the Optuna study; the rest trains its best."""


def _ignored(task: Task, model: nn.Module) -> list[nn.Module]:
    inner = set(task.inner(model))
    found = model.named_modules()
    return [m for n, m in found if isinstance(m, nn.Conv2d | nn.Linear) and n not in inner]


def torch_pruning(task: Task, kind: str) -> Answer:
    """Torch-Pruning: global pruning by L1, Taylor, or group magnitude importance."""
    import torch_pruning as tp

    measures: dict[str, Callable[[], Any]] = {
        "l1": lambda: tp.importance.MagnitudeImportance(p=1),
        "taylor": tp.importance.GroupTaylorImportance,
        "group": lambda: tp.importance.GroupMagnitudeImportance(p=2),
    }

    def build(share: float) -> nn.Module:
        model = copy.deepcopy(task.model)
        if share == 0:
            return model
        steps = _STEPS if kind == "taylor" else 1
        # dictionaries are given because the library's defaults are shared between instances
        pruner = tp.pruner.BasePruner(
            model,
            task.example,
            measures[kind](),
            global_pruning=True,
            pruning_ratio=share,
            max_pruning_ratio=0.9,
            iterative_steps=steps,
            round_to=task.multiple,
            ignored_layers=_ignored(task, model),
            pruning_ratio_dict={},
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
            customized_pruners={},
        )
        for _ in range(steps):
            if kind == "taylor":
                task.loss_backward(model, 256)
            pruner.step()
        return model.eval()

    share = task.aimed(build)
    path = task.finished(build(share))
    settings = f"global, {kind}, max_pruning_ratio 0.9, round_to {task.multiple}"
    return path, {"settings": settings, "version": f"torch-pruning {version('torch-pruning')}"}


def smallest_removed(
    model: nn.Module, example: Tensor, ratios: dict[str, float], multiple: int
) -> tuple[nn.Module, dict[str, list[int]]]:
    """A copy without the filters of the smallest L1 norm in each layer; and which stayed.

    Args:
        model: uncompressed.
        example: inputs, for Torch-Pruning's graph of dependencies.
        ratios: layer name to the share that goes.
        multiple: of channels that stay; runtimes compute others no quicker.
    """
    import torch_pruning as tp

    model = copy.deepcopy(model)
    modules = dict(model.named_modules())
    graph = tp.DependencyGraph().build_dependency(model, example)
    kept = {}
    for name, ratio in ratios.items():
        layer = modules[name]
        assert isinstance(layer, nn.Conv2d)
        order = layer.weight.detach().abs().sum((1, 2, 3)).argsort().tolist()
        stay = max(1, round((1 - ratio) * len(order) / multiple)) * multiple
        gone = order[: max(0, len(order) - stay)]
        kept[name] = sorted(set(order) - set(gone))
        if gone:
            graph.get_pruning_group(layer, tp.prune_conv_out_channels, idxs=gone).prune()
    return model.eval(), kept


def _consumers(model: nn.Module, names: list[str]) -> dict[str, str]:
    """Each prunable layer's only reader: the next convolution or linear layer in order."""
    every = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return {name: every[every.index(name) + 1] for name in names}


def _removed(task: Task, ratios: dict[str, float]) -> tuple[nn.Module, dict[str, list[int]]]:
    return smallest_removed(task.model, task.example, ratios, task.multiple)


def _uniform(task: Task, share: float) -> tuple[nn.Module, dict[str, list[int]]]:
    return _removed(task, dict.fromkeys(task.inner(task.model), share))


def ridge(task: Task) -> Answer:
    """Uniform L1 pruning, and the next layer re-solved by ridge regression on its inputs.

    In the manner of GRAIL: a map from the channels that stayed to all of them is fitted on
    calibration inputs and multiplied into the weights of the layer that reads them.
    """

    def build(share: float) -> nn.Module:
        names = task.inner(task.model)
        model, kept = _uniform(task, share)
        if share == 0:
            return model
        readers = _consumers(task.model, names)
        grams = _grams(task, list(readers.values()))
        modules, whole = dict(model.named_modules()), dict(task.model.named_modules())
        for name, reader in readers.items():
            stay, gram = kept[name], grams[reader]
            among = gram[stay][:, stay]
            damping = 1e-3 * among.diagonal().mean() * torch.eye(len(stay), dtype=gram.dtype)
            fitted = torch.linalg.solve(among + damping, gram[stay]).float()  # (stayed, all)
            new, old = modules[reader], whole[reader]
            inner = kept.get(reader)
            weight = old.weight.detach()  # type: ignore[union-attr]  # a layer
            assert isinstance(weight, Tensor)
            weight = weight if inner is None else weight[inner]
            mixed = torch.einsum("ka,oa...->ok...", fitted, weight)
            new.weight.data.copy_(mixed)  # type: ignore[union-attr, operator]  # a layer
        return model

    share = task.aimed(build)
    return task.finished(build(share)), {
        "settings": "uniform L1, 512 images, damping 1e-3 of the mean square",
        "version": "own lines",
    }


@torch.no_grad()
def _grams(task: Task, readers: list[str]) -> dict[str, Tensor]:
    """Sums of products of channels that layers read, over images and places."""
    found: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        rows = given[0].transpose(0, 1).flatten(1).double()
        found[name] = found.get(name, 0) + rows @ rows.T

    modules = dict(task.model.named_modules())
    hooks = [modules[n].register_forward_pre_hook(partial(note, n)) for n in readers]
    for images in task.calibration(512, 128):
        task.model(images)
    for hook in hooks:
        hook.remove()
    return found


def fasterai(task: Task) -> Answer:
    """fasterai's Pruner: local pruning by the size of filters."""
    from fasterai.core.criteria import large_final
    from fasterai.prune.pruner import Pruner

    def build(share: float) -> nn.Module:
        model = copy.deepcopy(task.model)
        if share == 0:
            return model
        pruner = Pruner(
            model,
            share,
            "local",
            large_final,
            ignored_layers=_ignored(task, model),
            example_inputs=task.example,
            round_to=task.multiple,
        )
        pruner.prune_model()
        return model.eval()

    share = task.aimed(build)
    return task.finished(build(share)), {
        "settings": "Pruner, local, large_final",
        "version": f"fasterai {version('fasterai')}",
    }


def fast_nas(task: Task) -> Answer:
    """modelopt's FastNAS, at the multiply-adds that uniform pruning has at this latency."""
    import modelopt.torch.prune as mtp
    from modelopt.torch.prune.fastnas import FastNASConfig
    from torch.utils.data import DataLoader, TensorDataset

    share = task.aimed(lambda share: _uniform(task, share)[0])
    macs = task.macs(_uniform(task, share)[0])
    split = task.data.train.sample(256, 0)
    loader = DataLoader(TensorDataset(split.inputs(), split.targets), batch_size=128)
    rules = FastNASConfig().model_dump()
    divisor = 16 if task.network == "vgg16" else 4
    rules["nn.Conv2d"]["*"]["channel_divisor"] = divisor
    rules["nn.BatchNorm2d"]["*"]["feature_divisor"] = divisor
    with contextlib.redirect_stdout(sys.stderr):  # it prints its search space and progress
        model, _ = mtp.prune(
            copy.deepcopy(task.model),
            mode=[("fastnas", rules)],
            constraints={"flops": 2 * min(macs, 0.999 * task.macs(task.model))},
            dummy_input=task.example[:1],
            config={
                "data_loader": loader,
                "score_func": lambda model: task.val(model, 500),
                "collect_func": lambda batch: batch[0],
            },
        )
    return task.finished(model), {
        "settings": f"FastNAS, channels in {divisor}s, flops of the uniform one, 500 val images",
        "version": f"nvidia-modelopt {version('nvidia-modelopt')}",
    }


def optuna_study(task: Task) -> Answer:
    """A plain study: a ratio per layer, int8, val accuracy, a penalty over the latency; TPE."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    names = task.inner(task.model)

    def objective(trial: optuna.Trial) -> float:
        ratios = {n: trial.suggest_float(n, 0.0, 0.75, step=0.125) for n in names}
        path = task.int8(
            task.export(_removed(task, ratios)[0], "trial"),
            64,
        )
        over = task.ratio(path, 1.5) - MARGIN * task.latency
        return task.val_file(path) - (10.0 * over if over > 0 else 0.0)

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, timeout=_STUDY_SHARE * task.left_s)
    task.say(f"{len(study.trials)} trials")
    return task.finished(_removed(task, study.best_params)[0]), {
        "settings": f"TPE, {_STUDY_SHARE:.0%} of the time for trials, the rest trains the best",
        "version": f"optuna {version('optuna')}",
    }
