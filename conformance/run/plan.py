"""The options of a run, and the requirements that they select."""

import os
from dataclasses import dataclass

from conformance.drivers.children import MEMORY
from conformance.requirements import LEVELS, Requirement, all_requirements
from conformance.run import sweep

DTYPES = ("float32", "float64", "float16", "bfloat16")


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
    in_process: bool = False  # the subject runs in the judge's process, for a debugger
    sandbox: bool = False  # the subject runs in drivers/sandbox.py
    strict: bool = False  # nothing is made up for: see Subject.compensates
    space: tuple[str, ...] | None = None  # levels of one case of the space; (): all cases; None: all, unless `only` is given


def plan(options: Options) -> tuple[Requirement, ...]:
    """The requirements of a run. Raises ValueError for an unknown id or group."""
    every = all_requirements()
    known = {r.id for r in every} | {r.group for r in every}
    unknown = [name for name in options.only if name.upper() not in known]
    if unknown:
        hint = "`conformance list` shows them; a SUBJECT goes before the options"
        raise ValueError(f"--only {unknown[0]}: no such requirement or group; {hint}")
    levels = LEVELS[: [level.lower() for level in LEVELS].index(options.level) + 1]
    only = {name.upper() for name in options.only}
    return tuple(r for r in every if r.level in levels and (not only or r.id in only or r.group in only))


def parts(options: Options) -> tuple[str, ...]:
    """The parts of the space that a run sweeps. Raises ValueError for levels that there are not."""
    if options.space:
        sweep.given(list(options.space))
        return (sweep.ONE,)
    whole = options.space is not None or not options.only and options.level == "may"
    return sweep.PARTS if whole else ()
