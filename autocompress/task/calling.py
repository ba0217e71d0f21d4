"""Calling a model: how inputs go in, what of its answer counts, and under which names.

A tuple of inputs goes in by position, a mapping by keyword, anything else as the one argument. A
list is one argument too: a model that takes several in a list is given ``([a, b],)`` or ``[a, b]``.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import AutocompressError, UnsupportedModel, explained
from autocompress.task.nested import named_tensors, tensors, with_tensors

_log = logging.getLogger(__name__)

_NAMED_TYPE = (
    " Models of double or half precision run as a copy in float32, and so do their inputs: where "
    "the forward names a type (`x.double()`), let it take that of a weight "
    "(`x.to(self.layer.weight.dtype)`)."
)
_INPUT_FN = (
    ": `input_fn=lambda batch: batch[0].float() / 255`, for example, or `lambda batch: {'x': "
    "batch['image']}` to name its arguments."
)

CACHES = ("past_key_values", "cache", "cache_params", "mems", "past_buckets_states")
"""What language models answer for their next call only; no part of what they say."""


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as positional and keyword arguments."""
    if isinstance(inputs, Mapping):
        return (), {str(name): value for name, value in inputs.items()}
    if isinstance(inputs, tuple) and not hasattr(inputs, "_fields"):
        return inputs, {}
    return (inputs,), {}


def parameters(module: nn.Module, inputs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of a module's forward that the inputs set, and the defaults of the others.

    Raises:
        TypeError: inputs that do not fit, or a forward that takes any number of them.
    """
    args, kwargs = arguments(inputs)
    signature = inspect.signature(module.forward)
    given = signature.bind(*args, **kwargs).arguments
    if any(signature.parameters[n].kind is inspect.Parameter.VAR_POSITIONAL for n in given):
        raise TypeError("its forward takes any number of inputs")
    left_out = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in given and parameter.default is not inspect.Parameter.empty
    }
    return dict(given), left_out


def call(module: nn.Module, inputs: Any) -> Any:
    """What a module answers, built as it built it, without caches for a next call.

    Args:
        module: takes the inputs.
        inputs: a tensor, a tuple (by position), a mapping (by keyword), nested.
    """
    args, kwargs = arguments(inputs)
    return without_caches(module(*args, **kwargs))


def call_or_refuse(answer: Callable[[Any], Any], inputs: Any) -> Any:
    """What a model answers to the first inputs that the data give it.

    Args:
        answer: from inputs to outputs.
        inputs: of a few samples.

    Raises:
        UnsupportedModel: whatever its forward raised, with what went in and what to do; or it
            answers without a tensor.
    """
    try:
        found = answer(inputs)
    except AutocompressError:
        raise
    except Exception as error:  # a forward of anyone's raises whatever it stumbles on
        _log.debug("the model's forward failed", exc_info=error)
        several = told_apart((*inputs, None)) if type(inputs) is tuple else ""
        why = explained(error)
        real = all(t.is_floating_point() for t in tensors(inputs))
        typed = _NAMED_TYPE if real and "number types" in why else ""
        raise UnsupportedModel(
            f"The model does not run on what the data give it, {described(inputs)}: "
            f"{why}{own_place(error)}.{typed} Give data in the shapes and "
            "number types that it was trained on, or `input_fn`, which makes its inputs of a batch"
            + (f".{several}" if several else _INPUT_FN)
        ) from error
    if not tensors(found):
        raise UnsupportedModel(
            f"The model must answer with tensors, alone or in tuples, lists and mappings; it gives "
            f"{type(found).__name__}. Let its forward return them as they are, without `.numpy()`, "
            "`.tolist()` or `.item()`."
        )
    return found


def told_apart(batch: Any) -> str:
    """How the parts of a batch without names are read, and how to say otherwise.

    Args:
        batch: a row of more than two parts; of anything else there is nothing to say.
    """
    if not isinstance(batch, tuple | list) or len(batch) < 3:
        return ""
    first = next((i for i, p in enumerate(batch) if isinstance(p, Tensor) and p.dim() > 1), 0)
    return (
        f" Of the {len(batch)} parts of a batch the last is read as the targets, and all others as "
        "inputs by position. Where that is not so, say what is what, e.g. "
        f"`input_fn=lambda batch: batch[{first}], target_fn=lambda batch: batch[{first + 1}]`."
    )


def own_place(error: Exception) -> str:
    """The innermost line of the user's own code that an exception went through, if any did."""
    outside = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))
    files = [(f.filename, f.lineno) for f in traceback.extract_tb(error.__traceback__)]
    # behind the first of torch's or ours: what stands before is who called us
    start = next((i for i, (file, _) in enumerate(files) if file.startswith(outside)), len(files))
    own = [place for place in files[start:] if not place[0].startswith(outside)]
    return f" ({own[-1][0]}, line {own[-1][1]})" if own else ""


def described(value: Any) -> str:
    """Shapes and number types of a structure: ``x (N, 3, 32, 32) float32``."""
    parts = [f"{name} {_shape(tensor)}".strip() for name, tensor in named_tensors(value)]
    return ", ".join(parts) or type(value).__name__


def _shape(tensor: Tensor) -> str:
    each = "".join(f", {size}" for size in tensor.shape[1:])
    return f"(N{each or ','}) {str(tensor.dtype).removeprefix('torch.')}"


def call_flat(module: nn.Module, inputs: Any) -> list[Tensor]:
    """The tensors of a module's answer, one after another."""
    return tensors(call(module, inputs))


def without_caches(answer: Any) -> Any:
    """An answer without what is kept for a next call."""
    if isinstance(answer, Mapping):
        if not any(name in CACHES for name in answer.keys()):  # noqa: SIM118 - asks for no part
            return answer
        kept = {name: part for name, part in answer.items() if name not in CACHES}
        return type(answer)(**kept) if dataclasses.is_dataclass(answer) else type(answer)(kept)  # type: ignore[call-arg]  # mappings take a dictionary
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        held = {f.name for f in dataclasses.fields(answer)}
        return dataclasses.replace(answer, **{name: None for name in CACHES if name in held})
    return answer


def input_names(inputs: Any) -> list[str]:
    """Names of a model's inputs in a file: keywords, or ``input``, ``input_1``, ... by position."""
    return _names(inputs, "input")


def output_names(answer: Any, taken: Sequence[str] = ()) -> list[str]:
    """Names of a model's outputs in a file: keys and fields, or ``output``, ``output_1``, ...

    Args:
        answer: of the model.
        taken: names of the inputs, which no output may have.
    """
    return [f"{name}_out" if name in taken else name for name in _names(answer, "output")]


def _names(value: Any, word: str) -> list[str]:
    names = []
    for path, _ in named_tensors(value):
        first, dot, rest = path.partition(".")
        if not first or first.isdecimal():
            first = word if first in ("", "0") else f"{word}_{first}"
        names.append(f"{first}{dot}{rest}")
    return names


def rebuild(like: Any, found: Sequence[Any]) -> Any:
    """An answer from the outputs of an exported file.

    Args:
        like: what the model answers, for the way in which it is built; ``None`` gives the first
            output alone, or a tuple of several.
        found: arrays or tensors, in the file's order.

    Raises:
        InputError: another number of outputs than the answer holds.
    """
    parts = [torch.as_tensor(part) for part in found]
    if like is None:
        return parts[0] if len(parts) == 1 else tuple(parts)
    return with_tensors(like, parts)


class Flat(nn.Module):
    """A model that takes and gives tensors one after another, in the order of ``tensors``.

    Args:
        model: called as it wants to be.
        example: inputs that show how.
    """

    def __init__(self, model: nn.Module, example: Any) -> None:
        super().__init__()
        self.flat_model = model
        self.example = example

    @staticmethod
    def path(name: str) -> str:
        """A module's own path, from the path that it has in here."""
        return name.removeprefix("flat_model").removeprefix(".")

    def forward(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """The tensors of the model's answer."""
        return tuple(call_flat(self.flat_model, with_tensors(self.example, parts)))


def is_flat(inputs: Any, answer: Any) -> bool:
    """Whether tensors go in by position and a tensor, or several in a row, come out."""
    return all(
        isinstance(value, Tensor)
        or (type(value) in (tuple, list) and all(isinstance(v, Tensor) for v in value))
        for value in (inputs, answer)
    ) and not isinstance(inputs, list)


def without_cache(model: nn.Module) -> nn.Module:
    """Tell a language model to keep nothing for a next call, in place.

    Args:
        model: a copy of the user's; configured by ``config.use_cache``, as Hugging Face's are.
    """
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", False) is True:
            config.use_cache = False  # type: ignore[union-attr]  # it has the attribute
    return model
