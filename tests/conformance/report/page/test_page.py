"""The page without a browser: what it is made from, what is in it, and that no text becomes markup."""

import base64
import copy
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as xml

import made_reports
import pytest

from conformance.report.page import documents, plots, write
from conformance.report.page.documents import Documents
from conformance.report.page.view import view

ROOT = Path(__file__).parents[4]
RESULTS = ROOT / "conformance" / "results"
MIB = 2**20


class Parsed(HTMLParser):
    """The start tags of a page, its text outside of scripts and styles, and the scripts."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words, self.scripts, self.within = "", [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.within = tag if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self.within = ""

    def handle_data(self, data):
        if self.within == "script":
            self.scripts.append(data)
        elif not self.within:
            self.words += f" {data}"

    @property
    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]


def page(found: Documents) -> Parsed:
    return Parsed(write.page(view(found), site=False))


def cleaned(found: Documents) -> Documents:
    return Documents(*map(documents.cleaned, (found.runs, found.others, found.tests)))


def test_a_large_report_is_small():
    """20 subjects × 300 requirements, as dense with failures as the full run."""
    assert len(write.page(view(made_reports.large()), site=False).encode()) < 2 * MIB


@pytest.mark.parametrize("found", [made_reports.small(), cleaned(made_reports.hostile()), made_reports.large(4, 40),
                                   Documents(tests=[made_reports.TESTS])], ids=("small", "hostile", "large", "tests alone"))
def test_links_lead_somewhere_and_nothing_is_asked_for(found):
    """Each link into a page has its target, ids are unique, and no page names anything outside of the site."""
    files = {name: Parsed(text) for name, text in write.site(view(found)).items() if name.endswith(".html")}
    for name, parsed in files.items():
        assert len(set(parsed.ids)) == len(parsed.ids), name
        for tag, attributes in parsed.tags:
            assert not {"src", "srcset", "data", "action"} & set(attributes), (name, tag)
            assert tag not in ("link", "img", "iframe", "object", "base"), (name, tag)
            assert not any(attribute.startswith("on") or attribute == "style" for attribute in attributes), (name, tag)
            target = attributes.get("href")
            if target and target.startswith("#"):
                assert target[1:] in parsed.ids, (name, target)
            elif target:
                assert (Path("/site") / name).parent.joinpath(target).resolve().relative_to("/site").as_posix() in files, target


def test_hostile_text_stays_text():
    found = cleaned(made_reports.hostile())
    for name, text in write.site(view(found)).items():
        if name.endswith(".svg"):
            assert [part.tag.rpartition("}")[2] for part in xml.fromstring(text).iter()] == [
                "svg", "title", "rect", "path", "g", "text", "text"]
            continue
        parsed, honest = Parsed(text), Parsed(write.site(view(cleaned(made_reports.small())))[
            "subjects/good.py-Layer.html" if name.startswith("subjects") else name])
        assert {tag for tag, _ in parsed.tags} <= {tag for tag, _ in honest.tags} | {"pre", "code", "h4", "article"}, name
        assert len(parsed.scripts) == len(honest.scripts)
        assert not re.search("[\u202a-\u202e\u2066-\u2069]", text), name
        if name != "open.html":
            for words in ("<script>window.hacked = 1</script>", "onerror=", "{{ 7 * 7 }}", "\\u202e", "שלום"):
                assert words in parsed.words, (name, words)


def test_the_policy_lets_run_what_is_in_the_page_and_nothing_else():
    for text in write.site(view(made_reports.small())).values():
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
        if policy:
            for kind in ("script", "style"):
                inner = re.search(rf"<{kind}>(.*?)</{kind}>", text, re.S)
                assert inner and base64.b64encode(hashlib.sha256(inner[1].encode()).digest()).decode() in policy[1]
            assert policy[1].startswith("default-src 'none'") and "unsafe" not in policy[1]


def test_it_says_what_the_report_says():
    """Every failure with its evidence and script, every sentence, each subject with what its verdict rests on."""
    found = made_reports.small()
    text = " ".join(page(found).words.split())
    newest = found.runs[-1]
    for report in newest["reports"]:
        for row in report["requirements"]:
            assert newest["catalogue"]["requirements"][row["id"]]["sentence"] in text
            if row["status"] == "fail":
                assert row["diagnosis"] in text and " ".join(row["reproduce"].split()) in text
                assert "4 / 0: it must be equal bit for bit" in text
    for words in ("38 of 40 cases; they hold every pair of levels", "90 of 100 cases that could tell were answered",
                  "No verdict: a reason", "One cause explains all of them: twice what it should be", "A is (rank, in)",
                  "1 of 2 known-bad implementations were failed", "rank 1: dA is 0; in Honest", "wrong: 4 times ΔW",
                  "conformance run all"):
        assert words in text, words


def test_what_tests_catch():
    """Beside what runs say, and alone."""
    for found in (made_reports.small(), Documents(tests=[made_reports.TESTS])):
        words = " ".join(page(found).words.split())
        assert "12 tests caught 1 of 2 faults." in words and "50 %" in words
        assert words.index("Got through") < words.index("b-is-lost") < words.index("Caught 1") < words.index("scale-is-one")
        assert "do not show in this layer: merged-twice" in words
    assert set(write.site(view(Documents(tests=[made_reports.TESTS])))) == {"index.html"}


def test_what_has_no_place_without_a_run_is_refused(tmp_path):
    """Beside reports of mutate alone, others would be left out without a word."""
    for name, document in (("mutate", made_reports.TESTS), ("exchange", made_reports.OTHERS["exchange"])):
        (tmp_path / name).write_text(json.dumps(document))
    assert documents.read([str(tmp_path / "mutate")]).tests
    with pytest.raises(ValueError, match="at least one report of conformance run"):
        documents.read([str(tmp_path / "mutate"), str(tmp_path / "exchange")])


@pytest.mark.parametrize("brief", [True, False])
def test_it_says_whether_the_self_test_was_brief(brief):
    found = made_reports.small()
    found.others["selftest"] = {**found.others["selftest"], "brief": brief}
    assert ("This was a brief run" in page(found).words) is brief


def test_the_history_of_a_subject():
    text = " ".join(Parsed(write.site(view(made_reports.small()))["subjects/good.py-Layer.html"]).words.split())
    assert "no longer failing 1.0 2026-11-30 0.3.0 conformant 20/20 G00-08 0.9 2026-01-01 0.3.0 nonconformant 19/20" in text


def test_links_are_stable():
    """The name of a subject's page is made of its spec alone. Two specs never share one."""
    shown = view(Documents([made_reports.run([made_reports.report(name, [made_reports.row(0, "pass")], "conformant")
                                              for name in ("a b", "a:b", "../../etc", "a b!")])]))
    assert [entry.slug for entry in shown.entries] == ["a-b.py-Layer", "a-b.py-Layer-2", "etc.py-Layer", "a-b-.py-Layer"]


def test_subjects_of_one_name_are_told_apart():
    reports = [made_reports.report("same", [made_reports.row(0, "pass")], "conformant") for _ in range(3)]
    for report, spec in zip(reports, ("a.py:One", "a.py:Two", "same"), strict=True):
        report["subject"]["spec"] = spec
    entries = view(Documents([made_reports.run(reports)])).entries
    assert [entry.name for entry in entries] == ["same (One)", "same (Two)", "same"]


def test_where_marks_stand():
    """The bound is the right edge, each of four decades a quarter, and what is smaller stands at the left edge."""
    assert [plots.place(ratio) for ratio in (1.0, 0.1, 1e-2, 1e-4, 1e-9)] == ["100", "75", "50", "0", "0"]
    heat = plots.kills(made_reports.OTHERS["selftest"])
    assert heat.cells == {("G00", "G00"): (1, 1), ("G00", "G01"): (1, 1), ("G01", "G00"): (0, 1), ("G01", "G01"): (0, 1)}
    assert heat.shade("G00", "G01") == plots.SHADES and heat.shade("G01", "G01") == 0
    assert plots.dots(made_reports.OTHERS["selftest"]) == (["G00-01", "G01-02"], "M0 0h2")


def test_an_older_report_has_causes_by_the_fault_that_was_named():
    rows = [made_reports.row(n, "fail", level) for n, level in enumerate(("SHOULD", "MUST", "MUST"))]
    rows[2]["diagnosis"] = None
    report = made_reports.report("old", rows, "nonconformant")
    del report["causes"]
    entry, = view(Documents([made_reports.run([report])])).entries
    assert [cause["requirements"] for cause in entry.causes] == [["G00-02", "G00-01"], ["G00-03"]]


def conformance(*arguments) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "conformance", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True,
                          timeout=300)


def test_the_command(tmp_path):
    """It makes a site of the committed results, with a page and a badge for each subject. A site is written over."""
    write.write(str(tmp_path / "site"), made_reports.small())
    done = conformance("page", RESULTS / "full.json", RESULTS / "requirements.json", "--html", tmp_path / "site")
    assert done.returncode == 0 and done.stdout.startswith("wrote "), done.stderr
    specs = [report["subject"]["spec"] for report in json.loads((RESULTS / "full.json").read_text())["reports"]]
    for folder in ("badges", "subjects"):
        assert {path.stem for path in (tmp_path / "site" / folder).iterdir()} >= set(specs)
    assert "peft" in (tmp_path / "site" / "index.html").read_text()
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


@pytest.mark.parametrize(("content", "said"), [
    ("[1", "is no JSON"), ("[]", "it has none of the keys"), ('{"reports": 7}', "is no report"),
    ('{"readers": []}', "at least one report of conformance run"),
    ('{"planted": 1, "layer": "a", "command": [], "caught": 1, "faults": [{}]}', "has no 'fault'"),
    ('{"environment": {}, "reports": [{"subject": {"name": 1}}]}', "has no 'verdict'"),
])
def test_what_is_no_report_is_refused(tmp_path, content, said):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        documents.read([str(path)])


def test_a_folder_is_refused_with_what_to_write_instead(tmp_path):
    with pytest.raises(ValueError, match=r"is a folder, expected a JSON report: .*/\*\.json stands for all in it"):
        documents.read([str(tmp_path)])


@pytest.mark.parametrize(("key", "value"), [("causes", [7]), ("space", {"cases": 1}), ("declined", "x"), ("compensates", [1])])
def test_later_parts_are_checked(tmp_path, key, value):
    found = made_reports.small().runs[-1]
    found["reports"][0][key] = value
    path = tmp_path / "report.json"
    path.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="is no report of conformance run"):
        documents.read([str(path)])


def _row(**changed):
    return lambda run, _: run["reports"][0]["requirements"][0].update(changed)


def _words(**changed):
    return lambda run, _: next(iter(run["catalogue"]["requirements"].values())).update(changed)


@pytest.mark.parametrize(("change", "said"), [
    (_row(failure={"error": "x", "bound": 1}), "failure['error'] is of the wrong type"),
    (_row(failure=7), "it['failure'] is of the wrong type"), (_row(worst_in=7), "it['worst_in'] is no object"),
    (_words(sources=5), "it['sources'] is no list"), (_words(sources=[5]), "it['sources'][0] is of the wrong type"),
    (lambda _, rates: rates["strengths"]["1"].update(all=0), "a rate is one of 0"),
    (lambda _, rates: rates["cells"][0].update(all=0), "a rate is one of 0"),
    (lambda _, rates: rates["cells"][0].update(killed="x"), "cells[0]['killed'] is of the wrong type"),
    (lambda _, rates: rates.update(cells=5), "cells is no list"),
])
def test_bad_input_is_refused_in_words(tmp_path, change, said):
    run, rates = copy.deepcopy(made_reports.small().runs[-1]), copy.deepcopy(made_reports.OTHERS["triggered"])
    paths = [tmp_path / "run.json", tmp_path / "rates.json"]

    def read() -> Documents:
        for path, document in zip(paths, (run, rates), strict=True):
            path.write_text(json.dumps(document))
        return documents.read(map(str, paths))

    assert page(read()).words
    change(run, rates)
    with pytest.raises(ValueError, match=re.escape(said)):
        read()


def test_a_place_that_cannot_be_written_is_told_before(tmp_path):
    (tmp_path / "file").write_text("")
    for place, said in {"file": "is no folder", "no/such/site": "there is no", "no/such.html": "there is no"}.items():
        with pytest.raises(ValueError, match=said):
            write.check(str(tmp_path / place))
