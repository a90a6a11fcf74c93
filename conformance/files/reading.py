"""Finds the format of a file or folder, reads what it means, and compares it with a base model."""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from conformance.files import container, diffusers, gguf, kohya, mlx, peft, torchtune
from conformance.files.clauses import Issue
from conformance.files.meaning import Meaning

FILES = {"diffusers": diffusers, "kohya": kohya, "torchtune": torchtune, "mlx-lm": mlx}  # asked in this order
NAMES = (peft.WEIGHTS, mlx.WEIGHTS, "pytorch_lora_weights.safetensors")
UNKNOWN = "no format"


def read(place: str) -> Meaning:
    """What the file or folder says. It never raises for what is in it: that becomes an issue."""
    path = Path(place)
    if path.is_dir():
        return _folder(path)
    if not os.path.isfile(path):
        return Meaning(UNKNOWN, place, issues=[Issue("FILE-001", place, "there is no such file or folder")])
    if path.name in (peft.WEIGHTS, peft.CONFIG) and all((path.parent / name).exists() for name in (peft.WEIGHTS, peft.CONFIG)):
        return _folder(path.parent)
    try:
        if gguf.is_one(place):
            return gguf.read(place)
    except OSError as error:
        return Meaning(UNKNOWN, place, issues=[Issue("FILE-001", place, error.strerror or str(error))])
    return _file(place)


def _folder(path: Path) -> Meaning:
    if (path / peft.WEIGHTS).exists() or (path / peft.PICKLE).exists():
        held, _ = container.read(str(path / peft.WEIGHTS))
        return _file(str(path / peft.WEIGHTS)) if torchtune.is_one(held) else peft.read(path)
    files = sorted(path.glob("*.safetensors")) + sorted(path.glob("*.gguf"))
    known = [file for file in files if file.name in NAMES] or files
    if len(known) == 1:
        return read(str(known[0]))
    words = f"it has {len(known)} files, name one of them" if known else "it has no .safetensors and no .gguf file"
    return Meaning(UNKNOWN, str(path), issues=[Issue("FILE-001", str(path), words)])


def _file(place: str) -> Meaning:
    held, issues = container.read(place)
    for name, format in FILES.items():
        if format.is_one(held):
            return format.read(Meaning(name, place, issues=issues), held)
    found = Meaning(UNKNOWN, place, issues=issues)
    if any(name.startswith(peft.PREFIX) for name in held.tensors):
        found.say("FILE-010", place, f"the names are PEFT's, and there is no {peft.CONFIG} beside it")
    elif not issues:
        names = ", ".join(list(held.tensors)[:3])
        found.say("FILE-015", place, f"names such as {names[:200]}" if names else "it has no tensors")
    return found


class NoBase(ValueError):
    """The base model cannot be read."""


def shapes(base: str) -> dict[str, tuple[int, ...]]:
    """The shapes of the weights of a base model, by name: of all safetensors files of a folder, or of a JSON object
    {name: shape}. Raises NoBase."""
    path = Path(base)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise NoBase(f"{base} has no .safetensors file")
        found: dict[str, tuple[int, ...]] = {}
        for file in files:
            held, issues = container.read(str(file))
            if issues:
                raise NoBase(f"{file}: {issues[0].kind.sentence}: {issues[0].words}")
            found |= {name: tensor.shape for name, tensor in held.tensors.items()}
        return found
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoBase(f"{base}: {error}") from None
    if not isinstance(said, dict) or not all(isinstance(shape, list) for shape in said.values()):
        raise NoBase(f'{base} is no folder, and no JSON object of shapes, such as {{"lm_head.weight": [256, 128]}}')
    return {name: tuple(shape) for name, shape in said.items()}


def compare(meaning: Meaning, base: dict[str, tuple[int, ...]]) -> None:
    """Adds an issue for each part of which the base model has no module, or one of another shape (R-6, R-7)."""
    if meaning.format in ("GGUF", "torchtune"):
        meaning.say("FILE-042", meaning.format, f"the base model has names such as {next(iter(base), '')}")
        return
    flat: dict[str, list[str]] = {}
    for name in base:
        flat.setdefault(name.removesuffix(".weight").replace(".", "_"), []).append(name)
    for number, part in enumerate(meaning.parts):
        names = list(_names(meaning.format, part.module, base, flat))
        if len(names) != 1:
            words = f"its name can be that of {' or '.join(names)}" if names else "no weight has its name"
            meaning.say("FILE-040", part.module, words)
            continue
        shape = base[names[0]]
        weight = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else shape
        turned = replace(part, fan_in_fan_out=not part.fan_in_fan_out)
        if part.weight != weight and part.kind == "linear" and turned.weight == weight and meaning.format == "PEFT":
            meaning.parts[number] = turned
            meaning.say("FILE-043", part.module, f"{names[0]} is {shape}: it counts as a layer of that kind, such as Conv1D")
        elif part.weight != weight:
            meaning.say("FILE-041", part.module, f"the factors make {part.weight}, and {names[0]} is {shape}")


def _names(format: str, module: str, base: dict[str, tuple[int, ...]], flat: dict[str, list[str]]) -> Iterator[str]:
    """The names of the weight of the module in the base model."""
    if format == "kohya":
        inner = module.split("_", 2)[-1]  # without lora_unet, lora_te …
        yield from flat.get(inner, [])
        return
    inner = module.partition(".")[2] if format == "diffusers" else module
    if f"{inner}.weight" in base:
        yield f"{inner}.weight"
