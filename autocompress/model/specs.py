"""What the inventory says of one layer: its numbers, what may be done to it, and why not more."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from autocompress.model.splitting import splittable, why_no_product
from autocompress.model.tracing_stubs import is_attention
from autocompress.model.usage import CELLS, CONV, TABLES, TRANSPOSED, Usage, usage
from autocompress.policy.inventory import LayerSpec
from autocompress.policy.registry import techniques


@dataclass(frozen=True)
class Calls:
    """How a layer ran.

    Args:
        module: the layer.
        shapes: per call, the shape of its first output and of its first input.
        batch: samples of the run.
        used_by: what else read its weight, outside of its own forward; empty text if nothing.
    """

    module: nn.Module
    shapes: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    batch: int
    used_by: str = ""


def listed(module: nn.Module) -> bool:
    """Whether a module is a layer that the inventory lists."""
    return is_attention(module) or isinstance(module, tuple(_KINDS))


def layer_spec(name: str, calls: Calls, tied_to: str | None, counted: set[int]) -> LayerSpec:
    """What is known of one layer.

    Args:
        name: of the layer.
        calls: how it ran.
        tied_to: the earlier layer that holds the same weight.
        counted: ids of parameters that earlier layers hold; its own are added.
    """
    module = calls.module
    if is_attention(module):
        spec = _attention(name, calls)
    else:
        make = next(make for kind, make in _KINDS.items() if isinstance(module, kind))
        spec = make(name, calls)
    own = [p for p in _counted(module) if id(p) not in counted]
    counted.update(id(p) for p in own)
    spec = replace(spec, params=sum(p.numel() for p in own), tied_to=tied_to)
    if tied_to is not None:
        spec = _without(spec, {"low-rank": _held_by(tied_to)})
        spec = _without(spec, {"sparse": f"its zeros are those of {tied_to}"})
    if calls.used_by:
        reason = f"its weight is also used outside of the layer ({calls.used_by})"
        spec = _without(spec, dict.fromkeys(_single(), reason))
    return spec


def tied(specs: Sequence[LayerSpec]) -> list[LayerSpec]:
    """What is known of layers that hold one weight, once all are.

    Factors of a table can be all of theirs: a smaller table that all hold, and a map for each.

    Args:
        specs: of the layers, the first one first.
    """
    first, *others = specs
    makers = all(x.kind == "embedding" or (x.kind == "linear" and x.plain) for x in specs)
    if not makers or first.kind != "embedding":
        names = ", ".join(x.name for x in others)
        return [_without(first, {"low-rank": f"its weight is also that of {names}"}), *others]
    for other in others:
        reason = dict(other.left_alone)["low-rank"]
        if reason != _held_by(first.name):
            first = _without(first, {"low-rank": f"{other.name} holds its weight: {reason}"})
    if first.why_not("low-rank"):
        return [first, *others]
    return [replace(x, holders=len(specs)) for x in (first, *others)]


def _held_by(first: str) -> str:
    return f"its weight is that of {first}"


def _single() -> list[str]:
    """Names of all techniques that work on single layers."""
    single = [t.name for t in techniques() if not t.coupled and not t.whole_blocks]
    return [*single, "re-solve"]


def _counted(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that the formulas count: of a subclass, weight and bias alone."""
    if isinstance(module, CONV | nn.Linear):
        held = (module.weight, module.bias)
        return [p for p in held if isinstance(p, nn.Parameter)]
    return list(module.parameters())


def _without(spec: LayerSpec, reasons: dict[str, str]) -> LayerSpec:
    """A layer that some techniques leave alone, the first reason of each."""
    told = {**reasons, **dict(spec.left_alone)}
    return replace(spec, left_alone=tuple(told.items()))


# ---- convolutions and linear layers


def _conv(name: str, calls: Calls) -> LayerSpec:
    module: Any = calls.module
    transposed = isinstance(module, TRANSPOSED)
    applied = [entry if transposed else left for left, entry in calls.shapes]
    positions = sum(math.prod(shape[2:]) for shape in applied)
    weights = module.out_channels * module.in_channels // module.groups
    spec = LayerSpec(
        name,
        "conv_transpose" if transposed else "conv",
        module.in_channels,
        module.out_channels,
        tuple(module.kernel_size),
        tuple(module.stride),
        module.groups,
        positions,
        positions * weights * math.prod(module.kernel_size),
        sizes=tuple((entry[2:], left[2:]) for left, entry in calls.shapes),
        integer=not transposed,
    )
    reasons = {}
    if transposed:
        reasons["low-rank"] = "factors of transposed convolutions are not known here"
        reasons["re-solve"] = "the least squares know no transposed convolutions"
    elif module.groups > 1:
        reasons["low-rank"] = "a convolution with groups is thin already"
    return _subclass(_without(spec, reasons), module)


def _linear(name: str, calls: Calls) -> LayerSpec:
    module: Any = calls.module
    outputs = sum(math.prod(left) for left, _ in calls.shapes)
    positions = outputs // module.out_features // calls.batch
    spec = LayerSpec(
        name,
        "linear",
        module.in_features,
        module.out_features,
        positions=positions,
        macs=positions * module.in_features * module.out_features,
    )
    return _subclass(spec, module)


def _subclass(spec: LayerSpec, module: nn.Module) -> LayerSpec:
    """What a subclass adds may keep techniques from it."""
    found: Usage = usage(module)
    if not found.direct:
        spec = _without(spec, dict.fromkeys(_single(), found.reason))
    elif found.after:
        reason = f"{type(module).__name__} changes its outputs inside the layer"
        spec = _without(spec, {"re-solve": reason})
    if not spec.why_not("low-rank") and not found.plain and not splittable(module):
        reason = f"{type(module).__name__} cannot be divided into two layers"
        spec = _without(spec, {"low-rank": reason})
    return replace(spec, plain=found.plain)


# ---- recurrent layers and cells


def _recurrent(name: str, calls: Calls) -> LayerSpec:
    module: Any = calls.module
    kind: Any = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn", "RNN_RELU": "rnn"}[module.mode]
    both = 1 + module.bidirectional
    spec = _stepped(name, kind, calls, module.hidden_size * both)
    reasons = {"low-rank": "recurrent weights are not factorized"}
    if kind != "lstm":
        reasons["quantize"] = f"runtimes have no integer kernels for {type(module).__name__} layers"
    return replace(_without(spec, reasons), depth=module.num_layers, directions=both)


def _cell(name: str, calls: Calls) -> LayerSpec:
    module: Any = calls.module
    kind: Any = {nn.LSTMCell: "lstm", nn.GRUCell: "gru", nn.RNNCell: "rnn"}[
        next(k for k in CELLS if isinstance(module, k))
    ]
    reason = "a cell is stepped by the model's own code"
    return _without(
        _stepped(name, kind, calls, module.hidden_size), dict.fromkeys(_single(), reason)
    )


def _stepped(name: str, kind: Any, calls: Calls, outputs: int) -> LayerSpec:
    steps = sum(math.prod(entry[:-1]) for _, entry in calls.shapes) // calls.batch
    named = calls.module.named_parameters()
    weights = sum(p.numel() for n, p in named if n.startswith("weight"))
    module: Any = calls.module
    size = module.input_size
    return LayerSpec(name, kind, size, outputs, positions=steps, macs=steps * weights)


# ---- tables and attentions


def _table(name: str, calls: Calls) -> LayerSpec:
    module: Any = calls.module
    rows, width = module.num_embeddings, module.embedding_dim
    values = sum(math.prod(left) for left, _ in calls.shapes)
    positions = max(1, values // width // calls.batch)
    spec = LayerSpec(name, "embedding", rows, width, positions=positions, integer=False)
    reason = why_no_product(module)
    reasons = {"low-rank": reason} if reason else {}
    if isinstance(module, nn.EmbeddingBag):
        reasons["quantize"] = "runtimes sum rows of a table in float only"
    return _without(spec, reasons)


def _attention(name: str, calls: Calls) -> LayerSpec:
    """Width of the stream, tokens and multiply-adds per sample."""
    module: Any = calls.module
    shapes = [left for left, _ in calls.shapes]
    if isinstance(module, nn.MultiheadAttention):
        width = module.embed_dim
        tokens = sum(math.prod(shape[:-1]) for shape in shapes) // calls.batch
        seen = tokens // len(shapes)
    else:  # images, padded to whole windows; a token sees those of its window
        width = shapes[0][-1]
        tall, wide = module.window_size
        seen = tall * wide
        tokens = sum(-(-s[1] // tall) * tall * (-(-s[2] // wide) * wide) for s in shapes)
    macs = 4 * tokens * width * width + 2 * tokens * seen * width
    spec = LayerSpec(name, "attention", width, width, positions=tokens, macs=macs)
    return _without(spec, {"low-rank": "its projections are held as one weight"})


_KINDS: dict[type[nn.Module], Callable[[str, Calls], LayerSpec]] = {
    CONV: _conv,
    nn.Linear: _linear,
    nn.RNNBase: _recurrent,
    **dict.fromkeys(CELLS, _cell),
    **dict.fromkeys(TABLES, _table),
}
