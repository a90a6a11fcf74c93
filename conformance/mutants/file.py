"""Faults of readers and writers of adapter files."""

import json
import math
import pickle
import re
import zipfile
from os import PathLike
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from conformance.mutants import mutant
from conformance.mutants.honest_reader import Adapter, Entry, HonestReader, Refused, wide
from conformance.subject import Arrays

Said = dict[str, Any]

# The scale


@mutant("01", kills="FILE-01 FILE-35")
class ScaleIsAlphaOfTheFile(HonestReader):
    """The scale is lora_alpha, and is not divided by the rank."""

    def with_scales(self, made: Adapter, scale) -> Adapter:
        return super().with_scales(made, lambda module, rank: scale(module, rank) * rank)

    def scale(self, alpha: float, rank: int, said: Said) -> float:
        return alpha


@mutant("03 13", kills="FILE-01 FILE-34")
class ScaleOfTheFileIsLeftOut(HonestReader):
    """The scale of the file is not read, and 1 is used."""

    def scale(self, alpha: float, rank: int, said: Said) -> float:
        return 1.0

    def mlx(self, tensors: Arrays, said: Said) -> Adapter:
        return super().mlx(tensors, said | {"lora_parameters": {"scale": 1.0}})


@mutant("22", kills="FILE-02")
class RsloraOfTheFileIsLeftOut(HonestReader):
    """use_rslora is not read, as in the converter of llama.cpp."""

    def scale(self, alpha: float, rank: int, said: Said) -> float:
        return alpha / rank


@mutant(kills="FILE-02 FILE-03")
class RsloraByTheRankOfTheSettings(HonestReader):
    """With use_rslora the root of r is taken, and not that of the rank of the module."""

    def scale(self, alpha: float, rank: int, said: Said) -> float:
        return alpha / (math.sqrt(said.get("r", 8)) if said.get("use_rslora") and said.get("rank_pattern") else rank)


@mutant(kills="FILE-03")
class AlphaPatternIsLeftOut(HonestReader):
    """alpha_pattern is not read: lora_alpha counts for every module."""

    def numbers(self, module: str, said: Said) -> tuple[int, float]:
        return super().numbers(module, said)[0], said.get("lora_alpha", 8)


@mutant(kills="FILE-03 FILE-06")
class ScaleByTheGlobalRank(HonestReader):
    """Every module is scaled by lora_alpha / r of the whole file, whatever its own rank is."""

    def complete(self, module: str, entry: Entry, said: Said) -> None:
        super().complete(module, entry, said)
        entry.scale = super().scale(self.numbers(module, said)[1], said.get("r", 8), said)


@mutant("17", kills="FILE-03")
class PatternsAreSearched(HonestReader):
    """A key of a pattern matches anywhere in the name of a module."""

    def numbers(self, module: str, said: Said) -> tuple[int, float]:
        found = [said.get("r", 8), said.get("lora_alpha", 8)]
        for place, name in enumerate(("rank_pattern", "alpha_pattern")):
            found[place] = next((n for key, n in (said.get(name) or {}).items() if re.search(key, module)), found[place])
        return found[0], found[1]


@mutant(kills="FILE-03")
class PatternsAreWholeNames(HonestReader):
    """A key of a pattern is compared with the last segment of the name, and is no expression."""

    def numbers(self, module: str, said: Said) -> tuple[int, float]:
        end = module.rpartition(".")[2]
        rank = super().numbers(module, said)[0]
        return rank, (said.get("alpha_pattern") or {}).get(end, said.get("lora_alpha", 8))


@mutant(kills="FILE-03")
class LastPatternCounts(HonestReader):
    """Of several keys that match, the last one counts."""

    def numbers(self, module: str, said: Said) -> tuple[int, float]:
        turned = {name: dict(reversed((said.get(name) or {}).items())) for name in ("rank_pattern", "alpha_pattern")}
        return super().numbers(module, said | turned)


@mutant("09", kills="FILE-03 FILE-06 FILE-31")
class AlphaOfTheFirstModule(HonestReader):
    """The scale of the first module in the file is used for all."""

    def peft(self, tensors: Arrays, said: Said) -> Adapter:
        return self.alike(super().peft(tensors, said))

    def with_scales(self, made: Adapter, scale) -> Adapter:
        return self.alike(super().with_scales(made, scale))

    def alike(self, made: Adapter) -> Adapter:
        first = next(iter(made.entries.values()), Entry())
        for entry in made.entries.values():
            entry.scale = first.scale
        return made


@mutant("14", kills="FILE-04")
class AlphaIsZeroByDefault(HonestReader):
    """Without lora_alpha in the settings, alpha is 0, and the adapter does nothing."""

    def numbers(self, module: str, said: Said) -> tuple[int, float]:
        return super().numbers(module, {"lora_alpha": 0} | said)


@mutant(kills="FILE-04")
class AlphaIsTheRankByDefault(HonestReader):
    """Without lora_alpha in the settings, alpha is r, as in other formats."""

    def numbers(self, module: str, said: Said) -> tuple[int, float]:
        return super().numbers(module, {"lora_alpha": said.get("r", 8)} | said)


@mutant(kills="FILE-18")
class SettingsAreConverted(HonestReader):
    """Text in the settings is turned into numbers, and any text is true."""

    def check(self, said: Said) -> None:
        for name in ("r", "lora_alpha"):
            said[name] = float(said.get(name, 8)) if name != "r" else int(said.get(name, 8))
        said["use_rslora"] = bool(said.get("use_rslora"))
        super().check(said)


@mutant(kills="FILE-18")
class WrongSettingsAreDefaults(HonestReader):
    """A setting of the wrong kind is passed over, and its default is used."""

    def check(self, said: Said) -> None:
        if not isinstance(said.get("lora_alpha", 8), int | float):
            said["lora_alpha"] = 8
        if said.get("bias") not in ("none", "all", "lora_only"):
            said["bias"] = "none"
        super().check(said)


# Names and modules


@mutant("115 117", kills="FILE-01 FILE-31")
class NothingIsPutIn(HonestReader):
    """The file is read and tested, and its numbers are put nowhere: the base model is served."""

    def load(self, path: str | PathLike[str]) -> None:
        self.read(Path(path))


@mutant("115", kills="FILE-14")
class UnknownKeysAreDropped(HonestReader):
    """Keys that belong to no module are left out without a word, as with strict=False."""

    def peft(self, tensors: Arrays, said: Said) -> Adapter:
        known = {}
        for key, array in tensors.items():
            try:
                module, role = self.role(key)
            except Refused:
                continue
            if module in self.kinds and role or module in self.weights:
                known[key] = array
        return super().peft(known, said)

    def nothing_is_missing(self, made: Adapter, said: Said) -> None:
        return None


@mutant("118", kills="FILE-32")
class FilteredByPrefix(HonestReader):
    """Of a kohya file everything that does not belong to a known module is filtered out, and what is left may be nothing."""

    def kohya(self, tensors: Arrays) -> Adapter:
        flat = {self.flat(module) for module in self.kinds}
        return super().kohya({key: array for key, array in tensors.items() if key.split(".")[0] in flat and "hada" not in key})


@mutant(kills="FILE-14")
class FactorsOfOthersAreApplied(HonestReader):
    """Factors for a module that target_modules does not name are applied, too."""

    def complete(self, module: str, entry: Entry, said: Said) -> None:
        super().complete(module, entry, said | {"target_modules": [module]})


@mutant(kills="FILE-05")
class TargetsAreWholeNames(HonestReader):
    """A name in target_modules is compared with the last segment of a module's name alone. If none fits, nothing is loaded."""

    def peft(self, tensors: Arrays, said: Said) -> Adapter:
        made = super().peft(tensors, said)
        named = said["target_modules"]
        made.entries = {module: entry for module, entry in made.entries.items()
                        if isinstance(named, list) and module.rpartition(".")[2] in named}
        return made


@mutant("114", kills="FILE-06")
class FactorsByTheirPlace(HonestReader):
    """The factors of one shape are paired with the modules by their place in the file."""

    def peft(self, tensors: Arrays, said: Said) -> Adapter:
        by_shape: dict[tuple[int, ...], list[np.ndarray]] = {}
        for array in tensors.values():
            by_shape.setdefault(array.shape, []).append(array)
        return super().peft({key: by_shape[tensors[key].shape].pop(0) for key in sorted(tensors)}, said)


@mutant(kills="FILE-09")
class Conv1dIsTurnedBySetting(HonestReader):
    """Whether ΔW is turned is read off fan_in_fan_out, and not off the layer."""

    def peft(self, tensors: Arrays, said: Said) -> Adapter:
        self.fan = bool(said.get("fan_in_fan_out"))
        return super().peft(tensors, said)

    def turned(self, module: str) -> bool:
        rows, columns = self.weights[f"{module}.weight"].shape
        return super().turned(module) if self.kinds[module] != "conv1d" or rows != columns else self.fan


@mutant(kills="FILE-01 FILE-07")
class SquareFactorsAreTurned(HonestReader):
    """A factor that is square is taken for one in the other layout."""

    def fit(self, module: str, entry: Entry, rank: int) -> None:
        super().fit(module, entry, rank)
        entry.roles = {role: a.T if a.ndim == 2 and a.shape[0] == a.shape[1] else a for role, a in entry.roles.items()}


@mutant(kills="FILE-15")
class FactorsAreCut(HonestReader):
    """Factors that are too long for the weight are cut."""

    def fit(self, module: str, entry: Entry, rank: int) -> None:
        rows, columns = self.sizes(module)
        if entry.roles["A"].ndim == 2:
            entry.roles["A"] = entry.roles["A"][:rank, :columns]
            entry.roles["B"] = entry.roles["B"][:rows, :rank]
        super().fit(module, entry, rank)


@mutant(kills="FILE-15")
class OneRowIsBroadcast(HonestReader):
    """A B of one row is used for every output."""

    def fit(self, module: str, entry: Entry, rank: int) -> None:
        rows, _ = self.sizes(module)
        if entry.roles["B"].shape[0] == 1:
            entry.roles["B"] = np.repeat(entry.roles["B"], rows, 0)
        super().fit(module, entry, rank)


@mutant(kills="FILE-15")
class RankIsThatOfTheFactors(HonestReader):
    """The rank of the settings is not compared with that of the factors."""

    def numbers(self, module: str, said: Said) -> tuple[int, float]:
        rank, alpha = super().numbers(module, said)
        return self.true.get(module, rank), alpha

    def peft(self, tensors: Arrays, said: Said) -> Adapter:
        roles = {key: self.role(key) for key in tensors}
        self.true = {module: tensors[key].shape[0] for key, (module, role) in roles.items() if role == "A"}
        return super().peft(tensors, said)


# What is more than A and B


@mutant("120", kills="FILE-08")
class EmbeddingsAreLeftOut(HonestReader):
    """Factors of embeddings are left out."""

    def delta(self) -> Arrays:
        return {name: change for name, change in super().delta().items() if self.kinds.get(name) != "embedding"}


@mutant(kills="FILE-08")
class EmbeddingIsTurned(HonestReader):
    """ΔW of a square embedding is that of a linear layer."""

    def change(self, module: str, entry: Entry) -> np.ndarray:
        change = super().change(module, entry)
        return change.T if self.kinds[module] == "embedding" and change.shape[0] == change.shape[1] else change


@mutant("112", kills="FILE-10 FILE-26")
class BiasesOfTheFileAreLeftOut(HonestReader):
    """The biases of the file are read, and the model keeps its own."""

    def put(self, made: Adapter, said: Said, name: str, role: str, array: np.ndarray) -> None:
        super().put(made, said, name, role, array)
        if name.endswith(".bias"):
            del made.placed[name]


@mutant(kills="FILE-10")
class BiasesAreAdded(HonestReader):
    """The biases of the file are added to those of the model."""

    def delta(self) -> Arrays:
        found = super().delta()
        return found | {name: wide(array) for name, array in self.now.placed.items() if name.endswith(".bias")}


@mutant("120", kills="FILE-11 FILE-26")
class WholeModulesAreLeftOut(HonestReader):
    """What modules_to_save names is read, and the model keeps its own."""

    def put(self, made: Adapter, said: Said, name: str, role: str, array: np.ndarray) -> None:
        super().put(made, said, name, role, array)
        made.placed = {name: array for name, array in made.placed.items() if not name.endswith(".weight")}


@mutant(kills="FILE-12")
class BiasBesideBIsNotScaled(HonestReader):
    """The bias beside B is added without the scale."""

    def delta(self) -> Arrays:
        return super().delta() | {f"{module}.bias": wide(entry.roles["bias beside B"])
                                  for module, entry in self.now.entries.items() if "bias beside B" in entry.roles}


@mutant(kills="FILE-13 FILE-16")
class MagnitudesAreLeftOut(HonestReader):
    """The magnitudes of DoRA are dropped, and the rest is taken for LoRA."""

    def peft(self, tensors: Arrays, said: Said) -> Adapter:
        kept = {key: array for key, array in tensors.items() if "magnitude" not in key}
        return super().peft(kept, said | {"use_dora": False})


@mutant(kills="FILE-13")
class LengthsWithoutTheChange(HonestReader):
    """DoRA divides by the lengths of the rows of W, and not by those of W + ΔW."""

    def change(self, module: str, entry: Entry) -> np.ndarray:
        if "magnitude" not in entry.roles:
            return super().change(module, entry)
        weight = wide(self.weights[f"{module}.weight"])
        adapted = weight + entry.scale * self.product(wide(entry.roles["A"]), wide(entry.roles["B"]))
        return wide(entry.roles["magnitude"])[:, None] * adapted / np.linalg.norm(weight, axis=1, keepdims=True) - weight


# Settings


@mutant(kills="FILE-16")
class EveryMethodIsLora(HonestReader):
    """peft_type is not read."""

    def check(self, said: Said) -> None:
        super().check(said | {"peft_type": "LORA"})


@mutant(kills="FILE-16 FILE-17")
class UnknownSettingsArePassedOver(HonestReader):
    """A setting that is not known is passed over, also one that changes the function."""

    def check(self, said: Said) -> None:
        known = {"peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias"}
        super().check({name: value for name, value in said.items() if name in known})


# Files


@mutant(kills="FILE-19")
class CutOffNumbersAreZero(HonestReader):
    """A file that ends too early is filled with zeros."""

    def tensors(self, path: Path) -> tuple[Arrays, dict[str, str]]:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + length]) if length < len(content) else {}
        wanted = max((e["data_offsets"][1] for name, e in entries.items() if name != "__metadata__"), default=0)
        whole = content + bytes(max(0, 8 + length + wanted - len(content)))
        filled = path.with_name("filled")
        filled.write_bytes(whole)
        try:
            return super().tensors(filled)
        finally:
            filled.unlink()


@mutant(kills="FILE-19")
class NoFileIsNoAdapter(HonestReader):
    """A folder without tensors, or without settings, is taken for an adapter of nothing. The base model is served."""

    def read(self, path: Path) -> Adapter:
        if path.is_dir() and not (any(path.glob("*.safetensors")) and any(path.glob("*.json"))):
            return Adapter()
        return super().read(path)


@mutant(kills="FILE-19")
class PlacesAreNotTested(HonestReader):
    """The places of the tensors are believed: they may overlap, and bytes may belong to none."""

    def tensors(self, path: Path) -> tuple[Arrays, dict[str, str]]:
        content = path.read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata, found = header.pop("__metadata__", {}), {}
        for name, entry in header.items():
            dtype = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}[entry["dtype"]]
            count = int(np.prod(entry["shape"]))
            start = 8 + length + entry["data_offsets"][0]
            found[name] = np.frombuffer(content, dtype, count, start).reshape(entry["shape"])
        return found, metadata


@mutant(kills="FILE-07")
class Bfloat16IsReadAsFloat16(HonestReader):
    """The bits of bfloat16 are taken for those of float16."""

    def tensors(self, path: Path) -> tuple[Arrays, dict[str, str]]:
        found, metadata = super().tensors(path)
        narrow = {name for name, array in found.items() if array.dtype == ml_dtypes.bfloat16}
        return found | {name: found[name].view(np.float16) for name in narrow}, metadata


@mutant(kills="FILE-20")
class LastOfTwoSettingsCounts(HonestReader):
    """Of a setting that occurs twice the last value is used."""

    def once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(pairs)


@mutant(kills="FILE-21")
class NaNIsLoaded(HonestReader):
    """Numbers are not tested for being finite."""

    def tensors(self, path: Path) -> tuple[Arrays, dict[str, str]]:
        with np.errstate(all="ignore"):
            content = path.read_bytes()
        try:
            return super().tensors(path)
        except Refused as error:
            if "finite" not in str(error):
                raise
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        metadata, body = header.pop("__metadata__", {}), content[8 + length :]
        return {name: np.frombuffer(body[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
                for name, entry in header.items()}, metadata


@mutant(kills="FILE-22")
class PicklesAreLoaded(HonestReader):
    """If there are no safetensors, adapter_model.bin is loaded as a pickle."""

    def read(self, path: Path) -> Adapter:
        old = path / "adapter_model.bin"
        if path.is_dir() and old.exists():
            found = pickle.loads(old.read_bytes())
            tensors = {key: array for key, array in found.items() if isinstance(array, np.ndarray)}
            return self.peft(tensors, self.settings((path / "adapter_config.json").read_text()))
        return super().read(path)


# State


@mutant("104", kills="FILE-23")
class LoadedTensorByTensor(HonestReader):
    """Each tensor is put into the model as it is read. A file that is refused leaves what was read before."""

    def complete(self, module: str, entry: Entry, said: Said) -> None:
        super().complete(module, entry, said)
        self.now = Adapter({**self.now.entries, module: entry}, self.now.placed)


@mutant(kills="FILE-23")
class UnloadedBeforeItIsRead(HonestReader):
    """The old adapter is removed before the new file is read."""

    def load(self, path: str | PathLike[str]) -> None:
        self.now = Adapter()
        super().load(path)


@mutant("31", kills="FILE-24")
class WeightsAreDrawnAgain(HonestReader):
    """The layers that get an adapter are built again, and their biases are zero."""

    def load(self, path: str | PathLike[str]) -> None:
        super().load(path)
        self.weights = {name: array * 0 if name.endswith(".bias") and name[:-5] in self.now.entries else array
                        for name, array in self.weights.items()}


@mutant(kills="FILE-24")
class MergedIntoTheBase(HonestReader):
    """The change is added to the weights of the base, and nothing can remove it again."""

    def load(self, path: str | PathLike[str]) -> None:
        super().load(path)
        self.shown = super().delta()
        self.merge()

    def delta(self) -> Arrays:
        return getattr(self, "shown", {}) if not self.now.entries else super().delta()


@mutant(kills="FILE-25")
class OldModulesStay(HonestReader):
    """A module that the second file does not mention keeps the factors of the first one."""

    def load(self, path: str | PathLike[str]) -> None:
        old = self.now
        super().load(path)
        self.now = Adapter(old.entries | self.now.entries, old.placed | self.now.placed)


@mutant("17", kills="FILE-25")
class OldScalesStay(HonestReader):
    """A second load copies the factors, and keeps the scale of the first one."""

    def load(self, path: str | PathLike[str]) -> None:
        old = self.now
        super().load(path)
        for module, entry in self.now.entries.items():
            entry.scale = old.entries[module].scale if module in old.entries else entry.scale


@mutant(kills="FILE-25")
class SecondLoadIsPassedOver(HonestReader):
    """An adapter that is loaded already is not read again, whatever the file says now."""

    def load(self, path: str | PathLike[str]) -> None:
        if not self.now.entries:
            super().load(path)


# Writing


@mutant("24", kills="FILE-26")
class AlphaIsWrittenAsTheRank(HonestReader):
    """alpha is written as the rank, and the scale is lost."""

    def said(self, adapter: Adapter) -> Said:
        said = super().said(adapter)
        return said | {"alpha_pattern": dict(said["rank_pattern"])}


@mutant("12 21", kills="FILE-26")
class RankIsWrittenTwiceAsLarge(HonestReader):
    """The factors are padded with zeros to twice their rank, and alpha stays."""

    def written(self, adapter: Adapter) -> Arrays:
        found = {}
        for key, array in super().written(adapter).items():
            axis = 0 if "_A" in key else 1
            is_factor = re.search(r"lora_(embedding_)?[AB](\.weight)?$", key)
            found[key] = np.concatenate([array, 0 * array], axis) if is_factor else array
        return found

    def said(self, adapter: Adapter) -> Said:
        said = super().said(adapter)
        return said | {"rank_pattern": {key: 2 * rank for key, rank in said["rank_pattern"].items()}}


@mutant("113", kills="FILE-26")
class MagnitudesAreNotWritten(HonestReader):
    """The magnitudes of DoRA are not written."""

    def written(self, adapter: Adapter) -> Arrays:
        return {key: array for key, array in super().written(adapter).items() if "magnitude" not in key}


@mutant(kills="FILE-26 FILE-27")
class FactorsOfBAloneAreWritten(HonestReader):
    """A is not written. It is taken for what it was when training began."""

    def written(self, adapter: Adapter) -> Arrays:
        return {key: array for key, array in super().written(adapter).items() if "_A" not in key}


@mutant("116", kills="FILE-26")
class NameOfTheAdapterIsWritten(HonestReader):
    """The name of the adapter is written into every key, and removed when the file is read."""

    def written(self, adapter: Adapter) -> Arrays:
        return {re.sub(r"(lora_[AB])\.weight$", r"\1.default.weight", key): a for key, a in super().written(adapter).items()}

    def role(self, key: str) -> tuple[str, str]:
        return super().role(key.replace(".default", ""))


@mutant(kills="FILE-26")
class WrittenTheOtherWayRound(HonestReader):
    """Factors are written the other way round, and turned back when they are read: the file means nothing to others."""

    def written(self, adapter: Adapter) -> Arrays:
        return {key: array.T if array.ndim == 2 else array for key, array in super().written(adapter).items()}

    def said(self, adapter: Adapter) -> Said:
        return super().said(adapter) | {"peft_version": "turned"}

    def peft(self, tensors: Arrays, said: Said) -> Adapter:
        if said.get("peft_version") == "turned":
            tensors = {key: array.T if array.ndim == 2 else array for key, array in tensors.items()}
        return super().peft(tensors, said)


@mutant(kills="FILE-27")
class FactorsAreWrittenInFloat16(HonestReader):
    """Factors are written in float16."""

    def written(self, adapter: Adapter) -> Arrays:
        return {key: array.astype(np.float16) for key, array in super().written(adapter).items()}


@mutant("13", kills="FILE-26 FILE-27")
class ScaleIsNotWritten(HonestReader):
    """No alpha is written. Whoever reads the file uses the default."""

    def said(self, adapter: Adapter) -> Said:
        return {name: value for name, value in super().said(adapter).items() if not name.endswith(("alpha", "alpha_pattern"))}


@mutant("87", kills="FILE-28")
class SavesMergedWeights(HonestReader):
    """Saving merges the model, and leaves it merged."""

    def save(self, directory: str | PathLike[str]) -> None:
        super().save(directory)
        self.merge()


@mutant("122", kills="FILE-28")
class SavingEmptiesTheAdapter(HonestReader):
    """Saving takes the factors out of the adapter one by one. A second file has none."""

    def written(self, adapter: Adapter) -> Arrays:
        found = super().written(adapter)
        adapter.entries.clear()
        return found

    def save(self, directory: str | PathLike[str]) -> None:
        said = self.said(self.now)
        self.said = lambda adapter: said
        super().save(directory)
        del self.said


@mutant(kills="FILE-29")
class WritesNaN(HonestReader):
    """A loss of NaN is written into the settings, which then are no JSON."""

    def said(self, adapter: Adapter) -> Said:
        return super().said(adapter) | {"revision": math.nan}

    def no_constant(self, word: str):
        return None


@mutant(kills="FILE-29")
class WritesAPickle(HonestReader):
    """Beside the adapter, the settings are written as a pickle."""

    def save(self, directory: str | PathLike[str]) -> None:
        super().save(directory)
        (Path(directory) / "training.bin").write_bytes(pickle.dumps(self.said(self.now), 2))


@mutant(kills="FILE-29")
class WritesATorchFile(HonestReader):
    """Beside the adapter, the settings are written as torch.save writes them: a zip file with a pickle in it."""

    def save(self, directory: str | PathLike[str]) -> None:
        super().save(directory)
        with zipfile.ZipFile(Path(directory) / "training", "w") as file:
            file.writestr("training/data.pkl", pickle.dumps(self.said(self.now), 2))


@mutant(kills="FILE-30")
class MergedWithoutTheScale(HonestReader):
    """Merging leaves the scale out."""

    def merge(self) -> None:
        for entry in self.now.entries.values():
            entry.scale = 1.0
        super().merge()


@mutant(kills="FILE-30")
class MergedWithoutTheBiases(HonestReader):
    """Merging leaves the biases and whole modules of the file out."""

    def merge(self) -> None:
        self.now.placed = {}
        super().merge()


# Other formats


@mutant("11", kills="FILE-31 FILE-33")
class AlphasAreLeftOut(HonestReader):
    """Tensors of alpha are dropped, and the scale is 1."""

    def of_alpha(self, alpha: float | None, rank: int) -> float:
        return 1.0


@mutant(kills="FILE-31 FILE-33")
class AlphaIsTheScaleOfTheFile(HonestReader):
    """The tensor of alpha is taken for the scale, and not divided by the rank."""

    def of_alpha(self, alpha: float | None, rank: int) -> float:
        return alpha or 1.0


@mutant(kills="FILE-31 FILE-33")
class AlphaIsOneByDefault(HonestReader):
    """Where there is no alpha it is 1, and so the scale is 1 / rank."""

    def of_alpha(self, alpha: float | None, rank: int) -> float:
        return (alpha or 1.0) / rank


@mutant(kills="FILE-33")
class MetadataIsLeftOut(HonestReader):
    """The metadata of diffusers is not read."""

    def diffusers(self, tensors: Arrays, metadata: dict[str, str]) -> Adapter:
        return super().diffusers(tensors, {})


@mutant(kills="FILE-34")
class ScaleOfMlxIsDivided(HonestReader):
    """The scale of mlx-lm is taken for alpha, and divided by the rank."""

    def mlx(self, tensors: Arrays, said: Said) -> Adapter:
        made = super().mlx(tensors, said)
        for entry in made.entries.values():
            entry.scale /= entry.rank
        return made


@mutant(kills="FILE-34")
class FactorsOfMlxAreNotTurned(HonestReader):
    """A square factor of mlx-lm is not turned."""

    def mlx(self, tensors: Arrays, said: Said) -> Adapter:
        return super().mlx({key: a.T if a.shape[0] == a.shape[1] else a for key, a in tensors.items()}, said)


@mutant(kills="FILE-35")
class SettingsBesideTheFileAreLeftOut(HonestReader):
    """The configuration beside torchtune's file is not read, and the scale is 1."""

    def torchtune(self, tensors: Arrays, said: Said) -> Adapter:
        return super().torchtune(tensors, {"lora_alpha": 1, "r": 1})
