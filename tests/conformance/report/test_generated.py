"""All generated text is up to date, and no page contains a hand-typed count of what the code can count."""

import json
import re

import pytest

from conformance.findings import page
from conformance.mutants import all_mutants
from conformance.report import files_spec, generated, spec
from conformance.run import selftest

FILES = generated.files()
PACKAGE = spec.PATH.parent
NUMBER = r"(?:\d[\d,]*|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty)"
COUNTED = (r"(?:requirements|groups|known-bad|mutants|honest|public (?:bug )?reports|implementations|environments|faults|"
           r"choices|built-in)")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_file_is_fresh(path):
    assert path.read_text(encoding="utf-8") == FILES[path](), "stale: python -m conformance.report.generated"


def test_the_pages_by_hand_have_regions():
    """The README has a region for what was found in the world, and a count or a region for the number of mutants."""
    assert {generated.ROOT / name for name in ("README.md", "CHANGELOG.md", "conformance/SPEC.md")} <= set(FILES)
    text = (generated.ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- generated: findings -->" in text
    assert "<!-- count: mutants -->" in text or "<!-- generated: selftest -->" in text


def typed(text: str) -> list[str]:
    """The counts in the text that were typed by hand: those outside regions and outside code blocks."""
    for marks in generated.MARKS.values():
        text = marks.sub("", text)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    return re.findall(rf"\b{NUMBER}\s+{COUNTED}\b", prose)


@pytest.mark.parametrize("path", generated.pages(), ids=lambda path: path.name)
def test_no_count_is_typed(path):
    """Of the changelog only the unreleased part is checked: the counts of a release do not change."""
    text = path.read_text(encoding="utf-8")
    if path.name == "CHANGELOG.md":
        text = "".join(re.findall(r"^## Unreleased$(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert typed(text) == []


def test_a_typed_count_is_seen():
    text = "439 known-bad layers, in five\nenvironments, <!-- count: groups -->16<!-- /count --> groups\n```\n9 faults\n```\n"
    assert typed(text) == ["439 known-bad", "five\nenvironments"]


def test_the_counts_are_true():
    """The counts agree with counts that are taken in another way, from the sources and from SPEC.md."""
    text = spec.render()
    levels = re.findall(r"^\* level (\w+)", text, re.M)
    sources = "".join(path.read_text(encoding="utf-8") for path in (PACKAGE / "mutants").glob("*.py"))
    faults = json.loads((PACKAGE / "known_faults.json").read_text(encoding="utf-8"))["faults"]
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in (PACKAGE / "findings" / "scripts").glob("*.py")}
    faulty = [name.split("-")[0] for name, script in scripts.items() if "\nkind: fault\n" in script]
    tried = re.findall(r"^\* files of the corpus: (\d+) valid, (\d+) invalid$", files_spec.render(), re.M)
    rows = re.findall(r"^\| \[(\w+)\]\(#\1\) \| \S+ \| (\S+) \|", page.PATH.read_text(encoding="utf-8"), re.M)
    assert {name: count() for name, count in generated.COUNTS.items()} == {
        "requirements": len(re.findall(r"^### \w+-\d+ ", text, re.M)),
        "groups": len(re.findall(r"^## [A-Z]+: ", text, re.M)),
        "must": levels.count("MUST"),
        "should": levels.count("SHOULD"),
        "mutants": len(re.findall(r"^@mutant\(", sources, re.M)),
        "honest": selftest.count() - len(all_mutants()),
        "files_cases": sum(int(number) for pair in tried for number in pair),
        "files_valid": sum(int(valid) for valid, _ in tried),
        "reports": sum("waits_for" not in row for row in faults),
        "reports_total": len(faults),
        "subjects": len(list((PACKAGE / "subjects").glob("[!_]*.py"))),
        "implementations": len(rows),
        "environments": len({environment for _, environment in rows}),
        "faulty": len(set(faulty)),
        "faults": len(faulty),
        "choices": sum("\nkind: convention\n" in script for script in scripts.values()),
    }


def test_a_stale_region_is_filled():
    counts = {name: count() for name, count in generated.COUNTS.items()}
    text = "<!-- count: must --><!-- /count --> of <!-- count: requirements -->7<!-- /count -->\n"
    assert generated.filled(text) == (f"<!-- count: must -->{counts['must']}<!-- /count --> of <!-- count: requirements -->"
                                      f"{counts['requirements']}<!-- /count -->\n")
    text = "Before.\n<!-- generated: groups -->\nold\n<!-- /generated -->\nAfter.\n"
    fresh = generated.filled(text)
    assert fresh.startswith("Before.\n<!-- generated: groups -->\n\n| group |")
    assert fresh.endswith("|\n\n<!-- /generated -->\nAfter.\n")
    assert f"| all | | {counts['requirements']} | {counts['must']} | {counts['mutants']} |" in fresh
    assert generated.filled(fresh) == fresh


@pytest.mark.parametrize(("text", "said"), [
    ("<!-- count: nothing -->1<!-- /count -->", "count: nothing --> is not known; there are requirements, groups,"),
    ("<!-- generated: nothing -->\n<!-- /generated -->", "generated: nothing --> is not known; there are groups, selftest"),
    ("<!-- count: must -->1", "1 regions <!-- count: … --> begin and 0 end"),
    ("<!-- count: must -->\n1<!-- /count -->", "a count stands in one line"),
    ("<!-- generated: groups --> <!-- /generated -->", "has a line of its own"),
])
def test_a_region_that_is_not_as_it_should_be_is_refused(text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        generated.filled(text)
