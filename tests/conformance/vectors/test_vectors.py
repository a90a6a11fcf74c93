"""Vectors are reproducible, their intervals hold, programs in C and JavaScript pass them, and wrong variants of both do not."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from conformance.__main__ import main
from conformance.commands.vectors import status
from conformance.mutants import all_mutants, honest_subjects
from conformance.record.trace import SubjectError
from conformance.run.loading import load
from conformance.subject import Unsupported
from conformance.vectors import check, choose, families, files, killers, layer, ways
from conformance.vectors.certify import NotExact, certified
from conformance.vectors.vector import Vector

HERE = Path(__file__).parent
GROUPS = ("SCALE", "PARAM", "INIT", "PTUNE")
MUTANTS = {mutant.name: mutant for mutant in all_mutants()}


def command(*arguments: object) -> int:
    return main(["vectors", *map(str, arguments)])


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("vectors") / "set"
    assert command("export", made, "--only", *GROUPS, "--jobs", 1) == 0
    return made


@pytest.fixture(scope="session")
def vectors(folder) -> list[Vector]:
    return files.read(folder)[1]


@pytest.fixture
def few(folder, tmp_path) -> Path:
    """A copy of the set with the sequences of PARAM alone, whose manifest is right."""
    manifest, found = files.read(folder)
    kept = [vector for vector in found if vector.requirement == "PARAM-04"]
    for name, data in files.contents(kept, manifest["seed"]).items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def result_of(ask: Callable[[Vector], dict], vector: Vector) -> dict:
    try:
        return {"answers": {name: [files.decimal(number) for number in array.ravel()] for name, array in ask(vector).items()}}
    except Unsupported as reason:
        return {"unsupported": str(reason)}
    except SubjectError as error:
        return {"error": str(error)}


def results(ask: Callable[[Vector], dict], vectors: list[Vector], path: Path) -> Path:
    """A file of results that a Python subject gives."""
    found = {vector.id: result_of(ask, vector) for vector in vectors}
    path.write_text(json.dumps({"program": "a subject", "results": found}), encoding="utf-8")
    return path


def test_the_same_seed_gives_the_same_bytes_in_another_process(folder, tmp_path):
    """Those of two groups, which have these operations to themselves here, made by two processes in another order."""
    again = tmp_path / "again"
    arguments = [sys.executable, "-m", "conformance", "vectors", "export", again, "--only", "PTUNE", "PARAM", "--jobs", "2"]
    env = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([str(word) for word in arguments], check=True, env=env, cwd=HERE.parents[2], stdout=subprocess.DEVNULL)
    for name in ("sequence.json", "parameters.json", "prompts.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_another_seed_gives_other_numbers_under_the_same_ids():
    plans = choose.planned(set())
    assert len({plan.id for plan in plans}) == len(plans)
    for plan in plans[::9]:
        if families.FAMILIES[plan.family].operation != "initial":  # which has settings alone
            first, second = (choose.vector(plan, seed) for seed in (0, 1))
            assert any(not np.array_equal(first.given[name], second.given[name]) for name in first.given)


def test_every_operation_and_format_has_vectors():
    plans = choose.planned(set())
    assert {families.FAMILIES[plan.family].operation for plan in plans} == set(files.OPERATIONS)
    assert {plan.dtype for plan in plans} == {"float32", "float64", "float16", "bfloat16"}
    assert {plan.id.rpartition("-")[0].rpartition("-")[0] for plan in plans} <= set(files.requirements())


def test_what_was_read_is_what_was_written(folder, vectors):
    manifest, _ = files.read(folder)
    again = files.contents(vectors, manifest["seed"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == again


def test_the_files_pass_their_own_checks(few, capsys):
    assert command("lint", few) == 0
    assert "nothing is wrong" in capsys.readouterr().out


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    """Changes the file of the sequences, and the manifest with it: the hashes stay right."""
    path, manifest = folder / "sequence.json", json.loads((folder / files.MANIFEST).read_text(encoding="utf-8"))
    said = json.loads(path.read_text(encoding="utf-8"))
    change(said)
    path.write_text(json.dumps(said, ensure_ascii=False), encoding="utf-8")
    manifest["files"]["sequence.json"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["set"], manifest["vectors"] = files.set_of(manifest["files"]), len(said["vectors"])
    (folder / files.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def bits_of(number: float) -> str:
    return f"{int(np.float32(number).view(np.uint32)):08x}"


def another_number(said: dict) -> None:
    spelt = said["vectors"][0]["answers"]["A"]["equal"]
    value = float(spelt["values"][0]) + 1
    spelt["values"][0], spelt["bits"] = files.decimal(np.float64(value)), bits_of(value) + spelt["bits"][8:]


SPOILED = {
    "bits": (lambda said: said["vectors"][0]["given"]["W"].update(values=[9] * len(said["vectors"][0]["given"]["W"]["values"])),
             "not those of the bits"),
    "number": (another_number, "does not hold the exact numbers"),
    "id twice": (lambda said: said["vectors"].append(said["vectors"][0]), "is the id of 2 vectors"),
    "requirement": (lambda said: said["vectors"][0].update(requirement="PARAM-99"), "there is no requirement"),
    "mutant": (lambda said: said["vectors"][0]["kills"].append("no-such-mutant"), "there is no mutant"),
    "idle": (lambda said: said["vectors"][0]["kills"].append(next(n for n in MUTANTS if n not in said["vectors"][0]["kills"])),
             "it does not kill"),
    "schema": (lambda said: said["vectors"][0].update(more=1), "Additional properties"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_spoiled_file_is_told(few, fault, capsys):
    change, words = SPOILED[fault]
    edit(few, change)
    assert command("lint", few) == 1
    assert words in " ".join(capsys.readouterr().out.split())


def test_a_file_that_is_not_that_of_the_manifest_is_told(few, capsys):
    (few / files.TEXT).write_text("vector\n", encoding="utf-8")
    (few / "more.json").write_text("{}", encoding="utf-8")
    assert command("lint", few) == 1
    said = capsys.readouterr().out
    assert "vectors.txt is not the file of the manifest" in said and "more.json is not in the manifest" in said


def test_two_ways_that_do_not_agree_make_no_vector(monkeypatch):
    plan = next(plan for plan in choose.planned({"GRAD"}) if families.FAMILIES[plan.family].asks == ("dA",))
    vector = choose.vector(plan, 0)
    certified(vector, True)
    own = ways.Derived.gradients
    monkeypatch.setattr(ways.Derived, "gradients", lambda way, dy, s: [2 * array for array in own(way, dy, s)])
    with pytest.raises(AssertionError, match="by Derived"):
        certified(vector, True)


def test_an_exact_vector_that_could_round_is_none():
    plan = next(plan for plan in choose.planned({"FWD"}) if families.FAMILIES[plan.family].real)
    with pytest.raises(NotExact):
        certified(choose.vector(plan, 0), True)


@pytest.mark.parametrize("spec", ["lora_ref", "lora_torch"])
def test_implementations_that_had_no_part_in_the_vectors_are_right(folder, vectors, spec, tmp_path, capsys):
    subject = load(spec)
    own = [vector for vector in vectors if vector.operation in layer.OPERATIONS]
    path = results(lambda vector: layer.ask(subject, vector), own, tmp_path / "results")
    said = json.loads(path.read_text(encoding="utf-8"))
    said["results"] |= {vector.id: {"unsupported": "another method"} for vector in vectors if vector not in own}
    path.write_text(json.dumps(said), encoding="utf-8")
    assert command("check", folder, path) == 0, capsys.readouterr().out
    jsonschema.validate(said, json.loads((folder / "results.schema.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "name", ["scale-is-alpha", "rslora-ignored", "merge-without-scale", "integer-division", "weight-decays-a"])
def test_a_known_fault_is_failed_and_named(folder, vectors, name, tmp_path, capsys):
    own = [vector for vector in vectors if vector.operation in layer.OPERATIONS]
    path = results(lambda vector: killers.ask(MUTANTS[name], vector), own, tmp_path / "results")
    assert command("check", folder, path) == 1
    said = capsys.readouterr().out
    assert f"({name})" in " ".join(said.split()), said
    wrong = {verdict.vector.id for verdict in check.judged(folder, path)[1] if verdict.status in ("fail", "error")}
    assert wrong == {vector.id for vector in own if name in vector.kills}


def test_the_exit_status_says_what_is_missing_or_was_never_offered(folder, vectors, tmp_path, capsys):
    honest = next(subject for subject in honest_subjects() if subject.name == "honest")
    model = next(subject for subject in honest_subjects() if subject.name == "honest-model")

    def ask(vector: Vector) -> dict:
        return killers.ask(honest if vector.operation in layer.OPERATIONS else model, vector)

    path = results(ask, vectors, tmp_path / "results")
    assert command("check", folder, path) == 0, capsys.readouterr().out
    assert results(ask, vectors[1:], path) and command("check", folder, path) == 3
    assert "MISSING" in capsys.readouterr().out
    path.write_text("".join(f"unsupported {vector.id} nothing\n" for vector in vectors), encoding="utf-8")
    assert command("check", folder, path) == 3
    one = next(vector for vector in vectors if vector.operation == "forward")
    said = {vector.id: result_of(ask, vector) if vector is one else {"unsupported": "x"} for vector in vectors}
    path.write_text(json.dumps({"results": said}), encoding="utf-8")
    assert command("check", folder, path) == 3
    assert "vectors of a MUST are right, expected at least half" in " ".join(capsys.readouterr().out.split())
    path.write_text(f"answer {vectors[0].id} y 1\n", encoding="utf-8")
    assert command("check", folder, path) == 1


def test_the_forward_pass_of_fwd_01_must_be_answered():
    made = {id: next(plan for plan in choose.planned({id[:3]}) if plan.id.startswith(id)) for id in ("FWD-01", "FWD-02")}
    first, second = (choose.vector(plan, 0) for plan in made.values())
    assert status([check.Verdict(first, "unsupported"), check.Verdict(second, "pass")]) == 3
    assert status([check.Verdict(first, "pass"), check.Verdict(second, "unsupported")]) == 0
    assert status([check.Verdict(first, "pass")] + 2 * [check.Verdict(second, "unsupported")]) == 3


@pytest.mark.parametrize(("text", "words"), [
    ("set 0123456789abcdef\n", "results of the set 0123456789abcdef"), ("answer FWD-99-float32-1 y 1\n", "has not"),
    ("answer\n", "no file of results"), ("hello\n", "line 1 begins with 'hello'"), ('{"results": [1]}', "no file of results"),
    ("answer FWD-01 y one\n", "could not convert"),
    ('{"results": {"a": {"answers": {"y": [1%s]}}}}' % ("0" * 400), "too large"),
    ('{"results": {"a": {"error": {"a": 1}}}}', "error of a is no text"),
    ('{"results": {"a": {"unsupported": 1}}}', "unsupported of a is no text"),
    ('{"results": {"a": {"answers": {}, "unsupported": "x"}}}', "a has answers and unsupported"),
    ('{"results": {"a": {}}}', "a has none"),
    ('{"results": ' + "[" * 100_000, "no file of results"),
    ("answer a y 1\nunsupported a x\n", "line 2 says unsupported of a"),
    ("unsupported a x\nanswer a y 1\n", "line 2 is an answer of a"),
])
def test_results_that_cannot_be_read_are_a_usage_error(folder, tmp_path, text, words, capsys):
    path = tmp_path / "results"
    path.write_text(text, encoding="utf-8")
    assert command("check", folder, path) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
@pytest.mark.parametrize("language", ["c", "javascript"])
def test_a_program_in_another_language(folder, language, wrong, tmp_path, capsys):
    tool = shutil.which({"c": "cc", "javascript": "node"}[language])
    if tool is None:
        pytest.skip(f"there is no {'cc' if language == 'c' else 'node'} on this machine")
    path = tmp_path / "results"
    if language == "c":
        subprocess.run([tool, "-O2", *["-DWRONG"] * wrong, "-o", tmp_path / "lora", HERE / "lora.c", "-lm"], check=True)
        with (folder / files.TEXT).open() as given, path.open("w") as out:
            subprocess.run([tmp_path / "lora"], check=True, stdin=given, stdout=out)
    else:
        with path.open("w") as out:
            subprocess.run([tool, HERE / "lora.js", folder, *["wrong"] * wrong], check=True, stdout=out)
    assert command("check", folder, path) == (1 if wrong else 0), capsys.readouterr().out
    right = {verdict.vector.operation for verdict in check.judged(folder, path)[1] if verdict.status == "pass"}
    assert wrong or {"forward", "backward", "merge", "sequence", "fresh"} <= right
    if wrong and language == "c":
        assert "(scale-is-alpha)" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(("arguments", "words"), [
    (("--only", "XYZ"), "XYZ"), (("--seed", "-1"), "expected a number from 0"), ((), "is not empty"),
])
def test_bad_arguments_of_export_are_told(arguments, words, folder, tmp_path, capsys):
    assert command("export", folder if not arguments else tmp_path / "new", *arguments) == 2
    assert words in capsys.readouterr().err
