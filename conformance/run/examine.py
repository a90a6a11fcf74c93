"""Tries one requirement on one subject, in this process. After a failure it searches for a smaller failing case."""

import shlex
import time
import warnings
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice

import hypothesis
import numpy as np
from hypothesis.errors import HypothesisException, UnsatisfiedAssumption

from conformance.drivers.process import Hung
from conformance.record.trace import SubjectError, Traced
from conformance.requirements import Requirement
from conformance.run import canaries, case_bank
from conformance.run.diagnosis import diagnose
from conformance.subject import LayerConfig, Subject, Unsupported
from conformance.truth.case import DTYPES, Case, resolution
from conformance.truth.compare import Mismatch
from conformance.truth.model_case import ModelCase

SHRINK_SECONDS = 10.0  # limit of the search for a smaller failing case; only slow subjects reach it
SHRINK_CALLS = 250  # limit of the cases tried in that search; the smallest found by then is reported
TRIES = 10  # cases tried, at most, for each one to be decided: some are not offered, and some cannot tell
# A requirement is not offered after so many undecided cases in which a method of a layer that was built was not offered,
WITHOUT_METHOD = 4
UNSUPPORTED_IN_A_ROW = 24  # or after so many undecided cases of which any part was not offered


@dataclass
class Outcome:
    """The result of one requirement. `status` is pass, fail, unsupported, indeterminate, error, crash or timeout. `worst` is
    the largest error / bound. `failure` holds the parts of the report of a failure."""

    id: str
    status: str
    message: str = ""
    examples: int = 0
    seconds: float = 0.0
    worst: float | None = None
    resolution: float | None = None  # the smallest relative error of the scale that a rounding case would have shown
    diagnosis: str | None = None
    reproduce: str | None = None
    failure: dict = field(default_factory=dict)

    def as_dict(self) -> dict:
        """The outcome for JSON and XML: only text that both can hold, and None for NaN and infinities."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def _plain(value):
    if isinstance(value, str):
        text = value.encode("utf-8", "backslashreplace").decode()
        return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
    if isinstance(value, float):
        return float(value) if np.isfinite(value) else None
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


class _Enough(BaseException):
    """Ends a search. It is not an Exception, so that Hypothesis does not catch it."""


def command(spec: str, id: str, seed: int, device: str = "cpu", asked: tuple[str, ...] = tuple(DTYPES)) -> str:
    """The command line that tries the requirement again. `asked` are the dtypes that the run was allowed to use."""
    restricted = f" --dtype {' '.join(asked)}" if set(asked) != set(DTYPES) else ""
    placed = f" --device {device}" if device != "cpu" else ""
    return f"conformance run {shlex.quote(spec)} --only {id} --seed {seed}{placed}{restricted}"


def examine(requirement: Requirement, subject: Subject, spec: str, *, dtypes: tuple[str, ...], examples: int, seed: int,
            device: str = "cpu", explain: bool = True, asked: tuple[str, ...] = tuple(DTYPES)) -> Outcome:
    """The outcome of one requirement, from about `examples` cases in these dtypes.

    Never raises for what a subject does. An error in the harness itself gives the status `error`, with a message that says so.
    After a failure it searches for a smaller case and for the likely cause, unless `explain` is false. `asked` is passed to
    `command`."""
    started = time.perf_counter()
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            search = _Search(requirement, subject, spec, device, explain and requirement not in canaries.ALL)
            search.run(dtypes, examples, seed)
            outcome = search.outcome(command(spec, requirement.id, seed, device, asked))
            if outcome.status == "fail" and search.best is not None and search.explain:
                outcome.diagnosis = diagnose(requirement, subject, search.best[1])
    except Exception as error:
        outcome = Outcome(requirement.id, "error", f"the harness itself failed: {type(error).__name__}: {error}")
    outcome.seconds = time.perf_counter() - started
    return outcome


class _Search:
    """Tries the cases of one requirement on one subject. It remembers the smallest failure, so that it can stop at any time."""

    def __init__(self, requirement: Requirement, subject: Subject, spec: str, device: str, explain: bool):
        self.requirement, self.subject, self.spec, self.device, self.explain = requirement, subject, spec, device, explain
        self.decided, self.worst, self.resolution = 0, 0.0, np.inf
        self.unsupported: list[str] = []
        self.without_method = 0
        self.best: tuple[float, Case | ModelCase, Exception, Traced] | None = None
        self.deadline, self.calls = float("inf"), 0

    def run(self, dtypes: tuple[str, ...], examples: int, seed: int) -> None:
        """Tries the cases of the bank. After a failure it searches for a smaller case. Failures are kept, not raised."""
        wanted = case_bank.share(self.requirement, examples)
        try:
            for case in islice(case_bank.cases(self.requirement, dtypes, seed), TRIES * wanted):
                with suppress(UnsatisfiedAssumption):
                    self.attempt(case)
                if self.decided >= wanted:
                    return
        except Unsupported as reason:
            self.unsupported.append(str(reason))
        except _Enough:
            pass
        except (Mismatch, SubjectError):
            self.shrink(dtypes, examples, seed)

    def shrink(self, dtypes: tuple[str, ...], examples: int, seed: int) -> None:
        """Uses Hypothesis to find a smaller case that fails."""
        settings = hypothesis.settings(
            max_examples=2 * case_bank.share(self.requirement, examples), database=None, deadline=None, derandomize=False,
            report_multiple_bugs=False, print_blob=False, suppress_health_check=case_bank.HEALTH,
            verbosity=hypothesis.Verbosity.quiet, phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        )
        with suppress(_Enough, Mismatch, SubjectError, HypothesisException, Unsupported):  # the failure is in self.best
            hypothesis.seed(seed)(settings(hypothesis.given(self.requirement.cases(dtypes))(self.attempt)))()

    def attempt(self, case: Case | ModelCase) -> None:
        if self.best is not None:
            self.calls += 1
            hung = isinstance(getattr(self.best[2], "error", None), Hung)  # each further try would take as long
            if not self.explain or hung or time.perf_counter() > self.deadline or self.calls > SHRINK_CALLS:
                raise _Enough
        if self.device != "cpu":
            case = case.replace(device=self.device)
        traced = Traced(self.subject)
        try:
            case = case_bank.fitted(case, self.subject)
            self.worst = max(self.worst, self.requirement.check(traced, case.copy()) or 0.0)
            self.decided += 1
            if isinstance(case, Case) and "bound" in vars(case):  # a rounding case
                self.resolution = min(self.resolution, resolution(case))
        except Unsupported as reason:
            self.unsupported.append(str(reason))
            self.without_method += reason.method not in ("", "build", "build_model")
            enough = self.without_method >= WITHOUT_METHOD or len(self.unsupported) >= UNSUPPORTED_IN_A_ROW
            if not self.decided and self.best is None and enough:
                raise _Enough from None
            raise UnsatisfiedAssumption from None
        except (Mismatch, SubjectError) as failure:
            if self.best is None:
                self.deadline = time.perf_counter() + SHRINK_SECONDS
            if self.best is None or case.size < self.best[0]:
                self.best = (case.size, case, failure, traced)
            raise

    def outcome(self, again: str) -> Outcome:
        id = self.requirement.id
        if self.best is not None:
            return self._failed(again)
        if self.decided:
            seen = self.resolution if np.isfinite(self.resolution) else None
            return Outcome(id, "pass", examples=self.decided, worst=self.worst, resolution=seen)
        if self.unsupported:
            return Outcome(id, "unsupported", f"not offered: {Counter(self.unsupported).most_common(1)[0][0]}")
        return Outcome(id, "indeterminate", "no case could tell: every one was rejected")

    def _failed(self, again: str) -> Outcome:
        assert self.best is not None
        _, case, failure, traced = self.best
        script = traced.script(self.spec)
        outcome = Outcome(self.requirement.id, "fail", str(failure), self.decided + 1)
        outcome.failure = {"case": case.described if isinstance(case, ModelCase) else _described(case)}
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


class CannotBuild(Exception):
    """The subject cannot build any layer. The message quotes what it raised."""


def offered_dtypes(subject: Subject, dtypes: tuple[str, ...], device: str = "cpu") -> tuple[str, ...]:
    """The dtypes in which the subject offers a layer on the device, with or without a bias, or a model. A dtype for which
    building raises is included, so that the failure is seen. Raises CannotBuild if nothing could be built and something raised.
    """
    offered, errors, built = [], [], 0
    for dtype in dtypes:
        attempts = [_built(subject, dtype, bias, device) for bias in (True, False)]
        built += attempts.count(None)
        errors += [a for a in attempts if isinstance(a, BaseException) and not isinstance(a, Unsupported)]
        models = type(subject).build_model is not Subject.build_model and dtype in ("float32", "float64")
        if models or not all(isinstance(a, Unsupported) for a in attempts):
            offered.append(dtype)
    if errors and not built:
        raise CannotBuild(f"building a layer raised {type(errors[0]).__name__}: {errors[0]}")
    return tuple(offered)


def _built(subject: Subject, dtype: str, bias: bool, device: str) -> BaseException | None:
    """What building a small layer raised, or None."""
    W = np.ones((2, 3), DTYPES[dtype])
    alpha = getattr(subject, "scale", None) or 2.0
    try:
        subject.build(LayerConfig(3, 2, 1, alpha, bias=bias, dtype=dtype, device=device), W, W[:, 0].copy() if bias else None)
    except (Exception, SystemExit) as error:
        return error
    return None


def _described(case: Case) -> str:
    """The case in a few words. The script shows its arrays."""
    config = case.config
    text = f"in {config.in_features}, out {config.out_features}, rank {config.rank}, alpha {config.alpha:g}"
    text += f", x {case.x.shape}, {config.dtype}"
    text += "" if config.bias else ", no bias"
    text += f", dropout {config.dropout:g}" if config.dropout else ""
    return text + (f", {config.scaling}" if config.scaling != "standard" else "")

