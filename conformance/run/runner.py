"""Plans a run, hands the requirements out to workers, and turns outcomes into verdicts. Knows nothing of numerics."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType

from conformance.drivers.process import MEMORY
from conformance.requirements import LEVELS, PROFILES, Requirement, all_requirements
from conformance.run import canaries
from conformance.run.examine import Outcome
from conformance.run.worker import INTERRUPTED, OURS, Unloadable, Worker

DTYPES = ("float32", "float64", "float16", "bfloat16")
FAILING = ("fail", "error", "crash", "timeout")
# Each process on CUDA has a context of its own, which takes memory of the GPU, and the GPU does the work of one process at a
# time. With two, one makes cases and judges answers in NumPy while the GPU works for the other.
CUDA_JOBS = 2
HUNG_IN_A_ROW, HANGING = 3, 10  # timeouts in a row, after which the limit is a tenth, until the subject answers again
CORE, CORE_OF_MODELS = "FWD-01", "MODEL-01"  # a run that did not decide the formula itself has said nothing


@dataclass(frozen=True)
class Options:
    only: tuple[str, ...] = ()
    level: str = "may"
    dtypes: tuple[str, ...] = DTYPES
    device: str = "cpu"
    examples: int = 24
    seed: int = 0
    jobs: int = os.cpu_count() or 1
    timeout: float = 30.0
    memory: float = MEMORY


@dataclass
class Report:
    """All that a run says of one subject."""

    spec: str
    name: str = ""
    version: str = ""
    planned: tuple[Requirement, ...] = ()
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    canaries: dict[str, Outcome] = field(default_factory=dict)
    seconds: float = 0.0
    unloadable: str = ""
    conventions: dict[str, str] = field(default_factory=dict)  # see conventions.py; of a run of everything

    @property
    def verdict(self) -> str:
        """conformant, nonconformant, void, or error: see the contract's table of exit statuses."""
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
        """Whether the subject has no layer of its own and its models were decided."""
        statuses = {id: outcome.status for id, outcome in self.outcomes.items() if id in (CORE, CORE_OF_MODELS)}
        return statuses == {CORE: "unsupported", CORE_OF_MODELS: "pass"}

    @property
    def whole(self) -> bool:
        """Whether every requirement was asked, and not some of them."""
        return len(self.planned) == len(all_requirements())

    @property
    def passed_canaries(self) -> list[str]:
        """Checks that must fail and did not: nothing that was found can be relied on."""
        return [id for id, outcome in self.canaries.items() if outcome.status == "pass"]

    @property
    def exit_status(self) -> int:
        return {"conformant": 0, "nonconformant": 1, "void": 3, "error": 4}[self.verdict]

    @property
    def profiles(self) -> dict[str, str]:
        return {name: self._profile(name) for name in PROFILES}

    def status(self, requirement: Requirement) -> str:
        outcome = self.outcomes.get(requirement.id)
        return outcome.status if outcome else "unsupported"

    def _profile(self, name: str) -> str:
        """conformant, partial, nonconformant or not offered. Requirements of features that are not offered do not count."""
        members = [r for r in self.planned if r.profile == name and r.level == "MUST"]
        offered = any(self.status(r) != "unsupported" for r in members if PROFILES[name].method in r.needs)
        needed = [self.status(r) for r in members if not r.optional or self.status(r) != "unsupported"]
        if any(status in FAILING for status in needed):
            return "nonconformant"
        if not offered or not any(status == "pass" for status in needed):
            return "not offered"
        asked_all = len(members) == sum(r.profile == name and r.level == "MUST" for r in all_requirements())
        return "conformant" if asked_all and all(status == "pass" for status in needed) else "partial"


def plan(options: Options) -> tuple[Requirement, ...]:
    """The requirements of a run. Raises ValueError for an id or a group that is not there."""
    every = all_requirements()
    known = {r.id for r in every} | {r.group for r in every}
    unknown = [name for name in options.only if name.upper() not in known]
    if unknown:
        hint = "`conformance list` shows them; a SUBJECT goes before the options"
        raise ValueError(f"--only {unknown[0]}: no such requirement or group; {hint}")
    levels = LEVELS[: [level.lower() for level in LEVELS].index(options.level) + 1]
    only = {name.upper() for name in options.only}
    return tuple(r for r in every if r.level in levels and (not only or r.id in only or r.group in only))


Progress = Callable[[Report, Outcome | None], None]


def run(specs: list[str], options: Options, progress: Progress = lambda report, outcome: None,
        done: Mapping[str, Report] = MappingProxyType({})) -> list[Report]:
    """One report per subject, in the order given; those in `done` are taken from there. `progress` is told of each outcome as
    it comes, and of the end of a subject, with None; it may be called from several threads."""
    planned = plan(options)
    jobs = min(options.jobs, CUDA_JOBS) if options.device == "cuda" else options.jobs
    each = max(1, jobs // max(1, sum(spec not in done for spec in specs)))
    workers: list[Worker] = []

    def report_on(spec: str) -> Report:
        if spec not in done:
            return _run_subject(spec, planned, options, each, progress, workers)
        progress(done[spec], None)
        return done[spec]

    with ThreadPoolExecutor(max(1, jobs // each)) as pool:
        reports = [pool.submit(report_on, spec) for spec in specs]
        try:
            return [report.result() for report in reports]
        except BaseException:  # Ctrl-C: leave no process behind, and start none
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.cancel()
            raise


def _run_subject(spec: str, planned: tuple[Requirement, ...], options: Options, jobs: int, progress: Progress,
                 workers: list[Worker]) -> Report:
    report = Report(spec, spec.rpartition(":")[2], planned=planned)
    waiting, lock, started = deque((*canaries.ALL, *planned)), threading.Lock(), time.perf_counter()
    unloadable: list[str] = []
    asked: list[bool] = []  # for its conventions
    sent = {"dtypes": options.dtypes, "examples": options.examples, "seed": options.seed, "device": options.device,
            "timeout": options.timeout, "memory": options.memory}

    def work() -> None:
        worker, hung = Worker(spec, sent, options.timeout), 0
        workers.append(worker)
        try:
            worker.start()
            with lock:
                report.name, report.version = worker.about["name"], worker.about["version"]
            while waiting:
                try:
                    requirement = waiting.popleft()
                except IndexError:
                    break
                outcome = worker.examine(requirement.id)
                stopped = outcome.failure.get("what") == OURS  # and not a program, of which each answer has a limit of its own
                hung = hung + 1 if outcome.status == "timeout" and stopped else 0
                worker.timeout = options.timeout / (HANGING if hung >= HUNG_IN_A_ROW else 1)
                with lock:
                    (report.canaries if requirement in canaries.ALL else report.outcomes)[requirement.id] = outcome
                progress(report, outcome)
            with lock:
                first, asked[:] = report.whole and not asked, [True]
            if first:
                report.conventions = worker.conventions()
        except Unloadable as error:  # another worker may go on
            unloadable.append(str(error))
        finally:
            worker.stop()

    threads = [threading.Thread(target=work) for _ in range(min(jobs, max(1, len(planned))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if any(worker.cancelled for worker in workers):
        report.unloadable = INTERRUPTED  # whatever was recorded: it is not to be taken for whole
    elif len(report.outcomes) < len(planned):
        report.unloadable = unloadable[0] if unloadable else ""
    report.seconds = time.perf_counter() - started
    progress(report, None)
    return report
