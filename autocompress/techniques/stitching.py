"""A model on its way through the techniques: what each of them reads and changes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from autocompress.model.sides import ModuleSide
from autocompress.model.tied import exchange
from autocompress.policy.inventory import Inventory, LayerSpec
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.registry import in_order
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.technique import Technique
from autocompress.techniques.compressed import Precision


@dataclass
class Stitching:
    """One policy at work on one module.

    Args:
        module: a copy of the model, without the channels that go; techniques change it in place.
        policy: what is done.
        settings: how compression is carried out.
        inventory: of the uncompressed model.
        removals: module name and side to the channels that went, as ``SlicingPlan.removals`` gives
            them.
        moments: from a layer's name to the second moments of the inputs that are left to it, or
            ``None`` where they were not taken.
        shares: from a table's name to the share of each of its rows in what is read, or ``None``
            where nobody counted.
        memo: what was made for a key before, or makes it.
        parts: layer name to the names of the modules that stand in its place.
        precisions: name of such a module to its bits.
    """

    module: nn.Module
    policy: Policy
    settings: CompressionSettings
    inventory: Inventory
    removals: Mapping[ModuleSide, list[int]] = field(default_factory=dict)
    moments: Callable[[str], Tensor | None] = lambda name: None
    shares: Callable[[str], Tensor | None] = lambda name: None
    memo: Callable[[tuple[Hashable, ...], Callable[[], nn.Sequential]], nn.Sequential] = (
        lambda key, make: make()
    )
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    precisions: dict[str, Precision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = {
            **{layer.name: (layer.name,) for layer in self.inventory.layers},
            **self.parts,
        }

    def layers(self, technique: Technique) -> Iterator[tuple[LayerSpec, LayerPolicy]]:
        """The layers whose policy asks for a technique, in the order in which they run."""
        for spec in self.inventory.layers:
            policy = self.policy[spec.name]
            if technique.active(policy):
                yield spec, policy

    def asks(self, technique: Technique) -> bool:
        """Whether the policy of any layer asks for a technique."""
        return next(self.layers(technique), None) is not None

    def weighted(self, technique: Technique) -> Iterator[tuple[str, tuple[nn.Module, LayerPolicy]]]:
        """The modules with a ``weight`` in these layers' places: name, module, policy."""
        for spec, policy in self.layers(technique):
            for part in self.parts[spec.name]:
                module = self.module.get_submodule(part)
                if hasattr(module, "weight"):
                    yield part, (module, policy)

    def remembered(
        self, technique: Technique, layer: str, make: Callable[[], nn.Sequential]
    ) -> nn.Sequential:
        """What a technique makes of a layer: a copy of what it made of the same weights before.

        Args:
            technique: at work.
            layer: its name.
            make: from the layer as it is now.
        """
        steps = in_order()
        names = [f.name for t in steps[: steps.index(technique) + 1] for f in t.fields]
        key: list[Hashable] = [layer, *(self.policy[layer].value(name) for name in names)]
        key += [
            (side, tuple(gone)) for (name, side), gone in self.removals.items() if name == layer
        ]
        return copy.deepcopy(self.memo(tuple(key), make))

    def replace(self, factors: Mapping[str, nn.Sequential]) -> None:
        """Let modules that run one after another stand in the places of layers, by their names."""
        exchange(self.module, factors)
        for name, modules in factors.items():
            self.parts[name] = tuple(f"{name}.{i}" for i in range(len(modules)))
