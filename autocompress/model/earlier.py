"""The model as earlier versions saw it, ours and PyTorch's.

Recipes and runs name the model that they were made on by its fingerprint. Before 0.2 that was of
the model as given, not of the prepared copy, in which wrappers are taken off and weights folded;
and PyTorch before 2.14 told less of its norms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from autocompress.model.fingerprint import fingerprint, untold_architecture
from autocompress.model.prepare import Prepared, inside


@dataclass(frozen=True)
class Earlier:
    """What earlier versions called a model and its parts.

    Args:
        architectures: digests that the model as it was given may have had.
        weights: digest of its weights.
        names: module to its name in the prepared copy, where that is another.
        tensors: whether the copy holds the same tensors, by whatever names.
    """

    architectures: frozenset[str]
    weights: str
    names: Mapping[str, str]
    tensors: bool

    @classmethod
    def of(cls, given: nn.Module, prepared: Prepared) -> Earlier | None:
        """Look at a model before and after it was prepared; ``None`` where it is as it was."""
        known = {untold_architecture(given)}
        if prepared.notes:
            architecture, weights = fingerprint(given)
            known.add(architecture)
        else:  # trained since then, maybe
            architecture, weights = fingerprint(prepared.model)
            if architecture in known:
                return None
        state = [plain_name(given, name) for name in given.state_dict()]
        names = {name: plain_name(given, name) for name, _ in given.named_modules()}
        return cls(
            frozenset(known),
            weights,
            {name: now for name, now in names.items() if name != now},
            sorted(state) == sorted(prepared.model.state_dict()),
        )

    def now(self, name: str) -> str:
        """The name in the prepared copy of a module or tensor, or of a part that a layer got."""
        head = name
        while head and head not in self.names:
            head = head.rpartition(".")[0]
        return (self.names[head] + name[len(head) :]).removeprefix(".") if head else name


def plain_name(model: nn.Module, name: str) -> str:
    """The name of a module or tensor without the wrappers on the way to it."""
    kept = []
    here: object = model
    for part in name.split("."):
        child = getattr(here, part, None)
        if not isinstance(here, nn.Module) or inside(here) is None or inside(here) is not child:
            kept.append(part)
        here = child
    return ".".join(kept)
