"""What is printed can be read on a narrow terminal, in ASCII, and while long work goes on."""

import io

import pytest
from rich.console import Console

from conformance.report import ascii, progress, text
from conformance.report.evidence import evidence

LINK = "https://github.com/huggingface/peft/issues/3498-a-long-name"
ROWS = [("sentence", "Setting the adapter while merged MUST NOT corrupt W, or it is refused."), ("got", "8"), ("sources", LINK),
        ("", "another one")]


def printed(width: int, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, highlight=False, markup=False, emoji=False, force_terminal=terminal)


def shown(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_nothing_is_cut_off(width):
    """Every word is there, no line is too long or ends in spaces, and a link that is cut in two can be put together again."""
    screen = printed(width)
    text.pairs(screen, ROWS, indent=2)
    text.paragraph(screen, ROWS[0][1], 2, hanging=2)
    lines = shown(screen).splitlines()
    assert max(map(len, lines)) <= width and all(line == line.rstrip() for line in lines)
    together = "".join("".join(lines).split())
    for name, words in ROWS:
        assert "".join(name.split()) in together and "".join(words.split()) in together
    assert "…" not in together


def test_a_wide_terminal_has_texts_beside_names_and_a_narrow_one_below():
    wide, narrow = printed(80), printed(40)
    text.pairs(wide, ROWS)
    text.pairs(narrow, ROWS)
    assert shown(wide).splitlines()[0].startswith("sentence  Setting the adapter")
    assert shown(wide).splitlines()[-1] == "          another one"
    assert shown(narrow).splitlines()[:2] == ["sentence", "  Setting the adapter while merged MUST"]
    assert "got  8" in shown(narrow).splitlines()


@pytest.mark.parametrize(("words", "plain"), [
    ("y = x Wᵀ + scale · (x A) B", "y = x W^T + scale * (x A) B"), ("2⁻²⁴ ≤ √rank", "2^-24 <= sqrt rank"),
    ("f ∘ g ⇒ γₖ", "f o g => gammak"), ("café – ‖ΔW‖ …", "cafe - |dW| ..."), ("½ 試", "1/2 ?"), ("MERGE-01", "MERGE-01"),
])
def test_ascii(words, plain):
    ascii.register()
    assert words.encode("ascii", errors=ascii.NAME).decode() == plain


def test_progress_is_one_line_on_a_terminal_and_nothing_elsewhere():
    screen = printed(40, terminal=True)
    with progress.line(screen, "loading", 232) as told:
        told("a_subject_with_a_long_name MERGE-11, 3 failed", 12, 232)
    last = shown(screen).rpartition("12/232")[2]
    assert "12/232" in shown(screen) and ": a_subject" in last and "…" in last
    elsewhere = printed(80)
    with progress.line(elsewhere, "loading", 232) as told:
        told("peft MERGE-11", 12, 232)
    assert shown(elsewhere) == ""


def test_evidence():
    """Error / bound is a ratio, or says that the two must be equal. A message is told if it says more than what came."""
    failure = {"case": "c", "what": "y", "got": "8", "want": "4", "error": 4.0, "bound": 0.5}
    assert evidence(failure, "y: got 8")[-1] == ("error / bound", "4 / 0.5 = 8")
    assert evidence(failure | {"bound": 0.0}, "")[-1] == ("error / bound", "4 / 0: it must be equal bit for bit")
    assert evidence({}, "it ended") == [("message", "it ended")]
    assert evidence({"got": "Hung"}, "no answer in 30 s")[-1] == ("message", "no answer in 30 s")
