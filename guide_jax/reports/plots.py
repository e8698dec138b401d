"""The report's plots, as SVG text to embed in a page."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from guide_jax.attacks.verdict import Outcome

POINTS = 160  # maximum number of points of a loss curve
COLORS = {
    "total": "#222222",
    "local": "#cc3333",
    "adjacency": "#3366cc",
    "global": "#339933",
}
# group of an attack's outcome -> color and label
GROUPS = {
    "original": ("#888888", "original"),
    "unlearned": ("#cc3333", "unlearned"),
    "strangers": ("#3366cc", "never-seen people"),
}
MARKS = "#cc3333", "#dd8800", "#339933", "#7744aa"
TITLES = {
    "search_w": "optimisation in W",
    "search_identity": "by identity, in W",
    "search_wplus": "optimisation in W+",
    "relearn": "fine-tuning",
}
STYLE: Any = {
    "svg.hashsalt": "guide_jax",  # so that the same curve gives the same text
    "svg.fonttype": "none",
    "path.simplify": False,
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def loss_curve(path: Path) -> str:
    """Plots the losses in a `metrics.jsonl` file, averaged to at most `POINTS` points.

    Returns:
        An `<svg>` element; "" if the file is missing, empty or damaged.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        terms = {name: [float(line[name]) for line in lines] for name in COLORS}
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if not lines:
        return ""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4, 2), layout="constrained")
        axes = figure.add_subplot()
        width = -(-len(lines) // POINTS)
        bins = np.array_split(np.arange(len(lines)), -(-len(lines) // width))
        steps = [part.mean() for part in bins]
        for name, values in terms.items():
            means = [np.mean(np.array(values)[part]) for part in bins]
            style: Any = {"color": COLORS[name], "linewidth": 1, "clip_on": False}
            axes.plot(steps, means, label=name, **style)
        axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
        figure.legend(loc="outside upper center", frameon=False, ncols=len(COLORS))
        return _svg(figure)


def attack_curves(outcomes: Sequence[Outcome], judge: str) -> str:
    """Plots similarity against steps, a panel for each attack with steps.

    Args:
        outcomes: of one person's attacks.
        judge: the judge whose similarities are shown.

    Returns:
        An `<svg>` element; "" without any such attack.
    """
    names = list(dict.fromkeys(x.attack for x in outcomes if x.budget and x.level))
    names += ["relearn"] * any(x.attack == "relearn" for x in outcomes)
    if not names:
        return ""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.3 * len(names), 2.5), layout="constrained")
        panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            rows = [x for x in outcomes if x.attack == name]
            steps = [x.budget for x in rows]
            for group, (color, label) in GROUPS.items():
                values = [x.values(group, judge) for x in rows]
                if not all(len(x) for x in values):
                    continue
                style: Any = {"color": color, "marker": "o", "markersize": 3}
                axes.plot(steps, [x.mean() for x in values], label=label, **style)
                if group == "strangers":
                    ranges = [x.min() for x in values], [x.max() for x in values]
                    axes.fill_between(steps, *ranges, color=color, alpha=0.15, lw=0)
            axes.set(xlabel="steps", title=TITLES.get(name, name), ylim=(None, 1.02))
        panels[0].set_ylabel(f"similarity ({judge})")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside upper center", frameon=False, ncols=3
        )
        return _svg(figure)


def crowd(
    others: Sequence[float], marks: Mapping[str, float], threshold: float, judge: str
) -> str:
    """Plots where attacks' best images stand among random people.

    Args:
        others: random people's similarities to the person.
        marks: label -> similarity to the person.
        threshold: similarity above which two images count as one person.
        judge: the judge's name.

    Returns:
        An `<svg>` element.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.6, 3), layout="constrained")
        axes = figure.add_subplot()
        style: Any = {"color": GROUPS["strangers"][0], "alpha": 0.35}
        axes.hist(others, bins=20, label="random people", **style)
        axes.axvline(threshold, color="#222222", linestyle=":", label="same person")
        for (label, value), color in zip(marks.items(), MARKS, strict=False):
            axes.axvline(
                value, color=color, linewidth=1.5, label=f"{label} {value:.2f}"
            )
        axes.set(xlabel=f"similarity to the person ({judge})", ylabel="random people")
        figure.legend(loc="outside lower center", frameon=False, ncols=2)
        return _svg(figure)


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]  # without the XML declaration
