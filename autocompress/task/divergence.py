"""How far a compressed model's outputs are from the original's, in nats per sample.

A divergence compares outputs without asking which are right, so that policies are screened and
models are taught. Positions of one sample are averaged, its columns summed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from autocompress.errors import InputError
from autocompress.task.nested import batch_size, named_tensors
from autocompress.task.outputs import OutputKind, class_logits
from autocompress.task.pick import the_tensor


class Divergence:
    """Compares a compressed model's outputs with the original's; subclasses say how."""

    @property
    def name(self) -> str:
        """Tells kept divergences of one kind from those of another."""
        return "own"

    def fitted(self, original: Any) -> Divergence:
        """The same with scales that the original's outputs on many samples tell.

        Raises:
            InputError: outputs that do not vary have no scale.
        """
        return self

    def __call__(self, original: Any, compressed: Any, targets: Any = None) -> Tensor:
        """Nats of each sample, ``(N,)``, or of each position of it.

        Args:
            original, compressed: outputs for the same inputs.
            targets: of these inputs, where positions without a target are to be left out.
        """
        raise NotImplementedError

    def taught(
        self, outputs: Any, teacher: Any, temperature: float = 1.0, targets: Any = None
    ) -> Tensor:
        """The loss of a compressed model towards a teacher's outputs, a scalar.

        Args:
            outputs: the compressed model's.
            teacher: the teacher's for the same inputs.
            temperature: softens distributions; numbers have none.
            targets: as for calling it.
        """
        return self(teacher, outputs, targets).mean()


@dataclass(frozen=True)
class SoftmaxKL(Divergence):
    """KL(original || compressed) between the distributions over classes.

    Args:
        output: path of the logits in the outputs; see ``the_tensor``.
        axis: of the classes; 1 for segmentation ``(N, C, H, W)``.
        ignore: target of positions that are left out.
        shift: targets belong to the position before them (causal language models).
    """

    output: str | None = None
    axis: int = -1
    ignore: int | None = None
    shift: bool = False

    @property
    def name(self) -> str:
        parts = [f"{k}={v}" for k, v in vars(self).items() if v != type(self).__dict__[k]]
        return "classes" + "".join(f",{p}" for p in parts)

    def __call__(self, original: Any, compressed: Any, targets: Any = None) -> Tensor:
        return self._each(original, compressed, 1.0, targets)

    def taught(
        self, outputs: Any, teacher: Any, temperature: float = 1.0, targets: Any = None
    ) -> Tensor:
        # Hinton et al. 2015, section 2: tau squared keeps the gradient's size
        return temperature**2 * self._each(teacher, outputs, temperature, targets).mean()

    def _each(self, original: Any, compressed: Any, temperature: float, targets: Any) -> Tensor:
        log_p, log_q = (
            (class_logits(self._logits(both), "classes") / temperature).log_softmax(-1)
            for both in (original, compressed)
        )
        each = (log_p.exp() * (log_p - log_q)).sum(-1)
        if each.dim() == 1:
            return each
        kept = self._kept(each, targets)
        if kept is None:
            return each.flatten(1).mean(1)
        kept = kept.to(each.device)
        return (each * kept).flatten(1).sum(1) / kept.flatten(1).sum(1).clamp(min=1)

    def _logits(self, outputs: Any) -> Tensor:
        found = _bounded(the_tensor(outputs, self.output)).movedim(self.axis, -1)
        return found[:, :-1] if self.shift else found

    def _kept(self, each: Tensor, targets: Any) -> Tensor | None:
        if self.ignore is None or not isinstance(targets, Tensor):
            return None
        own = targets[:, 1:] if self.shift else targets
        return (own != self.ignore).reshape(each.shape) if own.numel() == each.numel() else None


@dataclass(frozen=True)
class SigmoidKL(Divergence):
    """KL between independent yes-or-no distributions, one per column, summed.

    Args:
        output: path of the logits in the outputs.
        positions: every number is a position with one logit (a mask of pixels), not a column.
    """

    output: str | None = None
    positions: bool = False

    @property
    def name(self) -> str:
        more = "" if self.output is None else f",output={self.output}"
        return f"binary{more}{',positions' if self.positions else ''}"

    def __call__(self, original: Any, compressed: Any, targets: Any = None) -> Tensor:
        each = self._columns(original, compressed, 1.0)
        if self.positions:
            return each.reshape(len(each), -1).mean(1)
        return each if each.dim() == 1 else each.sum(-1).reshape(len(each), -1).mean(1)

    def taught(
        self, outputs: Any, teacher: Any, temperature: float = 1.0, targets: Any = None
    ) -> Tensor:
        # averaged over columns, as the loss towards the labels is
        return temperature**2 * self._columns(teacher, outputs, temperature).mean()

    def _columns(self, original: Any, compressed: Any, temperature: float) -> Tensor:
        a, b = (
            _bounded(the_tensor(both, self.output)) / temperature for both in (original, compressed)
        )
        p = a.sigmoid()
        yes = F.logsigmoid(a) - F.logsigmoid(b)
        return p * yes + (1 - p) * (F.logsigmoid(-a) - F.logsigmoid(-b))


@dataclass(frozen=True)
class GaussianKL(Divergence):
    """KL between normal distributions of the same variance around both outputs.

    Each column has a variance of its own, that of the original's outputs over many samples.

    Args:
        output: path of the numbers; ``None`` takes every float tensor of the outputs.
        normalize: compare directions: rows are scaled to length 1 (embeddings).
        variance: per tensor, one number per column; ``fitted`` tells it.
    """

    output: str | None = None
    normalize: bool = False
    variance: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        more = "" if self.output is None else f",output={self.output}"
        return f"value{more}{',normalized' if self.normalize else ''}"

    def fitted(self, original: Any) -> Divergence:
        found = {}
        for name, numbers in self._numbers(original).items():
            columns = _columns_last(numbers).double()
            variance = _variance(columns.reshape(-1, columns.shape[-1]))
            if not bool((variance > 0).any()):
                raise InputError(
                    f"The uncompressed model gives {float(numbers.flatten()[0]):g} for all of "
                    f"{len(numbers)} inputs, so that no change of it can be judged. Train it, or "
                    "give other training inputs."
                )
            # a column that never varies is as uncertain as the others are
            typical = variance[variance > 0].mean()
            found[name] = torch.where(variance > 0, variance, typical)
        return replace(self, variance=found)

    def __call__(self, original: Any, compressed: Any, targets: Any = None) -> Tensor:
        if not self.variance:
            return self.fitted(original)(original, compressed, targets)
        theirs, ours = self._numbers(original), self._numbers(compressed)
        total: Tensor | None = None
        for name, variance in self.variance.items():
            gaps = _columns_last(_gaps(theirs[name], ours[name])).square()
            each = (gaps / (2 * variance.to(gaps.device, gaps.dtype))).sum(-1)
            mean = each.reshape(len(each), -1).mean(1)
            total = mean if total is None else total + mean
        assert total is not None
        return total

    def taught(
        self, outputs: Any, teacher: Any, temperature: float = 1.0, targets: Any = None
    ) -> Tensor:
        # the mean squared difference has the size of a loss towards the labels
        ours, theirs = self._numbers(outputs), self._numbers(teacher)
        losses = [_gaps(theirs[name], ours[name]).square().mean() for name in theirs]
        return torch.stack(losses).sum()

    def _numbers(self, outputs: Any) -> dict[str, Tensor]:
        found = (
            {n: t for n, t in named_tensors(outputs) if t.is_floating_point() and t.dim()}
            if self.output is None
            else {self.output: the_tensor(outputs, self.output)}
        )
        if not found:
            raise InputError("The outputs hold no numbers to compare.")
        return {n: F.normalize(t, dim=-1) if self.normalize else t for n, t in found.items()}


@dataclass(frozen=True)
class Heads(Divergence):
    """The weighted sum over several heads of a model.

    Args:
        parts: one divergence per head; each names its ``output``.
        weights: of the parts, 1 by default.
    """

    parts: tuple[Divergence, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts or (self.weights and len(self.weights) != len(self.parts)):
            raise InputError(
                f"Heads need at least one divergence and as many weights, got {len(self.parts)} "
                f"and {len(self.weights)}."
            )

    @property
    def name(self) -> str:
        pairs = zip(self.parts, self._weights, strict=True)
        return " + ".join(f"{weight:g} x ({part.name})" for part, weight in pairs)

    @property
    def _weights(self) -> tuple[float, ...]:
        return self.weights or (1.0,) * len(self.parts)

    def fitted(self, original: Any) -> Divergence:
        return replace(self, parts=tuple(part.fitted(original) for part in self.parts))

    def __call__(self, original: Any, compressed: Any, targets: Any = None) -> Tensor:
        pairs = zip(self._weights, self.parts, strict=True)
        each = [weight * part(original, compressed, targets) for weight, part in pairs]
        return torch.stack(each).sum(0)

    def taught(
        self, outputs: Any, teacher: Any, temperature: float = 1.0, targets: Any = None
    ) -> Tensor:
        pairs = zip(self._weights, self.parts, strict=True)
        each = [w * part.taught(outputs, teacher, temperature, targets) for w, part in pairs]
        return torch.stack(each).sum()


@dataclass(frozen=True)
class OwnDivergence(Divergence):
    """A function of the original's and the compressed model's outputs.

    Args:
        function: gives one number per sample, or one for the batch; takes the targets as a third
            argument where it asks for one.
    """

    function: Callable[..., Any]

    @property
    def name(self) -> str:
        return f"own,{getattr(self.function, '__name__', type(self.function).__name__)}"

    def __call__(self, original: Any, compressed: Any, targets: Any = None) -> Tensor:
        try:
            takes = len(inspect.signature(self.function).parameters)
        except (TypeError, ValueError):  # built in, without a signature
            takes = 2
        more = (targets,) if takes > 2 else ()
        found = torch.as_tensor(self.function(original, compressed, *more))
        return found.expand(batch_size(original)) if found.dim() == 0 else found


def as_divergence(given: Divergence | Callable[..., Any]) -> Divergence:
    """A divergence as it is, or a function as one.

    Raises:
        InputError: neither.
    """
    if isinstance(given, Divergence):
        return given
    if callable(given):
        return OwnDivergence(given)
    raise InputError(
        "A divergence is a function of the original's and the compressed model's outputs, got "
        f"{type(given).__name__}."
    )


_OF_KIND: dict[OutputKind, Divergence] = {
    "classes": SoftmaxKL(),
    "binary": SigmoidKL(),
    "value": GaussianKL(),
}


def divergence_of(kind: OutputKind) -> Divergence:
    """The divergence that fits a kind of outputs; see ``output_kind``."""
    return _OF_KIND[kind]


def _bounded(logits: Tensor) -> Tensor:
    """Logits without infinities, which mask what must not be chosen: their differences are none.

    What is masked keeps a probability of exactly 0, and gets no gradient.
    """
    most = torch.finfo(logits.dtype).max / 4 if logits.is_floating_point() else torch.inf
    return logits.clamp(-most, most)


def _gaps(theirs: Tensor, ours: Tensor) -> Tensor:
    """Differences; equal infinities differ by nothing."""
    return torch.where(theirs == ours, 0, theirs - ours)


def _variance(columns: Tensor) -> Tensor:
    """Of the finite numbers of each column; 0 where there are none."""
    finite = columns.isfinite()
    count = finite.sum(0).clamp(min=1)
    mean = columns.where(finite, 0).sum(0) / count
    return (columns - mean).where(finite, 0).square().sum(0) / count


def _columns_last(numbers: Tensor) -> Tensor:
    """Columns are the last axis; channels of images, the one column of ``(N,)``."""
    if numbers.dim() == 1:
        return numbers[:, None]
    return numbers.movedim(1, -1) if numbers.dim() >= 4 else numbers
