"""What a client tells of the shape of its samples, and samples of that shape.

The server has no data. To take an inventory, trace, export and time a model it feeds noise with
the shape, the type, the mean and the spread that clients tell.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import InputError
from autocompress.task.calling import call
from autocompress.task.data import Data, Split

_INTEGERS = ("bool", *("uint8", "uint16", "uint32"), *("int8", "int16", "int32", "int64"))
_FLOATS = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")
_KINDS = (*_INTEGERS, *_FLOATS)
_MOST_NUMBERS = 2**24
"""In one sample; the server makes up many of them."""
_LARGEST = 2.0**53
_DEEPEST = 16
SAMPLES = 64
"""That the server makes up for each split."""


def describe(data: Data) -> dict[str, Any]:
    """Shapes, types, means and spreads; plain data."""
    _, targets = data.train.take(slice(None))
    return {
        "inputs": _described(data.train.inputs(256)),
        "targets": _described(targets),
        "classes": data.classes,
        "name": data.name,
        "fingerprint": data.fingerprint,
        "samples": len(data.train),
    }


def checked(about: Any) -> dict[str, Any]:
    """What a client tells, as far as ``made_up`` reads it.

    Raises:
        InputError: types that are none, shapes or numbers that no samples have.
    """
    if not isinstance(about, dict):
        raise InputError("it does not describe its samples")
    numbers = sum(_numbers(about.get(name)) for name in ("inputs", "targets"))
    classes = about.get("classes")
    known = (
        numbers <= _MOST_NUMBERS
        and (classes is None or _whole(classes, 1, 2**31))
        and _whole(about.get("samples"), 0, 2**53)
        and all(isinstance(about.get(n), str) for n in ("name", "fingerprint"))
    )
    if not known:
        raise InputError("it describes samples that cannot be")
    return about


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _numbers(one: Any, depth: int = 0) -> int:
    """The numbers in one sample."""
    if not isinstance(one, dict) or depth > _DEEPEST:
        raise InputError("it describes samples that are no tensors")
    if "mapping" in one or "sequence" in one:
        parts = one.get("mapping", one.get("sequence"))
        if not isinstance(parts, dict if "mapping" in one else list):
            raise InputError("it describes samples that are no tensors")
        each = parts.values() if isinstance(parts, dict) else parts
        return sum(_numbers(part, depth + 1) for part in each)
    shape: Any = one.get("shape")
    figures: list[Any] = [one.get(n) for n in ("mean", "spread", "most")]
    known = (
        isinstance(shape, list)
        and len(shape) <= _DEEPEST
        and all(_whole(size, 0, _MOST_NUMBERS) for size in shape)
        and one.get("dtype") in _KINDS
        and all(type(f) in (int, float) and abs(f) <= _LARGEST for f in figures)
    )
    if not known:
        raise InputError("it describes tensors that cannot be")
    if one["dtype"] in _INTEGERS and one["most"] < 0:
        raise InputError("its whole numbers are all below 0")
    return math.prod(shape)


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        numbers = value.double() if not value.is_complex() else value.abs().double()
        return {
            "shape": list(value.shape[1:]),
            "dtype": str(value.dtype).removeprefix("torch."),
            "mean": float(numbers.mean()) if value.numel() else 0.0,
            "spread": float(numbers.std()) if value.numel() > 1 else 0.0,
            "most": float(numbers.max()) if value.numel() else 0.0,
        }
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _described(part) for key, part in value.items()}}
    if isinstance(value, tuple | list):
        return {"sequence": [_described(part) for part in value]}
    raise InputError(
        f"A federated study needs inputs and targets of tensors, got a {type(value).__name__}."
    )


def unlike(about: Mapping[int, Mapping[str, Any]]) -> dict[int, str]:
    """Clients whose samples have another form than most clients' have, and how they differ.

    Args:
        about: client to what it told.
    """
    forms = {c: repr((_shapes(a["inputs"]), _nested(a["targets"]))) for c, a in about.items()}
    several = Counter(forms.values()).most_common()
    usual = next(client for client in about if forms[client] == several[0][0])
    found = {}
    for client in [c for c in about if forms[c] != forms[usual]]:
        own, other = (_shapes(about[c]["inputs"]) for c in (client, usual))
        found[client] = (
            f"its inputs have the form {own}, and those of most clients {other}"
            if own != other
            else "its targets are nested in another way than those of most clients"
        )
    return found


def made_up(about: Mapping[int, Mapping[str, Any]], *, task: Any = None) -> Data:
    """Samples of the shape that clients tell.

    Args:
        about: client to what it told, of clients that are alike (``unlike``); the one with the most
            samples counts, of targets the largest.
        task: of the study's data.
    """
    largest = max(about.values(), key=lambda one: int(one["samples"]))
    generator = torch.Generator().manual_seed(0)
    targets = _most([one["targets"] for one in about.values()])
    train, val, test = (
        Split(_drawn(largest["inputs"], generator), _drawn(targets, generator)) for _ in range(3)
    )
    told = "".join(sorted(str(one["fingerprint"]) for one in about.values()))
    classes = [one["classes"] for one in about.values() if one["classes"] is not None]
    return _MadeUp(
        train,
        val,
        test,
        classes=max(classes, default=None),
        name=f"{largest['name']}, of {len(about)} clients",
        task=task,
        extra={"clients": hashlib.sha256(told.encode()).hexdigest()[:16]},
    )


class _MadeUp(Data):
    """Known by the data of the clients, not by what was made up."""

    @property
    def fingerprint(self) -> str:
        return str(self.extra["clients"])


def _shapes(one: Mapping[str, Any]) -> Any:
    if "mapping" in one:
        return {key: _shapes(part) for key, part in one["mapping"].items()}
    if "sequence" in one:
        return [_shapes(part) for part in one["sequence"]]
    return (tuple(one["shape"]), one["dtype"])


def _nested(one: Mapping[str, Any]) -> Any:
    if "mapping" in one:
        return {key: _nested(part) for key, part in one["mapping"].items()}
    return [_nested(part) for part in one["sequence"]] if "sequence" in one else None


def _most(several: Sequence[Mapping[str, Any]]) -> Any:
    """Of targets: as one client has them, with the largest value that any has."""
    first = several[0]
    if "mapping" in first:
        keys = first["mapping"]
        return {"mapping": {k: _most([one["mapping"][k] for one in several]) for k in keys}}
    if "sequence" in first:
        places = range(len(first["sequence"]))
        return {"sequence": [_most([one["sequence"][i] for one in several]) for i in places]}
    return {**first, "most": max(one["most"] for one in several)}


def _drawn(one: Mapping[str, Any], generator: torch.Generator) -> Any:
    if "mapping" in one:
        return {key: _drawn(part, generator) for key, part in one["mapping"].items()}
    if "sequence" in one:
        return tuple(_drawn(part, generator) for part in one["sequence"])
    kind = getattr(torch, one["dtype"])
    shape = (SAMPLES, *one["shape"])
    if kind.is_floating_point:
        noise = torch.randn(shape, generator=generator)
        return (one["mean"] + one["spread"] * noise).to(kind)
    drawn = torch.randint(int(one["most"]) + 1, shape, generator=generator)
    if drawn.dim() == 1:  # every class is there
        drawn = torch.arange(SAMPLES) % (int(one["most"]) + 1)
    return drawn.to(kind)


@torch.no_grad()
def channel_sums(module: nn.Module, names: Sequence[str], sample: Split) -> dict[str, Any]:
    """What layers read, summed by channel: values per channel, and their sum.

    Args:
        module: in eval mode.
        names: linear layers (features last) and convolutions (channels second).
        sample: inputs.

    Returns:
        Name to ``(2, channels)``, float64.
    """
    sums: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].double()
            last = isinstance(layer, nn.Linear)
            flat = x.reshape(-1, x.shape[-1]) if last else x.transpose(0, 1).flatten(1).T
            own = torch.stack([flat.new_full((flat.shape[1],), len(flat)), flat.sum(0)])
            sums[name] = sums[name] + own if name in sums else own

        return hook

    handles = [module.get_submodule(n).register_forward_pre_hook(note(n)) for n in names]
    try:
        for inputs, _ in sample.batches(128):
            call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return {name: own.numpy() for name, own in sums.items()}
