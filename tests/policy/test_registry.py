"""Techniques from elsewhere: found, refused with the package's name, and held to after training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import ClassVar

import pytest
from small_networks import data, make

from autocompress.build.bank import LayerBank
from autocompress.build.pipeline import Pipeline
from autocompress.errors import InputError, PolicyError
from autocompress.measure import gate
from autocompress.model.inventory import take_inventory
from autocompress.policy import registry
from autocompress.policy.policy import LayerPolicy, Policy
from autocompress.policy.recovery import Schedule
from autocompress.policy.registry import builtin, techniques
from autocompress.policy.settings import CompressionSettings
from autocompress.policy.space_config import SpaceConfig
from autocompress.policy.technique import Field, Technique
from autocompress.report.html import write_report
from autocompress.results.trial import Phase
from autocompress.targets import get_target
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

    def problems(self, nodes, policies):  # type: ignore[no-untyped-def]  # as of Technique
        missing = [name for name, policy in policies.items() if self.active(policy)]
        return [f"no kernel of signs in {', '.join(missing)}"] if missing else []


class Takes(Signs):
    """A field that another technique has."""

    name = "takes"
    fields = (Field("prune_ratio", 0.0, at_least=0, below=1),)
    knob = "takes"


class Breaks(Technique):
    """Cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("on purpose")


def _clear() -> None:
    for cached in (registry.added, registry.in_order, registry.added_fields, registry.field_names):
        cached.cache_clear()


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Offer]:
    """Lets packages offer classes of this file, by name."""

    def found(*names: str) -> None:
        points = []
        for name in names:
            point = EntryPoint(name.lower(), f"somewhere:{name}", registry.GROUP)
            points.append(point)
        kinds = {name.lower(): globals().get(name, 5) for name in names}
        load = EntryPoint.load  # what other packages offer is loaded as ever
        monkeypatch.setattr(
            EntryPoint,
            "load",
            lambda point: kinds[point.name] if point.name in kinds else load(point),
        )
        monkeypatch.setattr(registry, "entry_points", lambda group: points)
        _clear()

    yield found
    monkeypatch.undo()
    _clear()


def test_ours_are_described_as_the_policy_declares_them() -> None:
    fields = {field.name: field.default for t in builtin() for field in t.fields}
    plain = LayerPolicy()
    assert {name: getattr(plain, name) for name in fields} == fields
    declared = {f.name for f in dataclasses.fields(LayerPolicy)} - {"more", "identity"}
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
    assert gate.check_promise(get_target("onnxruntime"), Profile((), 1.0), built) == [
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
