"""Every file of the corpus means what it was made to mean, and each invalid one is refused with its code."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conformance.files import container, corpus, gguf, kohya, meaning, mlx, peft_settings, reading
from conformance.files.corpus.made import Case
from conformance.files.meaning import Meaning, Scale
from conformance.files.readers.file import deltas

CASES = list(corpus.cases())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("corpus")
    corpus.write(made)
    return made


def read(folder: Path, case: Case) -> Meaning:
    place = folder / case.folder
    return reading.read(str(place if case.format in ("peft", "mlx-lm") else place / next(iter(case.files))))


def problems(folder: Path, case: Case) -> list[str]:
    """What is wrong with the meaning that was read, in words."""
    found = read(folder, case)
    codes = {issue.code for issue in found.issues}
    if not case.valid:
        return [f"{codes} is not {case.codes}"] if found.right or not set(case.codes) <= codes else []
    wrong = [f"{codes} is not {case.codes}"] if codes != set(case.codes) else []
    own = folder / case.folder / corpus.BASE
    try:
        got = deltas(found, arrays(folder / corpus.BASE) | (arrays(own) if own.exists() else {}))
    except ValueError as error:
        return [*wrong, str(error)]
    if got.keys() != case.truth.keys():
        return [*wrong, f"modules {sorted(got)}"]
    wrong += [f"ΔW of {name}" for name, want in case.truth.items() if not np.array_equal(got[name], want)]
    norms = {part.module: part.norm() for part in found.parts if not part.magnitude}
    return wrong + [f"‖ΔW‖ of {name}" for name, norm in norms.items()
                    if norm is None or np.float32(norm) != np.float32(np.linalg.norm(case.truth[name]))]


def arrays(path: Path) -> dict[str, np.ndarray]:
    held, _ = container.read(str(path))
    return {name: held.array(name) for name in held.tensors}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.folder)
def test_a_file_means_what_it_was_made_to_mean(folder, case):
    assert not problems(folder, case)


FAULTS = {  # of a reader, by what is set to what
    "rsLoRA is left out": (peft_settings, "checked", lambda *said: {**OWN_CHECKED(*said), "use_rslora": False}),
    "patterns are left out": (peft_settings, "matched", lambda patterns, module: None),
    "a pattern may match anywhere": (peft_settings, "matched", lambda patterns, module: next(
        (value for pattern, value in patterns.items() if pattern.search(module) or pattern.pattern[9:-1] in module), None)),
    "no target is looked at": (peft_settings, "is_target", lambda module, said: True),
    "alpha is left out": (kohya, "alpha_of", lambda meaning, held, name: None),
    "tensors without a meaning are left out": (Meaning, "say", lambda self, *said: "FILE-020" in said or OWN_SAY(self, *said)),
    "a factor without a partner is left out": (Meaning, "say", lambda self, *said: "FILE-021" in said or OWN_SAY(self, *said)),
    "embeddings are turned": (meaning.Part, "is_turned", property(lambda self: self.fan_in_fan_out)),
    "fan_in_fan_out is left out": (meaning.Part, "is_turned", property(lambda self: self.kind == "embedding")),
    "places are believed": (container, "_places", lambda *of: []),
    "names may occur twice": (container, "_once", dict),
    "GGUF's type is not looked at": (gguf, "NUMBERS", {**gguf.NUMBERS, 6: "<I"}),
    "numbers that are not finite pass": (meaning.Factor, "facts", lambda self: (True, False)),
    "the default of alpha is the rank": (peft_settings, "DEFAULT", 4),
    "mlx's scale is alpha": (mlx, "Scale", lambda value, source: Scale(value and value / 4, source)),
}
OWN_CHECKED, OWN_SAY = peft_settings.checked, Meaning.say


@pytest.mark.parametrize("fault", FAULTS)
def test_the_corpus_tells_a_wrong_reader(folder, monkeypatch, fault):
    place, name, wrong = FAULTS[fault]
    monkeypatch.setattr(place, name, wrong)
    assert any(problems(folder, case) for case in CASES)


def test_each_case_has_a_name_of_its_own_and_a_valid_one_has_power():
    assert len({case.folder for case in CASES}) == len(CASES)
    for case in CASES:
        assert bool(case.power) == case.valid and (not case.valid or case.power > 1 / 8), case.folder


def test_the_corpus_is_the_same_to_the_byte_everywhere(folder, tmp_path):
    code = f"from pathlib import Path; from conformance.files import corpus; corpus.write(Path({str(tmp_path)!r}))"
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"}, cwd=root)

    def hashes(root: Path) -> dict[str, str]:
        files = [path for path in root.rglob("*") if path.is_file()]
        return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    assert hashes(folder) == hashes(tmp_path)
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 4e6
