"""What readers make of the corpus: right ones, wrong ones, and those that die."""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance.commands.exchange import status
from conformance.files import judge, talk
from conformance.files import readers as readers_of
from conformance.files.exchange import (
    ACCEPTED,
    BAD,
    ELSEWHERE,
    LOST,
    REFUSED,
    RIGHT,
    SPOILED,
    UNWRITTEN,
    WRONG,
    Cell,
    Given,
    Matrix,
    exchange,
    for_reader,
    merged,
    spoiled,
    written,
)
from conformance.files.readers import Reader
from conformance.files.writers import FEATURES
from conformance.report.matrix import report

sys.path.append(str(Path(__file__).parents[1] / "commands"))
from test_cli import conformance

READERS = '''\
import os
from conformance.files import peft_settings, reading

def deltas(path, base, **wrong):
    meaning = reading.read(path)
    return {part.module: part.delta(base.get(part.module + ".weight")) for part in meaning.parts}

def believes_all(path, base):
    return deltas(path, base)

def without_rslora(path, base):
    checked = peft_settings.checked
    peft_settings.checked = lambda meaning, said: checked(meaning, said | {"use_rslora": False})
    try:
        return deltas(path, base)
    finally:
        peft_settings.checked = checked

def transposed(path, base):
    return {module: delta.T for module, delta in deltas(path, base).items()}

def nothing(path, base):
    print("a line that is no answer")
    return {}

def refuses_all(path, base):
    raise ValueError("no")

def gives_none(path, base):
    pass

def by_kinds(path, base, kinds):
    assert kinds.keys() == {name.removesuffix(".weight") for name in base}
    zeros = {module: 0.0 * base[module + ".weight"] for module in kinds if kinds[module] == "linear"}
    found = deltas(path, base)
    assert kinds.get("h.0.attn.c_proj", "conv1d") == "conv1d" and kinds.get("model.embed_tokens", "embedding") == "embedding"
    return zeros | found

def dies(path, base):
    if "rslora" in path:
        os._exit(3)
    return deltas(path, base)
'''


@pytest.fixture(scope="module")
def readers(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("readers") / "readers.py"
    path.write_text(READERS)
    return str(path)


def made(name: str, *words: str) -> Matrix:
    (matrix,) = exchange([name], lambda given: not words or any(word in given.title for word in words))
    return matrix


def test_the_meaning_by_the_clauses_is_right_everywhere():
    for cell in made("file").cells:
        assert cell.status == (RIGHT if cell.given.valid else REFUSED), (cell.given.title, cell.words)


def test_lora_torch_refuses_what_is_invalid_and_what_it_does_not_offer():
    cells = [cell for cell in made("lora_torch").cells if cell.status != ELSEWHERE]
    assert len(cells) > 80
    assert not [(cell.given.title, cell.words) for cell in cells if cell.status in BAD]
    refused = {cell.given.name for cell in cells if cell.given.valid and cell.status == REFUSED}
    assert refused == {"dora", "a_bias_beside_b", "no_alpha", "alpha_zero_r_absent", "targets_all_linear",
                       "a_target_without_factors", "float64", "all_linear_in_capitals"}


@pytest.mark.peers("peft")
def test_peft_computes_what_the_files_mean():
    cells = [cell for cell in made("peft").cells if cell.status != ELSEWHERE]
    assert not [(cell.given.title, cell.words) for cell in cells if cell.given.valid and cell.status != RIGHT]
    accepted = {cell.given.name for cell in cells if cell.status == ACCEPTED}
    assert {"a_without_b", "no_prefix", "a_tensor_of_nobody", "a_module_that_is_no_target"} <= accepted


def by(writer: str, *readers: str) -> dict[str, dict[str, str]]:
    """The statuses of what this writer makes, by reader and by feature."""
    found = exchange(list(readers), lambda given: given.files == f"by {writer}", [writer])[-len(readers) :]
    return {matrix.name: {cell.given.name: cell.status for cell in matrix.cells} for matrix in found}


@pytest.mark.parametrize("readers", [("file", "lora_torch"), pytest.param(("peft",), marks=pytest.mark.peers("peft"))])
def test_what_lora_torch_writes_is_read_rightly(readers):
    for found in by("lora_torch", *readers).values():
        assert found.keys() == FEATURES.keys() - {"a bias beside B"} and set(found.values()) == {RIGHT}


@pytest.mark.peers("peft")
def test_what_peft_writes_is_read_rightly_but_for_overlapping_patterns():
    """PEFT sorts the patterns when it saves, and goes by the first one that matches."""
    for found in by("peft", "file", "peft", "lora_torch").values():
        assert found.keys() == FEATURES.keys()
        assert {name for name, status in found.items() if status == WRONG} == {"overlapping patterns"}
        assert {name for name, status in found.items() if status == REFUSED} <= {"a bias beside B"}


def test_what_is_not_written_is_told():
    writer, _ = exchange(["file"], lambda given: given.name == "plain", ["lora_torch"])
    assert writer.name == "lora_torch"
    assert {cell.given.name for cell in writer.cells} == {"a bias beside B"} and writer.cells[0].status == UNWRITTEN


def test_a_writer_that_is_not_there_is_not_available():
    (matrix, _) = exchange(["file"], lambda given: given.name == "plain", ["no_such_writer"])
    assert matrix.name == "no_such_writer" and matrix.missing


def test_a_wrong_reader_is_told_by_which_fault(readers):
    (cell,) = made(f"{readers}:without_rslora", "pass-rslora").cells
    assert cell.status == WRONG and "√rank is missing" in cell.words
    (cell,) = made(f"{readers}:transposed", "P-3-pass-plain").cells
    assert cell.status == WRONG and "ΔW is (12, 10), expected (10, 12)" in cell.words
    (cell,) = made(f"{readers}:nothing", "P-3-pass-plain").cells
    assert cell.status == WRONG and "the LoRA part is left out" in cell.words
    cells = made(f"{readers}:believes_all", "peft/R-3-fail", "peft/P-5-fail").cells
    assert {cell.status for cell in cells} == {ACCEPTED}


def test_a_reader_that_dies_loses_one_case(readers):
    cells = made(f"{readers}:dies", "peft/P-3-pass").cells
    lost = [cell.given.name for cell in cells if cell.status == LOST]
    assert lost == ["rslora"] and all(cell.status == RIGHT for cell in cells if cell.given.name != "rslora")


def test_a_reader_that_is_not_there_is_not_available(readers):
    for name in ("no_such_reader", f"{readers}:no_such_function", "no/such/file.py:read"):
        matrix = made(name, "P-3-pass-plain")
        assert not matrix.cells and matrix.missing


def test_a_function_may_take_kinds_and_give_zeros_for_what_is_unchanged(readers):
    assert {cell.status for cell in made(f"{readers}:by_kinds", "peft/P-3-pass", "peft/P-4-pass").cells} == {RIGHT}


def test_a_file_that_ends_is_not_available(tmp_path):
    path = tmp_path / "script.py"
    path.write_text("def read(path, base):\n    return {}\n\nraise SystemExit(0)\n")
    done = conformance("exchange", f"{path}:read", "--only", "P-3")
    assert done.returncode == 3 and "not available" in done.stdout and "Traceback" not in done.stderr


def test_who_reads_nothing_is_not_right(tmp_path):
    """What a writer merged, or did not write, is no answer of a reader."""
    given = Given("by w", "", "plain", (), tmp_path, tmp_path, judge.Right({}, {}, {}))
    found = {status: Cell(given, status) for status in (RIGHT, ELSEWHERE, UNWRITTEN)}
    merge, writer = Matrix("w", [found[RIGHT]], kind="merge"), Matrix("w", [found[UNWRITTEN]], kind="writer")
    assert status([merge, writer, Matrix("r", [found[ELSEWHERE]])]) == 3
    assert status([merge, writer, Matrix("r", [found[ELSEWHERE], found[RIGHT]])]) == 0


@pytest.mark.parametrize("first", [None, {"not available": "no library"}])
def test_a_writer_that_ends_is_not_available(tmp_path, monkeypatch, first):
    talker = SimpleNamespace(answer=lambda: first, ask=lambda question: None)
    monkeypatch.setattr(talk, "process", lambda *_: nullcontext(talker))
    assert merged("lora_torch", tmp_path).missing == (first or {}).get("not available", talk.ENDED)
    monkeypatch.setattr(talker, "answer", dict)  # it comes, and ends at the first feature
    (tmp_path / "corpus").mkdir()
    monkeypatch.setattr(readers_of, "place_of", lambda *_: None)
    made, matrix = written("peft", tmp_path)
    assert not made and {cell.words for cell in matrix.cells} == {talk.ENDED}


def test_the_command(readers, tmp_path):
    done = conformance("exchange", "file", f"{readers}:without_rslora", "--only", "P-3", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 1, done.stderr
    assert "√rank is missing" in done.stdout and (tmp_path / "out.json").exists()
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert conformance("exchange", "file", "--only", "P-4").returncode == 0
    assert conformance("exchange", "file", "--only", "no_such_format").returncode == 2
    assert conformance("exchange", "file", "no_such_reader", "--only", "P-4").returncode == 3
    assert conformance("exchange", "lora_torch", "--only", "kohya").returncode == 3
    for useless in ("refuses_all", "gives_none"):
        assert conformance("exchange", f"{readers}:{useless}", "--only", "P-3").returncode == 1


def test_a_run_goes_on_where_it_was_cut(readers, tmp_path):
    """Cells of the same bytes are not asked again. Others are, and all of a reader of the user's, whose code may be new."""
    out, mine = tmp_path / "out.json", tmp_path / "mine.py"
    mine.write_text(READERS)
    call = ("exchange", "file", f"{mine}:believes_all", "--only", "P-3", "P-4", "--json", str(out), "--resume")
    conformance(*call)
    first = json.loads(out.read_text())
    cut = json.loads(out.read_text())
    built_in, own = (reader["cells"] for reader in cut["readers"])
    del built_in[-2:]
    for cell in [*built_in, *own]:
        cell["words"] = "kept"
    built_in[0]["digest"] = "of other bytes"
    out.write_text(json.dumps(cut))
    conformance(*call)
    now = json.loads(out.read_text())
    words = [cell["words"] for cell in now["readers"][0]["cells"]]
    assert [number for number, said in enumerate(words) if said != "kept"] == [0, len(words) - 2, len(words) - 1]
    assert now["readers"][1] == first["readers"][1]
    out.write_text(json.dumps(first | {"harness": {}}))
    assert conformance(*call).returncode == 2
    assert conformance("exchange", "file", "--resume").returncode == 2


def test_the_committed_matrix():
    """Its size, the cells that were seen to be wrong before there was a matrix, and that no path of a machine is in it."""
    found = report()
    assert len(found["readers"]) >= 6 and len(found["writers"]) >= 6
    assert not [one for kind in ("readers", "writers") for one in found[kind] if one["missing"]]
    cells = {(reader["reader"], cell["files"], cell["name"]): cell for reader in found["readers"] for cell in reader["cells"]}
    for feature in ("rslora", "alpha pattern", "both patterns"):
        assert cells["llama.cpp", "by peft", feature]["status"] == WRONG
        assert "the scale is lora_alpha / r" in cells["llama.cpp", "by peft", feature]["words"]
        assert cells["vllm", "by peft", feature]["status"] == RIGHT
    for name, modules in zip(SPOILED, (4, 2, 4), strict=True):
        words = cells["vllm", "spoiled", name]["words"]
        assert words.endswith("the LoRA part is left out") and words.count("_proj") == modules
    assert cells["llama.cpp", "by peft", "rank pattern"]["status"] == RIGHT
    judged = [cell for cell in cells.values() if cell["ratio"] is not None]
    assert judged and all((cell["ratio"] <= 1) == (cell["status"] == RIGHT) for cell in judged)
    assert "/tmp" not in json.dumps(found) and "/root" not in json.dumps(found)


def test_a_reader_of_another_format_gets_what_our_converter_makes(tmp_path):
    """Nothing, where the names in the file are not those of the model, or where the format cannot say it."""
    (tmp_path / "corpus").mkdir()
    made, _ = written("lora_torch", tmp_path)
    files = {given.name: given for given in made}
    reader = Reader(("kohya",), lambda path, base: {})
    ready, _ = for_reader(files["rslora"], reader, tmp_path)
    assert ready is not None and all(module.startswith("lora_unet_") for module in ready.right.truth)
    assert ready.right.scales.keys() == ready.right.truth.keys() and set(ready.right.scales.values()) == {1.5}
    for given in [*spoiled(files["plain"], tmp_path), files["a whole module"]]:
        ready, why = for_reader(given, reader, tmp_path)
        assert ready is None and why.startswith("our converter: ")


@pytest.mark.peers("transformers")
def test_a_merged_checkpoint_is_a_cell():
    _, merge = exchange([], lambda given: given.files == "merged by lora_torch", ["lora_torch"])
    assert merge.kind == "merge" and [cell.given.name for cell in merge.cells] == ["float32", "float16", "bfloat16"]
    assert all(cell.status == RIGHT and "of ΔW is left" in cell.words for cell in merge.cells)
