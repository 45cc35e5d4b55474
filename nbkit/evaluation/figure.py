"""The comparison as a figure that says its claim and survives a black-and-white printer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbkit.errors import require

if TYPE_CHECKING:
    from nbkit.evaluation.compare import Comparison

_BASE, _TUNED = "#6b7280", "#1d4ed8"


def draw(comparison: Comparison) -> Any:
    """Base (hollow) and tuned (filled) on a line per set and measure; the bar is the 95 % interval of the difference.

    The interval is drawn where it says something: from the base's value plus its lower end to the base's value plus its
    upper end, so a bar that does not touch the hollow mark is a difference that was shown.

    Raises: MissingPackageError.
    """
    require("matplotlib", extra="train")
    import matplotlib.pyplot as plt

    lines = []
    for pair in comparison.sets:
        lines.append((f"{pair.name}\nexact match", pair.base.exact_match, pair.tuned.exact_match, pair.exact))
        if pair.fields and pair.base.field_accuracy is not None and pair.tuned.field_accuracy is not None:
            fields = (pair.base.field_accuracy, pair.tuned.field_accuracy)
            lines.append((f"{pair.name}\nfield accuracy", *fields, pair.fields))
    figure, axes = plt.subplots(figsize=(6.8, 1.1 + 0.55 * len(lines)), layout="constrained")
    for place, (_, base, tuned, change) in enumerate(lines):
        axes.plot([base, tuned], [place, place], color="#9ca3af", linewidth=1, zorder=1)
        axes.plot(
            [base + change.low, base + change.high], [place, place], color=_TUNED, linewidth=5, alpha=0.35, zorder=2
        )
        labels = ("base", "tuned, bar: 95 % interval") if place == 0 else (None, None)
        axes.plot(base, place, "o", color=_BASE, markerfacecolor="white", markersize=11, zorder=3, label=labels[0])
        axes.plot(tuned, place, "o", color=_TUNED, markersize=7, zorder=4, label=labels[1])
        axes.annotate(str(change), (1.04, place), va="center", fontsize=8, annotation_clip=False)
    axes.set_yticks(range(len(lines)), [line[0] for line in lines], fontsize=8)
    axes.set(xlim=(-0.03, 1.03), ylim=(len(lines) - 0.5, -0.5))
    axes.set_xlabel("share of rows right, share of fields right", fontsize=8)
    counts = ", ".join(f"{pair.name}: {pair.counts}" for pair in comparison.sets)
    axes.set_title(f"{comparison.claim()}\n{counts}", fontsize=9, loc="left")
    axes.grid(axis="x", color="#e5e7eb")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.25), ncols=2, fontsize=8, frameon=False)
    plt.close(figure)  # the cell's value is shown once; an open figure would be shown again
    return figure
