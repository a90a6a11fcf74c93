"""lora-xfails.txt: what is an entry, and what is refused."""

import datetime

import pytest

from conformance.plugin.xfails import Wrong, read

TODAY, KNOWN = datetime.date(2027, 1, 1), ("FWD-01", "SCALE-01")


def test_entries_have_a_day_and_a_reason(tmp_path):
    file = tmp_path / "lora-xfails.txt"
    file.write_text("# a comment\n\nFWD-01  2027-01-01  the reason, in words\nSPACE:FWD-01 2028-02-29 rows at 4096\n")
    found = read(file, KNOWN, TODAY)
    assert found["FWD-01"].until == TODAY and found["FWD-01"].reason == "the reason, in words" and found["FWD-01"].line == 3
    assert set(found) == {"FWD-01", "SPACE:FWD-01"}


@pytest.mark.parametrize(("line", "said"), [
    ("FWD-99 2027-06-01 a reason", "FWD-99 matches no requirement"),
    ("FWD 2027-06-01 a reason", "FWD matches no requirement"),
    ("FWD-01 2026-12-31 a reason", "until 2026-12-31, which is over"),
    ("FWD-01 2027-06-01", "is no entry, expected an id, a day"),
    ("FWD-01 a reason", "is no entry, expected an id, a day"),
    ("FWD-01 2027-02-30 a reason", "2027-02-30 is no day"),
    ("SCALE-01 2027-06-01 again", "stands in line 1, too"),
])
def test_what_is_wrong_is_told_with_its_line(tmp_path, line, said):
    file = tmp_path / "lora-xfails.txt"
    file.write_text(f"SCALE-01 2027-06-01 a reason\n{line}\n")
    with pytest.raises(Wrong, match=f"{file}:2: .*{said}"):
        read(file, KNOWN, TODAY)


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    file = tmp_path / "lora-xfails.txt"
    file.write_text("A\nB\n")
    with pytest.raises(Wrong) as problem:
        read(file, KNOWN, TODAY)
    assert len(str(problem.value).splitlines()) == 2
