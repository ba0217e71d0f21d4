"""Trained weights on disk: what a recovered policy needs besides the recipe to be rebuilt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import InputError
from autocompress.model.weights import load_tensors, state_tensors
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.writing import replacing
from autocompress.results.trial import Phase

if TYPE_CHECKING:
    from autocompress.techniques.compressed import Compressed


def save_state(path: str | Path, compressed: Compressed) -> Path:
    """Write weights as one safetensors file, atomically; calibration makes the rest of them.

    Args:
        path: of the file; parent folders are made.
        compressed: after training; its module holds float weights.
    """
    from safetensors.torch import save_file

    path = Path(path)
    metadata = {"policy": compressed.policy.digest, "qat": str(compressed.qat).lower()}
    tensors = {
        n: t.detach().cpu().contiguous().clone()
        for n, t in state_tensors(compressed.module).items()
    }
    with replacing(path) as partial:
        save_file(tensors, partial, metadata)
    return path


def load_state(
    path: str | Path,
    compressed: Compressed,
    written: Policy | None = None,
    now: Callable[[str], str] | None = None,
) -> Compressed:
    """Fill a freshly stitched model with saved weights; it is to be calibrated again.

    Args:
        path: written by ``save_state``.
        compressed: stitched from the same policy; its module is changed in place.
        written: the policy under which they were saved, where layers had other names then.
        now: from a tensor's name of then to its name now.

    Raises:
        InputError: no such file, or weights of another policy or another module.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"The trained weights {path} are missing; keep them beside the recipe.")
    with reading_weights(path) as file:
        metadata = file.metadata() or {}
        if metadata.get("policy") != (written or compressed.policy).digest:
            raise InputError(
                f"{path} holds the weights of another policy. Put the file that was saved with the "
                "recipe in its place."
            )
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    if now is not None:
        state = {now(name): tensor for name, tensor in state.items()}
    try:
        load_tensors(compressed.module, state)
    except RuntimeError as error:
        raise InputError(
            f"{path} holds the weights of another module: {error}. Put the file that was saved "
            "with the recipe in its place."
        ) from None
    return compressed.with_weights(compressed.module.eval(), qat=metadata.get("qat") == "true")


@contextmanager
def reading_weights(path: Path) -> Iterator[Any]:
    """An open safetensors file that somebody handed over.

    Raises:
        InputError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is not readable as safetensors: {error}. Copy it again from where the recipe "
            "was exported, or export the recipe again."
        ) from None


def weights_kept(settings: CompressionSettings, policy: Policy, phase: Phase) -> bool:
    """Whether building a policy trains it, with labels or without, so that its weights are kept.

    Args:
        settings: of the study.
        policy: what is built.
        phase: for which it is built.
    """
    return phase.epochs > 0 or (phase.kind != "search" and settings.refines(policy))


def state_file(models: Path, policy: Policy, epochs: float, seed: int) -> Path:
    """Where a run keeps the trained weights of a policy."""
    return models / "trained" / f"{policy.digest[:16]}-e{epochs:g}-s{seed}.safetensors"
