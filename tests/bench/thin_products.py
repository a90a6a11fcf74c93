"""The ways to write LoRA's thin products on the CPU, and what each takes: why lora_torch/fast.py writes them as it does.

The ways take turns, in another order each time; shown is the median, in milliseconds. Between two calls other memory is
written, so that each finds the caches as little its own as in a training step.
"""

import argparse
import random
import statistics
import time

import torch
from torch import Tensor


def over_rows(a: Tensor, wide: Tensor, strips: int) -> Tensor:
    n, width = wide.shape
    parts = torch.bmm(a.t().expand(strips, -1, n), wide.view(n, strips, width // strips).transpose(0, 1))
    return parts.transpose(0, 1).reshape(-1, width)


def ways(n: int, width: int, rank: int) -> dict[str, dict]:
    x, h = torch.randn(n, width), torch.randn(n, rank)
    A, B = torch.randn(width, rank), torch.randn(rank, width)
    return {
        "x A (n, rank)": {
            "x A": lambda: torch.mm(x, A), "x (Aᵀ)ᵀ, Aᵀ copied": lambda: torch.mm(x, A.t().contiguous().t()),
            "(Aᵀ xᵀ)ᵀ": lambda: torch.mm(A.t(), x.t()).t(),
        },
        "dy Bᵀ (n, rank)": {
            "dy Bᵀ": lambda: torch.mm(x, B.t()), "dy Bᵀ, Bᵀ copied": lambda: torch.mm(x, B.t().contiguous()),
            "(B dyᵀ)ᵀ": lambda: torch.mm(B, x.t()).t(),
        },
        "xᵀ u (in, rank)": {
            "xᵀ u": lambda: torch.mm(x.t(), h), "(uᵀ x)ᵀ, copied": lambda: torch.mm(h.t(), x).t().contiguous(),
            **{f"{s} strips": lambda s=s: over_rows(h, x, s).t().contiguous() for s in (2, 4, 8)},
        },
        "hᵀ dy (rank, out)": {
            "hᵀ dy": lambda: torch.mm(h.t(), x), "(dyᵀ h)ᵀ, copied": lambda: torch.mm(x.t(), h).t().contiguous(),
            **{f"{s} strips": lambda s=s: over_rows(h, x, s) for s in (2, 4, 8)},
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    parser.add_argument("--calls", type=int, default=60, help="of each way (60)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} threads, float32, {args.calls} calls\n")
    other = torch.randn(1 << 21)
    for n, width, rank in (
        (512, 1024, 4), (512, 1024, 12), (512, 1024, 16), (512, 1024, 64), (2048, 1024, 16), (64, 1024, 16), (128, 768, 8),
        (1024, 512, 8), (4096, 512, 8),
    ):
        print(f"{n} rows, width {width}, rank {rank}")
        for product, forms in ways(n, width, rank).items():
            names, times = list(forms), {name: [] for name in forms}
            for _ in range(args.calls):
                random.shuffle(names)
                for name in names:
                    other.add_(1)
                    start = time.perf_counter()
                    forms[name]()
                    times[name].append(1000 * (time.perf_counter() - start))
            print(f"  {product:18}" + "  ".join(f"{name} {statistics.median(times[name]):.3f}" for name in forms))


if __name__ == "__main__":
    main()
