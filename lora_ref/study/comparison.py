"""Compares the methods on one task: how many numbers each trains, what it costs, and which loss it reaches.

A small transformer learns a made-up language (`language.py`). Each method then fine-tunes it on the same language with half of
the rules drawn anew, over several seeds. The learning rate of each method is the best of one list, on a seed of its own.
`timing.py` times training steps and inference. `report.py` gives the times as ratios, with the median over the rounds and an
interval that holds it with a probability of 99 %.
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lora_ref import adapter, lora, prefix, ptuning, transformer
from lora_ref.places import Arrays, Config, Methods, linears, method_shapes
from lora_ref.study import language
from lora_ref.study.fine_tuning import CONFIG, LENGTH, Method, loss, start, train
from lora_ref.study.timing import latency, step_times

RATES = (1e-2, 3e-2, 1e-1)
Progress = Callable[[float, str], None]  # share done, what is being done


class Row(NamedTuple):
    """What was measured for one method. Times in seconds, memory in bytes, losses in nats."""

    name: str
    trained: int  # numbers that train
    stored: int  # numbers that the merged model has in addition to the base
    operations: float  # multiply-adds of a forward pass of the merged model, divided by those of the base
    positions: int  # positions of the context that the method takes
    memory: int  # gradients and AdamW's two moments
    rate: float  # the chosen learning rate
    step: tuple[float, ...]  # time of a training step in each round
    latency: dict[int, tuple[float, ...]]  # batch → time of a forward pass in each round
    losses: tuple[float, ...]  # for each seed, on words that were not trained on


class Result(NamedTuple):
    """What `run` measured."""

    rows: tuple[Row, ...]  # the base first, which trains nothing
    entropy: float  # the entropy of the shifted language, which no loss is below
    base_parameters: int
    seconds: float


def places() -> list[Method]:
    """Every method at its usual place in every layer."""
    layers = range(CONFIG.layers)
    qv = {f"layers.{i}.{part}_proj": lora.Config(4, 2.0) for i in layers for part in "qv"}
    fused = {f"layers.{i}.qkv_proj": lora.Config(4, 2.0) for i in layers}
    every = {place: lora.Config(4, 2.0) for place in linears(CONFIG) if place != "lm_head"}
    houlsby = {f"layers.{i}.{part}.output": adapter.Config(8, "gelu") for i in layers for part in ("attention", "mlp")}
    pfeiffer = {f"layers.{i}.output": adapter.Config(16, "relu") for i in layers}
    beside = {f"layers.{i}.mlp": adapter.Config(16, "relu", 4.0, "zero") for i in layers}
    eight = tuple(range(8))
    return [
        Method("full fine-tuning", {}, full=True),
        Method("LoRA r=4 on q, v", qv),
        Method("LoRA r=4 on fused qkv", fused, config=CONFIG._replace(fused=True)),
        Method("LoRA r=4 on every layer", every),
        Method("adapters, Houlsby m=8", houlsby),
        Method("adapters, Pfeiffer m=16", pfeiffer),
        Method("adapters, parallel m=16", beside),
        Method("prefix l=8", {"prefix": prefix.Config(8)}),
        Method("prefix l=8, MLP", {"prefix": prefix.Config(8, hidden_size=64)}),
        Method("P-tuning n=8", {"prompt": ptuning.Config(eight)}),
        Method("P-tuning n=8, LSTM", {"prompt": ptuning.Config(eight, "lstm", 32)}),
    ]


def run(seeds: int = 3, steps: int = 200, pretraining: int = 1000, progress: Progress = lambda share, what: None) -> Result:
    """Pretrains the base, fine-tunes it with every method, and measures. Raises ValueError for fewer than one seed or step."""
    for name, value in ("seeds", seeds), ("steps", steps), ("pretraining", pretraining):
        if value < 1:
            raise ValueError(f"compare.run: {name} is {value}, expected at least 1 because a mean is taken over them")
    started = time.perf_counter()
    rng = np.random.default_rng(0)
    old = language.language(rng, CONFIG.vocabulary)
    new = language.shifted(rng, old)
    unseen = language.sample(rng, new, 128, LENGTH + 1)
    methods = places()
    search = max(1, steps // 2)  # steps with each rate; after fewer, a rate that will diverge can look best
    total = pretraining + len(methods) * (seeds * steps + len(RATES) * search)
    done = 0

    def tick(what: str) -> Callable[[], None]:
        def one() -> None:
            nonlocal done
            done += 1
            if done % 10 == 0:
                progress(done / total, what)
        return one

    base = transformer.init(rng, CONFIG, np.float32)
    base = train(base, list(base), CONFIG, {}, old, rng, 3e-3, pretraining, tick("pretraining"))
    rows = []
    for method in methods:
        def tune(seed: int, rate: float, count: int, method: Method = method) -> Arrays:
            rng = np.random.default_rng(seed)
            arrays, names = start(base, method, rng)
            return train(arrays, names, method.config, method.methods, new, rng, rate, count, tick(method.name))

        def lost(arrays: Arrays, method: Method = method) -> float:
            return loss(arrays, method.config, method.methods, unseen)

        rate = min(RATES, key=lambda rate: lost(tune(1000, rate, search)))
        tuned = [tune(seed, rate, steps) for seed in range(seeds)]
        rows.append(described(method, tuned[0], rate, [lost(arrays) for arrays in tuned]))
    progress(1.0, "time")
    latencies, times = latency([Method("base", {}), *methods], base), step_times(methods, base)
    plain = Row("base, not tuned", 0, 0, 1.0, 0, 0, 0.0, (), latencies[0], (loss(base, CONFIG, {}, unseen),))
    rows = [row._replace(latency=its, step=step) for row, its, step in zip(rows, latencies[1:], times, strict=True)]
    size = sum(a.size for a in base.values())
    return Result((plain, *rows), language.entropy(new, unseen), size, time.perf_counter() - started)


def described(method: Method, arrays: Arrays, rate: float, losses: list[float]) -> Row:
    """The row of a method, from the fine-tuned arrays, without its times."""
    base = transformer.base_names(method.config)
    names = base if method.full else transformer.trained_names(method.config, method.methods)
    trained = sum(arrays[name].size for name in names)
    merged, left = transformer.merge(arrays, method.config, method.methods)
    stored = sum(a.size for a in merged.values()) - sum(arrays[name].size for name in base)
    more = operations(method.config, left) / operations(CONFIG, {})
    memory = 3 * trained * np.dtype(np.float32).itemsize
    length, positions = transformer.virtual(method.methods)
    return Row(method.name, trained, stored, more, length + len(positions), memory, rate, (), {}, tuple(losses))


def operations(config: Config, methods: Methods, T: int = LENGTH) -> int:
    """Multiply-adds of all matrix products in a forward pass over one sequence of T tokens, masked scores included."""
    length, positions = transformer.virtual(methods)
    rows = T + len(positions)
    head = T * config.width * config.vocabulary if config.tied else 0
    total = head + config.layers * 2 * rows * (rows + length) * config.width  # scores and values
    for place, (out, n_in) in linears(config).items():
        total += (T if place == "lm_head" else rows) * out * n_in
    for place, p in method_shapes(config, methods).items():
        if place not in ("prefix", "prompt"):  # those two give rows, which are counted above
            total += (T if place == "lm_head" else rows) * sum(math.prod(shape) for shape in p if len(shape) == 2)
    return total
