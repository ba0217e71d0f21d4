"""What a technique is: the one description that every room reads.

The description loads no torch. What needs it (``apply``, ``parts``) imports it late.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from autocompress.policy.field import Field

if TYPE_CHECKING:
    from autocompress.measure.gate import Shown
    from autocompress.model.kernels import KernelPrecision
    from autocompress.model.part import Part
    from autocompress.policy.inventory import ChannelGroup, Inventory, LayerSpec, LayerTraits
    from autocompress.policy.policy import LayerPolicy
    from autocompress.policy.settings import CompressionSettings
    from autocompress.policy.space_config import Rule
    from autocompress.policy.values import Factorization
    from autocompress.targets.base import Target
    from autocompress.techniques.stitching import Stitching

__all__ = ["STAGES", "Field", "Stage", "Technique", "some"]

_LISTED = 6

Stage = Literal["channels", "blocks", "factors", "weights", "precision"]
STAGES: tuple[Stage, ...] = ("channels", "blocks", "factors", "weights", "precision")
"""The order in which techniques are applied: each sees what the stages before it left. Channels go
first, so that what stands in a removed layer's place is as wide as its neighbours."""


class Technique:
    """One way to compress a layer. A plug-in offers a subclass through an entry point of the group
    ``autocompress.techniques``; one object of it serves for the whole process.

    Attributes:
        name: of the technique.
        fields: of a layer policy; the first one says how hard.
        knob: kind of its choices: a space's choice is called ``LAYER/knob``.
        stage: when it is applied.
        coupled: whether the layers of a channel group share one value.
        whole_blocks: whether the layers of a residual block share one value, and no others have it.
        interacts: whether its choices harm more together than the sum of each alone: a search then
            probes them in a greedy order.
        removes: whether weights are lost, which reconstruction can make up for.
        settled_by_bank: whether the layer bank chooses what its levels stand for.
        of_first: whether several layers that hold one weight have the value of the first of them.
        projects: whether it restricts weights to some set (a grid, a pattern): it is applied once
            more, with ``project``, after reconstruction or training changed them.
    """

    name: ClassVar[str]
    fields: ClassVar[tuple[Field, ...]]
    knob: ClassVar[str]
    stage: ClassVar[Stage] = "weights"
    coupled: ClassVar[bool] = False
    whole_blocks: ClassVar[bool] = False
    interacts: ClassVar[bool] = False
    removes: ClassVar[bool] = False
    settled_by_bank: ClassVar[bool] = False
    of_first: ClassVar[bool] = False
    projects: ClassVar[bool] = False

    # ---- one layer's policy

    def active(self, policy: LayerPolicy) -> bool:
        """Whether a policy changes its layer by this technique."""
        first = self.fields[0]
        return bool(policy.value(first.name) != first.default)

    def absent(self, policy: LayerPolicy) -> bool:
        """Whether a layer is not there any more; what else its policy says then means nothing."""
        return False

    def implied(self, policy: LayerPolicy) -> Mapping[str, Any]:
        """Fields that follow from others where they were left at their default."""
        return {}

    def validate(self, policy: LayerPolicy) -> None:
        """Refuse values, and values that contradict each other.

        Raises:
            PolicyError: the message names the field, what it must be and what it is.
        """
        for field in self.fields:
            field.check(policy.value(field.name))

    # ---- which layers it can change

    def left_alone(self, layer: LayerSpec, traits: LayerTraits) -> str:
        """Why it can do nothing with a layer, whatever a policy says; empty where it can.

        The inventory notes what each technique says, for ``LayerSpec.why_not``.

        Args:
            layer: of the uncompressed model.
            traits: what else is known of its module.
        """
        return "" if self.coupled or self.whole_blocks else traits.fixed

    def left_alone_together(self, layers: Sequence[LayerSpec]) -> str:
        """Why it can do nothing with the first of several layers that hold one weight, which would
        be done to all of them; empty where it can. Asked of a technique that is ``of_first``.

        Args:
            layers: two at least, each with what ``left_alone`` said of it.
        """
        return ""

    # ---- a search space

    def usable(self, layer: LayerSpec) -> bool:
        """Whether this technique can do anything with a layer."""
        return not layer.why_not(self.name)

    def worthwhile(self, layer: LayerSpec, inventory: Inventory) -> bool:
        """Whether a space offers it on a layer that no rule speaks of in particular."""
        return True

    def why_not(self, layer: LayerSpec, policy: LayerPolicy, inventory: Inventory) -> str:
        """Why a layer cannot be what a policy asks of this technique; empty where it can."""
        uncut = inventory.why_whole(layer.name) if self.stage == "channels" else ""
        return layer.why_not(self.name) or uncut

    def levels(self, rule: Rule, layer: LayerSpec) -> list[dict[str, Any]]:
        """What a rule lets a layer be, mildest first; every level sets the same fields.

        Args:
            rule: ``rule.listed(name)`` gives the values of a field.
            layer: one that this technique can be used on.
        """
        (field,) = self.fields
        found = set(rule.listed(field.name))
        order = field.values or sorted(found)
        return [{field.name: value} for value in order if value in found]

    def group_levels(
        self, rules: Sequence[Rule], group: ChannelGroup, layers: Sequence[LayerSpec], multiple: int
    ) -> list[dict[str, Any]]:
        """What the rules let a channel group be, where its layers share one value.

        Args:
            rules: of the group's layers, in their order.
            group: whose layers these are.
            layers: of the group.
            multiple: kept channels are rounded to a multiple of this.
        """
        each = [self.levels(rule, layer) for rule, layer in zip(rules, layers, strict=True)]
        return [level for level in each[0] if all(level in other for other in each[1:])]

    def followed(self, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """What else ``--uniform`` sets where these values are asked for."""
        return {}

    # ---- where a search begins

    def ladder(self, levels: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """Values that a search first tries on all layers alike, the most useful one first.

        Args:
            levels: all that the space offers of this technique.
        """
        return levels[1:4]

    def named_starts(self, levels: Sequence[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        """Policies under a name of their own: every search begins with them, alone and together
        with coupled techniques, and they are among the reference policies.

        Args:
            levels: all that the space offers of this technique, at least one.
        """
        return {}

    def probes(self) -> Mapping[str, Mapping[str, Any]]:
        """Changes to one layer, or to its group, whose harm ``autocompress profile`` tells.

        Returns:
            Values of fields by a short name.
        """
        first = self.fields[0]
        return {f"{first.name}={v}": {first.name: v} for v in first.values[-1:]}

    # ---- how it is told

    def words(self, policies: Sequence[LayerPolicy]) -> list[str]:
        """Short names of what is done, where anything is."""
        return [self.name] if any(map(self.active, policies)) else []

    def summary(self, policies: Sequence[LayerPolicy]) -> dict[str, float]:
        """Numbers on what is done to the layers of a model, at least one."""
        return {f"{self.name}_share": sum(map(self.active, policies)) / len(policies)}

    def told(self, summary: Mapping[str, float | str]) -> list[str]:
        """What is done, in a few words, from ``summary``."""
        share = float(summary[f"{self.name}_share"])
        return [f"{self.name} in {percent(share)}"] if share else []

    def cell(self, policy: LayerPolicy) -> str:
        """What is done to one layer, for this technique's column of a table; empty for nothing."""
        found = [(field, policy.value(field.name)) for field in self.fields]
        return ", ".join(f"{f.name} {value}" for f, value in found if value != f.default)

    def bar(self, policy: LayerPolicy) -> float | None:
        """Share of a layer that is left, to be drawn in that column; ``None`` draws nothing."""
        return None

    # ---- where it is of use

    def unfit(self, target: type[Target], settings: CompressionSettings) -> str:
        """Why the files of a target cannot hold what this technique makes; empty where they can.

        A study is refused with it, and with the runtimes of which it is not so.
        """
        return ""

    def unsupported(self, target: type[Target], policy: LayerPolicy) -> str:
        """Why the files of a target cannot hold what a policy asks for; empty where they can.

        Args:
            target: that the files are for.
            policy: in which this technique is active.
        """
        return ""

    def no_gain(self, target: type[Target]) -> str:
        """Why a target gains nothing by this technique; empty where it gains."""
        return ""

    def timed_levels(self, count: int) -> Sequence[int]:
        """Levels, out of so many, at which whole models are timed with all layers alike.

        None where no runtime is faster by it: a latency model then leaves its choices alone.
        """
        return ()

    def arithmetic(self, policy: LayerPolicy) -> KernelPrecision | None:
        """What a layer is computed in; ``None`` where this technique does not say.

        Args:
            policy: in which this technique is active.
        """
        return None

    def unpacks(self, policy: LayerPolicy) -> bool:
        """Whether stored weights are turned into floats at every inference.

        Args:
            policy: in which this technique is active.
        """
        return False

    # ---- shapes, cost, and the model itself

    def kept(self, group: ChannelGroup, policy: LayerPolicy, multiple: int) -> int:
        """Channels of a group that stay: a multiple of its ``unit``, and at least one.

        Where several techniques leave channels out, the one that keeps the fewest decides. Which
        ones go is the layer bank's to choose (``settings.importance``).

        Args:
            group: of the uncompressed model.
            policy: that its layers share.
            multiple: kept channels are rounded to a multiple of this.
        """
        return group.channels

    def narrows(self, group: ChannelGroup, policy: LayerPolicy) -> bool:
        """Whether all heads of a group get narrower, where others lose some of them.

        What ``kept`` gives is then a multiple of ``group.narrower`` instead.

        Args:
            group: of the uncompressed model.
            policy: that its layers share.
        """
        return False

    def settle(
        self, model: Any, inventory: Inventory, moments: Mapping[str, Any]
    ) -> Mapping[str, tuple[Factorization, ...]]:
        """What its levels stand for, for the layer bank to keep; where it is ``settled_by_bank``.

        Args:
            model: uncompressed.
            inventory: of the model.
            moments: layer name to moments of its inputs.

        Returns:
            Layer name to ``LayerSpec.factors``.
        """
        return {}

    def parts(
        self, layer: LayerSpec, policy: LayerPolicy, inputs: int, outputs: int
    ) -> tuple[Part, ...] | None:
        """The modules that run in a layer's place; ``None`` where the layer stays in one piece.

        Args:
            layer: of the uncompressed model.
            policy: in which this technique is active.
            inputs, outputs: channels that are left.
        """
        return None

    def stored_bytes(self, before: int, weights: int, channels: int, policy: LayerPolicy) -> int:
        """Bytes of a layer's weights on disk.

        Args:
            before: what they take without this technique.
            weights: how many there are.
            channels: outputs of the layer.
            policy: in which this technique is active.
        """
        return before

    def apply(self, work: Stitching) -> None:
        """Change the module of ``work``, in every layer whose policy asks for it.

        Called where any does. Channels that go are cut before, by what ``kept`` says, so that a
        technique of the stage ``channels`` need not have it.

        Raises:
            PolicyError: a layer cannot do what is asked.
        """
        if self.stage != "channels":
            raise NotImplementedError(f"{type(self).__name__} has no `apply`")

    def project(self, work: Stitching) -> None:
        """Bring changed weights back to what this technique allows; only where it ``projects``."""
        self.apply(work)

    def problems(self, shown: Shown) -> list[str]:
        """What the runtime's profile does not show although this technique promised it.

        Args:
            shown: the exported file's operators beside the model that it was made from.

        Returns:
            One sentence per problem.
        """
        return []


def percent(share: float) -> str:
    """A share in words: what is there does not read as nothing."""
    return "under 1%" if 0 < share <= 0.005 else f"{share:.0%}"


def some(names: Sequence[str]) -> str:
    """The first of several names, and how many more there are, for a sentence in ``problems``."""
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
