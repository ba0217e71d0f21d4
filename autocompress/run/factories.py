"""Functions that studies and recipes name: who may have one imported, and from where.

A study that somebody runs names that person's own functions. A recipe or a run may come from
anybody, and to import what it names is to run its author's code: that takes the user's word, or
that the very same function was run on this machine before, in a study of the user's own.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.policy.hooks import within
from autocompress.policy.writing import replacing
from autocompress.workloads.cache import cache_folder, digest

_OURS = frozenset(
    f"autocompress.workloads.{name}"
    for name in (
        "crossmodal:digits_lstm",
        "crossmodal:digits_sequence",
        "crossmodal:image_teacher",
        "data:digits",
        "data:image_folder",
        "detector:detect_shapes",
        "detector:detector",
        "efficientnet:efficientnet_lite0",
        "efficientnet:enlarged_folder",
        "efficientnet:imagenet_samples",
        "imagenet:imagenet",
        "imagenet:mobilenet_v2",
        "minilm:minilm_spam",
        "minilm:spam",
        "models:digits_resnet",
        "models:resnet20",
        "models:resnet56",
        "models:vgg16_bn",
        "ocr:crnn_ocr",
        "ocr:rendered_words",
        "onnx_file:onnx_model",
        "pitch:crepe",
        "pitch:tones",
        "shapes:segment_shapes",
        "shapes:unet",
        "speakers:digits_by_speaker",
        "speakers:resemblyzer",
        "speakers:spoken_digits",
    )
)
"""The package's own models and data. Its other functions are no factories, and do other things."""


@dataclass(frozen=True)
class _FromElsewhere:
    """A recipe or run whose factories are not taken on trust.

    Args:
        what: it is, for messages.
        named: factories and devices that the user named.
        trust: import all the same.
    """

    what: str
    named: frozenset[str]
    trust: bool


_reading: ContextVar[_FromElsewhere | None] = ContextVar("reading", default=None)


@contextmanager
def from_elsewhere(
    what: str, *, named: Collection[Any] = (), trust: bool = False
) -> Iterator[None]:
    """Inside, import only what is this package's own, was named, or was run here before.

    Args:
        what: ``recipe x.yaml``, for messages.
        named: factories and devices that the user named; what is no name is passed over.
        trust: import whatever is named.
    """
    names = frozenset(name for name in named if isinstance(name, str))
    token = _reading.set(_FromElsewhere(what, names, trust))
    try:
        yield
    finally:
        _reading.reset(token)


def import_factory(path: str, args: Mapping[str, Any] | None = None) -> Any:
    """The object behind ``package.module:name``.

    Args:
        path: where it is.
        args: that it will be called with.

    Raises:
        InputError: no such module or name, or one that nobody vouches for.
    """
    module_name, _, name = path.partition(":")
    if not name:
        raise InputError(f"A factory reads `package.module:function`, got {path!r}.")
    source = _reading.get()
    if source is None:  # a user's own module beside the study
        _put_on_path(os.getcwd(), first=True)
        found = _attribute(module_name, name, path)
        _remember(_key(path, args), os.getcwd(), _origin(module_name))
        return found
    if path in _OURS:
        return _attribute(module_name, name, path)
    if source.trust or path in source.named:
        _put_on_path(os.getcwd(), first=False)
        return _attribute(module_name, name, path)
    folder, origin = _known().get(_key(path, args), ("", ""))
    if folder:
        _put_on_path(folder, first=True)
    if not folder or _origin(module_name) != origin:
        raise InputError(
            f"The {source.what} names the function {path!r}. Importing it runs code of whoever "
            "wrote it, and no study of yours has called it here before with these arguments. "
            "Look at it; then give a function of your own (--model, --data), or say --trust."
        )
    return _attribute(module_name, name, path)


def may_reach(address: str, python: str) -> None:
    """Allow the connection to a device that a study names.

    Args:
        address: of the device.
        python: that is started there.

    Raises:
        InputError: a stranger's recipe or run names it, and no study of the user's has before.
    """
    source, key = _reading.get(), _key(address, {"python": python})
    if source is None:
        _remember(key, os.getcwd(), address)
    elif not source.trust and address not in source.named and key not in _known():
        raise InputError(
            f"The {source.what} times on the device {address!r} with {python!r}, to which no study "
            "of yours has connected here before. Look at it; then say --trust."
        )


def _put_on_path(folder: str, *, first: bool) -> None:
    """Let modules of a folder be found: before all others, or after them."""
    if first and folder not in sys.path[:1]:
        sys.path.insert(0, folder)
    elif not first and folder not in sys.path:
        sys.path.append(folder)


def _origin(module_name: str) -> str:
    """The file that a module, or the package around it, would come from; none of it is run."""
    try:
        found = importlib.util.find_spec(module_name.partition(".")[0])
    except (ImportError, ValueError):
        return ""
    if found is None:
        return ""
    return str(found.origin or list(found.submodule_search_locations or ()))


def _attribute(module_name: str, name: str, path: str) -> Any:
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(_failed(module_name, path, error)) from error
        raise InputError(
            f"There is no module {module_name!r} (factory {path!r}). Install it, or "
            "run from the folder that holds it."
        ) from None
    except (Exception, SystemExit) as error:  # of whoever wrote it, when it is imported
        raise InputError(_failed(module_name, path, error)) from error
    return within(module, name)


def _failed(module_name: str, path: str, error: BaseException) -> str:
    return f"{module_name} (factory {path!r}) cannot be imported: {raised(error)}."


def raised(error: BaseException) -> str:
    """What code of a user's raised, and in which line of which file."""
    found = " ".join(str(error).split())
    if isinstance(error, SyntaxError):  # its text names the file and the line
        return f"{type(error).__name__}: {found}"
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {found} ({where.filename}, line {where.lineno})"


def _key(path: str, args: Mapping[str, Any] | None) -> str:
    return f"{path} {digest(json.dumps(dict(args or {}), sort_keys=True, default=str))}"


def _file() -> Path:
    return cache_folder() / "factories.json"


def _known() -> dict[str, tuple[str, str]]:
    """Functions that studies here have called, with the folder and the file of their module."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {
        key: (value[0], value[1])
        for key, value in items
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value)
    }


def _remember(key: str, folder: str, origin: str) -> None:
    known = _known()
    if not origin or known.get(key) == (folder, origin):
        return
    try:
        with replacing(_file()) as beside:
            text = json.dumps({**known, key: (folder, origin)}, indent=0)
            beside.write_text(text, encoding="utf-8")
    except OSError:
        return  # a cache that cannot be written: recipes then ask for the user's word
