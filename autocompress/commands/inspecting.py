"""Commands that look before searching: ``profile`` and ``evaluate``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from autocompress.errors import InputError, nearest
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.reading import read_mapping, read_value
from autocompress.results.metric import Measurement
from autocompress.results.trial import Phase
from autocompress.run.study import StudyConfig

if TYPE_CHECKING:
    from autocompress.run.assembly import Assembly
    from autocompress.run.evaluator import StudyEvaluator


def profile(study: StudyConfig, export_kernels: Path | None, *, quiet: bool) -> dict[str, Any]:
    """Per layer: MACs, params, latency, sensitivity; and the groups that prune together.

    Args:
        study: as read.
        export_kernels: also pack the kernel models for another device into this zip.
        quiet: no progress on the terminal.
    """
    from autocompress.commands.display import status

    with tempfile.TemporaryDirectory() as scratch, status(quiet) as say:
        from autocompress.run.assembly import assemble

        parts = assemble(study, Path(scratch), progress=say)
        evaluator = parts.evaluator
        baseline = evaluator.baseline
        operators = operator_times(evaluator)
        rows = [_layer_row(parts, layer.name, operators, say) for layer in parts.inventory.layers]
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
            _pack(parts, export_kernels, say)
    return {
        "study": study.name,
        "baseline": dict(baseline.values),
        "layers": rows,
        "groups": groups,
        "fvcore": counted,
        "kernels": str(export_kernels) if export_kernels else None,
    }


def _pack(parts: Assembly, path: Path, say: Any) -> None:
    """Pack kernels, a few whole models and a runner that times them on another device."""
    from autocompress.measure.pack import pack_kernels

    measurer = parts.evaluator.measurer
    pack_kernels(
        path,
        parts.inventory,
        parts.space,
        measurer.target.config,
        parts.evaluator.export_variant,
        measurer.baseline_file,
        settings=parts.study.settings,
        progress=say,
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
        "uncalled": list(found.uncalled),
    }


def operator_times(evaluator: StudyEvaluator) -> dict[str, float]:
    """Milliseconds per layer of the uncompressed file, from the runtime's own profiler."""
    from contextlib import closing

    from autocompress.exporters.names import layer_of
    from autocompress.targets.base import random_inputs

    measurer = evaluator.measurer
    target, names = measurer.target, set(measurer.pipeline.inventory.by_name)
    with closing(target.open(measurer.baseline_file)) as session:
        profile = session.profile(random_inputs(session.inputs, target.config.batch))
    found: dict[str, float] = {}
    for node in profile.nodes:
        layer = layer_of(node.name)
        if layer is not None and layer[0] in names:
            found[layer[0]] = found.get(layer[0], 0.0) + node.ms
    return found


def _layer_row(parts: Assembly, name: str, operators: dict[str, float], say: Any) -> dict[str, Any]:
    """One layer: its costs, and the KL that a standard blow to it alone leaves."""
    layer = parts.inventory.layer(name)
    say(f"sensitivity of {name}", 0.0)
    sensitivity: dict[str, float | None] = {}
    for label, policy in _blows(parts, name).items():
        sensitivity[label] = parts.evaluator.screen(policy, 128).kl
    return {
        "name": name,
        "kind": layer.kind,
        "macs": layer.macs,
        "params": layer.params,
        "latency_ms": operators.get(name),
        "group": layer.out_group,
        "kl": sensitivity,
    }


def _blows(parts: Assembly, name: str) -> dict[str, Policy]:
    layer = parts.inventory.layer(name)
    blows = {}
    group = parts.inventory.groups_by_name.get(layer.out_group or "")
    if group is not None and (not group.residual or parts.study.settings.prune_residual):
        half = LayerPolicy(prune_ratio=0.5)
        blows["prune_ratio=0.5"] = Policy(dict.fromkeys(group.producers, half))
    if layer.quantizable:
        blows["int8"] = Policy({name: LayerPolicy(weight_bits=8, activation_bits=8)})
    return blows


def show_profile(found: dict[str, Any], console: Console) -> None:
    """A table of layers, then the groups."""
    base = found["baseline"]
    console.print(
        f"[bold]{found['study']}[/bold]: accuracy {base['accuracy']:.2%}, "
        f"{base['latency_ms']:.3f} ms, {base['macs'] / 1e6:,.1f} M MACs, "
        f"{base['params'] / 1e3:,.0f} k params, {base['size_bytes'] / 1e3:,.0f} kB"
    )
    table = Table(
        "layer", "kind", "MACs M", "params k", "ms", "prunes with", "KL at half width", "KL in int8"
    )
    for column in table.columns[2:5] + table.columns[6:]:
        column.justify = "right"
    for row in found["layers"]:
        time = row["latency_ms"]
        table.add_row(
            row["name"],
            row["kind"],
            f"{row['macs'] / 1e6:.2f}",
            f"{row['params'] / 1e3:.1f}",
            "" if time is None else f"{time:.3f}",
            row["group"] or "",
            _number(row["kl"].get("prune_ratio=0.5")),
            _number(row["kl"].get("int8")),
        )
    console.print(table)
    for group in found["groups"]:
        note = (
            " [dim](residual stream: pruned only with prune_residual)[/dim]"
            if group["residual"]
            else ""
        )
        console.print(
            f"{group['name']}: {group['channels']} channels of "
            f"{', '.join(group['producers'])}{note}"
        )
    counted = found["fvcore"]
    console.print(
        f"fvcore counts {counted['macs'] / 1e6:,.2f} M multiply-adds in these layers and "
        f"{counted['other_macs'] / 1e6:,.2f} M in others (norms, which the file folds away); "
        "not counted: "
        + (", ".join(f"{op} x{n}" for op, n in counted["uncounted"].items()) or "nothing")
        + "; never run: "
        + (", ".join(counted["uncalled"]) or "nothing")
        + ".",
        highlight=False,
    )
    if found["kernels"]:
        console.print(
            f"Kernels packed in {found['kernels']}; run its run_kernels.py on the device."
        )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def evaluate(
    study: StudyConfig, policy_file: Path | None, uniform: str | None, epochs: float, *, quiet: bool
) -> dict[str, Any]:
    """Measure one policy of the user's."""
    from autocompress.commands.display import status

    with tempfile.TemporaryDirectory() as scratch, status(quiet) as say:
        from autocompress.run.assembly import assemble

        parts = assemble(study, Path(scratch), progress=say)
        if uniform is not None:
            policy = parts.space.decode(parts.space.uniform(**read_uniform(uniform)))
        else:
            assert policy_file is not None
            policy = read_policy(policy_file, parts)
        phase = Phase("recover", epochs, 1) if epochs else Phase("search")
        say("measuring", 0.5)
        found = parts.evaluator.evaluate(policy, phase, 0)
        baseline = parts.evaluator.baseline
    violations = study.limits().violations(found.values, baseline.values)
    return {
        "trial": trial_dict(found, baseline, policy, violations),
        "baseline": {
            k: baseline[k] for k in ("accuracy", "latency_ms", "macs", "params", "size_bytes")
        },
        "budget": str(study.limits()),
    }


def trial_dict(
    found: Measurement, baseline: Measurement, policy: Policy, violations: dict[str, float]
) -> dict[str, Any]:
    """A trial as ``--json`` shows it."""
    return {
        "accuracy": found["accuracy"],
        "accuracy_stderr": found.spread.get("accuracy"),
        "latency_ms": found["latency_ms"],
        "latency_ratio": found["latency_ms"] / baseline["latency_ms"],
        "macs": found["macs"],
        "params": found["params"],
        "size_bytes": found["size_bytes"],
        "feasible": all(v <= 0 for v in violations.values()),
        "violations": violations,
        "problems": found.context.get("problems", []),
        "policy": policy.as_dict(),
    }


def read_uniform(text: str) -> dict[str, Any]:
    """Read ``prune_ratio=0.5,weight_bits=8``; bits of activations follow those of weights."""
    values: dict[str, Any] = {}
    fields = LayerPolicy.__dataclass_fields__
    for part in text.split(","):
        key, separator, value = part.strip().partition("=")
        if not separator:
            raise InputError(f"--uniform reads like prune_ratio=0.5,weight_bits=8, got {text!r}.")
        if key not in fields:
            raise InputError(f"A layer policy has no {key!r}; {nearest(key, fields)}")
        values[key] = read_value(value)
    if values.get("weight_bits") == 8:
        values.setdefault("activation_bits", 8)
    return values


def read_policy(path: Path, parts: Assembly) -> Policy:
    """A policy from its own file or from a recipe; every layer must exist."""
    data = read_mapping(path, "policy")
    policy = Policy.read(data.get("policy", data), where=str(path))
    for name in policy.layers:
        parts.inventory.layer(name)
    return policy


def show_evaluation(found: dict[str, Any], console: Console) -> None:
    """The policy beside the uncompressed model."""
    trial, base = found["trial"], found["baseline"]
    table = Table("", "accuracy", "latency ms", "MACs M", "params k", "file kB")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in (("uncompressed", base), ("policy", trial)):
        table.add_row(
            name,
            f"{row['accuracy']:.2%}",
            f"{row['latency_ms']:.3f}",
            f"{row['macs'] / 1e6:.2f}",
            f"{row['params'] / 1e3:.1f}",
            f"{row['size_bytes'] / 1e3:.1f}",
        )
    console.print(table)
    console.print(
        f"{1 / trial['latency_ratio']:.2f} times as fast, accuracy "
        f"{100 * (trial['accuracy'] - base['accuracy']):+.2f} points; "
        + ("within" if trial["feasible"] else "[yellow]over[/yellow]")
        + f" the budget ({found['budget']})."
    )
    for problem in trial["problems"]:
        console.print(f"[yellow]{problem}[/yellow]")
