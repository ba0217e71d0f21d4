"""The gate: before a speed-up is believed, the runtime must show what the policy promised."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.measure.conversions import Conversions, conversion_notes, conversions, listed
from autocompress.policy.policy import LayerPolicy
from autocompress.policy.registry import techniques
from autocompress.targets.base import NodeTime, Profile, Target
from autocompress.targets.lengths import drawn_inputs
from autocompress.targets.profile import KernelClass

if TYPE_CHECKING:
    from autocompress.measure.latency import Timing
    from autocompress.techniques.compressed import Compressed

#: what quantization brings along and nobody asked for
_SUSPECT = (KernelClass.FLOAT, KernelClass.QUANTIZE, KernelClass.LAYOUT)


@dataclass(frozen=True)
class Shown:
    """A compressed model as a runtime's profile shows it, for techniques to look through.

    Args:
        target: tells what its kernels do.
        profile: of the exported file.
        compressed: the model that the file was made from.
    """

    target: Target
    profile: Profile
    compressed: Compressed

    @cached_property
    def nodes(self) -> dict[str, list[NodeTime]]:
        """Module name to its operators, in the order in which they run."""
        names = (name for name, _ in self.compressed.module.named_modules() if name)
        return layer_profile(self.profile, names)

    @cached_property
    def policies(self) -> dict[str, LayerPolicy]:
        """Module name to the policy of the layer in whose place it stands."""
        policy = self.compressed.policy
        return {n: policy[of] for of, parts in self.compressed.parts.items() for n in parts}

    def integer(self, node: NodeTime) -> bool:
        """Whether an operator multiplies integers."""
        return self.target.classify(node) is KernelClass.INTEGER

    def multiplies(self, node: NodeTime) -> bool:
        """Whether a layer's weights are at work in an operator."""
        return self.target.classify(node).multiplies


@dataclass(frozen=True)
class Judgement:
    """What the gate says of a file.

    Args:
        problems: promises that the profile does not show, one sentence each.
        notes: what integer layers cost beside their arithmetic.
        conversions: the same as figures.
    """

    problems: list[str]
    notes: list[str]
    conversions: Conversions


@dataclass(frozen=True)
class Inspection:
    """What a file's profile shows, before its time is known; picklable.

    Args:
        problems: promises that the operators break.
        profile: of the file.
        conversions: in the profile.
        rounded: whether it was to compute on integers.
        suspects: operators that are to blame where such a file is slow, with number and ms.
        reduced: the processor has no 8-bit dot products.
    """

    problems: tuple[str, ...]
    profile: Profile
    conversions: Conversions
    rounded: bool
    suspects: dict[str, tuple[int, float]]
    reduced: bool = False

    def judged(self, timing: Timing | None = None) -> Judgement:
        """Together with the file's time beside the uncompressed one, where that is known."""
        problems = list(self.problems)
        if timing is not None and timing.slower and self.rounded:
            problems.append(self._blame(timing))
        ratio = None if timing is None else timing.ratio
        notes = conversion_notes(self.conversions, self.profile, ratio, reduced=self.reduced)
        return Judgement(problems, notes, self.conversions)

    def _blame(self, timing: Timing) -> str:
        """The sentence on a quantized file that is slower than the float one."""
        return (
            f"The quantized file is slower than the uncompressed one in the same runtime: it takes "
            f"{timing.ratio:.2f} times as long (at least {timing.ratio_low:.2f}). Operators to "
            f"blame: {listed(self.suspects, 3)}."
        )


def inspect_file(
    target: Target, path: str | Path, compressed: Compressed | None = None
) -> Inspection:
    """Profile a file in its runtime and compare with what was promised; see ``inspect``."""
    with closing(target.open(path)) as session:
        profile = session.profile(drawn_inputs(session, target.config)[0], runs=2)
    return inspect(target, profile, compressed)


def inspect(target: Target, profile: Profile, compressed: Compressed | None = None) -> Inspection:
    """What a runtime's profile does not show although a technique of the policy promised it.

    Args:
        target: tells what its kernels do.
        profile: of the exported file.
        compressed: the model that the file was made from; ``None`` where only its speed is judged.
    """
    problems: tuple[str, ...] = ()
    if compressed is not None:
        shown = Shown(target, profile, compressed)
        problems = tuple(found for technique in techniques() for found in technique.problems(shown))
    return Inspection(
        problems,
        profile,
        conversions(target, profile),
        compressed.quantized if compressed is not None else _rounds(target, profile),
        _suspects(target, profile),
        compressed is not None and any(p.reduced for p in compressed.precisions.values()),
    )


def layer_profile(profile: Profile, layers: Iterable[str]) -> dict[str, list[NodeTime]]:
    """Layer name to its operators of a profile, in the order in which they run.

    Args:
        profile: with nodes that have canonical names.
        layers: dotted module names.
    """
    from autocompress.exporters.names import layer_of

    known = set(layers)
    found: dict[str, list[NodeTime]] = {}
    for node in profile.nodes:
        layer = layer_of(node.name)
        if layer is not None and layer[0] in known:
            found.setdefault(layer[0], []).append(node)
    return found


def _rounds(target: Target, profile: Profile) -> bool:
    quantized = (KernelClass.INTEGER, KernelClass.QUANTIZE)
    return any(target.classify(node) in quantized for node in profile.nodes)


def _suspects(target: Target, profile: Profile) -> dict[str, tuple[int, float]]:
    """Operators that quantization brings along and that do not multiply integers, or all."""
    found = {}
    for op, spent in profile.by_op().items():
        nodes = [n for n in profile.nodes if n.op == op]
        wide = any(n.outputs and n.outputs[0][0] == "int32" for n in nodes)
        if wide or any(target.classify(n) in _SUSPECT for n in nodes):
            found[op] = spent
    return found or profile.by_op()
