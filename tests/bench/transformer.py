"""One training step of a small transformer on the CPU: lora_ref (NumPy) beside lora_torch (eager, autograd), as a ratio.

A step is forward, loss, backward and AdamW, float32: 4 layers, width 128, 4 heads, mlp 512, vocabulary 256, batch 16 × 64.
It is measured twice: with all arrays trained ("full"), and with LoRA of rank 4 on q and v ("lora").

The requirement is that lora_ref takes at most 1.5 times as long. The exit status is 0 if both do, and 1 otherwise. Processes
take turns for the reason that ref_vs_torch.py gives; each has the same number of threads.

A step in NumPy holds some 50 MiB of activations. In a training loop the variables live until the next step replaces them, and
the next step gets their memory; this file does the same. A function that drops them all at its end makes glibc give the heap
back to the system, and each step then begins with 25,000 page faults, which double the time of a LoRA step. The column "faults"
shows the page faults of a step, in the process with most of them. A figure far from 0 means that memory was measured.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version

from ref_vs_torch import ROOT, THREAD_VARIABLES, measure

BAR = 1.5
SIZES = {"vocabulary": 256, "width": 128, "layers": 4, "heads": 4, "kv_heads": 4, "mlp_width": 512, "context": 64}
BATCH, T, RANK, SCALE = 16, 64, 4, 2.0
RATE, DECAY = 1e-3, 0.01
PLACES = [f"layers.{i}.{part}_proj" for i in range(SIZES["layers"]) for part in "qv"]


def lora_ref_step(method: str) -> Callable[[], object]:
    import numpy as np

    from lora_ref import lora, ops, optim, transformer

    rng, config = np.random.default_rng(0), transformer.Config(**SIZES)
    methods = {place: lora.Config(RANK, SCALE) for place in PLACES} if method == "lora" else {}
    base, own = transformer.init(rng, config, np.float32), transformer.init_methods(rng, config, methods, np.float32)
    train = list(own or base)
    tokens, targets = rng.integers(0, config.vocabulary, (2, BATCH, T))
    arrays, state = base | own, optim.adamw_init(own or base)
    logits = cache = kept = gradients = None

    def step() -> None:
        nonlocal arrays, state, logits, cache, kept, gradients  # as the variables of a loop
        logits, cache = transformer.forward(tokens, arrays, config, methods)
        _, kept = ops.loss(logits, targets)
        gradients = transformer.backward(ops.loss_backward(kept), cache, train)
        arrays, state = optim.adamw(arrays, gradients, state, RATE, decay=DECAY)

    return step


def lora_torch_step(method: str) -> Callable[[], object]:
    import torch

    from lora_torch import lora
    from lora_torch.transformer import Config, Transformer, loss

    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
    torch.manual_seed(0)
    config = Config(**SIZES, activation="gelu", norm="layer")
    methods = {place: lora.Config(RANK, SCALE) for place in PLACES} if method == "lora" else None
    model = Transformer(config, methods, full=methods is None)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=DECAY)
    tokens, targets = torch.randint(config.vocabulary, (2, BATCH, T))

    def step() -> None:
        optimizer.zero_grad()
        loss(model(tokens), targets).backward()
        optimizer.step()

    return step


STEPS = {"lora_ref": lora_ref_step, "lora_torch": lora_torch_step}
METHODS = ("full", "lora")


def measured(step: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Median time of a step in milliseconds, and page faults of a step once it is warm."""
    milliseconds = measure(step, seconds)
    before, steps = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, 10
    for _ in range(steps):
        step()
    return milliseconds, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / steps


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python tests/bench/transformer.py --threads 1 --rounds 9",
    )
    parser.add_argument("--rounds", type=int, default=9, help="processes for each subject and method, taking turns (9)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time measured in each process (1.0)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads for each (all processors)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        subject, method = args.child
        print(*measured(STEPS[subject](method), args.seconds))
        return 0
    if args.rounds < 2:
        parser.error(f"--rounds is {args.rounds}, expected at least 2, because there are quartiles of them")

    threads = dict.fromkeys(THREAD_VARIABLES, str(args.threads))
    environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT)}
    rounds: list[dict[tuple[str, str], tuple[float, float]]] = []
    for i in range(args.rounds):
        if sys.stderr.isatty():
            print(f"\rround {i + 1} of {args.rounds}", end="", file=sys.stderr, flush=True)
        rounds.append({})
        for method in METHODS:
            for subject in STEPS:
                command = [sys.executable, __file__, *sys.argv[1:], "--child", subject, method]
                shown = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
                milliseconds, faults = map(float, shown.split())
                rounds[-1][subject, method] = milliseconds, faults
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)

    print("One training step, float32: 4 layers, width 128, 4 heads, mlp 512, vocabulary 256, batch 16 × 64")
    print(f"threads {args.threads}, rounds {args.rounds}, {platform.machine()}, Python {platform.python_version()}, "
          f"numpy {version('numpy')}, torch {version('torch')}\n")
    print(f"{'ms a step':10}{'lora_ref':>10}{'lora_torch':>12}{'ratio':>9}{'quartiles':>16}{'faults':>16}")
    slow = []
    for method in METHODS:
        ours, theirs = ([r[subject, method] for r in rounds] for subject in STEPS)
        first, ratio, third = statistics.quantiles([a[0] / b[0] for a, b in zip(ours, theirs, strict=True)], n=4)
        times = [statistics.median(ms for ms, _ in each) for each in (ours, theirs)]
        faults = [max(count for _, count in each) for each in (ours, theirs)]
        print(f"{method:10}{times[0]:10.2f}{times[1]:12.2f}{ratio:9.3f}{first:9.3f} … {third:.3f}"
              f"{faults[0]:9.0f}, {faults[1]:.0f}")
        slow += [method] * (ratio > BAR)
    print(f"\nlora_ref takes at most {BAR} times what lora_torch takes: {'NOT ' + ', '.join(slow) if slow else 'yes'}")
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
