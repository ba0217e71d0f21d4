"""Cascades of finished runs beside their best single members, and how often what is asked is kept.

Nothing is trained: members are rebuilt from the runs, whose folders keep their answers.

    python benchmarks/cascade.py runs/resnet56 runs/vgg16 [--json] [--quick]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from autocompress.cascade.bound import score
from autocompress.cascade.chain import Chain, Member
from autocompress.cascade.choose import Asked, choose, halves
from autocompress.cascade.options import best_options
from autocompress.errors import InputError
from autocompress.run.assembly import assemble
from autocompress.run.cascade_exits import logits_of, with_exits
from autocompress.run.cascade_members import RunMembers
from autocompress.run.cascading import cascade
from autocompress.run.study import read_study
from autocompress.track.folder import RunFolder
from autocompress.track.view import RunView

ASKED = (0.002, 0.005, 0.01)
"""Accuracy that may be lost, of the repeated splits."""


class Answers:
    """Logits of every member of a run on val and test, and the targets.

    Args:
        run: folder of the run.
        early_exits: let networks answer part-way, too.
    """

    def __init__(self, run: Path, early_exits: bool) -> None:
        folder = RunFolder.open(run)
        view, place = RunView.load(folder), folder.root / "cascade"
        parts = assemble(read_study(folder.read_study()), place)
        parts.evaluator.measurer.set_baseline(view.baseline)
        known = RunMembers(folder, view, parts, place)
        everything = np.arange(len(parts.data.val))
        self.known = known.judged(everything)
        if early_exits:
            self.known = with_exits(known, self.known, everything)
        self.left_out = known.left_out
        self.val_count = len(parts.data.val)
        self.base_ms = self.known[-1].latency_ms
        self.logits = [
            np.concatenate([logits_of(known, m, split) for split in ("val", "test")])
            for m in self.known
        ]
        self.targets = np.concatenate([known.targets(split) for split in ("val", "test")])

    def members(self, fitted_on: np.ndarray) -> list[Member]:
        """All of them, with temperatures fitted on some inputs; the uncompressed model last."""
        each = zip(self.known, self.logits, strict=True)
        return [m.fitted(logits, self.targets, fitted_on) for m, logits in each]


def beside_singles(answers: Answers) -> dict[str, Any]:
    """The best cascades by val alone, beside single members; all figures are those of test."""
    val = np.arange(answers.val_count)
    test = np.arange(answers.val_count, len(answers.targets))
    members = answers.members(val)
    seen, unseen = [m.on(val) for m in members], [m.on(test) for m in members]
    baseline = seen[-1].right
    options = best_options(seen, baseline, lambda losses, gains: gains - losses)
    found: dict[str, Any] = {}
    whole = [i for i, m in enumerate(members) if m.exit is None]
    for name, places in (("trials", whole[:-1]), ("all", whole)):
        best = max(places, key=lambda i: int(seen[i].right.sum()))
        good = int(seen[best].right.sum()) - int(baseline.sum())
        quick = next(o for o in options if o.score >= good)
        same = [o for o in options if o.latency_ms <= members[best].latency_ms]
        found[name] = {
            "best_single": single(unseen, best),
            "as_accurate": beside(quick.chain, unseen, best),
            "as_quick": beside(same[-1].chain, unseen, best),
        }
    fronts = [
        i
        for i, m in enumerate(seen)
        if m.exit is None
        and all(
            o.right.sum() < m.right.sum()
            for o in seen
            if o.exit is None and o.latency_ms < m.latency_ms
        )
    ]
    found["as_quick_as_each_on_the_front"] = [
        beside([o for o in options if o.latency_ms <= members[i].latency_ms][-1].chain, unseen, i)
        for i in fronts
    ]
    return found


def single(members: Sequence[Member], i: int) -> dict[str, Any]:
    """One member alone."""
    member = members[i]
    return {
        "trial": member.trial,
        "latency_ms": member.latency_ms,
        "accuracy": float(member.right.mean()),
    }


def beside(chain: Chain, members: Sequence[Member], i: int) -> dict[str, Any]:
    """A chain beside one member."""
    right = chain.right(members)
    return {
        "single": single(members, i),
        "members": [members[k].label for k in chain.members],
        "confidence": chain.confidence,
        "latency_ms": chain.mean_ms(members),
        "ratio": chain.mean_ms(members) / members[i].latency_ms,
        "accuracy": float(right.mean()),
        "gain_points": 100 * float(right.mean() - members[i].right.mean()),
    }


def resplit(answers: Answers, asked: Asked, splits: int) -> dict[str, Any]:
    """How often what is asked is kept, where val and test are drawn anew from both together.

    ``kept`` is told on test, whose own chance comes on top; ``kept_in_all`` on all that the second
    half of val was drawn from, of which the bound speaks.
    """
    rows = []
    for seed in range(splits):
        order = np.random.default_rng(seed).permutation(len(answers.targets))
        val, test = order[: answers.val_count], order[answers.val_count :]
        first, second = (val[half] for half in halves(len(val), seed))
        members = answers.members(first)
        baseline = members[-1].right
        try:
            chain = choose(members, baseline, first, second, asked).chain
        except InputError as error:
            rows.append({"refused": str(error)})
            continue
        rest = [m.on(test) for m in members]
        lost = float(baseline[test].mean() - chain.right(rest).mean())
        unseen = np.concatenate([second, test])  # that the second half was drawn from
        drawn_from = [m.on(unseen) for m in members]
        told = {
            "lost": lost,
            "ratio": chain.mean_ms(rest) / members[-1].latency_ms,
            "lost_in_all": float(baseline[unseen].mean() - chain.right(drawn_from).mean()),
            "ratio_in_all": chain.mean_ms(drawn_from) / members[-1].latency_ms,
        }
        rows.append(told)
    answered = [row for row in rows if "lost" in row]
    most, ms = asked.most_lost, asked.mean_ms
    kept: dict[str, int] = {}
    for where in ("", "_in_all"):
        if most is not None:
            each = [row[f"lost{where}"] <= most for row in answered]
        else:
            assert ms is not None  # one of the two is asked
            each = [row[f"ratio{where}"] * answers.base_ms <= ms for row in answered]
        kept[f"kept{where}"] = sum(each)
    return {
        "asked": {"most_lost": most, "mean_ms": ms},
        "splits": splits,
        "answered": len(answered),
        **kept,
        "mean_ratio": float(np.mean([r["ratio"] for r in answered])) if answered else None,
        "mean_lost_points": 100 * float(np.mean([r["lost"] for r in answered]))
        if answered
        else None,
        "rows": rows,
    }


def looked_through(answers: Answers) -> dict[str, Any]:
    """How long the search through all chains takes."""
    import time

    first, _ = halves(answers.val_count)
    members = [m.on(first) for m in answers.members(first)]
    begun = time.perf_counter()
    by_loss = partial(score, count=len(first), allowed=0.005)
    found = best_options(members, members[-1].right, by_loss)
    return {
        "members": len(members),
        "seconds": time.perf_counter() - begun,
        "options": len(found),
    }


def measured(run: Path, asked: Asked, early_exits: bool) -> dict[str, Any]:
    """The command's own answer, timed on the sequence of test inputs."""
    try:
        return cascade(str(run), asked, early_exits=early_exits)
    except InputError as error:
        return {"refused": str(error)}


def main() -> None:
    """Print the figures of some runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true", help="few splits, and nothing is timed")
    parser.add_argument("--splits", type=int, help="20, or 3 with --quick")
    parser.add_argument("--no-early-exits", action="store_true", help="whole members alone")
    args = parser.parse_args()
    found = {}
    for run in args.runs:
        exits = not args.no_early_exits
        answers = Answers(run, exits)
        splits = args.splits or (3 if args.quick else 20)
        half_ms = 0.5 * answers.base_ms
        asked = [*(Asked(most_lost=x) for x in ASKED), Asked(mean_ms=half_ms)]
        found[run.name] = {
            "search": looked_through(answers),
            "left_out": answers.left_out,
            **beside_singles(answers),
            "resplits": [resplit(answers, one, splits) for one in asked],
            "measured": {}
            if args.quick
            else {f"{x:g}": measured(run, Asked(x), exits) for x in ASKED},
        }
    if args.json:
        print(json.dumps(found))
        return
    for name, run in found.items():
        show(name, run)


def show(name: str, run: dict[str, Any]) -> None:
    """For people."""
    search = run["search"]
    print(f"{name}: {search['members']} members, looked through in {search['seconds']:.1f} s")
    for which in ("trials", "all"):
        one = run[which]["best_single"]
        print(f"  best single of {which}: {one}")
        for what in ("as_accurate", "as_quick"):
            pair = run[which][what]
            print(
                f"    {what}: {pair['members']} by {pair['confidence']}, "
                f"{pair['gain_points']:+.2f} points, {pair['ratio']:.3f} of its latency"
            )
    for pair in run["as_quick_as_each_on_the_front"]:
        print(
            f"  as quick as trial {pair['single']['trial']} ({pair['single']['latency_ms']:.3f} "
            f"ms, {pair['single']['accuracy']:.2%}): {pair['gain_points']:+.2f} points"
        )
    for split in run["resplits"]:
        print(
            f"  asked {split['asked']}: kept in {split['kept']} (on all that val was drawn from: "
            f"{split['kept_in_all']}) of {split['answered']} answered of "
            f"{split['splits']} splits; mean ratio {split['mean_ratio']}, lost "
            f"{split['mean_lost_points']} points"
        )
    for asked, one in run["measured"].items():
        if "refused" in one:
            print(f"  --min-accuracy {100 * float(asked):g}%: {one['refused']}")
            continue
        told = one["latency"]
        print(
            f"  --min-accuracy {100 * float(asked):g}%: {[s['members'] for s in one['stages']]}, "
            f"lost {100 * one['test']['lost']:.2f} points on test, kept {one['kept']}; "
            f"ratio {told['cascade']['ratio']:.3f}, p99 {told['cascade']['p99_ms']:.3f} ms beside "
            f"{told['uncompressed']['p99_ms']:.3f} ms"
        )


if __name__ == "__main__":
    main()
