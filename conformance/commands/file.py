"""conformance file: shows what an adapter file means, and what is wrong with it."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from rich.table import Table
from rich.text import Text

from conformance.commands.shared import Written, console
from conformance.files import names, reading, writing
from conformance.files.clauses import CLAUSES, ERROR
from conformance.files.known import READERS, says
from conformance.files.meaning import Meaning
from conformance.files.writing import FORMATS
from conformance.report import output, text
from conformance.run.examine import plain

HELP = "show what an adapter file means, module by module, and what no reader will use"
EPILOG = """\
It reads the folders and files of PEFT, diffusers, kohya / ComfyUI, torchtune
and mlx-lm, and GGUF. conformance/FILES.md has the clauses, and the codes of
all issues. The program runs nothing that is in the file.

examples:
  conformance file my_adapter                 a folder of PEFT
  conformance file lora.safetensors
  conformance file my_adapter --base model    compare names and shapes with
                                              the weights in a folder
  conformance file my_adapter --for vllm      what that reader is known to do
  conformance file my_adapter --to mlx-lm --out converted
                                              the same factors and scales in
                                              another format; names of modules
                                              stay, rows are not reordered
  conformance file my_adapter --to GGUF --out converted --base model
                                              with the names and the order of
                                              rows that GGUF has for a Llama,
                                              by config.json in the folder

exit status:
  0 no issue is an error   1 an issue is an error, or the other format cannot
  say what the file means   2 usage
"""
SHOWN = 12  # issues of one code


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("path", metavar="PATH", help="a folder, a .safetensors file or a .gguf file")
    add("--base", metavar="DIR|JSON",
        help="the base model: a folder with its .safetensors files, its config.json or both, or a JSON object {name: shape}")
    add("--for", dest="reader", choices=sorted(READERS), help="say what this program is known to do with the file")
    add("--to", choices=list(FORMATS), metavar="FORMAT", help=f"write it in another format: {', '.join(FORMATS)}")
    add("--out", metavar="DIR", help="where to write it; the folder must be empty, or not be there")
    add("--json", metavar="F", help="write all of it to F as JSON")


def run(arguments: argparse.Namespace) -> int:
    written = Written(arguments.json)
    out = Path(arguments.out) if arguments.out else None
    if (out is None) != (arguments.to is None):
        raise ValueError("--to FORMAT and --out DIR go together")
    if out and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; nothing was written")
    base = reading.shapes(arguments.base) if arguments.base and not _is_config_alone(Path(arguments.base)) else None
    meaning = reading.read(arguments.path)
    if base is not None:
        reading.compare(meaning, base)
    told = says(meaning, arguments.reader) if arguments.reader else []
    report = as_dict(meaning) | ({"reader": {arguments.reader: told}} if arguments.reader else {})
    written(arguments.json, lambda file: output.write(file, (json.dumps(report, indent=1, allow_nan=False) + "\n").encode()))
    show(meaning)
    if arguments.reader:
        screen = console()
        screen.print(Text(f"for {READERS[arguments.reader].version}", style="bold"))
        for words in told or ["nothing is known to go wrong"]:
            text.paragraph(screen, plain(words), 2, hanging=2)
    if out:
        try:
            made = writing.put(meaning, arguments.to, out, _model(arguments.base, meaning, arguments.to))
        except (writing.CannotSay, names.CannotName) as error:
            print(f"conformance file: nothing was written: {plain(str(error))}", file=sys.stderr)
            return 1
        renamed = {old: new for old, new in made.names.items() if old != new}
        for old, new in renamed.items():
            console().print(Text(f"  {plain(old)} → {plain(new)}"))
        console().print(Text(f"wrote {arguments.to} to {out}: the same factors and scales, {len(renamed)} other names"))
    return written.status(0 if meaning.right else 1)


def _is_config_alone(folder: Path) -> bool:
    return (folder / "config.json").exists() and not any(folder.glob("*.safetensors"))


def _model(base: str | None, meaning: Meaning, format: str) -> names.Model | None:
    """The base model, if its folder has a config.json and the two formats have other names for its modules."""
    schemes = {names.SCHEMES.get(meaning.format), names.SCHEMES.get(format)}
    known = base is not None and (Path(base) / "config.json").exists() and len(schemes) == 2 and None not in schemes
    return names.model_of(str(base)) if known else None


def as_dict(meaning: Meaning) -> dict:
    """The JSON report: schema 1."""
    modules = [{
        "module": part.module, "kind": part.kind, "weight": list(part.weight), "rank": part.rank, "scale": part.scale.value,
        "scale_from": part.scale.source, "delta_norm": part.norm(), "tensors": {"A": part.A.name, "B": part.B.name} | (
            {"magnitude": part.magnitude} if part.magnitude else {}) | ({"bias": part.bias} if part.bias else {}),
    } for part in meaning.parts]
    return {
        "schema": 1, "path": meaning.path, "format": meaning.format, "right": meaning.right, "modules": modules,
        "others": [other._asdict() for other in meaning.others], "settings": meaning.settings,
        "issues": [{"code": issue.code, "severity": issue.severity, "where": issue.where, "words": issue.words,
                    "sentence": issue.kind.sentence, "clause": issue.kind.clause,
                    "clause_sentence": CLAUSES[issue.kind.clause].sentence}
                   for issue in meaning.issues],
    }


def show(meaning: Meaning) -> None:
    """Prints what the file says, at 80 columns and without colour too."""
    screen = console()
    screen.print(Text(f"{meaning.format}: {len(meaning.parts)} modules", style="bold"))
    for name, value in sorted(meaning.settings.items()):
        text.paragraph(screen, f"{plain(name)} = {plain(str(value))[:200]}", 2, hanging=2)
    if meaning.parts:
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for name in ("module", "weight", "rank", "scale", "‖ΔW‖"):
            table.add_column(name, overflow="fold", justify="left" if name == "module" else "right")
        for part in meaning.parts:
            norm = "needs W" if part.magnitude else _number(part.norm())
            table.add_row(plain(part.module), "×".join(map(str, part.weight)), str(part.rank), _number(part.scale.value), norm)
        screen.print(table)
        for source, count in Counter(part.scale.source for part in meaning.parts).items():
            text.paragraph(screen, f"scale of {count}: {plain(source)}", 2, hanging=2)
    for other in meaning.others:
        text.paragraph(screen, f"{plain(other.name)}: {other.words}", 2, hanging=2)
    shown: Counter[str] = Counter()
    for issue in meaning.issues:
        if not shown[issue.code]:
            style = "bold red" if issue.severity == ERROR else "bold"
            head = f"{issue.code} {issue.severity}: {issue.kind.sentence} ({issue.kind.clause})"
            text.paragraph(screen, head, hanging=2, style=style)
        shown[issue.code] += 1
        if shown[issue.code] <= SHOWN:
            text.paragraph(screen, f"{plain(issue.where)[:300]}: {plain(issue.words)}", 2, hanging=2)
    for code, count in shown.items():
        if count > SHOWN:
            screen.print(Text(f"{code}: {count - SHOWN} more of them are in the JSON"))
    screen.print(Text("no issue is an error" if meaning.right else "wrong", style="bold"))
    sys.stdout.flush()


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.5g}"
