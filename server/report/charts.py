"""How does a run look? Each function draws one chart as inline SVG, or '' where there is nothing to draw."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from server.report.record import ARMS, INPUTS, Bin, Round, Run, Score
from server.report.words import arm_name, decimal, input_name
from shared.drawing import FAINT, INK, WIDTH, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Pen(NamedTuple):
    """How an arm is drawn. Colour (Okabe-Ito), marker and dash each tell arms apart on their own."""

    colour: str
    marker: str
    dash: Any


PENS = {
    "federated": Pen("#0072B2", "o", "-"),
    "centralised": Pen("#00805E", "D", (0, (7, 1.5, 1.5, 1.5))),
    "local": Pen("#C44E00", "s", (0, (4, 1.5))),
    "federated_scratch": Pen("#9A4B86", "^", (0, (1.2, 1.2))),
}
OTHER = Pen("#6B6B6B", "v", (0, (8, 3)))
INPUT_DASHES: dict[str, Any] = {"multimodal": "-", "image": (0, (5, 1.6)), "clinical": (0, (1.2, 1.3))}


def comparison(run: Run) -> str:
    """AUROC by kind of input and arm with 95 % intervals; the ceiling as a marked line."""
    scores = [score for score in run.scores if score.auroc is not None]
    if not scores:
        return ""
    rows, groups = _rows(run)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for score in scores:
            _dot(axes, score, rows[score.arm, score.inputs])
        for inputs, (top, bottom) in groups.items():
            if inputs in run.ceiling:
                _ceiling_mark(axes, run.ceiling[inputs], top - 0.45, bottom + 0.45, first=inputs == next(iter(groups)))
        axes.set_yticks([(top + bottom) / 2 for top, bottom in groups.values()], list(map(input_name, groups)))
        axes.set_ylim(max(rows.values()) + 0.8, -1.0 if run.ceiling else -0.8)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        _chance(axes)
        axes.set_xlabel("AUROC: 0.5 is guessing, 1.0 is perfect ranking")
        _legend(figure, run.arms)

    told = (f"{input_name(s.inputs)}, {arm_name(s.arm).lower()}: {decimal(s.auroc)}" for s in scores)
    alt = f"Dot plot of AUROC with 95 % intervals. {'; '.join(told)}."
    return drawn("comparison", alt, (WIDTH, 1.25 + 0.29 * (max(rows.values()) + 1)), paint)


def roc(run: Run) -> str:
    """ROC curves of the arms that were trained together."""
    scores = [score for score in run.scores if len(score.roc) > 1 and score.arm.startswith("federated")]
    if not scores:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2, label="Guessing")
        for score in reversed(scores):  # the best known lies on top
            false_alarms, found = zip(*score.roc, strict=True)
            width = 2.4 if score is scores[0] else 1.6
            dash = INPUT_DASHES.get(score.inputs, OTHER.dash)
            label = _roc_label(score, several_arms=len({s.arm for s in scores}) > 1)
            axes.plot(false_alarms, found, color=_pen(score.arm).colour, linestyle=dash, linewidth=width, label=label)
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", anchor="W")
        axes.set_xlabel("False alarms (1 \u2212 specificity)")
        axes.set_ylabel("Cases found (sensitivity)")
        handles, labels = axes.get_legend_handles_labels()
        beside: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.04, 0.5), "borderaxespad": 0.0}
        axes.legend(handles[::-1], labels[::-1], handlelength=3.4, labelspacing=0.9, **beside)

    told = listed_areas(scores)
    return drawn("roc", f"ROC curves of the models trained together, all hospitals pooled. {told}", (WIDTH, 4.1), paint)


def listed_areas(scores: Iterable[Score]) -> str:
    """The areas under the curves, for who cannot see them."""
    return " ".join(f"{_roc_label(score, several_arms=True)}." for score in scores)


def calibration(run: Run) -> str:
    """Predicted against observed share of cases, one panel for each kind of input of the headline's arm."""
    headline = run.headline
    scores = [score for score in run.scores if headline and score.arm == headline.arm and score.bins]
    if not scores:
        return ""
    reach = max(max(each.predicted, each.observed) for score in scores for each in score.bins)
    limit = min(1.0, math.ceil(10 * reach + 0.5) / 10)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(1, len(scores), squeeze=False, sharex=True, sharey=True)[0]
        for axes, score in zip(panels, scores, strict=True):
            axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.2)
            _reliability(axes, score)
            axes.set(xlim=(-0.02, limit + 0.02), ylim=(-0.02, limit + 0.02), aspect="equal")
            axes.set_title(input_name(score.inputs))
            axes.set_xlabel("Predicted probability")
        panels[0].set_ylabel("Observed share of cases")

    told = "; ".join(f"{input_name(s.inputs)}: slope {decimal(s.slope, 2)}" for s in scores)
    width = WIDTH * max(len(scores), 1.6) / max(len(scores), 3)
    return drawn("calibration", f"Calibration plot, predicted against observed. {told}.", (width, 3.5), paint)


def sites(run: Run) -> str:
    """Each hospital's AUROC by arm, for the headline's input; '' where there is only one arm or hospital."""
    best = run.headline
    if best is None:
        return ""
    scores = [score for arm in run.arms if (score := run.score(arm, best.inputs)) and any(score.sites.values())]
    names = list(dict.fromkeys(name for score in scores for name, auroc in score.sites.items() if auroc is not None))
    if len(scores) < 2 or len(names) < 2:
        return ""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, name in enumerate(names):
            known = [value for score in scores if (value := score.sites.get(name)) is not None]
            axes.plot([min(known), max(known)], [row, row], color=FAINT, linewidth=2.2, zorder=1)
        for score in scores:
            values = [math.nan if (value := score.sites.get(name)) is None else value for name in names]
            pen = _pen(score.arm)
            axes.plot(values, range(len(names)), pen.marker, color=pen.colour, markeredgecolor="white", markersize=8)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        _chance(axes)
        axes.set_xlabel("AUROC on the hospital\u2019s own held-out patients")
        _legend(figure, [score.arm for score in scores], lines=False)

    alt = f"Dot plot of AUROC by arm at each of {len(names)} hospitals; the numbers are in the table that follows."
    return drawn("sites", alt, (WIDTH, 1.1 + 0.27 * len(names)), paint)


def pretraining(run: Run) -> str:
    """Pretraining loss by round."""
    return _curves("pretraining", run, "pretrain", {"Pretraining loss": lambda each: each.loss})


def finetuning(run: Run) -> str:
    """Tuning loss (training loss where there is none) and tuning AUROC by round."""
    tuned = any(each.tuning_loss is not None for each in run.rounds if each.stage == "finetune")
    title = "Loss on tuning patients" if tuned else "Training loss"
    measures: dict[str, Callable[[Round], float | None]] = {
        title: lambda each: each.tuning_loss if tuned else each.loss,
        "AUROC on tuning patients": lambda each: each.auroc,
    }
    return _curves("finetuning", run, "finetune", measures)


def _curves(name: str, run: Run, stage: str, measures: dict[str, Callable[[Round], float | None]]) -> str:
    """One row of panels for each measure, one column for each kind of input, one line for each arm."""
    lines = {title: _lines(run.rounds, stage, measure) for title, measure in measures.items()}
    lines = {title: found for title, found in lines.items() if found}
    arms, inputs = (
        _sorted({key[side] for found in lines.values() for key in found}, known)
        for side, known in ((0, ARMS), (1, INPUTS))
    )
    if not lines:
        return ""

    def paint(figure: Figure) -> None:
        grid = figure.subplots(len(lines), len(inputs), squeeze=False, sharey="row", sharex="col")
        for row, (title, found) in zip(grid, lines.items(), strict=True):
            for axes, kind in zip(row, inputs, strict=True):
                _race(axes, {arm: found[arm, kind] for arm in arms if (arm, kind) in found})
            row[0].set_ylabel(title)
        for axes, kind in zip(grid[0], inputs, strict=True):
            axes.set_title(input_name(kind))
        for axes in grid[-1]:
            axes.set_xlabel("Round")
        _legend(figure, arms)

    alt = f"Line charts by round of {' and '.join(lines).lower()}, for {', '.join(map(arm_name, arms)).lower()}."
    width = WIDTH * max(len(inputs), 1.6) / max(len(inputs), 3)
    return drawn(name, alt, (width, 0.75 + 2.15 * len(lines)), paint)


def _lines(
    rounds: Iterable[Round], stage: str, measure: Callable[[Round], float | None]
) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(arm, inputs) -> (round, value) points. A resumed round counts once; hospitals training alone are averaged."""
    latest = {
        (each.arm, each.inputs, each.number, each.sites if each.arm == "local" else ()): measure(each)
        for each in rounds
        if each.stage == stage
    }
    values: dict[tuple[str, str], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (arm, inputs, number, _), value in latest.items():
        if value is not None:
            values[arm, inputs][number].append(value)
    return {key: [(number, fmean(found)) for number, found in sorted(each.items())] for key, each in values.items()}


def _race(axes: Axes, lines: dict[str, list[tuple[int, float]]]) -> None:
    from matplotlib.ticker import MaxNLocator

    for arm, points in reversed(lines.items()):
        numbers, values = zip(*points, strict=True)
        pen, every = _pen(arm), max(1, len(points) // 8)
        axes.plot(
            numbers, values, color=pen.colour, linestyle=pen.dash, marker=pen.marker, markersize=4.5, markevery=every
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def _rows(run: Run) -> tuple[dict[tuple[str, str], float], dict[str, tuple[float, float]]]:
    """The height of each score, and the span of each kind of input, downwards from 0."""
    rows: dict[tuple[str, str], float] = {}
    groups: dict[str, tuple[float, float]] = {}
    position = 0.0
    for inputs in run.inputs:
        arms = [arm for arm in run.arms if run.score(arm, inputs)]
        rows |= {(arm, inputs): position + offset for offset, arm in enumerate(arms)}
        groups[inputs] = (position, position + len(arms) - 1)
        position += len(arms) + 0.9
    return rows, groups


def _dot(axes: Axes, score: Score, row: float) -> None:
    assert score.auroc is not None
    pen = _pen(score.arm)
    right = score.auroc
    if score.interval is not None:
        low, right = score.interval
        axes.plot([low, right], [row, row], color=pen.colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot([low, right], [row, row], "|", color=pen.colour, markersize=7, markeredgewidth=1.6)
    axes.plot([score.auroc], [row], pen.marker, color=pen.colour, markersize=8, markeredgecolor="white")
    figure = decimal(score.auroc)
    # On white, so that the line of the best possible does not run through it.
    white = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    axes.annotate(figure, (right, row), (7, 0), textcoords="offset points", va="center", fontsize=8.5, bbox=white)


def _ceiling_mark(axes: Axes, best: float, top: float, bottom: float, *, first: bool) -> None:
    axes.plot([best, best], [top, bottom], color=INK, linewidth=1.6, linestyle=(0, (2, 1.2)))
    said = f"best possible {decimal(best)}" if first else decimal(best)
    axes.annotate(said, (best, top), (0, 2), textcoords="offset points", ha="center", va="bottom", fontsize=8.5)


def _chance(axes: Axes) -> None:
    """Mark guessing where it is in sight, and leave room for the labels on the right."""
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5 - 0.02) if low < 0.6 else low, min(high + 0.04 * (high - low), 1.08))
    if axes.get_xlim()[0] <= 0.5:
        axes.axvline(0.5, color=FAINT, linewidth=1.4, zorder=0)


def _reliability(axes: Axes, score: Score) -> None:
    pen = _pen(score.arm)
    predicted, observed = [each.predicted for each in score.bins], [each.observed for each in score.bins]
    for each in score.bins:
        if each.cases:
            axes.plot([each.predicted] * 2, _wilson(each), color=pen.colour, linewidth=1.2, alpha=0.6)
    axes.plot(predicted, observed, color=pen.colour, marker=pen.marker, markersize=5.5, markeredgecolor="white")
    if score.slope is not None and score.intercept is not None:
        said = f"slope {decimal(score.slope, 2)}\nintercept {decimal(score.intercept, 2)}"
        axes.text(0.04, 0.96, said, transform=axes.transAxes, va="top", fontsize=8.5)


def _wilson(each: Bin, z: float = 1.96) -> list[float]:
    """95 % interval of an observed share (Wilson, 1927): it stays in [0, 1] for small and extreme bins."""
    assert each.cases
    n, share = each.cases, each.observed
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(max(0.0, share * (1 - share)) / n + z * z / (4 * n * n))
    return [max(0.0, middle - half), min(1.0, middle + half)]


def _roc_label(score: Score, *, several_arms: bool) -> str:
    who = f"{arm_name(score.arm)}: {input_name(score.inputs).lower()}" if several_arms else input_name(score.inputs)
    return who if score.pooled is None else f"{who} ({decimal(score.pooled)})"


def _legend(figure: Figure, arms: Sequence[str], *, lines: bool = True) -> None:
    from matplotlib.lines import Line2D

    if len(arms) < 2:
        return
    handles = []
    for arm in arms:
        pen = _pen(arm)
        dash: Any = pen.dash if lines else "none"
        handles.append(Line2D([], [], color=pen.colour, marker=pen.marker, linestyle=dash, label=arm_name(arm)))
    figure.legend(
        handles=handles, loc="outside upper left", ncols=4, handlelength=2.8 if lines else 1.0, columnspacing=1.6
    )


def _pen(arm: str) -> Pen:
    return PENS.get(arm, OTHER)


def _short(name: str, longest: int = 28) -> str:
    return name if len(name) <= longest else f"{name[: longest - 1]}\u2026"


def _sorted(names: Iterable[str], known: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))
