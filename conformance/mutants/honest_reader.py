"""An honest reader and writer of adapter files in NumPy. It shares no code with conformance/files.

It reads the header of a safetensors file by hand, asks of each tensor which module it belongs to, and in what role, and refuses
what it has no use for. Everything is read and tested before the model is touched. It writes PEFT's format.
"""

import json
import math
import re
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from conformance.loader import Loader
from conformance.subject import Arrays

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
START = "base_model.model."
IDLE = {
    "peft_version", "base_model_name_or_path", "task_type", "inference_mode", "lora_dropout", "revision", "init_lora_weights",
}
USED = {
    "peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "use_rslora",
    "use_dora", "bias", "modules_to_save", "lora_bias", "fan_in_fan_out",
}
ROLES = {
    ".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_embedding_A": "A", ".lora_embedding_B": "B",
    ".lora_magnitude_vector": "magnitude", ".lora_B.bias": "bias beside B",
}


class Refused(ValueError):
    """The file is not read. The message says why."""


@dataclass
class Entry:
    """What the adapter has for one module."""

    rank: int = 0
    scale: float = 0.0
    roles: Arrays = field(default_factory=dict)  # "A" (rank, in), "B" (out, rank), "magnitude", "bias beside B"


@dataclass
class Adapter:
    entries: dict[str, Entry] = field(default_factory=dict)
    placed: Arrays = field(default_factory=dict)  # parameters of the base that the file has whole, by name


class HonestReader(Loader):
    """Reads five formats, and writes PEFT's."""

    def __init__(self, base: Arrays, kinds: dict[str, str]):
        self.weights, self.kinds, self.now = dict(base), kinds, Adapter()

    # What the model computes

    def delta(self) -> Arrays:
        found = {module: self.change(module, entry) for module, entry in self.now.entries.items()}
        for module, entry in self.now.entries.items():
            if "bias beside B" in entry.roles:
                found[f"{module}.bias"] = entry.scale * wide(entry.roles["bias beside B"])
        for name, array in self.now.placed.items():
            found[name.removesuffix(".weight")] = wide(array) - self.weights[name]
        return found

    def change(self, module: str, entry: Entry) -> np.ndarray:
        """ΔW of the module, as its weight is stored."""
        product = entry.scale * self.product(wide(entry.roles["A"]), wide(entry.roles["B"]))
        change = product.T if self.turned(module) else product
        if "magnitude" in entry.roles:
            adapted = self.weights[f"{module}.weight"] + change
            change = wide(entry.roles["magnitude"])[:, None] / np.linalg.norm(adapted, axis=1, keepdims=True) * adapted - (
                self.weights[f"{module}.weight"])
        return change

    def product(self, A: np.ndarray, B: np.ndarray) -> np.ndarray:
        return B @ A  # (out, in)

    def turned(self, module: str) -> bool:
        return self.kinds[module] in ("embedding", "conv1d")

    def base(self) -> Arrays:
        return dict(self.weights)

    def merge(self) -> None:
        for name, change in self.delta().items():
            key = name if name.endswith(".bias") else f"{name}.weight"
            self.weights[key] = (self.weights[key] + change).astype(self.weights[key].dtype)
        self.now = Adapter()

    # Reading

    def load(self, path: str | PathLike[str]) -> None:
        self.now = self.read(Path(path))

    def read(self, path: Path) -> Adapter:
        """The adapter of the file or folder. Raises Refused, or what reading it raises."""
        folder = path if path.is_dir() else path.parent
        files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise Refused(f"{path} has {len(files)} files of tensors")
        tensors, metadata = self.tensors(files[0])
        config = folder / "adapter_config.json"
        said = self.settings(config.read_text(encoding="utf-8")) if config.exists() else {}
        if any(key.startswith("lora_unet_") for key in tensors):
            return self.kohya(tensors)
        if any(key.startswith("unet.") for key in tensors):
            return self.diffusers(tensors, metadata)
        if any(key.endswith(".lora_a") for key in tensors):
            return self.mlx(tensors, said)
        if any(key.endswith(".lora_a.weight") for key in tensors):
            return self.torchtune(tensors, said)
        return self.peft(tensors, said)

    def tensors(self, path: Path) -> tuple[Arrays, dict[str, str]]:
        """The tensors by name, and the metadata."""
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        if length > len(content) - 8:
            raise Refused("the header is longer than the file")
        header = json.loads(content[8 : 8 + length], object_pairs_hook=self.once)
        metadata = header.pop("__metadata__", {})
        body, found, covered = content[8 + length :], {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            dtype = np.dtype(DTYPES[entry["dtype"]])
            if begin != covered or end > len(body) or end - begin != math.prod(entry["shape"]) * dtype.itemsize:
                raise Refused(f"{name} lies from {begin} to {end}")
            covered = end
            found[name] = np.frombuffer(body[begin:end], dtype).reshape(entry["shape"])
            if not np.isfinite(wide(found[name])).all():
                raise Refused(f"{name} is not finite")
        if covered != len(body):
            raise Refused("bytes that belong to no tensor")
        return {name: found[name] for name in header}, metadata

    def once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise Refused("a name occurs twice")
        return dict(pairs)

    def settings(self, text: str) -> dict[str, Any]:
        said = json.loads(text, object_pairs_hook=self.once, parse_constant=self.no_constant)
        if not isinstance(said, dict):
            raise Refused("the settings are no object")
        return said

    def no_constant(self, word: str):
        raise Refused(f"{word} is no JSON")

    # PEFT

    def peft(self, tensors: Arrays, said: dict[str, Any]) -> Adapter:
        self.check(said)
        made = Adapter()
        for key, array in tensors.items():
            module, role = self.role(key)
            if role in ROLES.values():
                made.entries.setdefault(module, Entry()).roles[role] = array
            else:
                self.put(made, said, module, role, array)
        for module, entry in made.entries.items():
            self.complete(module, entry, said)
        self.nothing_is_missing(made, said)
        return made

    def role(self, key: str) -> tuple[str, str]:
        """The module and what the tensor is of it; for what is no factor, the name of the parameter and ""."""
        if not key.startswith(START):
            raise Refused(f"{key} does not begin with {START}")
        inner = key[len(START) :]
        for ending, role in ROLES.items():
            if inner.endswith(ending):
                return inner[: -len(ending)], role
        return inner.replace(".base_layer.", "."), ""

    def put(self, made: Adapter, said: dict[str, Any], name: str, role: str, array: np.ndarray) -> None:
        """Notes a parameter that takes the place of the model's."""
        module, _, last = name.rpartition(".")
        whole = any(module.split(".")[-1] == entry for entry in said.get("modules_to_save") or ())
        kept = said.get("bias", "none")
        biased = last == "bias" and (kept == "all" or kept == "lora_only" and self.is_target(module, said))
        if name not in self.weights or not (whole or biased) or self.weights[name].shape != array.shape:
            raise Refused(f"nobody uses {name}")
        made.placed[name] = array

    def complete(self, module: str, entry: Entry, said: dict[str, Any]) -> None:
        """Tests the factors of a module, and finds its scale."""
        if not self.is_target(module, said):
            raise Refused(f"{module} is no target")
        rank, alpha = self.numbers(module, said)
        settings = {"magnitude": "use_dora", "bias beside B": "lora_bias"}
        wanted = {"A", "B", *(role for role, setting in settings.items() if said.get(setting))}
        if entry.roles.keys() != wanted:
            raise Refused(f"{module} has {sorted(entry.roles)}, expected {sorted(wanted)}")
        entry.rank, entry.scale = rank, self.scale(alpha, rank, said)
        self.fit(module, entry, rank)

    def fit(self, module: str, entry: Entry, rank: int) -> None:
        rows, columns = self.sizes(module)
        shapes = {"A": (rank, columns), "B": (rows, rank), "magnitude": (rows,), "bias beside B": (rows,)}
        for role, array in entry.roles.items():
            if array.shape != shapes[role]:
                raise Refused(f"{role} of {module} is {array.shape}, expected {shapes[role]}")

    def sizes(self, module: str) -> tuple[int, int]:
        """The outputs and the inputs of the module."""
        if f"{module}.weight" not in self.weights:
            raise Refused(f"there is no {module}")
        rows, columns = self.weights[f"{module}.weight"].shape
        return (columns, rows) if self.turned(module) else (rows, columns)

    def nothing_is_missing(self, made: Adapter, said: dict[str, Any]) -> None:
        for module in self.kinds:
            if self.is_target(module, said) and module not in made.entries:
                raise Refused(f"{module} is a target, and has no factors")

    def numbers(self, module: str, said: dict[str, Any]) -> tuple[int, float]:
        """Rank and alpha of the module."""
        found = [said.get("r", 8), said.get("lora_alpha", 8)]
        for place, name in enumerate(("rank_pattern", "alpha_pattern")):
            for key, value in (said.get(name) or {}).items():
                if re.match(rf"(.*\.)?({key})$", module):
                    found[place] = value
                    break
        return found[0], found[1]

    def scale(self, alpha: float, rank: int, said: dict[str, Any]) -> float:
        return alpha / (math.sqrt(rank) if said.get("use_rslora") else rank)

    def is_target(self, module: str, said: dict[str, Any]) -> bool:
        targets, without = said.get("target_modules"), said.get("exclude_modules") or ()
        if any(module == name or module.endswith(f".{name}") for name in without):
            return False
        if isinstance(targets, str):
            return re.fullmatch(targets, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in targets or ())

    def check(self, said: dict[str, Any]) -> None:
        """Raises Refused for a setting that is not known, or whose value is of the wrong kind."""
        if said.get("peft_type") != "LORA":
            raise Refused(f"the method {said.get('peft_type')}")
        unknown = [name for name, value in said.items() if value and name not in USED | IDLE]
        if unknown:
            raise Refused(f"unknown settings: {', '.join(unknown)}")
        numbers = [said.get("r", 8), said.get("lora_alpha", 8)]
        for name in ("rank_pattern", "alpha_pattern"):
            for key, value in (said.get(name) or {}).items():
                re.compile(key)
                numbers.append(value)
        if any(isinstance(number, bool) or not isinstance(number, int | float) for number in numbers):
            raise Refused(f"no numbers: {numbers}")
        if said.get("r", 8) < 1:
            raise Refused("a rank below 1")
        for name in ("use_rslora", "use_dora", "lora_bias"):
            if not isinstance(said.get(name, False), bool):
                raise Refused(f"{name} is not true or false")
        if said.get("bias", "none") not in ("none", "all", "lora_only"):
            raise Refused(f"bias {said['bias']}")

    # Other formats

    def kohya(self, tensors: Arrays) -> Adapter:
        flat = {self.flat(module): module for module in self.kinds}
        made, alphas = Adapter(), {}
        for key, array in tensors.items():
            name, _, ending = key.partition(".")
            if name not in flat or ending not in ("lora_down.weight", "lora_up.weight", "alpha"):
                raise Refused(f"nobody uses {key}")
            if ending == "alpha":
                alphas[flat[name]] = float(array)
            else:
                made.entries.setdefault(flat[name], Entry()).roles["A" if "down" in ending else "B"] = array
        return self.with_scales(made, lambda module, rank: self.of_alpha(alphas.get(module), rank))

    def flat(self, module: str) -> str:
        return f"lora_unet_{module.replace('.', '_')}"

    def of_alpha(self, alpha: float | None, rank: int) -> float:
        """The scale by a tensor of alpha, if there is one."""
        return alpha / rank if alpha else 1.0

    def diffusers(self, tensors: Arrays, metadata: dict[str, str]) -> Adapter:
        made, alphas = Adapter(), {}
        said = json.loads(metadata.get("lora_adapter_metadata", "{}"))
        for key, array in tensors.items():
            module, _, ending = key.removeprefix("unet.").partition(".lora_")
            if key.endswith(".alpha"):
                alphas[key.removeprefix("unet.").removesuffix(".alpha")] = float(array)
            elif ending in ("A.weight", "B.weight"):
                made.entries.setdefault(module, Entry()).roles[ending[0]] = array
            else:
                raise Refused(f"nobody uses {key}")
        if said and alphas:
            raise Refused("alpha in two places")
        return self.with_scales(made, lambda module, rank: said["unet.lora_alpha"] / said["unet.r"] if said else
                                self.of_alpha(alphas.get(module), rank))

    def mlx(self, tensors: Arrays, said: dict[str, Any]) -> Adapter:
        if said.get("fine_tune_type") != "lora":
            raise Refused(f"fine_tune_type {said.get('fine_tune_type')}")
        made, scale = Adapter(), said["lora_parameters"]["scale"]
        for key, array in tensors.items():
            module, _, role = key.rpartition(".lora_")
            made.entries.setdefault(module, Entry()).roles[role.upper()] = array.T
        return self.with_scales(made, lambda module, rank: scale)

    def torchtune(self, tensors: Arrays, said: dict[str, Any]) -> Adapter:
        made = Adapter()
        for key, array in tensors.items():
            module, _, role = key.removesuffix(".weight").rpartition(".lora_")
            made.entries.setdefault(module, Entry()).roles[role.upper()] = array
        return self.with_scales(made, lambda module, rank: said["lora_alpha"] / said["r"])

    def with_scales(self, made: Adapter, scale) -> Adapter:
        """Tests the factors, which have the rank that they have, and gives each module its scale."""
        for module, entry in made.entries.items():
            if entry.roles.keys() != {"A", "B"}:
                raise Refused(f"{module} has {sorted(entry.roles)}")
            entry.rank = len(entry.roles["A"])
            entry.scale = scale(module, entry.rank)
            self.fit(module, entry, entry.rank)
        return made

    # Writing

    def save(self, directory: str | PathLike[str]) -> None:
        folder = Path(directory)
        (folder / "adapter_model.safetensors").write_bytes(self.packed(self.written(self.now)))
        (folder / "adapter_config.json").write_text(json.dumps(self.said(self.now)), encoding="utf-8")

    def written(self, adapter: Adapter) -> Arrays:
        """The tensors of the file by name."""
        endings = {role: ending for ending, role in ROLES.items() if "embedding" not in ending}
        of_rows = endings | {"A": ".lora_embedding_A", "B": ".lora_embedding_B"}
        found = {}
        for module, entry in adapter.entries.items():
            own = of_rows if self.kinds[module] == "embedding" else endings
            found |= {f"{START}{module}{own[role]}": array for role, array in entry.roles.items()}
        for name, array in adapter.placed.items():
            module, _, last = name.rpartition(".")
            found[f"{START}{module}{'.base_layer' * (module in adapter.entries)}.{last}"] = array
        return found

    def said(self, adapter: Adapter) -> dict[str, Any]:
        """The settings of the file. Every module has its rank and alpha by its whole name."""
        entries = adapter.entries
        roles = {role for entry in entries.values() for role in entry.roles}
        return {
            "peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": sorted(entries),
            "rank_pattern": {re.escape(module): entry.rank for module, entry in entries.items()},
            "alpha_pattern": {re.escape(module): entry.scale * entry.rank for module, entry in entries.items()},
            "use_dora": "magnitude" in roles, "lora_bias": "bias beside B" in roles,
            "bias": "all" if any(name.endswith(".bias") for name in adapter.placed) else "none",
            "modules_to_save": sorted(name.removesuffix(".weight") for name in adapter.placed if name.endswith(".weight")),
        }

    def packed(self, tensors: Arrays) -> bytes:
        header, body = {}, b""
        for name, array in tensors.items():
            numbers = np.ascontiguousarray(array).tobytes()
            place = [len(body), len(body) + len(numbers)]
            header[name] = {"dtype": NAMES[array.dtype], "shape": list(array.shape), "data_offsets": place}
            body += numbers
        said = json.dumps(header).encode()
        return len(said).to_bytes(8, "little") + said + body


def wide(array: np.ndarray) -> np.ndarray:
    return np.asarray(array, np.float64)
