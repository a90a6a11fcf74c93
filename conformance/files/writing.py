"""Writes what a file means in another format: `conformance file PATH --to FORMAT --out DIR`.

Nothing is lost. The factors keep their numbers and their dtype, and the scale of every module stays the same number. What the
other format cannot say is named, and nothing is written. Names of modules stay as they are, but for what the format itself does
to them: kohya writes every dot as an underscore, and diffusers puts the part of the pipeline first. With the base model's
config.json, the modules get the names of the other format, and the rows of q and k its order: see names.py.
"""

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from conformance.files import binary, mlx, peft
from conformance.files.binary import Arrays
from conformance.files.diffusers import KEY, PART
from conformance.files.meaning import Meaning, Part
from conformance.files.names import CannotName, Model, translated
from conformance.files.reading import read

CANNOT = {  # what a module may have that a format cannot say
    "PEFT": (), "diffusers": ("bias", "embedding"), "kohya": ("bias", "embedding", "magnitude"),
    "torchtune": ("bias", "embedding", "conv"), "mlx-lm": ("bias", "embedding", "conv"), "GGUF": ("bias", "magnitude", "conv"),
}
WORDS = {"bias": "a bias beside B", "embedding": "an embedding", "magnitude": "DoRA", "conv": "a convolution"}


class CannotSay(ValueError):
    """The format cannot say what the file means. The message names what."""


class Written(NamedTuple):
    """The files of an adapter by name, and the new name of each module."""

    files: dict[str, bytes]
    names: dict[str, str]


def written(meaning: Meaning, format: str, model: Model | None = None) -> Written:
    """The files of that format, one of FORMATS, for modules that have its names if there is a `model`. Raises CannotSay."""
    if not meaning.right or not meaning.parts:
        raise CannotSay("an adapter that is wrong, or has no modules, is not written again")
    found = [f"{WORDS[what]} ({part.module})" for part in meaning.parts for what in CANNOT[format] if _has(part, what)]
    found += [f"{other.name}: {other.words}" for other in meaning.others if format != "PEFT" or meaning.format != "PEFT"]
    found += [f"a scale of 0 ({part.module})" for part in meaning.parts if format in ("kohya", "GGUF") and not part.scale.value]
    if any(part.magnitude for part in meaning.parts) and not all(part.magnitude for part in meaning.parts):
        found.append("DoRA in some modules, and not in others")
    if found:
        raise CannotSay(f"{format} cannot say: {'; '.join(dict.fromkeys(found))}")
    if format == "GGUF":
        return _gguf(meaning, model)
    return FORMATS[format](meaning)


def put(meaning: Meaning, format: str, folder: Path, model: Model | None = None) -> Written:
    """Writes the files into a folder that is empty, or not there. Before that they are written elsewhere and read again: what
    they mean must be the same, to the last bit. With `model` the modules get the names of the format. Raises CannotSay."""
    named: dict[str, str] = {}
    try:
        if model is not None:
            meaning, named = translated(meaning, format, model)
    except CannotName as error:
        raise CannotSay(f"{format} cannot say: {error}") from None
    made = written(meaning, format, model)
    with tempfile.TemporaryDirectory(prefix="conformance-") as scratch:
        _write(made, Path(scratch))
        again = read(scratch)
        if not again.right or not same(meaning, again, made.names):
            raise RuntimeError(f"what was made in {format} means something else, and was not written: {again.issues}")
    folder.mkdir(parents=True, exist_ok=True)
    _write(made, folder)
    return made if model is None else made._replace(names={old: made.names[new] for old, new in named.items()})


def _write(made: Written, folder: Path) -> None:
    for name, content in made.files.items():
        (folder / name).write_bytes(content)


def same(one: Meaning, other: Meaning, names: dict[str, str]) -> bool:
    """Whether both add the same to every module, where `names` has the other's name for each module of the one."""
    theirs = {part.module: part for part in other.parts}
    if {names[part.module] for part in one.parts} != theirs.keys():
        return False
    pairs = [(part, theirs[names[part.module]]) for part in one.parts]
    return all(
        a.scale.value == b.scale.value and a.kind == b.kind and _beside(a) == _beside(b)
        and all(_equal(factor.blocks(), again.blocks()) for factor, again in ((a.A, b.A), (a.B, b.B))) for a, b in pairs)


def _equal(one, other) -> bool:
    """Whether two factors have the same numbers. Their blocks have the same shapes, by the rank and the size alone."""
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _beside(part: Part) -> tuple[list, list]:
    """The numbers of the magnitude and of the bias."""
    held = part.A.container
    magnitude, bias = (held.array(name).astype(np.float64).ravel().tolist() if name else []
                       for name in (part.magnitude, part.bias))
    return magnitude, bias


def _has(part: Part, what: str) -> bool:
    return bool(getattr(part, what)) if what in ("bias", "magnitude") else part.kind == what


def _factors(part: Part, rank_first: tuple[bool, bool]) -> tuple[np.ndarray, np.ndarray]:
    """A and B in their own dtype, stored so."""
    return tuple(  # type: ignore[return-value]
        array if factor.rank_first == first or array.ndim > 2 else np.ascontiguousarray(array.T)
        for factor, first in zip((part.A, part.B), rank_first, strict=True) for array in [factor.stored()])


def _arrays(meaning: Meaning, names: dict[str, str], rank_first: tuple[bool, bool], ends: tuple[str, str, str]) -> Arrays:
    """A, B and the magnitude of every module, under its new name and these ends."""
    found: Arrays = {}
    for part in meaning.parts:
        name = names[part.module]
        found |= {f"{name}.{end}": array for end, array in zip(ends[:2], _factors(part, rank_first), strict=True)}
        if part.magnitude:
            found[f"{name}.{ends[2]}"] = part.A.container.array(part.magnitude)
    return found


def _alpha(part: Part) -> float:
    """The alpha that gives exactly the scale, when it is divided by the rank. Raises CannotSay if no number does."""
    scale, rank = part.scale.value, part.rank
    assert scale is not None
    near = scale * rank
    for alpha in (near, math.nextafter(near, math.inf), math.nextafter(near, -math.inf)):
        if alpha / rank == scale:
            return int(alpha) if alpha == int(alpha) else alpha
    raise CannotSay(f"no alpha over {rank} is the scale {scale!r} of {part.module}")


def _settings(parts: list[Part], names: dict[str, str]) -> dict[str, Any]:
    """r, lora_alpha and their patterns, in the words of PEFT, for modules of these names."""
    ranks, alphas = {names[p.module]: p.rank for p in parts}, {names[p.module]: _alpha(p) for p in parts}
    found: dict[str, Any] = {}
    for setting, pattern, values in (("r", "rank_pattern", ranks), ("lora_alpha", "alpha_pattern", alphas)):
        usual = Counter(values.values()).most_common(1)[0][0]
        found |= {setting: usual, pattern: {f"^{re.escape(name)}": n for name, n in values.items() if n != usual}}
    return found


def _peft(meaning: Meaning) -> Written:
    arrays: Arrays = {}
    for part in meaning.parts:
        A, B = _factors(part, (True, False))
        ends = ("lora_embedding_A", "lora_embedding_B") if part.kind == "embedding" else ("lora_A.weight", "lora_B.weight")
        arrays |= {f"{peft.PREFIX}{part.module}.{end}": array for end, array in zip(ends, (A, B), strict=True)}
        held = part.A.container
        arrays |= {f"{peft.PREFIX}{part.module}.{end}": held.array(name)
                   for end, name in (("lora_magnitude_vector", part.magnitude), ("lora_B.bias", part.bias)) if name}
    arrays |= {other.name: meaning.parts[0].A.container.array(other.name) for other in meaning.others}
    names = {part.module: part.module for part in meaning.parts}
    kept = {name: meaning.settings[name] for name in ("bias", "modules_to_save") if name in meaning.settings}
    said = {"peft_type": "LORA", "target_modules": sorted(names), "use_dora": bool(meaning.parts[0].magnitude),
            "lora_bias": any(p.bias for p in meaning.parts), "fan_in_fan_out": all(p.fan_in_fan_out for p in meaning.parts)}
    said |= _settings(meaning.parts, names) | kept
    return Written({peft.CONFIG: _json(said), peft.WEIGHTS: binary.safetensors(arrays)}, names)


def _kohya(meaning: Meaning) -> Written:
    names = {part.module: part.module if meaning.format == "kohya" else "lora_unet_" + part.module.replace(".", "_")
             for part in meaning.parts}
    if len(set(names.values())) < len(names):
        raise CannotSay("kohya cannot say: two modules have the same name once every dot is an underscore")
    arrays: Arrays = {}
    for part in meaning.parts:
        A, B = _factors(part, (True, False))
        name, alpha = names[part.module], np.float64(_alpha(part))
        single = np.float32(alpha)
        arrays |= {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B,
                   f"{name}.alpha": np.array(single if single == alpha else alpha)}
    return Written({"adapter.safetensors": binary.safetensors(arrays)}, names)


def _diffusers(meaning: Meaning) -> Written:
    names = {part.module: part.module if PART.match(part.module) else f"transformer.{part.module}" for part in meaning.parts}
    told: dict[str, Any] = {}
    for pipeline in dict.fromkeys(name.partition(".")[0] for name in names.values()):
        of_it = [part for part in meaning.parts if names[part.module].startswith(f"{pipeline}.")]
        inner = {part.module: names[part.module].partition(".")[2] for part in of_it}
        settings = _settings(of_it, inner) | {"use_dora": bool(of_it[0].magnitude), "target_modules": sorted(inner.values())}
        settings |= {"fan_in_fan_out": True} if all(part.fan_in_fan_out for part in of_it) else {}
        told |= {f"{pipeline}.{setting}": value for setting, value in settings.items()}
    arrays = _arrays(meaning, names, (True, False), ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"))
    return Written({"pytorch_lora_weights.safetensors": binary.safetensors(arrays, {KEY: json.dumps(told)})}, names)


def _of_one_number(meaning: Meaning, format: str, values: dict[str, float], word: str) -> float:
    """The value that all modules have."""
    if len(set(values.values())) > 1:
        raise CannotSay(f"{format} cannot say: {word} that differ, {', '.join(map(str, sorted(set(values.values()))))}")
    return next(iter(values.values()))


def _torchtune(meaning: Meaning) -> Written:
    rank = _of_one_number(meaning, "torchtune", {p.module: p.rank for p in meaning.parts}, "ranks")
    alpha = _of_one_number(meaning, "torchtune", {p.module: _alpha(p) for p in meaning.parts}, "alphas")
    names = {part.module: part.module for part in meaning.parts}
    arrays = _arrays(meaning, names, (True, False), ("lora_a.weight", "lora_b.weight", "magnitude"))
    said = {"r": rank, "lora_alpha": alpha, "target_modules": sorted({p.module.rpartition(".")[2] for p in meaning.parts})}
    files = {peft.CONFIG: _json(said), peft.WEIGHTS: binary.safetensors(arrays)}
    return Written(files, names)


def _mlx(meaning: Meaning) -> Written:
    rank = _of_one_number(meaning, "mlx-lm", {p.module: p.rank for p in meaning.parts}, "ranks")
    scale = _of_one_number(meaning, "mlx-lm", {p.module: p.scale.value or 0.0 for p in meaning.parts}, "scales")
    names = {part.module: part.module for part in meaning.parts}
    arrays = _arrays(meaning, names, (False, True), ("lora_a", "lora_b", "m"))
    own = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": sorted({p.module for p in meaning.parts})}
    said = {"fine_tune_type": "dora" if meaning.parts[0].magnitude else "lora", "num_layers": -1, "lora_parameters": own}
    files = {peft.CONFIG: _json(said), mlx.WEIGHTS: binary.safetensors(arrays)}
    return Written(files, names)


def _gguf(meaning: Meaning, model: Model | None = None) -> Written:
    if meaning.format != "GGUF" and model is None:
        raise CannotSay("GGUF cannot say: modules under names that are not llama.cpp's; config.json of the base says which are")
    alpha = _of_one_number(meaning, "GGUF", {p.module: _alpha(p) for p in meaning.parts}, "alphas")
    keys = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": float(alpha)}
    keys |= {"general.architecture": "llama" if model else str(meaning.settings.get("general.architecture", ""))}
    if float(np.float32(alpha)) != alpha:
        raise CannotSay(f"GGUF cannot say: alpha {alpha!r}, which is rounded in float32")
    arrays: Arrays = {}
    for part in meaning.parts:
        A, B = _factors(part, (part.kind != "embedding", False))
        arrays |= {f"{part.module}.lora_a": A, f"{part.module}.lora_b": B}
    return Written({"adapter.gguf": binary.gguf(keys, arrays)}, {part.module: part.module for part in meaning.parts})


def _json(said: dict[str, Any]) -> bytes:
    return (json.dumps(said, indent=1) + "\n").encode()


FORMATS: dict[str, Callable[[Meaning], Written]] = {
    "PEFT": _peft, "diffusers": _diffusers, "kohya": _kohya, "torchtune": _torchtune, "mlx-lm": _mlx, "GGUF": _gguf,
}
