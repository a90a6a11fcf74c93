"""The names of the modules of Llama-like models in each format, and the order of the rows of q and k. Clauses N-1 and N-2.

    Hugging Face, mlx-lm                   torchtune                      GGUF
    model.layers.0.self_attn.q_proj        layers.0.attn.q_proj           blk.0.attn_q.weight
    model.layers.0.self_attn.o_proj        layers.0.attn.output_proj      blk.0.attn_output.weight
    model.layers.0.mlp.gate_proj           layers.0.mlp.w1                blk.0.ffn_gate.weight        and so on

Rotary positions turn pairs of rows of q and k. In a head of d rows Hugging Face pairs row i with row i + d/2. In torchtune and
in GGUF's models of this kind the two rows of a pair are neighbours.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from conformance.files.meaning import Meaning, Part

SCHEMES = {"PEFT": "Hugging Face", "mlx-lm": "Hugging Face", "torchtune": "torchtune", "GGUF": "GGUF"}  # of a format
IN_A_BLOCK = {  # after the number of the block: Hugging Face, torchtune, GGUF
    "self_attn.q_proj": ("attn.q_proj", "attn_q.weight"), "self_attn.k_proj": ("attn.k_proj", "attn_k.weight"),
    "self_attn.v_proj": ("attn.v_proj", "attn_v.weight"), "self_attn.o_proj": ("attn.output_proj", "attn_output.weight"),
    "mlp.gate_proj": ("mlp.w1", "ffn_gate.weight"), "mlp.up_proj": ("mlp.w3", "ffn_up.weight"),
    "mlp.down_proj": ("mlp.w2", "ffn_down.weight"),
}
OUTSIDE = {
    "model.embed_tokens": ("tok_embeddings", "token_embd.weight"), "lm_head": ("output", "output.weight"),
}
PLACES = {"Hugging Face": "model.layers", "torchtune": "layers", "GGUF": "blk"}
KINDS = ("llama", "mistral")  # values of model_type whose q and k have this order in both other formats


class CannotName(ValueError):
    """The names, or the order of the rows, are not known. The message says why."""


class Model(NamedTuple):
    """What the names and rows depend on."""

    kind: str  # model_type
    heads: int
    kv_heads: int


def model_of(folder: str) -> Model:
    """What config.json of the base model says. Raises CannotName."""
    path = Path(folder) / "config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CannotName(f"{path} cannot be read: {error}") from None
    found: Any = [said.get("model_type"), said.get("num_attention_heads"), None] if isinstance(said, dict) else [None] * 3
    found[2] = said.get("num_key_value_heads") or found[1] if isinstance(said, dict) else None
    if found[0] not in KINDS or not all(type(n) is int and n > 0 for n in found[1:]):
        words = f"model_type {found[0]!r} with {found[1]!r} heads, {found[2]!r} for keys"
        raise CannotName(f"{path} has {words}; the names and rows of {' and '.join(KINDS)} are known")
    return Model(*found)


def translated(meaning: Meaning, format: str, model: Model) -> tuple[Meaning, dict[str, str]]:
    """The same adapter under the names that the format has for this model, with the rows of q and k in its order; and the new
    name of each module. Raises CannotName for a module that has no name there."""
    if meaning.format not in SCHEMES or format not in SCHEMES:
        raise CannotName(f"{meaning.format} and {format}: the names of {', '.join(SCHEMES)} are known")
    old, new = SCHEMES[meaning.format], SCHEMES[format]
    parts, names = [], {}
    for part in meaning.parts:
        known = plain(part.module, old)
        if known is None:
            raise CannotName(f"{part.module} is no module of a {model.kind} model under a name of {old}")
        names[part.module] = name = named(known, new)
        turns = known.endswith((".q_proj", ".k_proj")) and (old == "Hugging Face") != (new == "Hugging Face")
        heads = model.heads if known.endswith(".q_proj") else model.kv_heads
        parts.append(replace(turned(part, heads, new != "Hugging Face") if turns else part, module=name))
    return replace(meaning, parts=parts), names


def plain(module: str, scheme: str) -> str | None:
    """The module's name in Hugging Face's scheme. None if it has none."""
    found = re.fullmatch(rf"{re.escape(PLACES[scheme])}\.(\d+)\.(.+)", module)
    table = IN_A_BLOCK if found else OUTSIDE
    inner = found[2] if found else module
    known = next((name for name, others in table.items() if inner == _in(name, others, scheme)), None)
    return known if known is None or not found else f"model.layers.{found[1]}.{known}"


def named(known: str, scheme: str) -> str:
    """The name in the scheme of a module that has this one in Hugging Face's."""
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", known)
    if not found:
        return _in(known, OUTSIDE[known], scheme)
    return f"{PLACES[scheme]}.{found[1]}.{_in(found[2], IN_A_BLOCK[found[2]], scheme)}"


def _in(name: str, others: tuple[str, str], scheme: str) -> str:
    return name if scheme == "Hugging Face" else others[("torchtune", "GGUF").index(scheme)]


def turned(part: Part, heads: int, to_neighbours: bool) -> Part:
    """The part with the rows of B in the other order (N-2). Raises CannotName if they are no pairs of that many heads."""
    rows = part.B.size
    if rows % (2 * heads):
        raise CannotName(f"{part.module} has {rows} rows, expected a multiple of twice its {heads} heads")
    if part.magnitude or part.bias:
        raise CannotName(f"{part.module} has a magnitude or a bias, whose order is not turned here")
    order = np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).ravel()  # new row → old row
    return replace(part, B=part.B._replace(order=order if to_neighbours else np.argsort(order)))
