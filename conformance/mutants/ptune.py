"""Faults of P-tuning."""

from dataclasses import replace

import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest_model import HonestModel
from conformance.subject import Arrays
from conformance.truth.model_case import reference
from lora_ref import ptuning, transformer

_forward, _backward, _insert, _lstm = ptuning.forward, ptuning.backward, ptuning.insert, ptuning._lstm
_insert_backward, _relu = ptuning.insert_backward, ptuning.relu


class WithPrompts(HonestModel):
    """An honest model that can say how its whole sequence is computed."""

    @property
    def n(self) -> int:
        return len(self.config.positions) if self.config.method == "ptuning" else 0

    def whole(self, tokens: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
        """The logits of all rows, those of the prompts first: n prompts in front are n tokens of a larger vocabulary."""
        prompts = ptuning.forward(transformer.take(ptuning.ENCODERS[self.config.encoder], "prompt", self.p))[0]
        size = self.config.vocabulary
        arrays = dict(self.W)
        arrays["embed_tokens.weight"] = np.concatenate([self.W["embed_tokens.weight"], prompts])
        if not self.config.tied:
            arrays["lm_head.weight"] = np.concatenate([self.W["lm_head.weight"], prompts])
        ids = np.broadcast_to(np.arange(size, size + self.n), (len(tokens), self.n))
        seen = None if mask is None else np.concatenate([np.ones_like(ids, bool), mask], 1)
        config = self.reference._replace(vocabulary=size + self.n)
        logits, _ = transformer.forward(np.concatenate([ids, tokens], 1), arrays, config, {}, seen)
        return logits[..., :size]


@mutant("144", kills="PTUNE-02")
class LogitsFromTheStart(WithPrompts):
    """The logits are cut from the start of the sequence: they are those of the prompts, and of the first tokens."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        logits = super().forward(tokens, mask)
        return self.whole(tokens, mask)[:, : tokens.shape[1]] if self.n else logits


@mutant("144", kills="PTUNE-02")
class LogitsOfAllRows(WithPrompts):
    """The logits of the prompts are given with those of the tokens."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        logits = super().forward(tokens, mask)
        return self.whole(tokens, mask) if self.n else logits


@mutant("144", kills="PTUNE-02")
class OffByOne(WithPrompts):
    """The logits begin one row before those of the tokens."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        logits = super().forward(tokens, mask)
        return self.whole(tokens, mask)[:, self.n - 1 : -1] if self.n else logits


@mutant("145", kills="PTUNE-01 PTUNE-02")
class TokensKeepTheirPositions(HonestModel):
    """Tokens count their positions as if there were no prompts before them."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        P, n = self.W["embed_positions.weight"], len(self.config.positions) if self.config.method == "ptuning" else 0
        return self.with_arrays(tokens, mask, base={"embed_positions.weight": np.concatenate([P[:n], P[: len(P) - n]])})


@mutant("145", kills="PTUNE-03")
class MaskHidesThePrompts(HonestModel):
    """The mask was made for the tokens, and is filled up with what it has for padding."""

    @staticmethod
    def insert(h, prompts, positions):
        return _insert(h, np.zeros_like(prompts) if h.dtype == bool else prompts, positions)

    swaps = {(ptuning, "insert"): insert}


@mutant(kills="PTUNE-04")
class FirstSampleOnly(HonestModel):
    """The gradient of the prompts is that of the first sample."""

    swaps = {(ptuning, "insert_backward"): lambda dout, at: (_insert_backward(dout, at)[0], dout[0, list(at)])}


@mutant(kills="PTUNE-04")
class MeanOfSamples(HonestModel):
    """The gradient of the prompts is the mean over the samples."""

    @staticmethod
    def mean(dout, at):
        dh, dprompts = _insert_backward(dout, at)
        return dh, dprompts / dprompts.dtype.type(len(dout))

    swaps = {(ptuning, "insert_backward"): mean}


@mutant(kills="PTUNE-04 PTUNE-05")
class WordsTrainToo(HonestModel):
    """The prompts are rows of the model's embedding, all of which trains."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        found, name = super().trainable(), "embed_tokens.weight"
        return found | {name: self.W[name].shape} if self.config.method == "ptuning" else found


@mutant(kills="PTUNE-05")
class OnePromptIsCounted(HonestModel):
    """What is said to train is a single vector."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        found = super().trainable()
        if self.config.method == "ptuning":
            found["prompt.embedding"] = (1, self.config.width)
        return found


@mutant(kills="PTUNE-06")
class WordsMove(HonestModel):
    """A step moves the embeddings of the words, too."""

    def step(self, lr: float) -> None:
        super().step(lr)
        if self.config.method == "ptuning":
            E = self.W["embed_tokens.weight"]
            self.W["embed_tokens.weight"] = E - E.dtype.type(lr / 10) * E


@mutant(kills="PTUNE-06")
class PromptsStand(HonestModel):
    """The prompts are not given to the optimizer."""

    def step(self, lr: float) -> None:
        if self.config.method != "ptuning":
            super().step(lr)


@mutant(kills="PTUNE-07")
class AlwaysFirst(HonestModel):
    """Wherever they were wanted, the prompts stand first."""

    def __init__(self, config, arrays: Arrays):
        super().__init__(config, arrays)
        self.methods = reference(replace(config, positions=tuple(range(len(config.positions)))))[1]


@mutant(kills="PTUNE-01 PTUNE-02")
class InReverse(HonestModel):
    """The prompts are inserted in the reverse order."""

    swaps = {
        (ptuning, "insert"): lambda h, prompts, at: _insert(h, prompts[::-1] if prompts.ndim > 1 else prompts, at),
    }


@mutant(kills="PTUNE-08")
class EncoderWithoutRelu(HonestModel):
    """The head of the encoder has no activation."""

    swaps = {(ptuning, "relu"): lambda x: (x, np.ones_like(x, dtype=bool))}


@mutant(kills="PTUNE-08")
class WayBackNotTurned(HonestModel):
    """What the LSTM gives on its way back is not turned round again: each prompt gets that of another."""

    def forward(self, tokens: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        turn = [False]

        def lstm(x, W, U, b):
            out, cache = _lstm(x, W, U, b)
            turn[0] = not turn[0]
            return (out if turn[0] else out[::-1]), cache

        self.swaps = {(ptuning, "_lstm"): lstm}  # type: ignore[misc]
        return super().forward(tokens, mask)


@mutant(kills="PTUNE-08")
class GatesInAnotherOrder(HonestModel):
    """The gates are read as i, g, f, o."""

    @staticmethod
    def lstm(x, W, U, b):
        i, f, g, o = np.split(np.arange(len(b)), 4)
        order = np.concatenate([i, g, f, o])
        return _lstm(x, W[order], U[order], b[order])

    swaps = {(ptuning, "_lstm"): lstm}


@mutant(kills="PTUNE-09")
class EncoderIsDetached(HonestModel):
    """The gradient stops at the last layer of the encoder."""

    @staticmethod
    def backward_(dprompts, cache):
        found = _backward(dprompts, cache)
        return found if isinstance(found, ptuning.Embedding) else found._replace(embedding=0 * found.embedding)

    swaps = {(ptuning, "backward"): backward_}


@mutant(kills="PTUNE-10")
class FoldsTheEmbedding(HonestModel):
    """What is kept of the encoder is its embedding, and not what it makes of it."""

    swaps = {(ptuning, "fold"): lambda p: ptuning.Embedding(p.embedding.copy())}
