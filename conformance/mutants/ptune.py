"""Faults of P-tuning."""

import numpy as np

from conformance.model import ModelConfig
from conformance.mutants import mutant
from conformance.mutants.honest_model import HonestModel
from conformance.mutants.tape import Node
from conformance.subject import Arrays


@mutant("144", kills="PTUNE-02")
class LogitsFromTheStart(HonestModel):
    """The logits are cut from the start of the sequence: they are those of the prompts and of the first tokens."""

    def rows_with_logits(self, count: int) -> np.ndarray:
        return np.arange(count - len(self.positions))


@mutant("144", kills="PTUNE-02")
class LogitsOfAllRows(HonestModel):
    """The logits of the prompts are returned with those of the tokens."""

    def rows_with_logits(self, count: int) -> np.ndarray:
        return np.arange(count)


@mutant("144", kills="PTUNE-02")
class OffByOne(HonestModel):
    """The logits begin one row too early, with that of the last prompt, and the row of the last token is missing."""

    def rows_with_logits(self, count: int) -> np.ndarray:
        return np.arange(len(self.positions) - 1, count - 1)


@mutant("145", kills="PTUNE-01 PTUNE-02")
class TokensKeepTheirPositions(HonestModel):
    """The tokens count their positions from 0, as if there were no prompts before them."""

    def numbered(self, count: int) -> np.ndarray:
        n, all_of_them = len(self.positions) if self.config.method == "ptuning" else 0, super().numbered(count)
        return np.where(all_of_them < n, all_of_them, all_of_them - n)


@mutant("145", kills="PTUNE-03")
class MaskHidesThePrompts(HonestModel):
    """The mask was made for the tokens. It is extended by False, as for padding, and hides the prompts."""

    def prompts_seen(self) -> bool:
        return False


@mutant(kills="PTUNE-04")
class FirstSampleOnly(HonestModel):
    """The gradient of the prompts is that of the first sample alone."""

    def over_samples(self, d: np.ndarray) -> np.ndarray:
        return d[0]


@mutant(kills="PTUNE-04")
class MeanOfSamples(HonestModel):
    """The gradient of the prompts is the mean over the samples and not the sum."""

    def over_samples(self, d: np.ndarray) -> np.ndarray:
        return d.mean(0)


@mutant(kills="PTUNE-04 PTUNE-05")
class WordsTrainToo(HonestModel):
    """The prompts are rows of the embedding of the model, and the whole embedding trains."""

    def trains(self) -> list[str]:
        return [*super().trains(), *(["embed_tokens.weight"] if self.config.method == "ptuning" else [])]


@mutant(kills="PTUNE-05")
class OnePromptIsCounted(HonestModel):
    """The list of what trains has a single prompt, however many there are."""

    def trainable(self) -> dict[str, tuple[int, ...]]:
        found = super().trainable()
        if self.config.method == "ptuning":
            found["prompt.embedding"] = (1, self.config.width)
        return found


@mutant(kills="PTUNE-06")
class WordsMove(HonestModel):
    """A step of the prompts also moves the embeddings of the words."""

    def step(self, lr: float) -> None:
        super().step(lr)
        if self.config.method == "ptuning":
            E = self.W["embed_tokens.weight"]
            self.W["embed_tokens.weight"] = E - lr / 10 * E


@mutant(kills="PTUNE-06")
class PromptsStand(HonestModel):
    """The prompts were not given to the optimizer, and never move."""

    def step(self, lr: float) -> None:
        if self.config.method != "ptuning":
            super().step(lr)


@mutant(kills="PTUNE-07")
class AlwaysFirst(HonestModel):
    """The prompts stand before the tokens, wherever they were asked for."""

    def __init__(self, config: ModelConfig, arrays: Arrays):
        super().__init__(config, arrays)
        self.positions = tuple(range(len(config.positions)))


@mutant(kills="PTUNE-01 PTUNE-02")
class InReverse(HonestModel):
    """The prompts are inserted in the reverse order."""

    def with_prompts(self, h: Node, prompts: Node) -> Node:
        return super().with_prompts(h, self.turned(prompts))


@mutant(kills="PTUNE-08")
class EncoderWithoutRelu(HonestModel):
    """The last two layers of the encoder have no activation between them."""

    def encoder_bent(self, z: Node) -> Node:
        return z


@mutant(kills="PTUNE-08")
class WayBackNotTurned(HonestModel):
    """The LSTM that reads the rows from the last to the first gives its results in that order. They are not turned round again,
    so each prompt gets the result of another."""

    def turned_again(self, a: Node) -> Node:
        return a


@mutant(kills="PTUNE-08")
class GatesInAnotherOrder(HonestModel):
    """The gates of the LSTM are read as i, g, f, o and not as i, f, g, o."""

    def gates(self, u: Node) -> list[Node]:
        i, g, f, o = super().gates(u)
        return [i, f, g, o]


@mutant(kills="PTUNE-09")
class EncoderIsDetached(HonestModel):
    """The gradient stops at the last layer of the encoder: nothing before that layer gets one."""

    def encoder_bent(self, z: Node) -> Node:
        return self.detached(super().encoder_bent(z))


@mutant(kills="PTUNE-10")
class FoldsTheEmbedding(HonestModel):
    """Folding keeps the embedding that the encoder starts from, and not the prompts that it makes of it."""

    def prompts_kept(self) -> np.ndarray:
        return self.array("prompt.embedding")
