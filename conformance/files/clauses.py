"""The clauses of FILES.md, and the issues that a file can have. Each issue belongs to a clause.

The words MUST and SHOULD are those of RFC 2119. A clause says what a reader or a writer does. An issue says what is wrong with
a file, in a code that stays the same: a script may wait for it.
"""

from typing import NamedTuple

ERROR, WARNING, NOTE = "error", "warning", "note"


class Clause(NamedTuple):
    sentence: str
    sources: str
    why: str = ""


class Kind(NamedTuple):
    """A kind of issue."""

    severity: str
    clause: str
    sentence: str


class Issue(NamedTuple):
    """One thing that is wrong with a file, or worth knowing about it."""

    code: str
    where: str  # the tensor, the setting or the file
    words: str  # what was found, what was expected

    @property
    def kind(self) -> Kind:
        return KINDS[self.code]

    @property
    def severity(self) -> str:
        return self.kind.severity


SECTIONS = {
    "C": "The container", "R": "Reading", "P": "PEFT", "K": "kohya and ComfyUI", "D": "diffusers", "T": "torchtune",
    "M": "mlx-lm", "G": "GGUF", "N": "Names of Llama-like models",
}
SAFETENSORS = "huggingface/safetensors, README, Format"
PEFT_SAVE = "huggingface/peft, utils/save_and_load.py"
PEFT_LAYER = "huggingface/peft, tuners/lora/layer.py"
PEFT_CONFIG = "huggingface/peft, tuners/lora/config.py"
PEFT_DOCS = "PEFT documentation, developer guides, PEFT checkpoint format"
KOHYA = "kohya-ss/sd-scripts, networks/lora.py"
DIFFUSERS = "huggingface/diffusers, loaders/lora_base.py and utils/peft_utils.py"
TORCHTUNE = "meta-pytorch/torchtune, modules/peft and models/convert_weights.py"
MLX = "ml-explore/mlx-lm, tuner/lora.py, tuner/dora.py and tuner/utils.py"
LLAMA = "ggml-org/llama.cpp, src/llama-adapter.cpp"
GGUF = "ggml-org/ggml, docs/gguf.md"

CLAUSES = {
    "C-1": Clause(
        "A safetensors file begins with the length of its header, 8 bytes, little endian, then has the header, a JSON object, "
        "then the "
        "numbers. A reader MUST refuse a file whose header is not whole, is no JSON object, or is longer than 100,000,000 "
        "bytes.",
        SAFETENSORS),
    "C-2": Clause(
        "Each tensor has a dtype, a shape and two offsets. The tensors MUST cover the numbers without a hole and without an "
        "overlap, and "
        "each MUST have as many bytes as its shape and dtype say.", SAFETENSORS),
    "C-3": Clause("A name MUST NOT occur twice in a header or in a configuration.", f"{SAFETENSORS}; RFC 8259, §4",
                  "JSON readers keep one of two equal names, and not all the same one."),
    "C-4": Clause("A name of a tensor is a name, not a path. A reader MUST NOT open, create or import anything by it.",
                  "CWE-22, path traversal"),
    "C-5": Clause("A reader MUST NOT load a pickle without being told to.", "Python documentation, pickle: warning",
                  "A pickle runs code when it is loaded."),
    "C-6": Clause("The factors MUST be F64, F32, F16 or BF16, unless the format has quantised factors.", SAFETENSORS),
    "C-7": Clause("The factors MUST be finite.", "the product of a NaN with anything is NaN"),
    "R-1": Clause(
        "A reader MUST use every tensor of the file, or refuse the file and name the tensors that it does not use.",
        "vllm-project/vllm, issues 34186 and 55193; NVIDIA/TensorRT-LLM, pull request 17435",
        "A model that got half of an adapter answers, and nothing tells that it is the wrong model."),
    "R-2": Clause(
        "A reader MUST refuse a setting that changes the function and that it does not carry out.",
        "ggml-org/llama.cpp, convert_lora_to_gguf.py, which reads no scale but lora_alpha",
        "A scale that is left out changes the strength of the adapter, by a factor of √rank for example."),
    "R-3": Clause("A factor without its partner MUST be refused.", f"{LLAMA}; {PEFT_SAVE}"),
    "R-4": Clause("The two factors of a module MUST have the same rank, and a rank of at least 1.", PEFT_LAYER),
    "R-5": Clause("The rank is that of the factors. If the settings give another one, a reader MUST refuse the "
    "file.", PEFT_LAYER,
                  "The scale depends on it."),
    "R-6": Clause("A reader MUST refuse a file for a module that the base model does not have.",
                  "vllm-project/vllm, issue 34186; ggml-org/llama.cpp, src/llama-adapter.cpp"),
    "R-7": Clause("The factors MUST fit the weight of their module: A reads its inputs, and B writes its outputs.", PEFT_LAYER),
    "R-8": Clause("A reader that refuses a file MUST leave the model as it was.", "choice of this specification",
                  "A model that is half loaded is a wrong model."),
    "R-9": Clause("A reader MUST refuse a file whose scale it cannot know.", "choice of this specification",
                  "Alpha has four homes: the file's tensors, its metadata, a configuration beside it, or none, which some "
                  "formats "
                  "read as alpha = rank. A format says below which of them it has."),
    "P-1": Clause("An adapter is a folder with `adapter_config.json` and `adapter_model.safetensors`.", PEFT_DOCS),
    "P-2": Clause(
        "A factor is called `base_model.model.` + the name of the module + `.lora_A.weight`, (rank, in), or `.lora_B.weight`, "
        "(out, rank). "
        "The name of the adapter is not in it.", PEFT_DOCS),
    "P-3": Clause(
        "The scale is `lora_alpha / r`, or `lora_alpha / √r` if `use_rslora` is true. Without the setting, alpha and r are 8.",
        f"{PEFT_LAYER}; {PEFT_CONFIG}; Kalajdzievski, arXiv:2312.03732"),
    "P-4": Clause(
        "`rank_pattern` and `alpha_pattern` give r and alpha for the modules whose name, or whose end of a name after a dot, "
        "matches the "
        "regular expression. The first one that matches counts.", "huggingface/peft, utils/other.py: get_pattern_key"),
    "P-5": Clause(
        "A module that `target_modules` does not name gets no adapter. A file with factors for it MUST be refused.",
        "huggingface/peft, tuners/tuners_utils.py: check_target_module_exists",
        "PEFT makes the layers that the configuration names, and drops what is for others, with a warning."),
    "P-6": Clause(
        "With `use_dora`, `lora_magnitude_vector`, (out), holds the length of each row of W: "
        "W' = m · (W + scale · B A) / ‖W + scale · B A‖, row by row. A reader that has no DoRA MUST refuse the file.",
        "Liu et al., arXiv:2402.09353, eq. 5; huggingface/peft, tuners/lora/dora.py"),
    "P-7": Clause(
        "The weight of GPT-2's Conv1D is stored as (in, out). The factors are not turned. `fan_in_fan_out` says so, but the "
        "layer decides: a reader that has the model MUST go by its layers.", PEFT_LAYER,
        "PEFT corrects the setting for each layer when it loads, and writes one for the whole model."),
    "P-8": Clause(
        "`bias` is none, all or lora_only. The biases in the file take the place of those of the model.", PEFT_CONFIG,
        "A reader that leaves them out changes the function even at scale 0."),
    "P-9": Clause(
        "A module of `modules_to_save` is stored whole, under its own name, and takes the place of the model's.", PEFT_SAVE),
    "P-10": Clause(
        "Factors of an embedding are `lora_embedding_A`, (rank, rows), and `lora_embedding_B`, (columns, rank): row i of the "
        "weight "
        "(rows, columns) gains scale · B A[:, i].", PEFT_LAYER),
    "P-11": Clause(
        "With `lora_bias`, `lora_B.bias`, (out), is multiplied by the scale and added to the output.", PEFT_LAYER),
    "P-12": Clause("`peft_type` is LORA. A reader of LoRA MUST refuse every other method.", PEFT_CONFIG),
    "P-13": Clause(
        "A file whose factors belong to a changed base weight (`init_lora_weights` of pissa, olora, corda, loftq …) MUST NOT "
        "be used on the first base weight without being converted.",
        "huggingface/peft, tuners/lora/config.py: init_lora_weights",
        "The factors were taken out of W when training began. On the whole W they count twice. PEFT can convert them when it "
        "saves, and the file does not say whether it did: so it is a warning."),
    "P-14": Clause(
        "`target_parameters` names parameters that have no layer of their own, such as the experts of a mixture, which are "
        "one array W (experts, out, in). The factors stand under the name of the module, A (experts · rank, in) and B (out, "
        "rank · experts): row e · rank + i of A and column i · experts + e of B are those of expert e and rank i. Of several "
        "parameters of one module, the one that the model registers first has the most `.base_layer` in its key. A reader "
        "that has no such factors MUST refuse the file.",
        f"{PEFT_LAYER}: ParamWrapper; huggingface/peft, tuners/tuners_utils.py: _inject_parameters; unslothai/unsloth-zoo, "
        "issue 1269",
        "The order of A and that of B differ. Whoever takes them for the same pairs an expert with the columns of others."),
    "P-15": Clause(
        "With `alora_invocation_tokens` the adapter acts from the first of these tokens on, and on no token before it. A "
        "reader that cannot do that MUST refuse the file.", f"{PEFT_CONFIG}; huggingface/peft, tuners/lora/variants.py"),
    "P-16": Clause(
        "With `trainable_token_indices`, `token_adapter.trainable_tokens_delta`, (rows, columns), holds rows that take the "
        "place of those of the embedding, and are not added to them. A reader that has no such rows MUST refuse the file.",
        "huggingface/peft, tuners/trainable_tokens/layer.py", "The name says delta, and the numbers are whole rows."),
    "P-17": Clause(
        "`layer_replication`, `use_qalora`, `use_bdlora`, `kasa_config` and `arrow_config` change the model or the product. No "
        "clause says how, and a reader that does not carry them out MUST refuse the file.", PEFT_CONFIG),
    "K-1": Clause(
        "A factor is called by the name of its module, with every dot as an underscore, + `.lora_down.weight`, (rank, in), or "
        "`.lora_up.weight`, (out, rank). The name begins with the part of the model: lora_unet, lora_te, lora_te1, lora_te2 "
        "…", KOHYA),
    "K-2": Clause(
        "The scale is `.alpha`, a tensor of one number beside the factors, over the rank. Without it, or if it is 0, alpha is "
        "the rank.",
        f"{KOHYA}; huggingface/diffusers, issue 9143"),
    "K-3": Clause(
        "`ss_network_dim` and `ss_network_alpha` in the metadata say how the file was trained. The tensors count, if both are "
        "there.",
        KOHYA),
    "K-4": Clause(
        "Other methods in the same kind of file (`hada_`, `lokr_`, `oft_`, `dora_scale`, `lora_mid`) MUST be refused by a "
        "reader that "
        "has no such method.", "KohakuBlueleaf/LyCORIS, docs/Network-Args.md"),
    "D-1": Clause(
        "A factor is called by the part of the pipeline (`unet`, `transformer`, `text_encoder` …), the name of the module, and "
        "`.lora_A.weight`, (rank, in), or `.lora_B.weight`, (out, rank); in older files `.lora.down.weight` and "
        "`.lora.up.weight`.", DIFFUSERS),
    "D-2": Clause(
        "The scale is what the metadata `lora_adapter_metadata` says, as PEFT's configuration with the part of the pipeline "
        "before each setting; or `.alpha` over the rank; or 1. A file that has both for one part MUST be refused.",
        f"{DIFFUSERS}; huggingface/diffusers, issue 11324", "diffusers raises an error for both."),
    "T-1": Clause("A factor is called by the name of its module + `.lora_a.weight`, (rank, in), or `.lora_b.weight`, (out, "
    "rank).", TORCHTUNE),
    "T-2": Clause(
        "The scale is `lora_alpha / r` of the `adapter_config.json` beside it. The file alone has no scale.", TORCHTUNE),
    "T-3": Clause(
        "The rows of q_proj and k_proj have torchtune's order of rotary pairs, and not Hugging Face's. A converter MUST turn "
        "B's rows.",
        TORCHTUNE),
    "M-1": Clause("A factor is called by the name of its module + `.lora_a`, (in, rank), or `.lora_b`, (rank, out).", MLX),
    "M-2": Clause(
        "The scale is `lora_parameters.scale` of `adapter_config.json`, as it stands. It is not divided by the rank.",
        f"{MLX}; ml-explore/mlx-lm, pull request 1120"),
    "M-3": Clause("`fine_tune_type` is lora, dora or full. DoRA has a tensor `m`, (out), beside the factors.", MLX),
    "G-1": Clause(
        "A GGUF file is an adapter if `general.type` is adapter, and of LoRA if `adapter.type` is lora. A factor is called by "
        "the name of the weight + `.lora_a`, (rank, in), or `.lora_b`, (out, rank), with the dimensions stored from the last "
        "to the first. Of `token_embd.weight` A is (rows, rank): a row for each token.",
        f"{LLAMA}; {GGUF}"),
    "G-2": Clause(
        "The scale is `adapter.lora.alpha` over the rank. If alpha is absent or 0, it is 1. There is one alpha for the whole "
        "file.", LLAMA,
        "Patterns of alpha, and rsLoRA with more than one rank, cannot be said in this format."),
    "N-1": Clause(
        "A module has another name in each format, and a converter MUST translate it, or keep it and say so. Hugging Face and "
        "mlx-lm: model.layers.N.self_attn.q_proj, k_proj, v_proj, o_proj, mlp.gate_proj, up_proj, down_proj; torchtune: "
        "layers.N.attn.q_proj, k_proj, v_proj, output_proj, mlp.w1, w3, w2; GGUF: blk.N.attn_q, attn_k, attn_v, attn_output, "
        "ffn_gate, ffn_up, ffn_down, each with .weight.",
        "meta-pytorch/torchtune, models/convert_weights.py: _FROM_HF; ggml-org/llama.cpp, gguf-py/gguf/tensor_mapping.py"),
    "N-2": Clause(
        "In a head of d rows of q and k, Hugging Face turns row i together with row i + d/2, and torchtune, and GGUF for the "
        "models llama and mistral, turn neighbours. A converter between them MUST put the rows of B in the other order, head "
        "by head: row h · d + j · d/2 + i of Hugging Face, j = 0 or 1, is row h · d + 2 i + j of the others. A stays.",
        "ggml-org/llama.cpp, convert_hf_to_gguf.py: LlamaModel.permute; meta-pytorch/torchtune, models/convert_weights.py: "
        "tune_to_peft_adapter_weights",
        "The number of heads is in the config.json of the base. The file alone does not say it."),
}

KINDS = {
    "FILE-001": Kind(ERROR, "C-1", "the file is not there or cannot be read"),
    "FILE-002": Kind(ERROR, "C-1", "the header is not whole, or is too long"),
    "FILE-003": Kind(ERROR, "C-1", "the header is no JSON object of tensors"),
    "FILE-004": Kind(ERROR, "C-2", "the place of a tensor is wrong"),
    "FILE-005": Kind(ERROR, "C-3", "a name occurs twice"),
    "FILE-006": Kind(WARNING, "C-4", "a name looks like a path"),
    "FILE-007": Kind(ERROR, "C-5", "the file is a pickle"),
    "FILE-008": Kind(ERROR, "C-6", "a factor has a dtype that factors do not have"),
    "FILE-009": Kind(ERROR, "C-7", "a factor is not finite"),
    "FILE-010": Kind(ERROR, "P-1", "the configuration is missing or cannot be read"),
    "FILE-011": Kind(ERROR, "R-2", "the configuration has a setting that changes the function, and no meaning here"),
    "FILE-012": Kind(WARNING, "R-2", "the configuration has a setting that is not known"),
    "FILE-013": Kind(ERROR, "R-2", "a setting has a value that it cannot have"),
    "FILE-014": Kind(ERROR, "P-12", "the method is not LoRA"),
    "FILE-015": Kind(ERROR, "R-1", "no format is recognised"),
    "FILE-016": Kind(WARNING, "P-13", "the factors belong to a changed base weight"),
    "FILE-020": Kind(ERROR, "R-1", "a tensor has no meaning: nobody will use it"),
    "FILE-021": Kind(ERROR, "R-3", "a factor has no partner"),
    "FILE-022": Kind(ERROR, "R-4", "the shapes of two factors do not fit each other"),
    "FILE-023": Kind(ERROR, "R-5", "the settings give another rank than the factors have"),
    "FILE-024": Kind(ERROR, "P-5", "the settings name no adapter for this module: its factors are dropped"),
    "FILE-025": Kind(WARNING, "R-1", "the settings name a module, or a tensor, that the file does not have"),
    "FILE-026": Kind(ERROR, "P-2", "a key lacks the prefix, or has the name of an adapter in it"),
    "FILE-027": Kind(ERROR, "R-1", "something of a module is there, and its factors are not"),
    "FILE-030": Kind(ERROR, "R-9", "the scale cannot be known"),
    "FILE-031": Kind(WARNING, "R-9", "two homes of alpha contradict each other"),
    "FILE-032": Kind(NOTE, "R-9", "alpha is not given, and the format's default counts"),
    "FILE-033": Kind(WARNING, "R-9", "the scale is 0"),
    "FILE-034": Kind(ERROR, "D-2", "alpha is in two places, of which the format allows one"),
    "FILE-035": Kind(ERROR, "R-9", "the scale is not finite"),
    "FILE-040": Kind(ERROR, "R-6", "the base model has no such module"),
    "FILE-041": Kind(ERROR, "R-7", "the factors do not fit the weight of the base model"),
    "FILE-042": Kind(NOTE, "R-6", "the names of this format are not those of the base model: not compared"),
    "FILE-043": Kind(WARNING, "P-7", "the base model stores the weight the other way round than the settings say"),
    "FILE-050": Kind(NOTE, "P-6", "the file needs more than the factors: a reader that leaves it out computes something else"),
    "FILE-051": Kind(NOTE, "R-1", "B is zero: the adapter changes nothing here"),
}
