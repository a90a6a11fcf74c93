"""One pass over dy for the two thin products that read it, as a Triton kernel:

    u = scale · dy Bᵀ   (n, rank)        dB = hᵀ dy   (rank, out)

dy (n, out) is the largest array that LoRA's backward pass reads beside the product with W, and two products read it twice.
Here each program takes blocks of rows, with all columns, so that it computes its rows of u whole. What it adds to dB goes into
a buffer of its own. The buffers are added at the end in one order, so the bits are the same in each run. Atomic additions would
not give that.

Sums are in float32; u and dB are rounded once. LinearLoRA uses the kernel on its fast path if its attribute one_pass is set and
the layer is on CUDA. It is not set, for nobody has measured yet where it pays. Of lora_torch this file alone needs Triton.
Source of the idea: Zhu et al. 2025, arXiv:2510.00206 (LoRAFusion), which adds atomically.
"""

# pyright: reportCallIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, PROGRAMS = 64, 64, 64  # of a block; the most programs, each of which writes a part of dB


@triton.jit
def _one_pass(
    dy, B, h, u, parts, n, out, rank, scale,
    dy_row, dy_column, B_row, B_column, h_row, h_column,
    blocks, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
):
    """Program i takes the row blocks i, i + programs, …; the last axis of every block is padded to RANK with zeros."""
    program = tl.program_id(0)
    ranks = tl.arange(0, RANK)
    for block in range(program, blocks, tl.num_programs(0)):
        rows = block * ROWS + tl.arange(0, ROWS)
        h_block = tl.load(
            h + rows[:, None] * h_row + ranks[None, :] * h_column,
            mask=(rows[:, None] < n) & (ranks[None, :] < rank), other=0.0,
        )    # (ROWS, RANK)
        u_block = tl.zeros((ROWS, RANK), dtype=tl.float32)
        for first in range(0, out, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)
            dy_block = tl.load(
                dy + rows[:, None].to(tl.int64) * dy_row + columns[None, :] * dy_column,
                mask=(rows[:, None] < n) & (columns[None, :] < out), other=0.0,
            )    # (ROWS, COLUMNS)
            B_block = tl.load(
                B + ranks[None, :] * B_row + columns[:, None] * B_column,
                mask=(ranks[None, :] < rank) & (columns[:, None] < out), other=0.0,
            )    # (COLUMNS, RANK)
            u_block += tl.dot(dy_block, B_block, input_precision="ieee")
            part = parts + (program.to(tl.int64) * out + columns[:, None]) * RANK + ranks[None, :]
            inside = (columns[:, None] < out) & (ranks[None, :] < RANK)
            so_far = tl.load(part, mask=inside, other=0.0)
            tl.store(part, so_far + tl.dot(tl.trans(dy_block), h_block, input_precision="ieee"), mask=inside)
        tl.store(
            u + rows[:, None] * rank + ranks[None, :], (scale * u_block).to(u.dtype.element_ty),
            mask=(rows[:, None] < n) & (ranks[None, :] < rank),
        )
        tl.debug_barrier()  # another thread of this program may read the parts next


def one_pass(dy: Tensor, B: Tensor, h: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """dy (n, out), B (rank, out), h (n, rank), of one dtype → u = scale · dy Bᵀ (n, rank) and dB = hᵀ dy (rank, out)."""
    (n, out), rank = dy.shape, B.shape[0]
    padded = max(16, triton.next_power_of_2(rank))  # tl.dot takes no less
    blocks = triton.cdiv(n, ROWS)
    programs = max(1, min(blocks, PROGRAMS))
    u = dy.new_empty(n, rank)
    parts = torch.zeros(programs, out, padded, dtype=torch.float32, device=dy.device)
    if blocks:
        _one_pass[(programs,)](
            dy, B, h, u, parts, n, out, rank, scale, *dy.stride(), *B.stride(), *h.stride(), blocks,
            ROWS=ROWS, COLUMNS=COLUMNS, RANK=padded,
        )
    return u, parts.sum(0)[:, :rank].t().to(B.dtype)
