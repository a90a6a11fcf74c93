"""The sweep of the space: faults in a regime are found, made plain, and reported under the requirement that they break."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from thorough import THOROUGH
from torch import nn
from torch.nn import functional

from conformance.mutants.honest import Honest
from conformance.report.evidence import of_the_space
from conformance.requirements import all_requirements
from conformance.requirements.helpers.broken import breaks
from conformance.requirements.helpers.inputs import EXPONENT
from conformance.requirements.helpers.life import live, prepared
from conformance.run.examine import ALL_KINDS, examine, offered
from conformance.run.sweep import PARTS, Sweeper, given
from conformance.run.verdict import Report
from conformance.subject import Subject, Unsupported
from conformance.torch import TorchLayer
from conformance.truth import covering
from conformance.truth.space import BY_NAME, PLAIN

ROOT = Path(__file__).parents[3]
PARTED = 16 if THOROUGH else 64  # the tests live one case of the array in so many
KINDS = ("y", "dx", "dA", "dB", "W", "A", "B", "x", "dy", "y with dropout", "one mask", "dropout in inference", "state",
         "format of y", "format of dx")


class Of(Subject):
    """A subject with these layers."""

    name, version = "of", "1"

    def __init__(self, layer):
        self.layer = layer

    def build(self, config, weight, bias):
        return self.layer(config, weight, bias)


class WrongTail(Honest):
    """In training mode with more than 64 rows, the last row gets no LoRA part."""

    def lora(self, x):
        part = super().lora(x)
        part[-1:] *= not (self.training and len(x) > 64)
        return part


class AlwaysWrong(Honest):
    """y has twice the LoRA part."""

    def lora(self, x):
        return 2 * super().lora(x)


class WrongWhenLoaded(Honest):
    """A negative scale is positive after a load in float16."""

    loaded = False

    def receive(self, contents):
        super().receive(contents)
        self.loaded = True

    def scaled(self, array):
        wrong = self.loaded and self.config.alpha < 0 and self.config.dtype == "float16"
        return super().scaled(-array if wrong else array)


class NoMerging(Honest):
    """Neither merges nor loads."""

    def merge(self):
        raise Unsupported("merge()")

    def load(self, directory):
        raise Unsupported("load()")


class WrongAndSeldomMerged(Honest):
    """Declines to merge with more than 64 features, and merges wrongly with a negative scale."""

    def merge(self):
        if self.config.in_features > 64:
            raise Unsupported("merge()")
        super().merge()

    def delta_weight(self):
        return abs(super().delta_weight()) if self.config.alpha < 0 else super().delta_weight()


class Standard(Honest):
    """Is built with a bias and without rank-stabilised scaling only, and in two formats."""

    def __init__(self, config, weight, bias):
        if config.scaling != "standard" or bias is None or config.dtype not in ("float32", "float16"):
            raise Unsupported("that")
        super().__init__(config, weight, bias)


def swept(layer, part=0, parts=4, kinds=ALL_KINDS, **options):
    with np.errstate(all="ignore"):
        return Sweeper(Of(layer), kinds, 0).part(part, parts, **options)


def test_an_honest_layer_is_not_failed():
    found = swept(Honest, parts=PARTED)
    assert not found.failures and not found.left
    assert all(words.startswith("handled ") or "as_module" in words for words in found.declined), found.declined
    assert found.lived == len(covering.array(0)[::PARTED])


class InTorch(Of):
    """A subject with these modules, without dropout and with standard scaling."""

    def build(self, config, weight, bias):
        if config.dropout or config.scaling != "standard" or config.rank < 1:
            raise Unsupported("dropout, rslora")
        module = self.layer(config.in_features, config.out_features, config.rank, config.alpha, bias is not None,
                            getattr(torch, config.dtype))
        layer = TorchLayer(module, W="weight", b=None if bias is None else "bias", A="A", B="B")
        layer.set_base(weight, bias)
        return layer


KINDS_IN_TORCH = frozenset(kind for kind in ALL_KINDS if kind[0] in ("float32", "float64"))


def one(wrong, levels):
    with np.errstate(all="ignore"):
        return Sweeper(InTorch(wrong), KINDS_IN_TORCH, 0).one(levels, 0)


class Handled(nn.Module):
    """A right layer. Those below are wrong after two things together."""

    def __init__(self, in_features, out_features, rank, alpha, bias=True, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, dtype=dtype), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype), requires_grad=False) if bias else None
        self.A = nn.Parameter(torch.randn(in_features, rank, dtype=dtype))
        self.B = nn.Parameter(torch.zeros(rank, out_features, dtype=dtype))
        self.scale, self.kept = alpha / rank, None

    def forward(self, x):
        y = functional.linear(x, self.weight, self.bias)
        return y if self.merged() else y + x @ self.A @ self.B * self.scale

    def merged(self):
        return self.kept is not None

    def merge(self):
        self.kept = self.weight.detach().clone()
        self.weight.data = self.kept + (self.A @ self.B * self.scale).detach().t()

    def unmerge(self):
        self.weight.data, self.kept = self.kept, None


class CopiedAndMerged(Handled):
    """A copy does not know that it is merged."""

    def __getstate__(self):
        return vars(self) | {"kept": None}


class ConvertedAndUnmerged(Handled):
    """The weight that a merge keeps is not converted, and is taken anew where it does not fit: from the merged one."""

    def unmerge(self):
        self.weight.data = self.kept if self.seen == self.conversions else self.weight.data
        self.kept = None

    seen = conversions = 0

    def merge(self):
        super().merge()
        self.seen = self.conversions

    def _apply(self, *args):
        self.conversions += 1
        return super()._apply(*args)


class ThreadedAndMerged(Handled):
    """Each thread has its own idea of what is merged."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.by_thread = threading.local()

    def merged(self):
        return super().merged() and getattr(self.by_thread, "merged", False)

    def merge(self):
        super().merge()
        self.by_thread.merged = True

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "by_thread"}

    def __setstate__(self, state):
        super().__setstate__(state)
        self.by_thread = threading.local()
        self.by_thread.merged = self.kept is not None


class SwappedAndLoaded(Handled):
    """After a load the factors are read from the memory in which they lay then."""

    views = None

    def load_state_dict(self, *args, **options):
        found = super().load_state_dict(*args, **options)
        self.views = self.A.data, self.B.data
        return found

    def merge(self):
        if self.views is not None:
            with torch.no_grad():
                self.A.copy_(self.views[0])
        super().merge()


@pytest.mark.parametrize(("wrong", "id", "needed"), [
    (CopiedAndMerged, "TORCH-01", {"handled": "copied", "merged": True}),
    (ConvertedAndUnmerged, "TORCH-19", {"handled": "converted", "history": "unmerged"}),
    (ThreadedAndMerged, "TORCH-59", {"handled": "threaded", "merged": True}),
    (SwappedAndLoaded, "TORCH-16", {"handled": "swapped", "history": "loaded", "merged": True}),
])
def test_what_torch_does_with_the_module_is_tried_in_every_state(wrong, id, needed):
    """Each is right after any one thing alone. The array has what it needs together, and the sweep finds that."""
    assert not one(Handled, PLAIN | needed).failures
    for name, level in needed.items():
        assert not one(wrong, PLAIN | {name: level}).failures
    assert list(one(wrong, PLAIN | needed).failures) == [id]
    known = {"history": "set", "merged": False} | needed
    rows = [row for row in covering.array(0, False) if all(row[name] == level for name, level in known.items())]
    sweeper = Sweeper(InTorch(wrong), KINDS_IN_TORCH, 0, exact=False)
    with np.errstate(all="ignore"):
        broken, levels = sweeper.outcome(rows[0], 0, set())
        failure = sweeper.made_plain(broken, levels, 0)
    assert failure.id == id and {name: level for name, level in failure.levels.items() if level != PLAIN[name]} == needed


def test_cases_without_time_are_told_apart_from_those_left_out_after_failures():
    with np.errstate(all="ignore"):
        late = Sweeper(Of(Honest), ALL_KINDS, 0, until=0).part(0)
        explained = Sweeper(Of(AlwaysWrong), ALL_KINDS, 0).part(0)
    assert late.left == late.late == len(covering.array(0)[::16]) and not late.lived
    assert explained.left and not explained.late
    whole = {"cases": 10, "lived": 10, "left": 0, "late": 0, "exact": True, "parts": 1, "swept": 1}
    assert of_the_space(whole).startswith("the space: 10 of 10 cases; they hold every ")
    assert of_the_space(whole | {"lived": 3, "left": 7, "late": 5}) == (
        "the space: 3 of 10 cases; there was no time for 5, a longer --timeout gives more; 2 were left out after failures")


def test_a_fault_in_a_regime_is_found_and_made_plain():
    found = swept(WrongTail, parts=PARTED)
    failure = next(f for f in found.failures.values() if f.broken.kind == "y")
    assert {name: level for name, level in failure.levels.items() if level != PLAIN[name]} == {"rows": 65}
    assert failure.passes == {"rows": 64}
    assert failure.id == "FWD-09"
    assert failure.needed == "rows 65 (not 64)"


def test_a_fault_of_three_levels_is_found_and_made_plain():
    """The array has rows with these levels. One of them shows the fault."""
    needed = {"format": "float16", "scale": "-1/4", "history": "loaded"}
    rows = [(at, levels) for at, levels in enumerate(covering.array(0)) if needed.items() <= levels.items()]
    sweeper = Sweeper(Of(WrongWhenLoaded), ALL_KINDS, 0)
    with np.errstate(all="ignore"):
        tried = ((at, *sweeper.outcome(levels, at, set())) for at, levels in rows)
        at, broken, levels = next((at, broken, levels) for at, broken, levels in tried if broken and broken.kind == "y")
        failure = sweeper.made_plain(broken, levels, at)
    assert (failure.needed, failure.id) == ("format float16, scale -1/4, history loaded", "STATE-02")


def test_what_is_not_offered_is_replaced_and_told():
    found = swept(NoMerging, parts=PARTED)
    assert not found.failures
    assert {"merged yes", "history loaded", "history unmerged", "history cycled"} <= set(found.declined)
    assert found.lived > 0.9 * len(covering.array(0)[::PARTED])


def test_what_is_declined_in_some_cases_is_asked_for_in_the_others():
    found = swept(WrongAndSeldomMerged, parts=16)
    assert "merge()" in found.declined and "merged yes" not in found.declined
    assert "MERGE-03" in found.failures  # y is looked at before W


def test_a_layer_that_is_built_in_some_ways_only_is_judged_in_those():
    kinds = frozenset({("float32", True), ("float16", True)})
    found = swept(Standard, parts=PARTED, kinds=kinds)
    assert not found.failures and "scaling rslora" in found.declined
    assert found.lived > 0.9 * len(covering.array(0)[::PARTED])


def test_a_fixed_scale_is_the_scale_of_every_case():
    class Fixed(Honest):
        def __init__(self, config, weight, bias):
            assert config.alpha == 0.5 * config.rank
            super().__init__(config, weight, bias)

    subject = Of(Fixed)
    subject.scale = 0.5
    with np.errstate(all="ignore"):
        found = Sweeper(subject, ALL_KINDS, 0).part(3)
    assert not found.failures and found.lived


def test_a_subject_whose_in_and_out_are_equal_gets_square_cases():
    class Square(Honest):
        def __init__(self, config, weight, bias):
            if config.in_features != config.out_features:
                raise Unsupported("in other than out")
            super().__init__(config, weight, bias)

    subject = Of(Square)
    subject.square = True
    with np.errstate(all="ignore"):
        sweeper = Sweeper(subject, ALL_KINDS, 0)
        found = sweeper.part(0, PARTED)
        assert not found.failures and found.lived == len(covering.array(0)[::PARTED])
        assert "in other than out" in found.declined and not any(words.startswith("in 1") for words in found.declined)
        assert all(sweeper.offered(levels)["in"] == sweeper.offered(levels)["out"] for levels in covering.array(0)[::40])
        wanted = [r for r in all_requirements() if r.id in ("FWD-01", "FWD-07", "GRAD-02", "MERGE-01", "INIT-02", "STATE-01")]
        for requirement in wanted:
            outcome = examine(requirement, subject, "square", examples=8, seed=0)
            assert outcome.status == "pass" and outcome.examples >= 8 * requirement.examples, outcome
        subject.square = False
        assert examine(wanted[0], subject, "square", examples=8, seed=0).status == "unsupported"


def test_a_subject_of_one_rank_gets_cases_of_that_rank():
    class OfRank8(Honest):
        def __init__(self, config, weight, bias):
            if config.rank != 8:
                raise Unsupported(f"rank {config.rank}")
            super().__init__(config, weight, bias)

    subject = Of(OfRank8)
    subject.rank = 8
    with np.errstate(all="ignore"):
        found = Sweeper(subject, ALL_KINDS, 0).part(0, PARTED)
        assert not found.failures and found.lived > 0.9 * len(covering.array(0)[::PARTED])
        assert "a rank other than 8" in found.declined and not any(words.startswith("rank ") for words in found.declined)
        ids = ("FWD-01", "FWD-06", "FWD-18", "GRAD-02", "MERGE-01", "INIT-04", "STATE-01", "DROP-01", "DROP-03", "DROP-07")
        wanted = [r for r in all_requirements() if r.id in ids]
        status = {r.id: examine(r, subject, "rank", examples=8, seed=0).status for r in wanted}
    assert status == dict.fromkeys(status, "pass") | dict.fromkeys(("FWD-06", "FWD-18", "DROP-03", "DROP-07"), "unsupported")
    assert offered(subject, ("float32",)) == {("float32", True), ("float32", False)}


@pytest.mark.parametrize("fixed", [{"rank": 8}, {"square": True}, {"alpha": 4.0}])
def test_what_a_subject_has_in_the_place_of_a_plain_level_is_not_needed(fixed):
    """A layer that is always wrong breaks the formula, and not what is said of its rank, its sizes or its scale."""
    subject = Of(AlwaysWrong)
    vars(subject).update(fixed)
    with np.errstate(all="ignore"):
        found = Sweeper(subject, ALL_KINDS, 0).part(0, PARTED)
    (failure,) = (failure for failure in found.failures.values() if failure.broken.kind == "y")
    assert (failure.id, failure.needed, failure.passes) == ("FWD-01", "", {})


def test_a_failure_of_a_costly_requirement_is_neither_made_smaller_nor_explained():
    """The cases of FWD-20 have ten thousand rows and more. A search would take half a minute."""
    class Counted(AlwaysWrong):
        built = 0

        def __init__(self, config, weight, bias):
            super().__init__(config, weight, bias)
            Counted.built += 1

    (costly,) = [r for r in all_requirements() if r.costly]
    outcome = examine(costly, Of(Counted), "of", examples=24, seed=0)
    assert (outcome.status, outcome.diagnosis) == ("fail", None) and Counted.built < 4


def test_a_sweep_without_time_says_what_it_left():
    with np.errstate(all="ignore"):
        found = Sweeper(Of(Honest), ALL_KINDS, 0, until=0.0).part(0)
    assert not found.lived and found.left == len(covering.array(0)[:: len(PARTS)])


def test_every_kind_of_answer_breaks_a_must_whatever_the_levels():
    musts = {r.id for r in all_requirements() if r.level == "MUST"}
    for levels in covering.array(0)[::40]:
        assert {breaks(kind, levels) for kind in KINDS} <= musts


def test_what_a_history_spoils_is_not_laid_to_the_mask():
    levels = PLAIN | {"mode": "dropout", "rate": 0.5}
    assert breaks("one mask", levels) == "DROP-04" and breaks("y with dropout", levels) == "DROP-03"
    for history, id in (("loaded", "STATE-10"), ("cycled", "MERGE-10"), ("set again", "STATE-09")):
        assert {breaks(kind, levels | {"history": history}) for kind in ("one mask", "y with dropout")} == {id}


def test_the_numbers_stay_in_the_range_of_their_format():
    """The largest numbers of a case, times those by which x is made huge or tiny, are finite and normal."""
    for number, levels in enumerate(covering.array(0)[::50]):
        case = prepared(levels, number)
        info = np.finfo(np.float16) if case.config.dtype == "float16" else np.finfo(np.float32)
        largest = np.abs(case.x.astype(np.float64)).max(initial=0) * 2.0 ** EXPONENT[case.config.dtype]
        assert largest < float(info.max) or case.config.dtype == "float64"


def test_levels_can_be_given():
    levels, number = given(["rows=65", "mode=inference", "merged=yes", "x lies=strided", "number=7"])
    assert number == 7 and levels == PLAIN | {"rows": 65, "mode": "inference", "merged": True, "x lies": "strided"}
    for wrong, words in (
        (["size=3"], "no factor 'size'"), (["rows=4"], "rows has no level '4'"),
        (["content=many bits", "scale=9/4"], "do not go together"),
    ):
        with pytest.raises(ValueError, match=words):
            given(wrong)


def test_plain_sizes_are_levels_that_can_be_given():
    assert given([f"{name}={level}" for name, level in PLAIN.items() if BY_NAME[name].is_size])[0] == PLAIN


def test_a_failure_of_the_space_does_not_hide_one_of_the_requirement():
    requirement = next(r for r in all_requirements() if r.id == "FWD-09")
    own = {status: replace(_outcome(status)) for status in ("pass", "fail")}
    for status, outcome in own.items():
        report = Report("s", planned=(requirement,), outcomes={"FWD-09": outcome}, parts=("SPACE-01",))
        report.space["SPACE-01"] = replace(_outcome("pass"), swept={"broken": {"FWD-09": _outcome("error").as_dict()}})
        report.add_what_the_space_breaks()
        assert report.outcomes["FWD-09"].status == ("error" if status == "pass" else "fail")


def test_a_part_that_broke_off_is_told_and_voids_the_verdict():
    requirement = next(r for r in all_requirements() if r.id == "FWD-09")
    report = Report("s", planned=(requirement,), outcomes={"FWD-09": _outcome("pass")}, parts=("SPACE-01",))
    swept = {"cases": 1, "lived": 1, "left": 0, "late": 0, "declined": {}, "broken": {}}
    report.space["SPACE-01"] = replace(_outcome("pass"), swept=swept)
    assert report.verdict == "conformant" and report.swept["swept"] == 1
    report.space["SPACE-01"] = _outcome("crash")
    assert report.verdict == "void" and report.broken_off == ["SPACE-01"] and report.swept["swept"] == 0


def _outcome(status):
    from conformance.run.examine import Outcome

    return Outcome("FWD-09", status)


MODULE = '''
import torch
from torch import nn

class Tail(nn.Module):
    """With more than 128 rows, the last row gets no LoRA part."""

    def __init__(self, in_features, out_features, r=4, lora_alpha=8, dtype=None):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, dtype=dtype).requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(r, in_features, dtype=dtype) / in_features**0.5)
        self.lora_B = nn.Parameter(torch.zeros(out_features, r, dtype=dtype))
        self.scale = lora_alpha / r

    def forward(self, x):
        part = self.scale * (x @ self.lora_A.T @ self.lora_B.T)
        rows = part.reshape(-1, part.shape[-1])
        if len(rows) > 128:
            part = torch.cat([rows[:-1], 0 * rows[-1:]]).reshape(part.shape)
        return self.linear(x) + part
'''


def test_a_run_reports_it_and_a_command_shows_it_again(tmp_path):
    """The report names the regime, the JSON says what the sweep rests on, and the command of the report fails on its own."""
    (tmp_path / "tail.py").write_text(MODULE)
    spec, file = f"{tmp_path / 'tail.py'}:Tail", tmp_path / "r.json"
    command = [sys.executable, "-m", "conformance", "run", spec, "--only", "FWD-09", "FWD-03", "--json", str(file)]
    command += ["--seed", "1", "--space", "--timeout", "5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout + done.stderr
    said = " ".join(done.stdout.split())
    assert "only with rows 255 (not 129)" in said or "only with rows 129 (not 128)" in said, done.stdout
    report = json.loads(file.read_text())["reports"][0]
    assert report["space"]["swept"] == report["space"]["parts"] == len(PARTS)
    assert "merged yes" in report["space"]["declined"]
    row = next(row for row in report["requirements"] if row["id"] == "FWD-09")
    again = row["reproduce"].splitlines()[-1].removeprefix("# or: ")
    shown = subprocess.run(f"{sys.executable} -m {again}", cwd=ROOT, capture_output=True, text=True, timeout=300, shell=True)
    assert shown.returncode == 1 and "FWD-09" in shown.stdout, again + shown.stdout + shown.stderr


def test_live_refuses_nothing_that_is_right():
    """The plain case, in every format, of a layer that is honest."""
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        levels = PLAIN | {"format": dtype}
        live(Of(Honest), levels, prepared(levels, 0))
