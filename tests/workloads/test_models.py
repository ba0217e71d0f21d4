"""Ready-made networks against torchvision's counts, checkpoints, and students."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autocompress.errors import InputError
from autocompress.workloads.models import digits_resnet, load_weights, resnet20, resnet56, vgg16_bn
from autocompress.workloads.students import _STUDENTS, build_student


def params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_sizes_are_the_published_ones() -> None:
    """He et al. 2016, table 6: 0.27 and 0.85 million; VGG-16 by its plan."""
    assert params(resnet20()) == 269_722
    assert params(resnet56()) == 853_018
    from autocompress.recover._torchvision import torchvision

    reference = torchvision().models.vgg16_bn()
    convolutions = sum(p.numel() for p in reference.features.parameters())
    biases = sum(m.bias.numel() for m in reference.features if isinstance(m, nn.Conv2d))
    assert params(vgg16_bn().features) == convolutions - biases


def test_seeded_weights_are_the_same_in_any_state() -> None:
    first = digits_resnet(width=8)
    state = torch.get_rng_state()
    torch.rand(3)
    second, other = digits_resnet(width=8), digits_resnet(width=8, seed=1)
    assert torch.equal(first.conv1.weight, second.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    torch.set_rng_state(state)
    digits_resnet(width=8)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".nested.pt"])
def test_checkpoints_come_back(tmp_path: Path, suffix: str) -> None:
    source, target = digits_resnet(width=4, seed=1), digits_resnet(width=4, seed=2)
    path = tmp_path / f"weights{suffix}"
    state = {n: t.double() if t.is_floating_point() else t for n, t in source.state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state} if "nested" in suffix else state, path)
    loaded = load_weights(target, str(path))
    assert not loaded.training
    for name, tensor in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
        assert loaded.state_dict()[name].dtype == tensor.dtype


def test_a_checkpoint_of_another_architecture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match=r"no checkpoint at.*AUTOCOMPRESS_WEIGHTS"):
        load_weights(digits_resnet(width=4), str(path))

    state = digits_resnet(width=4).state_dict()
    renamed = {n.replace("layer2.0.conv1", "layer2.0.conv_1"): t for n, t in state.items()}
    save_file(renamed, path)
    with pytest.raises(InputError, match=r"'layer2.0.conv_1.weight'.*'layer2.0.conv1.weight'"):
        load_weights(digits_resnet(width=4), str(path))

    save_file(digits_resnet(width=8).state_dict(), path)
    with pytest.raises(InputError, match=r"'bn1.bias' has shape \(8,\), the model's \(4,\)"):
        load_weights(digits_resnet(width=4), str(path))

    del state["linear.bias"]
    save_file(state, path)
    with pytest.raises(InputError, match=r"'linear.bias' is not in it \(1 tensors"):
        load_weights(digits_resnet(width=4), str(path))

    path.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="not readable"):
        load_weights(digits_resnet(width=4), str(path))
    torn = tmp_path / "w.pt"
    torn.write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="not readable"):
        load_weights(digits_resnet(width=4), str(torn))


@pytest.mark.parametrize("name", sorted(_STUDENTS))
def test_every_student_works_at_every_width(name: str) -> None:
    shape = (16, 5) if name == "lstm" else (3, 16, 16)
    sizes = []
    for width in ("-w0.25", "", "-w1.5"):
        student = build_student(name + width, shape, 7)
        assert student(torch.zeros(2, *shape)).shape == (2, 7)
        sizes.append(params(student))
    assert sizes == sorted(set(sizes))
    again = build_student(name, shape, 7)
    first = next(build_student(name, shape, 7).parameters())
    assert torch.equal(first, next(again.parameters()))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet9", (3, 8, 8), "did you mean"),
        ("resnet8-w99", (3, 8, 8), "must lie in"),
        ("lstm", (3, 8, 8), "takes sequences"),
        ("vgg8", (8, 8), "takes images"),
        ("vgg11", (3, 4, 4), "at least 8 pixels"),
    ],
)
def test_students_that_do_not_fit_are_refused(
    name: str, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_student(name, shape, 10)
