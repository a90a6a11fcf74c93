"""Spoils an adapter, each time in one way that no reader may pass over: cases of FILE that must be refused.

A function here takes the plain adapter and a generator of random numbers. It returns what it changes, and `wrong`, in words.
A reader that finds the right module all the same is not wrong: such a file has a `truth`.
"""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from conformance.files.case import CONFIG, TENSORS, FileCase
from conformance.requirements.helpers.drawn_adapters import PREFIX, Draft, Make, kohya, plain
from conformance.subject import Arrays

PICKLE, MARK = "adapter_model.bin", "it_ran"
Changes = dict[str, Any]
Spoil = Callable[[FileCase, np.random.Generator], Changes]


@cache
def one_of(*ways: Spoil) -> Make:
    """Makes plain adapters that are spoiled in one of these ways."""
    def make(draft: Draft) -> FileCase:
        good = plain(draft)
        way = draft.pick(ways)
        return replace(good, **{"truth": {}} | way(good, draft.rng), good=good)

    return make


def settings_of(case: FileCase) -> dict[str, Any]:
    assert case.settings is not None
    return case.settings


def adapted(case: FileCase) -> list[str]:
    """The modules of the adapter."""
    return sorted(case.truth)


def key(module: str, factor: str = "A") -> str:
    return f"{PREFIX}{module}.lora_{factor}.weight"


def moved(case: FileCase, name: Callable[[str], str], which: Callable[[str], bool] = lambda key: True) -> Arrays:
    return {name(key) if which(key) else key: array for key, array in case.tensors.items()}


# Tensors that nobody uses


def of_a_layer_that_is_not_there(case: FileCase, rng: np.random.Generator) -> Changes:
    module = adapted(case)[0]
    there = module.split(".")[2]
    more = {key.replace(f".layers.{there}.", ".layers.7."): array for key, array in case.tensors.items() if f"{module}." in key}
    return {"tensors": case.tensors | more, "wrong": "factors for layer 7, which the base does not have"}


def one_segment_more(case: FileCase, rng: np.random.Generator) -> Changes:
    last = f"{PREFIX}{adapted(case)[-1]}."
    tensors = moved(case, lambda key: key.replace("model.layers", "language_model.model.layers"), lambda key: last in key)
    return {"tensors": tensors, "truth": case.truth, "wrong": f"a segment more in the keys of {adapted(case)[-1]}"}


def no_prefix(case: FileCase, rng: np.random.Generator) -> Changes:
    tensors = moved(case, lambda key: key.removeprefix(PREFIX))
    return {"tensors": tensors, "truth": case.truth, "wrong": f"no {PREFIX} before the keys"}


def factors_of_no_kind(case: FileCase, rng: np.random.Generator) -> Changes:
    extra = f"{PREFIX}{adapted(case)[0]}.lora_C.weight"
    return {"tensors": case.tensors | {extra: rng.normal(size=(2, 2)).astype(np.float32)}, "wrong": "a tensor lora_C"}


def of_a_module_that_is_no_target(case: FileCase, rng: np.random.Generator) -> Changes:
    targets = settings_of(case)["target_modules"]
    module = next(module for module in sorted(case.kinds) if module.split(".")[-1] not in targets)
    rows, columns = case.base[f"{module}.weight"].shape
    rank = settings_of(case)["r"]
    more = {key(module): np.ones((rank, columns), np.float32), key(module, "B"): np.ones((rows, rank), np.float32)}
    return {"tensors": case.tensors | more, "wrong": f"factors for {module}, which target_modules does not name"}


def biases_that_no_setting_names(case: FileCase, rng: np.random.Generator) -> Changes:
    module = adapted(case)[0]
    bias = np.ones(len(case.base[f"{module}.weight"]), np.float32)
    return {"tensors": case.tensors | {f"{PREFIX}{module}.base_layer.bias": bias}, "wrong": "a bias, and bias is none"}


UNUSED: tuple[Spoil, ...] = (
    of_a_layer_that_is_not_there, one_segment_more, no_prefix, factors_of_no_kind, of_a_module_that_is_no_target,
    biases_that_no_setting_names,
)


# Factors that do not fit


def without(factor: str) -> Spoil:
    def spoil(case: FileCase, rng: np.random.Generator) -> Changes:
        lost = key(adapted(case)[-1], factor)
        return {"tensors": {name: array for name, array in case.tensors.items() if name != lost}, "wrong": f"no {factor}"}

    return spoil


def of_shape(change: Callable[[np.ndarray], np.ndarray], factor: str, words: str) -> Spoil:
    def spoil(case: FileCase, rng: np.random.Generator) -> Changes:
        changed = key(adapted(case)[0], factor)
        return {"tensors": case.tensors | {changed: np.ascontiguousarray(change(case.tensors[changed]))}, "wrong": words}

    return spoil


def another_rank(case: FileCase, rng: np.random.Generator) -> Changes:
    return {"settings": settings_of(case) | {"r": 2 * settings_of(case)["r"]}, "wrong": "an r that is twice the factors' rank"}


UNFIT: tuple[Spoil, ...] = (
    without("A"), without("B"), another_rank,
    of_shape(lambda A: np.concatenate([A, A[:, :1]], 1), "A", "an input more in A than in W"),
    of_shape(lambda A: A[:, :-1], "A", "an input fewer in A than in W"),
    of_shape(lambda B: B[:1].repeat(len(B) + 1, 0), "B", "an output more in B than in W"),
    of_shape(lambda B: B[:1], "B", "one output in B"),
    of_shape(lambda A: np.concatenate([A, A]), "A", "a rank of A that is not that of B"),
    of_shape(np.ravel, "A", "an A of one dimension"),
)


# Settings


def said(wrong: str, **settings: Any) -> Spoil:
    return lambda case, rng: {"settings": settings_of(case) | settings, "wrong": wrong}


MEANING: tuple[Spoil, ...] = (  # each changes the function, and what it needs is not in the file
    said("the method LoHa", peft_type="LOHA"),
    said("use_dora, and no magnitude", use_dora=True),
    said("lora_bias, and no bias beside B", lora_bias=True),
    said("layers that are to be repeated", layer_replication=[[0, 1], [0, 1]]),
    said("use_qalora", use_qalora=True),
    said("target_parameters without factors", target_parameters=["mlp.experts.gate_up_proj"]),
)
UNKNOWN: tuple[Spoil, ...] = (
    said("a setting use_depth_scaling", use_depth_scaling=True),
    said("a setting lora_beta", lora_beta=0.5),
    said("a setting scale_pattern", scale_pattern={"q_proj": 2.0}),
)
VALUES: tuple[Spoil, ...] = (
    said("an alpha that is text", lora_alpha="3"),
    said("an r of 0", r=0),
    said("an r that is text", r="2"),
    said("a use_rslora that is text", use_rslora="false"),
    said("a bias of no known kind", bias="some"),
    said("a pattern that is no expression", alpha_pattern={"q_proj(": 1}),
    said("a pattern with text as its alpha", alpha_pattern={".*": "1"}),
)


# Bytes


def bytes_of(name: str, change: Callable[[bytes], bytes], wrong: str) -> Spoil:
    return lambda case, rng: {"files": {name: change(case.contents()[name])}, "wrong": wrong}


def with_header(change: Callable[[dict], Any]) -> Callable[[bytes], bytes]:
    """The file with another header, and the same numbers."""
    def spoiled(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        change(header)
        made = json.dumps(header).encode()
        return len(made).to_bytes(8, "little") + made + content[8 + length :]

    return spoiled


def _overlap(header: dict) -> None:
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    first = entries[0]["data_offsets"][1] - entries[0]["data_offsets"][0]
    for entry in entries[1:]:
        if entry["data_offsets"][1] - entry["data_offsets"][0] == first:
            entry["data_offsets"] = entries[0]["data_offsets"]
            return
    entries[0]["data_offsets"] = [0, first - 4]


def twice(content: bytes) -> bytes:
    return content.replace(b'"lora_alpha"', b'"lora_alpha": 1,\n "lora_alpha"')


def header_of(length: int) -> Callable[[bytes], bytes]:
    return lambda content: length.to_bytes(8, "little") + content[8:]


def missing(name: str, wrong: str) -> Spoil:
    return lambda case, rng: {"files": {name: None}, "wrong": wrong}


DAMAGED: tuple[Spoil, ...] = (
    missing(TENSORS, "no file of tensors"),
    missing(CONFIG, "no file of settings"),
    bytes_of(TENSORS, lambda content: content[:-4], "tensors that are cut off in the last number"),
    bytes_of(TENSORS, lambda content: content[:40], "tensors that are cut off in the header"),
    bytes_of(TENSORS, lambda content: content[:5], "five bytes of tensors"),
    bytes_of(TENSORS, lambda content: content + bytes(8), "bytes behind the last tensor"),
    bytes_of(TENSORS, header_of(1 << 62), "a header of 2⁶² bytes"),
    bytes_of(TENSORS, with_header(_overlap), "two tensors in one place, or one in less than its numbers take"),
    bytes_of(CONFIG, lambda content: content[:-2], "settings that are cut off"),
    bytes_of(CONFIG, lambda content: b"[]", "settings that are a list"),
    bytes_of(CONFIG, lambda content: b"", "settings of no bytes"),
)
TWICE: tuple[Spoil, ...] = (bytes_of(CONFIG, twice, "lora_alpha twice in the settings"),)


def not_finite(case: FileCase, rng: np.random.Generator) -> Changes:
    changed = key(adapted(case)[0], "B")
    array = case.tensors[changed].copy()
    array.flat[0] = rng.choice([np.nan, np.inf, -np.inf])
    return {"tensors": case.tensors | {changed: array}, "wrong": f"{array.flat[0]} in B"}


class _Marks:
    """Its pickle makes a folder when it is loaded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


def as_pickle(case: FileCase, folder: Path) -> FileCase:
    """The adapter with a pickle in the place of its tensors. It leaves a mark in the folder if it is loaded."""
    content = pickle.dumps({"mark": _Marks(folder / MARK), **case.tensors}, 2)
    return replace(case, name=PICKLE, files={PICKLE: content}, wrong="a pickle in the place of the tensors")


# kohya


def of_another_method(case: FileCase, rng: np.random.Generator) -> Changes:
    """A module has LoHa's factors, and not LoRA's."""
    flat = next(iter(case.tensors)).split(".")[0]
    more = {f"{flat}.hada_w1_a": np.ones((2, 2), np.float32), f"{flat}.hada_w1_b": np.ones((2, 2), np.float32)}
    return {"tensors": {k: a for k, a in case.tensors.items() if not k.startswith(flat)} | more, "wrong": "LoHa's factors"}


def of_no_module(case: FileCase, rng: np.random.Generator) -> Changes:
    flat = next(iter(case.tensors)).split(".")[0]
    tensors = moved(case, lambda key: key.replace("lora_unet_", "lora_unet_other_"), lambda key: key.startswith(f"{flat}."))
    return {"tensors": tensors, "wrong": "factors for a module that the base does not have"}


def of_kohya(draft: Draft) -> FileCase:
    """kohya's file with another method's factors, or with factors for no module."""
    good = kohya(draft)
    return replace(good, truth={}, good=good, **draft.pick((of_another_method, of_no_module))(good, draft.rng))
