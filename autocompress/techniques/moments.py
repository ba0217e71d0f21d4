"""Second moments of layer inputs on calibration data: all that the least squares need to know."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autocompress.errors import CalibrationError
from autocompress.model.usage import CONV, inherited, paddings, product, usage
from autocompress.task.calling import call
from autocompress.task.data import counted, portions
from autocompress.task.nested import tensors

MatrixLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""Layers that multiply rows of their inputs with one weight matrix per group."""

MAX_FEATURES = 4700
"""Layers with more input features keep no moments (90 MB each at the limit)."""

_ROWS = 131_072
"""Rows (samples x positions) that are enough for layers of up to a thousand features."""

LEAST_DAMPING = 1e-20
"""Where all inputs are zero, a share of nothing would not damp."""


def features(layer: nn.Module) -> int:
    """Input features per output: input channels of one conv group times the kernel."""
    if isinstance(layer, CONV):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    assert isinstance(layer, nn.Linear)
    return layer.in_features


def solvable(layer: nn.Module) -> TypeGuard[MatrixLayer]:
    """Whether a layer's weights can be re-solved from its input moments."""
    if not isinstance(layer, MatrixLayer) or features(layer) > MAX_FEATURES:
        return False
    if isinstance(layer, CONV) and layer.groups > 1 and layer.groups == layer.in_channels:
        return False  # depthwise
    found = usage(layer)
    return found.direct and not found.after


def matrix_layer(model: nn.Module, name: str) -> MatrixLayer:
    """A layer of a model that is known to be one of these kinds."""
    layer = model.get_submodule(name)
    assert isinstance(layer, MatrixLayer), f"{name} is a {type(layer).__name__}"
    return layer


def rows(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer multiplies its weights with.

    Args:
        layer: convolution, linear, or an identity before some multiplication.
        inputs: ``(N, C, *spatial)`` or ``(N, ..., features)``.

    Returns:
        ``(groups, M, features)``: one row per output position.
    """
    if isinstance(layer, nn.Identity):
        return inputs.reshape(1, -1, inputs.shape[-1])
    if not inherited(layer):
        # what a subclass does to its inputs is part of what the weight is multiplied with
        found = product(layer, inputs)
        assert found is not None
        inputs = found.inputs
        if isinstance(layer, CONV):
            return _columns(inputs, layer, found.options)
    if isinstance(layer, nn.Linear):
        return inputs.reshape(1, -1, layer.in_features)
    assert isinstance(layer, CONV)
    options: dict[str, Any] = {k: getattr(layer, k) for k in ("stride", "padding", "dilation")}
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        sides = [side for pair in reversed(paddings(layer)) for side in pair]
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs = F.pad(inputs, sides, mode=mode)
        options["padding"] = 0
    return _columns(inputs, layer, options)


def _columns(inputs: Tensor, layer: CONV, options: Mapping[str, Any]) -> Tensor:
    """Patches under a kernel, ``(groups, M, features)``.

    Args:
        inputs: ``(N, C, *spatial)``, or without the batch.
        layer: its groups and kernel are read.
        options: stride, padding and dilation, numbers or one for each axis.
    """
    axes = len(layer.kernel_size)
    image = inputs if inputs.dim() == axes + 2 else inputs[None]
    stride, padding, dilation = (
        (value,) * axes if isinstance(value, int) else tuple(value)
        for value in (options.get(k, d) for k, d in _DEFAULTS)
    )
    count = len(image)
    if axes == 3:
        image = F.pad(image, [side for p in reversed(padding) for side in (p, p)])
        for axis in range(axes):
            span = dilation[axis] * (layer.kernel_size[axis] - 1) + 1
            image = image.unfold(2 + axis, span, stride[axis])[..., :: dilation[axis]]
        order = (0, 1, 5, 6, 7, 2, 3, 4)
        columns = image.permute(order).reshape(count, -1, math.prod(image.shape[2:5]))
    else:
        flat = axes == 1
        kernel, padding, dilation, stride = (
            (unit, *value) if flat else value
            for value, unit in (
                (tuple(layer.kernel_size), 1),
                (padding, 0),
                (dilation, 1),
                (stride, 1),
            )
        )
        image = image.unsqueeze(2) if flat else image
        columns = F.unfold(image, kernel, dilation=dilation, padding=padding, stride=stride)
    positions = columns.shape[-1]
    grouped = columns.view(count, layer.groups, -1, positions)
    return grouped.permute(1, 0, 3, 2).reshape(layer.groups, count * positions, -1)


_DEFAULTS = (("stride", 1), ("padding", 0), ("dilation", 1))


@dataclass(frozen=True)
class Moments:
    """Input moments of one layer.

    Args:
        second: ``(groups, d + 1, d + 1)`` mean outer product of ``[row, 1]``, so that the last
            row holds the mean.
    """

    second: Tensor

    @property
    def size(self) -> int:
        """Features, the constant aside."""
        return self.second.shape[-1] - 1


def check_inputs(inputs: Any, shapes: Sequence[tuple[int, ...]] | None = None) -> None:
    """Refuse calibration inputs that cannot calibrate.

    Args:
        inputs: a batch.
        shapes: of one sample of each tensor, in order; ``None`` leaves them open.

    Raises:
        CalibrationError: empty, not finite, or of the wrong shape.
    """
    parts = tensors(inputs)
    if not parts or any(tensor.numel() == 0 for tensor in parts):
        raise CalibrationError(
            "Calibration needs at least one input, got none. Give the train "
            "split more samples or raise `settings.calibration_images`."
        )
    for number, tensor in enumerate(parts):
        shape = None if shapes is None else shapes[number]
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise CalibrationError(
                "Calibration inputs must be finite, found NaN or infinity. "
                "Check the data's preprocessing."
            )
        if shape is not None and tuple(tensor.shape[1:]) != tuple(shape):
            raise CalibrationError(
                f"Calibration inputs must have the shape {tuple(shape)} per "
                f"sample, got {tuple(tensor.shape[1:])}."
            )


def checked_portions(inputs: Any, size: int) -> Iterator[Any]:
    """Calibration inputs, so many at a time.

    Args:
        inputs: a batch, or a split that gives them.
        size: samples of one portion.

    Raises:
        CalibrationError: as in ``check_inputs``.
    """
    if counted(inputs) == 0:
        check_inputs(())
    for part in portions(inputs, size):
        check_inputs(part)
        yield part


@torch.no_grad()
def input_moments(
    model: nn.Module, layers: Iterable[str], inputs: Any, *, chunk: int = 64, seed: int = 0
) -> dict[str, Moments]:
    """Second moments of the inputs of several layers, in one pass.

    Args:
        model: in eval mode; not changed.
        layers: names of solvable layers.
        inputs: calibration inputs, batch first, or a split that gives them.
        chunk: samples per pass, which bounds the memory.
        seed: of the choice of positions in large feature maps.

    Returns:
        Layer name to moments, float32.
    """
    generator = torch.Generator().manual_seed(seed)
    count = counted(inputs)

    def drawn(found: Tensor, samples: int) -> Tensor:
        # enough rows for a good estimate; the rest of a large map is much the same
        wanted = math.ceil(max(_ROWS, 40 * found.shape[-1]) * samples / count)
        if found.shape[1] <= wanted:
            return found
        return found[:, torch.randint(found.shape[1], (wanted,), generator=generator)]

    return moments_of(moment_sums(model, layers, inputs, chunk=chunk, choose=drawn))


def moments_of(sums: Mapping[str, Tensor]) -> dict[str, Moments]:
    """The moments behind sums of outer products, in float32.

    Args:
        sums: as ``moment_sums`` gives them, or several of these added up; layers that met no row
            (an expert that no sample is sent to) have no moments.
    """
    met = {name: total for name, total in sums.items() if total[0, -1, -1] > 0}
    return {name: Moments((total / total[0, -1, -1]).float()) for name, total in met.items()}


@torch.no_grad()
def moment_sums(
    model: nn.Module,
    layers: Iterable[str],
    inputs: Any,
    *,
    chunk: int = 64,
    choose: Callable[[Tensor, int], Tensor] = lambda found, samples: found,
    kind: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Sums over all rows of the outer product of ``[row, 1]``, so that the last entry counts them.

    Those of several parts of the data add up to those of all.

    Args:
        model, layers, inputs, chunk: as in ``input_moments``.
        choose: from the rows of a layer ``(groups, M, features)`` and the samples that they are of
            to those that count; by default all.
        kind: of the sums.

    Returns:
        Layer name to ``(groups, d + 1, d + 1)``.
    """
    sums: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            found = choose(rows(module, args[0]), len(args[0]))
            found = torch.cat([found, found.new_ones(*found.shape[:2], 1)], -1)
            outer = (found.transpose(1, 2) @ found).to(kind)
            sums[name] = sums[name] + outer if name in sums else outer

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(note(n)) for n in layers]
    try:
        for part in checked_portions(inputs, chunk):
            call(model, part)
    finally:
        for handle in handles:
            handle.remove()
    return sums


def resolve(
    weight: Tensor, bias: Tensor | None, moments: Tensor, kept: Tensor, ridge: float
) -> tuple[Tensor, Tensor | None]:
    """Weights on some features that come nearest to the outputs of all features.

    Solves ``min_V E|W x - V x_S|^2 + r |V - W_S|^2``, r the ridge times the mean diagonal.

    Args:
        weight: ``(outputs, d)``.
        bias: ``(outputs,)`` or ``None``; with a bias the constant takes part unpenalized.
        moments: ``(d + 1, d + 1)`` of ``[x, 1]``.
        kept: indices of the features in S.
        ridge: fraction of the mean diagonal.

    Returns:
        ``(outputs, |S|)`` weights, and the bias or ``None``.

    References:
        He et al., Channel Pruning for Accelerating Very Deep Neural Networks, ICCV 2017, eq. 1.
    """
    size = weight.shape[1]
    kind = torch.float64 if len(kept) <= 1200 else torch.float32
    # squares of inputs that all but vanish are 0 in single precision, while their means are not
    damping = (ridge * moments.diagonal()[:size].to(kind).mean()).clamp(min=LEAST_DAMPING)
    chosen = kept
    target = weight.to(kind)
    if bias is not None:
        chosen = torch.cat([kept, torch.tensor([size])])
        target = torch.cat([target, bias.to(kind)[:, None]], 1)
    # rows first, precision after: converting the whole matrix takes longer than the solve
    cross = moments[chosen][:, : target.shape[1]].to(kind)
    gram = cross[:, chosen]
    right = cross @ target.T
    index = torch.arange(len(kept))
    gram[index, index] += damping
    right[: len(kept)] += damping * target[:, kept].T
    factor = torch.linalg.cholesky(gram)
    solved = torch.cholesky_solve(right, factor).T.to(weight.dtype)
    if bias is None:
        return solved, None
    return solved[:, :-1].contiguous(), solved[:, -1].contiguous()
