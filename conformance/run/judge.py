"""The judge of one subject: draws cases, knows the right answers, compares, and searches for smaller failures."""

import contextlib
import gc
import math
import os
from collections.abc import Iterator

from conformance.drivers import sandbox
from conformance.drivers.hosted import RAW, SUBJECT, HostedSubject
from conformance.drivers.process import ProcessSubject
from conformance.requirements import all_requirements
from conformance.requirements.helpers.layers import SCRATCH
from conformance.run import canaries, sweep
from conformance.run.compensated import Compensation
from conformance.run.conventions import conventions
from conformance.run.examine import Outcome, command, examine, offered
from conformance.run.loading import load, reach
from conformance.subject import Subject
from conformance.truth import cache

CONVENTIONS = "conventions"
# What a subject makes up for → the requirements about it, which are asked of the implementation as it stands.
ABOUT = {"scale": ("SCALE-01",), "alpha": ("SCALE-05",), "freezing": ("PARAM-02",), "dimensions": ("FWD-03",)}


class Judge:
    """Examines requirements for one subject, which it reaches in another process, or loads here if the options say so."""

    def __init__(self, spec: str, options: dict):
        """Reaches the subject. Raises LoadError or CannotBuild. `options` are those of run/runner.py."""
        self.spec, self.options, self.dtypes = spec, options, tuple(options["dtypes"])
        timeout, memory = options["timeout"], options["memory"]
        if options["in_process"]:
            cache.write_files(False)  # the subject may have changed NumPy for all
            self.subject = load(spec, timeout / 3, memory)
        else:
            wrapped = sandbox.command(os.environ[SCRATCH], options["device"]) if options["sandbox"] else ()
            self.subject = reach(spec, timeout, memory, wrapped)
        self.kinds = offered(self.subject, self.dtypes, options["device"])
        self.requirements = {r.id: r for r in all_requirements()}
        self.compensation = Compensation(self.subject)
        gc.collect()
        gc.freeze()  # what is here now stays, and need not be looked through again and again

    @property
    def declined(self) -> list[str]:
        """The kinds of layers, in words, that the subject does not offer, of those that were asked for."""
        kinds = {f"{dtype} {'with' if bias else 'without'} a bias": (dtype, bias) in self.kinds
                 for dtype in self.dtypes for bias in (True, False)}
        return [words for words, offered in kinds.items() if not offered]

    @property
    def about(self) -> dict:
        name, version = (str(getattr(self.subject, which, "") or "") for which in ("name", "version"))
        return {"name": name or self.spec, "version": version, "declined": self.declined, "compensates": self.compensates}

    @property
    def compensates(self) -> dict[str, str]:
        """What the subject makes up for, in words, and by the id of the requirement about it."""
        found = getattr(self.subject, "compensates", {})
        return {id: found[name] for name, ids in ABOUT.items() if name in found and not self.options["strict"] for id in ids}

    @contextlib.contextmanager
    def as_it_stands(self, id: str) -> Iterator[Subject]:
        """The subject, with nothing made up for where the requirement is about that, or where the run is strict, and always for
        its conventions."""
        made_up_for = getattr(self.subject, "compensates", {})
        if not made_up_for or not (self.options["strict"] or id in self.compensates or id == CONVENTIONS):
            yield self.subject
        elif isinstance(self.subject, HostedSubject):
            self.subject.as_(RAW)
            try:
                yield self.subject
            finally:
                self.subject.as_(SUBJECT)
        else:
            yield self.subject.raw()

    def examine(self, id: str, seconds: float) -> Outcome:
        """The outcome of a requirement or a canary, within about so many seconds."""
        if isinstance(self.subject, ProcessSubject):
            self.subject.within(seconds)
        given = {"kinds": self.kinds, "examples": self.options["examples"], "seed": self.options["seed"],
                 "device": self.options["device"], "asked": self.dtypes, "seconds": seconds}
        try:
            if id.startswith(sweep.ONE):
                again = {"device": self.options["device"], "asked": self.dtypes}
                with self.as_it_stands(id) as subject:
                    return sweep.sweep(
                        id, subject, self.spec, self.kinds, self.options["seed"], levels=self.options["space"],
                        device=self.options["device"], seconds=seconds,
                        again=lambda broken: command(self.spec, broken, self.options["seed"], **again))
            if id in canaries.ALL:
                return canaries.examine(id, self.subject, self.spec, **given)
            with self.as_it_stands(id) as subject:
                own = self.compensation if subject is self.subject and id not in self.compensates else None
                return examine(self.requirements[id], subject, self.spec, compensation=own, **given)
        except SystemExit as error:  # the subject's process has ended where nobody asked for an answer
            return Outcome(id, "crash", str(error))

    def ask_about(self, what: str) -> dict | list:
        """What else can be found out about the subject: "conventions", or the "files" of code that it has loaded."""
        with contextlib.suppress(Exception, SystemExit):
            if what == CONVENTIONS:
                with self.as_it_stands(CONVENTIONS) as subject:
                    return conventions(subject)
            return self.subject.loaded() if isinstance(self.subject, HostedSubject) else []
        return {}

    def revive(self) -> None:
        """Starts the subject's process again if it has ended, so that only the requirement that ended it is lost."""
        if isinstance(self.subject, ProcessSubject):
            self.subject.within(math.inf)
            with contextlib.suppress(Exception, SystemExit):  # the next requirement will tell
                self.subject.revive()
