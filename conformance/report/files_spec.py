"""FILES.md, from the clauses of conformance/files/. `python -m conformance.report.generated` writes it."""

from collections import Counter
from pathlib import Path

from conformance import __version__
from conformance.files import corpus
from conformance.files.clauses import CLAUSES, KINDS, SECTIONS

PATH = Path(__file__).parents[1] / "FILES.md"

HEAD = """\
# What an adapter file means

Version {version}. Generated from `conformance/files/clauses.py` by `python -m conformance.report.generated`; do not edit. It has
{clauses} clauses and {issues} kinds of issues. The id of a clause and the code of an issue are never given to another one.

There is no generally agreed format for adapters (PEFT documentation, *PEFT checkpoint format*). This page says what the files
of six projects mean, by their code and their documentation: which tensor is which factor, in which layout, and where the scale
comes from. The words MUST, MUST NOT and SHOULD are to be read as in RFC 2119. A *reader* is a program that puts an adapter into a model
or onto a server. A *factor* is A or B.

    W' = W + scale · B A        W (out, in)   B (out, rank)   A (rank, in), as most files store them

`conformance file PATH` shows what a file means by these clauses, and what is wrong with it. `conformance corpus DIR` writes
{cases} small files, {valid} valid and {invalid} invalid, each about one clause, with the right ΔW beside the valid ones.

## Which format is it?

| format | is recognised by | A | B | scale |
|---|---|---|---|---|
| PEFT | a folder with `adapter_config.json` and `adapter_model.safetensors` | `lora_A.weight` (rank, in) | `lora_B.weight` (out, rank) | `lora_alpha / r` or `lora_alpha / √r` |
| diffusers | `unet.`, `transformer.`, `text_encoder.` … before the names | `lora_A.weight` (rank, in) | `lora_B.weight` (out, rank) | metadata, else `.alpha` / rank, else 1 |
| kohya, ComfyUI | names with one dot before `lora_down`, `lora_up` | `lora_down.weight` (rank, in) | `lora_up.weight` (out, rank) | `.alpha` / rank, else 1 |
| torchtune | `lora_a.weight` | `lora_a.weight` (rank, in) | `lora_b.weight` (out, rank) | `lora_alpha / r`, in the settings beside it |
| mlx-lm | `lora_a` at the end of a name | `lora_a` (in, rank) | `lora_b` (rank, out) | `lora_parameters.scale`, as it stands |
| GGUF | `GGUF` at the beginning of the file | `.lora_a` (rank, in) | `.lora_b` (out, rank) | `adapter.lora.alpha` / rank, else 1 |

## Where the sources contradict each other, and what is chosen here

| question | sources | here |
|---|---|---|
| alpha is not given | PEFT: 8; kohya, diffusers: the rank; llama.cpp: a scale of 1; mlx-lm: an error | by the format (P-3, K-2, D-2, G-2, M-2) |
| alpha is given twice | diffusers: an error; kohya's readers: the tensor, and the metadata is not read | by the format: an error (D-2), or a warning (K-3) |
| two patterns match one module | PEFT: the first one counts, and its own save sorts them | the first one in the file (P-4) |
| a tensor that nobody uses | PEFT, vLLM: a warning at most; llama.cpp: an error | an error (R-1) |
| a setting that a reader does not know | llama.cpp's converter: left out; PEFT: left out, with a warning | an error if it changes the function (R-2) |
| factors for a module that the settings do not name | PEFT: left out, with a warning; others do not look | an error (P-5) |
| the rank in the settings is not that of the factors | PEFT: an error; llama.cpp: the factors count | an error (R-5) |
| a name of a module is ambiguous | kohya writes every dot as an underscore | an error, if the base model has two such modules (R-6) |

## What is not here yet

Factors of experts in one tensor (`target_parameters`), aLoRA, trained tokens, replicated layers, LoHa, LoKr, OFT and quantised factors
have no clause: a file with one of them is an error (FILE-011, FILE-014). Fused and split projections are left to the names: a
module is what the file calls one.

## Errata

None.
"""


def render() -> str:
    cases = list(corpus.cases())
    valid, all_of = Counter(case.clause for case in cases if case.valid), Counter(case.clause for case in cases)
    parts = [HEAD.format(version=__version__, clauses=len(CLAUSES), issues=len(KINDS), cases=len(cases), valid=valid.total(),
                         invalid=len(cases) - valid.total())]
    for section, title in SECTIONS.items():
        parts.append(f"\n## {title}\n")
        for id, clause in CLAUSES.items():
            if id.partition("-")[0] == section:
                codes = ", ".join(code for code, kind in KINDS.items() if kind.clause == id)
                tried = f"{valid[id]} valid, {all_of[id] - valid[id]} invalid" if all_of[id] else "none"
                parts.append(f"\n### {id}\n\n**{clause.sentence}**\n" + (f"\n{clause.why}\n" if clause.why else "") +
                             f"\n* sources: {clause.sources}\n* files of the corpus: {tried}\n" + (f"* issues: {codes}\n" if codes else ""))
    parts.append("\n## Issues\n\nAn *error* makes the exit status 1. A *warning* may be one, and a *note* is worth knowing.\n\n")
    parts.append("| code | severity | what it says | clause |\n|---|---|---|---|\n")
    parts += [f"| {code} | {kind.severity} | {kind.sentence} | {kind.clause} |\n" for code, kind in KINDS.items()]
    return "".join(parts)
