"""A first study of somebody's own model: written with comments, and checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from autocompress.errors import AutocompressError, InputError, nearest
from autocompress.machine.progress import Progress
from autocompress.machine.scratch import scratch_folder
from autocompress.policy.budget import Budget
from autocompress.run.advice import check_new
from autocompress.run.assembly import assemble
from autocompress.run.factories import import_factory
from autocompress.run.study import AUTO, StudyConfig, read_study, shipped
from autocompress.run.tasks import make_task
from autocompress.run.variables import resolve_variables
from autocompress.task.ready import READY

_TEXT = """\
# What to compress, for what, and how to search. `autocompress schema study` lists every key.
name: {name}

# A function that returns the trained nn.Module. Weights from a file: safetensors or a state dict.
model:
  factory: {model}
  checkpoint: {checkpoint}

# A function that returns the data: an object or a dict with `train`, and `val` and `test` (cut from
# train where they are missing), each a DataLoader or a data set.
data:
  factory: {data}
  # What the model is for. Needed only where the targets leave a doubt: classification, regression,
  # binary, multi_label, segmentation, causal_language_model, ...
  task: {task}

# Where it will run. `autocompress targets` shows what is available here.
target: {{runtime: onnxruntime, threads: 1, batch: 1}}

# What may be done to which layers. auto measures what each way gains here, and takes what does; or
# {spaces}; or a file of yours.
space: {space}

# What has to be met: latency, macs, params, size; of the uncompressed model ("0.5x", "40%") or
# absolute ("2ms", "1MB").
budget: [{budget}]
# With this the cheapest policy is the answer that loses no more (points, or the metric's unit):
# max_quality_drop: 1.0

# Seconds for everything, from reading the model to the report.
timeout_s: {timeout_s}

# Fine-tuning of the best policies; `epochs: 0` trains nothing.
recovery:
  epochs: {epochs}
  schedule: {{batch_size: 128, lr: 0.02}}
"""


def write_first(
    path: Path,
    model: str,
    data: str,
    progress: Progress,
    *,
    checkpoint: str | None = None,
    task: str | None = None,
    budget: tuple[str, ...] = (),
    space: str = AUTO,
    timeout_s: float = 1800.0,
    epochs: float = 3.0,
) -> dict[str, Any]:
    """Write a commented study for a model and data, and see whether it can be run.

    Args:
        path: of the new study file.
        model, data: ``package.module:function`` each.
        progress: told what is going on.
        checkpoint: weights, where the function does not load them.
        task: a ready-made one's name, where the targets leave a doubt.
        budget: limits; half the latency by default.
        space: a shipped one's name, or a file.
        timeout_s, epochs: of the study and of its recovery.

    Returns:
        What was found: task, metric, samples of each split, layers, and what cannot be pruned.

    Raises:
        InputError: the file is there already, an argument is wrong, and nothing was written; or the
            study cannot be run as it was written, and the file stays, to be mended.
    """
    check_new(path)
    spaces = sorted(shipped("search_spaces"))
    _check_named(model, data, checkpoint, task, space, spaces)
    limits = budget or ("latency<=0.5x",)
    Budget.parse(limits)  # an error of the command is told as one, not as one of the file
    text = _TEXT.format(
        name=_scalar(path.stem),
        model=_scalar(model),
        checkpoint=_scalar(checkpoint),
        data=_scalar(data),
        task=_scalar(task),
        spaces=", ".join(spaces),
        space=_scalar(space),
        budget=", ".join(_scalar(limit) for limit in limits),
        timeout_s=f"{timeout_s:g}",
        epochs=f"{epochs:g}",
    )
    study = read_study(yaml.safe_load(text), where=str(path))
    path.write_text(text, encoding="utf-8")
    try:
        return {"study": str(path), **_found(study, progress)}
    except AutocompressError as error:
        raise InputError(f"{path} is written, but cannot be run yet. {error}") from None


def _check_named(
    model: str, data: str, checkpoint: str | None, task: str | None, space: str, spaces: list[str]
) -> None:
    """See that all that is named is there: a mistyped argument is mended in the command."""
    for factory in (model, data):
        import_factory(resolve_variables(factory))
    if task is not None and task not in READY:
        make_task(task)
    if checkpoint is not None and not Path(resolve_variables(checkpoint)).is_file():
        raise InputError(f"There is no file {checkpoint!r} to load weights from (`--checkpoint`).")
    if space not in (AUTO, *spaces) and not Path(space).is_file():
        raise InputError(f"There is no space {space!r}; {nearest(space, spaces)}")


def _found(study: StudyConfig, progress: Progress) -> dict[str, Any]:
    with scratch_folder("init") as scratch:
        parts = assemble(study, scratch, progress=progress)
        splits = {n: len(getattr(parts.data, n)) for n in ("train", "val", "test")}
        return {
            "task": parts.task.name,
            "metric": parts.task.quality.name,
            "samples": splits,
            "layers": len(parts.inventory.layers),
            "choices": len(parts.space.choices),
            "cannot_prune": parts.inventory.cannot_prune,
            "notes": [*parts.notes, *parts.data.notes],
        }


def _scalar(value: str | None) -> str:
    """A value as YAML writes it in one line."""
    plain = yaml.safe_dump(value, width=math.inf).removesuffix("\n...\n").removesuffix("\n")
    if len(plain.splitlines()) == 1:
        return plain
    return yaml.safe_dump(value, width=math.inf, default_style='"').removesuffix("\n")
