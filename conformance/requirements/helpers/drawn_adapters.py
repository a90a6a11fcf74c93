"""Draws adapters: first what they mean, then the files that say so. No reader of files is asked what they mean.

The numbers are small integers and scales with few bits, so that every way of computing ΔW = scale · (A B)ᵀ is exact in float32.
Here A is (rank, in) and B is (out, rank), as most formats store them.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from conformance.files.case import FileCase, FileConfig
from conformance.subject import Arrays
from conformance.truth.strategies import among

PARTS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.o_proj")
PREFIX = "base_model.model."
CHOICES, SIZES = 64, (2, 3, 4, 5, 6)
SCALES = (0.75, 3.0, 0.5, -0.5, 2.5)
DTYPES = (np.float32, np.float16, np.dtype(ml_dtypes.bfloat16), np.float64)
Make = Callable[["Draft"], FileCase]


@cache
def adapters(make: Make):
    """The cases that `make` makes of a Draft."""
    def of(dtypes: tuple[str, ...]):
        @st.composite
        def case(draw) -> FileCase:
            draw(among(("float32",), dtypes))
            return make(Draft(draw(st.binary(min_size=CHOICES, max_size=CHOICES))))

        return case()

    return of


class Draft:
    """A base model of a few layers, and an adapter for some of them that grows."""

    def __init__(self, choices: bytes):
        """`choices` decide everything, one byte each. With zeros the case is the simplest one."""
        self.choices = iter(choices)
        self.rng = np.random.default_rng(next(self.choices))
        self.blocks = self.pick((1, 2))
        self.parts = PARTS[: self.pick((2, 3, 4, 5))]
        self.targets = tuple(part for part in self.parts[:-1] if self.pick((False, True))) or self.parts[:1]
        biases = self.pick((False, True))
        self.base: Arrays = {}
        self.kinds: dict[str, str] = {}
        for part in self.parts:
            shape = self.shape()
            for block in range(self.blocks):
                self.add(f"model.layers.{block}.{part}", "linear", shape, bias=biases)
        self.tensors: Arrays = {}
        self.truth: Arrays = {}

    def pick(self, options: Sequence[Any]) -> Any:
        """One of the options, of which the first is the simplest. The simplest, once all choices are used up."""
        return options[next(self.choices, 0) % len(options)]

    def shape(self) -> tuple[int, int]:
        """Of a weight, half of the time a square one: a square one that is turned fits, too."""
        rows = self.pick(SIZES)
        return rows, self.pick((rows, self.pick(SIZES)))

    def integers(self, *shape: int) -> np.ndarray:
        """Whole numbers from −3 to 3 without 0, in float32."""
        return (self.rng.integers(1, 4, shape) * self.rng.choice([-1, 1], shape)).astype(np.float32)

    def add(self, module: str, kind: str, shape: tuple[int, int], bias: bool = False) -> None:
        """Adds a layer to the base. `shape` is that of its weight."""
        self.kinds[module], self.base[f"{module}.weight"] = kind, self.integers(*shape)
        if bias:
            self.base[f"{module}.bias"] = self.integers(shape[1 if kind == "conv1d" else 0])

    def modules(self, parts: Iterable[str] = ()) -> list[str]:
        """The layers of these parts in all blocks; without parts those of the targets."""
        return [f"model.layers.{block}.{part}" for block in range(self.blocks) for part in parts or self.targets]

    def factors(self, module: str, rank: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """A (rank, in) and B (out, rank) of the module. What they mean is noted."""
        shape = self.base[f"{module}.weight"].shape
        rows, columns = shape[::-1] if self.kinds[module] in ("conv1d", "embedding") else shape
        A, B = self.integers(rank, columns), self.integers(rows, rank)
        delta = scale * (B.astype(np.float64) @ A.astype(np.float64))  # (out, in)
        self.truth[module] = delta.T if self.kinds[module] in ("conv1d", "embedding") else delta
        return A, B

    def adapt(self, modules: Iterable[str], rank: int, scale: float,
              names: tuple[str, str] = ("lora_A.weight", "lora_B.weight"), dtype: Any = np.float32) -> None:
        """Gives each module factors of that rank and scale, under PEFT's names."""
        for module in modules:
            for name, factor in zip(names, self.factors(module, rank, scale), strict=True):
                self.tensors[f"{PREFIX}{module}.{name}"] = factor.astype(dtype)

    def plain(self, rank: int | None = None, scale: float | None = None, **more: Any) -> dict[str, Any]:
        """Adapts the targets with one rank and one scale. Returns the settings."""
        own_rank: int = rank or self.pick((2, 1, 4))
        own_scale: float = scale or self.pick(SCALES)
        self.adapt(self.modules(), own_rank, own_scale, **more)
        return settings(own_rank, own_scale * own_rank, (part.split(".")[-1] for part in self.targets))

    def case(self, said: dict[str, Any] | None, about: str = "", format: str = "PEFT", **more: Any) -> FileCase:
        return FileCase(FileConfig(format), self.base, self.kinds, said, self.tensors, self.truth, about=about, **more)


def settings(rank: int, alpha: float, targets: Iterable[str], **more: Any) -> dict[str, Any]:
    """What adapter_config.json says."""
    whole = int(alpha) if alpha == int(alpha) else alpha
    return {"peft_type": "LORA", "r": rank, "lora_alpha": whole, "target_modules": list(targets)} | more


def plain(draft: Draft) -> FileCase:
    return draft.case(draft.plain())


def rslora(draft: Draft) -> FileCase:
    rank, scale = draft.pick((4, 16)), draft.pick(SCALES)
    draft.adapt(draft.modules(), rank, scale)
    alpha = scale * np.sqrt(rank)
    return draft.case(settings(rank, alpha, names_of(draft), use_rslora=True), "use_rslora")


def names_of(draft: Draft) -> list[str]:
    """The last names of the targets."""
    return [part.split(".")[-1] for part in draft.targets]


def patterns(draft: Draft) -> FileCase:
    """Some parts have a rank or an alpha of their own, by a key in one of the ways in which a key can name them."""
    said = settings(2, 3.0, names_of(draft))
    said |= {"rank_pattern": {}, "alpha_pattern": {"self_attn": 7, "proj": 7, "layers": 7}}  # these three match no module
    rslora = draft.pick((False, True))
    for place, part in enumerate(draft.targets):
        rank, scale = draft.pick((4, 1, 2) if not rslora else (4, 16, 1)), draft.pick(SCALES)
        key = draft.pick((part.split(".")[-1], part, rf"layers\.\d+\.{part}", rf"model\.layers\.[01]\..*{part[-6:]}"))
        said["rank_pattern"][key] = rank
        alpha = scale * (np.sqrt(rank) if rslora else rank)
        said["alpha_pattern"][key if place else part.split(".")[-1]] = alpha
        draft.adapt(draft.modules([part]), rank, scale)
    said["alpha_pattern"][".*_proj"] = 7  # the first key that matches counts, so this one never does
    return draft.case(said | ({"use_rslora": True} if rslora else {}), "rank_pattern and alpha_pattern")


def without_alpha(draft: Draft) -> FileCase:
    rank = draft.pick((2, 4, 1))
    said = draft.plain(rank, 8 / rank)
    del said["lora_alpha"]
    return draft.case(said, "no lora_alpha, which then is 8")


def targets(draft: Draft) -> FileCase:
    said = draft.plain()
    every = draft.modules()
    expression = ".*(" + "|".join(part.replace(".", r"\.") for part in draft.targets) + ")"
    forms: dict[str, Any] = {"whole names": {"target_modules": every}, "longer ends": {"target_modules": list(draft.targets)},
             "an expression": {"target_modules": expression}}
    others = [part.split(".")[-1] for part in draft.parts if part not in draft.targets]
    forms["left out"] = {"target_modules": [part.split(".")[-1] for part in draft.parts], "exclude_modules": others}
    form = draft.pick(sorted(forms))
    return draft.case(said | forms[form], f"target_modules: {form}")


def in_any_order(draft: Draft) -> FileCase:
    """The factors of the modules have different ranks and scales, and stand in any order, in the header and in the bytes."""
    case = patterns(draft)
    names = draft.rng.permutation(sorted(case.tensors)).tolist()
    return replace(case, tensors={name: case.tensors[name] for name in names}, metadata={"format": "pt"},
                   about="tensors in another order")


def of_dtype(draft: Draft) -> FileCase:
    dtype = draft.pick(DTYPES)
    return draft.case(draft.plain(dtype=dtype), f"factors in {np.dtype(dtype).name}")


def embedding(draft: Draft) -> FileCase:
    said, module = draft.plain(), "model.embed_tokens"
    draft.add(module, "embedding", draft.shape())
    draft.adapt([module], said["r"], said["lora_alpha"] / said["r"], ("lora_embedding_A", "lora_embedding_B"))
    return draft.case(said | {"target_modules": [*said["target_modules"], "embed_tokens"]}, "an embedding")


def conv1d(draft: Draft) -> FileCase:
    """The layers of GPT-2. The setting is PEFT's own, which is about the whole model and so may be wrong for some layers."""
    said = draft.plain()
    for name in ("c_attn", "c_proj"):
        draft.add(f"transformer.h.0.attn.{name}", "conv1d", draft.shape(), True)
    draft.adapt(["transformer.h.0.attn.c_attn"], said["r"], said["lora_alpha"] / said["r"])
    more = {"target_modules": [*said["target_modules"], "c_attn"], "fan_in_fan_out": draft.pick((False, True))}
    return draft.case(said | more, f"Conv1D, fan_in_fan_out {more['fan_in_fan_out']}")


def biases(draft: Draft) -> FileCase:
    said, kind = draft.plain(), draft.pick(("lora_only", "all"))
    adapted = draft.modules()
    for module in adapted if kind == "lora_only" else draft.kinds:
        old = draft.base.setdefault(f"{module}.bias", draft.integers(len(draft.base[f"{module}.weight"])))
        new = draft.integers(len(old))
        draft.tensors[f"{PREFIX}{module}.{'base_layer.' * (module in adapted)}bias"] = new
        draft.truth[f"{module}.bias"] = (new - old).astype(np.float64)
    for module in draft.kinds:
        draft.base.setdefault(f"{module}.bias", draft.integers(len(draft.base[f"{module}.weight"])))
    return draft.case(said | {"bias": kind}, f"bias {kind}")


def whole(draft: Draft) -> FileCase:
    said, shape = draft.plain(), (draft.pick(SIZES), draft.pick(SIZES))
    draft.add("lm_head", "linear", shape)
    new = draft.integers(*shape)
    draft.tensors[f"{PREFIX}lm_head.weight"] = new
    draft.truth["lm_head"] = (new - draft.base["lm_head.weight"]).astype(np.float64)
    return draft.case(said | {"modules_to_save": ["lm_head"]}, "modules_to_save")


def bias_beside_B(draft: Draft) -> FileCase:
    said = draft.plain()
    scale = said["lora_alpha"] / said["r"]
    for module in draft.modules():
        added = draft.integers(len(draft.base[f"{module}.weight"]))
        draft.tensors[f"{PREFIX}{module}.lora_B.bias"] = added
        draft.truth[f"{module}.bias"] = scale * added.astype(np.float64)
        draft.base.setdefault(f"{module}.bias", draft.integers(len(added)))
    return draft.case(said | {"lora_bias": True}, "lora_bias")


def dora(draft: Draft) -> FileCase:
    """Each row of W + ΔW has the numbers 3 and 4 and is 5 long. Each magnitude is a multiple of 5. No quotient is rounded."""
    said = draft.plain(2)
    for module in draft.modules():
        delta = draft.truth[module]
        out, n_in = delta.shape
        rows = np.zeros(delta.shape)
        for i in range(out):
            rows[i, draft.rng.permutation(n_in)[:2]] = 3, 4
        magnitudes = 5 * draft.integers(out)
        draft.base[f"{module}.weight"] = (rows - delta).astype(np.float32)
        draft.truth[module] = magnitudes[:, None].astype(np.float64) / 5 * rows - draft.base[f"{module}.weight"]
        draft.tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = magnitudes
    return draft.case(said | {"use_dora": True}, "use_dora")


def precise(draft: Draft) -> FileCase:
    """Factors that use every bit of their dtype. What they mean is not known exactly, and is only compared with itself."""
    dtype = draft.pick(DTYPES[:3])
    case = draft.case(draft.plain(), f"factors that use every bit of {np.dtype(dtype).name}")
    tensors = {name: draft.rng.standard_normal(array.shape).astype(dtype) for name, array in case.tensors.items()}
    return replace(case, tensors=tensors)


def of_any_kind(draft: Draft) -> FileCase:
    """An adapter with one of the features that PEFT's format has."""
    return draft.pick((plain, rslora, patterns, embedding, conv1d, biases, whole, dora))(draft)


def two(draft: Draft) -> FileCase:
    """Two adapters for one base. The second one has other modules, another rank and another scale."""
    first = plain(draft)
    parts = [part for part in draft.parts if part not in draft.targets]
    draft.targets, draft.tensors, draft.truth = (draft.pick(parts), draft.targets[0]), {}, {}
    rank = 8 // first.settings["r"] if first.settings else 1
    return replace(first, other=draft.case(draft.plain(rank, draft.pick((1.5, -2.0)))))


# Formats besides PEFT's


def renamed(draft: Draft, name: Callable[[str], str]) -> None:
    """Gives the layers of the base other names."""
    draft.base = {name(key): array for key, array in draft.base.items()}
    draft.kinds = {name(module): kind for module, kind in draft.kinds.items()}


def of_images(draft: Draft) -> list[str]:
    """Gives the base the names of a U-Net. Returns the modules to adapt."""
    chosen = draft.modules()

    def name(key: str) -> str:
        return key.replace("model.layers.", "down_blocks.").replace("self_attn.", "attentions.0.to_").replace("_proj", "")

    renamed(draft, name)
    return [name(module) for module in chosen]


def kohya(draft: Draft) -> FileCase:
    modules = of_images(draft)
    for place, module in enumerate(modules):
        rank, scale = draft.pick((2, 4, 1)), draft.pick(SCALES)
        has_alpha = place == 0 or draft.pick((False, True))
        A, B = draft.factors(module, rank, scale if has_alpha else 1.0)
        flat = "lora_unet_" + module.replace(".", "_")
        draft.tensors |= {f"{flat}.lora_down.weight": A, f"{flat}.lora_up.weight": B}
        if has_alpha:
            draft.tensors[f"{flat}.alpha"] = np.array(scale * rank, np.float32)
    return draft.case(None, format="kohya", name="adapter.safetensors")


def diffusers(draft: Draft) -> FileCase:
    modules, rank, scale = of_images(draft), draft.pick((2, 4)), draft.pick(SCALES)
    home = draft.pick(("metadata", "alpha", "nowhere"))
    for module in modules:
        A, B = draft.factors(module, rank, 1.0 if home == "nowhere" else scale)
        draft.tensors |= {f"unet.{module}.lora_A.weight": A, f"unet.{module}.lora_B.weight": B}
        if home == "alpha":
            draft.tensors[f"unet.{module}.alpha"] = np.array(scale * rank, np.float32)
    names = sorted({module.rpartition(".")[2] for module in modules})
    said = {"unet.r": rank, "unet.lora_alpha": scale * rank, "unet.target_modules": names}
    metadata = {"lora_adapter_metadata": json.dumps(said)} if home == "metadata" else {}
    return draft.case(None, f"alpha in {home}", "diffusers", metadata=metadata, name="pytorch_lora_weights.safetensors")


def mlx(draft: Draft) -> FileCase:
    rank, scale = draft.pick((2, 4)), draft.pick((*SCALES, 20.0))
    for module in draft.modules():
        A, B = draft.factors(module, rank, scale)
        draft.tensors |= {f"{module}.lora_a": np.ascontiguousarray(A.T), f"{module}.lora_b": np.ascontiguousarray(B.T)}
    own = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": list(draft.targets)}
    said = {"fine_tune_type": "lora", "num_layers": draft.blocks, "lora_parameters": own}
    return draft.case(said, format="mlx-lm", name="adapters.safetensors")


def torchtune(draft: Draft) -> FileCase:
    rank, scale = draft.pick((2, 4)), draft.pick(SCALES)
    chosen = [module.removeprefix("model.").replace("self_attn", "attn") for module in draft.modules()]
    renamed(draft, lambda key: key.removeprefix("model.").replace("self_attn", "attn"))
    for module in chosen:
        A, B = draft.factors(module, rank, scale)
        draft.tensors |= {f"{module}.lora_a.weight": A, f"{module}.lora_b.weight": B}
    return draft.case(settings(rank, scale * rank, names_of(draft)), format="torchtune")
