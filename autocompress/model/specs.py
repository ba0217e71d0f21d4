"""What the inventory says of one layer: its numbers, and what the techniques say of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from autocompress.model.splitting import hooked, splittable, why_no_product
from autocompress.model.tracing_stubs import is_attention
from autocompress.model.usage import CELLS, CONV, TABLES, TRANSPOSED, Usage, usage
from autocompress.policy.inventory import RE_SOLVE, LayerSpec, LayerTraits
from autocompress.policy.registry import techniques


@dataclass(frozen=True)
class LayerCalls:
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


def layer_spec(name: str, calls: LayerCalls, tied_to: str | None, counted: set[int]) -> LayerSpec:
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
    own = [p for p in counted_parameters(module) if id(p) not in counted]
    counted.update(id(p) for p in own)
    used = usage(module) if isinstance(module, CONV | nn.Linear) else Usage()
    spec = replace(spec, params=sum(p.numel() for p in own), tied_to=tied_to, plain=used.plain)
    traits = _traits(module, used, calls.used_by)
    reasons = {t.name: t.left_alone(spec, traits) for t in techniques()}
    reasons[RE_SOLVE] = _why_not_solved(spec, traits)
    return replace(spec, left_alone=tuple((n, reason) for n, reason in reasons.items() if reason))


def left_alone(spec: LayerSpec, reason: str) -> LayerSpec:
    """The same layer, whose weights no technique changes; its channels may still go."""
    names = [t.name for t in techniques() if not (t.coupled or t.whole_blocks)]
    return replace(spec, left_alone=tuple((name, reason) for name in (*names, RE_SOLVE)))


def tied(specs: Sequence[LayerSpec]) -> list[LayerSpec]:
    """What is known of layers that hold one weight, once all are.

    Args:
        specs: of the layers, the first one first.
    """
    first, *others = specs
    reasons = {t.name: t.left_alone_together(specs) for t in techniques() if t.of_first}
    told = {**{n: reason for n, reason in reasons.items() if reason}, **dict(first.left_alone)}
    first = replace(first, left_alone=tuple(told.items()))
    if any(map(first.why_not, reasons)):
        return [first, *others]
    return [replace(x, holders=len(specs)) for x in (first, *others)]


def _traits(module: nn.Module, used: Usage, used_by: str) -> LayerTraits:
    """What techniques may ask of a module; ``used_by`` as in ``LayerCalls``."""
    fixed = used.reason
    if any(parameter.is_complex() for parameter in module.parameters()):
        fixed = "its weights are complex numbers"
    elif isinstance(module, CELLS):
        fixed = "a cell is stepped by the model's own code"
    elif used_by and not fixed:
        fixed = f"its weight is also used outside of the layer ({used_by})"
    kind = type(module).__name__
    indivisible = ""
    if hooked(module):
        indivisible = "hooks run with it, which two layers would run twice"
    elif isinstance(module, TABLES):
        indivisible = why_no_product(module)
    elif used.direct and not used.plain and not splittable(module):
        indivisible = f"{kind} cannot be divided into two layers"
    return LayerTraits(kind, fixed, indivisible, used.after, isinstance(module, nn.EmbeddingBag))


def _why_not_solved(spec: LayerSpec, traits: LayerTraits) -> str:
    """Why the reconstruction keeps a layer's weight; empty where it may solve it anew."""
    if spec.kind == "conv_transpose":
        return "the least squares know no transposed convolutions"
    adjusts = f"{traits.class_name} changes its outputs inside the layer" * traits.adjusts
    return traits.fixed or adjusts


def counted_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that the formulas count: of a subclass, weight and bias alone."""
    if isinstance(module, CONV | nn.Linear):
        held = (module.weight, module.bias)
        return [p for p in held if isinstance(p, nn.Parameter)]
    return list(module.parameters())


# ---- convolutions and linear layers


def _conv(name: str, calls: LayerCalls) -> LayerSpec:
    module: Any = calls.module
    transposed = isinstance(module, TRANSPOSED)
    applied = [entry if transposed else left for left, entry in calls.shapes]
    positions = max(1, sum(math.prod(shape[2:]) for shape in applied))
    weights = module.out_channels * module.in_channels // module.groups
    return LayerSpec(
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


def _linear(name: str, calls: LayerCalls) -> LayerSpec:
    module: Any = calls.module
    outputs = sum(math.prod(left) for left, _ in calls.shapes)
    # an expert that the sample is not sent to counts as if it were
    positions = max(1, outputs // module.out_features // calls.batch)
    return LayerSpec(
        name,
        "linear",
        module.in_features,
        module.out_features,
        positions=positions,
        macs=positions * module.in_features * module.out_features,
    )


# ---- recurrent layers and cells


def _recurrent(name: str, calls: LayerCalls) -> LayerSpec:
    module: Any = calls.module
    kind: Any = {"LSTM": "lstm", "GRU": "gru", "RNN_TANH": "rnn", "RNN_RELU": "rnn"}[module.mode]
    both = 1 + module.bidirectional
    spec = _stepped(name, kind, calls, module.hidden_size * both)
    return replace(spec, depth=module.num_layers, directions=both)


def _cell(name: str, calls: LayerCalls) -> LayerSpec:
    module: Any = calls.module
    kind: Any = {nn.LSTMCell: "lstm", nn.GRUCell: "gru", nn.RNNCell: "rnn"}[
        next(k for k in CELLS if isinstance(module, k))
    ]
    return _stepped(name, kind, calls, module.hidden_size)


def _stepped(name: str, kind: Any, calls: LayerCalls, outputs: int) -> LayerSpec:
    steps = max(1, sum(math.prod(entry[:-1]) for _, entry in calls.shapes) // calls.batch)
    named = calls.module.named_parameters()
    weights = sum(p.numel() for n, p in named if n.startswith("weight"))
    module: Any = calls.module
    size = module.input_size
    return LayerSpec(name, kind, size, outputs, positions=steps, macs=steps * weights)


# ---- tables and attentions


def _table(name: str, calls: LayerCalls) -> LayerSpec:
    module: Any = calls.module
    rows, width = module.num_embeddings, module.embedding_dim
    values = sum(math.prod(left) for left, _ in calls.shapes)
    positions = max(1, values // width // calls.batch)
    return LayerSpec(name, "embedding", rows, width, positions=positions, integer=False)


def _attention(name: str, calls: LayerCalls) -> LayerSpec:
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
    return LayerSpec(name, "attention", width, width, positions=tokens, macs=macs)


_KINDS: dict[type[nn.Module], Callable[[str, LayerCalls], LayerSpec]] = {
    CONV: _conv,
    nn.Linear: _linear,
    nn.RNNBase: _recurrent,
    **dict.fromkeys(CELLS, _cell),
    **dict.fromkeys(TABLES, _table),
}
