"""Honest variations of what the layer keeps, draws, writes and refuses. Where one fails a SHOULD, its docstring says so."""

import json
from pathlib import Path

import numpy as np

from conformance.mutants.honest import Honest
from conformance.mutants.orders import pieces
from conformance.subject import Arrays, LayerConfig, Unsupported

# --- modes and merging -----------------------------------------------------------------------


class MergesInInferenceOnly(Honest):
    """Refuses to merge in training mode, and to train while it is merged."""

    def merge(self) -> None:
        if self.training:
            raise RuntimeError("merge: the layer is in training mode")
        super().merge()

    def train(self, mode: bool = True) -> None:
        if mode and self.merged:
            raise RuntimeError("train: unmerge first")
        super().train(mode)


class StaysInItsMode(Honest):
    """Merges in either mode, and refuses to change the mode while it is merged."""

    def train(self, mode: bool = True) -> None:
        if self.merged and mode != self.training:
            raise RuntimeError("train: unmerge first")
        super().train(mode)


class MergesAtTheFirstForward(Honest):
    """Merges at the first forward pass in inference mode, and unmerges when the mode or the factors change."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        if not self.training and not self.merged:
            self.merge()
        return super().forward(x)

    def apart(self) -> None:
        if self.merged:
            self.unmerge()

    def train(self, mode: bool = True) -> None:
        super().train(mode)
        if mode:
            self.apart()

    def set_adapter(self, arrays: Arrays) -> None:
        self.checked(arrays)
        self.apart()
        super().set_adapter(arrays)

    def step(self, lr: float) -> None:
        self.apart()
        super().step(lr)


class KeepsTheDelta(Honest):
    """Keeps scale · A B from its first use on, until the factors change, and never changes W."""

    def delta_weight(self) -> np.ndarray:
        key = self.A.tobytes() + self.B.tobytes()
        if getattr(self, "key", None) != key:
            self.key, self.delta = key, super().delta_weight()
        return self.delta

    def output(self, x: np.ndarray) -> np.ndarray:
        return self.base(x) if self.merged else self.plus(self.base(x), self.product(self.dropped(x), self.delta_weight().T))

    def lora_dx(self, dy: np.ndarray) -> np.ndarray:
        return self.dropped(self.product(dy, self.delta_weight()))


class NoGradientWhileMerged(Honest):
    """Refuses the backward pass and a step while it is merged."""

    def backward(self, dy: np.ndarray) -> Arrays:
        if self.merged:
            raise RuntimeError("backward: unmerge first")
        return super().backward(dy)

    def step(self, lr: float) -> None:
        if self.merged:
            raise RuntimeError("step: unmerge first")
        super().step(lr)


class NoGradientInInference(Honest):
    """Keeps nothing for a backward pass in inference mode, and refuses it."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.differentiable = self.training
        return super().forward(x)

    def backward(self, dy: np.ndarray) -> Arrays:
        if not self.differentiable:
            raise RuntimeError("backward: the forward pass was in inference mode")
        return super().backward(dy)


class RecomputesInTheBackwardPass(Honest):
    """Keeps x and the state of the generator alone, and computes the rest again in the backward pass."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        self.known = x.copy(), self.training, self.rng.bit_generator.state
        return super().forward(x)

    def backward(self, dy: np.ndarray) -> Arrays:
        now = self.training, self.rng.bit_generator.state
        x, self.training, self.rng.bit_generator.state = self.known
        super().forward(x)
        self.training, self.rng.bit_generator.state = now
        return super().backward(dy)


# --- dropout ---------------------------------------------------------------------------------


class PacksTheMask(Honest):
    """Keeps eight entries of the mask in one byte."""

    def draw_mask(self) -> np.ndarray:
        return np.packbits(super().draw_mask() != 0, axis=-1)

    def dropped(self, array: np.ndarray) -> np.ndarray:
        if self.mask is None:
            return array
        kept = np.unpackbits(self.mask, axis=-1, count=array.shape[-1])
        return array * kept.astype(self.wide) / self.wide(1 - self.config.dropout)


class CountsForTheMask(Honest):
    """Draws the mask again wherever it is needed, from the seed and the number of the forward pass."""

    passes = 0

    def draw_mask(self) -> np.ndarray:
        self.passes += 1
        return np.array(self.passes)

    def dropped(self, array: np.ndarray) -> np.ndarray:
        if self.mask is None:
            return array
        rate, counter = self.config.dropout, int(self.mask) << 64
        rng = np.random.Generator(np.random.Philox(key=self.config.seed, counter=counter))
        return array * ((rng.random(array.shape) >= rate) / (1 - rate)).astype(self.wide)


class SelectsWhatIsKept(Honest):
    """Draws the mask in blocks of 32 columns, and writes zeros where it drops: NaN times 0 would be NaN."""

    def draw_mask(self) -> np.ndarray:
        blocks = [self.rng.random((len(self.x), part.stop - part.start)) for part in pieces(self.x.shape[1], 32)]
        return np.hstack(blocks) >= self.config.dropout

    def dropped(self, array: np.ndarray) -> np.ndarray:
        return array if self.mask is None else np.where(self.mask, array / self.wide(1 - self.config.dropout), self.wide(0))


# --- files -----------------------------------------------------------------------------------


class SavesText(Honest):
    """Saves numbers as text in base 16, with the rank and the sizes beside them, and refuses a file of others."""

    def save(self, directory) -> None:
        stored = {name: [float(number).hex() for number in array.ravel()] for name, array in self.contents().items()}
        (Path(directory) / "adapter.json").write_text(json.dumps({"shape": self.shape(), "numbers": stored}))

    def shape(self) -> list[int]:
        return [self.config.in_features, self.config.rank, self.config.out_features]

    def read(self, directory) -> Arrays:
        file = json.loads((Path(directory) / "adapter.json").read_text())
        if file["shape"] != self.shape():
            raise ValueError(f"the file is of in, rank, out {file['shape']}, expected {self.shape()}")
        arrays = {name: np.array([float.fromhex(text) for text in texts]) for name, texts in file["numbers"].items()}
        return {name: arrays[name].reshape(have.shape).astype(self.dtype) for name, have in self.adapter().items()}


class SavesBytes(Honest):
    """Saves the shapes and the bytes of both factors in one file, and refuses a file of other shapes."""

    def save(self, directory) -> None:
        (Path(directory) / "lora.bin").write_bytes(self.dimensions() + self.A.tobytes() + self.B.tobytes())

    def dimensions(self) -> bytes:
        return np.array([*self.A.shape, *self.B.shape], "<i8").tobytes()

    def read(self, directory) -> Arrays:
        data, head, middle = (Path(directory) / "lora.bin").read_bytes(), self.dimensions(), self.A.nbytes
        if not data.startswith(head) or len(data) != len(head) + middle + self.B.nbytes:
            raise ValueError(f"lora.bin is of other shapes, expected A {self.A.shape} and B {self.B.shape}")
        A, B = (np.frombuffer(part, self.dtype) for part in (data[len(head) :][:middle], data[len(head) + middle :]))
        return {"A": A.reshape(self.A.shape), "B": B.reshape(self.B.shape)}


# --- refusals and fewer capabilities ---------------------------------------------------------


class RefusesOddConfigurations(Honest):
    """Refuses an alpha that is not positive, and a rank above the smaller of the two sizes."""

    def check(self, config: LayerConfig) -> None:
        super().check(config)
        if config.alpha <= 0 or config.rank > min(config.in_features, config.out_features):
            raise ValueError(f"alpha is {config.alpha}, rank is {config.rank}, expected a positive alpha and a low rank")


class RefusesNaN(Honest):
    """Refuses factors that hold numbers that are not finite, from the caller and from a file."""

    def checked(self, arrays: Arrays) -> Arrays:
        for name, array in super().checked(arrays).items():
            if not np.isfinite(self.up(array)).all():
                raise ValueError(f"{name} holds numbers that are not finite")
        return arrays


class BareLayer(Honest):
    """Offers no bias, no rank-stabilised scaling and no dropout."""

    def offer(self, config: LayerConfig) -> None:
        super().offer(config)
        if config.bias or config.scaling != "standard" or config.dropout:
            raise Unsupported("a bias, rslora and dropout")


class HalfOnly(Honest):
    """Offers half precision alone."""

    dtypes = "float16", "bfloat16"
