"""Loss and gradient norm of a method's trainings, for the page: one small picture for each method."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from . import style
from .learning_curves import read_entries, running_median

POINTS = 400
"""At most so many of a curve are drawn."""
GREY = "#808894"
"""Of text and axes: readable on white and on black."""
COLOURS = [*style.COLOURS[:-1], GREY]
"""Without black, for the same reason."""
QUANTITIES = {"loss": "Loss", "grad_norm": "Gradient norm"}


def draw_overview(curves: Mapping[str, Path]) -> bytes:
    """SVG with a panel for the loss and one for the norm of the gradient against the training step.

    Args:
        curves: name of a training -> its train.jsonl. Of steps with several updates, the first is drawn.

    Raises:
        ValueError: a line is damaged.
    """
    settings: dict[Any, Any] = {
        **style.SETTINGS,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), GREY
        ),
        "grid.color": "#80889455",
        "svg.fonttype": "none",
        "svg.hashsalt": "fewstep",
    }
    with rc_context(settings):
        drawn: dict[str, list[float]] = {quantity: [] for quantity in QUANTITIES}
        figure, axes = style.panels(len(QUANTITIES), width=4.4, height=2.3)
        for index, (name, path) in enumerate(curves.items()):
            first = [entry for entry in read_entries(path) if entry.get("update", 0) == 0]
            chosen = first[:: max(1, math.ceil(len(first) / POINTS))]
            steps = [entry["step"] for entry in chosen]
            colour, dashes = COLOURS[index % len(COLOURS)], "--" if index >= len(COLOURS) else "-"
            for axis, quantity in zip(axes, QUANTITIES, strict=True):
                values = [
                    float(value) if (value := entry.get(quantity)) is not None else math.nan
                    for entry in chosen
                ]
                drawn[quantity] += values
                axis.plot(steps, values, color=colour, alpha=0.3, lw=0.8)
                axis.plot(steps, running_median(values), color=colour, ls=dashes, lw=1.6, label=name)
        for axis, (quantity, title) in zip(axes, QUANTITIES.items(), strict=True):
            positive = all(value > 0 for value in drawn[quantity] if math.isfinite(value))
            axis.set(xlabel="Training step", title=title, yscale="log" if positive else "linear")
            axis.margins(x=0.01)
            if positive:
                style.plain_numbers(axis)
        figure.tight_layout()
        if len(curves) > 1:
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="upper left", bbox_to_anchor=(0.05, 0.0), ncols=4, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    return buffer.getvalue()
