"""The result of a comparison as a table of 80 columns, and a verdict on five common claims about the methods.

The claims: LoRA trains 250 times fewer parameters; a merged LoRA adds no latency; adapters slow inference down; a prefix takes
part of the sequence; a prefix is hard to train.
"""

from collections.abc import Iterator
from statistics import median
from typing import Any

from lora_ref import lora
from lora_ref.study.comparison import Result
from lora_ref.study.fine_tuning import BATCH, CONFIG, LENGTH


def ratio(times: tuple[float, ...], others: tuple[float, ...]) -> tuple[float, float, float]:
    """The median over the rounds of times / others, and an interval that holds it with a probability of 99 %.

    The interval goes from one of the sorted ratios to another: the number of n ratios below the median is binomial, with a
    standard deviation of √n / 2.
    """
    ratios = sorted(a / b for a, b in zip(times, others, strict=True))
    n = len(ratios)
    low = max(0, int(n / 2 - 2.576 * n**0.5 / 2))
    return median(ratios), ratios[low], ratios[n - 1 - low]


def table(result: Result) -> str:
    """A table of 80 columns, in two parts."""
    base, *rows = result.rows
    full = rows[0]
    lines = [
        f"base: {result.base_parameters:,} parameters; sequences of {LENGTH} words, batches of {BATCH}, float32", "",
        f"{'method':<24}{'trained':>8}{'base is':>9}{'stored':>8}{'multiply-':>10}{'context':>8}{'gradients,':>12}",
        f"{'':<24}{'':>8}{'× that':>9}{'beside':>8}{'adds':>10}{'taken':>8}{'moments':>12}",
    ]
    for row in rows:
        share = result.base_parameters / row.trained
        lines.append(f"{row.name:<24}{row.trained:>8,}{share:>8.1f}×{row.stored:>8,}{row.operations - 1:>+10.1%}"
                     f"{row.positions:>8}{row.memory / 1024:>8,.0f} KiB")
    lines += [
        "", f"{'method':<24}{'loss':>6}{'lowest':>8}{'highest':>8}{'rate':>6}{'step, of':>9}{'forward, of base’s':>19}",
        f"{'':<24}{'':>6}{'':>8}{'':>8}{'':>6}{'full’s':>9}{'batch 1':>10}{'batch 16':>9}",
    ]
    for row in (base, *rows):
        step = f"{ratio(row.step, full.step)[0]:.2f}" if row.step else ""
        rate = f"{row.rate:g}" if row.rate else ""
        one, sixteen = (ratio(row.latency[batch], base.latency[batch])[0] for batch in (1, 16))
        mean = sum(row.losses) / len(row.losses)
        lines.append(f"{row.name:<24}{mean:>6.3f}{min(row.losses):>8.3f}{max(row.losses):>8.3f}{rate:>6}{step:>9}"
                     f"{one:>10.2f}{sixteen:>9.2f}")
    lines += [f"{'the lowest there is':<24}{result.entropy:>6.3f}   (entropy of the language)"]
    return "\n".join(lines)


def claims(result: Result) -> Iterator[tuple[str, str, str]]:
    """(claim, "held" | "did not hold" | "held in part", what was found) for each claim."""
    by_name = {row.name: row for row in result.rows}
    base, qv = result.rows[0], by_name["LoRA r=4 on q, v"]
    adapters = [row for row in result.rows if row.name.startswith("adapters")]
    rest = [row for row in result.rows if row.positions]
    count = lora.parameter_count(1000, 1000, 2)
    exact = 250 * count == 1000 * 1000
    here = result.base_parameters / qv.trained
    yield ("LoRA trains 250 times fewer parameters", "held" if exact and here >= 250 else "held in part",
           f"for a 1000 × 1000 matrix at rank 2, exactly: {1000 * 1000:,} / {count:,}. It is d / (2 r), so it "
           f"grows with the width: this model of width {CONFIG.width} has {here:.0f}× fewer on q and v")
    merged = [ratio(qv.latency[batch], base.latency[batch]) for batch in (1, 16)]
    same = qv.stored == 0 and qv.operations == 1
    covered = all(low <= 1 <= high for _, low, high in merged)
    yield ("merged LoRA adds no inference latency", "held" if same and covered else "did not hold",
           f"no number is stored beside the base, no multiply-add is added, and the time is {merged[0][0]:.2f} and "
           f"{merged[1][0]:.2f} of the base's (batch 1 and 16; with a probability of 99 % {_span(merged[0])}, "
           f"{_span(merged[1])})")
    slow = {row.name: [ratio(row.latency[batch], base.latency[batch]) for batch in (1, 16)] for row in adapters}
    slower = [all(low > 1 for _, low, _ in both) for both in slow.values()]
    yield ("adapters slow inference down", "held" if all(slower) else "held in part" if any(slower) else "did not hold",
           "; ".join(f"{name.removeprefix('adapters, ')} {one[0]:.2f} and {many[0]:.2f}" for name, (one, many) in slow.items())
           + " of the base's time at batch 1 and 16")
    yield ("a prefix takes part of the sequence", "held" if all(row.positions for row in rest) else "did not hold",
           f"{rest[0].positions} of {CONFIG.context} positions are gone, and {rest[0].operations - 1:+.1%} multiply-adds; "
           f"as prompts in the input, {rest[-1].operations - 1:+.1%}")
    gaps = {row.name: sum(row.losses) / len(row.losses) - result.entropy for row in result.rows[1:]}
    hard = [gaps[row.name] > gaps[qv.name] for row in rest]
    spread = max(max(row.losses) - min(row.losses) for row in rest), max(qv.losses) - min(qv.losses)
    yield ("a prefix is hard to train", "held" if all(hard) else "held in part" if any(hard) else "did not hold",
           f"above the entropy after the same steps, each at its best rate: LoRA on q, v {gaps[qv.name]:.2f}; "
           + "; ".join(f"{row.name} {gaps[row.name]:.2f}" for row in rest)
           + f". Between seeds: up to {spread[0]:.3f}, LoRA {spread[1]:.3f}")


def _span(found: tuple[float, float, float]) -> str:
    return f"{found[1]:.2f} to {found[2]:.2f}"


def as_dict(result: Result) -> dict[str, Any]:
    """The whole result for JSON, with the times of every round."""
    found = [{"claim": claim, "verdict": verdict, "found": text} for claim, verdict, text in claims(result)]
    return {**result._asdict(), "rows": [row._asdict() for row in result.rows], "claims": found}
