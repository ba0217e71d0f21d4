"""Low-rank layers: one layer becomes two or three thinner ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import PolicyError
from autocompress.model.splitting import keeper, plain_conv, split
from autocompress.model.usage import like
from autocompress.policy.inventory import RANK_STEPS, Inventory, LayerSpec
from autocompress.policy.policy import LayerPolicy
from autocompress.policy.values import Factorization
from autocompress.techniques.factors import factor_method, factor_ranks, has_methods
from autocompress.techniques.moments import Moments

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

METHODS: tuple[Factorization, ...] = ("svd", "spatial", "tucker2")


class Factors(nn.Sequential):
    """Small layers one after another in the place of a large one.

    Models that ask the large layer's weight for its type or device (as transformers' ViT does)
    are given the first small one's. What a layer takes beside its input goes to the first one.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Like the large layer's."""
        first, *others = self
        found = first(*args, **kwargs)
        for layer in others:
            found = layer(found)
        return found

    @property
    def weight(self) -> Tensor:
        """Of the first layer."""
        first = self[0]
        assert isinstance(first.weight, Tensor)
        return first.weight


def factorize(
    layer: nn.Module, spec: LayerSpec, policy: LayerPolicy, moments: Tensor | None = None
) -> Factors:
    """Factors of a layer at the rank that its policy gives.

    Args:
        layer: a linear layer or a convolution with one group; not changed.
        spec: of the layer in the uncompressed model.
        policy: ``rank_ratio`` and ``factorization``.
        moments: ``(d, d)`` second moments of the layer's inputs (rows as in ``moments.rows``),
            which weight the error by what the layer really sees; ``None`` weights all alike.

    Returns:
        Modules ``0``, ``1`` (and ``2``) that run one after another; the last holds the bias.

    Raises:
        PolicyError: the layer cannot be factorized.
    """
    if isinstance(layer, nn.Linear):
        inputs, outputs = layer.in_features, layer.out_features
    else:
        assert isinstance(layer, _CONVS), spec  # policies cannot name what is left alone
        inputs, outputs = layer.in_channels, layer.out_channels
    half = keeper(layer)
    if half is None:
        raise PolicyError(
            f"`rank_ratio` needs a layer that two can stand in for; what {type(layer).__name__} "
            f"does in {spec.name!r} cannot be divided. Leave it whole."
        )
    ranks = factor_ranks(spec, policy, inputs, outputs)
    method = factor_method(spec, policy)
    if method == "spatial":
        assert isinstance(layer, nn.Conv2d)
        return _spatial(layer, ranks[0], moments)
    if method == "tucker2":
        assert isinstance(layer, nn.Conv2d)
        return _tucker(layer, ranks)
    first, second = output_svd(layer.weight.flatten(1), ranks[0], moments)
    first = first.view(ranks[0], *layer.weight.shape[1:])
    return Factors(*split(layer, first, second, half)).train(layer.training)


def choose_factors(
    model: nn.Module, inventory: Inventory, moments: Mapping[str, Moments]
) -> dict[str, tuple[Factorization, ...]]:
    """What ``factorization: auto`` stands for in every layer where there is a choice.

    Args:
        model: uncompressed.
        inventory: of the model.
        moments: layer name to input moments; a layer without them is judged by its weights.

    Returns:
        Layer name to one method per rank ratio, as in ``LayerSpec.factors``.
    """
    chosen = {}
    for spec in inventory.layers:
        if has_methods(spec):
            layer, found = model.get_submodule(spec.name), moments.get(spec.name)
            assert isinstance(layer, nn.Conv2d)
            second = None if found is None else found.second[0, :-1, :-1]
            chosen[spec.name] = best_factors(layer, spec, second)
    return chosen


@torch.no_grad()
def best_factors(
    layer: nn.Conv2d, spec: LayerSpec, moments: Tensor | None
) -> tuple[Factorization, ...]:
    """The method with the least output error, at each of ``RANK_STEPS`` rank ratios up to 1.

    Args:
        layer: with a kernel larger than 1x1.
        spec: of the layer.
        moments: ``(d, d)`` of its inputs, or ``None``.
    """
    values, _ = _spectrum(layer.weight.flatten(1), moments)
    matrix, seen = _columns(layer, moments)
    _, vectors = _spectrum(matrix, seen)
    vectors = vectors.to(matrix.dtype)
    outputs, inputs, height, width = layer.weight.shape
    area = height * width
    chosen: list[Factorization] = []
    for step in range(1, RANK_STEPS + 1):
        ranks = {
            m: factor_ranks(
                spec,
                LayerPolicy(rank_ratio=step / RANK_STEPS, factorization=m),
                inputs,
                outputs,
            )
            for m in METHODS
        }
        basis = vectors[:, : ranks["spatial"][0]]
        rest = (matrix - basis @ (basis.T @ matrix)).view(outputs, width, inputs, height)
        errors: dict[Factorization, float] = {
            "svd": float(values[ranks["svd"][0] :].sum()),
            "spatial": output_error(rest.permute(0, 2, 3, 1), moments),
        }
        # Tucker-2 cannot beat the SVD of as high a rank, which is known
        before, after = ranks["tucker2"]
        if float(values[min(after, before * area) :].sum()) < min(errors.values()):
            inner, core, outer = (
                p.get_parameter("weight") for p in _tucker(layer, ranks["tucker2"])
            )
            made = torch.einsum("ou,uvhw,vi->oihw", outer[..., 0, 0], core, inner[..., 0, 0])
            errors["tucker2"] = output_error(layer.weight - made, moments)
        chosen.append(min(errors, key=errors.__getitem__))
    return tuple(chosen)


def output_error(difference: Tensor, moments: Tensor | None) -> float:
    """``E|D x|^2`` of a difference of weights: the squared error of a layer's outputs.

    Args:
        difference: ``(outputs, ...)``.
        moments: ``(d, d)`` of the inputs; ``None`` takes inputs of equal, unrelated features.
    """
    flat = difference.detach().flatten(1)
    return float((flat * (flat if moments is None else flat @ moments.to(flat.dtype))).sum())


def output_svd(weight: Tensor, rank: int, moments: Tensor | None) -> tuple[Tensor, Tensor]:
    """The best rank-r factors of a matrix, in the error of its outputs.

    ``argmin E|(W - B A) x|^2`` is ``A = U' W, B = U`` with U the leading eigenvectors of
    ``W E[x x'] W'``; without moments this is the truncated SVD.

    Args:
        weight: ``(outputs, d)``.
        rank: r.
        moments: ``(d, d)`` or ``None``.

    Returns:
        ``(r, d)`` and ``(outputs, r)``.

    References:
        Zhang et al., Accelerating Very Deep Convolutional Networks, TPAMI 2016, eq. 6.
    """
    _, vectors = _spectrum(weight, moments)
    basis = vectors[:, :rank]
    return (basis.T @ weight.detach().double()).to(weight.dtype), basis.to(weight.dtype)


def _spectrum(weight: Tensor, moments: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eigenvalues of ``W E[x x'] W'``, the largest first, and the vectors as columns.

    The sum of the values beyond the first r is the output error of the best factors of rank r.
    """
    matrix = weight.detach().double()
    spread = matrix @ (matrix if moments is None else matrix @ moments.double()).T
    values, vectors = torch.linalg.eigh((spread + spread.T) / 2)
    return values.flip(0), vectors.flip(1)


def _columns(layer: nn.Conv2d, moments: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The kernel as ``(outputs * width, inputs * height)``, and what its columns see.

    The moments are summed over the columns of the kernel, which leaves what the first filter sees.
    """
    outputs, inputs, height, width = layer.weight.shape
    matrix = layer.weight.detach().permute(0, 3, 1, 2).reshape(outputs * width, inputs * height)
    if moments is None:
        return matrix, None
    full = moments.view(inputs, height, width, inputs, height, width)
    seen = torch.einsum("ahwbiw->ahbi", full).reshape(inputs * height, -1) / width
    return matrix, seen


def _spatial(layer: nn.Conv2d, rank: int, moments: Tensor | None) -> Factors:
    """A column filter, then a row filter (Jaderberg et al., BMVC 2014, scheme 2)."""
    outputs, inputs, height, width = layer.weight.shape
    matrix, seen = _columns(layer, moments)
    first, second = output_svd(matrix, rank, seen)
    # "same" and "valid" mean along each axis what they mean along both
    down, across = (
        (layer.padding, layer.padding)
        if isinstance(layer.padding, str)
        else ((layer.padding[0], 0), (0, layer.padding[1]))
    )
    column = like(
        layer,
        first.view(rank, inputs, height, 1),
        None,
        out_channels=rank,
        kernel_size=(height, 1),
        stride=(layer.stride[0], 1),
        padding=down,
        dilation=(layer.dilation[0], 1),
    )
    row = like(
        layer,
        second.view(outputs, width, rank).permute(0, 2, 1).reshape(outputs, rank, 1, width),
        layer.bias,
        in_channels=rank,
        kernel_size=(1, width),
        stride=(1, layer.stride[1]),
        padding=across,
        dilation=(1, layer.dilation[1]),
    )
    return Factors(column, row).train(layer.training)


def _tucker(layer: nn.Conv2d, ranks: tuple[int, ...]) -> Factors:
    """Channel factors on both sides of a thin core (Kim et al., ICLR 2016)."""
    import tensorly as tl
    from tensorly.decomposition import partial_tucker

    with tl.backend_context("pytorch"):
        (core, factors), _ = partial_tucker(
            layer.weight.detach().double(), rank=[ranks[1], ranks[0]], modes=[0, 1], init="svd"
        )
    outer, inner = (f.to(layer.weight.dtype) for f in factors)
    middle = core.to(layer.weight.dtype)
    parts = [
        plain_conv(layer, inner.T[..., None, None], None),
        like(layer, middle, None, in_channels=ranks[0], out_channels=ranks[1]),
        plain_conv(layer, outer[..., None, None], layer.bias),
    ]
    return Factors(*parts).train(layer.training)
