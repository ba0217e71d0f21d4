"""Take the inventory of a torch model: layers in run order, coupled groups, identity."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from autocompress.errors import UnsupportedModel
from autocompress.model.fingerprint import fingerprint
from autocompress.model.groups import channel_groups
from autocompress.model.tracing_stubs import is_attention
from autocompress.policy.inventory import Inventory, LayerSpec
from autocompress.task.calling import call
from autocompress.task.nested import batch_size, tensors

_CONV = nn.modules.conv._ConvNd
_KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.modules.conv._ConvTransposeNd, ""),
    (_CONV, "conv"),
    (nn.Linear, "linear"),
    (nn.LSTM, "lstm"),
    (nn.GRU, "gru"),
    (nn.Embedding, "embedding"),
)


def take_inventory(model: nn.Module, example: Any) -> Inventory:
    """List what a policy may touch.

    Args:
        model: in eval mode; not changed.
        example: one batch of inputs ``(N, ...)``: a tensor, a tuple, a mapping (keywords), nested.

    Returns:
        Layers in the order in which they run, channel groups, and fingerprints.

    Raises:
        UnsupportedModel: the model cannot be run on the example, or has no layer to compress.
    """
    training = model.training
    model.eval()
    try:
        calls = _trace_calls(model, example)
        groups, _ = channel_groups(model, example)
    finally:
        model.train(training)
    made = {p: g.name for g in groups for p in g.producers}
    passed = {name: g.name for g in reversed(groups) for name, _ in g.spans}
    layers = []
    batch = batch_size(example)
    for name, (module, kind, outputs) in calls.items():
        spec = _spec(name, module, kind, outputs, batch)
        # a depthwise layer passes its inputs on: named is the first group of several
        layers.append(replace(spec, out_group=(passed if spec.depthwise else made).get(name)))
    if not layers:
        raise UnsupportedModel(
            "The model has no convolution, linear, recurrent or attention "
            "layer that runs on this input."
        )
    architecture, weights = fingerprint(model)
    shapes = tuple(tuple(x.shape[1:]) for x in tensors(example))
    return Inventory(tuple(layers), groups, shapes, architecture, weights)


def _trace_calls(model: nn.Module, example: Any) -> dict[str, tuple[nn.Module, str, list[Any]]]:
    """Every layer that runs, with the shapes of output and input of each of its calls."""
    calls: dict[str, tuple[nn.Module, str, list[Any]]] = {}
    handles = []

    def hook(name: str, kind: str) -> Any:
        def note(module: nn.Module, args: Any, outputs: Any) -> None:
            first = outputs[0] if isinstance(outputs, tuple) else outputs
            calls.setdefault(name, (module, kind, []))[2].append(
                (tuple(first.shape), tuple(args[0].shape) if args else ())
            )

        return note

    inside_attention: set[str] = set()
    for name, module in model.named_modules():
        kind = next((k for t, k in _KINDS if isinstance(module, t)), "")
        if is_attention(module):
            kind = "attention"
            inside_attention.add(name + ".")
        if kind and not any(name.startswith(p) for p in inside_attention if p != name + "."):
            handles.append(module.register_forward_hook(hook(name, kind)))
    # the fused encoder path of transformers bypasses the layers' own forward
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            call(model, example)
    except (RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedModel(
            f"The model does not run on an input of shape "
            f"{[tuple(x.shape) for x in tensors(example)]}: {error}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    return calls


def _spec(name: str, module: nn.Module, kind: str, outputs: list[Any], batch: int) -> LayerSpec:
    params = sum(p.numel() for p in module.parameters())
    if isinstance(module, _CONV):
        positions = sum(math.prod(shape[2:]) for shape, _ in outputs)
        kernel = math.prod(module.kernel_size)
        macs = positions * module.out_channels * module.in_channels // module.groups * kernel
        return LayerSpec(
            name,
            "conv",
            module.in_channels,
            module.out_channels,
            tuple(module.kernel_size),
            tuple(module.stride),
            module.groups,
            positions,
            macs,
            params,
            factorizable=module.groups == 1 and isinstance(module, nn.Conv1d | nn.Conv2d),
            sizes=tuple((entry[2:], left[2:]) for left, entry in outputs),
        )
    if isinstance(module, nn.Linear):
        positions = sum(math.prod(shape) for shape, _ in outputs) // module.out_features // batch
        return LayerSpec(
            name,
            "linear",
            module.in_features,
            module.out_features,
            positions=positions,
            params=params,
            macs=positions * module.in_features * module.out_features,
        )
    if isinstance(module, nn.LSTM | nn.GRU):
        return _recurrent_spec(name, module, outputs, batch)
    if is_attention(module):
        width, tokens, macs = _attention(module, [shape for shape, _ in outputs], batch)
        return LayerSpec(
            name,
            "attention",
            width,
            width,
            positions=tokens,
            macs=macs,
            params=params,
            factorizable=False,
        )
    assert isinstance(module, nn.Embedding)
    return LayerSpec(
        name,
        "embedding",
        module.num_embeddings,
        module.embedding_dim,
        params=params,
        factorizable=False,
    )


def _recurrent_spec(
    name: str, module: nn.LSTM | nn.GRU, outputs: list[Any], batch: int
) -> LayerSpec:
    steps = sum(math.prod(s[:2]) for _, s in outputs) // batch
    weights = sum(p.numel() for n, p in module.named_parameters() if n.startswith("weight"))
    return LayerSpec(
        name,
        "lstm" if isinstance(module, nn.LSTM) else "gru",
        module.input_size,
        module.hidden_size * (1 + module.bidirectional),
        positions=steps,
        macs=steps * weights,
        params=sum(p.numel() for p in module.parameters()),
        depth=module.num_layers,
        directions=1 + module.bidirectional,
        quantizable=isinstance(module, nn.LSTM),  # runtimes have no integer kernel for GRU
        factorizable=False,
    )


def _attention(module: Any, shapes: list[tuple[int, ...]], batch: int) -> tuple[int, int, int]:
    """Width of the stream, tokens per sample, and multiply-adds per sample."""
    if isinstance(module, nn.MultiheadAttention):
        width = module.embed_dim
        tokens = sum(math.prod(shape[:-1]) for shape in shapes) // batch
        seen = tokens // len(shapes)
    else:  # images, padded to whole windows; a token sees those of its window
        width = shapes[0][-1]
        tall, wide = module.window_size
        seen = tall * wide
        tokens = sum(-(-s[1] // tall) * tall * (-(-s[2] // wide) * wide) for s in shapes)
    return width, tokens, 4 * tokens * width * width + 2 * tokens * seen * width
