"""What an adapter has: the modules that were wrapped, their sizes, and how much of the model trains."""

import re
from collections import Counter
from dataclasses import dataclass

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
        rows = Counter((re.sub(r"\b\d+\b", "*", path), *numbers) for path, numbers in self.layers.items())
        lines = [f"{'layers of adapter ' + repr(self.name):40}{'number':>7}{'in':>9}{'out':>9}{'rank':>5}{'scale':>9}"]
        for (path, n_in, n_out, rank, scale), number in rows.items():
            path = path if len(path) <= 40 else f"…{path[-39:]}"
            lines.append(f"{path:40}{number:7}{n_in:9}{n_out:9}{rank:5}{scale:9.4g}")
        whole = Counter(re.sub(r"\b\d+\b", "*", path) for path in self.kept)
        lines += [f"trained whole: {path}" + (f", {number} of them" if number > 1 else "") for path, number in whole.items()]
        if self.biases:
            lines.append(f"trained biases: {len(self.biases)}")
        lines.append(f"trained: {self.trained:,} of {self.total:,} parameters, {self.trained / max(self.total, 1):.3%}")
        return "\n".join(lines)


def report(model: nn.Module, name: str = "default") -> Report:
    """What the adapter of this name has. ValueError if there is none."""
    own, numbers = parts_of(model, name), list(model.parameters())
    layers = {path: (len(part.lora_A), part.lora_B.shape[1], part.rank, part.scale) for path, part in own.adapters.items()}
    return Report(name, layers, tuple(own.kept), tuple(biases(model, state_of(model).settings[name], own)),
                  sum(p.numel() for p in numbers if p.requires_grad), sum(p.numel() for p in numbers))
