"""Honest readers of adapter files in other styles than honest_reader.py."""

import json
import math
import re
from os import PathLike
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from conformance.loader import Loader
from conformance.mutants import LayerSubject
from conformance.mutants.honest_reader import Adapter, HonestReader, Refused, wide
from conformance.subject import Arrays

__all__ = ["HonestReader"]


class AddsOuterProducts(HonestReader):
    """Adds one outer product for each rank, the last one first."""

    def product(self, A: np.ndarray, B: np.ndarray) -> np.ndarray:
        total = np.zeros((len(B), A.shape[1]))
        for a, b in zip(A[::-1], B.T[::-1], strict=True):
            total += np.outer(b, a)
        return total


class KeepsMergedWeights(HonestReader):
    """Keeps the merged weights, as many servers do, and restores the frozen ones before every load."""

    def load(self, path: str | PathLike[str]) -> None:
        found = self.read(Path(path))
        self.now = found
        self.merged = {name: self.weights[f"{name}.weight"] + delta for name, delta in super().delta().items()
                       if not name.endswith(".bias")}

    def delta(self) -> Arrays:
        whole = super().delta()
        return {name: self.merged[name] - self.weights[f"{name}.weight"] if name in getattr(self, "merged", {}) else delta
                for name, delta in whole.items()}


class WritesTheSettingsThatItRead(HonestReader):
    """Saves the tensors and the settings as they came, the names of the tensors sorted."""

    def read(self, path: Path) -> Adapter:
        found = super().read(path)
        self.kept = self.tensors(next(path.glob("*.safetensors")))[0], (path / "adapter_config.json").read_text() if (
            path / "adapter_config.json").exists() else "{}"
        return found

    def save(self, directory: str | PathLike[str]) -> None:
        tensors, said = self.kept
        (Path(directory) / "adapter_model.safetensors").write_bytes(self.packed(dict(sorted(tensors.items()))))
        (Path(directory) / "adapter_config.json").write_text(said)


class PrefixIsOptional(HonestReader):
    """Takes keys without the prefix, too, and those of a model around the base. It still refuses what it does not use."""

    def role(self, key: str) -> tuple[str, str]:
        bare = key.removeprefix("base_model.model.").removeprefix("language_model.")
        return super().role(f"base_model.model.{bare}")


class RefusesMuch(HonestReader):
    """Has plain adapters and rsLoRA alone. Every other setting that is not empty is refused."""

    def check(self, said) -> None:
        super().check(said)
        others = "rank_pattern alpha_pattern use_dora modules_to_save lora_bias exclude_modules fan_in_fan_out"
        if any(said.get(name) for name in others.split()) or said.get("bias", "none") != "none":
            raise Refused("no more than plain adapters")

    def save(self, directory: str | PathLike[str]) -> None:
        Loader.save(self, directory)

    def merge(self) -> None:
        Loader.merge(self)


class ByExpressions(Loader):
    """Reads PEFT's format with two regular expressions, and safetensors' own reader. It has no DoRA, and saves nothing."""

    KEY = re.compile(r"base_model\.model\.(?P<module>[\w.]+)\.lora_(?:embedding_)?(?P<factor>[AB])(?:\.weight)?")
    KNOWN = re.compile("r|lora_(alpha|dropout)|(target|exclude)_modules|(rank|alpha)_pattern|use_rslora|peft_(type|version)|"
                       "fan_in_fan_out|(base_model_name_or|inference|task|init_lora).*")

    def __init__(self, base: Arrays, kinds: dict[str, str]):
        self.weights, self.kinds, self.now = base, kinds, {}

    def base(self) -> Arrays:
        return self.weights

    def delta(self) -> Arrays:
        return self.now

    def load(self, path: str | PathLike[str]) -> None:
        said = json.loads((Path(path) / "adapter_config.json").read_text(), object_pairs_hook=_each_once)
        strange = [name for name, value in said.items() if value not in (None, False, "none", [], {})
                   and not self.KNOWN.fullmatch(name)]
        if strange or said["peft_type"] != "LORA" or not isinstance(said.get("use_rslora", False), bool) or (
                said.get("bias", "none") != "none"):
            raise Refused(f"settings {strange}")
        tensors, found = load_file(Path(path) / "adapter_model.safetensors"), {}
        pairs = {key: self.KEY.fullmatch(key) for key in tensors}
        named = {match["module"] for match in pairs.values() if match}
        targets = {module for module in self.kinds if self._targeted(module, said)}
        if not all(pairs.values()) or named != targets or len(tensors) != 2 * len(named):
            raise Refused(f"the tensors are for {sorted(named)}, the settings for {sorted(targets)}")
        for module in named:
            of = {match["factor"]: wide(tensors[key]) for key, match in pairs.items() if match and match["module"] == module}
            A, B = of["A"], of["B"]
            rank = _first(said.get("rank_pattern"), module, said["r"])
            alpha = _first(said.get("alpha_pattern"), module, said.get("lora_alpha", 8))
            change = np.einsum("or,ri->oi", B, A) * (alpha / (math.sqrt(rank) if said.get("use_rslora") else rank))
            change = change.T if self.kinds[module] != "linear" else change
            if len(A) != rank or B.shape[1] != rank or change.shape != self.weights[f"{module}.weight"].shape or not (
                    np.isfinite(change).all()):
                raise Refused(f"the factors of {module} do not fit")
            found[module] = change
        self.now = found

    def _targeted(self, module: str, said: dict) -> bool:
        targets, without = said["target_modules"], said.get("exclude_modules") or []
        ends = [module[place:] for place in range(len(module)) if place == 0 or module[place - 1] == "."]
        inside = bool(re.fullmatch(targets, module)) if isinstance(targets, str) else bool({*ends} & {*targets})
        return inside and not {*ends} & {*without}


by_expressions = LayerSubject(ByExpressions)


def _first(pattern: dict | None, module: str, default: float) -> float:
    return next((value for key, value in (pattern or {}).items() if re.fullmatch(rf"(.*\.)?(?:{key})", module)), default)


def _each_once(pairs: list) -> dict:
    if len({name for name, _ in pairs}) != len(pairs):
        raise Refused("a name occurs twice")
    return dict(pairs)


class GoesOverModules(Loader):
    """Goes over the modules of the base and looks for the tensors of each. What it has not taken at the end makes it refuse.
    The weights are changed in place, and put back. It reads JSON as Python does, and tests no number (FILE-20, FILE-21)."""

    def __init__(self, base: Arrays, kinds: dict[str, str]):
        self.live, self.kinds = {name: array.copy() for name, array in base.items()}, kinds
        self.frozen = {name: array.copy() for name, array in base.items()}

    def base(self) -> Arrays:
        return self.frozen

    def delta(self) -> Arrays:
        return {name.removesuffix(".weight"): wide(self.live[name]) - self.frozen[name] for name in self.live}

    def load(self, path: str | PathLike[str]) -> None:
        with open(Path(path) / "adapter_config.json", encoding="utf-8") as file:
            said = json.load(file)
        left = load_file(Path(path) / "adapter_model.safetensors")
        for name in ("r", "lora_alpha"):
            if type(said.get(name)) not in (int, float):
                raise Refused(f"{name} is {said.get(name)}")
        known = ("peft_type", "r", "lora_alpha", "target_modules", "use_rslora")
        others = [name for name, value in said.items() if value not in (None, False, {}, []) and name not in known]
        if others or said["peft_type"] != "LORA" or said.get("use_rslora") not in (None, True, False):
            raise Refused(f"settings {others}")
        changed = {}
        for module, kind in self.kinds.items():
            mine = said["target_modules"]
            if isinstance(mine, str) or not any(f".{module}".endswith(f".{name}") for name in mine) or kind != "linear":
                continue
            down, up = (left.pop(f"base_model.model.{module}.lora_{factor}.weight") for factor in "AB")
            scale = said["lora_alpha"] / said["r"] ** (0.5 if said.get("use_rslora") else 1)
            weight = self.frozen[f"{module}.weight"]
            if down.shape != (said["r"], weight.shape[1]) or up.shape != (len(weight), said["r"]):
                raise Refused(f"{module}: {down.shape} and {up.shape}")
            changed[f"{module}.weight"] = (weight + scale * (wide(up) @ wide(down))).astype(weight.dtype)
        if left:
            raise Refused(f"nobody uses {sorted(left)}")
        self.live = {name: array.copy() for name, array in self.frozen.items()} | changed

    def merge(self) -> None:
        self.frozen = {name: array.copy() for name, array in self.live.items()}


goes_over_modules = LayerSubject(GoesOverModules)
