"""The judgement of log-probabilities: right ones, rounded ones, and wrong ones, whose fault is found."""

import math

import numpy as np
import pytest

from conformance.files import judge, llama, merging
from conformance.files.binary import safetensors
from conformance.files.corpus.made import drawn
from conformance.files.judge import Right

Q, V = (f"model.layers.{i}.self_attn.{name}_proj" for i, name in ((0, "q"), (1, "v")))
TRUTH = {module: 0.75 * (drawn(f"B {module}", llama.SHAPES[module[15:]][0], 4) @ drawn(f"A {module}", 4, 64)).astype(float) / 16
         for module in (Q, V)}
RIGHT = Right(TRUTH, dict.fromkeys(TRUTH, 4), dict.fromkeys(TRUTH, 3 / 2), 3)


def verdict(factors, noise=0.0, right=RIGHT):
    """Of log-probabilities with these factors, by a reader that rounds so."""
    rng = np.random.default_rng(1)
    plain, _ = judge.of_base()
    got = judge.with_adapter(TRUTH, factors)
    return judge.of_logits(got + noise * rng.standard_normal(got.shape), plain + noise * rng.standard_normal(got.shape), right)


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3])
def test_what_is_right_is_right_however_coarse_the_reader_rounds(noise):
    found = verdict({}, noise)
    assert not found.words and found.ratio is not None and found.effect is not None
    assert found.ratio <= 1 and found.effect > 0.1


@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-3])
def test_a_wrong_factor_is_found_and_named(noise):
    left_out = verdict({Q: 0.0, V: 0.0}, noise)
    assert left_out.words == f"{Q}, {V}: the LoRA part is left out"
    assert left_out.ratio is not None and left_out.ratio > 1
    assert verdict({V: 0.0}, noise).words == f"{V}: the LoRA part is left out"
    assert verdict({V: -1.0}, noise).words == f"{V}: -1 times ΔW: the sign is wrong"
    assert "whatever use_rslora and alpha_pattern say" in verdict({Q: 0.5, V: 0.5}, noise).words


def test_another_adapter_is_wrong_and_has_no_factor():
    other = {module: np.roll(delta, 1, 0) for module, delta in TRUTH.items()}
    found = judge.of_logits(judge.with_adapter(other, {}), judge.of_base()[0], RIGHT)
    assert "off by" in found.words and found.ratio is not None and found.ratio > 1


def test_numbers_that_are_none_are_wrong():
    plain, _ = judge.of_base()
    assert judge.of_logits(np.full_like(plain, math.nan), plain, RIGHT).words


@pytest.mark.peers("transformers")
def test_the_small_llama_is_that_of_transformers():
    import torch

    model = merging.llama_of("float32").double()
    with torch.no_grad():
        want = model(torch.tensor([llama.TOKENS])).logits[0].numpy()
    got = llama.logits({name: array.astype(float) for name, array in merging.base("float32").items()})
    _, deviation = judge.of_base()
    assert np.abs(judge.log_probabilities(got) - judge.log_probabilities(want)).max() < deviation.min()


def test_a_merged_checkpoint_without_the_adapter_has_no_share(tmp_path):
    for dtype in merging.DTYPES:
        (tmp_path / "model.safetensors").write_bytes(safetensors(merging.base(dtype)))
        found = judge.of_checkpoint(tmp_path, dtype)
        assert found.share == 0 and found.share_ratio > 1, dtype
        assert 0.99 < found.best_share < 1.01
