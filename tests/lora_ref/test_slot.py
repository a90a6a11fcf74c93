"""A new method is one file: LoRA-FA, defined here, works in the transformer and in the comparison without any other change."""

import importlib

import numpy as np
import pytest
from small_models import BASE, Trial, run, trial

from lora_ref import lora, ops, transformer
from lora_ref.error.gradcheck import complex_step
from lora_ref.study import comparison

GRADIENT_ERROR = 1e-12  # every gradient agrees with the complex step to this, relatively
PLACE = "layers.0.q_proj"

LORA_FA = '''
"""LoRA-FA: LoRA with A frozen as it was drawn. Zhang et al., "LoRA-FA", 2023, arXiv:2308.03303."""

from typing import NamedTuple

from lora_ref import linear, lora
from lora_ref.lora import forward, init, init_at, merge, shapes  # noqa: F401
from lora_ref.shapes import rows

PLACE = "linear"
FROZEN = ("A",)


class Config(NamedTuple):
    rank: int
    scale: float = 1.0


class Trained(NamedTuple):
    B: object


def backward(dy, cache):
    dx, dp = lora.backward(dy, cache)
    return dx, Trained(dp.B)


def parameter_count(in_features, out_features, rank):
    return rank * out_features
'''


@pytest.fixture
def case(tmp_path, monkeypatch) -> tuple[Trial, object]:
    (tmp_path / "lora_fa.py").write_text(LORA_FA)
    monkeypatch.syspath_prepend(tmp_path)
    method = importlib.import_module("lora_fa")
    t, methods, rng = trial("gelu", "full"), {PLACE: method.Config(2, 1.5)}, np.random.default_rng(1)
    own = transformer.init_methods(rng, t.config, methods)
    assert not own[f"{PLACE}.B"].any()
    own[f"{PLACE}.B"] = rng.standard_normal(own[f"{PLACE}.B"].shape)
    return t._replace(arrays=t.arrays | own, methods=methods), method


def test_b_trains_and_a_does_not(case):
    t, method = case
    assert transformer.trained_names(t.config, t.methods) == (f"{PLACE}.B",)
    assert method.parameter_count(8, 8, 2) == t.arrays[f"{PLACE}.B"].size
    with pytest.raises(ValueError, match=r"train has 'layers.0.q_proj.A', .* because its method keeps it frozen"):
        run(t)


def test_every_gradient_is_that_of_the_complex_step(case):
    t, _ = case
    names = [f"{PLACE}.B", f"{PLACE}.weight", "layers.0.attention_norm.weight", "embed_positions.weight"]
    got = run(t, train=names)

    def loss(*moved):
        arrays = {n: a.astype(complex) for n, a in t.arrays.items()} | dict(zip(names, moved, strict=True))
        return np.asarray(ops.loss(transformer.forward(t.tokens, arrays, t.config, t.methods)[0], t.targets)[0])

    for name, want in zip(names, complex_step(loss, [t.arrays[n] for n in names], np.ones(())), strict=True):
        assert np.abs(got[name] - want).max() < GRADIENT_ERROR * np.abs(want).max(), name


def test_it_is_merged_and_refused_as_lora_is(case):
    t, method = case
    merged, left = transformer.merge(t.arrays, t.config, t.methods)
    assert left == {} and set(merged) == set(transformer.base_names(t.config))
    logits, want = transformer.forward(t.tokens, merged, t.config)[0], run(t, train=[])["logits"]
    assert np.abs(logits - want).max() < GRADIENT_ERROR * np.abs(want).max()
    with pytest.raises(ValueError, match="lora_fa is at 'prefix', expected one of its places: layers.0.q_proj"):
        transformer.shapes(BASE, {"prefix": method.Config(2)})


def test_the_comparison_needs_no_edit(case):
    _, method = case
    config, own = comparison.CONFIG, {"layers.0.q_proj": method.Config(4, 2.0)}
    rng = np.random.default_rng(2)
    new = comparison.Method("LoRA-FA", own)
    arrays, names = comparison.start(transformer.init(rng, config, np.float32), new, rng)
    row = comparison.described(new, arrays, 0.1, [1.0])
    assert names == ["layers.0.q_proj.B"] and (row.trained, row.stored, row.operations) == (4 * config.width, 0, 1.0)
    with_lora = comparison.operations(config, {"layers.0.q_proj": lora.Config(4, 2.0)})
    assert comparison.operations(config, own) == with_lora > comparison.operations(config, {})
