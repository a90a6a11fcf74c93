"""The report on one subject, and the verdict that its outcomes give."""

from collections import Counter
from dataclasses import dataclass, field, replace

from conformance.requirements import Requirement, all_requirements, groups, profiles
from conformance.run.causes import Cause, causes
from conformance.run.examine import Outcome, plain

FAILING = ("fail", "error", "crash", "timeout")
ANSWERED = 0.5  # the least share of the cases that could tell that a subject must answer to be called conformant
CORE = "FWD-01"  # the formula itself: without it there is no verdict
INSTEAD = ("MODEL-01", "FILE-01")  # one of these is enough for a subject that offers no single layer


@dataclass
class Report:
    """Everything that a run found out about one subject."""

    spec: str
    name: str = ""
    version: str = ""
    planned: tuple[Requirement, ...] = ()
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    canaries: dict[str, Outcome] = field(default_factory=dict)
    seconds: float = 0.0
    unloadable: str = ""
    conventions: dict[str, str] = field(default_factory=dict)  # see conventions.py; only of a run of all requirements
    declined: list[str] = field(default_factory=list)  # kinds of layers that the subject does not offer at all, in words
    compensates: dict[str, str] = field(default_factory=dict)  # requirement → what was made up for in all others, in words
    in_process: bool = False  # whether the subject ran in the judge's process: nothing kept them apart
    sandbox: bool = False  # whether the subject ran in drivers/sandbox.py
    files: dict[str, str] = field(default_factory=dict)  # the subject's files, each with its SHA-256 when it was run
    parts: tuple[str, ...] = ()  # of the space, which the run sweeps: see sweep.py
    space: dict[str, Outcome] = field(default_factory=dict)
    exact: bool = False  # whether sizes count exactly in the covering array: see space.py
    swept_then: dict = field(default_factory=dict)  # what the sweep of an earlier run rested on, if the report is of that run
    taken_from: str = ""  # the file of an earlier run that has this report, if it was not made now

    @property
    def verdict(self) -> str:
        """conformant, partial, nonconformant, void or error. README.md has the exit statuses that belong to them."""
        if self.unloadable or not any(o.status in ("pass", "fail") for o in self.outcomes.values()):
            broke = any(o.status in FAILING for o in self.outcomes.values())
            return "error" if self.unloadable or broke else "void"
        if self.passed_canaries or self.unseen_canaries or self.broken_off:
            return "void"
        if any(r.level == "MUST" and self.status(r) in FAILING for r in self.planned):
            return "nonconformant"
        core_planned = any(r.id == CORE for r in self.planned)
        decided = not core_planned or self.outcomes[CORE].status == "pass" or self._without_layers
        if not decided or len(self.outcomes) < len(self.planned):
            return "void"
        return "conformant" if self.answered >= ANSWERED * self.asked else "partial"

    def add_what_the_space_breaks(self) -> None:
        """Puts what a sweep has found in the place of the outcome of a requirement that its own cases do not fail."""
        asked = {r.id for r in self.planned}
        for part in self.space.values():
            for id, found in part.swept.get("broken", {}).items():
                own = self.outcomes.get(id)
                if id in asked and (own is None or own.status not in FAILING):
                    self.outcomes[id] = Outcome(**found)

    @property
    def broken_off(self) -> list[str]:
        """Parts of the space of which nobody knows what they would have shown: the judge itself failed or ended there."""
        then = self.swept_then.get("swept", 0) < self.swept_then.get("parts", 0)
        return [id for id, part in self.space.items() if not part.swept] or ["SPACE"] * then

    @property
    def swept(self) -> dict:
        """What the sweep of the space rests on, of all parts together. Empty if the run has swept nothing."""
        if not self.space:
            return self.swept_then
        parts = [part.swept for part in self.space.values() if part.swept]
        declined = sum((Counter(part["declined"]) for part in parts), Counter())
        found = {name: sum(part[name] for part in parts) for name in ("cases", "lived", "left", "late")}
        return found | {"exact": self.exact, "declined": dict(declined), "parts": len(self.parts), "swept": len(parts)}

    @property
    def _telling(self) -> list[Outcome]:
        """The outcomes of the MUSTs that some case decided."""
        musts = [self.outcomes[r.id] for r in self.planned if r.level == "MUST" and r.id in self.outcomes]
        return [outcome for outcome in musts if outcome.examples]

    @property
    def answered(self) -> int:
        """The number of cases that were decided, of those MUSTs of which any case was."""
        return sum(outcome.examples for outcome in self._telling)

    @property
    def asked(self) -> int:
        """The number of cases that could have told: those that were decided, and those that the subject did not offer."""
        return sum(outcome.examples + outcome.not_offered for outcome in self._telling)

    @property
    def _without_layers(self) -> bool:
        """Whether the subject offers no single layer, and the formula of its models, or of files that it reads, was decided."""
        statuses = {id: outcome.status for id, outcome in self.outcomes.items()}
        return statuses[CORE] == "unsupported" and any(statuses.get(id) == "pass" for id in INSTEAD)

    @property
    def whole(self) -> bool:
        """Whether the run asked every requirement."""
        return len(self.planned) == len(all_requirements())

    @property
    def passed_canaries(self) -> list[str]:
        """Checks that must fail and passed. If there is one, no outcome of the run can be relied on."""
        return [id for id, outcome in self.canaries.items() if outcome.status == "pass"]

    @property
    def unseen_canaries(self) -> list[str]:
        """Canaries on layers of ours, if none of their sort had an answer: then nobody knows whether the judge is sound."""
        found = []
        for sort in ("CANARY-honest", "CANARY-wrong"):
            statuses = {id: outcome.status for id, outcome in self.canaries.items() if id.startswith(sort)}
            if statuses and "fail" not in statuses.values() and set(statuses.values()) != {"unsupported"}:
                found += statuses
        return found

    @property
    def void_since(self) -> list[str]:
        """Why no verdict can be given, a sentence each. Empty if there is one, or if the subject could not be loaded."""
        surprised = " ".join(self.passed_canaries)
        found = [f"checks of the judge itself gave a surprise: {surprised}"] if surprised else []
        found += [plain(self.canaries[id].message) for id in self.passed_canaries if self.canaries[id].message]
        if self.unseen_canaries:
            found.append(f"layers of ours had no answer there: {' '.join(self.unseen_canaries)}")
        found += [f"a part of the space broke off: {id} {plain(self.space[id].message)}" if id in self.space else
                  "a part of the space broke off in the run that it is taken from" for id in self.broken_off]
        if self.verdict != "void" or found:
            return found
        if len(self.outcomes) < len(self.planned):
            return [f"{len(self.planned) - len(self.outcomes)} of {len(self.planned)} requirements were not asked"]
        decided = any(outcome.status in ("pass", "fail") for outcome in self.outcomes.values())
        return [f"the formula of the forward pass ({CORE}) was not decided" if decided else "the subject offers nothing of it"]

    @property
    def exit_status(self) -> int:
        return {"conformant": 0, "nonconformant": 1, "partial": 3, "void": 3, "error": 4}[self.verdict]

    def cleaned(self) -> "Report":
        """The report with text that a terminal, JSON and XML can hold, whatever the subject said. The spec and the files stay
        as they are: they are looked up again."""
        outcomes = {id: Outcome(**outcome.as_dict()) for id, outcome in self.outcomes.items()}
        conventions = {plain(name): plain(said) for name, said in self.conventions.items()}
        compensates = {id: plain(said) for id, said in self.compensates.items()}
        name, version = (" ".join(plain(text).split()) for text in (self.name or self.spec, self.version))
        return replace(self, name=name, version=version, outcomes=outcomes, unloadable=plain(self.unloadable),
                       conventions=conventions, compensates=compensates)

    @property
    def causes(self) -> list[Cause]:
        """What explains the failures: see causes.py."""
        return causes(self.planned, self.outcomes, FAILING)

    @property
    def profiles(self) -> dict[str, str]:
        return {name: self._profile(name) for name in profiles()}

    def status(self, requirement: Requirement) -> str:
        outcome = self.outcomes.get(requirement.id)
        return outcome.status if outcome else "unsupported"

    def _profile(self, name: str) -> str:
        """conformant, partial, nonconformant or not offered. An optional requirement counts only if the feature is offered."""
        members = [r for r in self.planned if r.profile == name and r.level == "MUST"]
        offered = {asked for asked in profiles()[name] for r in members
                   if asked in r.needs and _asks(r, name) in (asked, "") and self.status(r) != "unsupported"}
        needed = [self.status(r) for r in members
                  if not r.optional and _asks(r, name) in {*offered, ""} or self.status(r) != "unsupported"]
        if any(status in FAILING for status in needed):
            return "nonconformant"
        if not offered or not any(status == "pass" for status in needed):
            return "not offered"
        asked_all = len(members) == sum(r.profile == name and r.level == "MUST" for r in all_requirements())
        return "conformant" if asked_all and all(status == "pass" for status in needed) else "partial"


def _asks(requirement: Requirement, profile: str) -> str:
    """The method that the group of the requirement asks for, if the profile is that of the group. Otherwise ""."""
    group = groups()[requirement.group]
    return group.asks if group.profile == profile else ""
