"""What an adapter has: the modules that were wrapped, their sizes, and how much of the model trains."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lora_torch.parts import biases, parts_of, state_of


@dataclass(frozen=True)
class Report:
    """What one adapter has. print(report) shows it in 80 columns, layers that are alike in one line."""

    name: str
    layers: dict[str, tuple[int, int, int, float]]  # name → in, out, rank, scale
    kept: tuple[str, ...]  # the modules that train whole
    biases: tuple[str, ...]  # the biases that train
    trained: int  # parameters of the model that train now
    total: int

    def __str__(self) -> str:
        lines = [f"{'layers of adapter ' + repr(self.name):40}{'number':>7}{'in':>9}{'out':>9}{'rank':>5}{'scale':>9}"]
        for paths, (n_in, n_out, rank, scale) in _alike(self.layers):
            lines.append(f"{_short(paths):40}{len(paths):7}{n_in:9}{n_out:9}{rank:5}{scale:9.4g}")
        for paths, _ in _alike(dict.fromkeys(self.kept, ())):
            lines.append(f"{_short(paths):40}{len(paths):7}  trained whole")
        if self.biases:
            lines.append(f"{'biases':40}{len(self.biases):7}  trained")
        lines.append(f"trained: {self.trained:,} of {self.total:,} parameters, {self.trained / max(self.total, 1):.3%}")
        return "\n".join(lines)


def _alike(rows: Mapping[str, tuple[Any, ...]]) -> list[tuple[list[str], list[Any]]]:
    """The names of rows that differ in the numbers in their names alone, and what they have in common."""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for path, row in rows.items():
        groups.setdefault((re.sub(r"\b\d+\b", "*", path), *row), []).append(path)
    return [(paths, common) for (_, *common), paths in groups.items()]


def _short(paths: list[str]) -> str:
    path = paths[0] if len(paths) == 1 else re.sub(r"\b\d+\b", "*", paths[0])
    return path if len(path) <= 40 else f"…{path[-39:]}"


def report(model: nn.Module, name: str = "default") -> Report:
    """What the adapter of this name has. ValueError if there is none."""
    own, numbers = parts_of(model, name), list(model.parameters())
    layers = {path: (len(part.lora_A), part.lora_B.shape[1], part.rank, part.scale) for path, part in own.adapters.items()}
    return Report(name, layers, tuple(own.kept), tuple(biases(model, state_of(model).settings[name], own)),
                  sum(p.numel() for p in numbers if p.requires_grad), sum(p.numel() for p in numbers))
