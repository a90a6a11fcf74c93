"""conformance diff: says what changed between two JSON reports."""

import argparse
import json
from dataclasses import asdict, dataclass, field

from rich.text import Text

from conformance.commands.shared import Written, console
from conformance.report import output, stored
from conformance.run.examine import plain
from conformance.run.verdict import FAILING

HELP = "show what changed between two JSON reports: better, worse, new, gone, headroom, verdicts, conventions"
EPILOG = """\
examples:
  conformance run my_layers.py:MyLoRA --json new.json
  conformance diff old.json new.json          what changed
  conformance diff old.json new.json --json changes.json

  better     it passes now, and did not
  worse      it fails now, and did not; or it passed, and is no longer decided
  other      it fails or is undecided, as before, and in another way
  new, gone  a requirement that only one of the two reports asked
  headroom   it passes in both, and error / bound is ten times what it was, or
             a tenth

Subjects are matched by their spec. If each report has one subject, these two
are compared, whatever they are called: two versions, or two libraries.

exit status:
  0 nothing is worse
  1 something is worse: a requirement, or a verdict
  2 usage: a file is no report
  3 NEW says less of a subject: it is not in it, is void or an error, is
    partial and was not, or lacks a requirement that OLD has
"""
TENFOLD = 10
UNDECIDED = ("unsupported", "indeterminate")


@dataclass
class Changes:
    """What changed for one subject. Lists hold an id with what it was and what it is."""

    subject: str
    verdict: tuple[str, str]
    better: list[tuple[str, str, str]] = field(default_factory=list)
    worse: list[tuple[str, str, str]] = field(default_factory=list)
    other: list[tuple[str, str, str]] = field(default_factory=list)
    new: list[tuple[str, str]] = field(default_factory=list)
    gone: list[tuple[str, str]] = field(default_factory=list)
    headroom: list[tuple[str, float, float]] = field(default_factory=list)
    profiles: list[tuple[str, str, str]] = field(default_factory=list)
    conventions: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def silent(self) -> bool:
        """Whether the new report decides nothing, or less than the old one."""
        less = self.verdict in (("conformant", "partial"), ("nonconformant", "partial"))
        return self.verdict[1] in ("void", "error") or less or bool(self.gone)

    @property
    def is_worse(self) -> bool:
        return bool(self.worse) or self.verdict[1] == "nonconformant" != self.verdict[0]


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("old", metavar="OLD.json", help="a report of `conformance run --json`, or of `pytest --lora-json`")
    add("new", metavar="NEW.json", help="another one")
    add("--json", metavar="F", help="write the changes to F as JSON")


def run(arguments: argparse.Namespace) -> int:
    written = Written(arguments.json)
    old, new = stored.load(arguments.old), stored.load(arguments.new)
    pairs, absent = _pairs(old["reports"], new["reports"])
    found = [changes(*pair) for pair in pairs]
    differing = sorted(name for name in old["options"].keys() | new["options"].keys()
                       if name != "seed" and old["options"].get(name) != new["options"].get(name))
    report = {"schema": 1, "old": arguments.old, "new": arguments.new, "options": differing, "absent": absent,
              "subjects": [asdict(one) | {"is_worse": one.is_worse} for one in found]}
    written(arguments.json, lambda file: output.write(file, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode()))
    show(found, absent, differing)
    worse = any(one.is_worse for one in found)
    return written.status(1 if worse else 3 if absent or any(one.silent for one in found) or not found else 0)


def _pairs(old: list[dict], new: list[dict]) -> tuple[list[tuple[dict, dict]], list[str]]:
    """The reports of the same subject in both, and the subjects of the old report that the new one does not have."""
    if len(old) == len(new) == 1:
        return [(old[0], new[0])], []
    there = {entry["subject"]["spec"]: entry for entry in new}
    specs = [entry["subject"]["spec"] for entry in old]
    return [(e, there[s]) for e, s in zip(old, specs, strict=True) if s in there], [s for s in specs if s not in there]


def changes(old: dict, new: dict) -> Changes:
    """What changed from one report of a subject to the next."""
    names = list(dict.fromkeys(" ".join((e["subject"]["name"], e["subject"]["version"])).strip() for e in (old, new)))
    found = Changes(" → ".join(names), (old["verdict"], new["verdict"]))
    before, now = ({row["id"]: row for row in entry["requirements"]} for entry in (old, new))
    found.gone = [(id, row["status"]) for id, row in before.items() if id not in now]
    for id, row in now.items():
        if id not in before:
            found.new.append((id, row["status"]))
            continue
        was, status = before[id]["status"], row["status"]
        if status != was:
            _kind(found, was, status).append((id, was, status))
        elif status == "pass":
            error, then = row["worst"] or 0.0, before[id]["worst"] or 0.0
            if max(error, then) >= TENFOLD * min(error, then) and error != then:
                found.headroom.append((id, then, error))
    found.profiles, found.conventions = (_differing(old[name], new[name]) for name in ("profiles", "conventions"))
    return found


def _kind(found: Changes, was: str, status: str) -> list[tuple[str, str, str]]:
    if status == "pass":
        return found.better
    if status in FAILING:
        return found.other if was in FAILING else found.worse
    return found.worse if was == "pass" else found.other


def _differing(old: dict[str, str], new: dict[str, str]) -> list[tuple[str, str, str]]:
    return [(name, old[name], new[name]) for name in old if name in new and old[name] != new[name]]


def show(found: list[Changes], absent: list[str], options: list[str]) -> None:
    screen = console()
    for one in found:
        was, now = one.verdict
        verdict = f"{was}, as before" if was == now else f"{was} → {now}"
        colour = "red" if one.is_worse else "yellow" if one.silent else "green"
        screen.print(Text.assemble((plain(one.subject), "bold"), ": ", (verdict, colour)))
        for name in ("worse", "better", "other", "profiles", "conventions"):
            for id, then, is_now in getattr(one, name):
                style = {"worse": "red", "better": "green"}.get(name, "")
                screen.print(Text(f"  {name:12}{plain(id)}: {plain(then)} → {plain(is_now)}", style=style))
        for id, then, error in one.headroom:
            screen.print(Text(f"  {'headroom':12}{plain(id)}: error / bound {then:.3g} → {error:.3g}"))
        for name in ("new", "gone"):
            if rows := getattr(one, name):
                screen.print(Text(f"  {name:12}{', '.join(f'{plain(id)} {status}' for id, status in rows)}"))
        if not any(getattr(one, name) for name in vars(one) if name not in ("subject", "verdict")):
            screen.print(Text("  no requirement changed"))
    for spec in absent:
        screen.print(Text(f"{plain(spec)}: not in the new report", style="yellow"))
    if options:
        screen.print(Text(f"the runs differ in {', '.join(map(plain, options))}", style="dim"))
