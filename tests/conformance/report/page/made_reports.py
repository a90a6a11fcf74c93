"""JSON reports that are made up for tests of the page: of any size, and with text that tries to become markup."""

from conformance.report.page.documents import Documents

HOSTILE = (
    "</script><script>window.hacked = 1</script>", "\"'><img src=x onerror=\"window.hacked = 1\">",
    "<svg onload=window.hacked=1>", "{{ 7 * 7 }}{% raw %}", "\u202egnp.exe\u2066", "javascript:window.hacked=1",
    "]]><!--", "שלום עולם",
)
STATUSES = ("pass",) * 11 + ("unsupported",) * 7 + ("fail",) + ("pass",)  # one in twenty fails, as in the full run
FORMATS = ("float32", "float64", "float16", "bfloat16")
SCRIPT = "import torch\nfrom somewhere import Layer\nlayer = Layer(in_features=3, out_features=5, r=2, lora_alpha=4.0)\n" + (
    "with torch.no_grad():\n    layer.lora_A.copy_(torch.tensor([[0., 0., 1.], [1., 2., 3.]]))\n" * 7)


def row(number: int, status: str, level: str = "MUST", words: str = "") -> dict:
    id = f"G{number // 15:02d}-{number % 15 + 1:02d}"
    failed = {"case": f"in 3, out 5, rank 1, alpha 4, float32{words}", "what": "y[0, 0]", "got": f"-4{words}", "want": "0",
              "error": 4.0, "bound": 0.0}
    worst = (number % 9 + 1) / 10
    return {
        "id": id, "level": level, "group": id[:3], "title": f"requirement number {number}", "status": status,
        "examples": 48 * (status == "pass"), "not_offered": 0, "seconds": 0.5, "worst": worst if status == "pass" else None,
        "worst_in": dict.fromkeys(FORMATS, worst) if status == "pass" and not number % 5 else {}, "resolution": None,
        "message": {"fail": f"y[0, 0]: got -4, want 0{words}", "unsupported": "not offered: whole models: build_model()"}.get(
            status, ""),
        "diagnosis": f"matches a known fault: the scale is alpha, not divided by the rank{words}" * (status == "fail"),
        "reproduce": SCRIPT + words if status == "fail" else None, "failure": failed if status == "fail" else None}


def report(name: str, rows: list[dict], verdict: str, version: str = "1.0", words: str = "") -> dict:
    failed = [row["id"] for row in rows if row["status"] == "fail"]
    return {
        "subject": {"name": name, "version": version, "spec": f"{name}.py:Layer"}, "verdict": verdict,
        "profiles": {"inference": "conformant", "merge": "not offered"}, "planned": len(rows), "executed": len(rows),
        "seconds": 60.0, "message": "", "void_since": [f"a reason{words}"] * (verdict == "void"), "requirements": rows,
        "causes": [{"title": "", "fault": f"twice what it should be{words}", "requirements": failed}] * bool(failed),
        "conventions": {f"layout{words}": f"A is (rank, in){words}", "dropout": "on x, before A"},
        "canaries": {"CANARY-01": "fail"}, "asked": 100, "answered": 90, "declined": [f"float16{words}"] * bool(words),
        "compensates": {"SCALE-01": f"the scale is alpha{words}"} if words else {},
        "space": {"cases": 40, "lived": 38, "left": 0, "exact": False, "parts": 4, "swept": 4}}


def run(reports: list[dict], date: str = "2026-11-30", words: str = "") -> dict:
    rows = {row["id"]: row for report in reports for row in report["requirements"]}
    said = {id: {"level": row["level"], "group": row["group"], "profile": "merge" if row["group"] == "G01" else "inference",
                 "title": row["title"],
                 "sentence": f"The layer {row['level']} do what requirement {id} asks of it, always.{words}",
                 "formula": "y = x Wᵀ + b + scale · (x A) B", "why": "A reason in two sentences. This is the second one." * 3,
                 "sources": ["Hu et al., LoRA, arXiv:2106.09685v2"]} for id, row in rows.items()}
    return {"schema": 1, "date": date, "options": {"version": "0.3.0", "seed": 1},
            "environment": {"python": "3.11.7", "command": f"conformance run all{words}"}, "reports": reports,
            "catalogue": {"groups": {row["group"]: f"Group {row['group']}{words}" for row in rows.values()},
                          "requirements": said}}


def large(subjects: int = 20, requirements: int = 300) -> Documents:
    """As dense with failures as the full run."""
    return Documents([run([report(f"library{i}", [row(n, STATUSES[(7 * n + 3 * i) % 20]) for n in range(requirements)],
                                  "nonconformant") for i in range(subjects)])])


def small() -> Documents:
    """Three subjects, one of them in two runs, with what selftest and exchange write."""
    levels = ["MUST"] * 12 + ["SHOULD"] * 8
    good = [row(n, "pass", level) for n, level in enumerate(levels)]
    bad = [row(n, "fail" if n in (3, 4, 16) else "crash" if n == 5 else "pass", level) for n, level in enumerate(levels)]
    empty = [row(n, "unsupported", level) for n, level in enumerate(levels)]
    before = [row(n, "fail" if n == 7 else "pass", level) for n, level in enumerate(levels)]
    older = run([report("good", before, "nonconformant", version="0.9")], "2026-01-01")
    newer = run([report("good", good, "conformant"), report("bad", bad, "nonconformant"), report("empty", empty, "void")])
    return Documents([older, newer], OTHERS, [TESTS])


TESTS = {
    "layer": "layers.py:Mine", "command": ["pytest", "-x", "-q", "tests"], "tests": 12, "planted": 2, "caught": 1, "faults": [
        {"fault": "scale-is-one", "words": "The scale is 1.", "requirement": "G00-01", "caught": True, "how": "1 failed"},
        {"fault": "b-is-lost", "words": "B is not in the file.", "requirement": "G01-02", "caught": False, "how": ""},
        {"fault": "merged-twice", "words": "It adds A B twice.", "requirement": "", "caught": False, "how": "no"}]}
OTHERS = {
    "selftest": {"seconds": 9.0, "score": 1.0, "honest": [{"name": "Honest", "verdict": "conformant"}], "mutants": [
        {"name": "Twice", "group": "G00", "rows": ["BUG-01"], "killed": True, "by": ["G00-01", "G01-02"]},
        {"name": "Half", "group": "G01", "rows": [], "killed": False, "by": []}]},
    "triggered": {"strengths": {"1": {"array": 8, "requirements": 1, "all": 10}}, "groups": {}, "honest": {"Honest": 9},
                  "seconds": 9.0, "cells": [{"factor": "rank", "group": "merging", "killed": 9, "all": 10}],
                  "survivors": [{"trigger": ["rank 1"], "effect": "dA is 0", "build": "Honest", "cases": 0}]},
    "exchange": {"readers": [{"reader": reader, "missing": "", "cells": [
        {"case": "peft/P-3", "files": "peft", "clause": "P-3", "valid": True, "status": status, "words": "4 times ΔW"},
        {"case": "peft/P-4", "files": "peft", "clause": "P-4", "valid": False, "status": "refused", "words": ""}]}
        for reader, status in (("one", "right"), ("two", "wrong"))]},
}


def hostile() -> Documents:
    """Every text that a subject or another program can choose tries to become markup."""
    words = " ".join(HOSTILE)
    others = {
        "selftest": {**OTHERS["selftest"], "mutants": [
            {"name": words, "group": words, "rows": [], "killed": True, "by": [words]}]},
        "exchange": {"readers": [{"reader": words, "missing": words, "cells": [
            {"case": words, "files": words, "clause": words, "valid": True, "status": "wrong", "words": words}]}]}}
    rows = [row(n, status, words=words) for n, status in enumerate(("pass", "fail", "crash", "unsupported"))]
    rows[1] |= {"title": words}
    rows[3] |= {"id": words, "group": words, "message": words}
    report_ = report(words, rows, "void", words, words)
    report_["profiles"][words] = words
    report_["message"] = words
    fault = {"fault": words, "words": words, "requirement": words, "caught": False, "how": words}
    tests = {**TESTS, "layer": words, "command": [words], "tests": words, "faults": [fault, {**fault, "requirement": ""}]}
    return Documents([run([report_], words=words)], others, [tests])
