"""What is done to one layer, and to a whole model: plain, immutable, hashable data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, get_args

from pydantic import BeforeValidator, ConfigDict, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError

from autocompress.errors import PolicyError, nearest
from autocompress.policy.field import Field
from autocompress.policy.flat import Folded, fold, only_folded
from autocompress.policy.registry import added_fields, builtin, no_field, techniques
from autocompress.policy.section import CONTRADICTION, STRICT, read_as
from autocompress.policy.values import (
    ActivationScaling,
    Factor,
    Factorization,
    Features,
    Heads,
    Presence,
    Share,
    Temperature,
    ends,
)


@dataclass(frozen=True, slots=True)
class LayerPolicy:
    """How one layer is compressed. The default changes nothing.

    Args:
        prune_ratio: fraction of the output channels removed, in [0, 1). Coupled layers share one.
        sparsity: fraction of the remaining weights set to zero, in [0, 1).
        pattern: ``"2:4"`` keeps the two largest of every four weights along the input; then
            ``sparsity`` must be 0.5 (it is set so when left at 0).
        weight_bits: 32 (float), 16 (half), 8, 4, 3 or 2 (integers, per-channel symmetric).
        weight_block: so many weights (16, 32, 64 or 128) along each row of a linear layer or
            attention share a scale; 0 is one scale per output channel. Only where weights have 4
            bits or fewer and activations stay float.
        activation_bits: 32 (float; with integer weights: weight-only), 16 (half), 8.
        activation_scaling: ``"static"`` (ranges from calibration) or ``"dynamic"`` (ranges taken
            at run time). Only means something where ``activation_bits`` is 8.
        rank_ratio: fraction of the break-even rank, in (0, 1]; at 1 the factorized layer costs
            what the dense one did. ``None``: not factorized.
        factorization: which factors a kernel larger than 1x1 gets (all else gets SVD): ``"svd"``,
            ``"spatial"`` or ``"tucker2"``; ``"auto"`` is whichever has the least error in the
            layer's outputs at this rank ratio, as the layer bank found. ``None`` is SVD.
        block: ``"gone"`` removes the layer with the whole residual block that it lies in, whose
            layers must all say so; what else the policy says is then set back to its default.
        heads: what a prune ratio takes of an attention: ``"fewer"`` heads, or all of them
            ``"narrower"``, where nothing but a product stands between their projections.
        more: fields of techniques that installed packages add, by name. They stand beside the
            others in files and in ``from_dict``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    prune_ratio: float = 0.0
    sparsity: float = 0.0
    pattern: str | None = None
    weight_bits: int = 32
    activation_bits: int = 32
    activation_scaling: ActivationScaling = "static"
    weight_block: int = 0
    rank_ratio: float | None = None
    factorization: Factorization | None = None
    block: Presence = "keep"
    heads: Heads = "fewer"
    more: Annotated[tuple[tuple[str, Any], ...], BeforeValidator(only_folded)] = ()
    identity: bool = field(init=False, compare=False, repr=False)
    """Whether this policy leaves its layer as it is; a search asks it of every layer."""
    absent: bool = field(init=False, compare=False, repr=False)
    """Whether it leaves no layer at all."""

    def __post_init__(self) -> None:
        known = builtin()
        if self.more:
            object.__setattr__(self, "more", self._changed_more())
            known = techniques()
        for technique in known:
            for name, value in technique.implied(self).items():
                object.__setattr__(self, name, value)
            technique.validate(self)
        gone = [technique for technique in known if technique.absent(self)]
        object.__setattr__(self, "absent", bool(gone))
        if gone:
            self._forget_all_but({f.name for technique in gone for f in technique.fields})
        object.__setattr__(self, "identity", not any(t.active(self) for t in known))

    def _forget_all_but(self, names: set[str]) -> None:
        """Set fields back to their default, so that policies of the same model are the same."""
        for name, default in _LAYER_DEFAULTS:
            if name not in names:
                object.__setattr__(self, name, default)
        kept = tuple((name, value) for name, value in self.more if name in names)
        object.__setattr__(self, "more", kept)

    def _changed_more(self) -> tuple[tuple[str, Any], ...]:
        """The fields of installed techniques that differ from their default, by name."""
        known = added_fields()
        for name, value in self.more:
            if name not in known:
                raise PolicyError(no_field(name))
            known[name].check(value)
        return tuple(sorted((n, v) for n, v in self.more if v != known[n].default))

    def value(self, name: str) -> Any:
        """One field, of whichever technique."""
        if name in OWN_FIELDS:
            return getattr(self, name)
        found = dict(self.more)
        return found[name] if name in found else added_fields()[name].default

    @property
    def integer(self) -> bool:
        """Whether the layer's arithmetic itself is promised to run on integers."""
        return self.activation_bits == 8

    def as_dict(self) -> dict[str, Any]:
        """The fields that differ from the default, in field order."""
        return dict(_changed_fields(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LayerPolicy:
        """Build from flat data; an unknown key is an error that names the nearest valid one."""
        folded = fold(values, OWN_FIELDS)
        for key in folded:
            if key not in OWN_FIELDS and not isinstance(folded[key], Folded):
                raise PolicyError(no_field(key))
        return cls(**folded)


@dataclass(frozen=True, slots=True)
class Distill:
    """Train the compressed model towards a teacher's outputs as well as the labels.

    Args:
        temperature: softens both distributions; above 0. High temperatures hurt at low bits, so
            ``None`` means 2, and 1 where a layer's weights have 4 bits or fewer.
        weight: share of the teacher's term in the loss, in [0, 1].
        features: ``None``, ``"hint"`` (projected features, Romero et al. 2015) or ``"attention"``
            (spatial attention maps, Zagoruyko and Komodakis 2017).
        feature_weight: factor of the feature term, at least 0.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    temperature: float | None = None
    weight: float = 0.5
    features: Features | None = None
    feature_weight: float = 1.0

    def __post_init__(self) -> None:
        for known in _DISTILL:
            known.check(getattr(self, known.name))


_DISTILL = (
    Field("temperature", None, null="the safe one", **ends(Temperature)),
    Field("weight", 0.5, **ends(Share)),
    Field("features", None, values=(None, *get_args(Features))),
    Field("feature_weight", 1.0, **ends(Factor)),
)


def _fold_each(layers: Any) -> Any:
    if layers is None:  # a key with nothing behind it
        return {}
    if not isinstance(layers, Mapping):
        return layers
    return {name: fold(values, OWN_FIELDS) for name, values in layers.items()}


def _with_place(values: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Let a mistake be told with the layer that it was made in; read what is the same once."""
    key = _key(values)
    if key is not None and key in _READ:
        return _READ[key]
    try:
        found = check(values)
    except PolicyError as error:
        raise PydanticCustomError(CONTRADICTION, "{said}", {"said": str(error)}) from None
    if key is not None and len(_READ) < _MOST_READ:
        _READ[key] = found
    return found


_PLAIN = frozenset({str, int, float, bool, type(None)})
_READ: dict[Any, Any] = {}
_MOST_READ = 10_000
"""A journal of thousands of trials holds hundreds of thousands of layer policies, most the same."""


def _key(values: Any) -> tuple[Any, ...] | None:
    """What a layer's plain values are known by; 1, 1.0 and ``True`` are not the same."""
    if not isinstance(values, dict):
        return None
    types = tuple(map(type, values.values()))
    return (types, *values.items()) if _PLAIN.issuperset(types) else None


@dataclass(frozen=True)
class Policy:
    """One compression policy for a whole model.

    Args:
        layers: layer name to what is done to it; layers left out stay as they are. The prune
            ratio of a coupled group is read from the group's first layer and must agree on all.
        distill: how fine-tuning is guided by the uncompressed model, if at all.
        student: name of another architecture that takes the model's place, or ``None``.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    layers: Annotated[
        Mapping[str, Annotated[LayerPolicy, WrapValidator(_with_place)]],
        BeforeValidator(_fold_each),
    ] = field(default_factory=dict)
    distill: Distill | None = None
    student: str | None = None

    def __post_init__(self) -> None:
        kept = {n: p for n, p in sorted(self.layers.items()) if not p.identity}
        object.__setattr__(self, "layers", MappingProxyType(kept))

    def __getitem__(self, layer: str) -> LayerPolicy:
        """The policy of one layer; the identity where nothing was said."""
        return self.layers.get(layer, _IDENTITY)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layers)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Policy, (dict(self.layers), self.distill, self.student))

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        # a search asks for an estimate of every policy: the digest takes six times as long
        return hash((tuple(self.layers.items()), self.distill, self.student))

    @property
    def identity(self) -> bool:
        """Whether the model stays as it is."""
        return not self.layers and self.student is None

    @property
    def repairable(self) -> bool:
        """Whether it removes weights, which reconstruction can make up for; bits alone do not."""
        each = self.layers.values()
        return any(t.removes and any(map(t.active, each)) for t in techniques())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, identity layers and defaults dropped; ``from_dict`` inverts it."""
        out: dict[str, Any] = {"layers": {n: p.as_dict() for n, p in self.layers.items()}}
        if self.distill is not None:
            out["distill"] = asdict(self.distill)
        if self.student is not None:
            out["student"] = self.student
        return out

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Policy:
        """Inverse of ``as_dict``."""
        for key in values:
            if key not in ("layers", "distill", "student"):
                raise PolicyError(
                    f"A policy has no {key!r}; {nearest(key, ('layers', 'distill', 'student'))}"
                )
        layers = {n: LayerPolicy.from_dict(p) for n, p in (values.get("layers") or {}).items()}
        distill = values.get("distill")
        return cls(
            layers, Distill(**distill) if distill is not None else None, values.get("student")
        )

    @classmethod
    def read(cls, data: Any, *, where: str) -> Policy:
        """Check plain data that someone wrote; ``where`` names it in error messages.

        Raises:
            InputError: an unknown key (the nearest valid one is named) or a value of no use.
        """
        return read_as(cls, data, where)

    @cached_property
    def digest(self) -> str:
        """sha256 of the canonical JSON: equal policies have equal digests. The cache key."""
        text = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def untrained(self) -> Policy:
        """The policy without distillation, which changes nothing before any training."""
        return self if self.distill is None else Policy(self.layers, None, self.student)

    @cached_property
    def untrained_digest(self) -> str:
        """The digest of the untrained policy."""
        return self.untrained.digest


@lru_cache(maxsize=4096)
def _changed_fields(policy: LayerPolicy) -> dict[str, Any]:
    """A search asks thousands of times for the same few layer policies."""
    found = ((name, getattr(policy, name), default) for name, default in _LAYER_DEFAULTS)
    own = {name: value for name, value, default in found if value != default}
    return {**own, **dict(policy.more)}


_NO_FIELDS = ("more", "identity", "absent")
OWN_FIELDS = tuple(f.name for f in fields(LayerPolicy) if f.name not in _NO_FIELDS)
"""The fields of our own techniques, in the order in which files hold them."""
_LAYER_DEFAULTS = tuple((f.name, f.default) for f in fields(LayerPolicy) if f.name in OWN_FIELDS)
_IDENTITY = LayerPolicy()
