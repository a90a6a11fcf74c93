"""Makes a set of vectors, and writes it."""

import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from conformance.vectors import files
from conformance.vectors.certify import NotExact, certified
from conformance.vectors.choose import Planned, planned, vector
from conformance.vectors.families import FAMILIES
from conformance.vectors.killers import seen
from conformance.vectors.vector import Vector

ATTEMPTS = 1000  # draws of one vector: some are not exact after all their steps


def made(plan: Planned, seed: int) -> Vector:
    """The vector with its answers, and with the faults that it shows. Raises ArithmeticError if none was found."""
    family = FAMILIES[plan.family]
    for attempt in range(ATTEMPTS):
        with suppress(NotExact):
            whole = certified(vector(plan, seed, attempt), not family.real)
            found = seen(whole.only(family.asks) if family.asks else whole)
            if found.kills:
                return found
    raise ArithmeticError(f"{plan.id}: none of {ATTEMPTS} attempts with seed {seed} is exact and shows a known fault")


def export(folder: Path, seed: int = 0, groups: set[str] = frozenset(), jobs: int = 1,  # type: ignore[assignment]
           progress: Callable[[int, int, str], None] = lambda done, all, id: None) -> list[Vector]:
    """Writes the vectors of the groups, or all, to a folder that is empty or not there. It appears as a whole or not at all."""
    plans, found = planned(groups), []
    if jobs > 1:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            for one in pool.map(partial(made, seed=seed), plans, chunksize=2):
                found.append(one)
                progress(len(found), len(plans), one.id)
    else:
        for plan in plans:
            found.append(made(plan, seed))
            progress(len(found), len(plans), plan.id)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".conformance-"))
    try:
        for name, data in files.contents(found, seed).items():
            (part / name).write_bytes(data)
        part.chmod(0o755)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return found
