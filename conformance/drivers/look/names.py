"""What the arguments of LoRA layers are called in the wild: names that are in use for each role."""

_WORDS = {
    "in": """in_features in_dim d_in input_dim in_channels features_in n_in fan_in in_size input_size in_feature indim dim_in
             nin in_ch inputs in_shape num_inputs""",
    "out": """out_features out_dim d_out output_dim out_channels features_out n_out fan_out out_size output_size out_feature
              outdim dim_out nout out_ch outputs out_shape num_outputs intermediate_size n_inner ffn_dim d_ff inner_dim mlp_dim
              d_inner""",
    "width": "dim d_embed dim_embed embed_dim hidden_size hidden_dim d_model n_embd features size width",  # in and out at once
    "rank": """rank r lora_rank lora_r lora_dim network_dim r_lora low_rank rank_dim adapter_rank dim_r bottleneck k""",
    "alpha": "alpha lora_alpha network_alpha adapter_alpha scaling_alpha",
    "bias": "bias use_bias has_bias",
    "dropout": """dropout lora_dropout dropout_p lora_dropout_p dropout_rate drop p adapter_dropout dropout_prob lora_p
                  drop_rate dropout_ratio lora_droppout""",
    "rslora": "use_rslora rslora rank_stabilized",
    "scaling": "scaling",
    "dtype": "dtype",
    "device": "device",
    "seed": "seed",
    "linear": """linear base_layer base layer module original_layer original_module linear_layer org_module orig original
                 orig_module orig_layer base_linear original_linear target wrapped lin fc
                 base_module org_layer module_to_wrap pretrained
                 pretrained_layer frozen orig_linear linear_module base_fc inner layer_to_wrap wrapped_layer""",
    "weight": "weight W w base_weight original_weight orig_weight pretrained_weight W0 weights",
    "b": "b base_bias original_bias orig_bias bias_tensor",
    "configuration": "config cfg args lora_config opt hparams conf options params",
    "model": "model net network root transformer unet parent",
    "targets": """target_modules target_substrings target_keywords target_layer_names targets target_names
                  target_replace_modules modules layer_names module_names target_layers include_names""",
    "multiplier": "multiplier scale lora_scale strength lora_weight",
    "part": "lora lora_module lora_layer adapter lora_adapter lora_branch adapter_layer adapter_module delta",  # a module, too
    "sizes": "shape weight_shape in_out",
    "down": "A lora_A lora_a LoRA_a LoRA_A down lora_down w_a adapter_down linear_a_q",  # a module that the caller makes
    "up": "B lora_B lora_b LoRA_b LoRA_B up lora_up w_b adapter_up linear_b_q",
    "switches": "enable_lora",
    "name": "name lora_name adapter_name key prefix layer_name",
}
ROLES = {name: role for role, words in _WORDS.items() for name in words.split()}
# A name that is none of these words, but has one as a part, as weight_rank has.
PARTS = {"dropout": "dropout", "drop": "dropout", "rank": "rank", "alpha": "alpha"}


def role_of(name: str) -> str | None:
    """The role that a name is in use for."""
    plain = name.lower().lstrip("_")
    return whole(name) or next((role for part, role in PARTS.items() if part in plain.split("_")), None)


def whole(name: str) -> str | None:
    """The role that the whole name is in use for, and not a part of it."""
    return ROLES.get(name) or ROLES.get(name.lower().lstrip("_"))


SIZES = ("in", "out")
AROUND = ("linear", "weight", "turned weight", "convolution", "configuration", "model")  # what a class may be given for W
ONCE = {*SIZES, *AROUND, "width", "rank", "alpha", "b", "down", "up"}  # what no two arguments stand for
# What a name says for sure.
SURE = {*SIZES, "rank", "alpha", "bias", "dropout", "rslora", "dtype", "device", "seed", "name", "targets", "switches"}

MERGES = ("merge", "fuse", "fold", "bake", "absorb")  # parts of the names of what merges
# Parts of the names of methods and functions that switch a layer on, or make it ready.
_ON = """enable activate active on hook apply inject patch attach switch set use add register init setup prepare build create
         install start select turn configure wrap update bind connect make reset"""
# And of those that do something else.
_OTHERWISE = """merge unmerge fuse remove delete disable off deactivate detach unload save load train eval zero forward print
                get is has restore disconnect unhook unpatch extra repr export"""


def chooses(name: str) -> bool:
    """Whether a function that does not get the layer may choose what is active: others, like setup_training, do more."""
    return bool(set(name.lower().split("_")) & {"set", "use", "select", "activate", "enable", "switch", "active", "turn"})


def switches(name: str) -> bool:
    """Whether a method or function of this name may switch a layer on."""
    parts = set(name.lower().strip("_").split("_"))
    other = parts & set(_OTHERWISE.split()) or name.startswith("__") or not harmless(name)
    return bool(parts & set(_ON.split())) and not other


# Of what is never called unless it is asked for by name, since it could do harm.
_HARMS = "save write dump export push upload download"
# And of functions that make no layer.
_NO_MAKER = "print count freeze unfreeze mark merge unmerge is has main test train eval evaluate plot parse log"


def harmless(name: str) -> bool:
    """Whether a method or function of this name neither writes nor sends anything, as far as the name says."""
    return not set(name.lower().strip("_").split("_")) & set(_HARMS.split())


def makes(name: str) -> bool:
    """Whether a function of this name may make a layer."""
    return harmless(name) and not set(name.lower().strip("_").split("_")) & set(_NO_MAKER.split())
