"""A small model of layers of every kind, shared by the tests of what is attached to a model and of its files."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_layers import same_bits

from lora_torch import attach

RANK, ALPHA = 2, 4  # so that the scale is 2


class Conv1D(nn.Module):
    """The linear layer of GPT-2, as transformers has it: W is (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.v_proj, self.c_fc = nn.Linear(6, 6), nn.Linear(6, 4, bias=False), Conv1D(6, 4)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.c_fc(self.v_proj(F.gelu(self.q_proj(x)))))


class Net(nn.Module):
    """Two blocks between an embedding and a head, which share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(9, 6), nn.ModuleList(Block() for _ in range(2))
        self.classifier, self.head = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.BatchNorm1d(6)), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.classifier(x.flatten(0, 1)))

    def get_output_embeddings(self) -> nn.Module:
        return self.head


TOKENS = torch.tensor([[1, 5, 8, 0], [2, 2, 7, 3]])
ALL = ["embed", "q_proj", "v_proj", "c_fc", "head"]


def net(dtype: torch.dtype = torch.float64) -> Any:  # a Net; attributes of a Module are of many types
    torch.manual_seed(0)
    return Net().to(dtype).eval()


@torch.no_grad()
def fill(model: nn.Module, seed: int = 1) -> None:
    draws = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.copy_(torch.randn(parameter.shape, generator=draws))


def attached(targets: Any = ALL, **options: Any) -> Any:
    model = net()
    attach(model, RANK, ALPHA, targets, **options)
    fill(model)
    return model


class Snapshot:
    """All that a call may not change: modules, parameters and buffers by name, their bits, and what trains."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = list(model.named_modules(remove_duplicate=False))
        self.tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self.bits = [tensor.detach().clone() for _, tensor in self.tensors]
        self.trains = [tensor.requires_grad for _, tensor in self.tensors]
        self.active = [getattr(module, "active", None) for _, module in self.modules]
        self.draws = torch.get_rng_state()

    def holds(self, model: nn.Module) -> bool:
        now = Snapshot(model)
        identical = all(a is b for (_, a), (_, b) in zip(self.modules + self.tensors, now.modules + now.tensors, strict=True))
        return (
            [name for name, _ in self.modules + self.tensors] == [name for name, _ in now.modules + now.tensors]
            and identical and self.trains == now.trains and self.active == now.active
            and all(map(same_bits, now.bits, self.bits)) and torch.equal(self.draws, now.draws)
        )
