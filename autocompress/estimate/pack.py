"""Pack what another device needs to time: kernels, a few whole models, and a script that runs."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from autocompress.errors import ExportError, InputError
from autocompress.estimate.kernel_table import TABLE_VERSION, chunks, typical_footprint
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_model import choose_variants
from autocompress.estimate.whole_models import ExportVariant, none_left
from autocompress.machine.progress import Progress, silent
from autocompress.machine.runner_files import runner_files
from autocompress.machine.scratch import scratch_folder
from autocompress.model.kernels import Kernel
from autocompress.policy.attempt import attempt
from autocompress.policy.inventory import Inventory
from autocompress.policy.policy import Policy
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space import Space
from autocompress.policy.writing import replacing
from autocompress.targets.base import Target
from autocompress.targets.registry import usable

#: bytes of weights that an unpacked archive may hold; widths in between are interpolated
_LARGEST = 300_000_000


def pack_kernels(
    path: str | Path,
    inventory: Inventory,
    space: Space,
    target: Target,
    export_variant: ExportVariant,
    baseline: str | Path,
    *,
    settings: CompressionSettings | None = None,
    variants: int = 12,
    progress: Progress = silent,
) -> Path:
    """Write an archive whose runner needs numpy and onnxruntime only and makes ``table.json``.

    Args:
        path: of the zip file.
        inventory: of the uncompressed model.
        space: which widths, bits and ranks will be asked for.
        target: of the study; its threads and batch are those of the device.
        export_variant: builds and exports a policy's model; the files are deleted when packed.
        baseline: the exported uncompressed model; not deleted.
        settings: rounding of channel counts.
        variants: how many whole models are packed.
        progress: told how far it is.

    Raises:
        InputError: the path is no zip file, or the target is not ``packable``.
    """
    path = Path(path)
    _check(path, target)
    config = target.config
    plan = LayerPlan(inventory, settings or CompressionSettings())
    chosen = choose_variants(space, variants)
    needed = plan.kernels([Policy(), *chosen])
    kernels = list(dict.fromkeys([*needed, *_thinned(plan.space_kernels(space))]))
    footprint = typical_footprint(map(plan.weight_bytes, chosen))
    with (
        replacing(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        manifest = {
            "version": TABLE_VERSION,
            "architecture": inventory.architecture,
            "threads": config.threads,
            "batch": config.batch,
            "footprint": footprint,
            "kernels": _add_kernels(archive, chunks(kernels, footprint), target, progress),
            "baseline": "models/uncompressed.onnx",
            "models": _add_models(archive, chosen, export_variant, progress),
        }
        archive.write(baseline, "models/uncompressed.onnx")
        archive.writestr("manifest.json", json.dumps(manifest, indent=1))
        for name, text in runner_files().items():
            archive.writestr(name, text)
    return path


def _check(path: Path, target: Target) -> None:
    if path.suffix != ".zip":
        raise InputError(f"Kernels are packed into a .zip file, got {path.name!r}.")
    if not target.packable or target.kernel_writer() is None:
        raise InputError(
            "Kernels are packed for ONNX Runtime on another device, which tells nothing of the "
            f"study's runtime {target.name!r}. Use one of which they do: "
            f"{', '.join(usable(lambda target: target.packable))}."
        )


def _add_kernels(
    archive: zipfile.ZipFile, parts: Sequence[list[Kernel]], target: Target, progress: Progress
) -> list[dict[str, Any]]:
    write = target.kernel_writer()
    assert write is not None
    listed: list[dict[str, Any]] = []
    with scratch_folder("pack") as folder:
        for i, chunk in enumerate(parts):
            name = f"kernels/{i:03d}.onnx"
            file = write(chunk, folder / "kernels.onnx", target.config.batch)
            archive.write(file, name)
            listed.append({"file": name, "keys": [kernel.key for kernel in chunk]})
            progress("kernels", (i + 1) / len(parts))
    return listed


def _add_models(
    archive: zipfile.ZipFile,
    policies: Sequence[Policy],
    export_variant: ExportVariant,
    progress: Progress,
) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []
    reason = ""
    for i, policy in enumerate(policies):
        made, why = attempt(policy, "the packed models", partial(export_variant, policy))
        if made is None:
            reason = why
            continue
        file = Path(made)
        name = f"models/{i:03d}.onnx"
        archive.write(file, name)
        file.unlink()
        listed.append({"file": name, "policy": policy.as_dict()})
        progress("whole models", (i + 1) / len(policies))
    if reason and not listed:
        raise ExportError(none_left(len(policies), reason))
    return listed


def _thinned(kernels: Sequence[Kernel]) -> Sequence[Kernel]:
    """An even spread of kernels whose weights are not too many bytes together."""
    size = sum(k.weight_bytes for k in kernels)
    return kernels[:: max(1, -(-size // _LARGEST))]
