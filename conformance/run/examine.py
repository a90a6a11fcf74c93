"""Tries one requirement on one subject, in this process. After a failure it searches for a smaller failing case."""

import math
import shlex
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from itertools import islice

import hypothesis
import numpy as np
from hypothesis.errors import UnsatisfiedAssumption

from conformance.drivers.process import Ended, Greedy, Hung, ProcessSubject
from conformance.drivers.protocol import offers_loaders, offers_models
from conformance.files.case import FileCase
from conformance.record.trace import SubjectError, Traced
from conformance.requirements import Requirement
from conformance.run import case_bank
from conformance.run.compensated import BASIC, Compensation
from conformance.run.diagnosis import diagnose
from conformance.subject import LayerConfig, Subject, Unsupported
from conformance.truth.case import DTYPES, Case, resolution
from conformance.truth.compare import Mismatch
from conformance.truth.model_case import ModelCase

SHRINK_CALLS = 250  # limit of the search for a smaller failing case; the smallest found by then is reported
LARGE = 20_000  # a case of so many numbers counts as two in that search, one of twice as many as three
OF_FILES = 4  # calls as which a case counts that is written to a folder
SHRINK_SHARE = 1 / 3  # limit of its time, of what is left for the requirement; only slow subjects and busy machines reach it
TRIES = 10  # cases tried, at most, for each one to be decided: some are not offered, and some cannot tell
# A requirement is not offered after so many undecided cases in which a method of a layer that was built was not offered,
WITHOUT_METHOD = 4
UNSUPPORTED_IN_A_ROW = 24  # or after so many undecided cases of which any part was not offered
# In and out of the layers that are built of each kind, before it counts as not offered.
PROBES = ((3, 2), (5, 4), (2, 6), (4, 4))
ASKED_AGAIN = 3  # cases, at most, of which it is tried whether they are not offered whatever their numbers are


@dataclass
class Outcome:
    """The result of one requirement. `status` is pass, fail, unsupported, indeterminate, error, crash or timeout. `worst` is
    the largest error / bound. `failure` holds the parts of the report of a failure."""

    id: str
    status: str
    message: str = ""
    examples: int = 0  # cases that were answered and decided
    not_offered: int = 0  # cases that could have told, and that the subject did not offer
    seconds: float = 0.0
    worst: float | None = None
    worst_in: dict[str, float] = field(default_factory=dict)  # number format → the largest error / bound in it
    resolution: float | None = None  # the smallest relative error of the scale that a rounding case would have shown
    diagnosis: str | None = None
    faults: tuple[str, ...] = ()  # the names of all known faults that fail it with the same answers
    follows: str = ""  # from what it follows, in words: see compensated.py
    reproduce: str | None = None
    failure: dict = field(default_factory=dict)
    swept: dict = field(default_factory=dict)  # of a part of the space: see run/sweep.py

    def as_dict(self) -> dict:
        """The outcome for JSON and XML: only text that both can hold, and None for NaN and infinities."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def plain(text: str) -> str:
    """The text with an escape for every character that cannot be printed, such as those that colour a terminal."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def _plain(value):
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else None
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


Kinds = frozenset[tuple[str, bool]]  # number formats of a layer, each with a bias or without
ALL_KINDS: Kinds = frozenset((dtype, bias) for dtype in DTYPES for bias in (True, False))


class _Enough(BaseException):
    """Ends a search. It is not an Exception, so that Hypothesis does not catch it."""


def command(spec: str, id: str, seed: int, device: str = "cpu", asked: tuple[str, ...] = tuple(DTYPES)) -> str:
    """The command line that tries the requirement again. `asked` are the dtypes that the run was allowed to use."""
    restricted = f" --dtype {' '.join(asked)}" if set(asked) != set(DTYPES) else ""
    placed = f" --device {device}" if device != "cpu" else ""
    return f"conformance run {shlex.quote(spec)} --only {id} --seed {seed}{placed}{restricted}"


def examine(requirement: Requirement, subject: Subject, spec: str, *, examples: int, seed: int, dtypes: tuple[str, ...] = (),
            kinds: Kinds = ALL_KINDS, device: str = "cpu", explain: bool = True, asked: tuple[str, ...] = tuple(DTYPES),
            seconds: float = math.inf, compensation: Compensation | None = None) -> Outcome:
    """The outcome of one requirement, from about `examples` cases of these kinds.

    Never raises for what a subject does. An error in the harness itself gives the status `error`, with a message that says so.
    After a failure it searches for a smaller case and for the likely cause, unless `explain` is false. It takes about `seconds`
    at most: what the subject has not answered by then is a timeout. `asked` is passed to `command`."""
    started = time.perf_counter()
    kinds = kinds if not dtypes else frozenset(kind for kind in kinds if kind[0] in dtypes)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            every = kinds if dtypes else frozenset(kind for kind in ALL_KINDS if kind[0] in asked)
            explain &= not requirement.costly
            search = _Search(requirement, subject, spec, kinds, every, device, explain, started + seconds, compensation)
            search.run(examples, seed)
            outcome = search.outcome(command(spec, requirement.id, seed, device, asked))
            case = search.best[1] if search.best is not None else None
            outcome.follows = search.follows
            full = search.explain and (not search.follows or requirement.id in BASIC)
            if outcome.status == "fail" and isinstance(case, Case | ModelCase | FileCase) and full and not search.flickers:
                outcome.diagnosis, outcome.faults = diagnose(requirement, subject, case, started + seconds)
    except Exception as error:
        outcome = Outcome(requirement.id, "error", f"the harness itself failed: {type(error).__name__}: {error}")
    if isinstance(subject, ProcessSubject) and outcome.status != "crash":
        try:
            subject.check_size()
        except Greedy as error:
            outcome = Outcome(requirement.id, "crash", str(error))
    outcome.seconds = time.perf_counter() - started
    return outcome


class _Search:
    """Tries the cases of one requirement on one subject. It remembers the smallest failure, so that it can stop at any time."""

    def __init__(self, requirement: Requirement, subject: Subject, spec: str, kinds: Kinds, asked_kinds: Kinds,
                 device: str, explain: bool, until: float, compensation: Compensation | None):
        self.requirement, self.subject, self.spec, self.device, self.explain = requirement, subject, spec, device, explain
        self.asked_kinds, self.compensation, self.follows = asked_kinds, compensation, ""
        self.kinds, self.dtypes = kinds, tuple(dtype for dtype in DTYPES if dtype in {dtype for dtype, _ in kinds})
        self.decided, self.worst_in, self.resolution = 0, dict[str, float](), np.inf
        self.unsupported: list[str] = []
        self.without_method = 0
        self.declined: list[Case | ModelCase | FileCase] = []  # cases that the subject did not offer
        self.flickers = False
        self.best: tuple[float, Case | ModelCase | FileCase | _Kind, Exception, Traced] | None = None
        self.until, self.deadline, self.calls = until, float("inf"), 0.0

    def run(self, examples: int, seed: int) -> None:
        """Tries the cases of the bank. After a failure it searches for a smaller case. Failures are kept, not raised."""
        wanted = case_bank.share(self.requirement, examples)
        try:
            for case in islice(case_bank.cases(self.requirement, self.dtypes, seed), TRIES * wanted):
                with suppress(UnsatisfiedAssumption):
                    self.attempt(case)
                if self.decided >= wanted:
                    break
        except Unsupported as reason:
            self.unsupported.append(str(reason))
        except _Enough:
            pass
        except (Mismatch, SubjectError):
            self.explain_or_shrink(examples, seed)
        if self.best is None:
            self.ask_again()
        if self.best is None:
            self.ask_for_other_kinds(seed)

    def explain_or_shrink(self, examples: int, seed: int) -> None:
        """Finds out whether the failure follows from a more basic one, and if not, or if it is that one, a smaller case."""
        if self.compensation is not None and self.explain and self.best is not None and isinstance(self.best[2], Mismatch):
            self.follows = self.compensation.words(self.requirement, self.best[1], self.dtypes, seed)
        if not self.follows or self.requirement.id in BASIC:
            self.shrink(examples, seed)

    def shrink(self, examples: int, seed: int) -> None:
        """Uses Hypothesis to find a smaller case that fails. The failure is known, so nothing that happens here can undo it."""
        settings = hypothesis.settings(
            max_examples=2 * case_bank.share(self.requirement, examples), database=None, deadline=None, derandomize=False,
            report_multiple_bugs=False, print_blob=False, suppress_health_check=case_bank.HEALTH,
            verbosity=hypothesis.Verbosity.quiet, phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        )
        with suppress(_Enough, Exception):  # the failure is in self.best
            hypothesis.seed(seed)(settings(hypothesis.given(self.requirement.cases(self.dtypes))(self.attempt)))()

    def attempt(self, case: Case | ModelCase | FileCase) -> None:
        if isinstance(case, Case) and (case.config.dtype, case.config.bias) not in self.kinds:
            self.unsupported.append(f"{case.config.dtype} {'with' if case.config.bias else 'without'} a bias")
            raise UnsatisfiedAssumption
        if self.best is not None:
            self.calls += (1 if not isinstance(case, FileCase) else OF_FILES) + case.numbers / LARGE
            slow = isinstance(getattr(self.best[2], "error", None), Ended)  # each further try would start a process
            if not self.explain or slow or time.perf_counter() > self.deadline or self.calls > SHRINK_CALLS:
                raise _Enough
        if self.device != "cpu":
            case = case.replace(device=self.device)
        traced = Traced(self.subject)
        try:
            case = case_bank.fitted(case, self.subject)
            ratio, dtype = self.requirement.check(traced, case.copy()) or 0.0, case.config.dtype
            self.worst_in[dtype] = max(self.worst_in.get(dtype, 0.0), ratio)
            self.decided += 1
            if isinstance(case, Case) and "bound" in vars(case):  # a rounding case
                self.resolution = min(self.resolution, resolution(case))
        except Unsupported as reason:
            self.unsupported.append(str(reason))
            self.without_method += reason.method not in ("", "build", "build_model", "build_loader")
            if reason.method:  # the subject's word, not the harness's
                self.declined.append(case)
            enough = self.without_method >= WITHOUT_METHOD or len(self.unsupported) >= UNSUPPORTED_IN_A_ROW
            if not self.decided and self.best is None and enough:
                raise _Enough from None
            raise UnsatisfiedAssumption from None
        except (Mismatch, SubjectError) as failure:
            if self._too_wide(case, failure):
                self.unsupported.append("a rank above in or out")
                raise UnsatisfiedAssumption from None
            if self.best is None:
                now = time.perf_counter()
                self.deadline = now + SHRINK_SHARE * (self.until - now)
            broke = isinstance(failure, SubjectError) and failure.broke  # it may have run out of time only now
            if self.best is None or case.size < self.best[0] and not broke:
                self.best = (case.size, case, failure, traced)
            raise

    def _too_wide(self, case: Case | ModelCase | FileCase, failure: Exception) -> bool:
        """Whether the subject has refused to build a layer whose rank, the only one that it has, is above in or out."""
        if not isinstance(case, Case) or getattr(self.subject, "rank", None) is None or not isinstance(failure, SubjectError):
            return False
        wide_rank = case.config.rank > min(case.config.in_features, case.config.out_features)
        return wide_rank and failure.call == "build()" and not failure.broke

    def ask_for_other_kinds(self, seed: int) -> None:
        """Tries whether kinds of layers that were declined at the start, and are not asked for since, are offered by now."""
        rng = np.random.default_rng([seed, *self.requirement.id.encode()])
        for dtype, bias in sorted(self.asked_kinds - self.kinds):
            if _built(self.subject, dtype, bias, self.device, rng, tuple(rng.integers(2, 7, 2))) is None:
                words = f"{dtype} {'with' if bias else 'without'} a bias"
                failure = Mismatch("what is offered", f"a layer in {words}", "none, as at the start of the run")
                self.best, self.flickers = (0.0, _Kind(words), failure, Traced(self.subject)), True
                return

    def ask_again(self) -> None:
        """Tries whether what was not offered is offered after all, for the same configuration and the same calls: when it is
        asked again, or with other numbers or another number of rows. That is a failure: what a layer does not offer must follow
        from its configuration, or a wrong layer could decline wherever it would be seen."""
        for case in self.declined[:ASKED_AGAIN]:
            for words, other in _alike(case):
                traced = Traced(self.subject)
                try:
                    self.requirement.check(traced, other.copy())
                except (Unsupported, UnsatisfiedAssumption, SubjectError):
                    continue
                except Mismatch:
                    pass
                got = f"not offered: {Counter(self.unsupported).most_common(1)[0][0]}"
                failure = Mismatch("what is offered", got, f"that it depends on the configuration alone: it is offered {words}")
                self.best, self.flickers = (case.size, case, failure, traced), True
                return

    def outcome(self, again: str) -> Outcome:
        id = self.requirement.id
        if self.best is not None:
            return self._failed(again)
        if self.decided:
            seen = self.resolution if np.isfinite(self.resolution) else None
            return Outcome(id, "pass", "", self.decided, len(self.declined), worst=max(self.worst_in.values()),
                           worst_in=self.worst_in, resolution=seen)
        if self.unsupported:
            return Outcome(id, "unsupported", f"not offered: {Counter(self.unsupported).most_common(1)[0][0]}")
        return Outcome(id, "indeterminate", "no case could tell: every one was rejected")

    def _failed(self, again: str) -> Outcome:
        assert self.best is not None
        _, case, failure, traced = self.best
        script = None if self.flickers else traced.script(self.spec)
        words = described(case) if isinstance(case, Case) else case.described
        outcome = failed(self.requirement.id, failure, words, script, again)
        outcome.examples, outcome.not_offered, outcome.worst_in = self.decided + 1, len(self.declined), self.worst_in
        return outcome


def failed(id: str, failure: Exception, case: str, script: str | None, again: str) -> Outcome:
    """The outcome of a requirement that failed: with a Mismatch, or with a SubjectError if the subject gave no answer. `case`
    is the case in words, `script` shows the failure, and `again` is a command that tries it again."""
    outcome = Outcome(id, "fail", str(failure), failure={"case": case})
    if isinstance(failure, SubjectError):
        outcome.status = "crash" if isinstance(failure.error, SystemExit) else "error"
        if isinstance(failure.error, Hung):
            outcome.status = "timeout"
        want = "an answer"
        outcome.failure |= {"what": failure.call, "got": f"{type(failure.error).__name__}: {failure.error}"}
    else:
        assert isinstance(failure, Mismatch)
        want = failure.want
        outcome.worst = failure.ratio
        outcome.failure |= {"what": failure.what + failure.where, "got": failure.got}
        if failure.error is not None:
            outcome.failure |= {"error": failure.error, "bound": failure.bound}
    outcome.failure["want"] = want
    what = outcome.failure["what"]
    outcome.reproduce = f"{script}\n# {what}: want {want}\n# or: {again}" if script else again
    return outcome


def _alike(case: Case | ModelCase | FileCase) -> Iterator[tuple[str, Case | ModelCase | FileCase]]:
    """Cases of the same configuration, and in words how each differs: not at all, in its numbers, or in the number of rows."""
    yield "when it is asked again", case
    yield "when it is asked a third time", case
    if isinstance(case, FileCase):
        yield "for other weights of the base", replace(case, base={name: -array for name, array in case.base.items()})
        return
    if isinstance(case, ModelCase):
        for number, words in ((-1, "for other numbers"), (0, "for zeros")):
            yield words, replace(case, trained={name: number * array for name, array in case.trained.items()}, known=False)
        return
    other = {"x": -case.x, "dy": -case.dy, "W": np.flip(case.W).copy(), "A": np.abs(case.A), "B": np.abs(case.B)}
    yield "for other numbers", case.replace(**other)
    for number, words in ((0, "for zeros"), (1, "for ones")):
        yield words, case.replace(**{name: np.full_like(array, number) for name, array in other.items()})
    if case.x.ndim > 1 and case.x.size:
        yield "for twice as many rows", case.replace(x=np.concatenate([case.x] * 2), dy=np.concatenate([case.dy] * 2))
        yield "for one row", case.replace(x=case.x[:1].copy(), dy=case.dy[:1].copy())


@dataclass(frozen=True)
class _Kind:
    """A kind of layer in the place of a case."""

    described: str
    size: float = 0.0


class CannotBuild(Exception):
    """The subject cannot build any layer. The message quotes what it raised."""


def offered(subject: Subject, dtypes: tuple[str, ...], device: str = "cpu") -> Kinds:
    """The kinds of layers that the subject offers on the device: number formats, with a bias or without. A kind for which
    building raises is included, so that the failure is seen, and so is every kind in which it offers a model or a loader.
    Raises CannotBuild if nothing could be built and something raised."""
    found, errors, built = set(), [], 0
    for dtype in dtypes:
        models = (offers_models(subject) or offers_loaders(subject)) and dtype in ("float32", "float64")
        for bias in (True, False):
            results = [_built(subject, dtype, bias, device, np.random.default_rng(sizes), sizes) for sizes in PROBES]
            built += results.count(None)
            if models or not all(isinstance(error, Unsupported) for error in results):
                found.add((dtype, bias))
            errors += [error for error in results if error is not None and not isinstance(error, Unsupported)]
    if errors and not built:
        raise CannotBuild(f"building a layer raised {type(errors[0]).__name__}: {errors[0]}")
    return frozenset(found)


def _built(subject: Subject, dtype: str, bias: bool, device: str, rng: np.random.Generator, sizes: tuple[int, ...]
           ) -> BaseException | None:
    """What building a layer of these sizes, in and out, and of random numbers raised, or None."""
    rank = getattr(subject, "rank", None)
    n_in, n_out = (int(size) + (rank or 0) for size in sizes)  # some implementations refuse a rank above them
    W, b = (rng.standard_normal(shape).astype(DTYPES[dtype]) for shape in ((n_out, n_in), n_out))
    alpha = getattr(subject, "alpha", None) or (getattr(subject, "scale", None) or 2.0) * (rank or 1)
    try:
        config = LayerConfig(n_in, n_out, rank or 1, alpha, bias=bias, dtype=dtype, device=device)
        subject.build(config, W, b if bias else None)
    except (Exception, SystemExit) as error:
        return error
    return None


def described(case: Case) -> str:
    """The case in a few words. The script shows its arrays."""
    config = case.config
    text = f"in {config.in_features}, out {config.out_features}, rank {config.rank}, alpha {config.alpha:g}"
    text += f", x {case.x.shape}, {config.dtype}"
    text += "" if config.bias else ", no bias"
    text += f", dropout {config.dropout:g}" if config.dropout else ""
    return text + (f", {config.scaling}" if config.scaling != "standard" else "")

