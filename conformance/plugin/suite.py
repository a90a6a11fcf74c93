"""The tests that the plugin adds: one for each requirement and each part of the space, and what the session says of them.

With pytest-xdist each process has a judge of its own, and hands what it found to the process that started it.
"""

import datetime
import os
import secrets
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conformance.plugin import told, xfails
from conformance.plugin.judge import Judge, spec_of, together
from conformance.report import terminal
from conformance.requirements import Requirement, all_requirements
from conformance.run import plan
from conformance.run.causes import Cause
from conformance.run.examine import Outcome
from conformance.run.verdict import FAILING, Report
from conformance.run.worker import Unloadable

ROOT = "lora"  # the first part of the id of each test: lora::FWD-01
HANDED, SEED = "lora_part", "lora_seed"  # between the processes of pytest-xdist


class Requirements(pytest.Collector):
    """The collector of the tests."""

    tests: list[tuple[str, tuple[str, ...], Callable]]  # id, markers, and function of each

    def collect(self) -> Iterator[pytest.Item]:
        for id, markers, function in self.tests:
            test = Test.from_parent(self, name=id, callobj=function)
            for marker in markers:
                test.add_marker(marker)
            test.add_marker(pytest.mark.lora_group(id.split("-")[0]))
            yield test


class Test(pytest.Function):
    """One requirement, or one part of the space."""

    __test__ = False

    def reportinfo(self):
        return self.config.rootpath / ROOT, None, self.name


class Suite:
    """The plugin while a subject is checked."""

    def __init__(self, config: pytest.Config, named: str):
        """`named` is the subject. "" if a fixture says which."""
        self.config, self.named = config, named
        option: Any = config.getoption
        self.worker = getattr(config, "workerinput", None)  # of pytest-xdist; None in the process that makes the report
        if self.worker is None:
            told.check_places(config)
        seed = self.worker[SEED] if self.worker else option("--lora-seed")
        self.options = plan.Options(
            dtypes=tuple(option("--lora-dtype")) or plan.DTYPES, device=option("--lora-device"), jobs=1,
            seed=secrets.randbelow(1_000_000) if seed is None else seed, timeout=option("--lora-timeout"))
        if unknown := [dtype for dtype in self.options.dtypes if dtype not in plan.DTYPES]:
            raise pytest.UsageError(f"--lora-dtype {unknown[0]}: expected one of {', '.join(plan.DTYPES)}")
        self.known, self.parts = {r.id: r for r in all_requirements()}, plan.parts(self.options)
        self.file, self.xfails = self._xfails()
        self.selected: list[str] = []  # ids of the tests that are run
        self.judge: Judge | None = None
        self.found: list[str] = []  # by each process that has asked a judge
        self.report: Report | None = None
        self.problems: list[str] = []  # why the session fails, beside the tests that do

    def _xfails(self) -> tuple[Path, dict[str, xfails.Xfail]]:
        named = self.config.getoption("--lora-xfails") or self.config.getini("lora_xfails")
        path = Path(named or self.config.rootpath / xfails.NAME)
        if not named and not path.is_file():
            return path, {}
        try:
            return path, xfails.read(path, self.known, datetime.date.today())
        except (OSError, ValueError) as problem:
            raise pytest.UsageError(str(problem)) from None

    # --- the tests ---------------------------------------------------------------------------------------------------------

    def pytest_report_header(self) -> str:
        expected = f", {len(self.xfails)} expected to fail by {self.file.name}" if self.xfails else ""
        return f"lora: {self.named or 'the subject of a fixture'}, seed {self.options.seed}{expected}"

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        """Adds the tests, before others choose among all tests by name, marker or place."""
        suite = Requirements.from_parent(session, name=ROOT, nodeid=ROOT, path=self.config.rootpath / ROOT)
        suite.tests = [(r.id, ("lora", r.level.lower()), self._test_of(r)) for r in self.known.values()]
        suite.tests += [(id, ("lora",), self._test_of_part(id)) for id in self.parts]
        collected = session.config.hook.pytest_make_collect_report(collector=suite)
        session.config.hook.pytest_collectreport(report=collected)
        items += collected.result

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.selected = [item.name for item in session.items if isinstance(item, Test)]

    def begin(self, subject: object) -> Judge:
        """Loads the subject for the tests of this process."""
        first = self.worker is None or self.worker["workerid"] == "gw0"
        self.judge = Judge(spec_of(subject), self.options, self.planned(), first)
        return self.judge

    def _test_of(self, requirement: Requirement) -> Callable:
        def test(lora_judge: Judge) -> None:
            outcome = self._asked(lora_judge, requirement.id)
            self._tell(lora_judge.report, requirement, outcome, self.xfails.get(requirement.id))

        test.__doc__ = requirement.sentence
        return test

    def _test_of_part(self, id: str) -> Callable:
        def test(lora_judge: Judge) -> None:
            outcome = self._asked(lora_judge, id)
            broken = {name: Outcome(**found) for name, found in outcome.swept.get("broken", {}).items()}
            unexpected = {name: found for name, found in broken.items() if xfails.SPACE + name not in self.xfails}
            if not outcome.swept:
                pytest.fail(f"{outcome.status}: {outcome.message}", pytrace=False)
            musts = [name for name in unexpected if self.known[name].level == "MUST"]
            text = "\n\n".join(self._text(lora_judge.report, self.known[name], found) for name, found in unexpected.items())
            if musts:
                pytest.fail(f"the sweep of the space breaks {' '.join(musts)}\n\n{text}", pytrace=False)
            if broken:
                pytest.xfail(f"SHOULD, or expected by {self.file.name}: {' '.join(broken)}")

        test.__doc__ = "A part of the space is swept: see SPEC.md."
        return test

    def _asked(self, judge: Judge, id: str) -> Outcome:
        if judge.unloadable:
            if judge.said:
                pytest.skip("not asked: there is no judge any more")
            judge.said = True
            pytest.fail(judge.unloadable[0], pytrace=False)
        try:
            return judge.examine(id)
        except Unloadable as error:
            judge.said = True
            pytest.fail(str(error), pytrace=False)

    def _tell(self, report: Report, requirement: Requirement, outcome: Outcome, expected: xfails.Xfail | None) -> None:
        """Makes the outcome that of the test. A SHOULD or MAY that fails makes no subject nonconformant, and is an xfail."""
        if outcome.status not in FAILING:
            if expected is not None:
                pytest.fail(f"{self.file.name}:{expected.line}: {requirement.id} is expected to fail, and its status is "
                            f"{outcome.status}: remove the line", pytrace=False)
            if outcome.status != "pass":
                pytest.skip(f"{outcome.status}: {outcome.message}".removeprefix("unsupported: "))
            return
        text = self._text(report, requirement, outcome)
        if expected is not None:
            pytest.xfail(f"until {expected.until}: {expected.reason}")
        if requirement.level != "MUST":
            pytest.xfail(f"{requirement.level}: {outcome.status}: {outcome.message}")
        pytest.fail(text, pytrace=False)

    def _text(self, report: Report, requirement: Requirement, outcome: Outcome) -> str:
        """The failure as `conformance run` tells it, below one line that is the message of the test."""
        alone = replace(report, outcomes={requirement.id: outcome})
        whole = terminal.failure(alone, Cause(requirement, (requirement.id,)))
        return f"{outcome.status}: {outcome.message.splitlines()[0]}\n\n{whole}"

    # --- the session -------------------------------------------------------------------------------------------------------

    def planned(self) -> Report:
        """A report without outcomes, of all that was selected."""
        chosen = set(self.selected)
        return Report("", planned=tuple(r for r in self.known.values() if r.id in chosen),
                      parts=tuple(part for part in self.parts if part in chosen))

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node) -> None:
        node.workerinput[SEED] = self.options.seed

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node, ids: list[str]) -> None:
        self.selected = [id.partition("::")[2] for id in ids if id.startswith(f"{ROOT}::")]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node, error: object) -> None:
        if part := getattr(node, "workeroutput", {}).get(HANDED):
            self.found.append(part)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Makes the report. A verdict that says nothing fails a session in which every test passes or is skipped."""
        part = [self.judge.part()] if self.judge else []
        if self.worker is not None:
            self.config.workeroutput[HANDED] = "".join(part)  # pyright: ignore[reportAttributeAccessIssue] of pytest-xdist
            return
        self.found += part
        if not self.selected or self.config.getoption("collectonly"):
            return
        self.report = together(self.found, self.planned())
        self.report.spec = self.report.spec or self.named
        self.problems = told.problems(self.report, self.xfails, self.file)
        whole = self.report.whole and self.report.parts == self.parts
        options = self.options if whole else replace(self.options, only=tuple(r.id for r in self.report.planned))
        self.problems += told.write(self.config, self.report, options, self.problems, self.xfails)
        if self.problems and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter) -> None:
        if self.report is None:
            return
        terminalreporter.section("lora")
        terminalreporter.write_line(terminal.verdict(self.report))
        for problem in self.problems:
            terminalreporter.write_line(problem, red=True)
        terminalreporter.write_line(f"a part of the cases was drawn anew; --lora-seed {self.options.seed} draws the same again")
        if os.environ.get("GITHUB_ACTIONS") == "true":
            for line in told.annotations(self.report, self.xfails):
                terminalreporter.write_line(line)
