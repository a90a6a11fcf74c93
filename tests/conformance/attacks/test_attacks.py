"""No attack gets a verdict that it does not deserve, and no accident loses one. Each subject is done within a minute, no
process is left behind, and the reports are well-formed."""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
import corpus
from watched import LIMIT, SHORT, Command

from conformance.run.worker import OURS

EXIT = {"conformant": 0, "partial": 3, "nonconformant": 1, "void": 3, "error": 4}


def run(attacks: list[corpus.Attack], folder: Path) -> Command:
    first = attacks[0]
    for name, text in first.files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return Command(folder, *(attack.spec for attack in attacks), "--only", *first.only, *SHORT, "--seed", "1", *first.options,
                   "--junit", str(folder / "report.xml")).wait(LIMIT * len(attacks))


def problems(attacks: list[corpus.Attack], done: Command) -> list[str]:
    """What is not as it should be, in words."""
    found = done.faults()
    if done.status is None:
        return found
    if done.status < 0 and all("killed" in attack.expected for attack in attacks):
        return found
    if not done.json.exists():
        return [*found, f"no report, exit status {done.status}"]
    reports = done.reports()
    ElementTree.parse(done.json.with_name("report.xml"))
    if done.status != max(EXIT[report["verdict"]] for report in reports.values()):
        found.append(f"exit status {done.status} with the verdicts {[report['verdict'] for report in reports.values()]}")
    for attack in attacks:
        report = reports[attack.spec]
        if report["verdict"] not in attack.expected:
            told = [report["message"], *(row["message"] for row in report["requirements"])]
            found.append(f"{attack.name} is {report['verdict']}, expected {' or '.join(attack.expected)}: {str(told)[:300]}")
        if report["seconds"] > LIMIT:
            found.append(f"{attack.name} took {report['seconds']} s")
        if attack.says not in done.output + json.dumps(report, ensure_ascii=False):
            found.append(f"{attack.name}: no report says {attack.says!r}")
    return found


@pytest.mark.parametrize("attacks", corpus.batches(), ids=lambda attacks: f"{attacks[0].name}+{len(attacks) - 1}")
def test_no_verdict_is_undeserved(attacks, tmp_path):
    done = run(attacks, tmp_path)
    if done.json.exists() and f"{OURS} took longer" in done.json.read_text(encoding="utf-8"):
        done = run(attacks, tmp_path)  # the machine stood still, or the attack makes the judge hang: then it does so again
    if found := problems(attacks, done):
        pytest.fail("\n".join([*found, "", done.output[-3000:]]), pytrace=False)


def test_each_entry_about_the_layer_has_a_test():
    text = "".join(path.read_text(encoding="utf-8") for path in (corpus.HERE.parents[1] / "lora_torch").glob("test_*.py"))
    assert [attack.name for attack in corpus.LAYER.attacks if f"def test_{attack.name}(" not in text] == []


def test_each_subject_is_an_entry():
    """Every subject and program in the files of this folder is in the list."""
    for section in corpus.SUBJECTS:
        text = (corpus.HERE / section.file).read_text(encoding="utf-8")
        if section.file == "program.py":
            made = re.findall(r"^@at\(.*\n(?:@.*\n)*def (\w+)|^with_array\(\"(\w+)\"", text, re.M)
        else:
            made = re.findall(r"^@at\(.*\ndef (\w+)|^(\w+) = (?:subject|raising|offering|killing|shapes|named)\(", text, re.M)
        names = {first or second for first, second in made} - {"learns_from_run_to_run"}  # it takes two runs
        assert names <= {attack.name for attack in section.attacks}, section.file


def test_the_page_is_fresh():
    assert corpus.PAGE.read_text(encoding="utf-8") == corpus.page(), "stale: python tests/conformance/attacks/corpus.py"
