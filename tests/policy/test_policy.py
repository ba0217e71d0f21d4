"""Policies as values: canonical, hashable, and impossible to build wrong."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import InputError, PolicyError
from autocompress.policy.policy import Distill, LayerPolicy, Policy

layer_policies = st.builds(
    LayerPolicy,
    prune_ratio=st.floats(0, 0.99),
    sparsity=st.floats(0, 0.99),
    weight_bits=st.sampled_from([2, 4, 8]),
    activation_bits=st.sampled_from([8, 32]),
    rank_ratio=st.none() | st.floats(0.01, 1.0),
)
policies = st.builds(
    Policy,
    st.dictionaries(st.text("abc.1", min_size=1, max_size=6), layer_policies, max_size=5),
    st.none() | st.just(Distill(temperature=4.0)),
)


@given(policies)
def test_plain_data_and_pickle_give_the_same_policy_back(policy: Policy) -> None:
    for again in (Policy.from_dict(policy.as_dict()), pickle.loads(pickle.dumps(policy))):
        assert again == policy
        assert again.digest == policy.digest


@given(policies)
def test_order_and_identity_layers_do_not_change_the_digest(policy: Policy) -> None:
    shuffled = dict(reversed(list(policy.layers.items())))
    shuffled["left.alone"] = LayerPolicy()
    assert Policy(shuffled, policy.distill).digest == policy.digest


@given(policies, policies)
def test_equal_policies_are_one_key(policy: Policy, other: Policy) -> None:
    shuffled = dict(reversed(list(policy.layers.items())))
    shuffled["left.alone"] = LayerPolicy()
    assert len({policy, Policy(shuffled, policy.distill)}) == 1
    assert len({policy, other}) == len({policy.digest, other.digest})
    assert len({policy.untrained, other.untrained}) == len(
        {policy.untrained_digest, other.untrained_digest}
    )


def test_a_digest_is_known_for_ever() -> None:
    """Recipes and journals written by earlier versions must keep matching."""
    policy = Policy({"conv1": LayerPolicy(prune_ratio=0.5, weight_bits=8, activation_bits=8)})
    # sha256 of {"layers":{"conv1":{"activation_bits":8,"prune_ratio":0.5,"weight_bits":8}}}
    import hashlib

    text = '{"layers":{"conv1":{"activation_bits":8,"prune_ratio":0.5,"weight_bits":8}}}'
    assert policy.digest == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("bad", "names"),
    [
        ({"prune_ratio": 1.0}, "prune_ratio"),
        ({"prune_ratio": -0.1}, "prune_ratio"),
        ({"rank_ratio": 1.5}, "rank_ratio"),
        ({"rank_ratio": 0.0}, "rank_ratio"),
        ({"weight_bits": 5}, "weight_bits"),
        ({"weight_bits": 32, "activation_bits": 8}, "weight_bits"),
        ({"weight_bits": 16, "activation_bits": 32}, "activation_bits"),
        ({"pattern": "1:4"}, "pattern"),
        ({"pattern": "2:4", "sparsity": 0.7}, "sparsity"),
        ({"sparsity": float("nan")}, "sparsity"),
    ],
)
def test_invalid_states_cannot_be_built(bad: dict[str, object], names: str) -> None:
    with pytest.raises(PolicyError, match=names):
        LayerPolicy(**bad)  # type: ignore[arg-type]  # wrong on purpose


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(PolicyError, match="prune_ratio"):
        LayerPolicy.from_dict({"prune_ration": 0.5})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"temperature": 0.0}, "`temperature` must be above 0, or null"),
        ({"weight": 1.5}, r"`weight` must be in \[0, 1\], got 1.5"),
        ({"features": "hints"}, "`features` must be one of null, hint, attention"),
        ({"feature_weight": -1.0}, "`feature_weight` must be at least 0, got -1.0"),
    ],
)
def test_distillation_refuses_what_no_training_can_use(values: dict[str, Any], says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        Distill(**values)


def test_errors_survive_pickling() -> None:
    with pytest.raises(PolicyError) as caught:
        LayerPolicy(prune_ratio=2)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert type(again) is PolicyError


def test_distillation_changes_nothing_before_training() -> None:
    plain = Policy({"a": LayerPolicy(prune_ratio=0.5)})
    distilled = Policy(plain.layers, Distill())
    assert plain.digest != distilled.digest
    assert plain.untrained_digest == distilled.untrained_digest


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"layers": {"conv1": {"absent": True}}}, LayerPolicy),
        ({"layers": {"conv1": {"identity": True}}}, LayerPolicy),
        ({"layers": {"conv1": {"more": []}}}, LayerPolicy),
        ({"__pydantic_config__": {}}, Policy),
        ({"zzz": 1}, Policy),
        ({"distill": {"zzz": 1}}, Distill),
    ],
)
def test_an_unknown_key_is_told_only_what_may_be_written(data: Any, kind: type) -> None:
    with pytest.raises(InputError) as caught:
        Policy.read(data, where="policy.yaml")
    told = set(re.findall(r"[\w]+", str(caught.value).partition(";")[2]))
    inner = {name for name in dir(kind) if name.startswith("_")} | {"identity", "absent", "more"}
    assert not told & inner
