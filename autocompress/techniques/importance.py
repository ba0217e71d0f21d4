"""Which channels go first: one order per group, so that the widths are nested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InputError, explained
from autocompress.model.usage import outputs_first
from autocompress.policy.hooks import load
from autocompress.policy.inventory import ChannelGroup
from autocompress.task.calling import call
from autocompress.task.data import Split
from autocompress.task.memory import Memory
from autocompress.task.nested import batch_size
from autocompress.task.outputs import label_loss, output_kind

_DOUBLE = 1300
"""Up to this many features the greedy removal runs in double precision."""
_CONSTANT = 2e-5
"""Share of its second moment that a constant seems to vary by, for sums in single precision."""


def l1_scores(model: nn.Module, producers: Sequence[str], channels: int) -> Tensor:
    """Sum of absolute weights per output channel, ``(channels,)`` (Li et al., ICLR 2017)."""
    total = torch.zeros(channels)
    for name in producers:
        for sizes in _rows(model.get_submodule(name), lambda weight: weight.detach().abs()):
            total += _per_channel(sizes, channels).sum(1)
    return total


def taylor_scores(
    model: nn.Module,
    producers: dict[str, Sequence[str]],
    channels: dict[str, int],
    sample: Split,
    loss: Any = None,
    memory: Memory | None = None,
) -> dict[str, Tensor]:
    """First-order estimate of the loss that a channel's removal costs.

    Gradients are summed over batches that fit into memory, each loss by its share of the samples.

    Args:
        model: in eval mode; gradients are cleared again.
        producers, channels: of each group.
        sample: inputs and targets.
        loss: from outputs and targets to a scalar; ``None`` is ``label_loss``.
        memory: for what a backward pass needs; by default as ``Memory.of`` says.

    Returns:
        Group name to ``(channels,)`` scores: ``(sum of gradient x weight)^2`` over each filter.

    References:
        Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, eq. 8.
    """
    needs = {p: p.requires_grad for p in model.parameters()}
    scores: dict[str, Tensor] = {}
    try:
        for parameter in needs:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            size = _samples_at_once(model, sample, memory or Memory.of())
            for inputs, targets in sample.batches(size):
                outputs = call(model, inputs)
                if loss is None:
                    kind = output_kind(outputs, sample.targets)
                    found = label_loss(outputs, targets, kind)
                else:
                    found = loss(outputs, targets)
                (found * (batch_size(targets) / len(sample))).backward()
        for group, names in producers.items():
            total = torch.zeros(channels[group])
            for name in names:
                for products in _rows(model.get_submodule(name), _gradient_products):
                    total += _per_channel(products, channels[group]).sum(1) ** 2
            scores[group] = total
    finally:
        for parameter, before in needs.items():
            parameter.requires_grad_(before)
            parameter.grad = None
    return scores


def _samples_at_once(model: nn.Module, sample: Split, memory: Memory) -> int:
    """Samples whose backward pass fits into half of the memory: gradients take as much again."""
    held: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    few = min(2, len(sample))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = call(model, sample.inputs(few))  # kept, and with them all that they hold
    size = int(memory.limit / 2 * few / max(1, sum(held.values())))
    del outputs
    return min(len(sample), max(1, size))


def own_scores(name: str, model: nn.Module, group: ChannelGroup, sample: Split) -> Tensor:
    """One score per channel by a function of the user; the lowest go first.

    Args:
        name: ``package.module:function``; it takes the model, the names of the group's producers,
            how many channels there are, and the sample.
        model: in eval mode.
        group: of channels.
        sample: inputs and targets of the training data.

    Raises:
        InputError: no such function, one that fails, or something other than one finite number per
            channel.
    """
    function = load(name)
    try:
        found = function(model, group.producers, group.channels, sample)
        scores = torch.as_tensor(found).detach()
    except Exception as error:
        raise InputError(
            f"The importance {name!r} fails for {group.name!r}: {explained(error)}"
        ) from error
    if scores.shape != (group.channels,) or not bool(torch.isfinite(scores.float()).all()):
        raise InputError(
            f"The importance {name!r} must give {group.channels} finite numbers for the channels "
            f"of {group.name!r}, got shape {tuple(scores.shape)}."
        )
    return scores.float()


def _gradient_products(weight: nn.Parameter) -> Tensor:
    gradient = weight.grad if weight.grad is not None else torch.zeros_like(weight)
    return weight.detach() * gradient


def _rows(module: nn.Module, values: Callable[[nn.Parameter], Tensor]) -> list[Tensor]:
    """Values of the tensors whose first dimension is the group's channels, or one row per gate.

    Of an attention: query, key and value, one after another. Of both directions of a recurrent
    layer, gate by gate: the first direction's units, then the second's, as in the outputs.
    """
    if isinstance(module, nn.RNNBase):
        named = dict(module.named_parameters())
        forward = [n for n in named if n.startswith("weight") and not n.endswith("_reverse")]
        found = []
        for name in forward:
            both = [n for n in (name, f"{name}_reverse") if n in named]
            parts = [values(named[n]).view(-1, module.hidden_size, named[n].shape[1]) for n in both]
            found.append(torch.cat(parts, 1).flatten(0, 1))
        return found
    if isinstance(module, nn.MultiheadAttention):
        return [values(module.in_proj_weight)]
    if hasattr(module, "qkv"):
        return [values(module.get_parameter("qkv.weight"))]
    return [outputs_first(module, values(module.get_parameter("weight")))]


def _per_channel(values: Tensor, channels: int) -> Tensor:
    """All values that belong to each channel, ``(channels, ...)``; gates come one after another."""
    return values.reshape(-1, channels, values[0].numel()).transpose(0, 1).flatten(1)


class Consumer:
    """One consumer's least-squares state while channels of a group are removed.

    Args:
        weight: ``(outputs, d)`` of one conv group.
        moments: ``(d, d)``, without the constant.
        blocks: per channel of the group, the features that go with it.
        ridge: fraction of the mean diagonal.
        row_weight: ``(outputs,)`` importance of each output, or ``None`` for equal ones.
        mean: ``(d,)`` of the features where a bias can make up for it, else ``None``.
    """

    def __init__(
        self,
        weight: Tensor,
        moments: Tensor,
        blocks: Tensor,
        ridge: float,
        row_weight: Tensor | None = None,
        mean: Tensor | None = None,
    ) -> None:
        kind = torch.float64 if weight.shape[1] <= _DOUBLE else torch.float32
        damped = moments.to(kind)
        damping = ridge * damped.diagonal().mean() + 1e-12
        damped = damped + damping * torch.eye(len(damped), dtype=kind)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        self.weight = weight.detach().to(kind).clone()
        self.row_weight = None if row_weight is None else row_weight.to(kind)
        self.blocks = blocks
        power = moments.diagonal()
        varies = power if mean is None else power - mean**2
        # the ridge would give features of which nothing is read a weight to make up for
        self.weight[:, varies <= _CONSTANT * power] = 0

    def unread(self, channels: Tensor) -> Tensor:
        """Whether nothing of each channel reaches the outputs, ``(len(channels),)``."""
        weights = self.weight[:, self.blocks[channels]]
        return (weights == 0).all(2).all(0)

    def growth(self, channels: Tensor) -> Tensor:
        """Growth of the output error if each channel went alone, ``(len(channels),)``."""
        index = self.blocks[channels]
        inner = self.inverse[index[:, :, None], index[:, None, :]]
        weights = self.weight[:, index].permute(1, 2, 0)
        solved = torch.linalg.solve(inner, weights)
        each = (weights * solved).sum(1)
        return (each * self.row_weight).sum(1) if self.row_weight is not None else each.sum(1)

    def remove(self, channels: Tensor) -> None:
        """Take channels out and let the rest make up for them."""
        index = self.blocks[channels].flatten()
        inner = self.inverse[index][:, index]
        update = torch.linalg.solve(inner, self.inverse[index])
        self.weight -= self.weight[:, index] @ update
        self.inverse -= self.inverse[:, index] @ update
        # what is gone stays gone: a unit block keeps later solves regular
        self.inverse[index] = 0
        self.inverse[:, index] = 0
        self.inverse[index, index] = 1
        self.weight[:, index] = 0


def obs_order(consumers: Sequence[Consumer], units: Sequence[Sequence[int]]) -> list[int]:
    """Order in which units go: each time the one that raises the consumers' error least.

    First go those of which no consumer reads anything, all of them: by the greedy rule a unit that
    others make up for almost wholly could go before them, for its error is a rounding error, too.

    Args:
        consumers: their states; used up.
        units: sets of channels that go together.

    Returns:
        Unit numbers, the first to go first.

    References:
        Hassibi and Stork, Optimal Brain Surgeon, NeurIPS 1992, eq. 5, for blocks of weights.
    """
    members = torch.tensor([list(u) for u in units])
    unread = torch.stack(
        [c.unread(members.flatten()).view(len(members), -1).all(1) for c in consumers]
    ).all(0)
    gone: list[int] = unread.nonzero().flatten().tolist()
    left: list[int] = (~unread).nonzero().flatten().tolist()
    if gone:
        for consumer in consumers:
            consumer.remove(members[gone].flatten())
    # wide groups lose a few at a time: the errors hardly change from one to the next
    step = max(1, len(units) // 128)
    while left:
        flat = members[left].flatten()
        error = torch.zeros(len(left), dtype=torch.float64)
        for consumer in consumers:
            error += consumer.growth(flat).double().view(len(left), -1).sum(1)
        worst = torch.argsort(error)[: min(step, len(left))].tolist()
        chosen = [left[i] for i in worst]
        for consumer in consumers:
            consumer.remove(members[chosen].flatten())
        gone += chosen
        taken = set(chosen)
        left = [u for u in left if u not in taken]
    return gone
