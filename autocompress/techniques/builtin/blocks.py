"""Whole blocks: a residual branch is left out, and the stream goes on as it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from autocompress.errors import PolicyError
from autocompress.policy.field import Field
from autocompress.policy.technique import Technique, percent, some
from autocompress.policy.values import Presence

if TYPE_CHECKING:
    from autocompress.measure.gate import Shown
    from autocompress.model.part import Part
    from autocompress.policy.inventory import Block, Inventory, LayerSpec
    from autocompress.policy.policy import LayerPolicy, Policy
    from autocompress.techniques.stitching import Stitching


class Blocks(Technique):
    """Branches of residual networks go, with all of their kernels.

    References:
        Veit et al., Residual Networks Behave Like Ensembles of Relatively Shallow Networks, NeurIPS
        2016; Men et al., ShortGPT, 2024 (whole layers of transformers).
    """

    name = "blocks"
    fields = (
        Field(
            "block",
            "keep",
            "`gone` leaves out the residual block that the layer lies in; all of its layers say so",
            values=get_args(Presence),
        ),
    )
    knob = "block"
    stage = "blocks"
    whole_blocks = True
    interacts = True
    removes = True

    def absent(self, policy: LayerPolicy) -> bool:
        """A layer goes with its block."""
        return policy.block == "gone"

    def ladder(self, levels: Sequence[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        """None: without any block hardly a network does anything."""
        return ()

    def told(self, summary: Mapping[str, float | str]) -> list[str]:
        """The share of the layers that are gone."""
        share = float(summary["blocks_share"])
        return [f"{percent(share)} of the layers gone"] if share else []

    def cell(self, policy: LayerPolicy) -> str:
        """That the layer is not there."""
        return "gone" if self.active(policy) else ""

    def bar(self, policy: LayerPolicy) -> float | None:
        """All or nothing."""
        return 0.0 if self.active(policy) else 1.0

    def timed_levels(self, count: int) -> Sequence[int]:
        """Both ends."""
        return sorted({0, count - 1})

    def parts(
        self, layer: LayerSpec, policy: LayerPolicy, inputs: int, outputs: int
    ) -> tuple[Part, ...] | None:
        """Nothing runs in the layer's place."""
        return ()

    def apply(self, work: Stitching) -> None:
        """Let what gives nothing stand in the place of every module of the blocks."""
        from autocompress.model.absent import leave_out

        for block in gone_blocks(work.inventory, work.policy):
            leave_out(work.module, block.modules, passes=block.passes)
            work.parts.update(dict.fromkeys((*block.layers, *block.modules), ()))

    def problems(self, shown: Shown) -> list[str]:
        """Operators of layers that should not be there."""
        gone = [name for name, parts in shown.compressed.parts.items() if not parts]
        found = [name for name in gone if name in shown.nodes]
        if not found:
            return []
        return [
            f"The policy leaves out {some(found)}, but the runtime's profile still shows operators "
            "of it."
        ]


def gone_blocks(inventory: Inventory, policy: Policy) -> list[Block]:
    """The blocks that a policy leaves out.

    Raises:
        PolicyError: a layer is to go that lies in no block, or without the rest of its block.
    """
    gone = {name for name, own in policy.layers.items() if own.absent}
    for name in sorted(gone):
        block = inventory.block_of.get(name)
        if block is None:
            reason = dict(inventory.blocks_left_alone).get(name)
            reason = reason or "it lies in no branch that is added to the stream that it reads"
            raise PolicyError(
                f"`block` cannot be 'gone' on {name!r}: {reason}. Use `block: keep` there."
            )
        missing = [other for other in block.layers if other not in gone]
        if missing:
            raise PolicyError(
                f"The layers of a block go together; {name!r} is gone and {missing[0]!r} is not. "
                f"Set `block: gone` on {', '.join(block.layers)}."
            )
    return [block for block in inventory.blocks if block.name in gone]
