"""PREFIX: trained keys and values before those of the sequence, in every layer.

    y = softmax(q [P_k k]ᵀ / √s) [P_v v]        tokens count their positions from behind the prefix, padding sees it too
"""

import numpy as np

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
from conformance.truth.compare import expect_within_spread
from conformance.truth.model_case import keys_of, models, reference
from lora_ref import prefix

GROUP = Group("PREFIX", "Prefix tuning", order=150, profile="prefix", asks="build_model")
LI = "Li and Liang, Prefix-Tuning, 2021, §4"
SOURCES = (LI, "Liu et al., P-Tuning v2, 2022", PEFT.replace("lora/layer", "prefix_tuning/model"))
PREFIX = models("prefix")
NETWORK = models("prefix", hidden_size=3)


@requirement(
    "PREFIX-01", "A prefix of the keys and values of real tokens MUST do what those tokens did before the others.",
    formula="P_k, P_v = k, v of the first tokens ⇒ the logits of the rest are theirs in the whole sequence", sources=SOURCES,
    needs=NEEDS, faults="145", cases=PREFIX,
)
def prefix_is_tokens_before(subject, case):
    """This fixes the positions, the mask and the scale of the scores at once."""
    whole, length = case.tokens[:1], case.config.length
    whole = np.concatenate([np.resize(case.tokens[-1], length)[None], whole], axis=1)
    model = fresh(subject, case)
    given = keys_of(case, whole, length)
    model.set_arrays(given)
    truth, deviation = case.of(whole, {}, case.base)
    _, more = case.of(whole[:, length:], reference(case.config)[1], case.base | given)
    both = deviation["logits"][:, length:] + more["logits"]  # the keys were rounded, too
    return expect_within_spread(model.forward(whole[:, length:]), truth["logits"][:, length:], both, "logits behind a prefix")


@requirement(
    "PREFIX-02", "Keys and values of any size MUST enter the softmax beside those of the tokens, scaled by 1/√(head size).",
    formula="softmax(q [P_k k]ᵀ / √s) [P_v v]", sources=SOURCES, needs=NEEDS, faults="146", cases=PREFIX,
)
def prefix_logits(subject, case):
    """This shows keys and values that are exchanged, layers that are exchanged, and a scale that uses the whole width."""
    return right_logits(prepared(subject, case), case)


@requirement(
    "PREFIX-03", "A mask of the tokens MUST leave the prefix visible, to every token.",
    formula="attention mask = [0 … 0, mask]", sources=SOURCES, needs=NEEDS, faults="145", cases=models("prefix", masked=True),
)
def prefix_and_padding(subject, case):
    """A mask that is made for the tokens alone is too short by the length of the prefix, or hides the prefix."""
    return right_where_seen(prepared(subject, case), case)


@requirement(
    "PREFIX-04", "Keys and values MUST get their gradients, summed over the batch, and nothing else MUST get one.",
    formula="dP_k = dSᵀ q / √s, dP_v = Sᵀ dy, summed over samples", sources=SOURCES, needs=f"{NEEDS} backward", cases=PREFIX,
)
def prefix_gradients(subject, case):
    """Every sample of the batch has the same prefix, so its gradients add up."""
    return right_gradients(prepared(subject, case), case)


@requirement(
    "PREFIX-05", "Only the prefix MUST train: 2 · layers · length · width numbers.", formula="2 L l d", sources=SOURCES,
    needs="build_model trainable", cases=PREFIX, examples=SHARE,
)
def prefix_parameters(subject, case):
    """The width is that of the keys. It is smaller than the model's where heads share keys."""
    c = case.config
    width = c.kv_heads * (c.width // c.heads)
    only_these_train(subject, case, prefix.parameter_count(c.layers, c.length, width))


@requirement(
    "PREFIX-06", "A step MUST move the prefix against its gradient, and leave the base as it was, bit for bit.",
    formula="p ← p − lr · dp",
    sources=SOURCES, needs=f"{NEEDS} backward zero_grad step arrays base", cases=PREFIX, examples=SHARE,
)
def base_stays_frozen_under_a_prefix(subject, case):
    """The base is frozen, as with every method."""
    return frozen_and_moved(subject, case)


@requirement(
    "PREFIX-07", "A prefix that is made by a network MUST be tanh(E W1ᵀ + b1) W2ᵀ + b2, layer by layer, keys before values.",
    formula="P = tanh(E W1ᵀ + b1) W2ᵀ + b2", sources=(LI, "XiangLi1999/PrefixTuning, gpt2/train_control.py"), needs=NEEDS,
    cases=NETWORK, optional=True,
)
def reparameterised_prefix(subject, case):
    """The order of the columns matters: in another order a stored network gives another prefix."""
    return right_logits(prepared(subject, case), case)


@requirement(
    "PREFIX-08", "Every array of the prefix's network MUST get its gradient.", formula="through tanh, summed over the batch",
    sources=(LI,), needs=f"{NEEDS} backward", cases=NETWORK, optional=True,
)
def reparameterised_gradients(subject, case):
    """The network trains, not the keys and values that it makes."""
    return right_gradients(prepared(subject, case), case)


@requirement(
    "PREFIX-09", "After folding, the prefix MUST consist of keys and values only, and the logits MUST be what they were.",
    formula="P is kept, E and the network are not", sources=(f"{LI}.3",), needs=f"{NEEDS} fold arrays", cases=NETWORK,
    optional=True,
)
def folded_prefix(subject, case):
    """Folding replaces the network by the prefix that it makes. Only the prefix is stored and counted."""
    return folded(subject, case)
