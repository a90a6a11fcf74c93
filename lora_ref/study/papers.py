"""The LoRA paper's counts of trainable parameters beside those recomputed from the models' configurations, as a table.

`counts.py` has the formulas and the models, `papers_figures.py` every printed figure with its sources.
"""

import textwrap
from itertools import groupby

from lora_ref.study.papers_figures import AGREES, rows


def table() -> str:
    """All rows as plain text within 80 columns, each cause below its row."""
    found = rows()
    agree = sum(row.verdict == AGREES for row in found)
    head = f"""Trainable parameters in the LoRA paper (arXiv:2106.09685v2), as printed and as recomputed (bytes for MB and GB).
        A row agrees when the recomputed count rounds to the printed digits. (inferred): the sources do not state the setting;
        this one gives the printed figure or comes nearest. {len(found)} figures: {agree} agree, {len(found) - agree} differ."""
    lines = textwrap.wrap(" ".join(head.split()), 80)
    for (where, model), group in groupby(found, lambda row: row[:2]):
        lines += ["", f"{where}: {model}", f"  {'method':<9} {'configuration':<32} {'printed':>11} {'recomputed':>15} verdict"]
        for row in group:
            cells = f"{row.method:<9} {row.configuration:<32} {row.reported + row.unit:>11} {row.recomputed:>15,}"
            lines.append(f"  {cells} {row.verdict}")
            lines += textwrap.wrap(row.cause, 80, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
