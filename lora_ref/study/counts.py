"""Parameters of published models, and what each method trains on them, counted from the configurations.

    LoRA       Σ rank · (in + out)                 over the adapted matrices; all of them d × d in the paper
    adapter    2 · d · m + m + d                   each, of bottleneck m, and 2 · d for each norm trained with them (§5.1)
    PreEmbed   d · (lp + li)                       lp prefix and li infix tokens (§5.1)
    PreLayer   L · d · (lp + li)                   activations of L layers (§5.1); as keys and values it is twice that

Sources: Hu et al., "LoRA", arXiv:2106.09685v2, §5.1 (formulas). Models: Radford et al. 2019 (GPT-2), Liu et al. 2019 (RoBERTa),
the published configuration of deberta-v2-xxlarge, Brown et al. 2020, Table 2.1 (GPT-3).
"""

from typing import NamedTuple

from lora_ref import adapter, lora


class Model(NamedTuple):
    """The sizes that parameters are counted from."""

    name: str
    layers: int
    width: int
    vocabulary: int
    contexts: int  # rows of the table of positions, absolute or relative
    mlp_width: int
    other: int = 0  # parameters that GPT-2 does not have


def dense(d: int) -> int:
    """A d × d layer with its bias."""
    return d * d + d


GPT2_M = Model("GPT-2 medium", 24, 1024, 50257, 1024, 4096)
GPT2_L = Model("GPT-2 large", 36, 1280, 50257, 1024, 5120)
GPT3 = Model("GPT-3 175B", 96, 12288, 50257, 2048, 49152)
# RoBERTa's one token type and the dense layer before its classifier (or pooler)
ROBERTA_BASE = Model("RoBERTa base", 12, 768, 50265, 514, 3072, 768 + dense(768))
ROBERTA_LARGE = Model("RoBERTa large", 24, 1024, 50265, 514, 4096, 1024 + dense(1024))
# DeBERTa's convolution of three tokens with its norm, and the norm of its 2 · 256 relative positions
DEBERTA_XXL = Model("DeBERTa XXL", 48, 1536, 128100, 512, 6144, 3 * 1536**2 + 1536 + 2 * 1536 + 2 * 1536)


def base_count(m: Model) -> int:
    """All parameters: embeddings (the output is tied to them), attention, MLP and two norms a layer, and one norm more."""
    d = m.width
    layer = 4 * dense(d) + 2 * d * m.mlp_width + m.mlp_width + d + 4 * d
    return (m.vocabulary + m.contexts) * d + m.layers * layer + 2 * d + m.other


def bias_count(m: Model) -> int:
    """Every bias of the layers and of all norms."""
    return m.layers * (5 * m.width + m.mlp_width + 2 * m.width) + m.width


def lora_count(m: Model, rank: int, matrices: int = 2) -> int:
    """That many d × d matrices in each layer: q and v unless said otherwise."""
    return m.layers * matrices * lora.parameter_count(m.width, m.width, rank)


def adapter_count(m: Model, bottleneck: int, each: int = 1, norms: int = 0) -> int:
    """`each` adapters and `norms` trained norms in each layer: the figures of AdapterH fit 2 and 0, of AdapterL 1 and 1."""
    return m.layers * (each * adapter.parameter_count(m.width, bottleneck) + norms * 2 * m.width)


def embed_count(m: Model, lp: int, li: int) -> int:
    """The tokens' embeddings."""
    return m.width * (lp + li)


def layer_count(m: Model, lp: int, li: int) -> int:
    """The tokens' activations in every layer."""
    return m.layers * embed_count(m, lp, li)
