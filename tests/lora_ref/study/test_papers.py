"""lora_ref.study.papers: the paper's counts recomputed, every disagreement named, and verdicts that can turn out otherwise."""

from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import pytest

from lora_ref import adapter, lora, prefix
from lora_ref.places import Config, shapes
from lora_ref.study import counts, papers
from lora_ref.study.counts import GPT2_L, GPT2_M, GPT3, adapter_count, base_count, layer_count, lora_count
from lora_ref.study.papers_figures import AGREES, DIFFERS, Row, rows

ROWS = rows()


def find(**fields: Any) -> list[Row]:
    """The rows with these fields; a configuration that begins so."""
    start = fields.pop("configuration", "")
    found = [r for r in ROWS if all(getattr(r, k) == v for k, v in fields.items()) and r.configuration.startswith(start)]
    assert found, (fields, start)
    return found


def verdict(recomputed: int, reported: str, unit: str = "M") -> str:
    return Row("", "", "", "", reported, recomputed, unit=unit).verdict


def small(m: counts.Model, layers: int = 2) -> tuple[counts.Model, Config]:
    """A GPT-2 of that shape with few layers, and the same as the transformer of this package."""
    m = m._replace(layers=layers)
    return m, Config(m.vocabulary, m.width, layers, 16, 16, m.mlp_width, m.contexts, fused=True, tied=True)


def size(config: Config, methods: dict[str, Any] | None = None) -> int:
    return sum(prod(shape) for shape in shapes(config, methods, only=methods is not None).values())


@pytest.mark.parametrize(
    ("recomputed", "reported", "unit", "expected"),
    [
        (349_999, "0.35", "M", AGREES), (345_000, "0.35", "M", AGREES), (344_999, "0.35", "M", DIFFERS),
        (354_999, "0.35", "M", AGREES), (355_000, "0.35", "M", DIFFERS), (350_000, "0.350", "M", AGREES),
        (354_999, "0.350", "M", DIFFERS), (9_999, "10,000", "×", DIFFERS), (10_000, "10,000", "×", AGREES),
        (34_500_000, "35", " MB", AGREES), (175_255_750_000, "175,255.8", "M", AGREES),
    ],
)  # fmt: skip
def test_a_row_agrees_when_the_count_rounds_to_the_printed_digits(recomputed, reported, unit, expected) -> None:
    assert verdict(recomputed, reported, unit) == expected


@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"{r.table}-{r.model}-{r.method}-{r.configuration}-{r.reported}")
def test_a_cause_is_given_exactly_where_the_row_differs(row: Row) -> None:
    assert bool(row.cause) == (row.verdict == DIFFERS)
    assert not row.cause or (row.cause[0].isupper() or row.cause[0].isdigit()) and row.cause.endswith(".")


def test_another_rank_changes_the_verdict() -> None:
    for row, model, agreeing in (
        (find(table="Table 4", reported="4.7")[0], GPT3, [1]),
        (find(table="Table 2", model="DeBERTa XXL", method="LoRA")[0], counts.DEBERTA_XXL, [16]),
        (find(table="Table 2", model="RoBERTa base", method="LoRA")[0], counts.ROBERTA_BASE, [7, 8, 9]),  # one digit
    ):
        verdicts = {rank: row._replace(recomputed=lora_count(model, rank)).verdict for rank in range(1, 65)}
        assert [rank for rank, found in verdicts.items() if found == AGREES] == agreeing


# What is known to disagree, by its number in the notes on the literature: (the rows, what their causes must speak of)
KNOWN: dict[str, tuple[list[Row], str]] = {
    "5 DeBERTa's rank": (find(model="DeBERTa XXL", method="LoRA"), "r = 16"),
    "6 GPT-2 medium": (find(table="Table 3", reported="0.35", method="LoRA"), "0.1 %"),
    "6 GPT-2 large": (find(table="Table 3", reported="0.77", method="LoRA"), "0.1 %"),
    "6 checkpoint": (find(table="README", reported="1.5"), "393,216"),
    "7 all four matrices at rank 2": (find(table="Claims in the text", reported="37.7"), "r = 4"),
    "7 PreLayer": (find(table="Table 15", method="PreLayer"), "no cause is known"),
    "7 PreLayer, Table 4": (find(table="Table 4", method="PreLayer"), "no cause is known"),
    "8 README": (find(table="README", model="RoBERTa base"), "classifier"),
    "9 10,000 times": (find(reported="10,000"), "9,285"),
    "9 35 MB": (find(reported="35"), "36 MiB"),
    "22 MLP in training": (find(recomputed=25_744_896), "MLP"),
    "22 keys and values": (find(recomputed=37_748_736, method="PreLayer"), "a key and a value"),
    "28 not square": (find(configuration="c_attn"), "r · (in + out)"),
}


@pytest.mark.parametrize("item", KNOWN)
def test_each_known_disagreement_is_there_with_its_cause(item: str) -> None:
    found, words = KNOWN[item]
    assert all(row.verdict == DIFFERS and words in row.cause for row in found)


def test_the_row_of_table_4_that_mixes_two_configurations_has_both_and_they_agree() -> None:
    found = find(table="Table 4", reported="37.7")
    assert [row.recomputed for row in found] == [lora_count(GPT3, 8), lora_count(GPT3, 4, 4)]
    assert {row.verdict for row in found} == {AGREES}
    assert find(table="Claims in the text", reported="37.7")[0].recomputed == lora_count(GPT3, 2, 4) == lora_count(GPT3, 4)


@pytest.mark.parametrize(
    ("table", "model", "figures"),
    [
        ("Table 2", "RoBERTa base", "125.0 0.1 0.3 0.9 0.3"),
        ("Table 2", "RoBERTa large", "355.0 0.8 3.0 0.8 6.0 0.8"),
        ("Table 2", "DeBERTa XXL", "1500.0 4.7"),
        ("Table 3", "GPT-2 medium", "354.92 0.37 11.09 11.09 25.19 0.35 0.35"),
        ("Table 3", "GPT-2 large", "774.03 0.88 23.00 0.77 0.77"),
        ("Table 4", "GPT-3 175B", "175,255.8 14.2 3.2 20.2 7.1 40.1 4.7 37.7 37.7"),
    ],
)
def test_every_printed_figure_of_the_main_tables_is_there(table: str, model: str, figures: str) -> None:
    assert [row.reported for row in find(table=table, model=model)] == figures.split()


def test_base_counts_are_those_of_the_transformer_of_this_package_and_of_the_published_models() -> None:
    m, config = small(GPT2_M)
    assert base_count(m) == size(config)
    assert [base_count(m) for m in (GPT2_M, GPT2_L)] == [354_823_168, 774_030_080]
    assert [base_count(m) for m in (counts.ROBERTA_BASE, counts.ROBERTA_LARGE)] == [124_645_632, 355_359_744]


def test_counts_of_methods_are_those_of_arrays_that_the_transformer_would_train() -> None:
    m, fused = small(GPT2_M)
    config = fused._replace(fused=False)
    both = {f"layers.{i}.{name}_proj": lora.Config(4) for i in range(2) for name in "qv"}
    assert size(config, both) == lora_count(m, 4)
    behind = {f"layers.{i}.{name}.output": adapter.Config(112) for i in range(2) for name in ("attention", "mlp")}
    assert size(config, behind) == adapter_count(m, 112, 2)
    assert size(config, {"prefix": prefix.Config(14)}) == 2 * layer_count(m, 14, 0)
    biases = {name: shape for name, shape in shapes(config).items() if name.endswith(".bias")}
    assert counts.bias_count(m) == sum(prod(shape) for shape in biases.values())
    whole = size(fused, {f"layers.{i}.qkv_proj": lora.Config(4) for i in range(2)})
    assert whole * GPT2_M.layers // 2 == find(configuration="c_attn")[0].recomputed


@pytest.mark.parametrize(
    ("count", "reported", "settings"),
    [  # what is marked as inferred, or said to be no count: every setting that gives the figure
        (lambda m: adapter_count(GPT2_M, m, 1, 1), "0.37", [6]),
        (lambda m: adapter_count(GPT2_M, m, 1, 1), "11.09", [224]),
        (lambda m: adapter_count(GPT2_L, m, 1, 1), "0.88", [8]),
        (lambda m: adapter_count(GPT2_L, m, 1, 1), "23.00", [248]),
        (lambda m: adapter_count(GPT2_M, m), "11.09", [225]),
        (lambda m: adapter_count(GPT2_M, m, 2), "11.09", []),
        (lambda m: adapter_count(GPT2_M, m, 2, 1), "11.09", []),
        (lambda m: adapter_count(GPT2_M, m, 2, 2), "11.09", []),
        (lambda n: layer_count(GPT2_M, n, 0), "0.35", []),
        (lambda n: layer_count(GPT2_L, n, 0), "0.77", []),
        (lambda n: 2 * layer_count(GPT2_M, n, 0), "0.35", []),
        (lambda r: lora_count(GPT2_M, r), "0.35", []),
        (lambda r: lora_count(GPT2_L, r), "0.77", []),
    ],
)
def test_inferred_settings_are_the_only_ones(count: Callable[[int], int], reported: str, settings: list[int]) -> None:
    assert [n for n in range(1, 400) if verdict(count(n), reported) == AGREES] == settings


def test_the_table_is_plain_has_80_columns_and_every_row_and_cause() -> None:
    text = papers.table()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert {c for c in text if not c.isprintable()} == {"\n"}
    verdicts = Counter(line.split()[-1] for line in lines if line.endswith((AGREES, DIFFERS)))
    assert verdicts == Counter(row.verdict for row in ROWS)
    flat = " ".join(text.split())
    assert all(f"{row.recomputed:,} {row.verdict} {row.cause}".strip() in flat for row in ROWS)
    assert f"{len(ROWS)} figures: {verdicts[AGREES]} agree, {verdicts[DIFFERS]} differ" in flat
