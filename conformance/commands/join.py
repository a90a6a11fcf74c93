"""conformance join: makes one JSON report of several."""

import argparse
import json
from collections import Counter

from rich.text import Text

from conformance.commands.shared import Written, console
from conformance.report import json as json_report
from conformance.report import output, stored
from conformance.requirements import all_requirements
from conformance.run.examine import plain

HELP = "make one JSON report of several: of other subjects, or of other requirements of the same subject"
EPILOG = """\
examples:
  conformance run peft --only FWD GRAD --json one.json
  conformance run peft --only MERGE --json two.json
  conformance run loralib --json three.json
  conformance join one.json two.json three.json --json all.json

The verdict of a subject that several files have is made anew, from all that
they asked. Two files that disagree on a requirement of one subject are
refused, and so are two versions of a subject, or of conformance, in one
subject's report, and a run that broke off before it had asked all it planned.

exit status:
  0 written
  2 usage: a file is no report, or two of them do not fit together
  3 F could not be written
"""
ABOUT = ("version", "code", "level", "dtypes", "device", "strict", "in_process")  # options that one subject's parts must share


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("files", metavar="F", nargs="+", help="reports of `conformance run --json`, or of `pytest --lora-json`")
    add("--json", metavar="OUT", required=True, help="the file to write")


def run(arguments: argparse.Namespace) -> int:
    written = Written(arguments.json)
    reports = {file: stored.load(file) for file in arguments.files}
    if len(reports) < len(arguments.files):
        repeated = Counter(arguments.files).most_common(1)[0][0]
        raise ValueError(f"{repeated} is named twice")
    joined = join(reports)
    text = json.dumps(joined, indent=1, ensure_ascii=False) + "\n"
    written(arguments.json, lambda file: output.write(file, text.encode("utf-8", "backslashreplace")))
    for entry in joined["reports"]:
        name = f"{entry['subject']['name']} {entry['subject']['version']}".strip()
        console().print(Text(f"{plain(name)}: {entry['verdict']}, {entry['executed']} requirements"))
    return written.status(0)


def join(reports: dict[str, dict]) -> dict:
    """One report of those in these files. Raises ValueError, which names both files, where two of them do not fit together."""
    entries: dict[str, tuple[str, dict]] = {}  # by spec: the first file that has it, and what is known of it so far
    for file, report in reports.items():
        for entry in report["reports"]:
            spec = entry["subject"]["spec"]
            if spec in entries:
                first, known = entries[spec]
                _check(spec, first, file, reports)
                entry = _both(known, entry, first, file)
                entries[spec] = first, entry
            else:
                entries[spec] = file, entry
    options = [report["options"] for report in reports.values()]
    shared = {name: value for name, value in options[0].items() if all(name in o and o[name] == value for o in options)}
    only = [] if any(not o["only"] for o in options) else list(dict.fromkeys(name for o in options for name in o["only"]))
    several = {name: options[0][name] for name in options[0] if name not in shared} | {"only": only}
    device = options[0]["device"]
    known = {id: row for report in reports.values() for id, row in report.get("catalogue", {}).get("requirements", {}).items()}
    titles = {id: title for report in reports.values() for id, title in report.get("catalogue", {}).get("groups", {}).items()}
    return {"schema": 1, "date": max(report.get("date", "") for report in reports.values()),
            "environment": json_report.environment(device), "options": several | shared,
            "catalogue": {"groups": titles, "requirements": known},
            "joined": [part for file, report in reports.items() for part in report.get("joined") or [
                {"file": file, "environment": report["environment"], "options": report["options"],
                 "subjects": [entry["subject"]["spec"] for entry in report["reports"]]}]],
            "reports": [entry for _, entry in entries.values()]}


def _check(spec: str, first: str, second: str, reports: dict[str, dict]) -> None:
    """Raises ValueError if the runs of the files are too different for one report of the subject."""
    one, other = (reports[file]["options"] for file in (first, second))
    for name in ABOUT:
        if one.get(name) != other.get(name):
            raise ValueError(f"{spec} is in {first} and in {second}, with {name} {one.get(name)} and {other.get(name)}: "
                             "one report of it cannot rest on both")


def _both(one: dict, other: dict, first: str, second: str) -> dict:
    """One report of a subject from two. Raises ValueError if they do not agree."""
    spec = one["subject"]["spec"]
    for file, part in ((first, one), (second, other)):
        if part["executed"] < part["planned"] and not part["message"]:
            raise ValueError(f"{spec} in {file} asked {part['executed']} of {part['planned']} requirements: run it again")
    if one["subject"] != other["subject"]:
        raise ValueError(f"{spec} has version {one['subject']['version']!r} in {first} and {other['subject']['version']!r} in "
                         f"{second}: one report of it cannot rest on both")
    changed = sorted(file for file, found in one.get("files", {}).items() if other.get("files", {}).get(file, found) != found)
    if changed:
        raise ValueError(f"{spec} is in {first} and in {second}, and its file {changed[0]} is not the same in both")
    rows = {row["id"]: row for row in one["requirements"]}
    for row in other["requirements"]:
        if (before := rows.setdefault(row["id"], row))["status"] != row["status"]:
            raise ValueError(f"{spec} {row['id']} is {before['status']} in {first} and {row['status']} in {second}: run it "
                             "again, with the seed of either, and find out why")
    unknown = set(rows) - {r.id for r in all_requirements()}
    if unknown:
        raise ValueError(f"{spec} is in {first} and in {second}, and {min(unknown)} is no requirement of this version of "
                         "conformance, so its verdict cannot be made anew")
    canaries = one["canaries"] | {id: "pass" if one["canaries"].get(id) == "pass" else status
                                  for id, status in other["canaries"].items()}
    message = " ".join(dict.fromkeys(filter(None, (one["message"], other["message"]))))
    # Of two sweeps of the space, the one that broke off counts: a later one does not explain it.
    space = min(filter(None, (one.get("space"), other.get("space"))), default={},
                key=lambda swept: swept.get("swept", 0) - swept.get("parts", 0))
    report = stored.report_of(one | {
        "requirements": list(rows.values()), "canaries": canaries, "message": message,
        "seconds": one["seconds"] + other["seconds"], "space": space,
        "compensates": one.get("compensates", {}) | other.get("compensates", {}),
        "declined": list(dict.fromkeys(one.get("declined", []) + other.get("declined", []))),
        "sandbox": one.get("sandbox", False) and other.get("sandbox", False),  # said only if all of it ran there
        "conventions": one["conventions"] or other["conventions"], "files": one.get("files", {}) | other.get("files", {})})
    return json_report.entry(report)
