"""A recipe found on one set of weights, applied to another of the same architecture.

python examples/other_weights.py
"""

from __future__ import annotations

from digits import searched, splits, trained

import autocompress as ac


def main() -> None:
    """The policy is kept; importance, calibration and every figure are taken again."""
    result = searched("runs/other_weights")
    recipe = result.best.recipe.save("recipe.yaml")
    other = trained(seed=1)
    small = ac.apply(recipe, other, splits())
    print(ac.export(small, "other.onnx"))
    kept, whole = (sum(p.numel() for p in m.parameters()) for m in (small, other))
    print(f"{kept / whole:.2f} of the parameters")
    same = ac.verify(recipe, trained(), splits())  # on the weights that it was found on
    print("holds what it claims:", same["ok"], same["reasons"])


if __name__ == "__main__":
    main()
