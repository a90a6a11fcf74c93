"""Forward and backward of one LoRA layer on the CPU: lora_ref (NumPy) beside lora_torch (autograd), as a ratio.

The requirement is that lora_ref takes at most 1.15 times as long: about as fast as autograd, and written to be read. The exit
status is 0 if it does, and 1 otherwise.

The thread pools of NumPy and torch disturb each other, so every measurement has its own process, which imports one of them.
The processes take turns, so that a machine that grows slower or warmer favours none. Each reports the median of its calls after
a warm-up, and the ratio is taken within each round. A ratio holds for one machine and one run.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BAR = 1.15
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def lora_ref_call(n: int, n_in: int, n_out: int, rank: int) -> Callable[[], object]:
    import numpy as np

    from lora_ref import lora

    rng = np.random.default_rng(0)
    x, W, b, A, B, dy = (
        rng.standard_normal(shape, np.float32)
        for shape in ((n, n_in), (n_out, n_in), (n_out,), (n_in, rank), (rank, n_out), (n, n_out))
    )
    return lambda: lora.backward(dy, lora.forward(x, W, b, lora.LoRA(A, B), 2.0)[1])


def lora_torch_call(n: int, n_in: int, n_out: int, rank: int, frozen: bool = False) -> Callable[[], object]:
    import torch

    from lora_torch import LinearLoRA

    layer = LinearLoRA(n_in, n_out, rank, 2.0 * rank)
    torch.nn.init.normal_(layer.lora_B)
    x, dy = torch.randn(n, n_in, requires_grad=True), torch.randn(n, n_out)
    if frozen:
        return lambda: torch.autograd.grad(layer.pre_trained_weight(x), x, dy)
    return lambda: torch.autograd.grad(layer(x), [x, layer.lora_A, layer.lora_B], dy)


CALLS = {
    "lora_ref": lora_ref_call,
    "lora_torch": lora_torch_call,
    "frozen torch layer": lambda *sizes: lora_torch_call(*sizes, frozen=True),
}


def measure(call: Callable[[], object], seconds: float) -> float:
    """Median time of one call, in milliseconds, over `seconds` after a warm-up a third as long.

    A block is freed first, for every subject alike. Otherwise glibc gives blocks larger than any that was freed before back to
    the system at each free, and page faults would be measured. In a longer program some array has done this before.
    """
    bytearray(16 << 20)
    times, start = [], time.perf_counter()
    while (now := time.perf_counter()) < start + 4 / 3 * seconds or not times:
        call()
        if now > start + seconds / 3:
            times.append(time.perf_counter() - now)
    return 1000 * statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python tests/bench/ref_vs_torch.py --threads 1 --rounds 9",
    )
    parser.add_argument("--n", type=int, default=512, help="samples (512)")
    parser.add_argument("--in", type=int, default=1024, dest="n_in", help="in_features (1024)")
    parser.add_argument("--out", type=int, default=1024, dest="n_out", help="out_features (1024)")
    parser.add_argument("--rank", type=int, default=16, help="rank (16)")
    parser.add_argument("--rounds", type=int, default=7, help="processes for each subject, taking turns (7)")
    parser.add_argument("--seconds", type=float, default=1.0, help="time measured in each process (1.0)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads for each (all processors)")
    parser.add_argument("--child", choices=CALLS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(measure(CALLS[args.child](args.n, args.n_in, args.n_out, args.rank), args.seconds))
        return 0

    threads = dict.fromkeys(THREAD_VARIABLES, str(args.threads))
    environment = {**os.environ, **threads, "PYTHONPATH": str(ROOT)}
    rounds: list[dict[str, float]] = []
    for i in range(args.rounds):
        if sys.stderr.isatty():
            print(f"\rround {i + 1} of {args.rounds}", end="", file=sys.stderr, flush=True)
        rounds.append({})
        for name in CALLS:
            command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
            shown = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            rounds[-1][name] = float(shown)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)

    print(f"Forward and backward, float32: n {args.n}, in {args.n_in}, out {args.n_out}, rank {args.rank}")
    print(f"threads {args.threads}, rounds {args.rounds}, {platform.machine()}, Python {platform.python_version()}, "
          f"numpy {version('numpy')}, torch {version('torch')}\n")
    print(f"{'':20}{'ms':>8}{'least':>9}{'most':>9}{'/ lora_torch':>15}{'least':>9}{'most':>9}")
    for name in CALLS:
        times, ratios = [r[name] for r in rounds], [r[name] / r["lora_torch"] for r in rounds]
        print(f"{name:20}{statistics.median(times):8.2f}{min(times):9.2f}{max(times):9.2f}"
              f"{statistics.median(ratios):15.3f}{min(ratios):9.3f}{max(ratios):9.3f}")
    ratio = statistics.median(r["lora_ref"] / r["lora_torch"] for r in rounds)
    print(f"\nlora_ref takes {ratio:.3f} times what lora_torch takes: {'met' if ratio <= BAR else 'MISSED'} (at most {BAR})")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
