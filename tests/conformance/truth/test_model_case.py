"""model_case.py and cache.py: the spread of rounding errors of a case is computed once, and never used for another case."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest

from conformance.model import ModelConfig
from conformance.truth import cache, model_case
from conformance.truth.model_case import ModelCase, Spread, drawn
from lora_ref.error import noise

CONFIG = ModelConfig(vocabulary=5, width=4, layers=2, heads=2, kv_heads=2, mlp_width=3, context=12, method="lora",
                     targets=("q_proj",), rank=2, alpha=3.0, fused=False, dtype="float32", seed=1)


@pytest.fixture
def computed(monkeypatch, tmp_path) -> list[int]:
    """A list with one entry for each spread that was computed. Folder and memory of the cache start empty."""
    monkeypatch.setenv("CONFORMANCE_CACHE", str(tmp_path))
    forget(monkeypatch)
    calls, spread = [], noise.spread
    monkeypatch.setattr(noise, "spread", lambda *args: calls.append(1) or spread(*args))
    return calls


def forget(monkeypatch) -> None:
    """Empties the memory of the cache, so that it is as in a new process."""
    monkeypatch.setattr(cache, "_known", type(cache._known)())
    monkeypatch.setattr(cache, "_tidied", set())


def case(**changes) -> ModelCase:
    return replace(drawn(replace(CONFIG, **changes), 2, 3, True), known=True)


def alike(first: Spread, second: Spread) -> bool:
    return all(
        list(a) == list(b) and all(a[n].dtype == b[n].dtype and np.array_equal(a[n], b[n]) for n in a)
        for a, b in zip(first, second, strict=True))


def test_the_same_case_is_computed_once(computed, monkeypatch):
    first = case().spread
    assert alike(case().spread, first) and alike(case().copy().spread, first) and len(computed) == 1
    forget(monkeypatch)
    found = case().spread
    assert alike(found, first) and len(computed) == 1
    assert found[0]["logits"].dtype == np.longdouble and found[1]["logits"].dtype == np.float64


def test_copies_find_what_the_case_has(computed):
    c = case(targets=("q_proj", "v_proj"))
    arrays = {name: a + np.float32(1) for name, a in c.trained.items()}
    c.replace(trained=arrays).replace(trained=c.trained).spread  # noqa: B018
    assert alike(c.spread, c.replace(seed=5).spread) and len(computed) == 1  # what a seed gave is in the arrays


def test_another_case_or_question_is_another(computed, monkeypatch):
    """The key of a spread contains everything that the spread depends on."""
    c = case()
    others = [
        c, c.replace(base=c.base | {"norm.bias": c.base["norm.bias"] + np.float32(1)}), c.replace(alpha=4.0),
        c.replace(mask=None), c.replace(tokens=c.tokens[:, ::-1]), c.replace(dlogits=-c.dlogits), c.replace(dtype="float64"),
        c.replace(trained={name: -a for name, a in c.trained.items()}), c.replace(heads=1, kv_heads=1),
    ]
    found = [one.spread for one in others] + [c.merged, c.replace(alpha=4.0).merged]
    methods = model_case.reference(c.config)[1]
    found += [c.of(tokens, methods, c.base | c.trained) for tokens in (c.tokens, c.tokens[:1])]
    found += [c.of(c.tokens, {}, c.base)]
    assert len(computed) == len(found)
    monkeypatch.setattr(noise, "ROUNDINGS", 5)
    c.spread  # noqa: B018
    monkeypatch.setattr(model_case, "SOURCES", "other")
    c.spread  # noqa: B018
    assert len(computed) == len(found) + 2
    assert not any(alike(one, other) for i, one in enumerate(found) for other in found[:i])


def test_parts_of_a_key_do_not_run_together():
    one = np.arange(4.0)
    keys = [cache.hashed("ab", "c"), cache.hashed("a", "bc"), cache.hashed({"a": one}), cache.hashed({"b": one}),
            cache.hashed({"a": one.reshape(2, 2)}), cache.hashed({"a": one.view(int)}), cache.hashed({}, {"a": one}, None),
            cache.hashed(one), cache.hashed(one.astype(np.float32)), cache.hashed({"a": one[:2], "b": one[2:]})]
    assert len(set(keys)) == len(keys) and cache.hashed(one) == cache.hashed(np.arange(8.0)[::2] / 2)


def test_a_damaged_file_is_as_good_as_none(computed, monkeypatch, tmp_path):
    first = case().spread
    (path,) = (tmp_path / "spreads").iterdir()
    whole = path.read_bytes()
    for i in range(0, len(whole), 97):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        assert cache._read(path) is None
        path.write_bytes(whole[:i])
        assert cache._read(path) is None
    forget(monkeypatch)
    assert alike(case().spread, first) and len(computed) == 2
    written = cache._read(path)  # not its bytes: a longdouble has some that mean nothing
    assert written is not None and alike(written, first)


@pytest.mark.parametrize("folder", ["", "file"])
def test_where_nothing_can_be_written_it_computes(computed, monkeypatch, tmp_path, folder):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / (folder or "spreads"))
    if not folder:
        (tmp_path / "spreads").mkdir()
        (tmp_path / "spreads" / "spreads").write_text("")
    first = case().spread
    forget(monkeypatch)
    assert alike(case().spread, first) and len(computed) == 2


def test_what_is_given_cannot_change_what_is_kept(computed):
    truth, _ = case().spread
    with pytest.raises(ValueError, match="read-only"):
        truth["logits"] += 1
    del truth["logits"]
    assert "logits" in case().spread[0] and len(computed) == 1


def test_memory_and_folder_are_bounded(computed, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "ENTRIES", 2)
    for i in range(4):
        case(seed=i).spread  # noqa: B018
    assert len(cache._known) == 2
    paths = sorted((tmp_path / "spreads").iterdir())
    size, now = paths[0].stat().st_size, time.time()
    for i, path in enumerate(paths):
        os.utime(path, (now - i, now - i))
    os.utime(paths[0], (now, now - 40 * 86400))
    monkeypatch.setattr(cache, "BYTES", 2 * size)
    cache._tidy(tmp_path / "spreads")
    assert sorted((tmp_path / "spreads").iterdir()) == paths[1:3]


def test_the_folder_is_the_one_that_was_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("CONFORMANCE_CACHE", str(tmp_path / "own"))
    assert cache.folder() == tmp_path / "own"
    monkeypatch.delenv("CONFORMANCE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.folder() == tmp_path / "conformance"


def test_a_process_with_code_of_others_in_it_leaves_no_files(computed, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "_writes", True)
    cache.write_files(False)
    first = case().spread
    assert not list(tmp_path.rglob("*")) and len(computed) == 1
    cache.write_files(True)
    forget(monkeypatch)
    assert alike(case().spread, first) and len(computed) == 2
    assert len(list((tmp_path / "spreads").iterdir())) == 1
