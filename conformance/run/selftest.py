"""Tests the suite itself: it must fail every known-bad implementation (a mutant) and pass every honest one, and every
requirement must fail some mutant.

All of them are tried on the same bank of cases, a few for each requirement, in one process per core. If a requirement that a
mutant names does not fail it on these cases, it is tried again as in a run, on more cases. Each honest layer lives a part of
the space, too (`sweep.py`).
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from multiprocessing import get_context

import numpy as np

from conformance.drivers.process import ONE_THREAD
from conformance.mutants import all_mutants, honest_subjects
from conformance.requirements import Requirement, all_requirements, groups
from conformance.run import case_bank
from conformance.run.examine import examine, offered
from conformance.run.sweep import PARTS, Sweeper
from conformance.subject import Layer, Subject
from conformance.truth.case import DTYPES

CASES = 8  # cases for a mutant, for each requirement that it names
OTHER_CASES = 3  # cases for a mutant, for each other requirement: those that fail it are listed, but need not fail it
HONEST_CASES, BRIEF_CASES = 24, 6  # cases for an honest implementation, for each requirement, and in a brief run
EXAMPLES = 48  # cases of the second try, for a requirement that a mutant names and that passed it


@dataclass(frozen=True)
class Trial:
    """The result of one subject: the requirements that failed it, and for a mutant those that had to (`kills`)."""

    name: str
    group: str
    reports: tuple[str, ...]
    kills: tuple[str, ...]
    by: tuple[str, ...]
    cases: int  # decided cases of all requirements together

    @property
    def killed(self) -> bool:
        return bool(self.by)

    @property
    def missed(self) -> tuple[str, ...]:
        return tuple(id for id in self.kills if id not in self.by)


@dataclass
class SelfTest:
    mutants: list[Trial] = field(default_factory=list)
    honest: list[Trial] = field(default_factory=list)
    seconds: float = 0.0
    brief: bool = False

    @property
    def score(self) -> float:
        return sum(trial.killed for trial in self.mutants) / len(self.mutants)

    @property
    def idle(self) -> list[str]:
        """Requirements that no mutant failed."""
        by = {id for trial in self.mutants for id in trial.by}
        return [r.id for r in all_requirements() if r.id not in by]

    @property
    def wronged(self) -> list[Trial]:
        """Honest implementations that some MUST failed."""
        must = {r.id for r in all_requirements() if r.level == "MUST"}
        return [trial for trial in self.honest if must & set(trial.by)]

    @property
    def problems(self) -> list[str]:
        """Everything that makes the self-test fail, in words."""
        found = [f"{trial.name} survives" for trial in self.mutants if not trial.killed]
        found += [f"{trial.name} is not failed by {' '.join(trial.missed)}" for trial in self.mutants if trial.missed]
        found += [f"{trial.name} names no requirement" for trial in self.mutants if not trial.kills]
        found += [f"the honest {trial.name} is failed by {' '.join(trial.by)}" for trial in self.wronged]
        return found + [f"{id} is failed by no mutant" for id in self.idle]

    def by_group(self) -> dict[str, tuple[int, int]]:
        """Group → (mutants that were failed, all mutants)."""
        found = {id: [trial.killed for trial in self.mutants if trial.group == id] for id in groups()}
        return {id: (sum(killed), len(killed)) for id, killed in found.items() if killed}

    def as_dict(self) -> dict:
        verdicts = {trial.name: "nonconformant" if trial in self.wronged else "conformant" for trial in self.honest}
        return {
            "schema": 1, "seconds": round(self.seconds, 1), "score": self.score, "brief": self.brief,
            "mutants": [
                {"name": t.name, "group": t.group, "rows": list(t.reports), "killed": t.killed, "by": list(t.by)}
                for t in self.mutants
            ],
            "honest": [{"name": t.name, "verdict": verdicts[t.name], "cases": t.cases} for t in self.honest],
            "unkilled_requirements": self.idle,
        }


def run(jobs: int = os.cpu_count() or 1, progress: Callable[[Trial], None] = lambda trial: None, *,
        examples: int = HONEST_CASES, seed: int = 0, brief: bool = False) -> SelfTest:
    """Tries every mutant and every honest implementation, and calls `progress` with each result as it comes. `examples` is the
    approximate number of cases of a requirement for honest implementations. `seed` is the seed of the cases. In a brief run a
    mutant meets only the requirements that it names."""
    started, found = time.perf_counter(), SelfTest(brief=brief)
    one_thread()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for trial in _trials(pool, examples, seed, 0 if brief else OTHER_CASES):
            (found.mutants if trial.group != "HONEST" else found.honest).append(trial)
            progress(trial)
    found.seconds = time.perf_counter() - started
    return found


def one_thread() -> None:
    """Each process that is started from now on computes with one thread."""
    for name, threads in ONE_THREAD.items():
        os.environ.setdefault(name, threads)


def count() -> int:
    return len(all_mutants()) + len(honest_subjects())


def _trials(pool: ProcessPoolExecutor, examples: int, seed: int, others: int) -> Iterator[Trial]:
    yield from pool.map(partial(_honest, examples=examples, seed=seed), range(len(honest_subjects())))
    yield from pool.map(partial(_mutant, seed=seed, others=others), range(len(all_mutants())), chunksize=4)


@cache
def _cases(requirement: Requirement, count: int, seed: int) -> list[case_bank.AnyCase]:
    return case_bank.first(requirement, tuple(DTYPES), count, seed)


def _tried(subject: Subject, count: Callable[[Requirement], int], seed: int) -> tuple[list[str], int]:
    """The requirements that failed the subject, and the number of decided cases. `count` says how many each gets, or 0."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        asked = [(r, count(r)) for r in all_requirements() if count(r)]
        judged = {r.id: case_bank.judge(r, subject, _cases(r, cases, seed)) for r, cases in asked}
    by = [id for id, (verdict, _) in judged.items() if verdict in ("fail", "error")]
    return by, sum(cases for _, cases in judged.values())


def _mutant(index: int, seed: int, others: int = OTHER_CASES) -> Trial:
    mutant = all_mutants()[index]
    by, cases = _tried(mutant, lambda r: CASES if r.id in mutant.kills else others, seed)
    for r in all_requirements():
        if r.id in mutant.kills and r.id not in by:
            outcome = examine(r, mutant, mutant.spec, dtypes=tuple(DTYPES), examples=EXAMPLES, seed=seed, explain=False)
            by += [r.id] if outcome.status in ("fail", "error") else []
    return Trial(mutant.name, mutant.group, mutant.reports, mutant.kills, tuple(by), cases)


def _honest(index: int, examples: int, seed: int) -> Trial:
    subject = honest_subjects()[index]
    by, cases = _tried(subject, lambda r: examples, seed)
    if issubclass(subject.layer, Layer):  # and not a model; each layer is asked for another part of the space
        with np.errstate(all="ignore"):
            swept = Sweeper(subject, offered(subject, tuple(DTYPES)), seed, exact=False).part(index % len(PARTS))
        by, cases = [*by, *swept.failures], cases + swept.lived
    return Trial(subject.name, "HONEST", (), (), tuple(by), cases)
