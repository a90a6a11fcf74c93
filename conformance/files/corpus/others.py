"""The formats of one file: kohya, diffusers, torchtune, mlx-lm and GGUF."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from conformance.files.binary import gguf
from conformance.files.corpus.made import IN, OUT, RANK, Arrays, Case, drawn, factors, one_file, power


def kohya() -> Iterator[Case]:
    module = "lora_unet_down_blocks_0_attn_to_q"
    A, B = factors("kohya")
    plain = {f"{module}.lora_down.weight": A, f"{module}.lora_up.weight": B}
    alpha = {f"{module}.alpha": np.array(3, np.float32)}

    def case(clause: str, name: str, arrays: Arrays, scale: float | None, codes: tuple[str, ...] = (), **more: Any) -> Case:
        return one_file("kohya", clause, name, arrays, {} if scale is None else {module: (A, B, scale)}, codes=codes, **more)

    yield case("K-2", "alpha", plain | alpha, 0.75)
    yield case("K-2", "alpha_of_int64", plain | {f"{module}.alpha": np.array(2, np.int64)}, 0.5)
    yield case("K-2", "alpha_of_bfloat16", plain | {f"{module}.alpha": np.array([3], ml_dtypes.bfloat16)}, 0.75)
    yield case("K-2", "no_alpha", plain, 1.0, ("FILE-032",))
    yield case("K-2", "metadata_says_another_alpha", plain | alpha, 0.75, ("FILE-031",), metadata={"ss_network_alpha": "16"})
    yield case("K-2", "metadata_alone_says_alpha", plain, 1.0, ("FILE-031", "FILE-032"), metadata={"ss_network_alpha": "1"})
    yield case(
        "K-3", "metadata_says_the_same", plain | alpha, 0.75, metadata={"ss_network_alpha": "3.0", "ss_network_dim": "4"}
    )
    window, up = drawn("conv A", RANK, 3, 3, 3), drawn("conv B", OUT, RANK, 1, 1)
    conv = {f"{module}.lora_down.weight": window, f"{module}.lora_up.weight": up}
    yield one_file("kohya", "K-1", "convolution", conv | alpha, {module: (window, up, 0.75)})
    yield case("K-2", "alpha_zero", plain | {f"{module}.alpha": np.array(0, np.float32)}, 1.0, ("FILE-032",))
    yield case("R-9", "alpha_nan", plain | {f"{module}.alpha": np.array(np.nan, np.float32)}, None, ("FILE-035",))
    yield case("K-2", "two_alphas", plain | {f"{module}.alpha": np.ones(2, np.float32)}, None, ("FILE-013",))
    yield case("R-3", "up_alone", {f"{module}.lora_up.weight": B} | alpha, None, ("FILE-021",))
    yield case("R-1", "alpha_alone", plain | alpha | {"lora_te_x.alpha": np.array(3, np.float32)}, None, ("FILE-027",))
    for ending in ("hada_w1_a", "lokr_w1", "oft_blocks", "lora_mid.weight", "dora_scale"):
        name = ending.partition(".")[0]
        yield case("K-4", name, plain | alpha | {f"{module}.{ending}": drawn(ending, RANK, RANK)}, None, ("FILE-014",))


def diffusers() -> Iterator[Case]:
    module = "transformer.blocks.0.attn.to_q"
    A, B = factors("diffusers")
    plain = {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
    alpha = {f"{module}.alpha": np.array(3, np.float32)}

    def case(
        clause: str, name: str, arrays: Arrays, scale: float | None, codes: tuple[str, ...] = (), told: Any = None
    ) -> Case:
        metadata = None if told is None else {"lora_adapter_metadata": told if isinstance(told, str) else json.dumps(told)}
        return one_file(
            "diffusers", clause, name, arrays, {} if scale is None else {module: (A, B, scale)}, metadata, codes=codes
        )

    yield case("D-2", "nothing_says_alpha", plain, 1.0, ("FILE-032",))
    yield case("D-2", "alpha", plain | alpha, 0.75)
    yield case("D-1", "older_names", {f"{module}.lora.down.weight": A, f"{module}.lora.up.weight": B}, 1.0, ("FILE-032",))
    settings = {"transformer.r": 4, "transformer.lora_alpha": 6}
    yield case("D-2", "metadata", plain, 1.5, told=settings)
    yield case("D-2", "metadata_and_rslora", plain, 3.0, told=settings | {"transformer.use_rslora": True})
    yield case("D-2", "metadata_and_a_pattern", plain, 0.5, told=settings | {"transformer.alpha_pattern": {"to_q": 2}})
    yield case("D-2", "metadata_beside_alpha", plain | alpha, None, ("FILE-034",), settings)
    yield case("P-6", "dora_without_magnitude", plain, None, ("FILE-011",), settings | {"transformer.use_dora": True})
    yield case("P-12", "another_method", plain, None, ("FILE-014",), settings | {"transformer.peft_type": "LOHA"})
    others = {"transformer.target_modules": ["to_k"]}
    yield case("P-5", "a_module_that_is_no_target", plain, None, ("FILE-024",), settings | others)
    yield case("D-2", "metadata_of_another_part", plain | alpha, 0.75, told={"text_encoder.lora_alpha": 6})
    yield case("R-5", "metadata_with_another_rank", plain, None, ("FILE-023",), settings | {"transformer.r": 8})
    yield case("D-2", "metadata_that_is_no_json", plain, None, ("FILE-010",), "{")
    yield case("R-1", "a_tensor_of_nobody", plain | {"unet.x.weight": A}, None, ("FILE-020",))
    yield case("R-3", "a_alone", {f"{module}.lora_A.weight": A}, None, ("FILE-021",))


def others() -> Iterator[Case]:
    A, B = factors("torchtune")
    module = "layers.0.attn.q_proj"
    plain = {f"{module}.lora_a.weight": A, f"{module}.lora_b.weight": B}
    yield one_file(
        "torchtune",
        "T-2",
        "settings",
        plain,
        {module: (A, B, 0.75)},
        beside={"r": 4, "lora_alpha": 3, "target_modules": ["q_proj"]},
    )
    yield one_file("torchtune", "T-2", "no_settings", plain, {}, codes=("FILE-030",))
    yield one_file("torchtune", "R-5", "another_rank", plain, {}, beside={"r": 8, "lora_alpha": 3}, codes=("FILE-023",))
    yield one_file("torchtune", "P-12", "another_method", plain, {}, beside={"r": 4, "lora_alpha": 3, "peft_type": "LOHA"},
                   codes=("FILE-014",))
    yield one_file("torchtune", "P-6", "dora_without_magnitude", plain, {}, beside={"r": 4, "lora_alpha": 3, "use_dora": True},
                   codes=("FILE-011",))
    A, B = factors("mlx")
    module = "model.layers.0.self_attn.q_proj"
    turned = {f"{module}.lora_a": np.ascontiguousarray(A.T), f"{module}.lora_b": np.ascontiguousarray(B.T)}
    own = {"rank": 4, "scale": 2.5, "dropout": 0.0}

    def mlx(
        clause: str, name: str, scale: float | None, beside: dict | None, codes: tuple[str, ...] = (), arrays: Arrays = turned
    ) -> Case:
        return one_file(
            "mlx-lm",
            clause,
            name,
            arrays,
            {} if scale is None else {module: (A, B, scale)},
            beside=beside,
            codes=codes,
            called="adapters.safetensors",
        )

    settings = {"fine_tune_type": "lora", "num_layers": 4, "lora_parameters": own}
    yield mlx("M-2", "scale", 2.5, settings)
    yield mlx("M-2", "scale_of_20", 20.0, settings | {"lora_parameters": own | {"scale": 20}})
    yield mlx("M-2", "no_scale", None, settings | {"lora_parameters": {"rank": 4}}, ("FILE-030",))
    yield mlx("P-1", "no_settings", None, None, ("FILE-010",))
    yield mlx("M-3", "full", None, settings | {"fine_tune_type": "full"}, ("FILE-014",))
    yield mlx("M-3", "dora_without_magnitude", None, settings | {"fine_tune_type": "dora"}, ("FILE-011",))
    yield mlx("M-3", "a_magnitude_without_dora", None, settings, ("FILE-011",), turned | {f"{module}.m": drawn("m", OUT)})
    yield mlx("R-5", "another_rank", None, settings | {"lora_parameters": own | {"rank": 8}}, ("FILE-023",))
    yield mlx("M-1", "stored_as_peft_does", None, settings, ("FILE-022",), {f"{module}.lora_a": A, f"{module}.lora_b": B})


def gguf_files() -> Iterator[Case]:
    A, B = factors("gguf")
    module = "blk.0.attn_q.weight"
    keys = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora", "adapter.lora.alpha": 3.0}
    arrays = {f"{module}.lora_a": A, f"{module}.lora_b": B}

    def case(clause: str, name: str, content: bytes, scale: float | None, codes: tuple[str, ...] = ()) -> Case:
        made = one_file("gguf", clause, name, {}, {} if scale is None else {module: (A, B, scale)}, codes=codes)
        return made._replace(files={"adapter.gguf": content})

    whole = gguf(keys, arrays)
    yield case("G-2", "alpha", whole, 0.75)
    yield case("G-2", "alpha_zero", gguf(keys | {"adapter.lora.alpha": 0.0}, arrays), 1.0, ("FILE-032",))
    yield case("G-1", "float16", gguf(keys, {name: array.astype(np.float16) for name, array in arrays.items()}), 0.75)
    yield case("G-1", "bfloat16", gguf(keys, {name: array.astype(ml_dtypes.bfloat16) for name, array in arrays.items()}), 0.75)
    rows, columns = drawn("gguf rows", 14, RANK), drawn("gguf columns", IN, RANK)
    embedding = case(
        "G-1", "embedding", gguf(keys, {"token_embd.weight.lora_a": rows, "token_embd.weight.lora_b": columns}), 0.75
    )
    yield embedding._replace(
        truth={"token_embd.weight": 0.75 * (rows.astype(np.float64) @ columns.T.astype(np.float64))},
        power=power(rows.T, columns, 0.75),
    )
    yield case("G-1", "a_model", gguf(keys | {"general.type": "model"}, arrays), None, ("FILE-014",))
    yield case("C-1", "cut_off", whole[:100], None, ("FILE-002",))
    yield case("C-2", "cut_off_in_the_numbers", whole[:-64], None, ("FILE-004",))
    yield case("C-1", "tensors_without_end", whole[:8] + struct.pack("<Q", 1 << 60) + whole[16:], None, ("FILE-002",))
    yield case("R-3", "a_alone", gguf(keys, {f"{module}.lora_a": A}), None, ("FILE-021",))
    at = whole.index(b".lora_a") + len(".lora_a") + 20  # behind the number of dimensions and two of them stands the type
    quantised = whole[:at] + struct.pack("<I", 8) + whole[at + 4 :]  # Q8_0
    yield case("C-6", "quantised_factors", quantised, None, ("FILE-008", "FILE-021"))
    yield case("R-1", "a_tensor_of_nobody", gguf(keys, arrays | {"blk.0.x": A}), None, ("FILE-020",))
    yield case(
        "C-6",
        "factors_of_int8",
        gguf(keys, {name: array.astype(np.int8) for name, array in arrays.items()}),
        None,
        ("FILE-008",),
    )
