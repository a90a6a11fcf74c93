"""The right log-probabilities: the base model, and what an adapter adds to its modules, computed here in float32.

    y ← y + factor · scale · (x A) B        A (in, rank)   B (rank, out), by the meaning of the adapter's file

The model is transformers' own. A factor of 1 is the adapter, 0 the base model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from conformance.files import reading
from conformance.files.meaning import Meaning, Part
from conformance.files.probe.server import Answer, Prompt, Trouble

ROUNDING = 2.0**-10  # of the noise that is tried: coarse against float32, and fine enough to be linear
TRIALS = 3  # of noise


class CannotTell(Exception):
    """The truth of this base model or adapter cannot be computed here. The message says why."""


class Change(NamedTuple):
    """What an adapter adds to the output of one module."""

    A: torch.Tensor  # (in, rank)
    B: torch.Tensor  # (rank, out)
    scale: float


Changes = list[dict[str, Change]]  # of the adapters that are applied at once, each by module


class Cache(NamedTuple):
    """Keys and values of the first tokens of every prompt, which a server kept from a time when other adapters were applied."""

    changes: Changes
    tokens: int


class Places(NamedTuple):
    """Which log-probabilities are compared: of this token, after so many tokens of that prompt."""

    prompt: np.ndarray
    position: np.ndarray
    token: np.ndarray


class Truth:
    """A base model and prompts, all of the same length."""

    def __init__(self, folder: str):
        """Reads a folder with config.json and .safetensors files. Raises ValueError and CannotTell."""
        try:
            from transformers import AutoModelForCausalLM
            from transformers.utils import logging
        except ImportError:
            raise CannotTell("transformers, which computes the truth, is not installed: pip install transformers") from None
        reading.shapes(folder)
        logging.disable_progress_bar()
        try:
            self.model: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, local_files_only=True, use_safetensors=True, attn_implementation="eager").eval()
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ValueError(f"{folder}: transformers cannot read the base model: {error}") from None
        self.modules: dict[str, nn.Module] = {
            name: module for name, module in self.model.named_modules() if getattr(module, "weight", None) is not None}
        self.prompts: list[Prompt] = []

    @property
    def vocabulary(self) -> int:
        return self.model.config.get_text_config().vocab_size

    def changes(self, meaning: Meaning) -> dict[str, Change]:
        """What the adapter adds to each module of the model. Raises ValueError for one that does not fit, CannotTell for what
        is no low-rank change of a linear layer or an embedding."""
        if not meaning.right or not meaning.parts:
            words = "; ".join(f"{issue.code} {issue.where}: {issue.words}" for issue in meaning.issues) or "it has no modules"
            raise ValueError(f"{meaning.path} is no right adapter (conformance file tells more): {words[:400]}")
        odd = [f"DoRA in {part.module}" for part in meaning.parts if part.magnitude]
        odd += [f"a bias beside B in {part.module}" for part in meaning.parts if part.bias] + [o.name for o in meaning.others]
        if odd:
            raise CannotTell(f"the adapter has more than factors, and this is not compared: {odd[0]}, and {len(odd) - 1} more")
        return {self._place(part): Change(_tensor(part.A.whole()), _tensor(part.B.whole().T), part.scale.value or 0.0)
                for part in meaning.parts}

    def _place(self, part: Part) -> str:
        """The name of the module in the model. A file may have more or fewer segments at the beginning of its names."""
        names = [part.module] if part.module in self.modules else [
            name for name in self.modules if f".{part.module}".endswith(f".{name}") or name.endswith(f".{part.module}")]
        if len(names) != 1:
            raise ValueError(f"the base model has no module {part.module}" + (f": {' or '.join(names)}?" if names else ""))
        weight: Any = self.modules[names[0]].weight
        inwards = isinstance(self.modules[names[0]], nn.Linear)  # Conv1D and embeddings store (in, out)
        if tuple(weight.shape) != ((part.B.size, part.A.size) if inwards else (part.A.size, part.B.size)):
            raise ValueError(f"{part.module}: the factors make {part.weight}, and the weight is {tuple(weight.shape)}")
        return names[0]

    def every_place(self) -> Places:
        """Every token of every prompt but the first."""
        rows, columns = np.indices((len(self.prompts), len(self.prompts[0]) - 1)).reshape(2, -1)
        return Places(rows, columns + 1, np.array(self.prompts)[rows, columns + 1])

    def at(self, places: Places, changes: Changes, cache: Cache | None = None, noise: int | None = None) -> np.ndarray:
        """The log-probabilities at these places, with these adapters applied. `noise` seeds roundings that are tried."""
        tokens, cached, logits = torch.tensor(self.prompts), None, []
        parts = [(tokens, changes)]
        if cache:
            parts = [(tokens[:, : cache.tokens], cache.changes), (tokens[:, cache.tokens :], changes)]
        for part, applied in parts:
            with self._applied(applied, noise), torch.inference_mode():
                said = self.model(part, past_key_values=cached, use_cache=cache is not None)
            cached = said.past_key_values
            logits.append(said.logits.double())
        found = torch.log_softmax(torch.cat(logits, 1), -1)  # (prompts, positions, vocabulary)
        return found[places.prompt, places.position - 1, places.token].numpy()

    @contextmanager
    def _applied(self, changes: Changes, noise: int | None) -> Iterator[None]:
        random = None if noise is None else torch.Generator().manual_seed(noise)
        hooks = [self.modules[name].register_forward_hook(partial(_add, change, random))
                 for adapter in changes for name, change in adapter.items()]
        if random is not None:
            hooks += [module.register_forward_hook(partial(_round, random)) for module in self.modules.values()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def spread(self, places: Places, changes: Changes) -> float:
        """How far the answers move, for each unit of random relative errors in the outputs of all modules and factors."""
        right = self.at(places, changes)
        return rms(np.concatenate([self.at(places, changes, noise=seed) - right for seed in range(TRIALS)])) / ROUNDING


def _add(change: Change, random: torch.Generator | None, module: nn.Module, inputs: tuple,
         output: torch.Tensor) -> torch.Tensor:
    inner = change.A[inputs[0]] if isinstance(module, nn.Embedding) else inputs[0] @ change.A
    added = _moved(_moved(inner, random) @ change.B, random)
    return output + change.scale * added


def _round(random: torch.Generator, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return _moved(output, random)


def _moved(y: torch.Tensor, random: torch.Generator | None) -> torch.Tensor:
    return y if random is None else y * (1 + ROUNDING * torch.randn(y.shape, generator=random))


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32))


def rms(array: np.ndarray) -> float:
    """The root of the mean square; infinite if a number is not finite."""
    return float(np.sqrt(np.mean(array**2))) if np.isfinite(array).all() else float("inf")


def together(answers: list[Answer], vocabulary: int) -> tuple[Places, np.ndarray]:
    """The places and the values of the answers to all prompts. Raises Trouble for no values, and for a token that is none."""
    numbers = np.repeat(np.arange(len(answers)), [len(answer.token) for answer in answers])
    position, token, value = (np.concatenate(column) for column in zip(*answers, strict=True))
    if not token.size:
        raise Trouble("the server gives no log-probabilities for any of these prompts")
    if ((token < 0) | (token >= vocabulary)).any():
        raise Trouble(f"the server names token {token.max()}, and the vocabulary has {vocabulary}")
    return Places(numbers, position, token), value
