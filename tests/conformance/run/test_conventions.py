"""The probes of conventions.py find each choice in a layer that made another one, and adapters convert between layers."""

import sys
from pathlib import Path

import pytest

from conformance.run.conventions import NOT_OFFERED, PROBES, conventions, conversion
from conformance.run.loading import load
from conformance.truth.compare import Mismatch

HONEST = {
    "layout": "A (in, rank), B (rank, out)", "scale": "alpha / rank", "rslora": "alpha / √rank", "at the start": "B is zero",
    "the other factor": "normal, standard deviation 1 / √in", "dropout": "on x, before A", "trains": "A, B",
    "merge": "adds to W", "merge again": "refused", "unmerge": "gives back the very bits",
    "number formats": "float32, float64, float16, bfloat16", "rank 0": "refused", "rank −1": "refused",
}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("Honest", {}),
        ("KaimingUniform", {"the other factor": "uniform, standard deviation 1 / √(3 in)"}),
        ("SmallNormal", {"the other factor": "normal, standard deviation 0.01"}),
        ("ZeroA", {"at the start": "A is zero", "the other factor": "normal, standard deviation 1"}),
        ("UnmergesBySubtraction", {"unmerge": "subtracts: the last bits differ"}),
        ("MergesAtEval", {"merge": "adds to W, and so does eval()"}),
        ("MergesTwiceInPeace", {"merge again": "changes nothing"}),
        ("FactorsInFloat32", {"number formats": "float32, float64, float16 with factors in float32, bfloat16 with factors in "
                                                "float32"}),
        ("DropsHidden", {"dropout": "on h, between A and B"}),
        ("RankZeroIsOff", {"rank 0": "taken for no adapter"}),
        ("FixedScale", {"scale": "always 1: there is no alpha", "rslora": NOT_OFFERED}),
        ("NoMergeNoFiles", {"merge": NOT_OFFERED, "merge again": NOT_OFFERED, "unmerge": NOT_OFFERED}),
        ("SingleOnly", {"number formats": "float32", "rslora": NOT_OFFERED, "dropout": NOT_OFFERED}),
        ("ScaleIsAlpha", {"scale": "alpha", "rslora": "alpha"}),
    ],
)
def test_what_is_free_is_found(name, found):
    assert set(found) <= set(PROBES)
    assert conventions(load(f"conformance.mutants:{name}")) == HONEST | found


def test_what_breaks_is_told():
    found = conventions(load("tests/conformance/broken.py:raises"))
    assert found["scale"] == "no answer: forward() raised RuntimeError: no forward today"
    assert found["at the start"] == "B is zero"


def test_an_adapter_converts():
    """It converts between layouts, and from a free scale to a fixed one. `conversion` itself compares the outputs."""
    article, fixed = load("article"), load("conformance.mutants:FixedScale")
    assert conversion(article, fixed) == [
        "A (in, rank) = lora_A (in, rank), as it is", "B (rank, out) = lora_B (rank, out), as it is",
        "B: times the scale of article / 1, since fixed-scale has no alpha",
    ]
    assert conversion(fixed, article)[-1] == "alpha: 1 · rank, since fixed-scale has a fixed scale of 1"
    assert conversion(article, load("tests/conformance/modules.py:Plain"))[:2] == [
        "lora_A (rank, in) = lora_A (in, rank), transposed", "lora_B (out, rank) = lora_B (rank, out), transposed",
    ]


def test_what_computes_otherwise_does_not_convert():
    with pytest.raises(Mismatch, match="y of the converted adapter"):
        conversion(load("article"), load("tests/conformance/modules.py:NotDivided").raw())


def test_a_scale_that_is_given_directly_is_no_alpha():
    """The argument itself is named, and an adapter is converted to it."""
    place = Path(__file__).parents[1] / "drivers"
    sys.path.append(str(place))
    direct, article = load(f"{place / 'look_corpus_ready.py'}:Strength"), load("article")
    assert conventions(direct)["scale"] == "scale, an argument that is the scale itself: there is no alpha"
    assert conversion(article, direct)[-1] == "scale: the scale of article, since scale is the scale itself"
    assert conversion(direct, article)[-1] == "alpha: scale · rank, since scale of Strength is the scale itself"


def test_an_alpha_that_is_fixed_is_told():
    place = Path(__file__).parents[1] / "drivers"
    sys.path.append(str(place))
    assert conventions(load(f"{place / 'look_corpus_ready.py'}:InverseRank"))["scale"] == "always 1 / rank: there is no alpha"
