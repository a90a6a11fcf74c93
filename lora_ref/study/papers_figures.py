"""Every count of trainable parameters that the LoRA paper prints, beside the one recomputed, and why they differ.

Sources: Hu et al., "LoRA", arXiv:2106.09685v2: Tables 2, 3, 4, 13 and 15 (figures), §5.1 (formulas), Tables 9, 10, 11, 15
and §D.4 (configurations), abstract, §4.2 and §7.1 (claims); the README and scripts of microsoft/LoRA; Li and Liang, "Prefix-
Tuning", 2021, and their code. "(inferred)" marks a setting that these do not state and that was solved for.

Left out: scores; memory and speed, which are measured and not counted; Tables 14, 16 and 17, which repeat counts.
"""

from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple

from lora_ref import lora, prefix
from lora_ref.study.counts import (
    DEBERTA_XXL,
    GPT2_L,
    GPT2_M,
    GPT3,
    ROBERTA_BASE,
    ROBERTA_LARGE,
    Model,
    adapter_count,
    base_count,
    bias_count,
    dense,
    embed_count,
    layer_count,
    lora_count,
)

AGREES, DIFFERS = "agrees", "differs"
UNITS = {"M": 10**6, "×": 1, " MB": 10**6, " GB": 10**9}  # what a printed 1 stands for


class Row(NamedTuple):
    """One printed figure. The verdict is computed. The cause is written by hand, exactly where the verdict is "differs"."""

    table: str
    model: str
    method: str
    configuration: str
    reported: str  # as printed, so that its digits are known
    recomputed: int  # parameters; bytes where the unit is MB or GB, a ratio where it is ×
    cause: str = ""
    unit: str = "M"

    @property
    def verdict(self) -> str:
        """ "agrees" if the recomputed count, rounded to the printed digits, is the printed figure."""
        printed = Decimal(self.reported.replace(",", ""))
        rounded = (Decimal(self.recomputed) / UNITS[self.unit]).quantize(printed, ROUND_HALF_UP)
        return AGREES if rounded == printed else DIFFERS


def rows() -> tuple[Row, ...]:
    """Every figure, in the order of the paper's tables."""
    return *_glue(), *_gpt2(), *_gpt3(), *_sweep(), *_text()


def _group(where: str, m: Model, *found: tuple) -> list[Row]:
    return [Row(where, m.name, *row) for row in found]


def _millions(count: int, digits: int = 1) -> str:
    return f"{count / 1e6:,.{digits}f}M"


CUT = "Cut after the printed digits, not rounded."
NAME = "The size by which the model is known, printed with a decimal that it does not have."
TENTH = "It equals 0.1 % of the model's printed size, the share that Li and Liang state, and no count:"


def _glue() -> list[Row]:
    b, g, x = ROBERTA_BASE, ROBERTA_LARGE, DEBERTA_XXL
    named = "Table 9 calls this run {}M, to which the count rounds; the printed decimal is not that of the count."
    classifier = dense(b.width) + 3 * b.width + 3
    readme = "Cut, not rounded; Table 2 has 0.3M for the same runs since it leaves out the classifier, which is trained too."
    base = _group(
        "Table 2", b,
        ("FT", "all but the classifier's output", "125.0", base_count(b), NAME),
        ("BitFit", "all biases", "0.1", bias_count(b)),
        ("AdapterD", "m = 48, 4 layers (inferred)", "0.3", adapter_count(b._replace(layers=4), 48)),
        ("AdapterD", "m = 48 (inferred)", "0.9", adapter_count(b, 48)),
        ("LoRA", "q, v: r = 8", "0.3", lora_count(b, 8)),
    )
    large = _group(
        "Table 2", g,
        ("FT", "all but the classifier's output", "355.0", base_count(g), NAME),
        ("LoRA", "q, v: r = 8", "0.8", lora_count(g, 8)),
        ("AdapterP", "m = 64, one a layer", "3.0", adapter_count(g, 64), named.format(3)),
        ("AdapterP", "m = 16, one a layer", "0.8", adapter_count(g, 16)),
        ("AdapterH", "m = 64, two a layer", "6.0", adapter_count(g, 64, 2), named.format(6)),
        ("AdapterH", "m = 8, two a layer", "0.8", adapter_count(g, 8, 2)),
    )
    scripts = f"Table 10 states r = 8, half of what is printed; the scripts have r = 16: {_millions(lora_count(x, 16))}."
    xxl = _group(
        "Table 2", x,
        ("FT", "all but pooler and classifier", "1500.0", base_count(x), NAME),
        ("LoRA", "q, v: r = 8 (Table 10)", "4.7", lora_count(x, 8), scripts),
    )
    with_classifier = ("LoRA", "q, v: r = 8, MNLI classifier", "0.8", lora_count(b, 8) + classifier, readme)
    return [*base, *large, *xxl, *_group("README", b, with_classifier)]


def _gpt2() -> list[Row]:
    m, g = GPT2_M, GPT2_L
    two = base_count(m) - base_count(m._replace(layers=m.layers - 2))
    digit = "No setting is known that gives 354.92M; GPT-2 large agrees by the same formula, so a slip of one digit is likely."
    normed = _millions(adapter_count(m, 112, 2, 2), 2)
    between = f"No bottleneck gives 11.09M: 112 comes nearest, and with the model's own norms trained it gives {normed}."
    rank = f"{TENTH} r = 4, stated in Table 11, gives {{}}."
    mib = "1.5 MiB: these are 393,216 float32, so the stated r = 4 and not 0.35M."
    none = "No rank gives 2.3 MB: r = 4 is {:.1f} MiB of float32, r = 3 is {:.1f}."
    medium = _group(  # AdapterL as §5.1 counts it; without its norm one more in m would give the same four figures
        "Table 3", m,
        ("FT", "all", "354.92", base_count(m), digit),
        ("AdapterL", "m = 6, one norm (inferred)", "0.37", adapter_count(m, 6, 1, 1)),
        ("AdapterL", "m = 224, one norm (inferred)", "11.09", adapter_count(m, 224, 1, 1)),
        ("AdapterH", "m = 112, two a layer (inferred)", "11.09", adapter_count(m, 112, 2), between),
        ("FT Top2", "the last two layers", "25.19", two),
        ("PreLayer", "14 tokens (inferred)", "0.35", layer_count(m, 14, 0), f"{TENTH} 14 tokens give 0.34M, 15 give 0.37M."),
        ("LoRA", "q, v: r = 4", "0.35", lora_count(m, 4), rank.format(_millions(lora_count(m, 4), 2))),
    )
    large = _group(
        "Table 3", g,
        ("FT", "all", "774.03", base_count(g)),
        ("AdapterL", "m = 8, one norm (inferred)", "0.88", adapter_count(g, 8, 1, 1)),
        ("AdapterL", "m = 248, one norm (inferred)", "23.00", adapter_count(g, 248, 1, 1)),
        ("PreLayer", "17 tokens (inferred)", "0.77", layer_count(g, 17, 0), f"{TENTH} 16 tokens give 0.74M, 17 give 0.78M."),
        ("LoRA", "q, v: r = 4", "0.77", lora_count(g, 4), rank.format(_millions(lora_count(g, 4), 2))),
    )
    none = none.format(*(lora_count(g, r) * 4 / 2**20 for r in (4, 3)))
    top = ("FT Top2", "the last two layers", "24", two, "Table 3 prints 25.19M for the same method, and that agrees.")
    return [
        *medium,
        *large,
        *_group("Table 13", m, ("FT", "all", "354", base_count(m), CUT), top),
        *_group("README", m, ("LoRA", "q, v: r = 4, float32 checkpoint", "1.5", lora_count(m, 4) * 4, mib, " MB")),
        *_group("README", g, ("LoRA", "q, v: r = 4, float32 checkpoint", "2.3", lora_count(g, 4) * 4, none, " MB")),
    ]


def _gpt3() -> list[Row]:
    g = GPT3
    untied = _millions(base_count(g) + g.vocabulary * g.width)
    full = f"The sizes of Brown et al. give less: {untied} with an output matrix of its own, and the rest has no known cause."
    bits = "12 vectors of width d a layer would give 14.2M; the biases are 11, and the paper does not say what is counted."
    return _group(
        "Table 4", g,
        ("FT", "all", "175,255.8", base_count(g), full),
        ("BitFit", "all biases", "14.2", bias_count(g), bits),
        ("PreEmbed", "lp = 256, li = 8", "3.2", embed_count(g, 256, 8)),
        ("PreLayer", "lp = 8, li = 8", "20.2", layer_count(g, 8, 8), _excess("20.2", layer_count(g, 8, 8), 16)),
        ("AdapterH", "m = 1, two a layer", "7.1", adapter_count(g, 1, 2)),
        ("AdapterH", "m = 8, two a layer", "40.1", adapter_count(g, 8, 2)),
        ("LoRA", "q, v: r = 1, or v: r = 2", "4.7", lora_count(g, 1)),
        ("LoRA", "q, v: r = 8 (MNLI score)", "37.7", lora_count(g, 8)),
        ("LoRA", "q, k, v, o: r = 4 (WikiSQL)", "37.7", lora_count(g, 4, 4)),
    )


def _excess(printed: str, count: int, tokens: int) -> str:
    more, embedded = float(printed) - count / 1e6, tokens * GPT3.width / 1e6
    return f"{more:.1f}M more than by §5.1; that §E trains embeddings too ({embedded:.2f}M) is not it, and no cause is known."


def _sweep() -> list[Row]:
    g, infix = GPT3, "The 32 prefix tokens alone give 0.4M: the 8 infix tokens seem to be left out."
    found: list[tuple] = []
    for lp, printed in (32, "0.4"), (64, "0.9"), (128, "1.7"), (256, "3.2"), (512, "6.4"):
        found.append(("PreEmbed", f"lp = {lp}, li = 8", printed, embed_count(g, lp, 8), infix if lp == 32 else ""))
    for lp, li, printed in (2, 2, "5.1"), (8, 0, "10.1"), (8, 8, "20.2"), (32, 4, "44.1"), (64, 0, "76.1"):
        count = layer_count(g, lp, li)
        found.append(("PreLayer", f"lp = {lp}, li = {li}", printed, count, _excess(printed, count, lp + li)))
    for m, printed in (1, "7.1"), (4, "21.2"), (8, "40.1"), (16, "77.9"), (64, "304.4"):
        found.append(("AdapterH", f"m = {m}, two a layer", printed, adapter_count(g, m, 2)))
    four, twice = "q, k, v, o", "Twice the 301.9M of the row above, which is cut and not rounded."
    for names, r, printed, cause in (
        ("v", 2, "4.7", ""), ("q, v", 1, "4.7", ""), ("q, v", 2, "9.4", ""), (four, 1, "9.4", ""),
        ("q, v", 4, "18.8", CUT), (four, 2, "18.8", CUT), ("q, v", 8, "37.7", ""), (four, 4, "37.7", ""),
        ("q, v", 64, "301.9", CUT), (four, 64, "603.8", twice),
    ):
        found.append(("LoRA", f"{names}: r = {r}", printed, lora_count(g, r, len(names.split(","))), cause))
    for r, printed, cause in (8, "37.8", CUT), (32, "151.1", ""), (64, "302.1", ""):
        found.append(("LoRA+PE", f"q, v: r = {r}; lp = 8, li = 4", printed, lora_count(g, r) + embed_count(g, 8, 4), cause))
    both = lora_count(g, 8) + layer_count(g, 8, 4)
    found.append(("LoRA+PL", "q, v: r = 8; lp = 8, li = 4", "52.8", both, _excess("52.8", both, 12)))
    return _group("Table 15", g, *found)


def _text() -> list[Row]:
    m, g, full, small = GPT2_M, GPT3, base_count(GPT3), lora_count(GPT3, 4)
    least = f"{round(full / lora_count(g, 1)):,}"
    times = f"Rounded up: 9,285 by the paper's own 175,255.8M for r = 4, and {least} for the 4.7M of r = 1."
    claims = _group(
        "Claims in the text", g,
        ("LoRA", "q, v: r = 4, fewer parameters", "10,000", round(full / small), times, "×"),
        ("LoRA", "q, v: r = 4, float16 checkpoint", "35", 2 * small, "36 MiB; 35 MB would be 17.5M parameters.", " MB"),
        ("FT", "all, float16 checkpoint", "350", 2 * full, "Two bytes times 175 billion, the model's rounded size.", " GB"),
        ("LoRA", "q, v: r = 4, budget of §7.1", "18", small, CUT),
        ("LoRA", "q, k, v, o: r = 2, §D.4", "37.7", lora_count(g, 2, 4), "37.7M takes r = 4, as in Table 15; r = 2 is half."),
    )
    square = f"{m.layers * 2 * m.width * 4 / 1e6:.2f}"
    fused = m.layers * lora.parameter_count(m.width, 3 * m.width, 4)
    shape = "2 · L · d · r is for square matrices; GPT-2's c_attn is d × 3d, and r · (in + out) counts all of it."
    stored = "The formula counts activations, one vector a token and layer; a key and a value are stored for each."
    kept = "Not what Li and Liang's code keeps at the 5 tokens of its README; 0.35M equals 0.1 % of the model."
    trained = "The 0.1 % are what is kept; the MLP, trained besides and dropped afterwards, is not counted."
    ours = prefix.parameter_count(m.layers, 5, m.width), prefix.parameter_count(m.layers, 5, m.width, 512, m.width)
    pairs = prefix.parameter_count(g.layers, 16, g.width)
    return [
        *claims,
        *_group("By a formula of §5.1 (not printed)", m, ("LoRA", "c_attn as one matrix: r = 4", square, fused, shape)),
        *_group("By a formula of §5.1 (not printed)", g, ("PreLayer", "lp = 8, li = 8, as stored", "18.9", pairs, stored)),
        *_group(
            "Table 3 and Li and Liang's code", m,
            ("PreLayer", "5 tokens, keys and values kept", "0.35", ours[0], kept),
            ("PreLayer", "5 tokens, MLP of 512, trained", "0.35", ours[1], trained),
        ),
    ]
