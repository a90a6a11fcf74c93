"""Faults of saving and loading."""

from os import PathLike
from pathlib import Path

import ml_dtypes
import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest import BFLOAT16, Honest
from conformance.mutants.variations import MergesAtEval, UnmergesBySubtraction
from conformance.subject import Arrays


@mutant("22", kills="STATE-01")
class SavedAsFloat16(Honest):
    """The factors are written in float16."""

    def contents(self) -> Arrays:
        return {name: array.astype(np.float16).astype(array.dtype) for name, array in super().contents().items()}


@mutant(kills="STATE-01")
class SavedInSixDigits(Honest):
    """The factors are written as decimals of six digits."""

    def contents(self) -> Arrays:
        return {name: np.array([f"{value:.6g}" for value in array.ravel().tolist()], np.str_).astype(float)
                .reshape(array.shape) for name, array in super().contents().items()}


@mutant("22", kills="STATE-02")
class Bfloat16SavedAsVoid(Honest):
    """bfloat16 is written in a file format that does not support it, and cannot be read back."""

    def save(self, directory: str | PathLike[str]) -> None:
        np.savez(Path(directory) / "adapter.npz", A=self.A, B=self.B)


@mutant(kills="STATE-01")
class SquareLoadedTransposed(Honest):
    """Load decides by the shape whether to transpose, and transposes a square factor that was right."""

    def receive(self, contents: Arrays) -> None:
        super().receive({name: a.T if a.shape[0] == a.shape[1] else a for name, a in contents.items()})


@mutant("112", kills="STATE-01 STATE-02")
class BNotSaved(Honest):
    """B is not written, and load leaves it as it was."""

    def contents(self) -> Arrays:
        return {"A": self.A}

    def receive(self, contents: Arrays) -> None:
        self.set_adapter(self.adapter() | contents)


@mutant("115 116 118", kills="STATE-01 STATE-02 STATE-03")
class NamesDoNotMatch(Honest):
    """The factors are written under names that load does not know, and load ignores what it does not know."""

    def contents(self) -> Arrays:
        return {f"default.{name}": array for name, array in super().contents().items()}

    def receive(self, contents: Arrays) -> None:
        self.set_adapter(self.adapter() | {name: array for name, array in contents.items() if name in ("A", "B")})


@mutant("117", kills="STATE-01 STATE-02 STATE-05")
class LoadOnlyBuilds(Honest):
    """Load checks the shapes and copies nothing."""

    def receive(self, contents: Arrays) -> None:
        self.checked(contents)


@mutant("114", kills="STATE-01")
class ReadInAnotherOrder(Honest):
    """The factors are written by number, and read in another order."""

    def receive(self, contents: Arrays) -> None:
        A, B = reversed(contents.values())
        self.set_adapter({"A": A.reshape(self.A.shape), "B": B.reshape(self.B.shape)})


@mutant("11 13 24", kills="STATE-02")
class ScaleNotRestored(Honest):
    """The file does not contain the scale, and load sets it to a default."""

    def receive(self, contents: Arrays) -> None:
        super().receive(contents)
        self.scale = 1.0


@mutant("14", kills="STATE-02")
class MissingAlphaIsZero(Honest):
    """The file does not contain alpha, and load takes 0 for it: the adapter loads and does nothing."""

    def receive(self, contents: Arrays) -> None:
        super().receive(contents)
        self.scale = 0.0


@mutant(kills="STATE-01 STATE-02")
class ScaleSavedInB(Honest):
    """The B that is written contains the scale. Load does not divide it out."""

    def contents(self) -> Arrays:
        return super().contents() | {"B": self.rounded(self.scaled(self.B))}


@mutant(kills="STATE-01 STATE-02")
class LoadAddsUp(Honest):
    """Load adds the factors of the file to those of the layer."""

    def receive(self, contents: Arrays) -> None:
        self.checked(contents)
        self.set_adapter({name: self.rounded(self.plus(array, contents[name])) for name, array in self.adapter().items()})


@mutant(kills="STATE-03")
class CutToFit(Honest):
    """Factors of another shape are cut or padded to fit."""

    def checked(self, arrays: Arrays) -> Arrays:
        fitted = {name: np.zeros_like(array) for name, array in self.adapter().items()}
        for name, to in fitted.items():
            overlap = tuple(slice(min(sizes)) for sizes in zip(to.shape, arrays[name].shape, strict=True))
            to[overlap] = arrays[name][overlap]
        return fitted


@mutant(kills="STATE-03")
class ResizedToFit(Honest):
    """Factors of another shape are repeated until they fill those of the layer."""

    def checked(self, arrays: Arrays) -> Arrays:
        return {name: np.resize(arrays[name], have.shape) for name, have in self.adapter().items()}


@mutant("115 102", kills="STATE-03")
class MisfitsSkipped(Honest):
    """A factor of another shape is silently ignored."""

    def receive(self, contents: Arrays) -> None:
        have = self.adapter()
        self.set_adapter({name: contents[name] if contents[name].shape == have[name].shape else have[name] for name in have})


@mutant("87", kills="STATE-04 STATE-09")
class SaveMerges(Honest):
    """Save merges the delta into W for the export, and leaves it there."""

    def save(self, directory: str | PathLike[str]) -> None:
        self.W = self.merged_weight()
        super().save(directory)


@mutant("123", kills="STATE-04")
class SecondFileIsAnother(Honest):
    """A forward pass leaves a buffer behind. The buffer is saved, and load refuses it."""

    def contents(self) -> Arrays:
        return super().contents() | ({"running": self.x} if hasattr(self, "x") else {})

    def receive(self, contents: Arrays) -> None:
        if set(contents) != {"A", "B"}:
            raise KeyError(f"unexpected {sorted(contents)}")
        super().receive(contents)


@mutant("122", kills="STATE-04")
class SaveConsumes(Honest):
    """Save takes B out of the layer."""

    def save(self, directory: str | PathLike[str]) -> None:
        super().save(directory)
        self.B = np.zeros_like(self.B)


@mutant("111", kills="STATE-05")
class InferenceSavesMergedW(MergesAtEval):
    """Inference mode merges, and save then writes the merged W as W."""

    def contents(self) -> Arrays:
        return super().contents() | {"W": self.W}

    def receive(self, contents: Arrays) -> None:
        self.W = self.rounded(contents["W"])
        super().receive(contents)


@mutant(kills="STATE-05")
class SavedInInferenceIsEmpty(Honest):
    """Save writes what trains. In inference mode that is nothing."""

    def save(self, directory: str | PathLike[str]) -> None:
        if self.training:
            super().save(directory)
        else:
            (Path(directory) / "adapter.npz").touch()


@mutant("111", kills="STATE-06")
class MergedSavesMergedW(Honest):
    """Save of a merged layer writes the merged W, and not that it is merged. After load the delta is there twice."""

    def contents(self) -> Arrays:
        return super().contents() | {"W": self.W}

    def receive(self, contents: Arrays) -> None:
        self.W = self.rounded(contents["W"])
        super().receive(contents)


@mutant(kills="STATE-06")
class MergedSavesZeros(Honest):
    """Save of a merged layer writes zeros, because W contains the adapter."""

    def contents(self) -> Arrays:
        return {name: array * (0 if self.merged else 1) for name, array in super().contents().items()}


@mutant("110 111", kills="STATE-07")
class StaleMergeAfterLoad(MergesAtEval, UnmergesBySubtraction):
    """Inference mode merges. Load does not update the merged W, and the way back subtracts the loaded delta from it."""

    def receive(self, contents: Arrays) -> None:
        self.set_factors(self.checked(contents))


@mutant(kills="STATE-07")
class InferenceIgnoresLoad(Honest):
    """In inference mode the parameters are locked, and load silently does nothing."""

    def receive(self, contents: Arrays) -> None:
        if self.training:
            super().receive(contents)


@mutant("104", kills="STATE-08")
class HalfLoaded(Honest):
    """Load has overwritten B before it finds that the shape of A is wrong."""

    def receive(self, contents: Arrays) -> None:
        self.set_adapter(self.adapter() | {"B": contents["B"]})
        super().receive(contents)


@mutant(kills="STATE-08")
class ClearedBeforeLoad(Honest):
    """Load draws the factors anew before it looks at the file."""

    def receive(self, contents: Arrays) -> None:
        self.A = self.rounded(self.rng.standard_normal(self.A.shape))
        super().receive(contents)


@mutant(kills="STATE-04")
class SavingLeavesTrainingModeOn(Honest):
    """Save switches to training mode, and does not switch back."""

    def save(self, directory: str | PathLike[str]) -> None:
        super().save(directory)
        self.training = True


@mutant("111", kills="STATE-07")
class MergedZerosStay(MergesAtEval):
    """Inference mode merges. Factors that are loaded in inference mode have no effect until the next merge."""

    def receive(self, contents: Arrays) -> None:
        self.set_factors(self.checked(contents))


@mutant(kills="STATE-09")
class SavesTheFirstState(Honest):
    """Every save writes the state of the first save."""

    def contents(self) -> Arrays:
        if not hasattr(self, "first"):
            self.first = {name: array.copy() for name, array in super().contents().items()}
        return self.first


@mutant("65", kills="STATE-10")
class LoadFreezes(Honest):
    """After a load no step moves anything."""

    frozen = False

    def load(self, directory: str | PathLike[str]) -> None:
        super().load(directory)
        self.frozen = True

    def step(self, lr: float) -> None:
        super().step(0.0 if self.frozen else lr)


@mutant("115 118", kills="STATE-11")
class NothingIsLoadedInPeace(Honest):
    """Load silently ignores a file that does not exist."""

    def load(self, directory: str | PathLike[str]) -> None:
        if any(Path(directory).iterdir()):
            super().load(directory)


@mutant(kills="STATE-12")
class StepsInFloat16(Honest):
    """A step computes in float16, whatever the dtype."""

    def step(self, lr: float) -> None:
        super().step(lr)
        self.A, self.B = (self.rounded(factor.astype(np.float16)) for factor in (self.A, self.B))


@mutant("98", kills="STATE-12 MERGE-13")
class SubtractsInFloat16(UnmergesBySubtraction):
    """Unmerge subtracts in float16, whatever the dtype. W loses something in each cycle."""

    def restored_weight(self) -> np.ndarray:
        return self.rounded(super().restored_weight().astype(np.float16))


@mutant(kills="STATE-01")
class InMemoryOrder(Honest):
    """The numbers of a factor are written in their order in memory. The strides are ignored."""

    def set_factors(self, arrays: Arrays) -> None:
        self.A, self.B = (arrays[name].astype(self.dtype, order="K") for name in ("A", "B"))

    def contents(self) -> Arrays:
        return {name: array.ravel(order="K").reshape(array.shape) for name, array in super().contents().items()}


@mutant(kills="STATE-01")
class FactorsByPosition(Honest):
    """set_adapter takes the first array of the dict for A and the second for B, and ignores their names."""

    def set_adapter(self, arrays: Arrays) -> None:
        super().set_adapter(dict(zip(("A", "B"), arrays.values(), strict=True)))


@mutant("122", kills="STATE-13")
class LoadsWhatWasSavedLast(Honest):
    """Load reads the file that was written last, even if another layer wrote it."""

    def save(self, directory: str | PathLike[str]) -> None:
        super().save(directory)
        type(self).last = Path(directory)  # type: ignore[attr-defined]

    def read(self, directory: str | PathLike[str]) -> Arrays:
        there = any(Path(directory).iterdir()) and any(self.last.glob("*"))  # type: ignore[attr-defined]
        return super().read(self.last if there else directory)  # type: ignore[attr-defined]


@mutant(kills="STATE-13")
class TrainsInTheFile(Honest):
    """A step writes the factors into the file from which they were loaded."""

    source: str | PathLike[str] | None = None

    def load(self, directory: str | PathLike[str]) -> None:
        super().load(directory)
        self.source = directory

    def step(self, lr: float) -> None:
        super().step(lr)
        if self.source is not None and Path(self.source).is_dir():
            self.save(self.source)


@mutant(kills="PARAM-04")
class StepsOnce(Honest):
    """A second step with the same gradients does nothing."""

    stepped = False

    def accumulated(self, dA: np.ndarray, dB: np.ndarray) -> Arrays:
        self.stepped = False
        return super().accumulated(dA, dB)

    def step(self, lr: float) -> None:
        super().step(0.0 if self.stepped else lr)
        self.stepped = True


@mutant(kills="STATE-09")
class EvaluationClears(Honest):
    """A forward pass in inference mode clears the gradients that have added up."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        if not self.training:
            self.zero_grad()
        return super().forward(x)


@mutant(kills="STATE-09")
class LoadUnfreezes(Honest):
    """After a load the bias trains, too."""

    loaded = False

    def receive(self, contents: Arrays) -> None:
        super().receive(contents)
        self.loaded = True

    def trainable(self) -> dict[str, tuple[int, ...]]:
        more = {"bias": self.b.shape} if self.loaded and self.b is not None else {}
        return super().trainable() | more


@mutant("22", kills="STATE-01")
class SavesByWayOfFloat16(Honest):
    """bfloat16 is written as float16, which has more digits and a smaller range."""

    def contents(self) -> Arrays:
        if self.dtype != BFLOAT16:
            return super().contents()
        return {name: array.astype(np.float16).astype(self.dtype) for name, array in super().contents().items()}


@mutant("104", kills="STATE-08")
class LoadsAFirst(Honest):
    """Load has replaced A before it finds that B does not fit."""

    def receive(self, contents: Arrays) -> None:
        if contents["A"].shape == self.A.shape:
            self.A = contents["A"].astype(self.dtype)
        super().receive(contents)


@mutant(kills="STATE-09")
class SaveClears(Honest):
    """Save clears the gradients that have added up."""

    def save(self, directory: str | PathLike[str]) -> None:
        super().save(directory)
        self.zero_grad()


@mutant(kills="STATE-14")
class DeltaOfTheMode(Honest):
    """In inference mode the delta is cached at the first forward pass. The cache is cleared when the mode changes or the
    factors are set, but not by a step."""

    delta: np.ndarray | None = None

    def lora(self, x: np.ndarray) -> np.ndarray:
        if self.training:
            self.delta = None
            return super().lora(x)
        self.delta = self.delta_weight() if self.delta is None else self.delta
        return self.product(x, self.delta.T)

    def train(self, mode: bool = True) -> None:
        super().train(mode)
        self.delta = None

    def set_factors(self, arrays: Arrays) -> None:
        super().set_factors(arrays)
        self.delta = None


@mutant(kills="STATE-06")
class SaveUnmerges(Honest):
    """Save unmerges the layer and leaves it unmerged."""

    def save(self, directory: str | PathLike[str]) -> None:
        if self.merged:
            self.unmerge()
        super().save(directory)


@mutant("115", kills="STATE-15")
class CutsLargerFiles(Honest):
    """Load takes the first rows and columns of a file that holds more of them. It refuses a file that holds fewer."""

    def receive(self, contents: Arrays) -> None:
        have = self.adapter()
        super().receive({name: array[: have[name].shape[0], : have[name].shape[1]] for name, array in contents.items()})


@mutant("102", kills="STATE-15")
class TakesTheFirstRanks(Honest):
    """Load takes the first ranks of a file of a larger rank, and refuses all other shapes."""

    def receive(self, contents: Arrays) -> None:
        rank = self.config.rank
        super().receive({"A": contents["A"][:, :rank], "B": contents["B"][:rank]})


@mutant(kills="STATE-16")
class SavesZerosForNaN(Honest):
    """The file holds zeros in the place of NaN."""

    def contents(self) -> Arrays:
        return {name: np.where(np.isnan(self.up(array)), np.zeros_like(array), array)
                for name, array in super().contents().items()}


@mutant(kills="STATE-16")
class SetsLargeForInfinite(Honest):
    """The largest number of the format takes the place of infinity in factors that are set or loaded."""

    def set_factors(self, arrays: Arrays) -> None:
        largest = float(ml_dtypes.finfo(self.dtype).max)
        super().set_factors({name: np.clip(self.up(array), -largest, largest) for name, array in arrays.items()})


@mutant(kills="STATE-17")
class FlushesSubnormals(Honest):
    """Load puts zero in the place of subnormal numbers."""

    def receive(self, contents: Arrays) -> None:
        tiny = float(ml_dtypes.finfo(self.dtype).tiny)
        super().receive({name: np.where(np.abs(array.astype(np.float64)) < tiny, np.zeros_like(array), array)
                         for name, array in contents.items()})


@mutant("22", kills="STATE-17")
class SavesInNineDigits(Honest):
    """The factors are written as decimals with 9 digits after the point, in which small numbers are zero."""

    def contents(self) -> Arrays:
        return {name: np.round(array.astype(np.float64), 9).astype(array.dtype) for name, array in super().contents().items()}
