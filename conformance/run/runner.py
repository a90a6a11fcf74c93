"""Gives the requirements of a run to workers, and collects their outcomes. It compares no numbers itself."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import MappingProxyType

from conformance.requirements import Requirement
from conformance.run import canaries
from conformance.run.examine import Outcome
from conformance.run.plan import Options, plan
from conformance.run.verdict import Report
from conformance.run.worker import INTERRUPTED, OURS, Unloadable, Worker

A_BATCH = 8  # requirements that one worker takes at a time
# Each process that uses CUDA has its own context, which takes GPU memory, and the GPU works for one process at a time. With two
# processes, one makes cases and judges answers in NumPy while the GPU works for the other.
CUDA_JOBS = 2
HUNG_IN_A_ROW, HANGING = 3, 10  # after 3 timeouts in a row the limit is divided by 10, until the subject answers again
Progress = Callable[[Report, Outcome | None], None]


def run(specs: list[str], options: Options, progress: Progress = lambda report, outcome: None,
        done: Mapping[str, Report] = MappingProxyType({})) -> list[Report]:
    """One report per subject, in the order given. Reports in `done` are returned as they are, without a run.

    `progress` is called with each outcome as it comes, and with None at the end of a subject, possibly from several threads."""
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


def _batches(planned: tuple[Requirement, ...]) -> list[list[Requirement]]:
    """Batches of requirements with the same kind of case. One worker draws the cases once and uses them for the batch."""
    kinds: dict[object, list[Requirement]] = {}
    for requirement in planned:
        kinds.setdefault(requirement.cases, []).append(requirement)
    return [kind[i : i + A_BATCH] for kind in kinds.values() for i in range(0, len(kind), A_BATCH)]


def _taken(waiting: deque[list[Requirement]]) -> Iterator[Requirement]:
    """One requirement after another, until the deque is empty. Several workers may take from the same deque. A worker that
    breaks off puts the rest of its batch back."""
    with suppress(IndexError):
        while True:
            batch = deque(waiting.popleft())
            try:
                while batch:
                    yield batch.popleft()
            finally:
                if batch:
                    waiting.appendleft(list(batch))


def _run_subject(spec: str, planned: tuple[Requirement, ...], options: Options, jobs: int, progress: Progress,
                 workers: list[Worker]) -> Report:
    report = Report(spec, spec.rpartition(":")[2], planned=planned)
    waiting, lock, started = deque(_batches((*canaries.ALL, *planned))), threading.Lock(), time.perf_counter()
    unloadable: list[str] = []
    asked: list[bool] = []  # not empty once some worker was asked for the subject's conventions
    sent = {"dtypes": options.dtypes, "examples": options.examples, "seed": options.seed, "device": options.device,
            "timeout": options.timeout, "memory": options.memory}

    def work() -> None:
        worker, hung = Worker(spec, sent, options.timeout), 0
        workers.append(worker)
        try:
            worker.start()
            with lock:
                report.name, report.version = worker.about["name"], worker.about["version"]
            for requirement in _taken(waiting):
                outcome = worker.examine(requirement.id)
                stopped = outcome.failure.get("what") == OURS  # not a program's: its answers have a limit each
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

    threads = [threading.Thread(target=work) for _ in range(min(jobs, len(waiting)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if any(worker.cancelled for worker in workers):
        report.unloadable = INTERRUPTED  # even if outcomes were recorded: the report is not complete
    elif len(report.outcomes) < len(planned) or len(report.canaries) < len(canaries.ALL):
        report.unloadable = unloadable[0] if unloadable else "not every requirement and not every canary was asked"
    report.seconds = time.perf_counter() - started
    progress(report, None)
    return report
