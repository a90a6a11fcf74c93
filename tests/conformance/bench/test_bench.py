"""`conformance bench`: its measurements are right where the true values are known, and every step runs at small sizes."""

import argparse
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from thorough import THOROUGH
from torch import nn

from conformance.bench import Options, Workload, measure, run
from conformance.bench.forms import FORMS, LoraTorchPlain, Torchtune, Unsloth
from conformance.bench.measure import Passes, Trial
from conformance.bench.run import FROZEN, Cost, _take_turns
from conformance.bench.workloads import WORKLOADS, sweep
from conformance.commands import bench as command
from conformance.report import bench as report
from conformance.requirements import all_requirements
from conformance.torch import TorchLayer
from lora_torch import LinearLoRA

ROOT = Path(__file__).parents[3]
FORMS_OF = "conformance.bench.forms"
RUN = sys.modules["conformance.bench.run"]  # the package gives this name to a function of it


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def trial(module: nn.Module, n: int, n_in: int, n_out: int) -> Trial:
    return Trial(module, torch.randn(n, n_in, requires_grad=True), torch.randn(n, n_out))


def test_lora_torch_keeps_h_alone_and_allocates_nothing_of_the_size_of_y():
    n, n_in, n_out, rank = 512, 1024, 1024, 16
    ours = trial(LinearLoRA(n_in, n_out, rank, 8), n, n_in, n_out)
    assert measure.saved(ours) == 4 * n * rank
    assert measure.peaks(ours).forward <= 2 * 4 * n * rank + (1 << 20)
    assert measure.peaks(ours).backward <= 2 * 4 * n * rank + (1 << 20)


def test_memory_of_what_is_known():
    """The plain path holds y, h B and their sum at once; a layer that computes h anew keeps nothing."""
    n, d, rank = 512, 256, 4
    y = 4 * n * d
    assert measure.peaks(trial(LoraTorchPlain(d, d, rank, 8), n, d, d)).forward >= 2 * y
    frozen = nn.Linear(d, d).requires_grad_(False)
    assert measure.peaks(trial(frozen, n, d, d)) == (0, 0) and measure.saved(trial(frozen, n, d, d)) == 0
    assert measure.saved(trial(Unsloth(d, d, rank, 8), n, d, d)) == 0
    dropping = Torchtune(d, d, rank, 8, dropout=0.5)
    assert measure.saved(trial(dropping, n, d, d)) >= 4 * n * d  # the input of lora_a, and a mask


def test_errors_are_zero_on_integers_and_tell_a_wrong_scale():
    n, n_in, n_out, rank = 4, 5, 3, 2
    for alpha, wrong in ((4.0, False), (8.0, True)):
        module = LinearLoRA(n_in, n_out, rank, alpha)
        layer = TorchLayer(module, W="pre_trained_weight.weight", b="pre_trained_weight.bias", A="lora_A", B="lora_B")
        with torch.no_grad():
            for i, parameter in enumerate(module.parameters()):
                parameter.copy_(torch.arange(parameter.numel()).reshape(parameter.shape) % (i + 2) - 1)
        x, dy = torch.arange(n * n_in) % 3.0 - 1, torch.arange(n * n_out) % 4.0 - 2
        found = measure.errors(Trial(module, x.reshape(n, n_in).requires_grad_(), dy.reshape(n, n_out)), layer, scale=2.0)
        assert set(found) == {"y", "dx", "dA", "dB"} and all((error > 0) == wrong for error in found.values()), found


def test_whoever_gives_other_bits_is_told_apart():
    class Noisy(nn.Linear):
        def forward(self, input):
            return super().forward(input) + torch.rand(())

    assert measure.repeats(trial(LinearLoRA(6, 5, 2, 4), 3, 6, 5))
    assert not measure.repeats(trial(Noisy(6, 5), 3, 6, 5))


def test_subjects_take_turns_and_ratios_are_within_a_turn(monkeypatch):
    seen, clock = [], iter(range(100, 299))

    def timed(trial, calls, flush=False):
        seen.append(trial.name)
        if trial.name == "bad":
            raise RuntimeError("out of memory")
        slow = 2.0 if trial.name == "b" else 1.0
        turn = 1.0 + next(clock) // 4  # the machine grows slower
        return Passes(slow * turn, 3 * slow * turn)

    monkeypatch.setattr(measure, "timed", timed)
    costs = {name: Cost(name) for name in (FROZEN, "a", "b", "bad")}
    trials = {name: SimpleNamespace(name=name) for name in costs}
    _take_turns(costs, trials, 9, False)  # pyright: ignore[reportArgumentType]
    rounds = [seen[1:][i : i + 3] for i in range(4, 28, 3)]  # after the first, in which "bad" broke
    assert all(sorted(names) == sorted([FROZEN, "a", "b"]) for names in rounds) and len(set(map(tuple, rounds))) > 2
    assert [len(cost.total) for cost in costs.values()] == [9, 9, 9, 0] and costs["bad"].reason == "RuntimeError: out of memory"
    assert costs[FROZEN].median == 1 and costs["b"].median > costs["a"].median


def test_a_subject_that_breaks_does_not_stop_the_others():
    found, _ = run(["lora_torch", "lora_ref", "tests.conformance.broken:RaisesOnBuild"],
                   Options(workloads=("C1",), sweep=False, small=True))
    by_name = {cost.subject: cost for cost in found[0].costs}
    assert by_name["lora_torch"].total and by_name[FROZEN].total
    assert "no torch module" in by_name["lora_ref"].reason and not by_name["lora_ref"].total
    assert "Error" in by_name["tests.conformance.broken:RaisesOnBuild"].reason


def test_a_frozen_layer_that_cannot_be_measured_stops_no_other_workload(monkeypatch, tmp_path):
    def take_turns(costs, trials, rounds, flush):
        if trials[FROZEN].x.shape[0] == 16:  # of C1
            raise torch.OutOfMemoryError("a GPU that is too small\nand more")
        _take_turns(costs, trials, rounds, flush)

    monkeypatch.setattr(RUN, "_take_turns", take_turns)
    found, swept = run(["lora_torch"], Options(workloads=("C1", "C5"), sweep=False, small=True))
    assert [[bool(cost.total) for cost in result.costs] for result in found] == [[False], [True, True]]
    assert found[0].costs[0].reason == "OutOfMemoryError: a GPU that is too small"
    environment = {"command": "", "device": "", "dtype": "", "torch": ""}
    assert report.write(tmp_path, found, swept, environment) == ["bench.json", "bench.md", "bench.png"]
    assert "rank 4; not measured" in (tmp_path / "bench.md").read_text(encoding="utf-8")
    report.show(Console(quiet=True), found, swept)


def test_results_are_handed_over_after_every_workload():
    seen = []
    options = Options(workloads=("C1", "C5"), small=True)
    found, swept = run(["lora_torch"], options, kept=lambda results, swept: seen.append(
        (len(results), {name: len(grown) for name, grown in swept.items()})))
    assert seen[:3] == [(1, {}), (2, {}), (2, {"rank": 1})] and len(seen) == 2 + sum(map(len, swept.values()))
    assert seen[-1] == (2, {name: len(grown) for name, grown in swept.items()}) and len(found) == 2


def test_on_cuda_what_is_most_important_comes_first(monkeypatch):
    def result(workload, subjects, options, flush, *_, **__):
        return workload.name, flush

    monkeypatch.setattr(RUN, "_result", result)
    found, _ = run([], Options(device="cuda", dtype="bfloat16", sweep=False))
    assert found == [(name, flush) for flush in (False, True) for name in ("S1", "S2", "S3", "S4")]


def options_of_the_command(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.declare(parser)
    return parser.parse_args(words)


def test_an_interruption_leaves_what_was_measured(monkeypatch, tmp_path):
    @contextmanager
    def line(console, first):
        def told(what, done, turns):
            if what == "C5":
                kept = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
                assert [result["workload"]["name"] for result in kept["workloads"]] == ["C1"]
                raise KeyboardInterrupt
        yield told

    monkeypatch.setattr(command, "line", line)
    words = ("lora_torch", "--small", "--rounds", "2", "--workloads", "C1", "C5", "--out", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        command.measure(options_of_the_command(*words))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.md", "bench.png"]
    assert "## C1" in (tmp_path / "bench.md").read_text(encoding="utf-8")


def test_without_matplotlib_all_but_the_picture_is_written(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    words = ("lora_torch", "--small", "--workloads", "C1", "--no-sweep", "--out", str(tmp_path))
    assert command.measure(options_of_the_command(*words)) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.md"]
    assert "the picture needs matplotlib" in capsys.readouterr().out
    assert "bench.png" not in (tmp_path / "bench.md").read_text(encoding="utf-8")


def test_the_plan_has_the_sizes_that_it_promises():
    assert [w.name for w in WORKLOADS["cuda"]] == ["S1", "S2", "S3", "S4"]
    assert WORKLOADS["cpu"][0][:5] == ("C1", 512, 1024, 1024, 16)
    for device in WORKLOADS:
        for name, column in (("rank", "rank"), ("rows", "n"), ("width", "in_features")):
            sizes = [getattr(w, column) for w in sweep(device)[name]]
            assert sizes == sorted(set(sizes)) and len(sizes) >= 4
    assert Workload("a", 64, 64, 64, 16, 1.0).smaller().goal is None


def conformance(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "conformance", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_the_plain_path_passes_every_requirement_that_the_fast_one_passes(tmp_path):
    """What lora_torch itself passes, README.md says and its test runs: of the requirements on layers, all but MULTI. Nobody
    tells the harness how this class takes an nn.Linear, as TORCH-18 and TORCH-41 need it."""
    others, around_linear = ("build_model", "build_loader"), ("TORCH-18", "TORCH-41")
    ids = [r.id for r in all_requirements() if not any(name in r.needs for name in others) and r.id not in around_linear]
    assert conformance("run", f"{FORMS_OF}:LoraTorchPlain", "--examples", "4", "--only", *ids, "--json",
                       str(tmp_path / "r.json")).returncode == 0
    (plain,) = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["reports"]
    assert {(r["status"], r["group"] == "MULTI") for r in plain["requirements"]} == {("pass", False), ("unsupported", True)}


def test_the_forms_compute_lora_and_its_gradients():
    subjects = [f"{FORMS_OF}:{FORMS[name].__name__}" for name in ("torchtune-form", "unsloth-form")]
    ran = conformance("run", *subjects, "--only", "FWD-02", "FWD-06", "GRAD-02", "GRAD-03", "SCALE-01")
    assert ran.returncode == 0, ran.stdout


def test_the_command_writes_a_table_a_plot_and_a_report(tmp_path):
    subjects = ["lora_torch", "torchtune-form", "lora_ref", *(["peft-form-compiled"] if THOROUGH else [])]  # it takes a minute
    ran = conformance("bench", *subjects, "--small", "--rounds", "2", "--workloads", "C1", "C5", "--out", str(tmp_path / "out"))
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == "" and max(map(len, ran.stdout.splitlines())) <= 80
    for expected in ("frozen layer", "lora_ref: not measured", "as rank grows", "as rows grows", "as width grows", "kept:"):
        assert expected in ran.stdout
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")
    markdown = (tmp_path / "out" / "bench.md").read_text(encoding="utf-8")
    assert "| torchtune-form |" in markdown and "--workloads C1 C5" in markdown
    report = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert report["schema"] == 1 and report["environment"]["dtype"] == "float32"
    assert [found["workload"]["name"] for found in report["workloads"]] == ["C1", "C5"]
    for subject in report["workloads"][0]["subjects"]:
        if subject["name"] in ("lora_torch", "torchtune-form", "peft-form-compiled"):
            assert len(subject["milliseconds"]) == 2 and subject["same_bits_20_times"]
            assert 0 < subject["ratio"]["both"]["least"] <= subject["ratio"]["both"]["median"]
            assert {"saved_bytes", "peak_bytes", "errors"} <= subject.keys()


@pytest.mark.parametrize("arguments, status, message", [
    (["--workloads", "C9"], 2, "no workload C9 on cpu, expected some of C1, C2, C3, C4, C5, C6"),
    (["no_such_subject"], 4, "no built-in subject 'no_such_subject'"),
    (["--rounds", "0"], 2, "not a positive number"),
    (["--out", "README.md"], 2, "README.md is no folder"),
    pytest.param(["--device", "cuda"], 2, "finds no CUDA device", marks=pytest.mark.skipif(
        torch.cuda.is_available(), reason="there is a CUDA device")),
])
def test_what_cannot_be_done_is_said_before_anything_is_measured(arguments, status, message):
    ran = conformance("bench", *arguments)
    assert ran.returncode == status and message in ran.stderr and ran.stdout == ""
