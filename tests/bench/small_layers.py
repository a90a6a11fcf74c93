"""Small layers on the CPU: what forward and backward cost on each path of LinearLoRA, over those of the frozen layer.

    fast    layer.fast = True: the autograd function of lora_torch/fast.py
    plain   layer.fast = False: the formula that autograd differentiates
    small   two products and one addmm_ (lora_torch/paths.py), at every size
    taken   layer.fast = None: what the layer takes by itself; below SMALL multiply-adds that is "small"

This is where SMALL in lora_torch/paths.py comes from. All layers take turns in one process, in another order each round. Shown
is the median over the rounds of a round's ratio to the frozen layer, and the median time of the frozen layer.
"""

import argparse
import random
import statistics
import time

import torch
from torch import Tensor, nn

from lora_torch import LinearLoRA, paths

SIZES = [
    (16, 32, 4), (64, 64, 4), (128, 128, 8), (64, 256, 8), (256, 256, 8), (512, 256, 8), (512, 512, 8), (2048, 256, 8),
    (64, 1024, 16), (128, 1024, 16), (256, 1024, 16), (1024, 512, 8), (512, 1024, 16), (2048, 512, 8),
    (2048, 32, 4), (32768, 32, 4), (8192, 64, 4), (2048, 128, 8), (8192, 128, 8),
]


class Small(LinearLoRA):
    def forward(self, x: Tensor) -> Tensor:
        y = paths.small(self, x, self.scale)
        assert y is not None
        return y


def layers(width: int, rank: int, dtype: torch.dtype) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {"frozen": nn.Linear(width, width, dtype=dtype).requires_grad_(False)}
    for name, fast in (("fast", True), ("plain", False), ("taken", None)):
        layer = LinearLoRA(width, width, rank, rank, dtype=dtype)
        layer.fast = fast
        found[name] = layer
    return found | {"small": Small(width, width, rank, rank, dtype=dtype)}


def milliseconds(module: nn.Module, x: Tensor, dy: Tensor, calls: int) -> float:
    parameters = [x, *module.parameters()]
    start = time.perf_counter()
    for _ in range(calls):
        for parameter in parameters:
            parameter.grad = None
        module(x).backward(dy)
    return 1000 * (time.perf_counter() - start) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of torch (1)")
    parser.add_argument("--dtype", default="float32", help="of all tensors (float32)")
    parser.add_argument("--rounds", type=int, default=25, help="in which every layer is measured once (25)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = getattr(torch, args.dtype)
    limit = f"SMALL = 2^{paths.SMALL.bit_length() - 1}"
    print(f"torch {torch.__version__}, {args.threads} threads, {args.dtype}, {args.rounds} rounds, {limit}")
    print(f"{'rows':>6}{'width':>6}{'rank':>5}{'n·in·out':>9}{'frozen ms':>11}" + "".join(
        f"{name:>8}" for name in ("fast", "plain", "small", "taken")))
    for n, width, rank in SIZES:
        modules = layers(width, rank, dtype)
        x, dy = torch.randn(n, width, dtype=dtype, requires_grad=True), torch.randn(n, width, dtype=dtype)
        calls, names = max(2, int(1e8 / (6 * n * width**2 + 4e6))), list(modules)
        times = {name: [] for name in names}
        for _ in range(args.rounds):
            random.shuffle(names)
            for name in names:
                times[name].append(milliseconds(modules[name], x, dy, calls))
        ratios = {name: statistics.median(a / b for a, b in zip(times[name], times["frozen"], strict=True)) for name in names}
        power = (n * width**2).bit_length() - 1
        print(f"{n:6}{width:6}{rank:5}{f'2^{power}':>9}{statistics.median(times['frozen']):11.3f}" + "".join(
            f"{ratios[name]:8.2f}" for name in ("fast", "plain", "small", "taken")), flush=True)


if __name__ == "__main__":
    main()
