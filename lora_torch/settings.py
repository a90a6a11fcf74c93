"""What attach is told about one adapter, and what a file's configuration says about it.

rank_pattern and alpha_pattern give some targets other numbers: {key: number}. A key is a regular expression. The first one
counts that matches the whole name of a target, or the end of it that follows a dot. Source: PEFT 0.21, get_pattern_key in
utils/other.py, and tuners/lora/config.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lora_torch.checks import is_finite, is_size, require
from lora_torch.linear import SCALINGS

_require = partial(require, "attach")

BIASES = ("none", "all", "lora_only")

@dataclass(frozen=True)
class Settings:
    """The arguments of attach that say what an adapter is. Each list becomes a tuple."""

    rank: int
    alpha: float
    targets: Any
    exclude: Any = ()
    layers: Any = ()
    layers_pattern: Any = ()
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    scaling: str = "standard"
    dropout: float = 0.0
    bias: str = "none"
    modules_to_save: Any = ()

    def __post_init__(self) -> None:
        """ValueError naming the first argument that is out of range."""
        for name in ("targets", "exclude", "layers", "layers_pattern", "modules_to_save"):
            value = getattr(self, name)
            one = isinstance(value, int) and name == "layers" or isinstance(value, str) and name == "layers_pattern"
            listed = (value,) if one else () if value is None else value
            object.__setattr__(self, name, tuple(listed) if isinstance(listed, list | tuple | set) else listed)
        _require(_is_rank(self.rank), "rank", self.rank, "an integer ≥ 1", "A is (in, rank)")
        _require(is_finite(self.alpha), "alpha", self.alpha, "a finite number", "scale is a multiple of it")
        rate = is_finite(self.dropout) and 0 <= self.dropout < 1
        _require(rate, "dropout", self.dropout, "a number in [0, 1)", "what it keeps is divided by 1 − dropout")
        _require(self.scaling in SCALINGS, "scaling", self.scaling, f"one of {', '.join(SCALINGS)}", "it makes scale")
        _require(self.bias in BIASES, "bias", self.bias, f"one of {', '.join(BIASES)}", "it says which biases train")
        for name in ("targets", "exclude"):
            value = getattr(self, name)
            _require(_is_names(value) or _is_pattern(value), name, value, "names or a regular expression", "it selects modules")
        for name in ("layers_pattern", "modules_to_save"):
            value = getattr(self, name)
            _require(_is_names(value) and all(map(_is_pattern, value)), name, value, "a list of names", "it selects modules")
        whole = isinstance(self.layers, tuple) and all(is_size(i) or i == 0 and i is not False for i in self.layers)
        _require(whole, "layers", self.layers, "integers ≥ 0", "they are numbers of layers")
        by_name = not self.layers or isinstance(self.targets, tuple)
        _require(by_name, "layers", self.layers, "none beside a regular expression", "that selects the layers itself")
        for name, valid in (("rank_pattern", _is_rank), ("alpha_pattern", is_finite)):
            value, numbers = getattr(self, name), "integers ≥ 1" if valid is _is_rank else "finite numbers"
            fits = isinstance(value, Mapping) and all(_is_pattern(k) and valid(n) for k, n in value.items())
            _require(fits, name, value, f"regular expressions and {numbers}", "it gives some modules other numbers")

    def of(self, path: str) -> tuple[int, float]:
        """Rank and alpha of the target with this name."""
        rank, alpha = (
            next((number for key, number in pattern.items() if re.match(rf"(.*\.)?({key})$", path)), default)
            for pattern, default in ((self.rank_pattern, self.rank), (self.alpha_pattern, self.alpha))
        )
        return int(rank), alpha


def _is_names(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) and name for name in value)


def _is_rank(value: Any) -> bool:
    return is_size(value) and value < 1 << 31  # so that the number of entries of A is a number of torch


def _is_pattern(value: object) -> bool:
    try:
        return isinstance(value, str) and bool(re.compile(value))
    except (re.error, RecursionError, OverflowError):
        return False
