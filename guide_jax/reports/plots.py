"""The report's plots, as SVG text to embed in a page."""

import io
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

POINTS = 160  # maximum number of points of a loss curve
COLORS = {
    "total": "#222222",
    "local": "#cc3333",
    "adjacency": "#3366cc",
    "global": "#339933",
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
        bins = np.array_split(np.arange(len(lines)), min(POINTS, len(lines)))
        steps = [part.mean() for part in bins]
        for name, values in terms.items():
            means = [np.mean(np.array(values)[part]) for part in bins]
            style: Any = {"color": COLORS[name], "linewidth": 1, "clip_on": False}
            axes.plot(steps, means, label=name, **style)
        axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
        figure.legend(loc="outside upper center", frameon=False, ncols=len(COLORS))
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return svg[svg.index("<svg") :]  # without the XML declaration
