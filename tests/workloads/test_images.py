"""Reading folders and archives of images, and what is said when something is amiss."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from autocompress.errors import InputError
from autocompress.workloads.data import IMAGENET_MEAN, IMAGENET_STD, image_folder
from autocompress.workloads.images import decode_image, read_images


def test_folder_is_read_whole_and_in_order(pets: Path) -> None:
    data = image_folder(str(pets), augment=["flip"])
    assert data.classes == 2
    assert data.name == "pets"
    for split, count in ((data.train, 3), (data.val, 2), (data.test, 1)):
        assert split.stored.shape == (2 * count, 3, 6, 8)
        assert split.stored.dtype == torch.uint8
        assert split.targets.tolist() == [0] * count + [1] * count
        for image, target, number in zip(
            split.stored, split.targets, [*range(count)] * 2, strict=True
        ):
            expected = torch.zeros(3)
            expected[target], expected[2] = 200, number
            assert torch.equal(image.float(), expected[:, None, None].expand(3, 6, 8))


def test_preprocessing_is_torchvisions_normalize(pets: Path) -> None:
    from autocompress.recover._torchvision import torchvision

    normalize = torchvision().transforms.v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)
    split = image_folder(str(pets)).train
    assert torch.allclose(split.inputs(), normalize(split.stored.float() / 255), atol=1e-5)


def test_archive_gives_the_same_and_is_decoded_once(pets: Path, cache: Path) -> None:
    from_folder = image_folder(str(pets))
    archive = pets.with_name("pets.tar.xz")
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(pets, "pets")
    shutil.rmtree(pets)
    shutil.rmtree(cache)
    from_archive = image_folder(str(pets))
    assert from_archive.fingerprint == from_folder.fingerprint
    (kept,) = (cache / "images").iterdir()
    assert not pets.exists()  # nothing is unpacked beside the archive
    stat = archive.stat()
    written = kept.stat().st_mtime_ns
    # the cache is read, not the archive: same name, size and time, other content
    archive.write_bytes(b"\0" * stat.st_size)
    os.utime(archive, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert image_folder(str(pets)).fingerprint == from_folder.fingerprint
    assert kept.stat().st_mtime_ns == written


def test_a_changed_image_is_decoded_anew(pets: Path, cache: Path) -> None:
    before = image_folder(str(pets)).train
    Image.fromarray(np.full((6, 8, 3), 9, np.uint8)).save(pets / "train" / "cat" / "1.png")
    after = image_folder(str(pets)).train
    assert (after.stored[1] == 9).all()
    assert torch.equal(after.stored[2:], before.stored[2:])
    assert len(list((cache / "images").iterdir())) == 2


def test_sizes_are_brought_to_one(pets: Path) -> None:
    Image.fromarray(np.full((9, 5, 3), 9, np.uint8)).save(pets / "train" / "dog" / "0.png")
    with pytest.raises(InputError, match=r"train/dog/0.png has shape \(3, 9, 5\).*Give `size`"):
        image_folder(str(pets))
    data = image_folder(str(pets), size=4)
    assert data.train.stored.shape == (6, 3, 4, 4)
    assert (data.train.stored[3] == 9).all()


def test_the_middle_is_cropped_and_gray_has_one_channel() -> None:
    import io

    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = 100
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    assert (decode_image(file.getvalue(), "a.png", 4) == 100).all()
    assert decode_image(file.getvalue(), "a.png", gray=True).shape == (1, 4, 12)


def test_limit_draws_from_every_class(pets: Path) -> None:
    data = image_folder(str(pets), limit=5)
    assert (len(data.train), len(data.val), len(data.test)) == (5, 1, 1)
    assert set(data.train.targets.tolist()) == {0, 1}


def test_what_is_missing_is_named(pets: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nor an archive pats.tar.xz.*AUTOCOMPRESS_DATA"):
        image_folder(str(tmp_path / "pats"))
    (pets / "val").rename(pets / "valid")
    with pytest.raises(InputError, match="no folder 'val'; did you mean 'valid'"):
        image_folder(str(pets))
    (pets / "valid").rename(pets / "val")
    (pets / "val" / "dog").rename(pets / "val" / "dogs")
    with pytest.raises(InputError, match=r"has a class 'dogs' that `train` has not.*'dog'"):
        image_folder(str(pets))
    (pets / "val" / "dogs").rename(pets / "val" / "dog")
    for file in (pets / "test").rglob("*.png"):
        file.unlink()
    with pytest.raises(InputError, match="holds no images"):
        image_folder(str(pets))


def test_broken_files_are_named(pets: Path) -> None:
    (pets / "train" / "cat" / "2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"train/cat/2.png is not a readable image"):
        read_images(pets)
    pets.with_name("torn.tar.xz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="not readable"):
        read_images(pets.with_name("torn"))
    with tarfile.open(pets.with_name("half.tar"), "w") as tar:
        tar.add(pets / "train" / "dog", "half/train/dog")
    with pytest.raises(InputError, match="has no images under half/val/CLASS"):
        read_images(pets.with_name("half"))


def test_imagenet_folder_is_read_when_needed(pets: Path) -> None:
    from autocompress.workloads.imagenet import imagenet

    shutil.rmtree(pets / "test")
    data = imagenet(str(pets), size=6, crop=4)
    assert (len(data.train), len(data.val), len(data.test)) == (6, 2, 2)
    paths = data.train.preprocess.files
    both = [paths[i] for s in (data.val, data.test) for i in s.stored[:, 0].tolist()]
    assert sorted(both) == sorted(p for p in paths if p.startswith("val/"))
    for split in (data.train, data.val, data.test):
        pixels = split.preprocess.center(split.stored)
        assert pixels.shape == (len(split), 3, 4, 4)
        assert (pixels[torch.arange(len(split)), split.targets] == 200).all()
    assert data.augment is not None
    augmented = data.augment(data.train.stored, torch.Generator().manual_seed(0))
    assert augmented.shape == (6, 3, 4, 4)
    same = data.augment(data.train.stored, torch.Generator().manual_seed(0))
    assert torch.equal(augmented, same)
    assert data.train.prepare(augmented).dtype == torch.float32
    before = data.fingerprint
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(pets / "train" / "cat" / "0.png")
    assert imagenet(str(pets), size=6, crop=4).fingerprint != before
    with pytest.raises(InputError, match="There is no ImageNet folder"):
        imagenet(str(pets / "none"))
