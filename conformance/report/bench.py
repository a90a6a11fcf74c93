"""The report of `conformance bench`: tables on the terminal, and in a folder bench.json, bench.md and bench.png."""

import json
import statistics
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance.bench.run import FROZEN, Cost, Result
from conformance.report import output

HEADS = ("subject", "forward", "backward", "both", "of rounds", "kept", "peak", "error of y")
LEGEND = (
    "forward, backward, both: time over that of the frozen layer, median of the rounds; of rounds: least and most of both;\n"
    "kept: for backward, beyond x; peak: of the forward pass, beyond y; error of y: root mean square over that of y"
)


def show(console: Console, results: list[Result], swept: dict[str, list[Result]]) -> None:
    for result in results:
        console.print(Text(_title(result), style="bold"))
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for head in HEADS:
            table.add_column(head, justify="left" if head == "subject" else "right", no_wrap=True)
        for cost in result.costs:
            if cost.total:
                table.add_row(*_cells(cost))
        console.print(table)
        for line in _beside(result):
            console.print(Text(line))
        console.print()
    for name, grown in swept.items():
        console.print(Text(f"as {name} grows: both passes over those of the frozen layer", style="bold"))
        console.print(_sweep_table(name, grown))
        console.print()
    console.print(Text(LEGEND), style="dim")


def write(folder: Path, results: list[Result], swept: dict[str, list[Result]], environment: dict) -> list[str]:
    """Writes the files of the report and returns their names. Without matplotlib there is no picture."""
    write_json(folder, results, swept, environment)
    names = ["bench.json", "bench.md"]
    if find_spec("matplotlib"):
        _plot(folder / "bench.png", results, swept, environment)
        names.append("bench.png")
    (folder / "bench.md").write_text(_markdown(results, swept, environment, "bench.png" in names), encoding="utf-8")
    return names


def write_json(folder: Path, results: list[Result], swept: dict[str, list[Result]], environment: dict) -> None:
    """Writes bench.json as a whole or not at all. If the process is stopped meanwhile, the old file stays."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "schema": 1, "environment": environment, "workloads": [_as_dict(result) for result in results],
        "sweep": {name: [_as_dict(result) for result in grown] for name, grown in swept.items()},
    }
    text = json.dumps(document, ensure_ascii=False) + "\n"
    output.write(str(folder / "bench.json"), text.encode("utf-8", "backslashreplace"))


def _title(result: Result) -> str:
    w = result.workload
    laps = [passes.total for passes in result.costs[0].milliseconds]
    frozen = f"frozen layer {statistics.median(laps):.3g} ms" if laps else "not measured"
    caches = "" if result.caches == "warm" else f", caches {result.caches}"
    sizes = f"{w.n} rows, {w.in_features} → {w.out_features}, rank {w.rank}"
    return f"{w.name}: {sizes}; {frozen}{caches}"


def _cells(cost: Cost) -> list[str]:
    forward, backward = (statistics.median(passes[i] for passes in cost.ratios) for i in (0, 1))
    saved, peak, error = (cost.measured.get(key) for key in ("saved_bytes", "peak_bytes", "errors"))
    return [
        cost.subject, f"{forward:.3f}", f"{backward:.3f}", f"{cost.median:.3f}", f"{min(cost.total):.2f}–{max(cost.total):.2f}",
        "" if saved is None else _size(saved), "" if peak is None else _size(peak["forward"]),
        "" if error is None else f"{error['y']:.2e}",
    ]


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def _beside(result: Result) -> list[str]:
    """Lines below the table: subjects that were not measured, kernels, and whether lora_torch meets its goal."""
    lines = [f"{cost.subject}: not measured: {cost.reason}" for cost in result.costs if cost.reason]
    for cost in result.costs:
        if cost.measured.get("same_bits_20_times") is False:
            lines.append(f"{cost.subject}: other bits in another run")
        if cost.measured.get("kernels"):
            kinds = [f"{name} " + ", ".join(f"{n} {kind}" for kind, n in found.items())
                     for name, found in cost.measured["kernels"].items()]
            lines.append(f"{cost.subject}: kernels: {'; '.join(kinds)}")
    ours = next((cost for cost in result.costs if cost.subject == "lora_torch" and cost.total), None)
    if ours and result.workload.goal and result.caches == "warm":
        met = "met" if ours.median <= result.workload.goal else "NOT met"
        lines.append(f"goal for lora_torch: {result.workload.goal:.2f} at most: {met} ({ours.median:.3f})")
    return lines


def _sweep_rows(grown: list[Result]) -> dict[str, list[float]]:
    subjects = dict.fromkeys(c.subject for result in grown for c in result.costs if c.total and c.subject != FROZEN)
    medians = [{cost.subject: cost.median for cost in result.costs if cost.total} for result in grown]
    return {subject: [found.get(subject, float("nan")) for found in medians] for subject in subjects}


def _sizes(name: str, grown: list[Result]) -> list[int]:
    column = {"rank": "rank", "rows": "n", "width": "in_features"}[name]
    return [getattr(result.workload, column) for result in grown]


def _sweep_table(name: str, grown: list[Result]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(name, no_wrap=True)
    for size in _sizes(name, grown):
        table.add_column(str(size), justify="right", no_wrap=True)
    for subject, medians in _sweep_rows(grown).items():
        table.add_row(subject, *(f"{median:.2f}" for median in medians))
    return table


def _as_dict(result: Result) -> dict:
    """The result for JSON. milliseconds: forward and backward of each round. ratio: to the frozen layer's in the same round."""
    subjects = []
    for cost in result.costs:
        forward, backward = ([passes[i] for passes in cost.ratios] for i in (0, 1))
        columns = {"forward": forward, "backward": backward, "both": cost.total}
        ratio = {name: {"median": round(statistics.median(v), 4), "least": round(min(v), 4), "most": round(max(v), 4)}
                 for name, v in columns.items() if v}
        subjects.append({
            "name": cost.subject, "version": cost.version, "reason": cost.reason or None, "ratio": ratio,
            "milliseconds": [[round(ms, 4) for ms in passes] for passes in cost.milliseconds], **cost.measured,
        })
    return {"workload": result.workload._asdict(), "caches": result.caches, "subjects": subjects}


def _markdown(results: list[Result], swept: dict[str, list[Result]], environment: dict, pictured: bool) -> str:
    lines = ["# Speed and memory beside the frozen layer", "", f"`{environment['command']}`", ""]
    lines += [f"- {key}: {value}" for key, value in environment.items() if key != "command"] + [""]
    for result in results:
        lines += [f"## {_title(result)}", "", *_pipes(HEADS, [_cells(cost) for cost in result.costs if cost.total]), ""]
        lines += [f"- {line}" for line in _beside(result)] + [""]
    for name, grown in swept.items():
        rows = [[subject, *(f"{m:.2f}" for m in medians)] for subject, medians in _sweep_rows(grown).items()]
        lines += [f"## As {name} grows", "", *_pipes([name, *map(str, _sizes(name, grown))], rows), ""]
    return "\n".join([*lines, *LEGEND.splitlines(), "", *["![the same as a picture](bench.png)", ""] * pictured])


def _pipes(heads, rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _plot(path: Path, results: list[Result], swept: dict[str, list[Result]], environment: dict) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    figure, axes = pyplot.subplots(1, 1 + len(swept), figsize=(6 + 4 * len(swept), 5), layout="constrained", squeeze=False)
    bars, *panels = axes[0]
    warm = [result for result in results if result.caches == "warm"]
    subjects = list(dict.fromkeys(c.subject for result in results for c in result.costs if c.total and c.subject != FROZEN))
    colours = {subject: f"C{i}" for i, subject in enumerate(subjects)}
    width = 0.8 / max(1, len(subjects))
    for i, subject in enumerate(subjects):
        for j, result in enumerate(warm):
            cost = next((cost for cost in result.costs if cost.subject == subject and cost.total), None)
            if cost:
                spread = [[cost.median - min(cost.total)], [max(cost.total) - cost.median]]
                bars.bar(j + (i - len(subjects) / 2 + 0.5) * width, cost.median - 1, width, bottom=1, yerr=spread,
                         color=colours[subject], error_kw={"linewidth": 0.7})
    bars.set_xticks(range(len(warm)), ["\n".join(map(str, result.workload[:5])) for result in warm], fontsize=8)
    bars.set_ylabel("forward and backward over the frozen layer's")
    bars.set_ylim(bottom=1)
    bars.set_title("workloads (rows, in, out, rank): median, least, most", fontsize=10)
    for (name, grown), panel in zip(swept.items(), panels, strict=True):
        for subject, medians in _sweep_rows(grown).items():
            panel.plot(_sizes(name, grown), medians, "o-", color=colours.get(subject, "grey"), markersize=3)
        panel.set_xscale("log", base=2)
        panel.set_xlabel(name)
        panel.set_ylim(bottom=1)
        panel.set_title(f"as {name} grows", fontsize=10)
    handles = [Line2D([], [], color=colours[subject], linewidth=4, label=subject) for subject in subjects]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{environment['device']}, {environment['dtype']}, torch {environment['torch']}", fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
