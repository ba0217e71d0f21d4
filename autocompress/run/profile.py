"""What a study's model is made of: per layer its costs and its sensitivity, and the groups."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.machine.progress import Progress
from autocompress.machine.scratch import scratch_folder
from autocompress.measure.gate import layer_profile
from autocompress.policy.attempt import attempt
from autocompress.policy.files import check_output
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.registry import techniques
from autocompress.run.advice import advice_for
from autocompress.run.study import AUTO, StudyConfig
from autocompress.targets.lengths import drawn_inputs

if TYPE_CHECKING:
    from autocompress.run.assembly import Assembly
    from autocompress.run.evaluator import StudyEvaluator


def profile(
    study: StudyConfig,
    export_kernels: Path | None,
    progress: Progress,
    *,
    given: tuple[Any, Any] = (None, None),
) -> dict[str, Any]:
    """Per layer: MACs, params, latency, sensitivity; and the groups that prune together.

    Args:
        study: as read.
        export_kernels: also pack the kernel models for another device into this zip.
        progress: told what is going on.
        given: model and data in place of the study's factories.
    """
    from autocompress.run.assembly import assemble

    if export_kernels is not None:
        check_output(export_kernels)
    with scratch_folder("profile") as scratch:
        model, data = given
        parts = assemble(study, scratch, model=model, data=data, progress=progress)
        evaluator = parts.evaluator
        baseline = evaluator.baseline
        operators = operator_times(evaluator)
        rows = [_layer_row(parts, layer.name, operators) for layer in parts.inventory.layers]
        groups = [
            {
                "name": g.name,
                "producers": list(g.producers),
                "consumers": list(g.consumers),
                "channels": g.channels,
                "unit": g.unit,
                "residual": g.residual,
            }
            for g in parts.inventory.channel_groups
        ]
        counted = _fvcore(parts)
        if export_kernels is not None:
            _pack(parts, export_kernels)
    return {
        "study": study.name,
        "notes": list(parts.notes),
        "baseline": dict(baseline.values),
        "quality": baseline.quality.as_dict(),
        "layers": rows,
        "groups": groups,
        "cannot_prune": parts.inventory.cannot_prune,
        "never_read": parts.inventory.never_read,
        "left_alone": [asdict(left) for left in parts.inventory.left_alone],
        "blocks": [asdict(block) for block in parts.inventory.blocks],
        "blocks_left_alone": dict(parts.inventory.blocks_left_alone),
        "fvcore": counted,
        "kernels": str(export_kernels) if export_kernels else None,
    }


def _pack(parts: Assembly, path: Path) -> None:
    """Pack kernels, a few whole models and a runner that times them on another device."""
    from autocompress.estimate.pack import pack_kernels

    measurer = parts.evaluator.measurer
    pack_kernels(
        path,
        parts.inventory,
        parts.space,
        measurer.target,
        parts.evaluator.export_variant,
        measurer.baseline_file,
        settings=parts.study.settings,
        progress=parts.progress,
    )


def _fvcore(parts: Assembly) -> dict[str, Any]:
    """fvcore's count of the listed layers, beside what it cannot or need not count."""
    from autocompress.model.cost import count_macs

    found = count_macs(parts.model, parts.data.train.inputs(1))
    listed = parts.inventory.by_name
    return {
        "macs": sum(macs for name, macs in found.per_layer.items() if name in listed),
        "other_macs": sum(macs for name, macs in found.per_layer.items() if name not in listed),
        "uncounted": found.uncounted,
        # a layer reads the weights of the modules in it without calling them, as attention does
        "uncalled": [
            name
            for name in found.uncalled
            if not any(f"{name}.".startswith(f"{layer}.") for layer in listed)
        ],
    }


def advise(
    study: StudyConfig, progress: Progress, *, given: tuple[Any, Any] = (None, None)
) -> dict[str, Any]:
    """A search space for a study, from what each way to compress was measured to gain here.

    Args:
        study: as read; its own space is not looked at.
        progress: told what is going on.
        given: model and data in place of the study's factories.

    Returns:
        See ``advice.advice_for``.
    """
    from autocompress.run.assembly import assemble

    with scratch_folder("advise") as scratch:
        model, data = given
        asked = study.model_copy(update={"space": AUTO, "timeout_s": None})
        return advice_for(assemble(asked, scratch, model=model, data=data, progress=progress))


def operator_times(evaluator: StudyEvaluator) -> dict[str, float]:
    """Milliseconds per layer of the uncompressed file, from the runtime's own profiler."""
    measurer = evaluator.measurer
    target = measurer.target
    with closing(target.open(measurer.baseline_file)) as session:
        profile = session.profile(drawn_inputs(session, target.config)[0])
    found = layer_profile(profile, measurer.pipeline.inventory.by_name)
    return {name: sum(node.ms for node in nodes) for name, nodes in found.items()}


def _layer_row(parts: Assembly, name: str, operators: dict[str, float]) -> dict[str, Any]:
    """One layer: its costs, and the KL that each technique's probe of it alone leaves."""
    layer = parts.inventory.layer(name)
    parts.progress(f"sensitivity of {name}", 0.0)
    sensitivity: dict[str, float | None] = {}
    for label, policy in _probes(parts, name):
        screen = partial(parts.evaluator.screen, policy, 128)
        found, _ = attempt(policy, "the sensitivities", screen)
        sensitivity[label] = None if found is None else found.kl
    return {
        "name": name,
        "kind": layer.kind,
        "macs": layer.macs,
        "params": layer.params,
        "latency_ms": operators.get(name),
        "group": layer.out_group,
        "left_alone": dict(layer.left_alone),
        "unread_rows": layer.unread_rows if layer.samples else None,
        "kl": sensitivity,
    }


def _probes(parts: Assembly, name: str) -> Iterator[tuple[str, Policy]]:
    """What each technique tries on a layer, on all that share its channels, or on its block."""
    layer = parts.inventory.layer(name)
    group = parts.inventory.groups_by_name.get(layer.out_group or "")
    if group is not None and group.residual and not parts.study.settings.prune_residual:
        group = None
    block = parts.inventory.block_of.get(name)
    for technique in techniques():
        if technique.whole_blocks:
            whole = block.layers if block is not None and block.name == name else ()
            for label, values in technique.probes().items() if whole else ():
                yield label, Policy(dict.fromkeys(whole, LayerPolicy.from_dict(values)))
            continue
        together = group.producers if group is not None and technique.coupled else (name,)
        if (technique.coupled and group is None) or not technique.usable(layer):
            continue
        for label, values in technique.probes().items():
            yield label, Policy(dict.fromkeys(together, LayerPolicy.from_dict(values)))
