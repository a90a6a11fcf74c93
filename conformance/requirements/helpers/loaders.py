"""Functions that load adapter files into a model of a subject, and judge what it then computes."""

import pickletools
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from conformance.files.case import FileCase
from conformance.loader import Loader
from conformance.record.trace import SubjectError, refuses
from conformance.requirements.helpers.layers import scratch
from conformance.subject import Arrays, Subject, Unsupported
from conformance.truth.compare import Mismatch, expect, expect_equal


def fresh(subject: Subject, case: FileCase) -> Loader:
    """The base model of the case, without an adapter."""
    return subject.build_loader({name: array.copy() for name, array in case.base.items()}, dict(case.kinds))


@contextmanager
def place():
    """A folder for files."""
    with scratch() as name:
        yield Path(name)


def load(loader: Loader, case: FileCase, folder: Path) -> None:
    """Loads the adapter. If it is refused, the reader does not offer what is special about it."""
    try:
        loader.load(case.written(folder))
    except SubjectError as error:
        if error.broke:
            raise
        what = Unsupported(f"{case.config.format}'s format{f', {case.about}' if case.about else ''}: refused, {error}"[:300])
        what.method = "load"
        raise what from None


def loaded(subject: Subject, case: FileCase, folder: Path) -> Loader:
    loader = fresh(subject, case)
    load(loader, case, folder)
    return loader


def judge(loader: Loader, case: FileCase, note: str = "", want: Arrays | None = None) -> float:
    """Demands what the adapter of the case means, or `want`, of every module, to the last bit."""
    found, truth = loader.delta(), case.truth if want is None else want
    shapes = {module: case.base[f"{module}.weight"].shape for module in case.kinds}
    names = shapes.keys() | {f"{module}.bias" for module in shapes}
    strange = sorted(found.keys() - names)
    expect(not strange, f"names of what delta() gives{note}", strange, "modules of the base, and {module}.bias")
    return agree(found, truth, note)


def agree(found: Arrays, truth: Arrays, note: str) -> float:
    """Demands that the changes are the same. One that is left out is zero."""
    for name in sorted(found.keys() | truth.keys()):
        what = f"what is added to the output of {name[:-5]}" if name.endswith(".bias") else f"ΔW of {name}"
        nothing = np.zeros((found if name in found else truth)[name].shape)
        expect_equal(found.get(name, nothing), truth.get(name, nothing), what + note)
    return 0.0


def right(subject: Subject, case: FileCase) -> float:
    """Loads the adapter and judges it."""
    with place() as folder:
        return judge(loaded(subject, case, folder / "adapter"), case)


def refused(subject: Subject, case: FileCase) -> None:
    """Demands that the file is refused. A reader that refuses it before it was spoiled, too, cannot be judged by it."""
    assert case.good is not None
    with place() as folder:
        loaded(subject, case.good, folder / "good")
        loader = fresh(subject, case)
        if not refuses(loader.load, case.written(folder / "bad")):
            if case.truth:
                judge(loader, case, f" of a file with {case.wrong}, which was accepted")
                return
            raise Mismatch(f"a file with {case.wrong}", f"accepted; {changed(loader)}", "an error")


def changed(loader: Loader) -> str:
    """What is on the model, in words."""
    modules = sorted(name for name, delta in loader.delta().items() if np.any(delta))
    return f"it changes {', '.join(modules[:3])}" if modules else "it changes nothing: the base model is served"


def state(loader: Loader) -> dict[str, Arrays]:
    """What the model computes, and its weights if it tells them."""
    try:
        return {"ΔW": loader.delta(), "the base's": loader.base()}
    except Unsupported as reason:
        if reason.method != "base":
            raise
        return {"ΔW": loader.delta()}


def expect_same(now: dict[str, Arrays], before: dict[str, Arrays], note: str) -> None:
    agree(now["ΔW"], before["ΔW"], f" {note}")
    base, want = (said.get("the base's", {}) for said in (now, before))
    expect(base.keys() == want.keys(), f"names of the base's arrays {note}", sorted(base), sorted(want))
    for name, array in want.items():
        expect_equal(base[name], array, f"the base's {name} {note}")


def is_pickle(path: Path) -> bool:
    """Whether the file is a pickle, by its name or by its bytes: of any protocol, or in a zip file as torch.save makes it."""
    if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt"):
        return True
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            return any(name.endswith(".pkl") for name in file.namelist())
    content = path.read_bytes()
    try:
        *_, (_, _, last) = pickletools.genops(content)
    except ValueError:  # some byte is no opcode
        return False
    return content[0] == 0x80 or last == len(content) - 1  # protocols 0 and 1 have no mark
