"""Every valid file of the corpus in every format: the same ΔW, or a reason why the format cannot say it."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from conformance.files import container, corpus, reading, writing
from conformance.files.meaning import Meaning, Part, Scale
from conformance.files.readers.file import deltas
from conformance.files.writing import FORMATS, CannotSay

VALID = [case for case in corpus.cases() if case.valid]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("corpus")
    corpus.write(made)
    return made


def meant(folder: Path, case: corpus.Case) -> Meaning:
    place = folder / case.folder
    return reading.read(str(place if case.format in ("peft", "mlx-lm") else place / next(iter(case.files))))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("case", VALID, ids=lambda case: case.folder)
def test_the_other_format_means_the_same_or_cannot_say_it(folder, tmp_path, case, format):
    try:
        made = writing.put(meant(folder, case), format, tmp_path / "out")
    except CannotSay as error:
        assert format in str(error) or "no alpha" in str(error)
        assert not (tmp_path / "out").exists()
        return
    again = reading.read(str(tmp_path / "out"))
    assert again.format == format
    base = {name: array for file in (folder / corpus.BASE, folder / case.folder / corpus.BASE) if file.exists()
            for name, array in arrays(file).items()}
    weights = {made.names.get(name.removesuffix(".weight"), "") + ".weight": array for name, array in base.items()}
    got = deltas(again, base | weights)
    want: dict[str, np.ndarray] = {made.names.get(module, module): change for module, change in case.truth.items()}
    assert got.keys() == want.keys()
    for module, change in want.items():
        turned = format not in ("PEFT", "diffusers") and case.name == "fan_in_fan_out"  # the others cannot say it
        assert np.array_equal(got[module].T if turned else got[module], change), module


def arrays(path: Path) -> dict[str, np.ndarray]:
    held, _ = container.read(str(path))
    return {name: held.array(name) for name in held.tensors}


def test_most_can_be_said_in_most_formats(folder, tmp_path):
    said: Counter[str] = Counter()
    for number, case in enumerate(VALID):
        for format in FORMATS:
            try:
                writing.put(meant(folder, case), format, tmp_path / f"{number}{format}")
                said[format] += 1
            except CannotSay:
                continue
    assert said["PEFT"] == len(VALID)
    assert min(said["diffusers"], said["kohya"]) > 2 * len(VALID) // 3
    assert min(said["torchtune"], said["mlx-lm"]) > len(VALID) // 2


def test_what_cannot_be_said_is_named(folder, tmp_path):
    def refused(name: str, format: str) -> str:
        with pytest.raises(CannotSay) as error:
            writing.put(meant(folder, next(case for case in VALID if case.folder == name)), format, tmp_path / "out")
        return str(error.value)

    assert "ranks that differ, 2, 4" in refused("peft/P-4-pass-rank_pattern", "mlx-lm")
    assert "DoRA" in refused("peft/P-6-pass-dora", "kohya")
    assert "an embedding (model.embed_tokens)" in refused("peft/P-10-pass-embedding", "diffusers")
    assert "a whole module of modules_to_save" in refused("peft/P-9-pass-a_whole_module", "torchtune")
    assert "names that are not llama.cpp's" in refused("peft/P-3-pass-plain", "GGUF")


def test_a_scale_of_zero_is_not_taken_for_no_alpha(folder, tmp_path):
    meaning = meant(folder, VALID[0])
    zero = Meaning("PEFT", meaning.path, [Part(p.module, p.A, p.B, Scale(0.0, "")) for p in meaning.parts])
    with pytest.raises(CannotSay, match="a scale of 0"):
        writing.put(zero, "kohya", tmp_path / "out")
    assert writing.put(zero, "PEFT", tmp_path / "other").files


def test_names_that_become_the_same_are_refused(folder, tmp_path):
    meaning = meant(folder, VALID[0])
    part = meaning.parts[0]
    both = [Part(name, part.A, part.B, Scale(1.0, "")) for name in ("a.b", "a_b.c", "a.b_c")]
    with pytest.raises(CannotSay, match="the same name"):
        writing.put(Meaning("PEFT", meaning.path, both), "kohya", tmp_path / "out")


def test_a_wrong_file_is_not_written_again(folder, tmp_path):
    wrong = next(case for case in corpus.cases() if case.folder == "peft/R-3-fail-a_without_b")
    with pytest.raises(CannotSay, match="wrong"):
        writing.put(meant(folder, wrong), "PEFT", tmp_path / "out")
