"""Identity of a model: one digest of its structure, one of its weights."""

from __future__ import annotations

import hashlib
import re

import torch
from torch import nn

from autocompress.model.weights import state_tensors
from autocompress.policy.inventory import architecture_digest

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_UNTOLD_BIAS = re.compile(r"(?<=affine=)(True|False)(?!, bias=)")


def fingerprint(model: nn.Module) -> tuple[str, str]:
    """Digests of a model's architecture and weights, 16 hexadecimal digits each.

    The architecture covers module names, kinds and settings and the shapes of all tensors; counters
    of batch norm do not count. The weights cover every value, in the state dict's order.
    """
    state = {n: t for n, t in state_tensors(model).items() if not n.endswith("num_batches_tracked")}
    modules = [(n, type(m).__name__, _settings(m)) for n, m in model.named_modules()]
    shapes = [(n, list(t.shape), str(t.dtype)) for n, t in state.items()]
    values = hashlib.sha256()
    for name, tensor in state.items():
        values.update(name.encode())
        # as bytes: numpy has no bfloat16
        plain = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        values.update(plain.numpy().tobytes())
    return architecture_digest([modules, shapes]), values.hexdigest()[:16]


def _settings(module: nn.Module) -> str:
    """As PyTorch from 2.14 on tells them, whichever version is installed: recipes outlive it."""
    told = module.extra_repr()
    if isinstance(module, _NORMS):  # earlier versions do not tell of a norm's bias
        bias = getattr(module, "bias", None) is not None
        told = _UNTOLD_BIAS.sub(rf"\g<1>, bias={bias}", told)
    return told
