"""Every format tells the same story: terminal, JSON, JUnit, HTML, badge and exit status, about five subjects that differ in how
they end. They are run once, together. tests/conformance/commands/test_cli.py has the exit status of each alone. A further
format is one more field of Told, and a line of test_one_story."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree as xml

import pytest

ROOT = Path(__file__).parents[3]
BROKEN = "tests/conformance/broken.py"
STORIES = {  # subject → its verdict, and the status of each requirement that is asked
    "lora_ref": ("conformant", ("pass", "pass")),
    f"{BROKEN}:wrong_scale": ("nonconformant", ("fail", "fail")),
    f"{BROKEN}:OffersNothing": ("void", ("unsupported", "unsupported")),
    f"{BROKEN}:crashes": ("error", ("crash", "crash")),
    "no_such_subject": ("error", ()),
}
ASKED = ("FWD-01", "SCALE-01")
PAGE_SAYS = {"unsupported": "not offered"}
JUNIT_HAS = {"pass": [], "fail": ["failure"], "unsupported": ["skipped"], "crash": ["error"]}


class Told(NamedTuple):
    """What the run has said in every format."""

    status: int
    terminal: str
    reports: dict[str, dict]  # of the JSON report, by spec
    suites: dict[str, xml.Element]  # of JUnit, by spec
    site: Path


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> Told:
    place = tmp_path_factory.mktemp("told")
    command = [sys.executable, "-m", "conformance", "run", *STORIES, "--only", *ASKED, "--examples", "4", "--seed", "1",
               "--json", str(place / "json"), "--junit", str(place / "junit"), "--html", str(place / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    reports = json.loads((place / "json").read_text())["reports"]
    suites = dict(zip(STORIES, xml.parse(place / "junit").getroot(), strict=True))
    return Told(done.returncode, done.stdout, {report["subject"]["spec"]: report for report in reports}, suites, place / "site")


class Cells(HTMLParser):
    """The texts of the cells of a page, by the class of their table, row by row."""

    def __init__(self, text: str):
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self.table, self.within = "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "table":
            self.table = dict(attrs).get("class") or ""
        if tag == "tr":
            self.rows.setdefault(self.table, []).append([])
        if tag == "td":
            self.rows[self.table][-1].append("")
        self.within = tag in ("td", "a", "span", "i") and (tag == "td" or self.within)

    def handle_data(self, data):
        if self.within:
            self.rows[self.table][-1][-1] += data.strip()


def slug(spec: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", spec)


def test_the_exit_status_is_the_worst(told):
    assert told.status == 4
    verdicts = re.findall(r"^.*: (CONFORMANT|NONCONFORMANT|VOID|ERROR)$", told.terminal, re.M)
    assert [verdict.lower() for verdict in verdicts] == [verdict for verdict, _ in STORIES.values()]


@pytest.mark.parametrize("spec", STORIES, ids=lambda spec: spec.rpartition(":")[2])
def test_one_story(told, spec):
    """The verdict, the status of each requirement, and the reason why there is no verdict, in each format."""
    (verdict, statuses), report, suite = STORIES[spec], told.reports[spec], told.suites[spec]
    assert report["verdict"] == verdict
    assert tuple(row["status"] for row in report["requirements"]) == statuses

    rows, place = Cells((told.site / "index.html").read_text()).rows, list(STORIES).index(spec)
    passed, decided = statuses.count("pass"), sum(one != "unsupported" for one in statuses)
    assert rows["overview"][place + 1][:2] == [verdict, f"{passed}/{decided}"]  # below the heads of the columns
    matrix = [row[place] for row in rows["matrix"] if row]
    assert matrix == [PAGE_SAYS.get(one, one) for one in statuses] or not statuses and matrix == ["", ""]
    badge = (told.site / "badges" / f"{slug(spec)}.svg").read_text()
    assert f"<title>LoRA conformance: {verdict} {passed}/{decided}</title>" in badge

    cases = {(case.get("name") or "").split()[0]: [part.tag for part in case] for case in suite}
    for id, one in zip(ASKED, statuses, strict=bool(statuses)):
        assert cases.pop(id) == JUNIT_HAS[one]
    assert all(kinds == ["error"] for kinds in cases.values())  # what no requirement says: no verdict, or not loaded
    assert (verdict == "conformant") == all(suite.get(name) == "0" for name in ("failures", "errors"))

    reasons = [report["message"]] * bool(report["message"]) + report["void_since"]
    assert bool(reasons) == (verdict == "void" or spec == "no_such_subject")
    page = (told.site / "subjects" / f"{slug(spec)}.html").read_text()
    for text in (told.terminal, page, " ".join(error.get("message") or "" for error in suite.iter("error"))):
        for words in reasons:
            assert "".join(words.split()) in "".join(text.replace("&#39;", "'").split()), words


@pytest.mark.parametrize("spec", [spec for spec, (_, statuses) in STORIES.items() if {"fail", "crash"} & set(statuses)])
def test_every_failure_is_told_in_every_format(told, spec):
    """One cause is one failure on the terminal, which names the others. The other formats have each with its evidence."""
    report = told.reports[spec]
    cause, = report["causes"]
    assert cause["requirements"] == list(ASKED)
    head = f"{report['requirements'][0]['status'].upper()} MUST broken FWD-01 formula"
    assert head in told.terminal and re.search(r"^  fails, too +SCALE-01 *$", told.terminal, re.M)
    page = (told.site / "index.html").read_text()
    for row, case in zip(report["requirements"], told.suites[spec].iter("testcase"), strict=False):
        assert f'id="{slug(spec)}.{row["id"]}"' in page
        assert row["message"] == case[0].get("message") and row["reproduce"] in (case[0].text or "")
        assert row["failure"]["want"] in page and row["failure"]["want"] in told.terminal
