"""A bare nn.Module class can be checked as it stands: its arrays are found, and its faults, too."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from thorough import few

from conformance import LayerConfig, Unsupported, load
from conformance.run import plan, runner, verdict
from conformance.torch import TorchLayer, to_array, to_tensor

FILE = Path(__file__).parents[1] / "modules.py"
HERE = Path(__file__).parent
CORPUS = {"FixedScale": HERE / "look_corpus.py", "DenseWithLoRA": HERE / "look_corpus.py",
          "InverseRank": HERE / "look_corpus_ready.py", "FloatBranch": HERE / "look_corpus_ready.py"}
sys.path.append(str(HERE))  # one corpus imports the other


@pytest.mark.parametrize("name", few(("Wrapper", "Plain", "Nested")))
def test_modules_are_judged_as_they_stand(name):
    report = runner.run([f"{FILE}:{name}"], plan.Options(level="must", jobs=2, examples=3))[0]
    failed = {id: o.message for id, o in report.outcomes.items() if o.status in verdict.FAILING}
    assert set(failed) <= ({"STATE-06", "STATE-09"} if name == "Wrapper" else set()), failed
    assert ("STATE-06" in failed) == (name == "Wrapper")
    assert report.verdict == ("nonconformant" if name == "Wrapper" else "conformant")
    assert report.profiles["inference"] == "conformant"
    assert report.profiles["training"] == ("nonconformant" if "STATE-09" in failed else "conformant")
    assert report.profiles["merge"] == ("conformant" if name == "Wrapper" else "not offered")


@pytest.mark.parametrize("in_process", [False, True])
@pytest.mark.parametrize(("name", "id"), [("NotDivided", "SCALE-01"), ("Unfrozen", "PARAM-02"), ("OnlySequences", "FWD-03")])
def test_a_fault_that_would_break_everything_is_one_failure(name, id, in_process):
    """The requirement about it fails, and all others pass, as if it were not so. A strict run asks them all as it is."""
    asked = ("FWD-01", "FWD-05", "PARAM-02", "PARAM-03", "GRAD-01", "SCALE-01", "SCALE-05", "FWD-03")
    options = plan.Options(only=asked, jobs=1, examples=4, in_process=in_process)
    report = runner.run([f"{FILE}:{name}"], options)[0]
    assert [id for id, outcome in report.outcomes.items() if outcome.status != "pass"] == [id]
    assert list(report.compensates) == [id]
    if not in_process:
        strict = runner.run([f"{FILE}:{name}"], replace(options, strict=True))[0]
        assert not strict.compensates
        assert len([o for o in strict.outcomes.values() if o.status in verdict.FAILING]) > 1


def test_a_fixed_scale_has_all_its_digits():
    assert load(f"{FILE}:AlwaysAThird").scale == 1 / 3


@pytest.mark.parametrize(("name", "scale", "alpha"), [("FixedScale", 2.0, None), ("InverseRank", None, 1.0)])
def test_a_fixed_scale_is_judged(name, scale, alpha):
    """Exact cases have the scale or the alpha of the layer: 2 has no exact root, and 1 / rank is exact for powers of two."""
    subject = load(f"{CORPUS[name]}:{name}")
    assert (subject.scale, subject.alpha) == (scale, alpha)
    asked = ("FWD-01", "GRAD-01", "GRAD-02", "SCALE-01")
    report = runner.run([f"{CORPUS[name]}:{name}"], plan.Options(only=asked, jobs=1, examples=6, in_process=True))[0]
    assert {report.outcomes[id].status for id in ("FWD-01", "GRAD-01", "GRAD-02")} == {"pass"}


def test_an_alpha_without_effect_is_one_failure():
    spec = f"{CORPUS['DenseWithLoRA']}:DenseWithLoRA"
    asked = ("FWD-01", "GRAD-01", "SCALE-05")
    report = runner.run([spec], plan.Options(only=asked, jobs=1, examples=6, in_process=True))[0]
    assert [id for id, outcome in report.outcomes.items() if outcome.status != "pass"] == ["SCALE-05"]
    assert report.compensates == {"SCALE-05": "alpha is taken and has no effect: the scale is always 1"}


def test_factors_in_float32_stay_so_over_another_base():
    subject = load(f"{CORPUS['FloatBranch']}:FloatBranch")
    ones = np.ones((2, 3), np.float16)
    layer = subject.build(LayerConfig(3, 2, 1, 2.0, bias=False, dtype="float16"), ones, None)
    assert (layer.weight().dtype, layer.adapter()["A"].dtype) == (np.float16, np.float32)
    assert layer.forward(np.ones((1, 3), np.float16)).dtype == np.float16
    with pytest.raises(Unsupported, match="computed in float32"):
        subject.build(LayerConfig(3, 2, 1, 2.0, bias=False, dtype="float64"), ones.astype(float), None)


def test_who_gives_a_layer_its_base_freezes_it():
    report = runner.run([f"{FILE}:UnfrozenWrapper"], plan.Options(only=("PARAM",), jobs=1, examples=6))[0]
    assert {o.status for o in report.outcomes.values()} == {"pass"}
    assert load(f"{FILE}:UnfrozenWrapper").found.given


@pytest.mark.parametrize("name", ["Plain", "Nested", "Wrapper"])
def test_arrays_are_found_in_either_layout(name):
    """They are found even in a square layer with rank = in, where shapes alone cannot identify them."""
    subject = load(f"{FILE}:{name}")
    n = 3
    W, A, B = (np.arange(k, k + n * n, dtype=np.float32).reshape(n, n) for k in (0, 10, 20))
    layer = subject.build(LayerConfig(n, n, n, 2.0 * n), W, np.zeros(n, np.float32))
    layer.set_adapter({"A": A, "B": B})
    x = np.eye(n, dtype=np.float32)
    np.testing.assert_array_equal(layer.forward(x), W.T + 2 * A @ B)
    np.testing.assert_array_equal(layer.weight(), W)
    assert layer.trainable() == {"A": (n, n), "B": (n, n)}


@pytest.mark.parametrize("name", ["BackupFirst", "BiasOfB", "made_by_a_function"])
def test_a_guess_is_tried_out(name):
    """A buffer of the shape of W, or the bias of another part, is not taken: the module does not compute with it."""
    report = runner.run([f"{FILE}:{name}"], plan.Options(only=("FWD-01", "INIT-02", "GRAD-02"), jobs=1, examples=6))[0]
    assert {id: o.message for id, o in report.outcomes.items() if o.status != "pass"} == {}


@pytest.mark.parametrize("name", ["MergeGivesAnother", "MergeNeedsAMode"])
def test_merges_of_another_kind_are_not_offered(name):
    report = runner.run([f"{FILE}:{name}"], plan.Options(only=("FWD-01", "MERGE"), jobs=1, examples=6))[0]
    assert report.profiles["merge"] == "not offered"
    assert report.verdict == "conformant", {o.message for o in report.outcomes.values()}


def test_a_buffer_keeps_the_digits_of_float64():
    subject = load(f"{FILE}:ScaleInABuffer")
    config = LayerConfig(3, 2, 1, 0.1, dtype="float64")
    layer = subject.build(config, np.zeros((2, 3)), np.zeros(2))
    layer.set_adapter({"A": np.ones((3, 1)), "B": np.ones((1, 2))})
    np.testing.assert_array_equal(layer.forward(np.array([[1.0, 0, 0]])), [[0.1, 0.1]])


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    subject = load(f"{FILE}:Plain")
    ones = np.ones((4, 3), np.float32)
    small, large = (subject.build(LayerConfig(3, n, 1, 2.0), ones[:n], ones[:n, 0]) for n in (2, 4))
    before = large.adapter()
    small.save(tmp_path)
    with pytest.raises(RuntimeError, match=r"\(2, 1\) in the file, expected \(4, 1\)|\(2, 3\) in the file"):
        large.load(tmp_path)
    for key, array in before.items():
        np.testing.assert_array_equal(large.adapter()[key], array)


@pytest.mark.parametrize(("name", "said"), [
    ("WithoutArrays", r"Tried: WithoutArrays\(in_features=in, out_features=out, rank=rank\): with in = 7, .* it has no arrays"),
    ("NoFactors", r"rank = 3 it has linear.weight \(5, 7\), linear.bias \(5,\)"),
    ("NeedsAFile", r"FileNotFoundError: .* A function that returns the module is enough: def made"),
])
def test_what_was_tried_and_what_happened_is_told(name, said):
    with pytest.raises(TypeError, match=said):
        load(f"{FILE}:{name}").build(LayerConfig(3, 2, 1, 2.0), np.ones((2, 3), np.float32), np.ones(2, np.float32))


def test_tensors_keep_bits_and_strides():
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert to_tensor(x[:, ::2]).stride() == (4, 2)
    assert to_tensor(np.broadcast_to(x[:1], (3, 4))).stride() == (0, 1)
    half = to_array(torch.tensor([1.5, -0.25, float("nan")], dtype=torch.bfloat16))
    assert half.dtype.name == "bfloat16"
    np.testing.assert_array_equal(to_array(to_tensor(half)).view(np.int16), half.view(np.int16))


def test_backward_before_forward_is_refused():
    layer = TorchLayer(torch.nn.Linear(2, 2), W="weight", b="bias", A="weight", B="weight")
    with pytest.raises(RuntimeError, match="backward before forward"):
        layer.backward(np.ones((1, 2), np.float32))
