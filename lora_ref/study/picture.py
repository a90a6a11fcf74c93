"""The picture of a comparison. It needs matplotlib, which is imported only when `draw` is called."""

from lora_ref.study.comparison import Result
from lora_ref.study.report import ratio


def draw(result: Result, path: str) -> None:
    """Draws the loss against the number of trained numbers, and the inference times. The path ends in .svg or .png.

    Raises ModuleNotFoundError if matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    base, *rows = result.rows
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    for row, marker in zip(rows, "sov^<>DPpXh", strict=True):
        mean = sum(row.losses) / len(row.losses)
        spread = [[mean - min(row.losses)], [max(row.losses) - mean]]
        left.errorbar(row.trained, mean, spread, fmt=marker, capsize=3, label=row.name)
    left.axhline(result.entropy, color="grey", linestyle=":")
    left.annotate("entropy of the language", (1, result.entropy), xycoords=("axes fraction", "data"), xytext=(-4, -9),
                  textcoords="offset points", fontsize=7, color="grey", ha="right")
    left.set(xscale="log", xlabel="numbers that train", ylabel="loss on unseen words, nats",
             title=f"After fine-tuning (base, not tuned: {base.losses[0]:.2f})")
    left.legend(fontsize=7)
    names = [row.name for row in rows]
    for offset, batch, colour in (-0.2, 1, "0.35"), (0.2, 16, "0.7"):
        found = [ratio(row.latency[batch], base.latency[batch]) for row in rows]
        spans = [[m - low for m, low, _ in found], [high - m for m, _, high in found]]
        right.barh([i + offset for i in range(len(rows))], [m for m, _, _ in found], 0.38, xerr=spans, color=colour,
                   label=f"batch {batch}", error_kw={"linewidth": 0.8})
    right.axvline(1, color="black", linewidth=0.8)
    right.set_yticks(range(len(rows)), names, fontsize=7)
    right.invert_yaxis()
    right.set(xlabel="time of the base's: median, 99 % interval", title="A forward pass, merged")
    right.set_xlim(left=0.8)
    right.legend(fontsize=7, loc="upper right")
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)
