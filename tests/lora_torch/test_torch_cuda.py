"""LinearLoRA with what only CUDA has: graphs, generators, the allocator. Most tests of the other files also run on CUDA,
through their parameter `device`.

All numbers are small integers, so that what CUDA gives is what the CPU gives, bit for bit.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_layers import assert_same, every_dtype, integer_layer, no_cuda, run

from lora_torch import LinearLoRA, fast, paths
from lora_torch.merging import COLUMNS, ROWS

every_way = pytest.mark.parametrize("way", [True, None, False], ids=["fast", "small", "plain"])


def dropping(way: bool | None) -> LinearLoRA:
    """With A = B = I, W = 0 and scale 1 on CUDA: y is the dropped-out x, and dx the dropped-out dy."""
    layer = LinearLoRA(16, 16, 16, 16.0, bias=False, dropout=0.5, device="cuda")
    layer.fast = way
    with torch.no_grad():
        layer.lora_A.copy_(torch.eye(16))
        layer.lora_B.copy_(torch.eye(16))
        layer.pre_trained_weight.weight.zero_()
    return layer


@no_cuda
@every_dtype
@every_way
def test_cuda_gives_the_bits_of_the_cpu(dtype, way):
    layer, x, dy = integer_layer(way, dtype=dtype)
    want = run(copy.deepcopy(layer), x, dy)
    got = run(layer.cuda(), x.detach().cuda().requires_grad_(), dy.cuda())
    assert_same([None if t is None else t.cpu() for t in got], want)


@no_cuda
@every_way
def test_both_passes_are_captured_in_a_graph(way):
    layer, x, dy = integer_layer(way, device="cuda")
    other = copy.deepcopy(layer)
    graphed = torch.cuda.make_graphed_callables(other, (torch.zeros_like(x).requires_grad_(),))
    for factor in (1, -2):
        layer.zero_grad()
        other.zero_grad()
        scaled = (factor * x.detach()).requires_grad_()
        assert_same(run(graphed, scaled, dy), run(layer, scaled, dy))    # pyright: ignore[reportArgumentType]


@no_cuda
@every_way
def test_each_replay_of_a_graph_drops_anew_and_backward_sees_the_mask_of_forward(way):
    layer = dropping(way)
    graphed = torch.cuda.make_graphed_callables(layer, (torch.ones(64, 16, device="cuda", requires_grad=True),))
    masks = []
    for _ in range(3):
        x = torch.ones(64, 16, device="cuda", requires_grad=True)
        y, dx, *_ = run(graphed, x, torch.ones(64, 16, device="cuda"))    # pyright: ignore[reportArgumentType]
        assert y is not None and dx is not None and torch.equal(dx, y) and set(y.unique().tolist()) == {0.0, 2.0}
        masks.append(y)
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


@no_cuda
def test_the_kernel_is_captured_in_a_graph():
    pytest.importorskip("triton", reason="triton is not installed")
    layer, x, dy = integer_layer(device="cuda")
    other = copy.deepcopy(layer)
    other.one_pass = True
    graphed = torch.cuda.make_graphed_callables(other, (torch.zeros_like(x).requires_grad_(),))
    for _ in range(2):
        layer.zero_grad()
        other.zero_grad()
        assert_same(run(graphed, x, dy), run(layer, x, dy))    # pyright: ignore[reportArgumentType]


@no_cuda
@every_way
def test_dropout_draws_from_the_generator_of_the_device(way):
    layer, x = dropping(way), torch.ones(64, 16, device="cuda")
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first) and torch.equal(layer(x), second) and not torch.equal(first, second)


@no_cuda
def test_a_merge_allocates_the_merged_weight_and_a_tile():
    n, rank = 4096, 4
    layer = LinearLoRA(n, n, rank, 1.0, device="cuda", dtype=torch.bfloat16)
    layer.merge()  # so that cuBLAS has its workspace
    layer.unmerge()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    layer.merge()
    torch.cuda.synchronize()
    tensors = 4  # the merged weight, a tile, and the parts of A and B; the allocator rounds each up to 512 bytes
    most = 2 * n * n + 8 * (ROWS * COLUMNS + (ROWS + COLUMNS) * rank) + 512 * tensors
    assert torch.cuda.max_memory_allocated() - before <= most


# Without a GPU: torch's fake tensors say that they are on CUDA, and have no numbers.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_all_that_the_fast_path_makes_is_on_the_device_of_x(dtype, bias):
    context = SimpleNamespace(needs_input_grad=(True, False, False, True, True, False, False, False))
    context.save_for_backward = lambda *tensors: setattr(context, "saved_tensors", tensors)
    shapes = {"x": (2, 5, 40), "W": (30, 40), "b": (30,), "A": (40, 3), "B": (3, 30)}
    with FakeTensorMode(), torch.no_grad():
        x, W, b, A, B = (torch.empty(shape, device="cuda", dtype=dtype) for shape in shapes.values())
        y = fast.FrozenLinearLoRA.forward(context, x, W, b if bias else None, A, B, 2.0, 0.0, False)
        dx, _, _, dA, dB, *_ = fast.FrozenLinearLoRA.backward(context, torch.empty_like(y))
    made = [y, dx, dA, dB, *(t for t in context.saved_tensors if t is not None)]
    assert {(t.device.type, t.dtype) for t in made if isinstance(t, Tensor)} == {("cuda", dtype)} and len(made) == 9
    assert [tuple(t.shape) for t in (y, dx, dA, dB) if t is not None] == [(10, 30), (2, 5, 40), (40, 3), (3, 30)]


def test_masks_come_from_the_generator_of_the_tensors_own_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "default_generators", ("of cuda:0", "of cuda:1"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    named = {name: fast._default_generator(torch.device(name)) for name in ("cuda:0", "cuda:1", "cuda")}
    assert named == {"cuda:0": "of cuda:0", "cuda:1": "of cuda:1", "cuda": "of cuda:1"}
    assert fast._default_generator(torch.device("cpu")) is torch.default_generator


def test_dropout_leaves_the_fast_path_while_a_graph_is_captured(monkeypatch):
    with FakeTensorMode():
        on_cuda, on_cpu, elsewhere = (torch.empty(2, device=device) for device in ("cuda", "cpu", "meta"))
        for capturing in (False, True):
            monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
            assert paths._draws_cannot_be_repeated(on_cuda) == capturing
            assert not paths._draws_cannot_be_repeated(on_cpu) and paths._draws_cannot_be_repeated(elsewhere)
