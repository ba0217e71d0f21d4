"""Techniques from elsewhere: found, refused with the package's name, and held to after training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from offered import Narrow, offering
from small_networks import data, example, make

from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline
from autocompress.errors import InputError, PolicyError
from autocompress.estimate.latency_features import LayerPlan
from autocompress.estimate.latency_model import choose_variants
from autocompress.measure import gate
from autocompress.model.inventory import take_inventory
from autocompress.model.kernels import kernel_precision
from autocompress.model.shapes import resolver
from autocompress.policy import registry
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.registry import builtin, techniques
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import Rule, SpaceConfig
from autocompress.policy.technique import Field, Technique
from autocompress.report.html import write_report
from autocompress.results.trial import Phase
from autocompress.run import profile
from autocompress.run.assembly import assemble
from autocompress.run.study import StudyConfig
from autocompress.targets import available_targets, get_target
from autocompress.targets.base import Profile
from autocompress.techniques.stitching import Stitching
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView, policy_summary

Offer = Callable[..., None]
MakeRun = Callable[..., RunFolder]


class Signs(Technique):
    """Weights become their sign times one number per layer."""

    name = "signs"
    fields: ClassVar[tuple[Field, ...]] = (
        Field("sign_only", False, "whether only the signs stay.", values=(False, True)),
        Field("sign_scale", 0.5, "size of all weights.", above=0, at_most=2),
    )
    knob = "signs"
    projects = True

    def levels(self, rule, layer):  # type: ignore[no-untyped-def]  # as of Technique
        (scale,) = rule.listed("sign_scale")
        return [
            {"sign_only": s, "sign_scale": scale if s else 0.5} for s in rule.listed("sign_only")
        ]

    def apply(self, work: Stitching) -> None:
        for _, (module, policy) in work.weighted(self):
            module.weight.copy_(module.weight.sign() * policy.value("sign_scale"))

    def problems(self, shown: gate.Shown) -> list[str]:
        missing = [name for name, policy in shown.policies.items() if self.active(policy)]
        return [f"no kernel of signs in {', '.join(missing)}"] if missing else []


class Halves(Technique):
    """Layers compute in halves."""

    name = "halves"
    fields: ClassVar[tuple[Field, ...]] = (Field("halved", False, values=(False, True)),)
    knob = "halves"

    def timed_levels(self, count):  # type: ignore[no-untyped-def]  # as of Technique
        return range(count)

    def arithmetic(self, policy):  # type: ignore[no-untyped-def]  # as of Technique
        return "fp16"


class Takes(Signs):
    """A field that another technique has."""

    name = "takes"
    fields = (Field("prune_ratio", 0.0, at_least=0, below=1),)
    knob = "takes"


class Breaks(Technique):
    """Cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("on purpose")


def test_no_package_takes_a_word_of_rules_and_policies() -> None:
    own = {word for technique in registry.builtin() for word in registry._words(technique)}
    classes = (Policy, LayerPolicy)
    words = {*Rule.model_fields, *(f.name for kind in classes for f in dataclasses.fields(kind))}
    assert words - own <= registry._RESERVED


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Offer]:
    """Lets packages offer classes of this file, and `Narrow`, by name."""
    known = {**globals(), "Narrow": Narrow}

    with offering(monkeypatch) as made:
        yield lambda *names: made(*((name, known.get(name, 5)) for name in names))


class Named(Technique):
    """Names a start as something else does."""

    name = "named"
    knob = "named"
    fields = (Field("named", 0, values=(0, 1)),)
    start = "uniform"

    def named_starts(self, levels: Sequence[Mapping[str, Any]]) -> Mapping[str, Mapping[str, Any]]:
        return {self.start: {"named": 1}}


@pytest.mark.parametrize("name", ["uniform", "random", "student", "int8"])
def test_names_of_starts_are_those_of_one_technique(
    name: str, offer: Offer, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer("Named")
    monkeypatch.setattr(Named, "start", name)
    levels = [{"named": 1}, {"weight_bits": 8, "activation_bits": 8}]
    with pytest.raises(InputError, match=f"'named' names a start '{name}'"):
        registry.named_starts(levels)
    monkeypatch.setattr(Named, "start", "own")
    assert list(registry.named_starts(levels)) == ["int8", "own"]
    assert list(registry.named_starts(levels[1:])) == ["int8"]


def test_ours_are_described_as_the_policy_declares_them() -> None:
    fields = {field.name: field.default for t in builtin() for field in t.fields}
    plain = LayerPolicy()
    assert {name: getattr(plain, name) for name in fields} == fields
    declared = {f.name for f in dataclasses.fields(LayerPolicy)} - {"more", "identity", "absent"}
    assert set(fields) == declared
    assert declared <= set(SpaceConfig.read({"rules": [{}]}).rules[0].model_dump())


def test_fields_from_elsewhere_stand_flat(offer: Offer) -> None:
    offer("Signs")
    assert techniques()[-1].name == "signs"
    policy = LayerPolicy.from_dict({"prune_ratio": 0.5, "sign_only": True, "sign_scale": 1})
    assert policy.as_dict() == {"prune_ratio": 0.5, "sign_only": True, "sign_scale": 1}
    assert policy == LayerPolicy(0.5, more=(("sign_scale", 1), ("sign_only", True)))
    assert LayerPolicy.from_dict({"sign_only": False, "sign_scale": 0.5}) == LayerPolicy()
    assert LayerPolicy.from_dict({"sign_scale": 1}).identity
    for wrong in ({"sign_only": 1}, {"sign_scale": 0}, {"sign_scale": "1"}, {"sign_scale": None}):
        (name,) = wrong
        with pytest.raises(PolicyError, match=f"`{name}` must be "):
            LayerPolicy.from_dict(wrong)
        with pytest.raises(InputError, match=f"`{name}` must be "):
            SpaceConfig.read({"rules": [wrong]})


def test_the_nearest_field_is_named_whoever_has_it(offer: Offer) -> None:
    offer("Signs")
    with pytest.raises(PolicyError, match="did you mean 'sign_only'"):
        LayerPolicy.from_dict({"sign_onli": True})
    with pytest.raises(InputError, match=r"layers.a.sign_onli'; did you mean 'sign_only'"):
        Policy.read({"layers": {"a": {"sign_onli": True}}}, where="x")
    with pytest.raises(InputError, match=r"rules.0.sign_onli'; did you mean 'sign_only'"):
        SpaceConfig.read({"rules": [{"sign_onli": True}]})


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("Takes",), r"use the name 'prune_ratio', one of them from .*somewhere:Takes"),
        (("Signs", "Signs"), "use the name 'sign_only'"),
        (("Breaks",), r"'breaks' of .*somewhere:Breaks.*RuntimeError: on purpose"),
        (("Nothing",), "'nothing' .*cannot be loaded"),
        (("Technique",), "at least one field"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(
    offer: Offer, names: tuple[str, ...], says: str
) -> None:
    offer(*names)
    with pytest.raises(InputError, match=says):
        techniques()
    assert LayerPolicy(prune_ratio=0.5).prune_ratio == 0.5  # ours need nobody else


def test_weights_are_brought_back_after_reconstruction_and_training(offer: Offer) -> None:
    offer("Signs")
    model, found = make("plain"), data("plain")
    inventory = take_inventory(model, found.train.inputs(1))
    settings = CompressionSettings(calibration_images=32, sequential_images=32)
    bank = LayerBank.build(model, inventory, found.train, settings)
    pipeline = Pipeline(model, found, inventory, bank, settings, Schedule(batch_size=16, lr=0.1))
    signs = LayerPolicy.from_dict({"sign_only": True, "sign_scale": 0.25})
    policy = Policy({"conv1": LayerPolicy(prune_ratio=0.5), "conv2": signs, "fc1": signs})
    for epochs in (0.0, 1.0):
        built = pipeline.build(policy, Phase("recover", epochs, 1))
        for name in ("conv2", "fc1"):
            weight = built.module.get_submodule(name).weight
            assert weight.abs().unique().tolist() == [0.25]
    assert list(gate.inspect(get_target("onnxruntime"), Profile((), 1.0), built).problems) == [
        "no kernel of signs in conv2, fc1"
    ]


def test_a_finished_run_tells_it(offer: Offer, tmp_path: Path, make_run: MakeRun) -> None:
    offer("Signs")
    folder = make_run(tmp_path / "run", 20)
    trials = folder.root / "trials.jsonl"
    trials.write_text(trials.read_text().replace('"rank_ratio":', '"sign_only":true,"rank_ratio":'))
    view = RunView.load(folder)
    found = [policy_summary(t.policy, view.layer_names) for t in view.trials]
    shares = [float(one["signs_share"]) for one in found]
    assert any(shares)
    for one, share in zip(found, shares, strict=True):
        assert ("signs" in str(one["method"]).split(" + ")) == (share > 0)
    page = write_report(folder).read_text()
    assert "signs in " in page
    assert "sign_only True" in page


def test_shapes_kernels_and_timed_models_follow_it(offer: Offer) -> None:
    """Every width and precision of the space, against its policies one by one."""
    offer("Narrow", "Halves")
    inventory = take_inventory(make("plain"), example("plain"))
    ours = {"prune_ratio": [0, 0.5]}
    rule = {"match": "*", "most_channels": [0, 12, 4], "halved": [False, True], **ours}
    space = SpaceConfig.read({"rules": [rule]}).bind(inventory)
    settings = CompressionSettings()
    plan, shapes = LayerPlan(inventory, settings), resolver(inventory, settings)
    narrow = LayerPolicy.from_dict({"most_channels": 4})
    (group,) = (g for g in inventory.channel_groups if g.producers[0] == "conv1")
    kept = shapes.kept(Policy(dict.fromkeys(group.producers, narrow)))
    assert kept[group.name] == 4 < group.channels
    assert kernel_precision(LayerPolicy.from_dict({"halved": True})) == "fp16"
    sizes = [range(len(choice.levels)) for choice in space.choices]
    every = [space.decode(levels) for levels in islice(product(*sizes), 5000)]
    assert {k.precision for k in plan.space_kernels(space)} == {"fp32", "fp16"}
    assert set(plan.kernels(every)) <= set(plan.space_kernels(space))
    variants = [v["conv1"] for v in choose_variants(space, 8)]
    assert any(p.value("most_channels") == 4 and p.value("halved") for p in variants)


def test_a_technique_without_timed_levels_is_left_out_of_latency_tables(offer: Offer) -> None:
    offer("Signs")
    inventory = take_inventory(make("plain"), example("plain"))
    plan = LayerPlan(inventory, CompressionSettings())
    rules = [{"match": "*", "prune_ratio": [0, 0.5]}]
    plain = SpaceConfig.read({"rules": rules}).bind(inventory)
    both = SpaceConfig.read({"rules": [{**rules[0], "sign_only": [False, True]}]}).bind(inventory)
    assert plan.space_kernels(both) == plan.space_kernels(plain)
    assert all(
        not p.value("sign_only") for v in choose_variants(both, 12) for p in v.layers.values()
    )


@pytest.mark.parametrize("count", [0, 1, 3, 300])
def test_what_is_done_to_few_layers_does_not_read_as_nothing(count: int) -> None:
    policies = [
        LayerPolicy(prune_ratio=0.5, sparsity=0.5, rank_ratio=0.5, weight_bits=8, activation_bits=8)
    ] * count
    policies += [LayerPolicy()] * (300 - count)
    words = " + ".join(word for t in techniques() for word in t.words(policies))
    told = [x for t in techniques() for x in t.told({"method": words, **t.summary(policies)})]
    assert len(told) >= 4 * (count > 0)
    assert not any("0%" in text.replace("100%", "").replace("50%", "") for text in told)
    if count == 1:
        assert "prune under 1%" in told


def test_a_target_that_it_cannot_use_is_refused_and_one_that_gains_nothing_is_told(
    offer: Offer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    offer("Narrow")
    found = {row.runtime: row.no_gain.get("narrow") for row in available_targets()}
    assert found["openvino"] == "for no reason"
    assert found["onnxruntime"] is None
    study = StudyConfig.read(
        {
            "name": "x",
            "model": {"factory": "small_networks:make", "args": {"name": "plain"}},
            "data": {"factory": "small_networks:data", "args": {"name": "plain"}},
            "space": {"rules": [{"most_channels": [0, 4], "sparsity": [0, 0.5]}]},
        }
    )
    assemble(study, tmp_path)
    (warned,) = (
        r.getMessage()
        for r in caplog.records
        if r.name.startswith("autocompress") and r.levelname == "WARNING"
    )
    assert warned.startswith("onnxruntime gains nothing by sparse: ")
    assert "`prune_ratio`" in warned
    assert "Runtimes here" not in warned  # none skips zeros
    refused = r"do not open in torch\. Runtimes here that do: onnxruntime"
    with pytest.raises(InputError, match=refused):
        assemble(study.changed(target={"runtime": "torch"}), tmp_path)


def test_profile_tries_it_on_layers_or_on_their_groups(offer: Offer) -> None:
    offer("Narrow", "Signs")
    inventory = take_inventory(make("residual"), example("residual"))
    settings = CompressionSettings(prune_residual=False)
    parts = SimpleNamespace(inventory=inventory, study=SimpleNamespace(settings=settings))
    for layer in inventory.layers:
        found = dict(profile._probes(parts, layer.name))  # type: ignore[arg-type]  # what it reads
        group = inventory.groups_by_name.get(layer.out_group or "")
        free = group is not None and not group.residual
        wanted = {"int8", "sign_only=True"} | (
            {"prune_ratio=0.5", "most_channels=4"} if free else set()
        )
        block = next((b for b in inventory.blocks if b.name == layer.name), None)
        if block is not None:  # told once, with its first layer
            wanted.add("block=gone")
            assert set(found["block=gone"]) == set(block.layers)
        assert set(found) == wanted
        if free and group is not None:
            assert set(found["most_channels=4"]) == set(group.producers)
        assert set(found["sign_only=True"]) == {layer.name}
