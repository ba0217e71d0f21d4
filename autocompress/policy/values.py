"""What the named values of a layer policy may be, for types and for the techniques' fields."""

from __future__ import annotations

from typing import Literal

Pattern = Literal["2:4"]
WeightBits = Literal[2, 3, 4, 8, 16, 32]
ActivationBits = Literal[8, 16, 32]
ActivationScaling = Literal["static", "dynamic"]
Factorization = Literal["auto", "svd", "spatial", "tucker2"]
Presence = Literal["keep", "gone"]
Heads = Literal["fewer", "narrower"]
