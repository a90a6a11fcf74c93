"""LoRA in a whole model: what it costs to attach to the shapes of 7 billion parameters, and to merge a model of 1 GiB.

    attach, merge, unmerge, detach    a Llama of 32 layers on the meta device: seconds, and how far the process grew
    merge / copy                      64 matrices of 2048 × 2048 in float32: all of them merged, and all of them copied

Merging and copying take turns in one process, on one thread. Shown are medians over the rounds of the CPU time, and of a
round's ratio. A merge is computed in float64, so it costs more with a higher rank, and over a copy of half as many bytes.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lora_torch import attach, detach, merge, unmerge


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def llama_shapes(layers: int, width: int = 4096, mlp_width: int = 11008) -> nn.Module:
    def block() -> nn.ModuleDict:
        square = {name: nn.Linear(width, width, bias=False) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
        wide = {name: nn.Linear(width, mlp_width, bias=False) for name in ("gate_proj", "up_proj")}
        return nn.ModuleDict({**square, **wide, "down_proj": nn.Linear(mlp_width, width, bias=False)})

    return nn.ModuleDict({
        "embed_tokens": nn.Embedding(32000, width), "layers": nn.ModuleList(block() for _ in range(layers)),
        "lm_head": nn.Linear(width, 32000, bias=False),
    })


def on_meta() -> None:
    with torch.device("meta"):
        model = llama_shapes(32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(attach(model, 16, 32, r"layers\..*_proj"))
    detach(model)
    for name, call in (
        ("attach", lambda: attach(model, 16, 32, r"layers\..*_proj")), ("merge", lambda: merge(model)),
        ("unmerge", lambda: unmerge(model)), ("detach", lambda: detach(model)),
    ):
        print(f"{name:8} {seconds(call):7.2f} s")
    print(f"memory   {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:7.1f} MiB more\n")


def merging(matrices: int, width: int, rank: int, dtype: torch.dtype, rounds: int) -> None:
    model: Any = nn.Sequential(*(nn.Linear(width, width, bias=False, dtype=dtype) for _ in range(matrices)))
    copied, merged = [], []
    attach(model, rank, rank)
    weights = [layer.weight for layer in model]
    for _ in range(rounds + 1):
        copied.append(seconds(lambda: [weight.detach().clone() for weight in weights]))
        merged.append(seconds(lambda: merge(model)))
        unmerge(model)
    ratio = statistics.median(m / c for m, c in zip(merged[1:], copied[1:], strict=True))
    size = matrices * width * width * dtype.itemsize / 2**30
    print(f"{str(dtype).removeprefix('torch.'):8} {size:.2f} GiB, rank {rank}: copy {statistics.median(copied[1:]):.2f} s, "
          f"merge {statistics.median(merged[1:]):.2f} s, merge / copy {ratio:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--matrices", type=int, default=64, help="64 matrices of 2048 × 2048 in float32 are 1 GiB")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    on_meta()
    for dtype, rank in ((torch.float32, 8), (torch.float32, 64), (torch.bfloat16, 8)):
        merging(arguments.matrices * (4 // dtype.itemsize), 2048, rank, dtype, arguments.rounds)
