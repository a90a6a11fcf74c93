"""What other programs are known to do with a file: `conformance file PATH --for READER`.

`conformance exchange` shows it again, with the versions that are named, and a test compares what is said here with the cells of
results/exchange.json. That both refuse DoRA was seen by hand. A setting that was not tried is named as such.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from conformance.files.clauses import ERROR
from conformance.files.meaning import Meaning, Part
from conformance.files.peft_settings import DEFAULT


class Reader(NamedTuple):
    version: str  # that was measured
    formats: tuple[str, ...]  # that it reads
    tried: tuple[str, ...]  # settings
    says: Callable[[Meaning], Iterator[str]]  # a sentence for each thing that it does with this file


def _vllm(meaning: Meaning) -> Iterator[str]:
    if meaning.settings.get("use_dora"):
        yield "it refuses the file: it has no DoRA"
    if _more(meaning):
        yield "it refuses the file: it takes no biases and no whole modules"
    yield ("where it finds no module of a name, it says nothing, and serves the base model or half of an adapter: compare the "
           "names with --base")


def _more(meaning: Meaning) -> bool:
    """Whether the file has something else than factors."""
    return bool(meaning.others) or any(part.bias for part in meaning.parts)


def _llama_cpp(meaning: Meaning) -> Iterator[str]:
    if meaning.settings.get("use_dora"):
        yield "it refuses the file: its converter has no DoRA"
        return
    if _more(meaning):
        yield "it refuses the file: its converter takes no biases and no whole modules"
        return
    alpha = meaning.settings.get("lora_alpha", DEFAULT)
    wrong: dict[float, list[Part]] = {}
    for part in meaning.parts:
        if part.scale.value and (factor := alpha / part.rank / part.scale.value) != 1:
            wrong.setdefault(factor, []).append(part)
    for factor, parts in wrong.items():
        yield ("its converter reads no scale but lora_alpha, and leaves out use_rslora and alpha_pattern: "
               f"{len(parts)} modules, such as {parts[0].module}, get {factor:.4g} times their strength")


TRIED = ("alpha_pattern", "bias", "exclude_modules", "layers_to_transform", "lora_alpha", "lora_bias", "modules_to_save",
         "peft_type", "r", "rank_pattern", "target_modules", "use_dora", "use_rslora")
READERS = {
    "vllm": Reader("vLLM 0.32.0 on the CPU", ("PEFT",), TRIED, _vllm),
    "llama.cpp": Reader("the converter and server of llama.cpp's build 11549", ("PEFT",), TRIED, _llama_cpp),
    "mlx-lm": Reader("mlx-lm 0.32.2", ("mlx-lm",), (), lambda meaning: iter(())),
}


def says(meaning: Meaning, name: str) -> list[str]:
    """What the reader does with the file, in sentences."""
    reader = READERS[name]
    if meaning.format not in reader.formats:
        return [f"it reads {' and '.join(reader.formats)}, and this is {meaning.format}"]
    if any(issue.severity == ERROR and issue.kind.clause not in ("R-6", "R-7") for issue in meaning.issues):
        return ["what it does with a file that is wrong was not tried"]
    untried = [name for name in meaning.settings if name not in reader.tried]
    return [*reader.says(meaning), *([f"not tried with {', '.join(untried)}"] if untried else [])]
