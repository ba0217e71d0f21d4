"""What a client holds to by the ``federation`` section of its own study, whatever it is asked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

from autocompress.errors import InputError
from autocompress.federated.messages import digest_of, pack, unpack
from autocompress.federated.noise import noise_factor
from autocompress.policy.federation import FederationSection
from autocompress.policy.writing import replacing
from autocompress.targets.base import Target
from autocompress.task.calling import call
from autocompress.techniques.moments import MatrixLayer

_DATA = (".onnx",)
"""Suffixes of files that run nothing; of any other, a plug-in's too, nobody has said so."""
_DIGEST = re.compile("[0-9a-f]{24}")


def is_digest(name: str) -> bool:
    """Whether a name has the form that ``digest_of`` gives."""
    return _DIGEST.fullmatch(name) is not None


def check_digest(name: Any) -> None:
    """A name becomes a path on this machine: it must be a digest, as ``digest_of`` makes it.

    Raises:
        InputError: it is none.
    """
    if not isinstance(name, str) or not is_digest(name):
        raise InputError(f"What is sent once is called by its digest, got {str(name)[:40]!r}.")


def check_file(target: type[Target], section: FederationSection) -> None:
    """Files of some runtimes are programs, which the server could have written.

    Raises:
        InputError: those of this target are, and the server is not trusted.
    """
    if target.suffix not in _DATA and not section.trust_server:
        raise InputError(
            f"files of the runtime {target.name!r} are programs, and this client does not run the "
            "server's: choose a runtime of ONNX files, or set `federation.trust_server: true` in "
            "the client's own study, if you would run any program of the server's"
        )


def first_read(module: nn.Module, names: Collection[str], inputs: Any) -> list[str]:
    """The layer that runs first, which reads the raw inputs, or nothing.

    Args:
        module: in eval mode.
        names: of the layers to look at.
        inputs: a few samples.
    """
    order: list[str] = []
    handles = [
        module.get_submodule(n).register_forward_pre_hook(lambda layer, args, n=n: order.append(n))
        for n in names
    ]
    try:
        with torch.no_grad():
            call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return order[:1]


def first_matrix(module: nn.Module, inputs: Any) -> list[str]:
    """The first of all layers with a weight matrix, or nothing; see ``first_read``."""
    names = [n for n, layer in module.named_modules() if isinstance(layer, MatrixLayer)]
    return first_read(module, names, inputs)


def check_kept(section: FederationSection, kept: Collection[str], asked: Collection[str]) -> None:
    """Second moments of what the first layer reads are those of the samples themselves.

    Args:
        section: of the client's own study.
        kept: layers that read the raw inputs.
        asked: layers whose second moments would be told.

    Raises:
        InputError: they must stay here, and are asked for.
    """
    if section.without_first_layer and set(kept) & set(asked):
        raise InputError(
            "this client keeps the second moments of its first layer "
            "(`federation.without_first_layer`); set the same in the server's study"
        )


def own_noise(
    section: FederationSection, names: Collection[str], args: Mapping[str, Any]
) -> tuple[Mapping[str, float], float]:
    """Limits of a sample's share by layer, and the noise: at least that of the client's study.

    Args:
        section: of the client's own study.
        names: of the layers whose second moments are told.
        args: of the round.

    Raises:
        InputError: the client hides single samples, and the server gave no limits for that.
    """
    clip: Mapping[str, float] = args["clip"]
    if section.epsilon is None:
        return clip, args["noise"]
    limits = {name: float(clip.get(name, math.nan)) for name in names}
    if not all(0 < limit < math.inf for limit in limits.values()):
        raise InputError(
            "this client hides single samples (`federation.epsilon`) and needs a limit for each "
            "layer; set `federation.epsilon` in the server's study, too"
        )
    return limits, max(noise_factor(section.epsilon, section.delta), args["noise"])


def told_once(
    path: Path, args: Mapping[str, Any], make: Callable[[], Mapping[str, NDArray[Any]]]
) -> Mapping[str, NDArray[Any]]:
    """Noisy sums are told once: the mean of several draws would be without noise.

    A server that asks the same again, after it was killed, gets the same numbers.

    Args:
        path: where they are kept.
        args: of the round.
        make: draws them.

    Raises:
        InputError: something else was told before.
    """
    key = digest_of(json.dumps(args, sort_keys=True).encode())
    if path.exists():
        head, arrays = unpack(path.read_bytes())
        if head["key"] != key:
            raise InputError(
                "this client has told second moments of these samples before, and does not "
                f"(`federation.epsilon`) tell others; remove {path} there to allow it once more"
            )
        return arrays
    arrays = dict(make())
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        partial.write_bytes(pack({"key": key}, arrays))
    return arrays
