"""FILE: adapter files. What a reader computes from one, what it must refuse, and what a writer must say.

    ΔW = scale · (A B)ᵀ        scale = alpha / rank, or alpha / √rank        FILES.md says where each of them stands in a file
"""

import json
from dataclasses import replace

import numpy as np

from conformance.files import reading
from conformance.files.readers.file import deltas
from conformance.record.trace import refuses
from conformance.requirements import Group, requirement
from conformance.requirements.helpers import drawn_adapters as drawn
from conformance.requirements.helpers import spoiled_adapters as spoiled
from conformance.requirements.helpers.drawn_adapters import adapters
from conformance.requirements.helpers.loaders import (
    agree,
    expect_same,
    fresh,
    is_pickle,
    judge,
    load,
    loaded,
    place,
    refused,
    right,
    state,
)
from conformance.requirements.helpers.spoiled_adapters import one_of
from conformance.subject import Unsupported
from conformance.truth.compare import Mismatch, expect, expect_equal

GROUP = Group("FILE", "Adapter files", order=85, profile="files", asks="build_loader")
READ, SAVE = "build_loader load delta", "build_loader load delta save"
FILES_MD = "conformance/FILES.md, clause "
SHARE = 0.25  # share of the usual number of cases: each is written to a folder


def clauses(*names: str) -> tuple[str, ...]:
    return tuple(FILES_MD + name for name in names)


@requirement(
    "FILE-01",
    "A reader MUST add scale · (A B)ᵀ, with scale = lora_alpha / r, to the weight of every module whose factors are in the "
    "file, and change nothing else.",
    formula="ΔW = lora_alpha / r · (A B)ᵀ", sources=clauses("P-2", "P-3", "R-1"), needs=READ, faults="01 03 13 115 117",
    cases=adapters(drawn.plain),
)
def plain_adapter(subject, case):
    """Every later requirement compares with this. If the factors were transposed, or went to another module of the same shape,
    no shape would show it."""
    return right(subject, case)


@requirement(
    "FILE-02", "With `use_rslora` a reader MUST use scale = lora_alpha / √r, or refuse the file.",
    formula="ΔW = lora_alpha / √r · (A B)ᵀ", sources=(*clauses("P-3", "R-2"), "arXiv:2312.03732"), needs=READ,
    faults="22", cases=adapters(drawn.rslora), optional=True, examples=SHARE,
)
def rslora(subject, case):
    """The converter of llama.cpp leaves the setting out. The adapter then has 1 / √r of its strength."""
    return right(subject, case)


@requirement(
    "FILE-03",
    "`rank_pattern` and `alpha_pattern` MUST give a module the value of the first key that matches its name, or the end of it "
    "after a dot; or the file is refused.", formula="scale = alpha(module) / r(module)", sources=clauses("P-4", "R-2"),
    needs=READ, faults="09 17", cases=adapters(drawn.patterns), optional=True,
)
def patterns(subject, case):
    """A key is a regular expression. One that matches only the middle of a name, or a part of its last segment, is for no
    module."""
    return right(subject, case)


@requirement(
    "FILE-04", "Without `lora_alpha` a reader MUST take PEFT's default, 8, or refuse the file.", formula="ΔW = 8 / r · (A B)ᵀ",
    sources=clauses("P-3", "R-9"), needs=READ, faults="14", cases=adapters(drawn.without_alpha), optional=True, examples=SHARE,
)
def without_alpha(subject, case):
    """With a default of 0 the adapter does nothing, and with one of r it has another strength. Nobody is told."""
    return right(subject, case)


@requirement(
    "FILE-05",
    "The way in which the settings name the modules MUST NOT matter: by whole names, ends of names, an expression, or with "
    "some left out by `exclude_modules`.", formula="the same modules ⇒ the same ΔW", sources=clauses("P-5"), needs=READ,
    cases=adapters(drawn.targets), examples=SHARE,
)
def ways_to_name_modules(subject, case):
    """A reader that knows one way of naming finds no module, and may serve the base model."""
    return right(subject, case)


@requirement(
    "FILE-06", "The order of the tensors in the file MUST NOT matter.", formula="ΔW by name", sources=clauses("C-2", "P-2"),
    needs=READ, faults="09 114", cases=adapters(drawn.in_any_order), examples=SHARE, optional=True,
)
def order_of_tensors(subject, case):
    """Readers have taken the rank or alpha of the first module for all, and have paired factors by their place."""
    return right(subject, case)


@requirement(
    "FILE-07", "Factors in float16, bfloat16, float32 and float64 MUST be used with the values that they have.",
    formula="the same numbers ⇒ the same ΔW", sources=clauses("C-6"), needs=READ, cases=adapters(drawn.of_dtype),
    examples=SHARE,
)
def dtypes_of_factors(subject, case):
    """All numbers of the case are small integers, which every one of these formats holds."""
    return right(subject, case)


@requirement(
    "FILE-08", "`lora_embedding_A` and `lora_embedding_B` MUST change the rows of the embedding, or the file is refused.",
    formula="W[i] + scale · (A B)[i]", sources=clauses("P-10", "R-1"), needs=READ, faults="120",
    cases=adapters(drawn.embedding), optional=True, examples=SHARE,
)
def factors_of_an_embedding(subject, case):
    """A reader that looks for lora_A and lora_B alone leaves them out."""
    return right(subject, case)


@requirement(
    "FILE-09",
    "The factors of GPT-2's Conv1D MUST be used as those of other layers, whatever `fan_in_fan_out` says; or the file is "
    "refused.",
    formula="ΔW = scale · A B for W (in, out)", sources=clauses("P-7"), needs=READ,
    cases=adapters(drawn.conv1d), optional=True, examples=SHARE,
)
def conv1d(subject, case):
    """The setting is one for the whole file. The layer itself knows which way round its weight is."""
    return right(subject, case)


@requirement(
    "FILE-10", "The biases of a file with `bias` all or lora_only MUST take the place of the model's, or the file is refused.",
    formula="b' = the bias of the file", sources=clauses("P-8", "R-1"), needs=READ, faults="112", cases=adapters(drawn.biases),
    optional=True, examples=SHARE,
)
def trained_biases(subject, case):
    """The key of a bias is another one where the module has factors: {module}.base_layer.bias."""
    return right(subject, case)


@requirement(
    "FILE-11", "A module of `modules_to_save` MUST take the place of the model's, or the file is refused.",
    formula="W' = the weight of the file", sources=clauses("P-9", "R-1"), needs=READ, faults="120", cases=adapters(drawn.whole),
    optional=True, examples=SHARE,
)
def whole_modules(subject, case):
    """A trained head that is left out gives plausible answers."""
    return right(subject, case)


@requirement(
    "FILE-12", "With `lora_bias` a reader MUST add scale times the bias beside B to the output, or refuse the file.",
    formula="y + scale · lora_B.bias", sources=clauses("P-11", "R-2"), needs=READ, cases=adapters(drawn.bias_beside_B),
    optional=True, examples=SHARE,
)
def bias_beside_B(subject, case):
    """The bias is multiplied by the scale, as what it stands beside."""
    return right(subject, case)


@requirement(
    "FILE-13",
    "With `use_dora` a reader MUST scale each row of W + scale · (A B)ᵀ to the length in `lora_magnitude_vector`, or refuse "
    "the file.",
    formula="W' = m · V / ‖V‖, V = W + scale · (A B)ᵀ", sources=(*clauses("P-6", "R-2"), "arXiv:2402.09353"), needs=READ,
    cases=adapters(drawn.dora), optional=True, examples=SHARE,
)
def magnitudes(subject, case):
    """Without the magnitudes the adapter is another one, and its strength looks right."""
    return right(subject, case)


@requirement(
    "FILE-14", "A reader MUST use every tensor of the file, or refuse the file.", formula="tensors used = tensors there",
    sources=(*clauses("R-1", "R-6", "P-2", "P-5"), "vllm-project/vllm, issues 34186 and 55193"), needs=READ,
    faults="115", cases=adapters(one_of(*spoiled.UNUSED)),
)
def unused_tensors(subject, case):
    """A key with a segment more, or one for a layer that is not there, has left models with half of an adapter, or with none.
    The server answers all the same."""
    refused(subject, case)


@requirement(
    "FILE-15", "A reader MUST refuse factors that do not fit each other, the weight, or the rank that the settings give.",
    formula="A (rank, in), B (out, rank), rank = r", sources=clauses("R-3", "R-4", "R-5", "R-7"), needs=READ,
    cases=adapters(one_of(*spoiled.UNFIT)),
)
def factors_that_do_not_fit(subject, case):
    """Cutting, padding, broadcasting and skipping change the function silently. The scale depends on the rank."""
    refused(subject, case)


@requirement(
    "FILE-16", "A reader MUST refuse a known setting that changes the function and that it cannot carry out on this file.",
    formula="peft_type, use_dora, lora_bias, layer_replication, use_qalora, target_parameters", sources=clauses("R-2", "P-12"),
    needs=READ, cases=adapters(one_of(*spoiled.MEANING)),
)
def settings_that_cannot_be_followed(subject, case):
    """Each of these settings needs tensors, layers or another method that this file and this base do not have."""
    refused(subject, case)


@requirement(
    "FILE-17", "A reader SHOULD refuse a setting that it does not know, unless that is false or empty.",
    formula="an unknown name ⇒ an error", sources=clauses("R-2"), needs=READ, cases=adapters(one_of(*spoiled.UNKNOWN)),
    examples=SHARE,
)
def unknown_settings(subject, case):
    """Newer versions of PEFT write settings that older readers do not know. Some of them change the function."""
    refused(subject, case)


@requirement(
    "FILE-18", "A reader MUST refuse a setting whose value is of the wrong kind.", formula="lora_alpha is a number, and so on",
    sources=clauses("R-2"), needs=READ, cases=adapters(one_of(*spoiled.VALUES)),
)
def settings_of_the_wrong_kind(subject, case):
    """A value that is text may be taken for true, for zero, or for the default."""
    refused(subject, case)


@requirement(
    "FILE-19", "A reader MUST refuse files that are cut off or contradict themselves.", formula="bytes = what the header says",
    sources=(*clauses("C-1", "C-2", "P-1"), "huggingface/safetensors, README, Format"), needs=READ,
    cases=adapters(one_of(*spoiled.DAMAGED)),
)
def damaged_files(subject, case):
    """A download that ended early is a common one. The last factor then has zeros, or what was in memory."""
    refused(subject, case)


@requirement(
    "FILE-20", "A reader SHOULD refuse settings in which a name occurs twice.", formula="one value for each name",
    sources=(*clauses("C-3"), "RFC 8259, §4"), needs=READ, cases=adapters(one_of(*spoiled.TWICE)), examples=SHARE,
)
def a_setting_twice(subject, case):
    """Readers of JSON keep the first value or the last one. So two readers compute two functions."""
    refused(subject, case)


@requirement(
    "FILE-21", "A reader SHOULD refuse factors that are not finite.", formula="|A|, |B| < ∞", sources=clauses("C-7"),
    needs=READ, cases=adapters(one_of(spoiled.not_finite)), examples=SHARE,
)
def factors_that_are_not_finite(subject, case):
    """One NaN in B makes one output NaN, and with it everything behind it."""
    refused(subject, case)


@requirement(
    "FILE-22", "A reader MUST NOT run what a pickle in the place of the tensors says.", formula="no code of the file runs",
    sources=(*clauses("C-5"), "Python documentation, pickle, warning"), needs=READ, cases=adapters(drawn.plain), examples=SHARE,
)
def pickles(subject, case):
    """The pickle makes a folder when it is loaded. Nobody told the reader that it may be trusted."""
    with place() as folder:
        loaded(subject, case, folder / "good")
        bad = spoiled.as_pickle(case, folder)
        loader = fresh(subject, case)
        was_refused = refuses(loader.load, bad.written(folder / "bad"))
        expect(not (folder / spoiled.MARK).exists(), "a pickle in the place of the tensors", "was run", "not run")
        if not was_refused and any(np.any(delta) for delta in loader.delta().values()):
            raise Mismatch("a pickle in the place of the tensors", "used", "an error")


@requirement(
    "FILE-23", "A load that is refused MUST leave the model as it was: without an adapter, or with the one that it had.",
    formula="load fails ⇒ ΔW and W as before", sources=clauses("R-8"), needs=READ, faults="104",
    cases=adapters(one_of(*spoiled.UNUSED, *spoiled.UNFIT, *spoiled.VALUES, *spoiled.DAMAGED, spoiled.not_finite)),
)
def refused_load_changes_nothing(subject, case):
    """A server catches the error and goes on. It must not go on with half of an adapter."""
    with place() as folder:
        bad = case.written(folder / "bad")
        for words in ("", ", with an adapter on it"):
            loader = fresh(subject, case)
            if words:
                load(loader, case.good, folder / "good")
            before = state(loader)
            if refuses(loader.load, bad):
                expect_same(state(loader), before, f"after a file with {case.wrong} was refused{words}")


@requirement(
    "FILE-24", "Loading MUST NOT change the weights of the base, nor the file.", formula="W after = W before",
    sources=clauses("R-8"), needs=f"{READ} base", faults="31", cases=adapters(drawn.plain), examples=SHARE, optional=True,
)
def base_stays(subject, case):
    """A reader that builds the layers again may draw their weights again, and one that merges cannot unload."""
    with place() as folder:
        loader = loaded(subject, case, folder / "adapter")
        after = loader.base()
        expect(after.keys() >= case.base.keys(), "names of the base after a load", sorted(after), sorted(case.base))
        for name, want in case.base.items():
            expect_equal(after[name], want, f"{name} of the base after a load")
        found = {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}
        expect(found == case.contents(), "the files after a load", "others", "as they were")


@requirement(
    "FILE-25", "A second load MUST put its adapter in the place of the first one.", formula="ΔW = that of the second file",
    sources=("Loader.load", "sgl-project/sglang, issue 29874; huggingface/peft, issue 3738"), needs=READ, faults="17",
    cases=adapters(drawn.two), examples=SHARE,
)
def second_load(subject, case):
    """The second file has another rank, another scale and other modules. What it does not mention must go back to the base."""
    with place() as folder:
        loader = loaded(subject, case, folder / "first")
        judge(loader, case)
        load(loader, case.other, folder / "second")
        judge(loader, case.other, " after a second load")
        load(loader, case, folder / "third")
        return judge(loader, case, " after the first file was loaded again")


@requirement(
    "FILE-26", "What is saved MUST mean what the model computes, by the clauses of FILES.md, and have no error.",
    formula="meaning(save(load(file))) = ΔW", sources=clauses("R-1", "R-9"), needs=SAVE, faults="12 13 21 24 112 113 116 120",
    cases=adapters(drawn.of_any_kind), optional=True,
)
def saved_means_what_is_computed(subject, case):
    """The file is read by this package, and not by the reader that wrote it. So two faults that hide each other are seen."""
    with place() as folder:
        loader = loaded(subject, case, folder / "adapter")
        (folder / "saved").mkdir()
        loader.save(folder / "saved")
        meaning = reading.read(str(folder / "saved"))
        if meaning.format in ("kohya", "diffusers", "GGUF"):
            raise Unsupported(f"{meaning.format}, whose names are not those of the base")
        reading.compare(meaning, {name: array.shape for name, array in case.base.items()})
        said = "; ".join(f"{issue.code} {issue.where}: {issue.words}" for issue in meaning.issues if issue.severity == "error")
        expect(meaning.right, "what was saved", said, "a file without an error")
        turned = {module for module, kind in case.kinds.items() if kind == "conv1d"}  # the layer decides, not the file (P-7)
        meaning.parts = [replace(part, fan_in_fan_out=part.module in turned) for part in meaning.parts]
        return agree(deltas(meaning, case.base), case.truth, " by what was saved")


@requirement(
    "FILE-27", "Loading what was saved MUST give the same function, bit for bit.", formula="load ∘ save ∘ load = load",
    sources=clauses("R-1"), needs=SAVE, faults="13", cases=adapters(drawn.precise), optional=True,
    examples=SHARE,
)
def saved_and_loaded(subject, case):
    """The factors use every bit of their dtype. A file in another precision loses the training."""
    with place() as folder:
        loader = loaded(subject, case, folder / "adapter")
        want = loader.delta()
        (folder / "saved").mkdir()
        loader.save(folder / "saved")
        again = fresh(subject, case)
        again.load(folder / "saved")
        judge(again, case, " after save and load", want)


@requirement(
    "FILE-28", "Saving MUST change nothing, and saving twice MUST write the same.", formula="save ∘ save = save",
    sources=("Loader.save",), needs=SAVE, faults="87 122", cases=adapters(drawn.plain), optional=True, examples=SHARE,
)
def saving_is_pure(subject, case):
    """A save may merge the model and leave it merged. A second file shows that."""
    with place() as folder:
        loader = loaded(subject, case, folder / "adapter")
        before = state(loader)
        for name in ("once", "twice"):
            (folder / name).mkdir()
            loader.save(folder / name)
            expect_same(state(loader), before, f"after it was saved {name}")
            expect(any((folder / name).iterdir()), "what save() wrote", "nothing", "at least one file")
            again = fresh(subject, case)
            again.load(folder / name)
            judge(again, case, f" of what was saved {name}")


@requirement(
    "FILE-29", "What is saved MUST be JSON with finite numbers, and tensors that are no pickle.",
    formula="settings: RFC 8259; tensors: safetensors, GGUF, npz", sources=(*clauses("C-5", "P-1"), "RFC 8259, §6"), needs=SAVE,
    cases=adapters(drawn.plain), optional=True, examples=SHARE,
)
def saved_files_are_safe(subject, case):
    """Whoever gets the file need not trust whoever wrote it."""
    def refuse(word: str):
        raise ValueError(f"{word} is no JSON")

    with place() as folder:
        loader = loaded(subject, case, folder / "adapter")
        (folder / "saved").mkdir()
        loader.save(folder / "saved")
        for path in (folder / "saved").rglob("*"):
            if path.suffix == ".json":
                try:
                    json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
                except ValueError as error:
                    raise Mismatch(f"what was saved as {path.name}", str(error), "JSON") from None
            safe = path.is_dir() or not is_pickle(path)
            expect(safe, f"what was saved as {path.name}", "a pickle", "a format that runs no code")


@requirement(
    "FILE-30", "Merging MUST add to each weight what the adapter adds to it.", formula="W' = W + ΔW",
    sources=("Loader.merge", "lora_ref/lora.py, merge"), needs=f"{READ} merge base",
    cases=adapters(drawn.of_any_kind), optional=True, examples=SHARE,
)
def merged_base(subject, case):
    """The merged model goes where no reader of adapters is. Its scale and its biases must be those of the file."""
    with place() as folder:
        loader = loaded(subject, case, folder / "adapter")
        loader.merge()
        base = loader.base()
        for name, array in case.base.items():
            added = case.truth.get(name.removesuffix(".weight"), np.zeros(array.shape))
            expect(name in base, "names of the base after merge", sorted(base), f"{name} among them")
            expect_equal(base[name], array + added, f"{name} after merge")


@requirement(
    "FILE-31", "A reader of kohya's files MUST use `.alpha` over the rank of the same module, and 1 without it.",
    formula="scale = alpha / rank, by module", sources=clauses("K-1", "K-2"), needs=READ, faults="09 11 117",
    cases=adapters(drawn.kohya), optional=True,
)
def alphas_of_kohya(subject, case):
    """Each module has its own rank and its own alpha. Readers have used one for all, or none."""
    return right(subject, case)


@requirement(
    "FILE-32",
    "A reader of kohya's files MUST refuse the factors of another method, and of a module that the base does not have, unless "
    "it uses them.",
    formula="tensors used = tensors there", sources=clauses("K-4", "R-1", "R-6"), needs=READ, faults="118",
    cases=adapters(spoiled.of_kohya), optional=True, examples=SHARE,
)
def other_methods_of_kohya(subject, case):
    """A filter by prefix may drop the whole file."""
    refused(subject, case)


@requirement(
    "FILE-33",
    "A reader of diffusers' files MUST take the scale from the metadata, from `.alpha`, or as 1, as the file has it.",
    formula="scale = alpha / rank, or 1", sources=clauses("D-1", "D-2"), needs=READ, faults="11",
    cases=adapters(drawn.diffusers), optional=True,
)
def scale_of_diffusers(subject, case):
    """Alpha has three homes in this format. A reader that knows one of them uses another strength for the others."""
    return right(subject, case)


@requirement(
    "FILE-34", "A reader of mlx-lm's files MUST use `lora_parameters.scale` as it stands, and not divide it by the rank.",
    formula="ΔW = scale · (A B)ᵀ, A (in, rank), B (rank, out)", sources=clauses("M-1", "M-2"), needs=READ, faults="13",
    cases=adapters(drawn.mlx), optional=True, examples=SHARE,
)
def scale_of_mlx(subject, case):
    """The factors are stored the other way round than PEFT's. A square one that is not turned fits all the same."""
    return right(subject, case)


@requirement(
    "FILE-35", "A reader of torchtune's files MUST use `lora_alpha / r` of the configuration beside the file.",
    formula="ΔW = lora_alpha / r · (A B)ᵀ", sources=clauses("T-1", "T-2"), needs=READ, cases=adapters(drawn.torchtune),
    optional=True, examples=SHARE,
)
def scale_of_torchtune(subject, case):
    """The tensors alone do not say the scale."""
    return right(subject, case)
