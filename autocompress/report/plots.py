"""The pictures of a run, as plotly figures; the report and MLflow show the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from autocompress.report.tables import number_text, what
from autocompress.results.metric import LATENCY, MACS, PARAMS, SIZE
from autocompress.results.trial import Trial, TrialState
from autocompress.track.view import Point, RunView, score, value

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_AXES = {
    LATENCY.name: "latency, ms",
    MACS.name: "multiply-adds",
    PARAMS.name: "parameters",
    SIZE.name: "file size, bytes",
}
#: of Okabe and Ito: told apart with any colour vision
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"
_MARKS = ("diamond", "square", "triangle-up", "pentagon", "hexagon", "star-triangle-up")


def pareto_figure(view: RunView) -> Figure:
    """Quality against the cost objective: every trial, the front, the reference policies, the
    budget."""
    from plotly.graph_objects import Figure

    cost = view.objectives[min(1, len(view.objectives) - 1)].name
    figure = Figure()
    special = {t.number for t in view.front} | {t.number for t in view.reference_trials.values()}
    others = [t for t in view.compared if t.number not in special]
    over = [t for t in others if not t.feasible]
    _add(figure, view, over, "over the budget", cost, color=GREY, symbol="x", opacity=0.55)
    within = [t for t in others if t.feasible]
    _add(figure, view, within, "within the budget", cost, color=BLUE, symbol="circle", opacity=0.6)
    _add_rejected(figure, view, cost)
    _add(
        figure,
        view,
        list(view.front),
        "front",
        cost,
        color=BLUE,
        symbol="circle",
        size=10,
        line=True,
        errors=True,
    )
    for mark, (name, trial) in zip(_MARKS * 9, view.reference_trials.items(), strict=False):
        _add(figure, view, [trial], name, cost, color=ORANGE, symbol=mark, size=12, errors=True)
    if view.best is not None:
        label = f"chosen: trial {view.best.number}"
        _add(figure, view, [view.best], label, cost, color=GREEN, symbol="star", size=17)
    elif view.nearest is not None:
        label = f"nearest: trial {view.nearest.number}"
        _add(figure, view, [view.nearest], label, cost, color=RED, symbol="star", size=17)
    _add_uncompressed(figure, view, cost)
    _add_budget(figure, view, cost)
    figure.update_layout(
        xaxis_title=_AXES.get(cost, cost),
        yaxis_title=_title(view, " on val"),
        yaxis_range=_quality_range(view),
        height=480,
        margin={"l": 60, "r": 15, "t": 28, "b": 50},
        legend={"orientation": "h", "y": -0.2},
        hovermode="closest",
    )
    return figure


def growth_figure(view: RunView) -> Figure:
    """Hypervolume and best feasible quality over the time that the study has been running."""
    from plotly.graph_objects import Figure, Scatter

    points, shown = _steps(view.history), view.quality.shown
    short = view.seconds < 180
    times = [p.elapsed_s / (1 if short else 60) for p in points]
    figure = Figure()
    figure.add_trace(
        Scatter(
            x=times,
            y=[p.hypervolume for p in points],
            name="hypervolume",
            mode="lines",
            line={"shape": "hv", "color": BLUE, "width": 2.5},
            text=[f"after trial {p.trial}" for p in points],
        )
    )
    figure.add_trace(
        Scatter(
            x=times,
            y=[None if p.best_quality is None else shown(p.best_quality) for p in points],
            name=f"best {_title(view, ' within the budget')}",
            mode="lines",
            line={"shape": "hv", "color": GREEN, "width": 2, "dash": "dot"},
            yaxis="y2",
        )
    )
    figure.update_layout(
        xaxis_title="seconds" if short else "minutes",
        yaxis={
            "title": {"text": "hypervolume", "standoff": 8},
            "rangemode": "tozero",
            "automargin": True,
        },
        yaxis2={
            "title": {"text": _title(view), "standoff": 8},
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            **({"tickformat": ".2f"} if view.quality.fraction else {}),
            "automargin": True,
        },
        height=340,
        margin={"l": 60, "r": 60, "t": 20, "b": 50},
        legend={"orientation": "h", "y": -0.28},
    )
    return figure


def _steps(history: Sequence[Point]) -> list[Point]:
    """The points at which something grew, and the last: between them the curves are level."""
    grown = [
        point
        for before, point in pairwise(history)
        if (before.hypervolume, before.best_quality) != (point.hypervolume, point.best_quality)
    ]
    ends = [*history[:1], *grown, *history[-1:]]
    return list(dict.fromkeys(ends))


def origin_figure(view: RunView) -> Figure:
    """Per proposer: how many trials it got, and how many ended on the front."""
    from plotly.graph_objects import Bar, Figure

    found = dict(reversed(view.origins().items()))
    figure = Figure()
    tried, kept = [v[0] for v in found.values()], [v[1] for v in found.values()]
    for name, counts, color in (("trials", tried, GREY), ("on the front", kept, BLUE)):
        figure.add_trace(
            Bar(
                x=counts,
                y=list(found),
                name=name,
                orientation="h",
                marker_color=color,
                text=counts,
                textposition="outside",
                cliponaxis=False,
            )
        )
    figure.update_layout(
        barmode="group",
        height=110 + 42 * len(found),
        margin={"l": 90, "r": 30, "t": 10, "b": 30},
        legend={"orientation": "h", "y": -0.15, "traceorder": "reversed"},
        yaxis={"automargin": True},
    )
    return figure


def page(figures: Sequence[Figure]) -> str:
    """Figures as one HTML page that needs no network."""
    parts = [f.to_html(full_html=False, include_plotlyjs=(i == 0)) for i, f in enumerate(figures)]
    return f"<!doctype html><meta charset='utf-8'><body>{''.join(parts)}</body>"


def _add(
    figure: Figure,
    view: RunView,
    trials: Sequence[Trial],
    name: str,
    cost: str,
    *,
    color: str,
    symbol: str,
    opacity: float = 1.0,
    size: int = 8,
    line: bool = False,
    errors: bool = False,
) -> None:
    from plotly.graph_objects import Scatter

    if not trials:
        return
    shown = view.quality.shown
    bars = [shown(t.measurement.score_error if t.measurement else 0.0) for t in trials]
    more: dict[str, Any] = {}
    if errors and any(bars):
        more["error_y"] = {"type": "data", "array": bars, "thickness": 1.2, "width": 3}
    if line:
        more["line"] = {"shape": "hv", "width": 1.5}
    figure.add_trace(
        Scatter(
            x=[value(t, cost) for t in trials],
            y=[shown(score(t) or 0.0) for t in trials],
            name=name,
            mode="lines+markers" if line else "markers",
            marker={"color": color, "symbol": symbol, "size": size, "opacity": opacity},
            text=[_hover(t, view) for t in trials],
            hovertemplate="%{text}<extra></extra>",
            **more,
        )
    )


def _add_rejected(figure: Figure, view: RunView, cost: str) -> None:
    """Rejected trials were never scored: ticks on the lower edge, at their estimated cost."""
    from plotly.graph_objects import Scatter

    rejected = [
        t for t in view.trials if t.state is TrialState.REJECTED and value(t, cost) is not None
    ]
    if rejected:
        figure.add_trace(
            Scatter(
                x=[value(t, cost) for t in rejected],
                y=[_quality_range(view)[0]] * len(rejected),
                name="rejected on its estimate",
                mode="markers",
                marker={"color": RED, "symbol": "line-ns-open", "size": 12, "opacity": 0.6},
                text=[f"trial {t.number}: {t.reason or 'over the budget'}" for t in rejected],
                hovertemplate="%{text}<extra></extra>",
            )
        )


def _add_uncompressed(figure: Figure, view: RunView, cost: str) -> None:
    from plotly.graph_objects import Scatter

    if cost in view.baseline:
        figure.add_trace(
            Scatter(
                x=[view.baseline[cost]],
                y=[view.quality.shown(view.baseline.score)],
                name="uncompressed",
                mode="markers",
                marker={"color": RED, "symbol": "circle-open", "size": 14, "line": {"width": 3}},
                hovertemplate="uncompressed<extra></extra>",
            )
        )


def _add_budget(figure: Figure, view: RunView, cost: str) -> None:
    for limit in view.budget.limits:
        if limit.metric == cost:
            bound = limit.bound(view.baseline.values)
            figure.add_vline(
                x=bound,
                line={"dash": "dash", "color": RED, "width": 1.5},
            )
            figure.add_annotation(
                text=f"budget {number_text(cost, bound)}",
                x=bound,
                y=1.0,
                yref="paper",
                yanchor="bottom",
                showarrow=False,
                font={"color": RED},
            )


def _title(view: RunView, where: str = "") -> str:
    """Name and unit of the quality."""
    unit = "%" if view.quality.fraction else view.quality.unit
    return f"{view.quality.name}{where}" + (f", {unit}" if unit else "")


def _quality_range(view: RunView) -> tuple[float, float]:
    """From the worst that matters to the best: policies at chance would flatten the picture."""
    quality = view.quality
    known = [*view.front, *view.reference_trials.values()]
    known += [view.nearest] if view.nearest is not None else []
    losses = sorted(quality.loss(t.measurement.score) for t in view.compared if t.measurement)
    base = view.baseline.score
    matter = [quality.loss(t.measurement.score) for t in known if t.measurement]
    matter += [quality.loss(base), quality.loss(quality.useless(base, 0.2))]
    # all but the worst quarter
    matter += [losses[len(losses) - 1 - len(losses) // 4]] if losses else []
    ends = [quality.shown(-x if quality.goal == "maximize" else x) for x in matter]
    low, high = min(ends), max(ends)
    pad = 0.06 * (high - low)
    return low - pad, high + pad


def _hover(trial: Trial, view: RunView) -> str:
    found = trial.measurement
    lines = [f"<b>trial {trial.number}</b> ({view.proposer(trial)}, {trial.phase.kind})"]
    if found is not None:
        lines.append(f"{view.quality.name}: {view.quality.text(score(trial))}")
        for name in ("latency_ms", "macs", "size_bytes"):
            if name in found:
                lines.append(f"{name.split('_')[0]}: {number_text(name, found[name])}")
    lines.append(what(trial, view))
    return "<br>".join(lines)
