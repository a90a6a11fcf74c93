"""Checks the files of a set of vectors themselves."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from conformance.mutants import all_mutants
from conformance.truth import rational
from conformance.vectors import files
from conformance.vectors.certify import LAWS, truth
from conformance.vectors.killers import distance_of
from conformance.vectors.vector import Vector


def problems(folder: Path, progress: Callable[[int, int, str], None] = lambda done, all, id: None) -> Iterator[str]:
    """What is wrong, in words. Raises ValueError if the folder cannot be read as a set of vectors."""
    manifest, vectors = files.read(folder)
    yield from _hashes(folder, manifest)
    yield from _spelling(folder, manifest)
    for id, count in Counter(vector.id for vector in vectors).items():
        if count > 1:
            yield f"{id} is the id of {count} vectors"
    if manifest["vectors"] != len(vectors):
        yield f"the manifest counts {manifest['vectors']} vectors, and there are {len(vectors)}"
    for done, vector in enumerate(vectors, 1):
        progress(done, len(vectors), vector.id)
        yield from (f"{vector.id}: {words}" for words in _wrong(vector))


def by_schema(folder: Path) -> Iterator[str]:
    """What the JSON Schema says. Raises ImportError without jsonschema, a package of the extra "test"."""
    from jsonschema import Draft202012Validator

    parts = json.loads((folder / files.SCHEMAS[0]).read_text(encoding="utf-8"))["$defs"]
    for file in sorted(folder.glob("*.json")):
        if file.name not in files.SCHEMAS:
            kind = "manifest" if file.name == files.MANIFEST else "operation"
            schema = Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": parts})
            for error in schema.iter_errors(json.loads(file.read_text(encoding="utf-8"))):
                yield f"{file.name}: {error.json_path}: {error.message[:200]}"


def _hashes(folder: Path, manifest: dict) -> Iterator[str]:
    there = {path.name for path in folder.iterdir()} - {files.MANIFEST}
    for name in sorted(there ^ set(manifest["files"])):
        yield f"{name} is {'not in the manifest' if name in there else 'in the manifest, and not there'}"
    for name in sorted(there & set(manifest["files"])):
        data = (folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != manifest["files"][name]["sha256"]:
            yield f"{name} is not the file of the manifest: another SHA-256"
    if files.set_of(manifest["files"]) != manifest["set"]:
        yield f"the set is called {manifest['set']}, and its files make it {files.set_of(manifest['files'])}"


def _spelling(folder: Path, manifest: dict) -> Iterator[str]:
    """Arrays whose decimal numbers are not those of their bits."""
    def arrays(said, path: str) -> Iterator[tuple[str, dict]]:
        if isinstance(said, dict) and "bits" in said:
            yield path, said
        elif isinstance(said, dict | list):
            for key, value in said.items() if isinstance(said, dict) else enumerate(said):
                yield from arrays(value, f"{path}.{value['id'] if isinstance(value, dict) and 'id' in value else key}")

    for name in files.OPERATIONS:
        if f"{name}.json" in manifest["files"]:
            for path, spelt in arrays(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), name):
                if files.spelled(files.array_of(spelt)) != spelt:
                    yield f"{path}: the decimal numbers are not those of the bits"


def _wrong(vector: Vector) -> Iterator[str]:
    if vector.requirement not in files.requirements():
        yield f"there is no requirement {vector.requirement}"
    known = {mutant.name: mutant for mutant in all_mutants()}
    unknown = set(vector.kills) - set(known)
    if unknown:
        yield f"there is no mutant {', '.join(sorted(unknown))}"
    if vector.nearest not in (*vector.kills, ""):
        yield f"the nearest fault is {vector.nearest}, which it does not kill"
    idle = [name for name in vector.kills if name in known and distance_of(known[name], vector) is None]
    if idle:
        yield f"it does not kill {', '.join(idle)}"
    finite = all(np.isfinite(array.astype(np.float64)).all() for array in vector.given.values())
    right = truth(vector) if finite and vector.operation not in LAWS else {}
    for name, answer in vector.answers.items():
        low, high = answer.certified
        if name in right:
            inside = [rational.exact(side) for side in (low, high)]
            if not (inside[0] <= right[name][0]).all() or not (right[name][1] <= inside[1]).all():
                yield f"{name}: the certified interval does not hold the exact numbers"
        first, last = (side.astype(np.float64) for side in answer.accepted)
        nearest = [side.astype(answer.accepted.low.dtype).astype(np.float64) for side in (low, high)]
        if not (np.isnan(low) | (first <= nearest[0]) & (nearest[1] <= last)).all():
            yield f"{name}: the accepted interval does not hold the number of the format that is the nearest to the exact one"
