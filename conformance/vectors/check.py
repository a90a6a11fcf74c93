"""Judges the results that another program gave for a set of vectors."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from conformance.subject import Arrays
from conformance.truth.compare import Mismatch, alike, ratio_of, wide
from conformance.vectors import files, killers
from conformance.vectors.vector import Vector

SAMPLE = 6  # failures that a known fault must explain
NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass
class Result:
    """What a program said about one vector: its answers, or words why there are none."""

    answers: dict[str, list[float]] = field(default_factory=dict)
    unsupported: str | None = None
    error: str | None = None


@dataclass
class Verdict:
    vector: Vector
    status: str  # pass, fail, error, unsupported or missing
    failure: Mismatch | None = None
    words: str = ""
    found: Arrays = field(default_factory=dict)


def read(path: Path) -> tuple[dict[str, str], dict[str, Result]]:
    """The head of a file of results, and the results by id. Raises ValueError for what is none."""
    try:
        text = path.read_text(encoding="utf-8")
        return _json(json.loads(text)) if text.lstrip().startswith("{") else _lines(text)
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is no file of results: {type(error).__name__}: {error}") from error


def _json(said: dict[str, Any]) -> tuple[dict[str, str], dict[str, Result]]:
    results = {}
    for id, one in said["results"].items():
        given = [key for key in ("answers", "unsupported", "error") if key in one]
        if len(given) != 1:
            raise ValueError(f"{id} has {' and '.join(given) or 'none'}, expected one of answers, unsupported and error")
        said_of_it = one[given[0]]
        if given == ["answers"]:
            results[id] = Result({name: [_number(value) for value in values] for name, values in said_of_it.items()})
        elif isinstance(said_of_it, str):
            results[id] = Result(**{given[0]: said_of_it})  # pyright: ignore[reportArgumentType] both are words
        else:
            raise TypeError(f"{given[0]} of {id} is no text")
    return {key: str(said[key]) for key in ("set", "program") if key in said}, results


def _lines(text: str) -> tuple[dict[str, str], dict[str, Result]]:
    head, results = {}, {}
    for number, line in enumerate(text.splitlines(), 1):
        word, _, rest = line.strip().partition(" ")
        match word:
            case "":
                continue
            case "set" | "program":
                head[word] = rest
            case "answer":
                if len(rest.split(" ")) < 2:
                    raise ValueError(f"line {number} is {line!r}, expected answer, an id, a name and numbers")
                id, name, *values = rest.split(" ")
                before = results.setdefault(id, Result())
                if before.unsupported is not None or before.error is not None:
                    raise ValueError(f"line {number} is an answer of {id}, which is unsupported or an error above")
                before.answers[name] = [_number(value) for value in values]
            case "unsupported" | "error":
                id, _, why = rest.partition(" ")
                if id in results:
                    raise ValueError(f"line {number} says {word} of {id}, of which something else is said above")
                results[id] = Result(**{word: why or "no reason"})  # pyright: ignore[reportArgumentType] both are words
            case _:
                expected = "set, program, answer, unsupported or error"
                raise ValueError(f"line {number} begins with {word!r}, expected {expected}")
    return head, results


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"{value!r} is no number")
    return NUMBERS[value] if value in NUMBERS else float(value)


def judged(folder: Path, path: Path) -> tuple[dict[str, Any], list[Verdict]]:
    """The verdict on every vector of the folder. Raises ValueError for results of another set, and for ids that it has not."""
    manifest, vectors = files.read(folder)
    head, results = read(path)
    if head.get("set", manifest["set"]) != manifest["set"]:
        raise ValueError(f"{path} has results of the set {head['set']}, and {folder} is the set {manifest['set']}")
    unknown = sorted(set(results) - {vector.id for vector in vectors})
    if unknown:
        raise ValueError(f"{path} has results of {', '.join(unknown[:3])}, which {folder} has not")
    return manifest | head, [_judged(vector, results.get(vector.id)) for vector in vectors]


def _judged(vector: Vector, result: Result | None) -> Verdict:
    if result is None:
        return Verdict(vector, "missing", words="there is no answer, and no word that it is unsupported")
    if result.unsupported is not None:
        return Verdict(vector, "unsupported", words=result.unsupported)
    if result.error is not None:
        return Verdict(vector, "error", words=result.error)
    missing = [name for name in vector.answers if name not in result.answers]
    if missing:
        return Verdict(vector, "missing", words=f"there is no {', '.join(missing)}")
    found = {}
    for name, answer in vector.answers.items():
        shape, values = answer.accepted.low.shape, np.array(result.answers[name], np.float64)
        if values.size != answer.accepted.low.size:
            failure = Mismatch(name, f"{values.size} numbers", f"{answer.accepted.low.size}, shape {shape}")
            return Verdict(vector, "fail", failure)
        found[name] = values.reshape(shape)
    try:
        killers.judge(vector, found)
    except Mismatch as failure:
        return Verdict(vector, "fail", failure, found=found)
    return Verdict(vector, "pass", found=found)


def likely_faults(verdicts: list[Verdict]) -> list[str]:
    """The known faults that give the same wrong answers, the likeliest first: the one that fails most of the vectors that
    failed, and fewest of the others."""
    failed = [verdict for verdict in verdicts if verdict.status == "fail" and verdict.found]
    sample = failed[:: max(1, len(failed) // SAMPLE)][:SAMPLE]
    if not sample:
        return []
    candidates = set.intersection(*(set(verdict.vector.kills) for verdict in sample))
    alikes = {m.name: m for m in killers.faults(sample[0].vector) if m.name in candidates
              and all(_same(m, verdict) for verdict in sample)}
    wrong, about = {verdict.vector.id for verdict in failed}, {verdict.vector.requirement for verdict in failed}
    told = {verdict.vector.id: set(verdict.vector.kills) for verdict in verdicts if verdict.status in ("pass", "fail")}

    def likeness(name: str) -> tuple[float, int, int]:
        """Among equals, first those that are known to fail these requirements, and then those that were reported in public."""
        kills = {id for id, names in told.items() if name in names}
        return len(kills & wrong) / len(kills | wrong), len(about & set(alikes[name].kills)), len(alikes[name].reports)

    return [f"{alikes[name].words.rstrip('.')} ({name})" for name in sorted(alikes, key=likeness, reverse=True)]


def _same(mutant: killers.Mutant, verdict: Verdict) -> bool:
    try:
        its = killers.ask(mutant, verdict.vector)
    except Exception:  # it has no answer to compare
        return False
    for name, answer in verdict.vector.answers.items():
        low, high = answer.accepted
        if name not in its:
            return False
        with np.errstate(invalid="ignore", over="ignore"):  # infinity minus infinity, and what is beyond the format
            got, wrong = (array.astype(low.dtype) for array in (verdict.found[name], its[name]))
            if not alike(got, wrong, (wide(high) - wide(low)) / 2):
                return False
    return True


def ratios(verdicts: list[Verdict]) -> Iterator[str]:
    """Where an answer is the right one times a number."""
    for verdict in verdicts:
        for name, got in verdict.found.items():
            low, high = verdict.vector.answers[name].accepted
            ratio = ratio_of(got, (wide(low) + wide(high)) / 2)
            if verdict.status == "fail" and ratio is not None and ratio != 1:
                yield f"{verdict.vector.id}: {name} is {ratio:.6g} times the right one"
