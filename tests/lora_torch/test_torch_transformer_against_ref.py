"""lora_torch.Transformer agrees with lora_ref.transformer: logits, loss, gradients, and steps of AdamW.

The reference runs in longdouble, and `lora_ref.error.noise` says how far an honest error of the dtype that is judged reaches.
"""

import itertools
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from small_models import CONFIGS, METHODS, Trial, trial
from torch import Tensor

import lora_torch
from conformance.truth.compare import Mismatch, expect_within_spread, reach
from lora_ref import adapter, lora, ops, optim, prefix, ptuning, transformer
from lora_ref.error import noise
from lora_ref.shapes import rows
from lora_torch import transformer as torch_transformer

Arrays = dict[str, np.ndarray]
UNITS = {"float64": 2.0**-53, "float32": 2.0**-24}
KINK = "pre-activations of relu at "
every_method = pytest.mark.parametrize("method", METHODS)


class Judged(NamedTuple):
    """What the reference gives for a trial, and the standard deviation of an honest error of each number."""

    trial: Trial
    truth: Arrays
    deviation: Arrays


def torch_method(spec: Any) -> torch_transformer.Method:
    """The method's Config of lora_torch for a Config of lora_ref."""
    if isinstance(spec, lora.Config):
        return lora_torch.lora.Config(rank=spec.rank, scale=spec.scale)
    if isinstance(spec, adapter.Config):
        return lora_torch.adapter.Config(spec.bottleneck, activation=spec.activation, scale=spec.scale, init=spec.start)
    if isinstance(spec, prefix.Config):
        return lora_torch.prefix.Config(length=spec.length, hidden_size=spec.hidden_size)
    assert isinstance(spec, ptuning.Config)
    return lora_torch.ptuning.Config(spec.positions, encoder=spec.encoder, hidden_size=spec.hidden_size)


def torch_model(t: Trial) -> torch_transformer.Transformer:
    """A lora_torch.Transformer with the arrays of the trial, in their dtype. The base trains if there is no method."""
    config = torch_transformer.Config(**t.config._asdict())
    methods = {place: torch_method(spec) for place, spec in t.methods.items()}
    dtype = getattr(torch, str(next(iter(t.arrays.values())).dtype))
    model = torch_transformer.Transformer(config, methods, full=not methods, dtype=dtype)
    model.load_arrays({name: torch.from_numpy(a) for name, a in t.arrays.items()})
    return model


def torch_loss(t: Trial, model: torch_transformer.Transformer) -> tuple[Tensor, Tensor]:
    """The logits and the loss."""
    logits = model(torch.from_numpy(t.tokens), None if t.mask is None else torch.from_numpy(t.mask))
    return logits, torch_transformer.loss(logits, torch.from_numpy(t.targets))


def copied(tensors: dict[str, Tensor]) -> Arrays:
    return {name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}


def trained(t: Trial) -> list[str]:
    """What the methods have, or all of the base."""
    return list(transformer.shapes(t.config, t.methods, only=bool(t.methods)))


def reference(t: Trial, arrays: Arrays) -> Arrays:
    """logits, loss, the gradients of all that trains, and the pre-activations of every relu: where one may round to the other
    side of zero, gradients have no one truth."""
    logits, cache = transformer.forward(t.tokens, arrays, t.config, t.methods, t.mask)
    loss, kept = ops.loss(logits, t.targets)
    found = {"logits": logits, "loss": np.asanyarray(loss)}
    for place, spec in t.methods.items():
        if isinstance(spec, adapter.Config) and spec.activation == "relu":
            x, p = cache.caches[place].x, cache.caches[place].p
            found[KINK + place] = rows(x) @ p.down + p.down_bias
        if isinstance(spec, ptuning.Config) and spec.encoder != "embedding":
            p, x = cache.caches[place][:2]
            found[KINK + place] = x @ p.W1.T + p.b1
    return found | transformer.backward(ops.loss_backward(kept), cache, trained(t))


def clear_of_kinks(truth: Arrays, deviation: Arrays) -> bool:
    """Whether rounding cannot change the sign of any pre-activation."""
    return all((np.abs(truth[name]) > reach() * deviation[name]).all() for name in truth if name.startswith(KINK))


@cache
def judged(config: str, method: str, dtype: str, masked: bool) -> Judged:
    """The Judged of the first seed whose pre-activations are clear of zero."""
    for seed in itertools.count():
        t = trial(config, method, seed, dtype, masked)
        truth, deviation = noise.spread(lambda a, t=t: reference(t, a), t.arrays, UNITS[dtype])
        if clear_of_kinks(truth, deviation):
            return Judged(t, *({n: a for n, a in of.items() if not n.startswith(KINK)} for of in (truth, deviation)))
    raise AssertionError


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("dtype", UNITS)
@every_method
@pytest.mark.parametrize("config", CONFIGS)
def test_logits_loss_and_gradients_agree(config, method, dtype, masked):
    """The gradients of everything that trains agree: with full fine-tuning those of every array of the base."""
    t, truth, deviation = judged(config, method, dtype, masked)
    model = torch_model(t)
    logits, loss = torch_loss(t, model)
    loss.backward()
    got = {"logits": logits, "loss": loss} | model.gradients()
    assert set(got) == set(truth) and all(str(tensor.dtype) == f"torch.{dtype}" for tensor in got.values())
    for name, array in copied(got).items():
        expect_within_spread(array, truth[name], deviation[name], name)


@every_method
def test_a_gradient_that_is_off_by_a_part_in_a_billion_is_refused(method):
    """A gradient with a relative error of 1e-9 fails, so the bounds are narrow enough. Only the gradient of the keys' biases is
    exempt: it is zero without a prefix."""
    _, truth, deviation = judged("gelu", method, "float64", False)
    for name in truth:
        expect_within_spread(truth[name], truth[name], deviation[name], name)
        if not name.endswith("k_proj.bias"):
            with pytest.raises(Mismatch, match=f"^{name}"):
                expect_within_spread(truth[name] * (1 + 1e-9), truth[name], deviation[name], name)


@pytest.mark.parametrize("method", ["pfeiffer", "prompt-mlp"])
def test_a_pre_activation_at_zero_is_seen(method):
    """With a bias that takes the smallest of them to within a rounding of zero, the seed would not be used."""
    t, _, _ = judged("gelu", method, "float64", False)
    place, bias = ("prompt", "prompt.b1") if method == "prompt-mlp" else ("layers.0.output", "layers.0.output.down_bias")
    truth, deviation = noise.spread(lambda a: reference(t, a), t.arrays, UNITS["float64"])
    assert clear_of_kinks(truth, deviation)
    at = np.unravel_index(np.abs(truth[KINK + place]).argmin(), truth[KINK + place].shape)
    moved = t.arrays[bias].copy()
    moved[at[-1]] -= truth[KINK + place][at]
    assert not clear_of_kinks(*noise.spread(lambda a: reference(t, a), t.arrays | {bias: moved}, UNITS["float64"]))


# AdamW. Bounds on a trajectory would grow with every step. So each step is judged by itself: the reference takes it from where
# torch's own steps have led, arrays and memory, and so every step of torch is shown to be right.

STEPS, RATE, DECAY = 20, 0.01, 0.01
TRAJECTORIES = [(config, method, "float64") for config, method in zip(itertools.cycle(CONFIGS), METHODS, strict=False)]
TRAJECTORIES += [("gelu", "lora", "float32"), ("grouped", "full", "float32")]


def rate(name: str) -> float:
    """That of B is larger (LoRA+)."""
    return 16 * RATE if name.endswith(".B") else RATE


def torch_optimizer(model: torch_transformer.Transformer) -> torch.optim.AdamW:
    """A group for each rate."""
    groups: dict[float, list[Tensor]] = {}
    for name, array in model.arrays().items():
        if array.requires_grad:
            groups.setdefault(rate(name), []).append(array)
    return torch.optim.AdamW([{"params": group, "lr": r} for r, group in groups.items()], weight_decay=DECAY)


def memory(model: torch_transformer.Transformer, optimizer: torch.optim.AdamW) -> Arrays:
    """What there is beside the frozen arrays: those that train, m and v."""
    mine = {name: array for name, array in model.arrays().items() if array.requires_grad}
    found = dict(mine)
    for part, theirs in ("m", "exp_avg"), ("v", "exp_avg_sq"):
        found |= {f"{part} {name}": optimizer.state[a].get(theirs, torch.zeros_like(a)) for name, a in mine.items()}
    return copied(found)


def reference_step(t: Trial, given: Arrays, taken: int) -> Arrays:
    """The arrays, m and v after the step that follows `taken` ones: forward, loss, backward, AdamW. And the kinks before."""
    train, arrays = trained(t), {name: given[name] for name in t.arrays}
    found = reference(t, arrays)
    state = optim.State(*({name: given[f"{part} {name}"] for name in train} for part in "mv"), taken)
    rates = {name: rate(name) for name in train}
    arrays, state = optim.adamw(arrays, {name: found[name] for name in train}, state, rates, decay=DECAY)
    assert state.t == taken + 1
    memories = {f"{part} {name}": a for part, of in (("m", state.m), ("v", state.v)) for name, a in of.items()}
    return arrays | memories | {name: a for name, a in found.items() if name.startswith(KINK)}


def trajectory(t: Trial, unit: float) -> tuple[torch_transformer.Transformer, list[tuple[Arrays, Arrays, Arrays]]] | None:
    """The model after its steps, and of each what torch has after it, what it should have, and how far honest errors reach.
    None if a pre-activation on the way is within rounding of a kink."""
    model = torch_model(t)
    optimizer, taken = torch_optimizer(model), []
    for step in range(STEPS):
        before = copied(model.arrays()) | memory(model, optimizer)
        truth, deviation = noise.spread(lambda a, step=step: reference_step(t, a, step), before, unit)
        if not clear_of_kinks(truth, deviation):
            return None
        optimizer.zero_grad()
        torch_loss(t, model)[1].backward()
        optimizer.step()
        taken.append((memory(model, optimizer), truth, deviation))
    return model, taken


@pytest.mark.parametrize("config,method,dtype", TRAJECTORIES)
def test_every_step_of_adamw_agrees(config, method, dtype):
    """Every step agrees. In both, frozen arrays stay bit for bit, and all others change."""
    done = None
    for seed in itertools.count():
        t = trial(config, method, seed, dtype)
        done = trajectory(t, UNITS[dtype])
        if done:
            break
    assert done
    model, steps = done
    for got, truth, deviation in steps:
        for name, array in got.items():
            expect_within_spread(array, truth[name], deviation[name], name)

    arrays = dict(t.arrays)
    arrays |= {f"{part} {name}": np.zeros_like(arrays[name]) for part in "mv" for name in trained(t)}
    for step in range(STEPS):
        arrays = reference_step(t, arrays, step)
    after = copied(model.arrays())
    for name, array in t.arrays.items():
        kept = [np.array_equal(array, other[name]) for other in (arrays, after)]
        assert kept == [name not in trained(t)] * 2, name
