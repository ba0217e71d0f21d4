"""Identity of a model: one digest of its structure, one of its weights."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from autocompress.model.weights import state_tensors
from autocompress.policy.inventory import architecture_digest

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_TOLD_BIAS = re.compile(r"(affine=(?:True|False)), bias=(?:True|False)")
_UNTOLD_BIAS = re.compile(r"(?<=affine=)(True|False)(?!, bias=)")


def fingerprint(model: nn.Module) -> tuple[str, str]:
    """Digests of a model's architecture and weights, 16 hexadecimal digits each.

    The architecture covers module names, kinds and settings and the shapes of all tensors; counters
    of batch norm do not count. The weights cover every value, in the state dict's order.
    """
    values = hashlib.sha256()
    for name, tensor in _state(model).items():
        values.update(name.encode())
        # as bytes: numpy has no bfloat16
        plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        values.update(plain.numpy().tobytes())
    return _architecture(model, _settings), values.hexdigest()[:16]


def untold_architecture(model: nn.Module) -> str:
    """The architecture as it was digested where PyTorch before 2.14 told of it."""
    return _architecture(model, _untold)


def _state(model: nn.Module) -> dict[str, Tensor]:
    tensors = state_tensors(model)
    return {n: t for n, t in tensors.items() if not n.endswith("num_batches_tracked")}


def _architecture(model: nn.Module, settings: Callable[[nn.Module], str]) -> str:
    modules = [(n, type(m).__name__, settings(m)) for n, m in model.named_modules()]
    shapes = [(n, list(t.shape), str(t.dtype)) for n, t in _state(model).items()]
    return architecture_digest([modules, shapes])


def _untold(module: nn.Module) -> str:
    told = module.extra_repr()
    return _TOLD_BIAS.sub(r"\g<1>", told) if isinstance(module, _NORMS) else told


def _settings(module: nn.Module) -> str:
    """As PyTorch from 2.14 on tells them, whichever version is installed: recipes outlive it."""
    told = module.extra_repr()
    if isinstance(module, _NORMS):  # earlier versions do not tell of a norm's bias
        bias = getattr(module, "bias", None) is not None
        told = _UNTOLD_BIAS.sub(rf"\g<1>, bias={bias}", told)
    return told
