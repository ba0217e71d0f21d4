"""The Python surface beside ``search``: rebuild, export, measure and check one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from autocompress.api import SavedRecipe
from autocompress.errors import InputError
from autocompress.machine.progress import silent
from autocompress.machine.scratch import scratch_folder
from autocompress.policy.budget import Budget
from autocompress.policy.defaults import DEFAULT_RUNTIME
from autocompress.policy.policy import Policy
from autocompress.policy.recipe import Recipe
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.run.factories import from_elsewhere
from autocompress.run.reading import Reading, file_part, own_keywords

if TYPE_CHECKING:
    from torch import nn

    from autocompress.policy.recovery import RecoveryConfig
    from autocompress.targets.config import TargetConfig


@own_keywords
def apply(
    recipe: str | Path | Recipe | SavedRecipe,
    model: nn.Module | str | Path | None = None,
    data: Any = None,
    *,
    task: Any = None,
    trust: bool = False,
    **reading: Unpack[Reading],
) -> nn.Module:
    """Rebuild a recipe's compressed model.

    With the weights that the recipe was found on, the result is the same model, trained weights
    included; with others of the same architecture, its policy is carried out on them anew.

    Args:
        recipe: a path, or a recipe at hand (one that carries no trained weights).
        model: uncompressed; ``None`` takes the study's own. Not changed.
        data: the splits; ``None`` takes the study's own.
        task: what the model is for, where the study or the data do not say it by a name.
        trust: run whatever functions the recipe names in place of a model or data; otherwise they
            must have been run in a study of yours on this machine.
        **reading: how the data are read; as for ``search``.

    Returns:
        A module in eval mode, physically smaller, in float: quantized layers round their weights
        and inputs as the exported file does. It can be trained further; ``export`` writes it.

    Raises:
        InputError: another architecture, or a model or data that must be handed over.
    """
    from autocompress.exporters.again import handed_out
    from autocompress.run.given import as_module, as_path, check_flags
    from autocompress.run.replay import open_recipe, rebuild

    check_flags(trust=trust)
    if isinstance(recipe, SavedRecipe):
        recipe = recipe.path
    path = Path() if isinstance(recipe, Recipe) else as_path(recipe, "recipe")
    loaded = recipe if isinstance(recipe, Recipe) else Recipe.load(path)
    given = None if model is None else as_module(model)
    source = from_elsewhere(f"recipe {path}", trust=trust)
    with scratch_folder("model") as scratch, source:
        splits = _told(data, task, reading, by_file=False)
        parts, same = open_recipe(loaded, given, data=splits, folder=scratch, reached=False)
        compressed = rebuild(loaded, parts, same, path.parent)
        return handed_out(compressed, parts.data.train.inputs(2))


@own_keywords
def export(module: nn.Module, path: str | Path, *, example: Any = None) -> Path:
    """Write a module that ``apply`` gave, also after it was trained further, as a file to ship.

    Args:
        module: from ``apply``; layers in 8 bits become integer operators. Any other module is
            written in float. Not changed.
        path: ends in ``.onnx``, ``.pt2``, ``.safetensors``, or what a target here writes.
        example: one batched input; needed for a module that ``apply`` did not give.

    Returns:
        The path.

    Raises:
        InputError: no example, or another suffix.
        ExportError: what no exporter takes, or a module whose layers were exchanged.
    """
    from autocompress.exporters.again import export_module
    from autocompress.run.formats import writer_of

    return export_module(module, path, example, writer_of(Path(path))).path


@own_keywords
def evaluate(
    model: nn.Module | str | Path,
    data: Any,
    policy: Policy | Mapping[str, Any] | None = None,
    *,
    uniform: Mapping[str, Any] | None = None,
    budget: Budget | str | Sequence[str] | None = None,
    space: str | Path | Mapping[str, Any] | SpaceConfig = "auto",
    target: TargetConfig | Mapping[str, Any] | None = None,
    recovery: RecoveryConfig | Mapping[str, Any] | None = None,
    settings: CompressionSettings | Mapping[str, Any] | None = None,
    task: Any = None,
    epochs: float = 0.0,
    quick: bool = False,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Measure one policy, built as a study would hand it over: what would happen if.

    Args:
        model, data: as for ``search``.
        policy: what to do with which layer; or else
        uniform: the same values for every layer that the space may touch, for example
            ``{"prune_ratio": 0.5, "weight_bits": 8}``; with neither, the uncompressed model.
        budget, space, target, recovery, settings, task: as for ``search``.
        epochs: of fine-tuning.
        quick: build it as the search does for its trials.
        **reading: how the data are read; as for ``search``.

    Returns:
        What ``autocompress evaluate --json`` prints.
    """
    from autocompress.run import evaluation
    from autocompress.run.given import as_module, check_flags, given_study

    check_flags(quick=quick)
    if policy is not None and uniform is not None:
        raise InputError("Give either `policy` or `uniform`, got both.")
    chosen = policy if isinstance(policy, Policy) else Policy.read(policy or {}, where="`policy`")
    study = given_study(
        "evaluate",
        budget,
        task,
        data=file_part(reading),
        space=space,
        target=target,
        recovery=recovery,
        settings=settings,
    )
    return evaluation.evaluate(
        study,
        chosen if uniform is None else None,
        uniform,
        silent,
        epochs=epochs,
        quick=quick,
        given=(as_module(model), _told(data, task, reading)),
    )


@own_keywords
def profile(
    model: nn.Module | str | Path,
    data: Any,
    *,
    space: str | Path | Mapping[str, Any] | SpaceConfig = "auto",
    target: TargetConfig | Mapping[str, Any] | None = None,
    settings: CompressionSettings | Mapping[str, Any] | None = None,
    task: Any = None,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """What a model is made of: per layer its costs and its sensitivity, and what prunes together.

    Args:
        model, data, space, target, settings, task: as for ``search``.
        **reading: how the data are read; as for ``search``.

    Returns:
        What ``autocompress profile --json`` prints.
    """
    from autocompress.run import profile as profiling
    from autocompress.run.given import as_module, given_study

    parts = {"data": file_part(reading), "space": space, "target": target, "settings": settings}
    study = given_study("profile", None, task, **parts)
    given = (as_module(model), _told(data, task, reading))
    return profiling.profile(study, None, silent, given=given)


@own_keywords
def verify(
    recipe: str | Path | SavedRecipe,
    model: nn.Module | str | Path | None = None,
    data: Any = None,
    *,
    task: Any = None,
    trust: bool = False,
    **reading: Unpack[Reading],
) -> dict[str, Any]:
    """Apply a recipe, measure it, and compare with what it claims.

    Args:
        recipe: a path.
        model, data: objects in place of the study's own. Without them it runs in a fresh process,
            as ``autocompress verify`` does.
        task, trust, **reading: as for ``apply``.

    Returns:
        What ``autocompress verify --json`` prints; ``ok`` says whether the recipe holds.
    """
    from autocompress.run import replay
    from autocompress.run.given import as_module, as_path, check_flags

    check_flags(trust=trust)
    path = recipe.path if isinstance(recipe, SavedRecipe) else as_path(recipe, "recipe")
    if model is None and data is None:
        return replay.verify(path, None, None, trust=trust)
    given = None if model is None else as_module(model)
    told = _told(data, task, reading, by_file=False)
    return replay.check(path, given, None, data=told, trust=trust)


def _told(data: Any, task: Any, reading: Mapping[str, Any], *, by_file: bool = True) -> Any:
    """Data that were handed over, with what was said of them."""
    from autocompress.run.given import told

    return None if data is None and not by_file else told(data, task, reading, by_file=by_file)


@own_keywords
def bench(
    a: str | Path, b: str | Path | None = None, *, target: Mapping[str, Any] | str = DEFAULT_RUNTIME
) -> dict[str, Any]:
    """Latency of an exported file, or of two interleaved.

    Args:
        a: an exported file.
        b: what to compare it with; ``ratio`` is then time of ``a`` / time of ``b``.
        target: a runtime's name, or a study's target section.

    Returns:
        What ``autocompress bench --json`` prints.
    """
    from autocompress.measure import latency

    return latency.bench(a, b, target)
