"""PEFT: what its settings and names mean, one case each."""

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from conformance.files.corpus.made import (
    CONV1D,
    EMBEDDING,
    HEAD,
    IN,
    OUT,
    RANK,
    TURNED,
    VOCABULARY,
    Case,
    K,
    Q,
    V,
    base_model,
    drawn,
    key,
    peft,
    power,
    wrong,
)

MAGNITUDES = np.array([5.0, 10.0, -5.0, 20.0, 15.0, 10.0, 5.0, -20.0, 10.0, 5.0], np.float32)
ROWS = np.array([[3 * (j == i) + 4 * (j == (i + 5) % IN) for j in range(IN)] for i in range(OUT)], np.float64)


def valid() -> Iterator[Case]:
    yield peft("P-3", "plain")
    yield peft("P-3", "rslora", scale=1.5, settings={"use_rslora": True})
    yield peft("P-3", "no_alpha", scale=2.0, settings={"lora_alpha": "absent"}, codes=("FILE-032",))
    yield peft("P-3", "negative_alpha", scale=-0.5, settings={"lora_alpha": -2})
    yield peft("P-3", "alpha_with_a_fraction", scale=0.625, settings={"lora_alpha": 2.5})
    yield peft("P-3", "alpha_zero_r_absent", scale=0.5, rank=8, settings={"lora_alpha": 4, "r": "absent"})
    yield peft("P-4", "rank_pattern", rank={Q: 2, V: 4}, scale={Q: 1.5, V: 0.75}, settings={"rank_pattern": {"q_proj": 2}})
    yield peft("P-4", "alpha_pattern", scale={Q: 0.75, V: 2.0}, settings={"alpha_pattern": {"v_proj": 8}})
    yield peft(
        "P-4",
        "both_patterns",
        rank={Q: 2, V: 4},
        scale={Q: 4.0, V: 0.75},
        settings={"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"self_attn.q_proj": 8}},
    )
    yield peft(
        "P-4",
        "patterns_and_rslora",
        rank={Q: 16, V: 4},
        scale={Q: 2.0, V: 1.5},
        settings={"rank_pattern": {"q_proj": 16}, "alpha_pattern": {"q_proj": 8}, "use_rslora": True},
    )
    yield peft(
        "P-4",
        "a_pattern_that_is_an_expression",
        scale={Q: 0.75, V: 2.0},
        settings={"alpha_pattern": {r"layers\.\d+\..*v_proj": 8}},
    )
    yield peft(
        "P-4", "the_first_pattern_counts", scale={Q: 0.25, V: 2.0}, settings={"alpha_pattern": {"q_proj": 1, r".*_proj": 8}}
    )
    yield peft("P-4", "a_pattern_that_ends_too_early", settings={"alpha_pattern": {"self_attn": 8, "q_pro": 8, "proj": 8}})
    yield peft("P-5", "targets_by_an_expression", settings={"target_modules": r".*\.(q|v)_proj"})
    yield peft("P-5", "targets_all_linear", settings={"target_modules": "all-linear"})
    yield peft(
        "P-5", "a_target_without_factors", settings={"target_modules": ["q_proj", "v_proj", "k_proj"]}, codes=("FILE-025",)
    )
    yield peft("C-6", "bfloat16", dtype=ml_dtypes.bfloat16)
    yield peft("C-6", "float16", dtype=np.float16)
    yield peft("C-6", "float64", dtype=np.float64)
    yield peft("P-7", "fan_in_fan_out", modules=(CONV1D,), turned=True, settings={"fan_in_fan_out": True})
    yield peft("R-4", "rank_one", rank=1, scale=3.0, settings={"r": 1})
    yield peft("R-4", "rank_above_the_sizes", rank=16, scale=0.25, settings={"r": 16, "lora_alpha": 4})
    biases = peft(
        "P-8",
        "biases",
        modules=(Q,),
        settings={"bias": "lora_only"},
        codes=("FILE-050",),
        more={key(Q, "base_layer.bias"): drawn("bias", OUT)},
    )
    yield biases._replace(truth=biases.truth | {f"{Q}.bias": drawn("bias", OUT).astype(np.float64)})
    whole = peft(
        "P-9",
        "a_whole_module",
        settings={"modules_to_save": ["lm_head"]},
        codes=("FILE-050",),
        more={f"base_model.model.{HEAD}.weight": drawn("head", OUT, IN)},
    )
    yield whole._replace(truth=whole.truth | {HEAD: drawn("head", OUT, IN).astype(np.float64) - base_model()[f"{HEAD}.weight"]})
    beside = peft(
        "P-11",
        "a_bias_beside_b",
        modules=(Q,),
        settings={"lora_bias": True},
        codes=("FILE-050",),
        more={key(Q, "lora_B.bias"): drawn("lora bias", OUT)},
    )
    yield beside._replace(truth=beside.truth | {f"{Q}.bias": 0.75 * drawn("lora bias", OUT).astype(np.float64)})
    yield peft(
        "R-2", "settings_of_training", settings={"lora_dropout": 0.1, "inference_mode": True, "init_lora_weights": "gaussian"}
    )
    defaults = {"megatron_core": "megatron.core", "qalora_group_size": 16, "auto_mapping": {"parent_library": "torch"}}
    yield peft("R-2", "defaults_that_are_written_along", settings=defaults)
    for name, settings in {
        "the_end_of_a_name_of_a_whole_module": {"modules_to_save": ["head"]},
        "no_layers_are_all_layers": {"layers_to_transform": []},
        "layers_of_a_list": {"layers_to_transform": [0], "layers_pattern": "layers"},
        "all_linear_in_capitals": {"target_modules": "All-Linear"},
        "a_start_that_leaves_the_weight": {"init_lora_weights": "eva"},
    }.items():
        more = {f"base_model.model.{HEAD}.weight": drawn("W lm_head", OUT, IN)} if "modules_to_save" in settings else None
        yield peft("P-9" if more else "P-5", name, settings=settings, more=more, codes=("FILE-050",) if more else ())
    yield _dora()
    yield _embedding()


def _dora() -> Case:
    """Each row of W + scale · B A has two numbers, 3 and 4, so that its length is 5. The magnitudes are multiples of 5. So all
    quotients are exact."""
    case = peft(
        "P-6",
        "dora",
        modules=(TURNED,),
        settings={"use_dora": True},
        codes=("FILE-050",),
        more={key(TURNED, "lora_magnitude_vector"): MAGNITUDES},
    )
    base = (ROWS - case.truth[TURNED]).astype(np.float32)
    delta = MAGNITUDES[:, None].astype(np.float64) / 5 * ROWS - base
    return case._replace(truth={TURNED: delta}, base={f"{TURNED}.weight": base})


def _embedding() -> Case:
    A, B = drawn("embedding A", RANK, VOCABULARY), drawn("embedding B", IN, RANK)
    case = peft(
        "P-10",
        "embedding",
        modules=(),
        settings={"target_modules": ["embed_tokens"]},
        more={key(EMBEDDING, "lora_embedding_A"): A, key(EMBEDDING, "lora_embedding_B"): B},
        valid=False,
    )
    delta = 0.75 * (B.astype(np.float64) @ A.astype(np.float64)).T
    return case._replace(truth={EMBEDDING: delta}, power=power(A, B, 0.75))


def invalid() -> Iterator[Case]:
    yield wrong("R-3", "a_without_b", "FILE-021", change=lambda arrays: arrays.pop(key(Q, "lora_B.weight")))
    yield wrong("R-3", "b_without_a", "FILE-021", change=lambda arrays: arrays.pop(key(V, "lora_A.weight")))
    yield wrong(
        "R-4", "ranks_differ", "FILE-022", change=lambda arrays: arrays.update({key(Q, "lora_B.weight"): drawn("B", OUT, 3)})
    )
    yield wrong(
        "R-4",
        "factors_turned",
        "FILE-022",
        change=lambda arrays: arrays.update(
            {key(Q, "lora_A.weight"): drawn("A", IN, RANK), key(Q, "lora_B.weight"): drawn("B", RANK, OUT)}
        ),
    )
    yield wrong(
        "R-4",
        "rank_zero",
        "FILE-022",
        change=lambda arrays: arrays.update(
            {key(Q, "lora_A.weight"): drawn("A", 0, IN), key(Q, "lora_B.weight"): drawn("B", OUT, 0)}
        ),
    )
    yield wrong(
        "R-4",
        "a_factor_of_one_dimension",
        "FILE-022",
        change=lambda arrays: arrays.update({key(Q, "lora_A.weight"): drawn("A", RANK * IN)}),
    )
    yield wrong("R-5", "another_rank", "FILE-023", settings={"r": 8})
    yield wrong("R-5", "another_rank_by_a_pattern", "FILE-023", settings={"rank_pattern": {"q_proj": 2}})
    yield wrong("R-1", "a_tensor_of_nobody", "FILE-020", more={key(Q, "lora_C.weight"): drawn("C", 3)})
    yield wrong("R-1", "biases_that_no_setting_names", "FILE-020", more={key(Q, "base_layer.bias"): drawn("bias", OUT)})
    yield wrong(
        "R-1",
        "a_whole_module_that_no_setting_names",
        "FILE-020",
        more={"base_model.model.lm_head.weight": drawn("head", OUT, IN)},
    )
    yield wrong(
        "R-1",
        "a_magnitude_alone",
        "FILE-027",
        settings={"use_dora": True},
        more={key(K, "lora_magnitude_vector"): drawn("magnitude", OUT)},
    )
    yield wrong("P-2", "no_prefix", "FILE-026", prefix="")
    yield wrong("P-2", "half_a_prefix", "FILE-026", prefix="model.")
    yield wrong(
        "P-2",
        "the_name_of_an_adapter",
        "FILE-026",
        modules=(V,),
        more={key(Q, "lora_A.default.weight"): drawn("A", RANK, IN), key(Q, "lora_B.default.weight"): drawn("B", OUT, RANK)},
    )
    yield wrong("P-5", "a_module_that_is_no_target", "FILE-024", settings={"target_modules": ["q_proj"]})
    yield wrong("P-5", "a_module_that_is_excluded", "FILE-024", settings={"exclude_modules": ["v_proj"]})
    yield wrong("P-5", "a_layer_that_is_left_out", "FILE-024", settings={"layers_to_transform": [1]})
    yield wrong(
        "P-5",
        "layers_of_another_list",
        "FILE-024",
        settings={"layers_to_transform": [0], "layers_pattern": "blocks"},
    )
    yield wrong("R-2", "a_bias_of_another_kind", "FILE-013", settings={"bias": "some"})
    yield wrong("R-2", "an_alpha_that_no_float_holds", "FILE-013", settings={"lora_alpha": 10**400})
    yield wrong("P-5", "an_expression_that_does_not_match", "FILE-024", settings={"target_modules": r".*\.q_proj"})
    yield wrong("P-6", "dora_without_magnitude", "FILE-011", settings={"use_dora": True})
    yield wrong("P-6", "a_magnitude_without_dora", "FILE-011", more={key(Q, "lora_magnitude_vector"): drawn("magnitude", OUT)})
    yield wrong(
        "P-11", "a_bias_beside_b_without_the_setting", "FILE-011", more={key(Q, "lora_B.bias"): drawn("lora bias", OUT)}
    )
    yield wrong("P-12", "another_method", "FILE-014", settings={"peft_type": "LOHA"})
    yield from _other_settings()
    for name, setting, value in (
        ("alpha_is_text", "lora_alpha", "3"),
        ("rslora_is_text", "use_rslora", "true"),
        ("r_is_zero", "r", 0),
        ("r_is_true", "r", True),
        ("a_pattern_that_is_no_expression", "alpha_pattern", {"q_proj(": 1}),
        ("a_pattern_of_text", "alpha_pattern", {"q_proj": "1"}),
        ("targets_that_are_no_expression", "target_modules", "q_proj("),
    ):
        yield wrong("R-2", name, "FILE-013", settings={setting: value})
    case = wrong("P-1", "no_configuration", "FILE-010")
    yield case._replace(files={"adapter_model.safetensors": case.files["adapter_model.safetensors"]})
    for name, code, config in (
        ("cut_off", "FILE-010", b'{"peft_type": "LORA", "r": 4'),
        ("a_list", "FILE-010", b"[]"),
        ("not_utf8", "FILE-010", b'{"r": "\xff"}'),
        ("not_a_number", "FILE-010", b'{"peft_type": "LORA", "r": 4, "lora_alpha": NaN}'),
        ("nested_deeply", "FILE-010", b'{"a":' * 100_000),
    ):
        case = wrong("P-1", f"a_configuration_{name}", code)
        yield case._replace(files=case.files | {"adapter_config.json": config})
    case = wrong("C-3", "a_setting_twice", "FILE-005")
    yield case._replace(
        files=case.files | {"adapter_config.json": b'{"peft_type": "LORA", "r": 4, "lora_alpha": 3, "lora_alpha": 8}'}
    )


def _other_settings() -> Iterator[Case]:
    """What the settings of P-14 to P-17 come with, as PEFT writes it."""
    experts, name = "model.layers.0.mlp.experts", "mlp.experts.gate_up_proj"
    A, B = drawn("experts A", 3 * RANK, IN), drawn("experts B", OUT, 3 * RANK)
    three = {key(experts, "lora_A.weight"): A, key(experts, "lora_B.weight"): B}
    yield wrong("P-14", "experts", "FILE-011", settings={"target_parameters": [name]}, more=three)
    yield wrong("P-14", "experts_that_no_setting_names", "FILE-024", more=three)
    tokens = {key(EMBEDDING, "token_adapter.trainable_tokens_delta"): drawn("tokens", 2, IN)}
    rows = {"trainable_token_indices": {"embed_tokens": [1, 3]}}
    yield wrong("P-15", "activated_by_tokens", "FILE-011", settings={"alora_invocation_tokens": [5, 7]})
    yield wrong("P-16", "rows_of_an_embedding", "FILE-011", settings=rows, more=tokens)
    yield wrong("P-16", "rows_that_no_setting_names", "FILE-020", more=tokens)
    for setting, value in (("layer_replication", [[0, 1], [0, 1]]), ("use_qalora", True), ("arrow_config", {"top_k": 2})):
        yield wrong("P-17", setting, "FILE-011", settings={setting: value})
