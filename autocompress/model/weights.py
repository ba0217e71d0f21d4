"""The tensors that a model's state is made of; a state may also hold what is no tensor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

_EXTRA = "_extra_state"
"""How torch calls what ``get_extra_state`` gives, which may be anything."""


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The state dict as far as it is tensors: they share their memory with the module."""
    return {n: t for n, t in module.state_dict().items() if isinstance(t, Tensor)}


def load_tensors(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put tensors back that ``state_tensors`` gave; what is no tensor stays as it is.

    Raises:
        RuntimeError: a tensor is missing, has no place, or has another shape.
    """
    found = module.load_state_dict(state, strict=False)
    missing = [name for name in found.missing_keys if name.rpartition(".")[2] != _EXTRA]
    if missing or found.unexpected_keys:
        raise RuntimeError(f"missing: {missing}, without a place: {found.unexpected_keys}")
