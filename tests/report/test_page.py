"""What people see of the report in a real browser: the budget moves, and everything follows."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import keep

from autocompress.policy.budget import Budget, Limit
from autocompress.report.html import write_report
from autocompress.results.difference import difference, hits_of
from autocompress.results.trial import Phase, Trial
from autocompress.track.folder import RunFolder
from autocompress.track.journal import Journal
from autocompress.track.view import RunView

MakeRun = Callable[..., RunFolder]
NASTY = "</script><img src=x onerror=alert(1)><b>x</b>"


def numbers(page: Any) -> list[int]:
    return [int(x) for x in page.locator("#trials td:first-child button").all_inner_texts()]


def test_the_answer_follows_the_budget(opened: Callable[..., Any], run: RunFolder) -> None:
    """Against what Python decides of the same trials at the same limit."""
    page, view = opened(write_report(run)), RunView.load(run)
    keep(page, "report")
    seen = set()
    costs = sorted(t.measurement["latency_ms"] for t in view.compared if t.measurement)
    for bound in (None, *(1.0001 * cost for cost in costs[::6]), 0.999 * costs[0]):
        if bound is not None:
            page.evaluate(f"state.limits = [{{metric: 'latency_ms', bound: {bound}}}]; update()")
            view = view.under(Budget(Limit("latency_ms", bound)))
        assert numbers(page) == [t.number for t in view.front]
        text = page.locator("#answer .headline").inner_text()
        if view.best is None:
            assert text == "Nothing that was measured meets this budget."
            continue
        assert text.startswith(f"Answer: trial {view.best.number}, accuracy ")
        commands = page.locator("#answer pre").all_inner_texts()
        assert commands[0].endswith(f" --pick {view.best.number} -o recipe.yaml")
        told = difference(view.best.measurement, view.baseline)  # type: ignore[arg-type]  # measured
        assert told.paired
        first = page.locator("#answer li").first.inner_text()
        assert first.startswith(f"Against the uncompressed model: {told}".removesuffix(" points"))
        seen.add(view.best.number)
    assert len(seen) > 2


def test_a_run_without_a_trial_has_a_page(
    opened: Callable[..., Any], tmp_path: Path, make_run: MakeRun
) -> None:
    folder = make_run(tmp_path / "empty", 4)
    folder.trials.write_text("")
    page = opened(write_report(folder))
    assert numbers(page) == []


def test_members_that_cannot_be_told_apart_are_level(
    opened: Callable[..., Any], run: RunFolder
) -> None:
    page, view = opened(write_report(run)), RunView.load(run)
    told = page.evaluate(
        "[...new Set(groups.values())].map(g => [g.leader.number, g.members.map(t => t.number)])"
    )
    assert sorted(n for _, group in told for n in group) == sorted(t.number for t in view.front)
    leaders = [leader for leader, _ in told]

    def apart(a: int, b: int) -> bool:
        first, second = (view.by_number[n].measurement for n in (a, b))
        assert first is not None
        assert second is not None
        gap = difference(first, second)
        return abs(gap.points) > 2 * gap.stderr

    assert not any(apart(leader, n) for leader, group in told for n in group)
    assert all(apart(a, b) for a, b in combinations(leaders, 2))


def test_mouse_and_keyboard_move_the_line(opened: Callable[..., Any], run: RunFolder) -> None:
    page = opened(write_report(run))
    line = page.locator("#handle")
    before, at = line.get_attribute("aria-valuetext"), line.bounding_box()
    line.focus()
    for _ in range(3):
        page.keyboard.press("PageDown")
    page.wait_for_function(f"handle.getAttribute('aria-valuetext') !== {before!r}")
    page.wait_for_function(f"handle.getBoundingClientRect().left < {at['x'] - 50}")
    assert page.get_by_role("button", name="the study's budget").is_visible()
    page.keyboard.press("End")
    page.wait_for_function("handle.getAttribute('aria-valuetext').startsWith('no limit')")
    now = line.bounding_box()
    page.mouse.move(now["x"] + 14, now["y"] + 200)
    page.mouse.down()
    page.mouse.move(at["x"] + 14, at["y"] + 200)
    page.mouse.up()
    page.wait_for_function(f"Math.abs(handle.getBoundingClientRect().left - {at['x']}) < 2")


def test_brushing_picking_and_sorting(opened: Callable[..., Any], run: RunFolder) -> None:
    page, view = opened(write_report(run)), RunView.load(run)
    box = page.locator("#pareto .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + box["height"] - 2, steps=4)
    page.mouse.up()
    page.wait_for_selector("text=/brushed/")
    middle = page.evaluate("(([low, high]) => (low + high) / 2)(stage._fullLayout.xaxis.range)")
    low, high = page.evaluate("stage._fullLayout.yaxis.range")
    wanted = {
        t.number
        for t in view.compared
        if t.measurement
        and t.measurement["latency_ms"] < middle
        and low < 100 * t.measurement.score < high
    }
    assert set(numbers(page)) == wanted
    page.get_by_role("button", name=re.compile("^accuracy, val")).click()
    page.wait_for_function("document.activeElement.textContent.startsWith('accuracy, val')")
    scores = [view.by_number[n].measurement.score for n in numbers(page)]  # type: ignore[union-attr]  # measured
    assert scores == sorted(scores)
    worst = numbers(page)[0]
    page.get_by_role("button", name=f"pick trial {worst}", exact=True).click()
    assert page.locator("#answer .headline").inner_text().startswith(f"Picked: trial {worst},")
    assert f"--pick {worst} " in page.locator("#answer pre").first.inner_text()
    page.evaluate("navigator.clipboard.writeText = async text => { window.copied = text }")
    page.locator("#answer button", has_text="copy").first.click()
    assert page.evaluate("window.copied") == page.locator("#answer pre").first.inner_text()


def test_two_trials_show_the_layers_that_differ(opened: Callable[..., Any], run: RunFolder) -> None:
    page, view = opened(write_report(run)), RunView.load(run)
    first, second = view.front.trials[0], view.front.trials[-1]
    page.select_option("#first", str(first.number))
    page.select_option("#second", str(second.number))
    shown = set(page.locator("#pair td.name").all_inner_texts())
    assert shown == {n for n in view.layer_names if first.policy[n] != second.policy[n]}
    gap = difference(first.measurement, second.measurement)  # type: ignore[arg-type]  # measured
    assert str(gap).removesuffix(" points") in page.locator("#pairtold").inner_text()
    heat = page.locator("#heat td.name").all_inner_texts()
    assert heat == list(view.layer_names)
    page.locator("#heat th button").nth(1).click()  # by what the cheapest member keeps
    heat = page.locator("#heat td.name").all_inner_texts()
    ratios = [first.policy[name].prune_ratio for name in heat]
    assert sorted(heat) == sorted(view.layer_names)
    assert ratios == sorted(ratios, reverse=True)
    assert len(set(ratios)) > 2


def test_differences_of_layers_are_told_with_time_and_divergence(
    opened: Callable[..., Any], run: RunFolder
) -> None:
    view = RunView.load(run)
    first, second, other = view.front.trials[0], view.front.trials[-1], view.front.trials[1]
    layers, n = list(view.layer_names), len(view.layer_names)
    alone = {
        "layers": layers,
        "table": [[-0.01 * i, 0.002 * i] for i in range(2 * n)],
        "trials": {str(first.number): [*range(n)], str(second.number): [*range(n, 2 * n)]},
    }
    run.write_front({**run.read_front(), "alone": alone})
    page = opened(write_report(run))
    page.select_option("#first", str(first.number))
    page.select_option("#second", str(second.number))
    differ = [x for x in layers if first.policy[x] != second.policy[x]]
    cells = page.locator("#pair tr").nth(1).locator("td").all_inner_texts()
    assert cells[:3] == [differ[0], f"+{0.01 * n:.2g} ms", f"-{0.002 * n:.2g}"]
    said = page.locator("#pairsum").inner_text()
    assert "estimates" in said
    assert f"add up to +{0.01 * n * len(differ):.2g} ms" in said
    page.select_option("#second", "null")  # the uncompressed model changes nothing
    cells = page.locator("#pair tr").nth(2).locator("td").all_inner_texts()
    assert cells[1] == f"-{0.01 * layers.index(cells[0]):.2g} ms"
    page.select_option("#second", str(other.number))
    assert page.locator("#pairsum").inner_text() == "", "nothing is known of that one"


def test_how_the_study_went_is_told(opened: Callable[..., Any], run: RunFolder) -> None:
    page, view = opened(write_report(run)), RunView.load(run)
    told = [
        (t.measurement["latency_ms"], t.measurement.context["expected"])
        for t in view.compared
        if t.measurement and t.phase.kind == "search"
    ]
    inside = sum(abs(ms - e["latency_ms"]) <= 1.96 * e["sigma_ms"] for ms, e in told)
    assert 0 < inside < len(told)
    said = page.locator("#coverage").inner_text()
    assert f"the 95 % interval holds {inside} of them" in said
    assert f"at the median of {len(told)} trials" in said
    cells = page.locator("#origins td").all_inner_texts()
    counts = {cells[i]: (int(cells[i + 1]), int(cells[i + 2])) for i in range(0, len(cells), 6)}
    assert counts == view.origins()
    for plot in ("growth", "expected", "recovered"):
        page.locator(f"#{plot}").scroll_into_view_if_needed()
        page.wait_for_selector(f"#{plot} .main-svg")


@pytest.mark.parametrize("library", ["", '<script type="text/plain" id="library">0;</script>'])
def test_text_and_tables_do_not_wait_for_plots(
    opened: Callable[..., Any], run: RunFolder, library: str
) -> None:
    """Nor are they lost where the library has come, and a browser cannot load it."""
    path = write_report(run)
    text = path.read_text()
    begin = text.index('<script type="text/plain" id="library">')
    end = text.index("</script>", begin)
    path.write_text(text[:begin] + library + text[end + len("</script>") :])
    page = opened(path, plots=False)
    assert numbers(page) == [t.number for t in RunView.load(run).front]
    assert page.locator("#answer .headline").inner_text().startswith("Answer: trial ")
    assert page.locator("#heat td.name").count() > 0
    assert page.locator(".main-svg").count() == 0
    # the front is sketched: its dots lie as its costs and its quality do
    view = RunView.load(run)
    dots = page.eval_on_selector_all(
        "#pareto .sketch circle[r='5']",
        "all => all.map(c => [c.cx, c.cy].map(a => a.baseVal.value))",
    )
    told = [(t.measurement["latency_ms"], t.measurement["accuracy"]) for t in view.front]
    for drawn, wanted in zip(np.transpose(dots), np.transpose(told), strict=True):
        assert abs(np.corrcoef(drawn, wanted)[0, 1]) == pytest.approx(1.0, abs=1e-6)
    assert dots == sorted(dots, key=lambda at: (at[0], -at[1])), "to the right, and up"
    # what is far worse does not lie among the words under the axis
    ends = """(all, [side, of]) => all.map(one => of ? one[of] : one).map(
        one => one.getBoundingClientRect()[side])"""
    seen = page.eval_on_selector_all("#pareto .sketch circle", ends, ["bottom", "ownerSVGElement"])
    words = page.eval_on_selector_all(
        "#pareto .sketch text[text-anchor=middle]:not([transform])", ends, ["top", None]
    )
    assert max(seen) < min(words)


def test_plots_are_drawn_when_they_are_scrolled_to(
    opened: Callable[..., Any], run: RunFolder
) -> None:
    page = opened(write_report(run))
    assert page.locator("#expected .main-svg").count() == 0
    assert page.locator(".sketch").count() == 0
    page.emulate_media(media="print")  # paper shows all of them
    page.wait_for_selector("#expected .main-svg")


def test_what_is_lost_is_told_by_class_and_sample(
    opened: Callable[..., Any], run: RunFolder
) -> None:
    import numpy as np

    labels = np.random.default_rng(1).integers(0, 300, 400)
    packed = base64.b64encode(labels.astype("<u2").tobytes()).decode()
    run.write_front({**run.read_front(), "labels": packed})
    page, view = opened(write_report(run)), RunView.load(run)
    assert view.best is not None
    assert view.best.measurement is not None
    before, after = hits_of(view.baseline), hits_of(view.best.measurement)
    assert before is not None
    assert after is not None
    lost = np.flatnonzero(before & ~after)
    assert len(lost) > 3
    assert f"gets {len(lost)} wrong" in page.locator("#lost").inner_text()
    told = [int(x) for x in page.locator("#worst pre").inner_text().split(",")]
    assert len(told) == len(set(told)) == min(40, len(lost))
    assert set(told) <= set(lost.tolist())
    members = [hits_of(t.measurement) for t in view.front if t.measurement]
    wrong = [sum(not m[i] for m in members if m is not None) for i in told]
    assert wrong == sorted(wrong, reverse=True)
    page.get_by_role("button", name=re.compile("show all .* classes")).click()
    cells = page.locator("#classes td").all_inner_texts()
    for i in range(0, len(cells), 7):
        mine = labels == int(cells[i])
        assert int(cells[i + 1]) == mine.sum()
        assert int(cells[i + 4]) == (mine & after & ~before).sum()
        assert int(cells[i + 5]) == (mine & before & ~after).sum()
    assert len(cells) == 7 * len(set(labels))


def test_it_fits_a_phone_and_shows_names_as_they_are(
    opened: Callable[..., Any], run: RunFolder
) -> None:
    with Journal(run) as journal:
        last = journal.load()[0]
        journal.record(
            Trial(len(journal), last.policy, Phase(), origin=NASTY,
                  measurement=last.measurement, violations=last.violations)
        )  # fmt: skip
    page = opened(write_report(run), 390, dark=True)
    keep(page, "report-phone")
    inside = "!e.closest('.scroll, pre, svg') && e.getBoundingClientRect().right > 391"
    wide = f"[...document.querySelectorAll('body *')].filter(e => {inside})"
    assert page.evaluate(f"{wide}.map(e => e.outerHTML.slice(0, 80))") == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.get_by_role("button", name=re.compile("all measured")).click()
    assert NASTY in page.locator("#trials").inner_text()
    assert page.locator("img").count() == 0
    page.emulate_media(media="print")
    page.wait_for_selector("html.paper")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
