"""Scales moved between layers, so that no channel of an activation drowns the others in 8 bits.

An activation has one scale for all of its channels. Where one channel is far larger than the rest,
the rest is rounded to a few levels. What makes a channel can be scaled down and what reads it
scaled up by as much, if nothing between them minds; whether so is tried, not believed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from autocompress.build.scales import Site, before, best_scale, for_inputs, inputs_of
from autocompress.build.walk import Steps
from autocompress.errors import UnsupportedModel
from autocompress.model.usage import CONV
from autocompress.task.calling import call, call_flat
from autocompress.task.data import portions
from autocompress.task.nested import take
from autocompress.techniques.compressed import Compressed, Precision
from autocompress.techniques.moments import MatrixLayer, matrix_layer

_log = logging.getLogger(__name__)

_OUTLIER = 8.0
"""A channel is one if its largest value is so many times that of the channel in the middle."""

_SAMPLES = 64
_TRIED = 4
_EXPONENTS = (6, 9)
"""Such powers of two are tried: a clip or a curve between the layers cannot hide."""

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


@torch.no_grad()
def equalize(folded: nn.Module, compressed: Compressed, inputs: Any) -> tuple[str, ...]:
    """Move scales out of activations with outlier channels, in place; the float network stays.

    For a channel j with activations up to a_j that weights up to w_j read, the scale is
    s_j = a_j^t / w_j^(1-t); t is the one with the least error of what reads it, rounded.

    Args:
        folded: batch norms folded; its weights are changed.
        compressed: which layers are quantized.
        inputs: calibration inputs, or a split.

    Returns:
        Names of the layers that read an activation whose scales were moved.

    References:
        Xiao et al., SmoothQuant, ICML 2023, eq. 4; Lin et al., AWQ, MLSys 2024, eq. 5 (the search);
        Nagel et al., Data-Free Quantization, ICCV 2019, section 4.1 (between convolutions).
    """
    batch = next(portions(inputs, _SAMPLES))
    wanted = {
        n: p
        for n, p in compressed.precisions.items()
        if p.weight_bits <= 8 and isinstance(folded.get_submodule(n), MatrixLayer)
    }
    peaks = _peaks(folded, wanted, batch)
    uneven = {name for name, peak in peaks.items() if _outliers(peak)}
    if not uneven:
        return ()
    few = take(batch, slice(0, _TRIED))
    try:
        steps = Steps(folded, compressed.precisions, few)
    except UnsupportedModel as error:
        _log.debug("No scales are moved: %s", error)
        return ()
    found = [site for site in sites(steps, folded) if not uneven.isdisjoint(site.readers)]
    parts = [batch]
    if steps.depends:  # another part of the batch may take another way
        found = _read_by_all(folded, found, batch)
        parts += portions(batch, _TRIED)
    before = [call_flat(folded, part) for part in parts] if found else []
    with _kept(folded, found) as undo:
        read = _moved(folded, found, wanted, peaks, batch)
        for part, answers in zip(parts, before, strict=False):
            if read and not _alike(answers, call_flat(folded, part)):
                _log.debug("No scales are moved: other inputs than the first few mind.")
                undo()
                read = ()
    return read


def _moved(
    folded: nn.Module,
    found: Iterable[Site],
    wanted: Mapping[str, Precision],
    peaks: Mapping[str, Tensor],
    batch: Any,
) -> tuple[str, ...]:
    """Move the scales of sites where it can be done and gains; the layers that read them."""
    few = take(batch, slice(0, _TRIED))
    read: list[str] = []
    for site in found:
        chosen = next((s for s in site.variants() if movable(folded, s, few)), None)
        scale = None if chosen is None else best_scale(folded, chosen, wanted, peaks, batch)
        if chosen is not None and scale is not None:
            _move(folded, chosen, scale)
            read += site.readers
    return tuple(read)


def _read_by_all(folded: nn.Module, found: Iterable[Site], batch: Any) -> list[Site]:
    """The sites that no layer can read which these inputs never come to, by its width."""
    layers = {n: m for n, m in folded.named_modules() if isinstance(m, MatrixLayer)}
    idle = [inputs_of(layers[n]) for n in layers.keys() - _peaks(folded, layers, batch).keys()]
    return [s for s in found if not any(size % s.channels == 0 for size in idle)]


@contextmanager
def _kept(module: nn.Module, touched: Iterable[Site]) -> Iterator[Callable[[], None]]:
    """A way back to the very parameters that some sites have; taken where anything fails."""
    names = {n for s in touched for n in (*s.makers, *(f"{r}.weight" for r in s.readers))}
    held = [(kept := _tensor(module, name), kept.clone()) for name in names]

    def undo() -> None:
        for tensor, value in held:
            tensor.copy_(value)

    try:
        yield undo
    except BaseException:
        undo()
        raise


def _tensor(module: nn.Module, name: str) -> Tensor:
    """A parameter, or a weight that a hook computes."""
    owner, _, key = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(owner), key)
    return found


def sites(steps: Steps, module: nn.Module) -> list[Site]:
    """Activations whose makers and readers are known; whether scales can be moved is to be tried.

    Values that meet in an operator (a sum, say) share their channels and are one activation.

    Args:
        steps: of a run of the module.
        module: whose layers are named.
    """
    parent: dict[object, object] = {}

    def root(item: object) -> object:
        while parent.setdefault(item, item) != item:
            item = parent[item]
        return item

    makers: dict[fx.Node, dict[str, int]] = {}
    readers: dict[object, list[str]] = {}
    barred: list[object] = []
    for node in steps.graph.nodes:
        made = _made(node, module)
        if node.op == "placeholder":
            barred.append(node)
        elif node.op == "output":
            barred += node.all_input_nodes
        elif made is None:
            for source in node.all_input_nodes:
                parent[root(source)] = root(node)
        else:
            makers[node] = made
            if isinstance(_layer(node, module), MatrixLayer):
                readers.setdefault(node.all_input_nodes[0], []).append(str(node.target))
                barred += node.all_input_nodes[1:]
            else:
                barred += [n for n in node.all_input_nodes if n.op != "get_attr"]
    stopped = {root(node) for node in barred}
    out = []
    for group in dict.fromkeys(map(root, makers)):
        made = {k: v for node, own in makers.items() if root(node) == group for k, v in own.items()}
        reading = [n for node, names in readers.items() if root(node) == group for n in names]
        if group not in stopped and reading and len(set(made.values())) == 1:
            names = tuple(dict.fromkeys(reading))
            clipped = frozenset(str(n.target) for n in makers if root(n) == group and _cut_off(n))
            out.append(Site(tuple(made), names, next(iter(made.values())), clipped))
    return [site for site in out if _fits(module, site)]


def _layer(node: fx.Node, module: nn.Module) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _made(node: fx.Node, module: nn.Module) -> dict[str, int] | None:
    """Parameters that scale each channel of what a node gives; ``None`` if it only passes on."""
    layer = _layer(node, module)
    if isinstance(layer, MatrixLayer) or (isinstance(layer, _NORMS) and layer.weight is not None):
        own = {f"{node.target}.{k}": p for k, p in layer.named_parameters(recurse=False)}
        return {name: len(p) for name, p in own.items()}
    if node.op == "get_attr" and _vector(node, module) is not None:
        shift = all(_is(user, "add") for user in node.users)
        return {str(node.target): len(_vector(node, module))} if shift and node.users else None
    if _is(node, "mul"):
        for source in node.all_input_nodes:
            vector = _vector(source, module)
            if vector is not None and len(source.users) == 1:
                return {str(source.target): len(vector)}
    return None


def _cut_off(node: fx.Node) -> bool:
    """Whether only ReLUs read what a node gives."""
    return bool(node.users) and all(_is(user, "relu") or _is(user, "relu_") for user in node.users)


def _is(node: fx.Node, name: str) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    return node.op == "call_function" and getattr(packet, "__name__", "") == name


def _vector(node: fx.Node, module: nn.Module) -> Any:
    """The parameter that a node reads, if it has one number for each channel."""
    if node.op != "get_attr":
        return None
    found = dict(module.named_parameters()).get(str(node.target))
    return found if found is not None and found.dim() == 1 and len(found) > 1 else None


def _fits(module: nn.Module, site: Site) -> bool:
    sizes = [inputs_of(matrix_layer(module, name)) for name in site.readers]
    return site.channels > 1 and all(size % site.channels == 0 for size in sizes)


def _peaks(module: nn.Module, names: Iterable[str], batch: Any) -> dict[str, Tensor]:
    """The largest magnitude of each input channel of some layers."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            if not args:
                return  # given by name: it stays as it is
            given = args[0]
            axis = given.dim() - 1 - (len(layer.kernel_size) if isinstance(layer, CONV) else 0)
            others = [d for d in range(given.dim()) if d != axis]
            if not given.numel():  # an expert that no sample is sent to
                peak = given.new_zeros(given.shape[axis])
            else:  # what the model makes by itself may have no samples: one number per channel
                peak = given.abs().amax(others) if others else given.abs()
            found[name] = torch.maximum(found[name], peak) if name in found else peak

        return hook

    with before(module, {name: note(name) for name in names}):
        call(module, batch)
    return found


def _outliers(peak: Tensor) -> bool:
    alive = peak[peak > 0]
    return len(alive) > 1 and bool(alive.max() > _OUTLIER * alive.median())


def _move(module: nn.Module, site: Site, scale: Tensor) -> None:
    """Divide what makes the channels by a scale, and multiply what reads them."""
    for name in site.makers:
        parameter = module.get_parameter(name)
        parameter.div_(scale.view(-1, *[1] * (parameter.dim() - 1)))
    for name in site.readers:
        layer = matrix_layer(module, name)
        layer.weight.mul_(for_inputs(layer, scale))


@torch.no_grad()
def movable(module: nn.Module, site: Site, inputs: Any) -> bool:
    """Whether the network stays what it is when an activation's channels are scaled at random.

    Both what the readers give and what the network answers must stay, for scales that are powers
    of two, in which floats lose nothing.
    """
    draw = torch.Generator().manual_seed(0)
    least, most = _EXPONENTS
    exponents = torch.randint(least, most + 1, (site.channels,), generator=draw)
    exponents *= 2 * torch.randint(0, 2, (site.channels,), generator=draw) - 1
    owners = {name.rpartition(".")[0] for name in site.makers}
    watched = [name for name in site.readers if name not in owners]
    before = _answers(module, watched, inputs)
    # each channel up and down: a clip of one of them shows in one direction only
    for scale in torch.pow(2.0, torch.stack([exponents, -exponents]).float()):
        # what is near the ends of a float's range would not come back by itself
        with _kept(module, [site]) as undo:
            _move(module, site, scale)
            try:
                now = _answers(module, watched, inputs)
            except Exception:  # forwards may refuse values that are not theirs
                return False
            finally:
                undo()
        if not _alike(before, now):
            return False
    return True


def _answers(module: nn.Module, layers: Iterable[str], inputs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    handles = [
        module.get_submodule(name).register_forward_hook(lambda m, a, out: found.append(out))
        for name in layers
    ]
    try:
        return call_flat(module, inputs) + found
    finally:
        for handle in handles:
            handle.remove()


def _alike(before: list[Tensor], now: list[Tensor]) -> bool:
    return len(before) == len(now) and all(map(_same, before, now))


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not one.is_floating_point():
        return one.shape == other.shape and torch.equal(one, other)
    size = float(one.abs().max()) if one.numel() else 0.0
    return bool(torch.isfinite(other).all()) and float((one - other).abs().max()) <= 1e-4 * size
