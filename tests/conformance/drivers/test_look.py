"""Recognition finds what is true of each layer of the corpus: how it is built, its arrays, scale, merging and freezing."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))
import look_corpus
import look_corpus_ready
from look_corpus import CORPUS, Layer
from look_corpus_ready import READY, REFUSED

from conformance import LayerConfig, Unsupported
from conformance.drivers.look.refused import NotRecognised
from conformance.drivers.look.ways import BESIDE, MODEL, PARAMETRISED, REPLACED
from conformance.drivers.torch_module import ModuleSubject
from conformance.run.looking import looked

BUILT = {"turned weight": "weight", "convolution": "linear"}


def built(subject: ModuleSubject) -> str:
    found = subject.found
    if found.way in (BESIDE, PARAMETRISED):
        return "part" if found.way == BESIDE else "parametrization"
    return BUILT.get(found.plan.around, found.plan.around) if found.way != MODEL else "model"


def as_found(layer: Layer, subject: ModuleSubject) -> dict[str, str]:
    """The paths of the corpus, as they are called where the harness holds W beside the module."""
    paths = {"W": layer.W, "A": layer.A, "B": layer.B} | ({} if layer.b is None else {"b": layer.b})
    if subject.found.way == BESIDE:
        return {name: path.replace("base.", "linear.") for name, path in paths.items()}
    if subject.found.way == REPLACED:
        moved = {name: f"lora.{path}" for name, path in paths.items() if name in "AB"}
        return {name: path.replace("org_module.", "linear.") for name, path in paths.items()} | moved
    return paths


@pytest.mark.parametrize("layer", [*CORPUS, *READY], ids=lambda layer: layer.name)
def test_what_is_found_is_true(layer):
    subject = ModuleSubject(getattr(look_corpus if layer in CORPUS else look_corpus_ready, layer.name))
    found = subject.found
    assert built(subject) == layer.built
    assert found.places.paths == as_found(layer, subject)
    assert found.places.transposed == layer.transposed
    assert bool(found.base_trains) == bool(layer.trains) or found.way
    if layer.freezer:  # where the class has none of its own, one of another class of the file may do
        assert found.freezer in (layer.freezer, "mark_only_lora_as_trainable")
    methods = subject.merging
    assert (methods.merge, methods.unmerge) == (layer.merges.replace("train(False)", "eval()"), layer.unmerges)
    if not layer.fault:
        assert (found.direct or found.rule) == layer.scale


def test_each_dropout_is_told_apart():
    subject = ModuleSubject(look_corpus_ready.ThreeDropouts)
    assert subject.found.plan.roles["dropout"] == "dropout"
    assert not {"rank_dropout", "module_dropout"} & set(subject.found.plan.roles)


def test_a_base_may_have_no_bias_though_a_conv1d_always_has_one():
    assert ModuleSubject(look_corpus_ready.LinearOrConv1D).found.bias == (True, False)


@pytest.mark.parametrize(("name", "why"), REFUSED.items())
def test_what_is_no_single_lora_is_told(name, why):
    with pytest.raises(NotRecognised, match=why):
        ModuleSubject(getattr(look_corpus_ready, name)).found  # noqa: B018


@pytest.mark.parametrize("layer", READY, ids=lambda layer: layer.name)
def test_what_is_written_down_computes_the_same(layer, tmp_path):
    """The subject that `look --write` writes builds the layer, and its LoRA part has the right scale."""
    said = looked(getattr(look_corpus_ready, layer.name), layer.name, look_corpus_ready.__file__)
    path = tmp_path / "written.py"
    path.write_text(said["subject"], encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"written_{layer.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    subject = getattr(module, said["subject_name"])()
    scale, bias = subject.scale or (subject.alpha or 8.0) / 4, layer.b is not None
    b, n_in = np.ones(5, np.float32) if bias else None, 7
    assert (subject.square, subject.rank) == (layer.name == "SquareBranch", 4 if layer.name == "RankOfTheFile" else None)
    if subject.square:
        with pytest.raises(Unsupported):
            subject.build(LayerConfig(7, 5, 4, 4 * scale), np.zeros((5, 7), np.float32), b)
        n_in = 5
    W, A, B = (np.arange(rows * columns).reshape(rows, columns).astype(np.float32) - 9
               for rows, columns in ((5, n_in), (n_in, 4), (4, 5)))
    written = subject.build(LayerConfig(n_in, 5, 4, 4 * scale, bias), W, b)
    written.set_adapter({"A": A, "B": B})
    x = np.eye(n_in, dtype=np.float32)[(None,) * {"ImageTokens": 2, "BatchFirst": 1}.get(layer.name, 0)]
    np.testing.assert_array_equal(written.forward(x).reshape(n_in, 5), W.T + bias + scale * (A @ B))
