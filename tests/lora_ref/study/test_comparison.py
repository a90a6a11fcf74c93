"""python -m lora_ref: the comparison at a small size, its counts compared with the arrays, its table and its picture; and the
command `papers`."""

import json
import sys

import numpy as np
import pytest

from lora_ref import ops, transformer
from lora_ref.__main__ import main
from lora_ref.study import comparison, fine_tuning, language, report, timing

ROUNDS = 10  # in place of timing.ROUNDS, to save time


@pytest.fixture(scope="module")
def result() -> comparison.Result:
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "ROUNDS", ROUNDS)
        found = comparison.run(seeds=2, steps=6, pretraining=4, progress=lambda share, what: told.append(share))
    assert told == sorted(told) and told[-1] == 1.0
    return found


def test_a_language_has_the_entropy_that_it_says():
    """The loss of the language's own table, as a model would give it, is its entropy; and a shift keeps half of the rows."""
    rng = np.random.default_rng(0)
    source = language.language(rng, 8)
    words = language.sample(rng, source, 200, 50)
    logits = np.log(source.T[words[:, :-2] % 2, words[:, 1:-1]])
    assert abs(ops.loss(logits, words[:, 2:])[0] - language.entropy(source, words)) <= 8 * np.spacing(2.0)
    shifted = language.shifted(rng, source)
    assert (shifted.T == source.T).all(-1).sum() == 8 and np.array_equal(source.T.sum(-1).round(12), np.ones((2, 8)))
    seen = np.zeros_like(source.T)
    np.add.at(seen, (words[:, :-2] % 2, words[:, 1:-1], words[:, 2:]), 1)
    n = seen.sum(-1, keepdims=True)
    assert (np.abs(seen - n * source.T) <= 6 * np.sqrt(n * source.T * (1 - source.T)) + 6).all()  # six deviations


def test_the_counts_are_those_of_the_arrays(result):
    rng = np.random.default_rng(0)
    base = transformer.init(rng, comparison.CONFIG, np.float32)
    for row, method in zip(result.rows[1:], comparison.places(), strict=True):
        arrays, names = comparison.start(base, method, rng)
        assert row.trained == sum(arrays[name].size for name in names)
        assert row.memory == 12 * row.trained  # a gradient and two moments of float32
        assert row.name.startswith("LoRA") <= (row.stored == 0 and row.operations == 1)
        assert len(row.losses) == 2 and len(row.step) == ROUNDS == len(row.latency[1]) == len(row.latency[16])
    assert [row.positions for row in result.rows[1:]] == [0] * 7 + [8] * 4


def test_operations_are_counted_as_matrix_products_are_made(monkeypatch):
    """The count of operations agrees with what `@` does in a pass, counted by arrays that record it."""
    class Counted(np.ndarray):
        total = 0

        def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
            plain = [np.asarray(a) if isinstance(a, Counted) else a for a in inputs]
            y = getattr(ufunc, method)(*plain, **kwargs)
            if ufunc is np.matmul:
                Counted.total += y.size * plain[0].shape[-1]
            if out is not None:
                out[0][...] = y
                return out[0]
            return np.asarray(y).view(Counted)

    rng = np.random.default_rng(0)
    base = transformer.init(rng, comparison.CONFIG)
    for method in [comparison.Method("base", {}), *comparison.places()]:
        arrays, _ = comparison.start(base, method, rng)
        arrays = {name: a.astype(float) for name, a in arrays.items()}
        arrays, left = transformer.merge(arrays, method.config, method.methods)
        Counted.total = 0
        tokens = np.zeros((1, comparison.LENGTH), int)
        transformer.forward(tokens, {n: a.view(Counted) for n, a in arrays.items()}, method.config, left)
        assert Counted.total == comparison.operations(method.config, left), method.name


def test_fusing_changes_nothing():
    rng = np.random.default_rng(0)
    base = transformer.init(rng, comparison.CONFIG)
    words = rng.integers(0, 32, (2, 5))
    one, _ = transformer.forward(words, base, comparison.CONFIG)
    fused = comparison.CONFIG._replace(fused=True)
    other, _ = transformer.forward(words, fine_tuning.fused(base), fused)
    assert np.abs(one - other).max() < 1e-12 * np.abs(one).max()  # the rounding of float64


def test_the_table_fits_80_columns_and_names_all(result):
    table = report.table(result)
    assert max(map(len, table.splitlines())) <= 80
    assert all(table.count(row.name) >= 1 for row in result.rows)


def test_claims_follow_what_was_found(result):
    """Each verdict turns with the figures that it rests on."""
    def verdicts(changed: comparison.Result) -> list[str]:
        return [verdict for _, verdict, _ in report.claims(changed)]

    def with_rows(change) -> comparison.Result:
        return result._replace(rows=tuple(change(row) for row in result.rows))

    def timed(row, factor):
        return row._replace(latency={batch: tuple(factor * (1 + 0.001 * i) for i in range(9)) for batch in (1, 16)})

    quick = with_rows(lambda row: timed(row, 1.0))
    slow = with_rows(lambda row: timed(row, 1.2 if row.name.startswith("adapters") else 1.0))
    slow_lora = with_rows(lambda row: timed(row, 1.2 if row.name.startswith("LoRA") else 1.0))
    assert (verdicts(quick)[1:3], verdicts(slow)[1:3]) == (["held", "did not hold"], ["held", "held"])
    assert verdicts(slow_lora)[1] == "did not hold"
    wide = result._replace(base_parameters=result.base_parameters * 10)
    assert (verdicts(result)[0], verdicts(wide)[0]) == ("held in part", "held")
    easy = with_rows(lambda row: row._replace(losses=(1.0, 1.0) if row.positions else (2.0, 2.0)))
    hard = with_rows(lambda row: row._replace(losses=(2.0, 2.0) if row.positions else (1.0, 1.0)))
    assert (verdicts(easy)[4], verdicts(hard)[4]) == ("did not hold", "held")


def test_the_command_writes_what_it_is_asked_for(tmp_path, capsys, monkeypatch, result):
    monkeypatch.setattr(comparison, "run", lambda *args: result)
    for name in "c.svg", "c.png":
        assert main(["compare", "--picture", str(tmp_path / name), "--json", str(tmp_path / "c.json")]) == 0
    printed = capsys.readouterr()
    assert "Claims about the methods" in printed.out and printed.err == ""  # no progress: it is no terminal
    assert max(map(len, printed.out.splitlines())) <= 80
    assert len(json.loads((tmp_path / "c.json").read_text())["rows"]) == 12
    assert b"<svg" in (tmp_path / "c.svg").read_bytes() and (tmp_path / "c.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("arguments,words", [
    (["--seeds", "0"], "--seeds is 0, expected at least 1"), (["--picture", "c.gif"], "expected a name that ends in .svg"),
    (["--json", "nowhere/at/all.json"], "there is no folder"),
])
def test_bad_arguments_are_refused_before_the_work(arguments, words, capsys):
    with pytest.raises(SystemExit) as error:
        main(["compare", *arguments])
    assert error.value.code == 2 and words in capsys.readouterr().err


def test_without_matplotlib_a_picture_is_refused_before_the_work(monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["lora_ref.__main__"], "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["compare", "--picture", "c.svg"])
    assert "matplotlib, which is not installed" in capsys.readouterr().err


def test_papers_are_printed(capsys):
    assert main(["papers"]) == 0
    assert "Table 4: GPT-3 175B" in capsys.readouterr().out


def test_a_ratio_is_a_median_with_an_interval_that_holds_it():
    """Of 999 draws of 100 log-normal ratios, the true median 1 lies outside of 1 % of the intervals, give or take."""
    rng = np.random.default_rng(0)
    outside = 0
    for _ in range(999):
        middle, low, high = report.ratio(tuple(np.exp(rng.standard_normal(100))), (1.0,) * 100)
        assert low <= middle <= high
        outside += not low <= 1 <= high
    assert outside <= 25  # more has a probability of 1e-5
    assert report.ratio((2.0, 4.0, 6.0), (1.0, 2.0, 3.0)) == (2.0, 2.0, 2.0)
