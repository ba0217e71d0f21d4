"""From a recipe to a smaller module, trained further as one likes, and exported again.

python examples/train_further.py
"""

from __future__ import annotations

import torch
from digits import fit, searched, splits, trained

import autocompress as ac


def main() -> None:
    """Search, apply, train, export, and set the two files beside each other."""
    model, data = trained(), splits()
    result = searched("runs/train_further")
    small = ac.apply(result.best.recipe, model, data)  # an nn.Module with smaller tensors
    before = ac.export(small, "before.onnx")
    fit(small, *data["train"], epochs=2, lr=3e-4)  # its 8-bit layers stay 8-bit
    after = ac.export(small, "after.onnx")
    images, classes = data["val"]
    with torch.no_grad():
        right = (small(images).argmax(1) == classes).float().mean().item()
    print(f"{right:.1%} of val, {after.stat().st_size:,} bytes")
    print(ac.bench(after, before)["ratio"], "of the time of the file before")


if __name__ == "__main__":
    main()
