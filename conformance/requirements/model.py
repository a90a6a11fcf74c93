"""MODEL: a whole transformer, and LoRA on several of its matrices.

    h ← h + attention(norm(h)),  h ← h + mlp(norm(h)),  logits = norm(h) headᵀ        W + scale · (A B)ᵀ at each target
"""

from dataclasses import replace

from conformance.model import places
from conformance.requirements import PAPER, PEFT, Group, requirement
from conformance.requirements.helpers.models import (
    NEEDS,
    SHARE,
    fresh,
    frozen_and_moved,
    names_are,
    only_these_train,
    plain,
    prepared,
    right_gradients,
    right_logits,
    right_where_seen,
    switched_off,
)
from conformance.truth.compare import expect_equal, expect_within_spread
from conformance.truth.model_case import GPT2, ModelCase, models, reference

GROUP = Group("MODEL", "Whole models", order=130, profile="model", asks="build_model")
FORWARD = "lora_ref/transformer.py, every gradient of which is held against the complex step"
SOURCES = (FORWARD, PAPER, PEFT)
LORA = models("lora")


@requirement(
    "MODEL-01", "The model without a method MUST compute the transformer that it was given.",
    formula="logits of the base", sources=(FORWARD,), needs="build_model forward", cases=models("none"), examples=SHARE,
)
def base_model(subject, case):
    """All later requirements compare with this model. If an array were put in the wrong place, they would mean nothing."""
    return right_logits(fresh(subject, case), case)


@requirement(
    "MODEL-02", "Padding MUST NOT change the logits of the tokens that are not padding.",
    formula="attention mask = −∞ where the mask is False", sources=(FORWARD,), needs="build_model forward",
    cases=models("none", masked=True), examples=SHARE,
)
def padding(subject, case):
    """Padding may stand behind the tokens or between them. The logits of the padding itself may be anything."""
    return right_where_seen(fresh(subject, case), case)


@requirement(
    "MODEL-03", "A fresh LoRA on several matrices MUST leave the logits as they were, bit for bit.",
    formula="B = 0 ⇒ W + 0 = W", sources=SOURCES, needs="build_model forward", cases=LORA, examples=SHARE,
)
def fresh_lora_changes_nothing(subject, case):
    """The logits are compared with those of the same model without a method."""
    want = plain(subject, case).forward(case.tokens)
    return expect_equal(fresh(subject, case).forward(case.tokens), want, "logits with a fresh LoRA")


@requirement(
    "MODEL-04", "LoRA MUST act on exactly the matrices that are named.",
    formula="y = x Wᵀ + b + scale · (x A) B at each target", sources=SOURCES, needs=NEEDS, cases=LORA,
)
def lora_on_named_matrices(subject, case):
    """If LoRA acts on another matrix of the same shape, no shape shows it, and a fresh adapter does not show it either."""
    return right_logits(prepared(subject, case), case)


@requirement(
    "MODEL-05", "Every A and B of the model MUST get its gradient, and nothing else MUST get one.",
    formula="dA = xᵀ (scale · dy Bᵀ), dB = hᵀ dy", sources=SOURCES, needs=f"{NEEDS} backward", cases=LORA,
)
def lora_gradients_of_a_model(subject, case):
    """The gradient comes through everything above the matrix: norms, attention, activations."""
    return right_gradients(prepared(subject, case), case)


@requirement(
    "MODEL-06", "A model with LoRA merged into every matrix MUST be the plain model with those matrices, bit for bit, and give "
    "the same logits as before.", formula="W' = W + scale · (A B)ᵀ at each target", sources=SOURCES,
    needs=f"{NEEDS} merge base", cases=LORA,
)
def merged_model(subject, case):
    """The logits equal those of a model without LoRA bit for bit. So no operation of LoRA is left, and no latency."""
    model = prepared(subject, case)
    model.merge()
    base, logits = model.base(), model.forward(case.tokens)
    truth, deviation = case.merged
    names_are(base, case.base, "names of the base after merge")
    for name in sorted(base):
        expect_within_spread(base[name], truth[name], deviation[name], f"{name} after merge")
    expect_equal(logits, plain(subject, case, base).forward(case.tokens), "logits of the merged model, beside a plain one")
    return expect_within_spread(logits, truth["logits"], deviation["logits"], "logits after merge")


@requirement(
    "MODEL-07", "Only A and B of the named matrices MUST train: Σ rank · (in + out) numbers.", formula="Σ rank · (in + out)",
    sources=SOURCES, needs="build_model trainable", cases=LORA, examples=SHARE,
)
def lora_parameters_of_a_model(subject, case):
    """For a square matrix this is 2 · d · rank, as in the paper."""
    matrices = [case.base[f"{place}.weight"].shape for place in places(case.config)]
    only_these_train(subject, case, sum(case.config.rank * (out + n_in) for out, n_in in matrices))


@requirement(
    "MODEL-08", "A step MUST move every A and B against its gradient, and leave the base as it was, bit for bit.",
    formula="p ← p − lr · dp", sources=SOURCES, needs=f"{NEEDS} backward zero_grad step arrays base", cases=LORA,
    examples=SHARE,
)
def base_stays_frozen(subject, case):
    """Norms, biases and embeddings are part of the base."""
    return frozen_and_moved(subject, case)


@requirement(
    "MODEL-09", "Full fine-tuning MUST give every array of the base its gradient.", formula="dW = dyᵀ x, and so on",
    sources=(FORWARD,), needs="build_model forward backward", cases=models("full"), examples=SHARE, optional=True,
)
def gradients_of_the_base(subject, case):
    """LoRA is compared with full fine-tuning. A tied head and embedding are one array: its gradient is the sum of both."""
    return right_gradients(fresh(subject, case), case)


@requirement(
    "MODEL-10", "With LoRA switched off the model MUST be the base, bit for bit; with it on again, what it was.",
    formula="y = x Wᵀ + b", sources=SOURCES, needs=f"{NEEDS} switch", cases=LORA, examples=SHARE, optional=True,
)
def lora_switched_off(subject, case):
    """This is used to compare with the base, and for the reference model in preference training."""
    return switched_off(subject, case)


@requirement(
    "MODEL-11", "LoRA on one fused matrix MUST be the same as LoRA on its parts with one A in common.",
    formula="[q k v] = x Wᵀ + scale · (x A) [B_q B_k B_v]",
    sources=(*SOURCES, "microsoft/LoRA, loralib/layers.py, MergedLinear"), needs=NEEDS,
    cases=models("lora", base=GPT2, targets=("qkv_proj",)), examples=SHARE,
)
def fused_is_separate_with_one_A(subject, case):
    """The order of the parts in the fused matrix is fixed: q, then k, then v."""
    model, d = prepared(subject, case), case.config.width
    separate = replace(case.config, fused=False, targets=("q_proj", "k_proj", "v_proj"))
    arrays = {}
    for name, array in (case.base | case.trained).items():
        place, _, field = name.rpartition(".")
        if not place.endswith("qkv_proj"):
            arrays[name] = array
            continue
        for i, part in enumerate("qkv"):
            rows = slice(i * d, (i + 1) * d)
            piece = array if field == "A" else array[:, rows] if field == "B" else array[rows]
            arrays[f"{place.replace('qkv', part)}.{field}"] = piece
    other = ModelCase(separate, {}, {}, case.tokens, None, case.dlogits)
    truth, deviation = other.of(case.tokens, reference(separate)[1], arrays)
    return expect_within_spread(model.forward(case.tokens), truth["logits"], deviation["logits"],
                                "logits of LoRA on fused q, k, v")
