"""Image files, from a folder or an archive of the same layout, decoded once into one cache file."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autocompress.errors import InputError, nearest
from autocompress.policy.writing import replacing
from autocompress.workloads.cache import cache_folder, digest

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff")
ARCHIVES = (".tar.xz", ".tar.gz", ".tgz", ".tar")
SPLITS = ("train", "val", "test")

#: decoded images are held in memory; above this a lazily loaded data set is the right thing
LARGEST_BYTES = 16 * 2**30


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image: its split, its class, and its path inside the root."""

    split: str
    label: str
    path: str
    size: int
    changed: int = 0


@dataclass
class Decoded:
    """Images of the three splits: ``uint8`` ``(N, C, H, W)`` and class indices ``(N,)``."""

    images: dict[str, Tensor] = field(default_factory=dict)
    targets: dict[str, Tensor] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def read_images(root: str | Path, *, size: int | None = None, gray: bool = False) -> Decoded:
    """Read ``root/{train,val,test}/CLASS/*`` or an archive ``root.tar.xz`` that holds it.

    The decoded tensors are kept in the cache folder and read from there the next time, as long
    as no file changed.

    Args:
        root: folder; where it is missing, an archive of the same name beside it is read.
        size: shorter side after resizing, then cropped to a square; ``None`` takes the images as
            they are, which must then agree in size.
        gray: one channel in place of three.

    Raises:
        InputError: no folder and no archive, a split or a class is missing, or a broken image.
    """
    root = Path(root).expanduser()
    archive = None if root.is_dir() else _archive_beside(root)
    if archive is not None:
        stat = archive.stat()
        key = digest(archive.name, stat.st_size, stat.st_mtime_ns, size, gray)
    else:
        files = list_images(root)
        key = digest([(f.path, f.size, f.changed) for f in files], size, gray)
    cached = cache_folder() / "images" / f"{root.name}-{key}.safetensors"
    if cached.is_file():
        return _load(cached)
    if archive is not None:
        files, blobs = _unpack(archive, root.name)
        decoded = _decode(files, blobs.__getitem__, size, gray)
    else:
        decoded = _decode(files, lambda path: (root / path).read_bytes(), size, gray)
    _save(cached, decoded)
    return decoded


def list_images(root: Path, splits: Iterable[str] = SPLITS) -> list[ImageFile]:
    """All image files of the splits, sorted by path.

    Raises:
        InputError: a split or all of its images are missing.
    """
    files: list[ImageFile] = []
    for split in splits:
        folder = root / split
        if not folder.is_dir():
            found = sorted(p.name for p in root.iterdir() if p.is_dir())
            raise InputError(
                f"{root} has no folder {split!r}; {nearest(split, found)} The layout is "
                "ROOT/{train,val,test}/CLASS/IMAGE; three disjoint splits keep the result honest."
            )
        before = len(files)
        for label in sorted(p for p in folder.iterdir() if p.is_dir()):
            with os.scandir(label) as entries:
                found_here = [e for e in entries if e.name.lower().endswith(SUFFIXES)]
            for entry in sorted(found_here, key=lambda e: e.name):
                stat = entry.stat()
                path = f"{split}/{label.name}/{entry.name}"
                files.append(
                    ImageFile(split, label.name, path, stat.st_size, int(stat.st_mtime_ns))
                )
        if len(files) == before:
            raise InputError(
                f"{folder} holds no images. The layout is ROOT/{split}/CLASS/IMAGE with one of "
                f"{', '.join(SUFFIXES)}."
            )
    return files


def _archive_beside(root: Path) -> Path:
    for suffix in ARCHIVES:
        path = root.with_name(root.name + suffix)
        if path.is_file():
            return path
    raise InputError(
        f"There is no data folder {root}, nor an archive {root.name}.tar.xz beside it. Put the "
        f"images into {root}/{{train,val,test}}/CLASS/, set AUTOCOMPRESS_DATA to the folder that "
        f"holds {root.name!r}, or correct `data.args.root` in the study."
    )


def _unpack(archive: Path, name: str) -> tuple[list[ImageFile], dict[str, bytes]]:
    """Read an archive in one pass; nothing is written besides the cache file later."""
    files: list[ImageFile] = []
    blobs: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|*") as tar:
            for member in tar:
                parts = Path(member.name).parts
                parts = parts[parts.index(name) + 1 :] if name in parts else parts
                if not member.isfile() or len(parts) != 3 or parts[0] not in SPLITS:
                    continue
                if not parts[2].lower().endswith(SUFFIXES):
                    continue
                reader = tar.extractfile(member)
                assert reader is not None
                path = "/".join(parts)
                blobs[path] = reader.read()
                files.append(ImageFile(parts[0], parts[1], path, member.size))
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(
            f"The archive {archive} is not readable: {error}. Fetch it anew."
        ) from None
    for split in SPLITS:
        if not any(f.split == split for f in files):
            raise InputError(
                f"The archive {archive} has no images under {name}/{split}/CLASS/; it must hold "
                "all of train, val and test."
            )
    return sorted(files, key=lambda f: f.path), blobs


def _decode(
    files: list[ImageFile], read: Callable[[str], bytes], size: int | None, gray: bool
) -> Decoded:
    classes = _classes(files)
    first = decode_image(read(files[0].path), files[0].path, size, gray)
    total = len(files) * first.size
    if total > LARGEST_BYTES:
        raise InputError(
            f"{len(files)} images of {first.shape} need {total / 2**30:.0f} GiB in memory. Give a "
            "smaller `size`, or use the factory autocompress.workloads.imagenet:imagenet, which "
            "reads images when they are needed."
        )
    out = Decoded(classes=classes)
    with ThreadPoolExecutor(max_workers=max(2, os.cpu_count() or 2)) as pool:
        for split in SPLITS:
            part = [f for f in files if f.split == split]
            images = np.empty((len(part), *first.shape), np.uint8)

            def one(i: int, part: list[ImageFile] = part, images: np.ndarray = images) -> None:
                image = decode_image(read(part[i].path), part[i].path, size, gray)
                if image.shape != first.shape:
                    raise InputError(
                        f"{part[i].path} has shape {image.shape}, {files[0].path} has "
                        f"{first.shape}. Give `size` to bring all images to one size."
                    )
                images[i] = image

            for _ in pool.map(one, range(len(part)), chunksize=64):
                pass
            index = {name: i for i, name in enumerate(classes)}
            out.images[split] = torch.from_numpy(images)
            out.targets[split] = torch.tensor([index[f.label] for f in part])
    return out


def _classes(files: list[ImageFile]) -> tuple[str, ...]:
    labels = {s: {f.label for f in files if f.split == s} for s in SPLITS}
    for split in ("val", "test"):
        extra = sorted(labels[split] - labels["train"])
        if extra:
            raise InputError(
                f"The split {split!r} has a class {extra[0]!r} that `train` has not; "
                f"{nearest(extra[0], labels['train'])}"
            )
    return tuple(sorted(labels["train"]))


def decode_image(blob: bytes, path: str, size: int | None = None, gray: bool = False) -> np.ndarray:
    """One image as ``uint8`` ``(C, H, W)``.

    Raises:
        InputError: not an image, or a broken one.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(blob)) as file:
            image = file.convert("L" if gray else "RGB")
    except (OSError, SyntaxError) as error:
        raise InputError(
            f"{path} is not a readable image: {error}. Replace or remove it."
        ) from None
    if size is not None and image.size != (size, size):
        scale = size / min(image.size)
        wide, high = (max(size, round(side * scale)) for side in image.size)
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
        left, top = (wide - size) // 2, (high - size) // 2
        image = image.crop((left, top, left + size, top + size))
    array = np.asarray(image)
    return array[None] if gray else array.transpose(2, 0, 1)


def _save(path: Path, decoded: Decoded) -> None:
    from safetensors.torch import save_file

    tensors = {f"{s}.images": t for s, t in decoded.images.items()}
    tensors |= {f"{s}.targets": t for s, t in decoded.targets.items()}
    with replacing(path) as partial:
        save_file(tensors, partial, {"classes": json.dumps(decoded.classes)})


def _load(path: Path) -> Decoded:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        classes = tuple(json.loads(file.metadata()["classes"]))
        return Decoded(
            {s: file.get_tensor(f"{s}.images") for s in SPLITS},
            {s: file.get_tensor(f"{s}.targets") for s in SPLITS},
            classes,
        )
