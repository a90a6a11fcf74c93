"""Environments for other packages are made once, and as a whole or not at all. Subjects are served from them."""

import re
import sys

import pytest

from conformance.drivers import environments
from conformance.drivers.environments import BOOT, ENVIRONMENTS, PACKAGE, SUBJECT, CannotInstall, Environment
from conformance.drivers.process import ProcessSubject
from conformance.run import plan, runner
from conformance.run.loading import LoadError, built_in, environment, load, missing_here


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CONFORMANCE_CACHE", str(tmp_path))
    return tmp_path


def test_every_subject_can_be_had():
    for name in built_in():
        known = environment(name)
        assert known is None or known in ENVIRONMENTS, name
        assert known is not None or not set(missing_here(name)) - {"torch"}, f"{name} cannot be installed"


def test_versions_are_pinned():
    """The versions of the libraries under test are pinned. Those of their dependencies need not be."""
    for name, it in ENVIRONMENTS.items():
        judged = " ".join(step for step in it.steps)
        assert re.search(r"==\d", judged), name


def test_an_environment_is_made_once(cache, monkeypatch):
    monkeypatch.setitem(ENVIRONMENTS, "empty", Environment("nothing", ()))
    told = []
    assert not environments.made("empty")
    environments.make("empty", lambda *step: told.append(step))
    assert environments.made("empty") and told
    told.clear()
    environments.make("empty", lambda *step: told.append(step))
    assert not told
    monkeypatch.setitem(ENVIRONMENTS, "empty", Environment("nothing", (), ("numpy<1",)))
    assert not environments.made("empty")  # by another recipe


def test_what_cannot_be_installed_is_told_and_not_taken_for_whole(cache, monkeypatch):
    monkeypatch.setitem(ENVIRONMENTS, "bad", Environment("nothing", ("--no-index no-such-package-anywhere",)))
    with pytest.raises(CannotInstall, match="ERROR: No matching distribution found for no-such-package-anywhere"):
        environments.make("bad", lambda *step: None)
    assert not environments.made("bad")


def test_not_available_says_what_would_change_that(cache):
    name = next(name for name in built_in() if missing_here(name))  # no interpreter has them all
    with pytest.raises(LoadError, match=f"{name} is not available: .* not installed .conformance subjects --install {name}."):
        load(name)
    report = runner.run([name], plan.Options(only=("FWD-01",)))[0]
    assert report.exit_status == 4 and "not available" in report.unloadable


def test_a_subject_is_served_without_our_packages():
    """The interpreter that serves it sees neither this folder nor its tests."""
    subject = ProcessSubject([sys.executable, "-I", "-c", BOOT, str(PACKAGE), SUBJECT, "article"])
    assert subject.name == "article"
