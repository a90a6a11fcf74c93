"""The list of attacks and accidents: what each does, how it is run, and which verdicts are right for it.

`python tests/conformance/attacks/corpus.py` writes docs/attacks.md, the same list for readers. test_attacks.py runs all of it.
"""

import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
PAGE = HERE.parents[2] / "docs" / "attacks.md"
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
CONFORMANT, WRONG, NOTHING = ("conformant",), ("nonconformant",), ("error",)
BROKEN = ("nonconformant", "error")  # it may break at the first call, so that nothing could be decided, or later
DIED = ("killed",)  # no verdict: the command itself was ended by a signal
BATCH = 8  # subjects that one command judges
ALIKE = 4  # of those with the same file and options, so many are run in CI
SILENT = ("--timeout", "1", "--jobs", "4")  # for those that do not answer


class Attack(NamedTuple):
    """One entry. `expected` are the verdicts that are right, and `says` is a text that the report must hold."""

    name: str
    does: str
    expected: tuple[str, ...] = ()  # () stands for what is usual in its section
    says: str = ""
    only: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    alone: bool = False  # no other subject is judged by the same command
    files: tuple[tuple[str, str], ...] = ()  # (name, text) of files in the current folder
    spec: str = ""
    rare: bool = False  # it is like others, and run with HYPOTHESIS_PROFILE=thorough alone


class Section(NamedTuple):
    """Attacks of one kind: those in one file."""

    title: str
    file: str
    about: str
    attacks: tuple[Attack, ...]


def section(title: str, file: str, about: str, *attacks: Attack, expected=WRONG, only=("FWD-01",), options=()) -> Section:
    """A Section whose entries have these values where they have none of their own."""
    return Section(title, file, about, tuple(attack._replace(
        expected=attack.expected or expected, only=attack.only or only, options=attack.options or options,
        spec=attack.spec or spec(file, attack.name)) for attack in attacks))


def spec(file: str, name: str) -> str:
    if file == "program.py":
        return f"cmd:{shlex.quote(sys.executable)} {shlex.quote(str(HERE / file))} {name}"
    return f"{HERE / file}:{name}"


INTRODUCTION = """\
# Attacks and accidents

What was tried on a conformance run, and which verdict is right for it. `tests/conformance/attacks/` holds the subjects and
programs, and tests that run them through the command line: a part with every change, and all of them with
`HYPOTHESIS_PROFILE=thorough`. Each run must end within a minute, must leave no process behind, and must write reports that are
well-formed. No wrong layer may be called conformant.

"error" stands where nothing could be decided, because the subject broke at the first call. "killed" stands where a subject,
which has the rights of its user, may end the command: then there is no verdict at all.

"""
A, R = Attack, partial(Attack, rare=True)
JUDGE = section(
    "The judge is changed", "judge.py", "Layers that subtract the LoRA part. They lay hands on what judges them.",
    A("sets_the_scale_of_the_truth", "Replaces `lora_ref.lora.scale`."),
    R("sets_the_formula_of_the_truth", "Replaces `lora_ref.lora.forward`."),
    A("sets_the_true_answers", "Replaces the property that gives a case its true answers."),
    A("replaces_the_comparisons", "Replaces the functions that compare, for all requirements but the canaries."),
    R("replaces_the_comparisons_late", "The same, in the middle of the first case."),
    R("makes_all_numbers_zero", "Replaces the function that widens arrays before they are compared by one that gives zeros."),
    A("mismatches_are_not_offered", "Makes the error for a wrong answer a kind of \"not offered\"."),
    R("mismatches_cannot_be_made", "Makes the error for a wrong answer raise Hypothesis' signal for a useless case."),
    A("replaces_checks", "Replaces the check of every requirement."),
    A("replaces_the_attempt", "Replaces the function that tries a case, for all requirements but the canaries."),
    A("outcomes_are_passes", "Makes every outcome say that it is a pass, except those of the canaries."),
    R("reports_are_conformant", "Makes every report say that it is conformant."),
    R("no_case_is_drawn", "Replaces the function that draws cases by one that draws none."),
    A("one_case_is_drawn", "Makes every search begin and end with the simplest case."),
    R("tests_are_not_called", "Replaces `hypothesis.given`."),
    A("replaces_numpy_functions", "Replaces `numpy.array_equal`, `allclose`, `isnan` and `abs`."),
    R("replaces_how_numpy_counts", "Replaces `numpy.asarray`, `array` and `broadcast_to`.", BROKEN),
    R("replaces_builtins", "Replaces `isinstance` by a function that agrees.", BROKEN),
    R("replaces_any_and_len", "Replaces `any` and `len`.", BROKEN),
    R("replaces_max_and_abs", "Replaces `max` and `abs`.", BROKEN),
    R("answers_in_json", "Replaces `json.dumps`, so that every outcome becomes a pass on its way."),
    R("replaces_os_write", "Replaces `os.write`, so that every failure becomes a pass on its way."),
    R("replaces_stdout", "Replaces `sys.stdout`, `sys.__stdout__` and `sys.stderr`."),
    A("imports_get_its_own_truth", "Puts a finder before all imports, and its own modules in the place of `lora_ref`.", BROKEN),
    R("the_random_numbers_are_known", "Sets the seeds of `random` and NumPy, and replaces the generator's methods."),
    A("looks_in_the_frames", "Looks for the case in the frames above, and answers with its truth."),
    A("looks_at_all_objects", "Looks for the case among all objects of the process, and answers with its truth."),
    R("changes_the_case_above", "Looks for the case in the frames above, and makes its own answer the truth."),
    A("traces_every_call", "Sets the variables of the comparison while it runs, with `sys.settrace`."),
    R("writes_into_objects", "Gives `False` the digits of 1, through `ctypes`.", BROKEN),
    A("saves_its_own_report", "Finds the file of `--json` on the command line above, and writes a report there."),
    R("answers_to_every_name", "Has every attribute that is looked for.", only=("FWD-01", "INIT-03")),
)
RAISING = section(
    "Errors for signals", "raising.py",
    "Layers that cannot take an odd number of rows. They raise there what the harness may take for a signal of its own.",
    A("rejects_the_case", "Raises Hypothesis' signal for a useless case."),
    A("stops_the_test", "Raises Hypothesis' signal for the end of a test."),
    A("says_enough", "Raises the harness's own signal for the end of a search."),
    R("says_flaky", "Raises Hypothesis' error for a test that changes its mind."),
    R("says_it_is_unsatisfiable", "Raises Hypothesis' error for a test without cases."),
    R("skips_the_test", "Raises `unittest.SkipTest`."),
    R("ends_its_generator", "Raises `GeneratorExit`."),
    R("stops_iterating", "Raises `StopIteration`."),
    A("interrupts", "Raises `KeyboardInterrupt`."),
    A("exits_well", "Raises `SystemExit(0)`."),
    R("exits_with_words", "Raises `SystemExit(\"CONFORMANT\")`."),
    R("raises_no_exception", "Raises a subclass of `BaseException` alone."),
    R("cancels_itself", "Raises `asyncio.CancelledError`."),
    R("says_the_pipe_broke", "Raises `BrokenPipeError`, as a broken connection does."),
    R("says_the_input_ended", "Raises `EOFError`."),
    R("says_it_timed_out", "Raises `TimeoutError`."),
    R("says_memory_is_out", "Raises `MemoryError`."),
    A("raises_without_words", "Raises an error whose `__str__` and `__repr__` raise."),
    A("raises_a_long_name", "Raises an error whose class has a name of a million letters."),
    A("raises_long_words", "Raises an error of twelve million letters."),
    A("raises_odd_words", "Raises an error with escape sequences, half a character, NUL and markup in its text."),
    R("raises_a_mismatch", "Raises the harness's error for a wrong answer, with an error of zero."),
    R("raises_a_group", "Raises an `ExceptionGroup` of \"not offered\"."),
    A("raises_what_lies", "Raises a subclass of Unsupported that lies about its class and about the method."),
    R("raises_itself", "Raises an error that is the cause of its cause."),
    R("recurses_for_ever", "Calls itself until the stack is full."),
    A("interrupts_most_builds", "Raises `KeyboardInterrupt` when most layers are built.", BROKEN),
    expected=BROKEN,
)
ANSWERS = section(
    "Answers that are not what they seem", "answers.py",
    "Most are wrong as above. Some have the right numbers, in a form that no answer may have.",
    A("is_equal_to_all", "Answers with a subclass of ndarray that equals everything."),
    A("overrides_every_function", "Answers with a subclass that replaces all of NumPy's functions for itself."),
    A("contradicts_itself", "Answers with a subclass whose shape, dtype, size and bytes contradict each other.", BROKEN),
    R("becomes_an_array", "Answers with an object that turns into an array of NaN."),
    A("is_masked", "Answers with a masked array in which everything is masked."),
    R("is_a_matrix", "Answers with a `numpy.matrix`."),
    A("holds_objects", "Answers with an array of objects that equal everything."),
    R("holds_structures", "Answers with a structured array."),
    R("is_complex", "Answers with complex numbers."),
    A("is_of_integers", "Answers with integers."),
    R("is_of_booleans", "Answers with truth values."),
    R("is_of_texts", "Answers with texts."),
    R("is_of_dates", "Answers with time spans."),
    R("is_a_long_double", "Answers with long doubles."),
    A("is_big_endian", "Answers with numbers of the other byte order."),
    R("swaps_its_bytes", "Answers with the right bytes, and with the other byte order as their dtype."),
    A("is_a_million_squared", "Answers with 10¹² elements in four bytes, by strides of 0.", BROKEN),
    R("is_all_nan", "Answers with NaN."),
    R("is_all_infinite", "Answers with infinities."),
    R("broadcasts", "Answers in a shape that would be broadcast to the right one."),
    R("is_empty", "Answers with no rows."),
    R("is_a_list", "Answers with lists."),
    R("is_a_buffer", "Answers with a memoryview."),
    R("is_a_generator", "Answers with a generator."),
    R("is_x_itself", "Answers with x."),
    A("lies_in_a_file_that_ends", "Answers with memory of a file that is cut off: reading it ends the process.", BROKEN),
    R("lies_where_there_is_no_memory", "Answers with an array at address 8.", BROKEN),
    R("takes_its_time_to_go", "Answers with arrays that sleep when they are thrown away.", BROKEN),
    A("gradients_in_a_dict_that_lies", "Gives gradients in a dict that lies about its keys.", only=("GRAD-02",)),
    R("gradients_under_any_name", "Gives gradients under a name that equals every name.", only=("GRAD-02",)),
    R("gradients_that_are_equal_to_all", "Gives gradients that equal everything.", only=("GRAD-02",)),
    R("gradients_within_themselves", "Gives gradients in a dict that holds itself.", BROKEN, only=("GRAD-02",)),
    A("gradients_without_end", "Gives the right gradients among 100,000 others.", ("conformant", *BROKEN), only=("GRAD-02",)),
    R("gradients_of_numbers", "Gives floats for gradients.", only=("GRAD-02",)),
    R("gradients_with_odd_names", "Gives the right gradients, and others under odd names.", only=("GRAD-02",)),
    A("trains_the_base", "Trains W, under a shape that equals every shape.", only=("PARAM-01",)),
    R("trains_numpy_integers", "Gives shapes of NumPy integers, and is wrong.", only=("PARAM-01", "FWD-01")),
    R("trains_a_negative_shape", "Trains a parameter with a negative shape.", only=("PARAM-01",)),
    R("trains_a_fraction", "Trains a parameter of 2.5 rows.", only=("PARAM-01",)),
    A("trains_truth_values", "Trains a parameter of shape (True, False).", only=("PARAM-01",)),
    R("trains_too_much", "Trains a parameter of 10⁴⁰⁰⁰ elements.", only=("PARAM-01",)),
    R("trains_text", "Gives a text for a shape.", only=("PARAM-01",)),
    R("trains_anything", "Says what it trains in a dict that lies.", only=("PARAM-01",)),
    R("is_no_layer", "Builds an object that is no Layer and has all of its methods."),
    R("builds_a_class", "Builds a class in the place of a layer.", BROKEN),
    R("builds_the_same_again", "Builds the same layer whatever it is asked for.", BROKEN),
    A("changes_x_before_it_answers", "Sets x to zero, also where it is read-only, and answers for that."),
    R("changes_w_before_it_answers", "Sets W and b to zero, and answers for that."),
    R("changes_the_factors_it_gets", "Sets A and B to zero, and answers for that."),
    R("changes_dy_before_it_answers", "Sets dy to zero, and answers for that.", only=("GRAD-02",)),
    A("changes_x_and_restores_it", "Right: changes x and restores it before it answers.", CONFORMANT),
    A("answers_in_the_same_memory", "Right: answers in the same memory each time.", CONFORMANT),
    A("answers_and_changes_them", "Right: a thread changes each answer a moment later.", ("conformant", "nonconformant")),
)
OFFERS = section(
    "Not offered, and right where it is seen", "offers.py",
    "Layers that say \"not offered\" where a fault would show, and layers that are right where they think they are judged.",
    A("no_odd_rows", "Offers an even number of rows alone."),
    A("no_negative_numbers", "Offers no x with a negative number."),
    A("no_large_numbers", "Offers no x with a number above 2, in float32."),
    R("no_views", "Offers an x with two dimensions alone.", ("nonconformant", "partial")),
    A("no_fourth_call", "Offers three forward passes in all.", ("nonconformant", "void")),
    R("no_large_factors", "Offers a B of small numbers alone."),
    A("at_random", "Offers every second forward pass, by chance."),
    R("not_twice_the_same", "Offers two thirds of all x, which ones depends on the process."),
    A("only_every_second_build", "Offers every second layer.", ("nonconformant", "error")),
    R("only_some_weights", "Offers a W whose first number is not negative."),
    A("only_where_alpha_is_the_rank", "Its scale is always 2. Offers the alphas for which that is right.",
      ("partial", "void", "nonconformant")),
    R("no_factors_but_zeros", "Offers a B of zeros alone.", ("nonconformant", "void")),
    A("no_gradients_of_negative_numbers", "Offers no gradients for some dy.", only=("GRAD-02",)),
    R("gradients_at_random", "Offers every second backward pass, by chance.", only=("GRAD-02",)),
    R("merges_only_zeros", "Offers to merge a B of zeros alone.", ("nonconformant", "void"), only=("MERGE-01",)),
    A("merges_now_and_then", "Offers every third merge.", only=("MERGE-02",)),
    R("MethodsOfTheDay", "Is wrong, and offers LoRA on some days alone.", ("nonconformant", "error", "void")),
    A("right_for_five_builds", "Is right in the first five layers of a process."),
    R("right_in_the_first_calls", "Is right in the first six calls of a process."),
    R("right_every_other_time", "Is right in every second call."),
    A("right_the_second_time", "Is wrong when it sees an x for the first time, and right from then on."),
    A("right_on_small_integers", "Is right on integers alone.", only=("FWD-01", "FWD-02")),
    R("right_on_small_sizes", "Is right on a small x alone.", only=("FWD-01", "FWD-09")),
    R("right_in_known_requirements", "Looks for the name of the check that calls it, and answers with the truth there."),
    A("reads_the_seed", "Looks for the seed of the run on the command line of the process above, and draws the cases itself."),
    A("draws_the_cases_itself", "Draws the cases of the usual seed itself, and knows their answers."),
)
PROCESSES = section(
    "Pipes, processes, time and memory", "processes.py",
    "Wrong layers that write to every pipe, fork, kill, stay behind, flood and eat.",
    A("writes_answers_to_all_files", "Writes the harness's words for a pass to every open file.", BROKEN),
    R("writes_answers_when_it_is_loaded", "The same, when it is loaded.", BROKEN),
    A("writes_frames_to_all_files", "Writes answers to the next hundred questions to every open file.", BROKEN),
    R("writes_zeros_to_all_files", "Writes zeros to every open file.", BROKEN),
    R("writes_much_to_all_files", "Writes 4 MB to every open file.", BROKEN),
    A("answers_for_the_judge", "Opens the pipe of the process above through /proc, and writes its answers there.", BROKEN,
      options=("--timeout", "3")),
    A("closes_all_files", "Closes every file.", BROKEN),
    R("closes_all_files_when_it_is_loaded", "Closes every file when it is loaded.", BROKEN),
    R("replaces_all_files", "Puts /dev/null in the place of every file.", BROKEN),
    R("reads_all_files", "Reads what is in any file, so that nobody else does.", BROKEN),
    R("a_thread_writes_answers", "A thread writes the words for a pass to every file.", BROKEN),
    R("writes_answers_at_exit", "Writes the words for a pass when the process ends."),
    A("exits_when_it_is_loaded", "Exits with status 0 when it is loaded.", NOTHING),
    R("exits_when_it_builds", "Exits with status 0 when it builds a layer.", NOTHING),
    R("exits_well_when_it_is_asked", "Exits with status 0 when it is asked for a forward pass.", BROKEN),
    R("becomes_another_program", "Becomes `/bin/true`.", BROKEN),
    A("forks_and_a_child_exits", "Forks, and the child exits with status 0."),
    A("forks_and_both_answer", "Forks, and both processes go on.", (*BROKEN, "void")),
    R("forks_and_the_child_answers_first", "Forks, and both go on, the child first.", (*BROKEN, "void")),
    R("forks_and_the_parent_exits", "Right, but forks, and only the child goes on.", ("conformant", *BROKEN)),
    R("dies_of_itself", "Kills itself.", BROKEN),
    R("overflows_its_stack", "Reads at address 0.", BROKEN),
    A("prints_a_gigabyte", "Prints a gigabyte."),
    R("prints_one_long_line", "Prints 60 MB without an end of line."),
    R("leaves_a_child", "Leaves a child that holds all pipes."),
    A("leaves_a_daemon", "Leaves a process in a session of its own that holds all pipes and ignores SIGTERM."),
    A("leaves_a_daemon_when_it_is_loaded", "The same, when it is loaded."),
    R("leaves_a_daemon_and_dies", "The same, and dies.", BROKEN),
    R("leaves_a_program", "Starts a program in a session of its own."),
    A("a_thread_does_not_end", "Leaves threads that Python waits for at the end."),
    R("starts_a_thousand_threads", "Starts a thousand threads.", BROKEN),
    A("uses_up_all_files", "Opens files until no more can be opened.", BROKEN),
    R("changes_the_environment", "Changes PYTHONPATH, LD_PRELOAD, PATH, HOME and more in its own process.", BROKEN),
    A("spoils_the_cache", "Writes rubbish to the files of numbers that runs keep."),
    A("removes_temporary_files", "Removes all temporary files.", BROKEN),
    R("fills_the_disk", "Writes half a gigabyte to the temporary folder."),
    A("stops_itself", "Stops itself (SIGSTOP).", BROKEN, options=SILENT),
    A("sleeps", "Sleeps.", BROKEN, options=SILENT),
    R("sleeps_when_it_is_loaded", "Sleeps when it is loaded.", NOTHING, options=SILENT, alone=True),
    A("becomes_a_silent_program", "Becomes `/bin/sleep`, which holds all pipes.", BROKEN, options=SILENT),
    A("cannot_be_interrupted", "Blocks all signals, and is busy outside of Python.", BROKEN, options=SILENT),
    R("answers_slowly", "Takes 0.6 s for every forward pass.", BROKEN, options=SILENT),
    R("goes_slowly", "Sleeps when a layer is thrown away.", BROKEN, options=SILENT),
    A("eats_memory", "Takes 6 GB.", BROKEN, options=("--memory", "1"), alone=True),
    A("its_children_eat_memory", "Its eight children take 0.75 GB each.", BROKEN, options=("--memory", "1"), alone=True),
    R("leaves_a_daemon_and_kills_its_parent", "Leaves a process in a session of its own, and kills the process above.", BROKEN,
      alone=True),
    A("leaves_a_stranger_and_kills_its_parent", "Leaves a program without any environment, and kills its parent.", BROKEN,
      alone=True),
    A("runs_from_process_to_process", "Leaves a process that forks and ends, again and again.", BROKEN, alone=True),
    A("forks_three_hundred", "Leaves three hundred children.", BROKEN, alone=True),
    A("kills_its_parent", "Kills the process above.", (*BROKEN, *DIED), alone=True),
    R("stops_its_parent", "Stops the process above.", (*BROKEN, *DIED), alone=True, options=SILENT),
    R("terminates_its_parent", "Sends SIGTERM to the process above.", (*BROKEN, *DIED), alone=True),
    R("interrupts_its_parent", "Sends SIGINT to the process above.", (*BROKEN, *DIED), alone=True),
    R("hangs_up_on_its_parent", "Sends SIGHUP to the process above.", (*BROKEN, *DIED), alone=True),
    R("kills_its_group", "Kills its process group.", BROKEN, alone=True),
    R("terminates_its_group", "Sends SIGTERM to its process group.", BROKEN, alone=True),
    A("plants_modules_in_the_folder", "Writes its own `lora_ref`, `conformance`, `json`, … to the current folder, and dies.",
      NOTHING, alone=True),
    R("plants_modules_at_home", "Writes start files of Python to the user's packages, and dies.", NOTHING, alone=True),
)
LAYERS = (HERE / "layers.py").read_text(encoding="utf-8")
RIGHT = "from layers import Honest, subject\nmine = subject('mine', Honest)\n"
OF_A_WRONG_ONE = RIGHT.replace("Honest", "Wrong")
TRUTH = ("lora_ref/__init__.py", "raise SystemExit('not the truth')\n")


def in_folder(name: str, does: str, file: str, text: str, expected: tuple[str, ...], *more: tuple[str, str]) -> Attack:
    """A subject `mine` in a file of the current folder, with more files beside it."""
    return Attack(name, does, expected, files=((file, text), ("layers.py", LAYERS), *more), spec=f"{file}:mine", alone=True)


FOLDER = section(
    "Names in the current folder", "corpus.py", "Subjects in the current folder, with files there that have others' names.",
    in_folder("file_named_random", "A wrong subject in `random.py`.", "random.py", OF_A_WRONG_ONE, WRONG),
    in_folder("file_named_numpy", "A right subject in `numpy.py`.", "numpy.py", RIGHT, CONFORMANT),
    in_folder("file_named_lora_ref", "A wrong subject in `lora_ref.py`.", "lora_ref.py", OF_A_WRONG_ONE, WRONG),
    in_folder("file_named_conformance", "A right subject in `conformance.py`.", "conformance.py", RIGHT, CONFORMANT),
    in_folder("folder_named_lora_ref", "A right subject beside a folder `lora_ref/`.", "mine.py", RIGHT, CONFORMANT, TRUTH),
    in_folder("folder_with_libraries", "A wrong subject beside its own `json.py`, `struct.py`, `hypothesis.py` and more.",
              "mine.py", OF_A_WRONG_ONE, WRONG,
              *((f"{name}.py", "raise SystemExit(0)\n") for name in ("json", "struct", "hypothesis", "sitecustomize"))),
)
MODULES = section(
    "PyTorch modules", "modules.py", "nn.Module classes as they stand, and a TorchLayer. Those named first are wrong.",
    A("SetsTheScaleOfTheTruth", "Replaces `lora_ref.lora.scale` in its constructor."),
    R("ReplacesTorchEqual", "Replaces `torch.equal`, `torch.allclose` and `Tensor.__eq__`.", BROKEN),
    R("ReplacesHowTensorsBecomeArrays", "Replaces `Tensor.numpy` by one that gives NaN.", ("nonconformant", "void")),
    A("AnswersWithASubclass", "Answers with a subclass of Tensor that answers all of torch's functions."),
    R("AnswersWithASparseTensor", "Answers with a sparse tensor.", BROKEN),
    R("AnswersWithoutMemory", "Answers with a tensor on the device `meta`.", BROKEN),
    R("DoublesEveryModule", "Changes how every module of the process is called.", ("nonconformant", "void")),
    A("ReplacesTheDriver", "Replaces the functions through which the harness calls modules.", ("nonconformant", *BROKEN)),
    R("ReplacesManualSeed", "Makes torch's random generator ignore seeds."),
    R("HasWhatever", "Has every attribute that is looked for.", BROKEN),
    A("Subclassed", "A TorchLayer with its own methods around a right module."),
    A("SetsTheDefaultDtype", "Right: changes torch's default dtype.", ("conformant", *BROKEN)),
    R("SetsThreads", "Right: changes the number of threads.", CONFORMANT),
    A("TurnsGradientsOff", "Right: leaves gradients switched off for others.", ("conformant", "void")),
    R("IsDeterministic", "Right: asks torch for deterministic algorithms.", CONFORMANT),
    R("WrapsLinear", "Right: wraps torch's own `linear` for everybody.", CONFORMANT),
)
ACCIDENTS = section(
    "Accidents", "accidents.py", "Right layers with untidy manners. No verdict may suffer from them.",
    A("numpy_raises", "Sets `numpy.seterr(all=\"raise\")`."),
    A("warnings_are_errors", "Makes all warnings errors."),
    A("changes_the_folder", "Changes the current folder."),
    R("changes_the_umask", "Sets a umask of 777."),
    R("sets_the_locale", "Sets the C locale."),
    A("clears_the_environment", "Empties `os.environ`."),
    R("allows_little_recursion", "Sets a recursion limit of 120.", ("conformant", *BROKEN)),
    R("sets_random_seeds", "Seeds `random` and NumPy, and replaces `random.random`."),
    R("collects_no_garbage", "Switches garbage collection off."),
    R("reads_the_command_line", "Changes `sys.argv`."),
    R("prints_arrays_its_own_way", "Sets NumPy's print options."),
    R("wraps_builtins", "Wraps `len`, `isinstance` and `print`."),
    A("has_another_json", "Replaces `json.dumps` by one that gives bytes."),
    R("mocks_the_clock", "Stops the clocks of `time`, and makes `sleep` return at once."),
    A("traces_its_calls", "Sets a profiler."),
    R("prints_when_it_is_loaded", "Logs 2 MB to standard output when it is loaded."),
    A("prints_in_colour", "Prints escape sequences, markup and odd characters."),
    R("prints_no_text", "Writes bytes that are no text to standard output."),
    A("closes_its_output", "Closes `sys.stdout` and `sys.stderr`."),
    R("closes_files_0_to_2", "Closes the files 0, 1 and 2."),
    A("has_another_output", "Replaces `sys.stdout` by an object that raises."),
    R("asks_the_user", "Reads standard input, which is empty."),
    A("handles_alarms", "Has a timer that sends a signal every 10 ms."),
    A("ignores_signals", "Ignores SIGINT, SIGTERM, SIGHUP, SIGPIPE and SIGCHLD."),
    R("is_ended_by_broken_pipes", "Lets SIGPIPE end the process, as programs in C do."),
    A("leaves_a_thread", "Leaves a thread that Python waits for at the end."),
    R("leaves_a_server", "Leaves a child process."),
    A("does_much_at_exit", "Sleeps when the process ends."),
    R("works_in_threads", "Computes in a thread."),
    A("works_in_forks", "Computes in a forked process of `multiprocessing`."),
    R("works_in_a_new_process", "Computes in a spawned process of `multiprocessing`."),
    A("raises_when_thrown_away", "Raises in `__del__`."),
    R("has_slots", "Has a layer with `__slots__` that trains nothing."),
    R("refers_to_itself", "Builds layers that refer to themselves."),
    R("takes_long_to_load", "Takes 1.5 s to load."),
    R("forgets_its_modules", "Removes modules from `sys.modules`."),
    A("NotASubject", "Is no Subject, and has a method `build` alone."),
    R("Mocked", "Is a mock with a method `build`.", ("conformant", *BROKEN)),
    A("NameThatRaises", "Raises when its name is read.", ("conformant", *BROKEN)),
    A("marked_up", "Has markup in its name.", says="[bold red]mine"),
    A("in_colour", "Has escape sequences in its name.", says="mine"),
    R("in_pictures", "Has a rocket, a NUL and a change of direction in its name.", says="lora"),
    A("on_two_lines", "Has a verdict on a line of its own in its name.", says="9 passed"),
    A("half_a_character", "Has halves of characters in its name and version.", says="mine"),
    A("long_names", "Has a name of 200,000 letters.", says="mine"),
    R("a_number_for_a_name", "Has numbers for its name and version.", ("conformant", *BROKEN), says="42"),
    R("no_name", "Has no name, and None for its version."),
    A("a_list_of_methods", "Gives its methods as a list."),
    R("a_text_of_methods", "Gives its methods as a text.", ("conformant", "error", "void")),
    R("methods_only_once", "Gives its methods as a generator.", ("conformant", "error", "void")),
    R("methods_are_no_names", "Has methods that are no names.", ("conformant", "error")),
    expected=CONFORMANT,
)
PROGRAMS = section(
    "Programs", "program.py", "Programs that speak the protocol badly. They are wrong as above, unless said to be right.",
    A("has_another_id", "Answers with the id of the next request.", BROKEN, options=SILENT),
    R("has_no_id", "Answers without an id.", BROKEN, options=SILENT),
    R("has_a_text_for_an_id", "Answers with the id as a text.", BROKEN, options=SILENT),
    R("has_true_for_an_id", "Answers with the id `true`.", BROKEN, options=SILENT),
    R("has_a_fraction_for_an_id", "Answers with an id that is not whole.", BROKEN, options=SILENT),
    A("answers_twice", "Answers twice.", BROKEN),
    A("answers_in_advance", "Answers the next fifty requests in advance.", BROKEN),
    A("answers_late", "Answers each request when the next one comes.", BROKEN, options=SILENT),
    A("drips", "Answers one byte a second.", BROKEN, options=SILENT),
    A("says_nothing", "Does not answer, and waits for the next request.", BROKEN, options=SILENT),
    A("closes_its_output", "Closes its output and goes on living.", BROKEN, options=SILENT),
    R("closes_its_input", "Closes its input and goes on living.", BROKEN, options=SILENT),
    R("closes_everything", "Closes all files and goes on living.", BROKEN, options=SILENT),
    A("ends_at_hello", "Exits with status 0 at `hello`.", NOTHING),
    R("says_no_hello", "Does not answer `hello`.", NOTHING, options=SILENT, alone=True),
    R("ends_at_once", "Exits with status 0 at once.", NOTHING),
    A("speaks_a_later_protocol", "Speaks protocol 99.", NOTHING, says="99"),
    R("speaks_protocol_true", "Speaks protocol `true`.", NOTHING),
    R("has_odd_names", "Answers `hello` with values of other types than it may.", NOTHING),
    R("promises_models", "Promises models, strides and methods that are no names.", BROKEN),
    R("dies_every_second_time", "Dies at every second forward pass.", BROKEN),
    A("ignores_signals", "Ignores SIGTERM, SIGINT and SIGHUP, and sleeps.", BROKEN, options=SILENT),
    A("leaves_a_daemon_that_holds_pipes", "Leaves a process in a session of its own that holds the pipes, and dies.", BROKEN,
      options=SILENT),
    A("leaves_a_daemon_and_goes_on", "The same, when it starts, and goes on."),
    A("nests_deeply", "Answers with 100,000 lists within each other.", BROKEN, options=SILENT),
    R("sends_a_long_number", "Answers with a number of a million digits.", BROKEN, options=SILENT),
    R("has_a_long_number_for_an_id", "Has an id of a million digits.", BROKEN, options=SILENT),
    R("sends_not_a_number", "Answers with the word NaN, which is no JSON.", BROKEN),
    R("names_keys_twice", "Answers with keys that occur twice.", BROKEN),
    R("says_both", "Answers with a result, an error and \"unsupported\" at once.", (*BROKEN, "void")),
    R("sends_latin_1", "Answers in another encoding.", BROKEN, options=SILENT),
    R("sends_utf_16", "Answers in UTF-16.", BROKEN, options=SILENT),
    R("sends_a_list", "Answers with a list.", BROKEN, options=SILENT),
    R("sends_text", "Answers in words.", BROKEN, options=SILENT),
    R("sends_an_empty_object", "Answers with neither a result nor an error.", BROKEN),
    A("sends_300_megabytes", "Answers in a line of 300 MB.", BROKEN),
    A("sends_a_line_without_end", "Sends a line that does not end.", BROKEN, options=SILENT),
    R("sends_lines_without_end", "Sends answers with a wrong id without end.", BROKEN, options=SILENT),
    R("complains_without_end", "Writes to standard error without end.", BROKEN, options=SILENT),
    R("says_unsupported_in_an_object", "Gives an object for the words of \"unsupported\".", (*BROKEN, "void")),
    R("raises_an_exit", "Answers with an error of type `SystemExit`.", BROKEN),
    R("raises_unsupported", "Answers with an error of type `Unsupported`.", BROKEN),
    A("raises_odd_types", "Answers with an error that is a list, of a type with an odd and long name.", BROKEN),
    R("raises_no_type", "Answers with an error `null` of type `null`.", BROKEN),
    R("changed_what_was_never_sent", "Says that arrays have changed that it never got.", BROKEN),
    R("changed_nothing_in_no_list", "Has a number for the list of changes.", BROKEN),
    A("changed_the_case", "Says that x has changed to zero, and answers for that."),
    A("has_a_negative_shape", "Right numbers in a shape with −1.", BROKEN),
    R("has_a_fractional_shape", "Answers in a shape with 4.5.", BROKEN),
    R("has_a_shape_of_truth_values", "Answers in the shape `[true, true]`.", BROKEN),
    R("has_a_shape_of_texts", "Answers in a shape of texts.", BROKEN),
    R("has_no_shape", "Answers in the shape `null`.", BROKEN),
    R("has_a_nested_shape", "Answers in the shape `[[1], [4]]`.", BROKEN),
    R("has_a_trillion_elements", "Answers in a shape of 10¹² elements.", BROKEN),
    R("has_too_many_dimensions", "Answers in a shape of 100,000 dimensions.", BROKEN),
    R("has_a_shape_beyond_64_bits", "Answers in a shape of 10³⁰ rows without columns.", BROKEN),
    A("strides_over_a_trillion_elements", "Answers with four bytes and strides for 10¹² elements.", BROKEN),
    R("strides_beyond_its_memory", "Answers with strides that lead beyond its data.", BROKEN),
    R("strides_before_its_memory", "Answers with strides that lead before its data.", BROKEN),
    A("is_of_objects", "Answers with the dtype `object`.", BROKEN),
    A("is_of_long_doubles", "Right numbers with the dtype `float128`.", BROKEN),
    A("is_of_big_endian_floats", "Answers with the dtype `>f4`.", BROKEN),
    R("is_of_void", "Answers with the dtype `V8`.", BROKEN),
    R("is_of_an_unknown_dtype", "Answers with the dtype `float13`.", BROKEN),
    R("is_of_a_structured_dtype", "Answers with the dtype `f4,f4`.", BROKEN),
    R("is_of_a_dtype_with_a_shape", "Answers with the dtype `(2,2)f4`.", BROKEN),
    R("is_of_a_dtype_that_is_a_number", "Answers with the dtype 4.", BROKEN),
    A("has_data_of_the_wrong_length", "Answers with three bytes.", BROKEN),
    R("has_data_that_are_no_text", "Answers with data as a list.", BROKEN),
    R("has_no_data", "Answers with the data `null`.", BROKEN),
    A("has_junk_in_its_base64", "Right numbers, with characters between them that are no base64.", BROKEN),
    R("has_more_data_than_its_shape", "Right numbers, and one more than the shape holds.", BROKEN),
    R("has_unpadded_base64", "Right numbers in base64 without its padding.", ("conformant", *BROKEN)),
    A("eats_memory", "Takes 6 GB.", BROKEN, options=("--memory", "1"), alone=True),
    R("builds_without_a_word", "Answers `build` with an object, and is wrong."),
    A("prints_between_answers", "Right: prints between its answers, and to standard error.", CONFORMANT),
    A("prints_after_answers", "Right: prints after each of its answers.", CONFORMANT),
    R("answers_in_pieces", "Right: writes each answer in pieces, and ends lines as Windows does.", CONFORMANT),
    A("is_in_the_c_locale", "Right: sets the C locale.", CONFORMANT),
    R("has_a_long_name", "Right: has a name of 240,000 letters.", CONFORMANT),
    options=("--timeout", "6"),
)
COMMANDS = section(
    "The command", "test_commands.py", "Each is a test of its own, of what the command says, leaves and does not leave.",
    A("is_terminated", "Gets SIGTERM between two subjects."),
    A("is_interrupted", "Gets SIGINT between two subjects."),
    A("is_hung_up", "Gets SIGHUP between two subjects."),
    A("is_killed", "Gets SIGKILL between two subjects: its processes end, and its report is whole."),
    A("is_killed_with_its_workers", "All of its processes get SIGKILL."),
    A("writes_to_a_full_device", "Writes its report through a link to `/dev/full`, which stays what it is."),
    A("writes_to_a_pipe", "Writes its report to a named pipe, which stays one."),
    A("writes_to_a_folder_that_is_not_there", "Is told to write its report to a folder that is not there."),
    A("prints_to_a_closed_pipe", "Prints to a pipe that nobody reads."),
    A("prints_to_a_full_device", "Prints to `/dev/full`."),
    A("two_write_one_file", "Two runs write one report at the same time."),
    A("goes_on_with_rubbish", "Goes on with a report that is empty, broken, no text or of another form."),
    A("goes_on_after_a_change", "Goes on after the subject became a wrong one."),
    A("goes_on_after_a_change_beside", "Goes on after a file that the subject imports made it a wrong one."),
    A("shows_text_on_a_poor_terminal", "Prints to a terminal of 20 columns of ASCII, in the C locale."),
    A("learns_from_run_to_run", "A subject notes what it is asked in one run, and is right about that alone in the next."),
    A("has_no_time", "Has a thousandth of a second for each requirement."),
    expected=(),
)
LAYER = section(
    "The layer", "tests/lora_torch", "What `LinearLoRA` and models of it do when something fails or comes between. Each is a "
    "test in `tests/lora_torch/`: the layer is as it was before, or as it is after, bit for bit.",
    A("a_step_that_is_interrupted_between_two_instructions", "merge, unmerge and load are interrupted at each instruction."),
    A("a_step_in_which_an_operation_of_torch_fails", "In these steps each operation of torch fails in turn."),
    A("a_step_of_a_model_that_is_interrupted_between_two_instructions", "The same steps of a model are interrupted."),
    A("a_step_of_a_model_in_which_an_operation_of_torch_fails", "In the same steps of a model each operation fails in turn."),
    A("a_state_with_something_else_in_it_changes_nothing", "A state with other things or other shapes in it is loaded."),
    A("a_state_that_lacks_a_tensor_or_has_one_too_many_changes_nothing", "A state with too few or too many tensors is loaded."),
    A("a_state_without_numbers_changes_nothing", "A state of tensors without memory is loaded."),
    A("a_layer_around_a_linear_that_cannot_be_made_leaves_it_as_it_was", "A layer cannot be made around a linear layer."),
    A("a_call_that_another_thread_disturbs_at_any_instruction", "A thread merges at each instruction of another one's call."),
    A("two_threads_that_turn_the_layer_at_any_instruction", "Two threads merge and unmerge at each instruction of each other."),
    A("threads_that_call_while_one_merges", "Threads call, and another one merges and unmerges, as fast as they can."),
    A("a_layer_that_is_turned_during_every_call_of_its_frozen_part_is_refused", "The layer is merged in each of its calls."),
    expected=(),
)
SUBJECTS = (JUDGE, RAISING, ANSWERS, OFFERS, PROCESSES, FOLDER, MODULES, ACCIDENTS, PROGRAMS)


def batches() -> list[list[Attack]]:
    """The attacks that are run now, as many together as one command judges: with the same options, and not to be run alone.
    Without HYPOTHESIS_PROFILE=thorough, the first ones of each group are run."""
    found: dict[tuple, list[Attack]] = {}
    for section in SUBJECTS:
        for attack in section.attacks:
            if attack.rare and not THOROUGH:
                continue
            group = (section.file, attack.only, attack.options, attack.name if attack.alone else "")
            found.setdefault(group, []).append(attack)
    groups = [group if THOROUGH else group[:ALIKE] for group in found.values()]
    return [group[start : start + BATCH] for group in groups for start in range(0, len(group), BATCH)]


def page() -> str:
    """The text of docs/attacks.md."""
    sections = (*SUBJECTS, COMMANDS, LAYER)
    counts = {section.title: (len(section.attacks), sum(not attack.rare for attack in section.attacks)) for section in sections}
    counts["all"] = tuple(map(sum, zip(*counts.values(), strict=True)))  # type: ignore[assignment]
    rows = "\n".join(f"| {title} | {every} | {usual} |" for title, (every, usual) in counts.items())
    found = INTRODUCTION + f"| section | entries | run with every change |\n|---|---:|---:|\n{rows}\n"
    for section in sections:
        entries = "\n".join(f"| {a.name} | {a.does} | {' or '.join(a.expected) or '–'} |" for a in section.attacks)
        found += f"\n## {section.title}\n\n{section.about}\n\n| name | what it does | verdict |\n|---|---|---|\n{entries}\n"
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
