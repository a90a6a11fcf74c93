"""Gives the requirements of a run to workers, and collects their outcomes. It compares no numbers itself."""

import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import MappingProxyType

from conformance.requirements import Requirement
from conformance.requirements.helpers.layers import in_memory
from conformance.run import canaries, sweep
from conformance.run.examine import Outcome
from conformance.run.files import code, files_of, hashed
from conformance.run.plan import Options, parts, plan
from conformance.run.verdict import Report
from conformance.run.worker import INTERRUPTED, InProcess, Unloadable, Worker

A_BATCH = 8  # requirements that one worker takes at a time
# Each process that uses CUDA has its own context, which takes GPU memory, and the GPU works for one process at a time. With two
# processes, one makes cases and judges answers in NumPy while the GPU works for the other.
CUDA_JOBS = 2
HUNG, HANGING = 3, 10  # after 3 more timeouts than answers the limit is divided by 10, until the subject answers again
Progress = Callable[[Report, Outcome | None], None]


def run(specs: list[str], options: Options, progress: Progress = lambda report, outcome: None,
        done: Mapping[str, Report] = MappingProxyType({})) -> list[Report]:
    """One report per subject, in the order given. Reports in `done` are returned as they are, without a run.

    `progress` is called with each outcome as it comes, and with None at the end of a subject, possibly from several threads."""
    planned = plan(options)
    jobs = min(options.jobs, CUDA_JOBS) if options.device == "cuda" else options.jobs
    jobs = 1 if options.in_process else jobs
    each = max(1, jobs // max(1, sum(spec not in done for spec in specs)))
    workers: list[Worker | InProcess] = []
    over = threading.Event()  # set once no worker may be started any more

    def report_on(spec: str) -> Report:
        if spec not in done:
            return _run_subject(spec, planned, options, each, progress, workers, over, scratch)
        progress(done[spec], None)
        return done[spec]

    with (tempfile.TemporaryDirectory(dir=in_memory(), prefix="conformance-", ignore_cleanup_errors=True) as scratch,
          ThreadPoolExecutor(max(1, jobs // each)) as pool):
        reports = [pool.submit(report_on, spec) for spec in specs]
        try:
            return [report.result() for report in reports]
        except BaseException:  # Ctrl-C: leave no process behind, and start none
            over.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in list(workers):
                worker.cancel()
            raise


def _batches(planned: tuple[Requirement, ...]) -> list[list[str]]:
    """Batches of requirements with the same kind of case. One worker draws the cases once and uses them for the batch."""
    kinds: dict[object, list[Requirement]] = {}
    for requirement in planned:
        kinds.setdefault(requirement.cases, []).append(requirement)
    return [[r.id for r in kind[i : i + A_BATCH]] for kind in kinds.values() for i in range(0, len(kind), A_BATCH)]


def _taken(waiting: deque[list[str]]) -> Iterator[str]:
    """One id after another, until the deque is empty. Several workers may take from the same deque. A worker that
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


def told(options: Options, scratch: str) -> dict:
    """What a judge is told of the options. `scratch` is a folder for what it writes."""
    names = ("dtypes", "examples", "seed", "device", "timeout", "memory", "in_process", "sandbox", "space", "strict")
    return {"scratch": scratch} | {name: getattr(options, name) for name in names}


def begin(worker: Worker | InProcess, report: Report, lock: threading.Lock) -> None:
    """Loads the subject, and asks the canaries. Raises Unloadable."""
    worker.start()
    with lock:
        report.name, report.version = worker.about["name"], worker.about["version"]
        report.declined, report.compensates = worker.about["declined"], worker.about.get("compensates", {})
    watch(worker, report, lock)


def ask_more(worker: Worker | InProcess, report: Report, lock: threading.Lock, first: bool) -> None:
    """Asks what the report says besides the outcomes: the files of the subject, and of the `first` worker of a run that asks
    every requirement its conventions, too."""
    if first and report.whole:
        found = worker.ask_about("conventions")
        report.conventions = found if isinstance(found, dict) else {}
    # What a sandbox shows is not what is here under the same name.
    loaded = {} if report.sandbox else hashed(code(worker.ask_about("files")))
    with lock:
        report.files = loaded | report.files  # a hash from before the run is the better one


def conclude(report: Report, unloadable: list[str], unwatched: list[str]) -> None:
    """Completes a report to which nothing is added any more, or notes that it is not complete. `unloadable` says why workers
    ended early, and `unwatched` those of them whose canaries were not asked again."""
    asked = ((report.outcomes, report.planned), (report.space, report.parts), (report.canaries, canaries.ALL))
    if any(len(found) < len(wanted) for found, wanted in asked):
        report.unloadable = unloadable[0] if unloadable else "not every requirement and not every canary was asked"
    elif unwatched:
        report.unloadable = f"the judge could not be examined again: {unwatched[0]}"
    report.add_what_the_space_breaks()


def watch(worker: Worker | InProcess, report: Report, lock: threading.Lock) -> None:
    """Asks the canaries. A surprise is kept, whatever other workers see. A subject that does not answer one of them is asked no
    other: it would cost as much again, and tell nothing."""
    for id, (_, whose, _) in canaries.ALL.items():
        own = whose == canaries.SUBJECT
        broken = [found.status for other, found in list(report.canaries.items())
                  if own and canaries.ALL[other][1] == canaries.SUBJECT and found.status in ("timeout", "crash")]
        if broken and id in report.canaries:
            continue
        outcome = Outcome(id, broken[0], "not asked: another canary had no answer") if broken else worker.examine(id)
        with lock:
            if id not in report.passed_canaries:  # by what another worker has seen meanwhile
                report.canaries[id] = outcome


def patient(worker: Worker | InProcess, id: str, timeout: float) -> Outcome:
    """The outcome. A part of the space is given more time, and what hangs again and again is given less."""
    if id.startswith(sweep.ONE):
        worker.timeout *= sweep.PATIENCE
    outcome = worker.examine(id)
    worker.hung = min(worker.hung + 1, 2 * HUNG) if outcome.status == "timeout" else max(worker.hung - 1, 0)
    worker.timeout = timeout / (HANGING if worker.hung >= HUNG else 1)
    return outcome


def _run_subject(spec: str, planned: tuple[Requirement, ...], options: Options, jobs: int, progress: Progress,
                 workers: list[Worker | InProcess], over: threading.Event, scratch: str) -> Report:
    report = Report(spec, spec.rpartition(":")[2], planned=planned, files=files_of(spec), in_process=options.in_process,
                    sandbox=options.sandbox)
    report.parts, report.exact = parts(options), options.space is not None
    batches = _batches(planned) + [[part] for part in report.parts]
    random.Random(options.seed).shuffle(batches)  # so that the order tells nothing about what is asked
    waiting, lock, started = deque(batches), threading.Lock(), time.perf_counter()
    unloadable: list[str] = []
    unwatched: list[str] = []
    asked: list[bool] = []  # not empty once some worker was asked for the subject's conventions

    def work() -> None:
        worker = (InProcess if options.in_process else Worker)(spec, told(options, scratch), options.timeout)
        workers.append(worker)
        begun = False
        if over.is_set():  # the one who cancels all workers may have been here before
            worker.cancel()
        try:
            begin(worker, report, lock)
            begun = True
            for id in _taken(waiting):
                outcome = patient(worker, id, options.timeout)
                with lock:
                    (report.space if id in report.parts else report.outcomes)[id] = outcome
                progress(report, outcome)
            watch(worker, report, lock)
            begun = False
            with lock:
                first, asked[:] = not asked, [True]
            ask_more(worker, report, lock, first)
        except Unloadable as error:  # another worker may go on
            unloadable.append(str(error))
            if begun:  # its canaries were not asked again
                unwatched.append(str(error))
        finally:
            worker.stop()

    threads = [threading.Thread(target=work) for _ in range(min(jobs, len(waiting)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report.seconds = time.perf_counter() - started
    conclude(report, unloadable, unwatched)
    if any(worker.cancelled for worker in workers):
        report.unloadable = INTERRUPTED  # even if outcomes were recorded: the report is not complete
    progress(report, None)
    return report
