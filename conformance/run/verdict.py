"""The report on one subject, and the verdict that its outcomes give."""

from dataclasses import dataclass, field

from conformance.requirements import Requirement, all_requirements, profiles
from conformance.run.examine import Outcome

FAILING = ("fail", "error", "crash", "timeout")
CORE, CORE_OF_MODELS = "FWD-01", "MODEL-01"  # the formula itself: without it there is no verdict


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

    @property
    def verdict(self) -> str:
        """conformant, nonconformant, void or error. README.md has the table of the exit statuses that belong to them."""
        if self.unloadable or not any(o.status in ("pass", "fail") for o in self.outcomes.values()):
            broke = any(o.status in FAILING for o in self.outcomes.values())
            return "error" if self.unloadable or broke else "void"
        if self.passed_canaries:
            return "void"
        if any(r.level == "MUST" and self.status(r) in FAILING for r in self.planned):
            return "nonconformant"
        core_planned = any(r.id == CORE for r in self.planned)
        decided = not core_planned or self.outcomes[CORE].status == "pass" or self._models_alone
        return "conformant" if decided and len(self.outcomes) == len(self.planned) else "void"

    @property
    def _models_alone(self) -> bool:
        """Whether the subject offers no single layer, and the formula of its models was decided."""
        statuses = {id: outcome.status for id, outcome in self.outcomes.items() if id in (CORE, CORE_OF_MODELS)}
        return statuses == {CORE: "unsupported", CORE_OF_MODELS: "pass"}

    @property
    def whole(self) -> bool:
        """Whether the run asked every requirement."""
        return len(self.planned) == len(all_requirements())

    @property
    def passed_canaries(self) -> list[str]:
        """Checks that must fail and passed. If there is one, no outcome of the run can be relied on."""
        return [id for id, outcome in self.canaries.items() if outcome.status == "pass"]

    @property
    def exit_status(self) -> int:
        return {"conformant": 0, "nonconformant": 1, "void": 3, "error": 4}[self.verdict]

    @property
    def profiles(self) -> dict[str, str]:
        return {name: self._profile(name) for name in profiles()}

    def status(self, requirement: Requirement) -> str:
        outcome = self.outcomes.get(requirement.id)
        return outcome.status if outcome else "unsupported"

    def _profile(self, name: str) -> str:
        """conformant, partial, nonconformant or not offered. An optional requirement counts only if the feature is offered."""
        members = [r for r in self.planned if r.profile == name and r.level == "MUST"]
        offered = any(self.status(r) != "unsupported" for r in members if profiles()[name] in r.needs)
        needed = [self.status(r) for r in members if not r.optional or self.status(r) != "unsupported"]
        if any(status in FAILING for status in needed):
            return "nonconformant"
        if not offered or not any(status == "pass" for status in needed):
            return "not offered"
        asked_all = len(members) == sum(r.profile == name and r.level == "MUST" for r in all_requirements())
        return "conformant" if asked_all and all(status == "pass" for status in needed) else "partial"
