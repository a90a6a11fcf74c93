"""The pytest plugin: with `pytest --lora-subject SPEC`, each requirement is a test of that LoRA implementation.

Every pytest loads this file wherever the package is installed. It imports the rest only if a subject is named: by the option,
by `lora_subject` in the configuration of pytest, or by a fixture `lora_subject` in a conftest.py.
"""

from collections.abc import Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from conformance.plugin.judge import Judge

FIXTURE, SUITE = "lora_subject", "lora-suite"
MARKERS = (
    "lora: a requirement of conformance: `-m lora` runs these alone, `-m 'not lora'` all others",
    "must: a requirement of this level; `should` and `may` are its like",
    "should: see must",
    "may: see must",
    "lora_group(name): the group of a requirement; `-k SCALE` selects it, too",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    add = parser.getgroup("lora", "conformance of a LoRA implementation").addoption
    add("--lora-subject", metavar="SPEC", help="check this implementation: path/to/file.py:CLASS, package.module:CLASS, a "
        "built-in name such as peft, or 'cmd:PROGRAM ARGUMENTS'")
    add("--lora-xfails", metavar="FILE", help="the requirements that are expected to fail, each with a date and a reason "
        "(default: lora-xfails.txt beside the configuration of pytest, if it is there)")
    add("--lora-dtype", metavar="D", action="append", default=[], help="only this number format; may be given several times")
    add("--lora-device", choices=("cpu", "cuda"), default="cpu", help="where layers are built (default: cpu)")
    add("--lora-seed", metavar="N", type=int, help="seed of the cases that are drawn anew (default: another in each run)")
    add("--lora-timeout", metavar="S", type=float, default=30.0, help="seconds that one requirement may take (default: 30)")
    add("--lora-json", metavar="FILE", help="write the report that `conformance run --json` writes")
    add("--lora-summary", metavar="FILE", help="add a summary in Markdown to FILE (default: $GITHUB_STEP_SUMMARY, if set)")
    parser.addini(FIXTURE, "the implementation that is checked if no --lora-subject is given")
    parser.addini("lora_xfails", "see --lora-xfails")


def pytest_configure(config: pytest.Config) -> None:
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    named = config.getoption("--lora-subject") or config.getini(FIXTURE)
    conftests = [vars(plugin) for plugin in config.pluginmanager.get_plugins()
                 if str(getattr(plugin, "__file__", None)).endswith("conftest.py")]
    fixture = next((names[FIXTURE] for names in conftests if FIXTURE in names), None)
    if not named and fixture is None:
        return

    from conformance.plugin.suite import Suite

    @pytest.fixture(scope="session")
    def lora_subject() -> str:
        return named

    # A fixture of a conftest.py is seen in its folder alone, and the tests of the plugin are in no folder.
    holder = ModuleType(FIXTURE)
    vars(holder)[FIXTURE] = lora_subject if named else fixture
    config.pluginmanager.register(holder)
    config.pluginmanager.register(Suite(config, named), SUITE)


@pytest.fixture(scope="session")
def lora_judge(pytestconfig: pytest.Config, lora_subject: object) -> Iterator["Judge"]:
    """The judge of the subject, in processes of its own, for all tests of this process."""
    suite: Any = pytestconfig.pluginmanager.get_plugin(SUITE)
    judge = suite.begin(lora_subject)
    yield judge
    judge.finish()
