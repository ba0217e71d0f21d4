"""What the values of a policy may be, for types and for the techniques' fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field

Pattern = Literal["2:4"]
WeightBits = Literal[2, 3, 4, 8, 16, 32]
WeightBlock = Literal[0, 16, 32, 64, 128]
ActivationBits = Literal[8, 16, 32]
ActivationScaling = Literal["static", "dynamic"]
Factorization = Literal["auto", "svd", "spatial", "tucker2"]
Presence = Literal["keep", "gone"]
Heads = Literal["fewer", "narrower"]
Features = Literal["hint", "attention"]

Share = Annotated[float, Field(ge=0, le=1)]
Removed = Annotated[float, Field(ge=0, lt=1)]
RankRatio = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(gt=0)]
Factor = Annotated[float, Field(ge=0)]

_ENDS = {"gt": "above", "ge": "at_least", "lt": "below", "le": "at_most"}


def ends(numbers: Any) -> dict[str, Any]:
    """The ends of a range of numbers, by the names that a technique's ``Field`` has for them."""
    found = get_args(numbers)[1].metadata
    return {name: getattr(end, e) for end in found for e, name in _ENDS.items() if hasattr(end, e)}
