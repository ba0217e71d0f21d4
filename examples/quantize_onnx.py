"""Only an ONNX file, and bits alone: which layers of it may be 8-bit, measured.

pip install autocompress[onnx]
python examples/quantize_onnx.py
"""

from __future__ import annotations

import torch
from digits import splits, trained

import autocompress as ac


def main() -> None:
    """Nothing is pruned and nothing is trained."""
    example = torch.zeros(2, 1, 8, 8)
    torch.onnx.export(trained(), (example,), "whole.onnx", dynamic_shapes=({0: "batch"},))
    result = ac.search(
        "whole.onnx",
        splits(),
        space="quantize",
        budget="size<=0.5x",
        out="runs/quantize_onnx",
        search={"trials": 6},
        recovery={"epochs": 0},
    )
    found = result.best.trial.measurement
    print(f"{found.score:.1%} right, {found['size_bytes']:,.0f} bytes: {result.best.model_path}")


if __name__ == "__main__":
    main()
