"""SPEC.md, from the requirements. `python -m conformance.report.generated` writes it, and a test fails while it is stale."""

from pathlib import Path

from conformance import __version__
from conformance.mutants import all_mutants, honest_subjects
from conformance.requirements import Requirement, all_requirements, groups, profiles
from conformance.run.diagnosis import catalogue
from conformance.truth.space import FACTORS, NEAR, RULES, STRENGTH, Factor, word

PATH = Path(__file__).parents[1] / "SPEC.md"

HEAD = """\
# What a LoRA layer must do

Version {version}. Generated from `conformance/requirements/` by `python -m conformance.report.generated`; do not edit.
{count} requirements: {must} MUST, {should} SHOULD. The id of a requirement is never given to another one.

The words MUST, MUST NOT, SHOULD, SHOULD NOT and MAY are to be read as in RFC 2119. A requirement that is marked
*where offered* binds only implementations that offer the feature.

## Notation

Each row is a sample. In a shape, `…` stands for any number of leading dimensions; all of them are counted as rows.

| symbol | shape | meaning |
|---|---|---|
| x | (…, in) | input |
| W, b | (out, in), (out) | the frozen weight and bias of the base layer |
| A, B | (in, rank), (rank, out) | the trainable factors; x is multiplied by A first |
| scale | number | alpha / rank, or alpha / √rank with rank-stabilised scaling |
| y | (…, out) | output: `y = x Wᵀ + b + scale · (x A) B` |
| dT | that of T | gradient of the loss with respect to T; dy (…, out) is an input of the backward pass |
| W' | (out, in) | the merged weight: `W' = W + scale · (A B)ᵀ` |
| p, m | rate, mask | dropout: `x̃ = x · m / (1 − p)`, m ~ Bernoulli(1 − p) |
| u, v, γₖ | numbers | unit roundoff of the stored format, and of the accumulator; γₖ = k v / (1 − k v) |

The *base layer* is `x Wᵀ + b`. A layer is *fresh* before any step or load. It is *merged* between merge and unmerge. It is
either in *training mode* or in *inference mode*. An *honest* layer is one that computes the formula, with its sums in any
order and with rounding as the bound below allows it. The *subject* is the implementation that is tested.

## How a requirement is decided

* **Exact cases.** The arrays hold small integers, and the scale has few bits. Every product and sum is exact in the dtype
  of the layer, in every order. So an honest layer agrees with the formula bit for bit, and a wrong layer does not. These
  cases decide what a layer must compute: a requirement that says that something *equals* something else, or *is* it,
  speaks of cases in which every sum is exact. The requirements that begin with "On real numbers" say how much rounding may
  add in all other cases.
* **Rounding cases.** The arrays are drawn from normal distributions. The answer must be within a componentwise bound: the
  formula on absolute values, each term times (1 + γₖ)(1 + u)ᵐ − 1. The numbers k and m are counted for the worst honest
  order of computing (`lora_ref/error/bounds.py`). The bound allows float32 sums and one rounding to the layer's dtype after
  every product, scaling and addition.
* **The space.** Requirements about layers are decided a second time by cases of every regime: see below.
* **Statistics.** Some checks look at random numbers that the layer draws. Each of them rejects an honest layer with a
  probability of at most 10⁻¹¹.

`lora_ref` computes the right answer in float64, or in long double for float64 layers. Its own rounding is part of the
bound. The verdict on a subject is *conformant* if no MUST failed, {core} was decided, that is, not skipped as unsupported,
and at least half of the cases that could tell were answered. If fewer were, it is *partial*. What a subject does not offer
must follow from its configuration alone: a requirement whose cases are offered now and then fails. Known faults have ids
(BUG-…). `conformance/known_faults.json` and `conformance explain` say where each was reported.

## The space

A real fault lives in a regime: the tail of a tile, a stride, a number format in one mode, a value of alpha. So there is a
declared space of regimes (`conformance/truth/space.py`). It has {factors} factors:

| factor | levels; the plain one is in bold | what it is |
|---|---|---|
{space}
Some combinations are not in the space:

| factors | why |
|---|---|
{rules}
A covering array (`conformance/truth/covering.py`) of `conformance run` holds {strength}: {near}. That of `conformance run
--space` holds {exact}; only beside another size and a third factor a size counts by the tile that it is near. Another seed
gives another array. Hardly any fault needs more than three factors together: Kuhn, Wallace and Gallo, *Software Fault
Interactions and Implications for Software Testing*, IEEE Trans. Software Eng. 30(6), 2004; NIST SP 800-142.

Each case is exact at its size, or judged within the bound where it cannot be (`conformance/truth/lattice.py`). With *few
bits* every sum is a whole number of units, and what is left out or exchanged changes an answer. With *many bits* every sum is
one term with as many bits as the format has, so that a detour through a narrower format changes a bit. Where a
number of x is *NaN* or *infinity*, rows before it are not judged in 16 bits: a CPU with AMX multiplies it there by a zero that
fills up a sum, and oneDNN does not keep the NaN from that row (uxlfoundation/oneDNN, issue 5717). One case is one life of
a layer (`conformance/requirements/helpers/life.py`): it is built, gets its factors as `history` says, is merged or not, computes
forwards and backwards, and all answers and all state are compared. In inference mode a torch module makes the same pass under
no_grad, too, as a layer that serves. Where only x needs a gradient, the frozen factors are replaced by others, and then made to
train again. Where it is *handled*, torch does something with the module after each step: it is copied (by deepcopy), reloaded
or assigned (its state_dict is loaded, the second time with assign=True), converted to float64 and back, swapped (each .data becomes
a copy), or serves (a pass under inference_mode); or each pass goes through another thread, a checkpoint or functional_call. What is
wrong counts as a failure of the requirement that
it breaks. The report gives the plainest case that still fails: every factor that is not needed is at its plain level, and every
size that is needed is the smallest one.

## What is free, and what is made up for

A PyTorch layer that is checked as it stands is looked at first (`conformance/drivers/look/`). What it has chosen is found by
experiment. Some choices are legitimate, and the requirements are asked under them:

| choice | why | source |
|---|---|---|
| the scale is an argument of its own, not called alpha | the caller says what the product is multiplied by | mlx-lm `LoRALinear(scale=…)`; diffusers `set_adapters(adapter_weights=…)` |
| the scale is always the same | there is no alpha | Flax `nnx.LoRALinear` |
| the scale is alpha / √rank | rank-stabilised LoRA; standard scaling is then not offered | Kalajdzievski, arXiv:2312.03732 |
| the caller freezes W and b | it gives them to the layer: a layer around a module leaves its numbers, dtype and mode (TORCH-18), and a LoRA part does not hold them | loralib `mark_only_lora_as_trainable`; Raschka, *Build a Large Language Model (From Scratch)*, appendix E |
| A starts at zero and B at random | the product is zero all the same | Hu et al., §4.1; Hayou et al., arXiv:2406.08447 |

Others are against a requirement, and would fail nearly all others, too. Each is one failure: the requirement about it is
asked of the layer as it stands, and all others as if it were not so. `--strict` makes up for nothing.

| choice | fails | in all others |
|---|---|---|
| the scale is alpha, under that name | SCALE-01 | alpha is chosen so that the scale is right |
| alpha is taken and has no effect | SCALE-05 | every case has the scale that the layer has |
| W and b are made by the layer and train, and nothing beside it freezes them | PARAM-02 | they are frozen |
| the layer makes b train, also a b that it was given frozen | PARAM-02 | it is frozen |
| x must have three dimensions, or four | FWD-03 | x is reshaped |

## Layouts in use

How other projects store A and B. The tests convert each of them to the layout above (`conformance/subjects/`):

| implementation | A | B | scale |
|---|---|---|---|
| this specification | (in, rank) | (rank, out) | alpha / rank |
| loralib | `lora_A` (rank, in) | `lora_B` (out, rank) | alpha / rank, not stored |
| PEFT | `lora_A.weight` (rank, in) | `lora_B.weight` (out, rank) | alpha / rank or alpha / √rank, in adapter_config.json |
| torchtune | `lora_a.weight` (rank, in) | `lora_b.weight` (out, rank) | alpha / rank, in the configuration |
| adapters | `lora_A` (rank, in) | `lora_B` (out, rank) | alpha / rank, in the configuration |
| kohya | `lora_down.weight` (rank, in) | `lora_up.weight` (out, rank) | tensor `alpha` per module, over rank |
| diffusers | `lora_A.weight` (rank, in) | `lora_B.weight` (out, rank) | metadata, or `.alpha` |
| mlx-lm | `lora_a` (in, rank) | `lora_b` (rank, out) | given directly, 20 by default |
| keras | `lora_kernel_a` (in, rank) | `lora_kernel_b` (rank, out) | alpha / rank, alpha = rank by default |
| GGUF | `lora_a` (rank, in) in row-major order | `lora_b` (out, rank) | adapter.lora.alpha over rank |
| the paper, eq. 3 | A (rank, in): columns are samples | B (out, rank) | α / r |

## Where the sources contradict each other, and what is chosen here

| question | sources | here |
|---|---|---|
| distribution of A | paper: Gaussian, no standard deviation; loralib, PEFT, torchtune: U(±1/√in); PEFT "gaussian": N(0, 1/rank²) | any with mean 0 and full rank (INIT-04, INIT-05); the spread SHOULD NOT depend on the rank (INIT-07) |
| fan-in of A | torch takes size(1): that is `in` for A (rank, in), but `rank` for A (in, rank) | always `in`, whatever the layout |
| which factor is zero | B in linear layers; A in the embeddings of loralib and PEFT | exactly one of them (INIT-03) |
| scale | paper eq. 3: none; its v2: α / r; rsLoRA: α / √r; mlx-lm: a number that is given directly | alpha / rank; alpha / √rank where offered (SCALE-01, SCALE-03) |
| place of dropout | before A (all); after A as well (2021 code); after A only (kohya) | anywhere on the LoRA path (DROP-02 to DROP-04) |
| rows or columns | paper: B A x with column vectors; this page: x A B with rows | W' = W + scale · (A B)ᵀ for W (out, in) (MERGE-01) |
| merging at eval() | loralib merges and unmerges with the mode; PEFT never does | both (GRAD-12); saved files do not depend on it (STATE-05) |
| unmerge | by subtraction, or from a kept copy | within rounding (MERGE-07), SHOULD be bit-exact (MERGE-08) |
| merging in half precision | rounding after each step, or once | both within the bound (DTYPE-06), SHOULD round once (DTYPE-07) |
| adapters over a half-precision base | of the base's dtype, or float32 | both; the output has the base's dtype (DTYPE-01) |
| rank 0 | an error (PEFT), or LoRA turned off (loralib) | both (INPUT-03) |
| rank > min(in, out) | computed, or refused | both (FWD-07) |
| alpha = 0 | the base layer, or an error | both (SCALE-06) |
| while merged | setting, loading, saving and going to training mode are carried out, or refused | both; nothing is corrupted (MERGE-11, MERGE-17, STATE-06) |
| gradients in inference mode | given, withheld (`torch.inference_mode`), or an error | all three; a gradient that is given is right (GRAD-12). A torch module in grad mode keeps a graph, since eval() has no say in that (TORCH-13) |
| combining adapters | ranks side by side; roots of the weights in both factors (PEFT, one adapter) | both are right within rounding (MULTI-13); adding up the factors is wrong |
| parameter count | paper: 2 · d · r, for square matrices | rank · (in + out), which is the same there (PARAM-01) |

## Profiles

An inference engine has no gradients, and a training library may not be able to merge. So each profile has a verdict of its
own: `conformant`, `partial` (nothing failed, but something that the profile needs is not offered), `nonconformant`, or
`not offered`.

| profile | MUST requirements |
|---|---|
"""


def render() -> str:
    requirements = all_requirements()
    levels = [r.level for r in requirements]
    parts = [HEAD.format(
        version=__version__, count=len(requirements), must=levels.count("MUST"), should=levels.count("SHOULD"), core="FWD-01",
        factors=len(FACTORS), space="".join(map(_factor, FACTORS)), strength=STRENGTH[False], exact=STRENGTH[True], near=", ".join(map(str, NEAR)),
        rules="".join(f"| {', '.join(rule.factors)} | {rule.says} |\n" for rule in RULES),
    )]
    for profile in profiles():
        ids = [r.id for r in requirements if r.profile == profile and r.level == "MUST"]
        parts.append(f"| {profile} | {' '.join(ids)} |\n")
    for group in groups().values():
        parts.append(f"\n## {group.id}: {group.title}\n")
        parts += [_section(r) for r in requirements if r.group == group.id]
    return "".join([*parts, _known_faults()])


def _factor(factor: Factor) -> str:
    words = [f"**{word(level)}**" if level == factor.plain else word(level) for level in factor.levels]
    return f"| {factor.name} | {', '.join(words)} | {factor.says} |\n"


def _known_faults() -> str:
    """The mutants and what must fail them, and the reports that wait for something that a single layer does not have."""
    mutants, rows = all_mutants(), catalogue()
    recreated = {row for mutant in mutants for row in mutant.reports}
    text = f"""
## Known faults

{len(mutants)} known-bad layers, of which those with numbers re-create {len(recreated)} of {len(rows)} public reports (BUG-…). Each
must be failed by the requirements named beside it, and {len(honest_subjects())} honest variations by none that is a MUST;
`conformance selftest` tries it, and is part of what every change must pass.

| group | mutant | what is wrong | reports | failed by at least |
|---|---|---|---|---|
"""
    for m in sorted(mutants, key=lambda m: list(groups()).index(m.group)):
        numbers = " ".join(row.removeprefix("BUG-") for row in m.reports)
        text += f"| {m.group} | {m.name} | {m.words.replace('|', '&#124;')} | {numbers} | {' '.join(m.kills)} |\n"
    text += "\nThe other reports wait for:\n\n"
    waiting: dict[str, list[str]] = {}
    for id, row in rows.items():
        if id not in recreated:
            waiting.setdefault(row["waits_for"], []).append(id.removeprefix("BUG-"))
    return text + "".join(f"* {what}: {' '.join(ids)}\n" for what, ids in waiting.items())


def _section(r: Requirement) -> str:
    offered = ", where offered" if r.optional else ""
    rows = [
        f"\n### {r.id} {r.title}\n",
        f"**{r.sentence}**\n",
        f"    {r.formula}\n" if r.formula else "",
        f"{r.why}\n",
        f"* level {r.level}{offered}; profile {r.profile}; needs {', '.join(r.calls)}",
        f"* sources: {'; '.join(r.sources)}",
        f"* known faults that it is meant to catch: {', '.join(r.faults)}" if r.faults else "",
    ]
    return "\n".join(row for row in rows if row) + "\n"
