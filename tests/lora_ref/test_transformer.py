"""lora_ref.transformer: every gradient with every method agrees with the complex step, and each method has its properties."""

import itertools

import numpy as np
import pytest
from small_models import BASE, CONFIGS, METHODS, run, trial
from thorough import THOROUGH

from lora_ref import adapter, attention, lora, ops, prefix, ptuning, transformer
from lora_ref.error.gradcheck import STEP

GRADIENT_ERROR = 1e-12  # every gradient agrees with the complex step to this, relatively

GRADIENTS = [*itertools.product(CONFIGS, METHODS, [False]), *itertools.product(["grouped"], METHODS, [True])]


@pytest.mark.parametrize("config,method,masked", GRADIENTS)
def test_every_gradient_is_that_of_the_complex_step(config, method, masked):
    """The gradient of every array, frozen ones too, along a random direction v: ⟨gradient, v⟩ is the derivative along v.

    A wrong gradient agrees with probability 0, and a direction takes one forward pass where the single elements take one each.
    The thorough profile also takes every element. An error is relative to the largest entry of the gradient; for the biases
    of the keys, whose gradient is zero without a prefix (a softmax does not see what all its scores share), to the largest
    entry for the biases of the queries.
    """
    t = trial(config, method, seed=len(config + method), mask=masked)
    got, rng = run(t), np.random.default_rng(len(config + method))
    held = {name: a.astype(complex) for name, a in t.arrays.items()}
    for name, a in t.arrays.items():
        directions = [rng.standard_normal(a.shape)]
        if THOROUGH:
            directions += list(np.eye(a.size).reshape(-1, *a.shape))
        largest = np.abs(got[name.replace("k_proj.bias", "q_proj.bias")]).max()
        for v in directions:
            logits, _ = transformer.forward(t.tokens, held | {name: a + 1j * STEP * v}, t.config, t.methods, t.mask)
            want = ops.loss(logits, t.targets)[0].imag / STEP
            assert abs((got[name] * v).sum() - want) < GRADIENT_ERROR * largest * np.sqrt((v * v).sum()), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("method", METHODS)
def test_dtype_is_kept_and_no_argument_changed(method, dtype):
    t = trial("gelu", method, dtype=dtype)
    for array in t.arrays.values():
        array.flags.writeable = False
    assert all(a.dtype == dtype for a in run(t).values())


@pytest.mark.parametrize("method", [m for m in METHODS if m != "full"])
def test_only_what_trains_gets_a_gradient(method):
    t = trial("gelu", method)
    own = transformer.shapes(t.config, t.methods, only=True)
    assert set(own) == set(t.arrays) - set(transformer.base_names(t.config))
    assert set(own) == set(transformer.trained_names(t.config, t.methods))
    alone, all_of_them = run(t, train=list(own)), run(t)
    assert set(alone) == {"logits", "loss", *own}
    assert all(np.array_equal(alone[name], all_of_them[name]) for name in own)


@pytest.mark.parametrize("methods", [
    METHODS["lora"],
    {"layers.0.mlp": adapter.Config(3, start="zero"), "layers.1.output": adapter.Config(3, "gelu", start="zero")},
], ids=["lora", "adapter"])
def test_a_fresh_method_leaves_the_model_bit_for_bit(methods):
    rng = np.random.default_rng(3)
    t = trial("gelu", "full")
    fresh = t.arrays | transformer.init_methods(rng, t.config, methods)
    logits, _ = transformer.forward(t.tokens, fresh, t.config, methods)
    assert np.array_equal(logits, run(t)["logits"])


def test_a_near_identity_adapter_is_near_and_not_the_identity():
    t, methods = trial("gelu", "full"), METHODS["houlsby"]
    p = transformer.init_methods(np.random.default_rng(3), t.config, methods)
    assert max(np.abs(a).max() for a in p.values()) <= 0.02  # two standard deviations of the paper's 0.01
    logits, _ = transformer.forward(t.tokens, t.arrays | p, t.config, methods)
    assert 0 < np.abs(logits - run(t)["logits"]).max() < 0.02


MERGED = ["lora", "prefix-mlp", "prompt-mlp", "prompt-lstm", "everything"]


@pytest.mark.parametrize("config,method", list(itertools.product(["gelu", "fused"], MERGED)))
def test_merged_or_folded_gives_the_same_logits(config, method):
    t = trial(config, method)
    arrays, methods = transformer.merge(t.arrays, t.config, t.methods)
    assert not any(isinstance(spec, lora.Config) for spec in methods.values())
    assert not any(name.endswith((".A", ".B", ".W1")) for name in arrays)
    logits, _ = transformer.forward(t.tokens, arrays, t.config, methods)
    want = run(t)["logits"]
    assert np.abs(logits - want).max() < GRADIENT_ERROR * np.abs(want).max()
    if not any(isinstance(spec, lora.Config) for spec in t.methods.values()):
        assert np.array_equal(logits, want)  # a fold computes the same numbers


@pytest.mark.parametrize("config", CONFIGS)
def test_a_prefix_equals_real_tokens_prepended(config):
    """The keys and values of two real tokens, kept and given as a prefix: what follows them does not see the difference."""
    t = trial(config, "full")
    logits, cache = transformer.forward(t.tokens[:1], t.arrays, t.config)
    kept = [cache.caches[f"layers.{i}.attention.core"] for i in range(t.config.layers)]
    keys, values = (np.stack([attention._rows(getattr(c, part)[:, :, :2])[0] for c in kept]) for part in "kv")
    arrays = t.arrays | {"prefix.keys": keys, "prefix.values": values}
    rest, _ = transformer.forward(t.tokens[:1, 2:], arrays, t.config, {"prefix": prefix.Config(2)})
    assert np.abs(rest - logits[:, 2:]).max() < GRADIENT_ERROR * np.abs(logits).max()


@pytest.mark.parametrize("positions", [(0,), (4,), (1, 3)])
def test_prompts_equal_the_tokens_that_stand_there(positions):
    """In longdouble, whose products NumPy sums itself: a BLAS may sum a product of other rows in another order."""
    t = trial("gelu", "full", dtype=np.longdouble)
    want, _ = transformer.forward(t.tokens[:1], t.arrays, t.config)
    others = [at for at in range(5) if at not in positions]
    arrays = t.arrays | {"prompt.embedding": t.arrays["embed_tokens.weight"][t.tokens[0, list(positions)]]}
    got, _ = transformer.forward(t.tokens[:1, others], arrays, t.config, {"prompt": ptuning.Config(positions)})
    assert np.array_equal(got, want[:, others])


@pytest.mark.parametrize("method", ["full", "prefix", "prompt"])
def test_padding_is_not_seen(method):
    """Padding after the tokens changes nothing, and neither does its content."""
    t = trial("gelu", method)
    methods = {"prompt": ptuning.Config((0, 1))} if method == "prompt" else t.methods
    short, _ = transformer.forward(t.tokens[:, :3], t.arrays, t.config, methods)
    mask = np.array([[True, True, True, False, False]] * 2)
    long, _ = transformer.forward(t.tokens, t.arrays, t.config, methods, mask)
    assert np.abs(long[:, :3] - short).max() < GRADIENT_ERROR * np.abs(short).max()
    mask = np.array([[False, True, True, True, True]] * 2)  # in front: positions stay, and no later token sees it
    first = transformer.forward(t.tokens, t.arrays, t.config, methods, mask)[0]
    other = t.tokens.copy()
    other[:, 0] = (other[:, 0] + 1) % t.config.vocabulary
    assert np.array_equal(first[:, 1:], transformer.forward(other, t.arrays, t.config, methods, mask)[0][:, 1:])
    assert not np.array_equal(first[:, 1:], transformer.forward(other, t.arrays, t.config, methods)[0][:, 1:])


def test_a_later_token_is_not_seen():
    t = trial("grouped", "everything")
    other = t.tokens.copy()
    other[:, 3:] = (other[:, 3:] + 1) % t.config.vocabulary
    first, second = (transformer.forward(x, t.arrays, t.config, t.methods)[0] for x in (t.tokens, other))
    assert np.array_equal(first[:, :3], second[:, :3]) and not np.array_equal(first[:, 3], second[:, 3])


def test_a_fused_projection_is_three_separate_ones():
    """A fused model gives the same numbers. One LoRA on the fused matrix is the same as three that share A."""
    t = trial("fused", "lora")
    own = {"layers.0.qkv_proj": lora.Config(2, 1.5)}
    arrays = {n: a for n, a in t.arrays.items() if n in transformer.shapes(t.config, own)}
    want, _ = transformer.forward(t.tokens, arrays, t.config, own)
    config, methods = t.config._replace(fused=False), {f"layers.0.{part}_proj": lora.Config(2, 1.5) for part in "qkv"}
    for name in [n for n in arrays if ".qkv_proj." in n]:
        a, axis = arrays.pop(name), -1 if name.endswith(".B") else 0
        parts = [a] * 3 if name.endswith(".A") else np.split(a, t.config.splits, axis=axis)
        arrays |= {name.replace("qkv", part): piece for part, piece in zip("qkv", parts, strict=True)}
    got, _ = transformer.forward(t.tokens, arrays, config, methods)
    assert np.abs(got - want).max() < GRADIENT_ERROR * np.abs(want).max()


def test_parameter_counts_are_the_closed_forms():
    def count(methods):
        return sum(int(np.prod(shape)) for shape in transformer.shapes(BASE, methods, only=True).values())

    d, m, layers = BASE.width, BASE.mlp_width, BASE.layers
    assert count({"layers.0.q_proj": lora.Config(3)}) == lora.parameter_count(d, d, 3) == 2 * d * 3
    assert count({"layers.0.down_proj": lora.Config(3)}) == lora.parameter_count(m, d, 3) == 3 * (m + d)
    assert count({"layers.0.mlp": adapter.Config(3)}) == adapter.parameter_count(d, 3) == 2 * 3 * d + 3 + d
    assert count({"prefix": prefix.Config(3)}) == prefix.parameter_count(layers, 3, d) == 2 * layers * 3 * d
    reparameterised = prefix.parameter_count(layers, 3, d, 5, d)
    assert count({"prefix": prefix.Config(3, 5)}) == reparameterised == 3 * d + 5 * (d + 1) + 2 * layers * d * 6
    assert count({"prompt": ptuning.Config((0, 1))}) == ptuning.parameter_count(2, d) == 2 * d
    mlp = ptuning.parameter_count(2, d, "mlp", 5)
    assert count({"prompt": ptuning.Config((0, 1), "mlp", 5)}) == mlp == 2 * d + 5 * (d + 1) + d * 6
    lstm = ptuning.parameter_count(2, d, "lstm", 5)
    assert count({"prompt": ptuning.Config((0, 1), "lstm", 5)}) == lstm == 2 * d + 2 * 20 * (d + 6) + 10 * 11 + d * 11


def test_the_initial_model_is_that_of_gpt2():
    arrays = transformer.init(np.random.default_rng(0), BASE._replace(width=64, mlp_width=256, layers=8), np.float32)
    assert all(a.dtype == np.float32 for a in arrays.values())
    assert (arrays["norm.weight"] == 1).all() and not arrays["layers.0.q_proj.bias"].any()
    small = np.concatenate([a.ravel() for n, a in arrays.items() if n.endswith(("o_proj.weight", "down_proj.weight"))])
    wide = np.concatenate([a.ravel() for n, a in arrays.items() if n.endswith(("q_proj.weight", "up_proj.weight"))])
    assert round(wide.std(), 3) == 0.02 and round(small.std(), 3) == 0.005  # 0.02 / √16


REFUSED = [
    ({"layers.2.q_proj": lora.Config(2)}, "lora is at 'layers.2.q_proj', expected one of its places: layers.0.q_proj"),
    ({"layers.0.q_proj": adapter.Config(2)}, "adapter is at 'layers.0.q_proj'"),
    ({"prompt": prefix.Config(2)}, "prefix is at 'prompt'"),
    ({"prefix": ptuning.Config((0,))}, "ptuning is at 'prefix'"),
    ({"prefix": 3}, "prefix has 3, expected a Config of a method"),
    ({"prefix": prefix.Config(0)}, "length is 0"),
    ({"layers.0.q_proj": lora.Config(0)}, "rank is 0"),
    ({"prompt": ptuning.Config((0,), "gru")}, "encoder is 'gru'"),
    ({"prompt": ptuning.Config((0,), "mlp")}, "hidden_size is None"),
]


@pytest.mark.parametrize("methods,words", REFUSED)
def test_a_method_where_it_cannot_go_is_refused(methods, words):
    with pytest.raises(ValueError, match=words.replace("(", r"\(").split("\n")[0]):
        transformer.shapes(BASE, methods)


@pytest.mark.parametrize("change,words", [
    ({"width": 9}, "width is 9, expected a multiple of 4"), ({"kv_heads": 3}, "heads is 4, expected a multiple of 3"),
    ({"layers": 0}, "layers is 0"), ({"activation": "relu"}, "activation is 'relu'"), ({"norm": "batch"}, "norm is 'batch'"),
])
def test_a_configuration_that_cannot_be_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        transformer.init(np.random.default_rng(0), BASE._replace(**change))


def test_bad_arguments_are_refused():
    t = trial("gelu", "prompt")

    def refused(words, tokens=t.tokens, arrays=t.arrays, methods=t.methods, mask=None):
        with pytest.raises(ValueError, match=words):
            transformer.forward(tokens, arrays, t.config, methods, mask)

    refused(r"tokens is float64 \(2, 5\), expected integers", tokens=t.tokens.astype(float))
    refused(r"tokens is int64 \(5,\)", tokens=t.tokens[0])
    refused(r"tokens are 0 … 7, expected 0 … 6", tokens=np.array([[0, 7]]))
    refused(r"11 tokens and 2 virtual ones, expected at most 12", tokens=np.zeros((1, 11), int))
    refused(r"mask is int64 \(2, 5\), expected bool \(2, 5\)", mask=np.ones((2, 5), int))
    refused(r"mask is bool \(2, 4\)", mask=np.ones((2, 4), bool))
    refused(r"norm.weight is missing from arrays", arrays={n: a for n, a in t.arrays.items() if n != "norm.weight"})
    refused(r"stray is unknown among arrays", arrays=t.arrays | {"stray": np.ones(3)})
    refused(r"norm.bias is float32 \(8,\), expected float64", arrays=t.arrays | {"norm.bias": np.zeros(8, np.float32)})
    wide = t.arrays | {"prompt.embedding": np.zeros((2, 9))}
    refused(r"prompt.embedding is float64 \(2, 9\), expected float64 \(2, 8\)", arrays=wide)
    refused(r"positions is \(0, 7\), expected ascending places in range", methods={"prompt": ptuning.Config((0, 7))})
    refused(r"positions is \(3, 0\)", methods={"prompt": ptuning.Config((3, 0))})
    logits, cache = transformer.forward(t.tokens, t.arrays, t.config, t.methods)
    with pytest.raises(ValueError, match="train has 'stray'"):
        transformer.backward(logits, cache, ["stray"])
    with pytest.raises(ValueError, match=r"dlogits is \(2, 4, 7\), expected \(2, 5, 7\)"):
        transformer.backward(logits[:, :-1], cache, ["norm.weight"])
    with pytest.raises(ValueError, match="targets has a value outside 0 … 6"):
        ops.loss(logits, t.targets + 6)
    with pytest.raises(ValueError, match="every one of targets is -100"):
        ops.loss(logits, np.full_like(t.targets, ops.IGNORED))
    with pytest.raises(ValueError, match="activation is 'tanh'"):
        adapter.forward(np.ones((1, 4)), adapter.init(np.random.default_rng(0), 4, 2), "tanh")
    with pytest.raises(ValueError, match="start is 'far'"):
        adapter.init(np.random.default_rng(0), 4, 2, start="far")
