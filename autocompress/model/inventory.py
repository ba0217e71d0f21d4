"""Take the inventory of a torch model: layers in run order, coupled groups, identity."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from autocompress.errors import UnsupportedModel
from autocompress.model.beside import with_others
from autocompress.model.block_check import followed
from autocompress.model.cut_check import first_samples
from autocompress.model.fingerprint import fingerprint
from autocompress.model.groups import channel_groups
from autocompress.model.specs import LayerCalls, layer_spec, left_alone, listed, tied
from autocompress.model.tracing_stubs import is_attention, unfused_attention
from autocompress.model.usage import uses_elsewhere
from autocompress.policy.inventory import Inventory, LayerSpec, LeftAlone
from autocompress.task.calling import call, call_or_refuse
from autocompress.task.dynamic import Axes
from autocompress.task.nested import batch_size, map_tensors, named_tensors, tensors


def take_inventory(model: nn.Module, example: Any, axes: Axes | None = None) -> Inventory:
    """List what a policy may touch.

    Args:
        model: in eval mode; not changed.
        example: one batch of inputs ``(N, ...)``: a tensor, a tuple, a mapping (keywords), nested.
            Two unlike samples tell more than one.
        axes: of the inputs that may have other sizes, beside the batch; one of these is tried.

    Returns:
        Layers in the order in which they run, channel groups, blocks, and fingerprints.

    Raises:
        UnsupportedModel: the model cannot be run on the example, or has no layer to compress.
    """
    training = model.training
    model.eval()
    try:
        calls = _trace_calls(model, first_samples(example, 1))
        groups, plan = channel_groups(model, example, axes)
        specs = _specs(calls)
        if not specs:
            raise UnsupportedModel(
                "The model has no convolution, linear, recurrent or attention "
                "layer that runs on this input."
            )
        seen = followed(model, example, specs)
    finally:
        model.train(training)
    made = {p: g.name for g in groups for p in g.producers}
    passed = {name: g.name for g in reversed(groups) for name, _ in g.spans}
    layers = []
    for spec in specs:
        # a depthwise layer passes its inputs on: named is the first group of several
        group = (passed if spec.depthwise else made).get(spec.name)
        spec = replace(spec, out_group=group)
        why = seen.staying_whole.get(spec.name)
        layers.append(spec if why is None else left_alone(spec, why))
    architecture, weights = fingerprint(model)
    shapes = tuple(tuple(x.shape[1:]) for x in tensors(example))
    reading = {name for group in groups for name, _ in group.spans}
    macs = {x.name: x.macs for x in layers if x.name not in reading and x.out_group is None}
    alone = tuple(
        LeftAlone(name, reason, sum(macs.get(p, 0) for p in plan.producers[name] or macs))
        for name, reason in plan.skipped.items()
    )
    found = Inventory(
        tuple(layers),
        groups,
        shapes,
        architecture,
        weights,
        alone,
        seen.blocks,
        tuple(seen.staying.items()),
        seen.sources,
    )
    return with_others(found, model, plan)


def _specs(calls: dict[str, LayerCalls]) -> list[LayerSpec]:
    """What is known of every layer; a weight that several of them hold counts once."""
    holders: dict[int, list[str]] = {}
    for name, found in calls.items():
        weight = getattr(found.module, "weight", None)
        if isinstance(weight, nn.Parameter):
            holders.setdefault(id(weight), []).append(name)
    first = {name: names[0] for names in holders.values() for name in names}
    counted: set[int] = set()
    specs = {}
    for name, found in calls.items():
        earlier = first.get(name, name)
        specs[name] = layer_spec(name, found, None if name == earlier else earlier, counted)
    for names in holders.values():
        if len(names) > 1:
            specs |= {x.name: x for x in tied([specs[name] for name in names])}
    return list(specs.values())


def _check_inputs_stay(model: nn.Module, example: Any) -> Any:
    """What a model answers; refuse one that writes into what it is given: every later run would see
    other data.

    Raises:
        UnsupportedModel: with the remedy.
    """
    given = map_tensors(torch.clone, example)
    before = [tensor._version for tensor in tensors(given)]
    answer = call(model, given)
    changed = [
        name
        for (name, tensor), age in zip(named_tensors(given), before, strict=True)
        if tensor._version != age
    ]
    if changed:
        which = f" ({', '.join(changed)})" if any(changed) else ""
        raise UnsupportedModel(
            f"The model must leave its inputs as they are, but its forward changes them in place"
            f"{which}, so that the same data would be others at every run. Let it work on a copy: "
            "`x = x.clone()` first, or operators that are not in place (`x / 255` for `x /= 255`)."
        )
    return answer


def _trace_calls(model: nn.Module, example: Any) -> dict[str, LayerCalls]:
    """Every layer that runs, in the order in which they run first, and how they ran."""
    shapes: dict[str, list[Any]] = {}
    modules: dict[str, nn.Module] = {}
    handles = []

    def hook(name: str) -> Any:
        def note(module: nn.Module, args: Any, kwargs: Any, outputs: Any) -> None:
            taken = tensors((args, kwargs))
            entry = tuple(taken[0].shape) if taken else ()
            shapes.setdefault(name, []).append((tuple(tensors(outputs)[0].shape), entry))

        return note

    inside_attention: set[str] = set()
    for name, module in model.named_modules():
        if is_attention(module):
            inside_attention.add(name + ".")
        if listed(module) and not any(
            name.startswith(p) for p in inside_attention if p != name + "."
        ):
            modules[name] = module
            handles.append(module.register_forward_hook(hook(name), with_kwargs=True))
    owners: dict[int, set[nn.Module]] = {}
    for module in modules.values():
        for parameter in module.parameters():
            owners.setdefault(id(parameter), set()).add(module)
    try:
        with unfused_attention(), torch.no_grad():
            call_or_refuse(lambda given: _check_inputs_stay(model, given), example)
            shapes.clear()
            try:
                with uses_elsewhere(owners) as elsewhere:
                    call(model, example)
            except Exception:  # a model may not bear being watched; its channels stay then
                shapes.clear()
                elsewhere = {}
                call(model, example)
    finally:
        for handle in handles:
            handle.remove()
    batch = batch_size(example)
    return {
        name: LayerCalls(modules[name], tuple(found), batch, _used_by(modules[name], elsewhere))
        for name, found in shapes.items()
    }


def _used_by(module: nn.Module, elsewhere: dict[int, str]) -> str:
    """The torch function that read a layer's parameters outside of its forward, if any did."""
    for parameter in module.parameters():
        if id(parameter) in elsewhere:
            return elsewhere[id(parameter)]
    return ""
