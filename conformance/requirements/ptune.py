"""PTUNE: P-tuning, which puts trained vectors in the place of tokens.

    h[positions] = prompts, and the tokens' embeddings in the other places; logits of the tokens alone
"""

import numpy as np
from hypothesis import strategies as st

from conformance.requirements import PEFT, Group, requirement
from conformance.requirements.helpers.models import (
    NEEDS,
    SHARE,
    folded,
    fresh,
    frozen_and_moved,
    only_these_train,
    prepared,
    right_gradients,
    right_logits,
    right_where_seen,
)
from conformance.truth.compare import expect, expect_within_spread
from conformance.truth.model_case import models

GROUP = Group("PTUNE", "P-tuning", order=160, profile="ptuning", asks="build_model")
LIU = "Liu et al., GPT Understands, Too, 2021, §3"
SOURCES = (LIU, PEFT.replace("lora/layer", "p_tuning/model"))
FIRST = models("ptuning", positions=(0, 1))
ANYWHERE = models("ptuning")


def encoders(dtypes):
    """Cases with prompts first, made by an MLP or an LSTM. They are in float64: no number comes near the kink of ReLU."""
    def of(coder: str):
        return models("ptuning", positions=(0, 1), encoder=coder, hidden_size=4, only=("float64",))(dtypes)

    return st.one_of([of("mlp"), of("lstm")])


@requirement(
    "PTUNE-01", "Prompts that are the embeddings of tokens MUST do what those tokens did in their place.",
    formula="prompts = embed_tokens[t] ⇒ the logits of the others are theirs in the whole sequence", sources=SOURCES,
    needs=NEEDS, faults="145", cases=FIRST,
)
def prompts_are_tokens(subject, case):
    """A prompt takes a position like a token, and the tokens after it attend to it."""
    n = len(case.config.positions)
    whole = np.concatenate([np.resize(case.tokens[-1], n)[None], case.tokens[:1]], axis=1)
    model = fresh(subject, case)
    model.set_arrays({"prompt.embedding": case.base["embed_tokens.weight"][whole[0, :n]]})
    truth, deviation = case.of(whole, {}, case.base)
    want, spread = (found["logits"][:, n:] for found in (truth, deviation))
    return expect_within_spread(model.forward(whole[:, n:]), want, spread, "logits behind prompts")


@requirement(
    "PTUNE-02", "The logits MUST be those of the tokens, in their order, without those of the prompts.",
    formula="logits (batch, T, vocabulary), row t of token t", sources=SOURCES, needs=NEEDS, faults="144", cases=FIRST,
)
def logits_stay_aligned(subject, case):
    """If the rows start at the first prompt, they are off by the number of prompts: every score belongs to another word."""
    logits = prepared(subject, case).forward(case.tokens, case.mask)
    shape = (*case.tokens.shape, case.config.vocabulary)
    expect(logits.shape == shape, "shape of the logits", logits.shape, shape)
    truth, deviation = case.spread
    return expect_within_spread(logits, truth["logits"], deviation["logits"], "logits")


@requirement(
    "PTUNE-03", "A mask of the tokens MUST leave the prompts visible.", formula="attention mask = [0 … 0, mask]",
    sources=SOURCES, needs=NEEDS, faults="145", cases=models("ptuning", positions=(0, 1), masked=True),
)
def prompts_and_padding(subject, case):
    """A mask that is made for the tokens alone can hide the prompts."""
    return right_where_seen(prepared(subject, case), case)


@requirement(
    "PTUNE-04", "Prompts MUST get their gradients, summed over the batch, and nothing else MUST get one.",
    formula="dprompts = Σ dh[positions]", sources=SOURCES, needs=f"{NEEDS} backward", cases=FIRST,
)
def prompt_gradients(subject, case):
    """Every sample of the batch has the same prompts, so their gradients add up."""
    return right_gradients(prepared(subject, case), case)


@requirement(
    "PTUNE-05", "Only the prompts MUST train: n · width numbers.", formula="n d", sources=SOURCES,
    needs="build_model trainable", cases=FIRST, examples=SHARE,
)
def prompt_parameters(subject, case):
    """This is the count without an encoder."""
    only_these_train(subject, case, len(case.config.positions) * case.config.width)


@requirement(
    "PTUNE-06", "A step MUST move the prompts against their gradient, and leave the base as it was, bit for bit.",
    formula="p ← p − lr · dp", sources=SOURCES, needs=f"{NEEDS} backward zero_grad step arrays base", cases=FIRST,
    examples=SHARE,
)
def base_stays_frozen_under_prompts(subject, case):
    """The embeddings of the words are part of the base."""
    return frozen_and_moved(subject, case)


@requirement(
    "PTUNE-07", "Prompts MUST be at the places that were asked for, anywhere in the input.",
    formula="h[positions] = prompts", sources=(LIU,), needs=NEEDS, cases=ANYWHERE, optional=True,
)
def prompts_anywhere(subject, case):
    """Prompts may stand between words as well as before them, though most libraries put them first."""
    return right_logits(prepared(subject, case), case)


@requirement(
    "PTUNE-08",
    "Prompts of an encoder MUST be relu(x W1ᵀ + b1) W2ᵀ + b2, where x is the embeddings or both directions of an LSTM.",
    formula="x = E, or [h→ h←]", sources=(LIU,), needs=NEEDS, cases=encoders, optional=True,
)
def prompt_encoder(subject, case):
    """The gates of the LSTM are in the order i, f, g, o. The output of the backward direction is reversed again."""
    return right_logits(prepared(subject, case), case)


@requirement(
    "PTUNE-09", "Every array of the prompts' encoder MUST get its gradient.", formula="through relu and time", sources=(LIU,),
    needs=f"{NEEDS} backward", cases=encoders, optional=True,
)
def encoder_gradients(subject, case):
    """The encoder trains, not the prompts that it makes."""
    return right_gradients(prepared(subject, case), case)


@requirement(
    "PTUNE-10", "After folding, only the prompts MUST be left, and the logits MUST be what they were.",
    formula="the prompts are kept",
    sources=(LIU,), needs=f"{NEEDS} fold arrays", cases=encoders, optional=True,
)
def folded_prompts(subject, case):
    """Folding replaces the encoder by the prompts that it makes."""
    return folded(subject, case)
