"""The command line: `conformance …`, or `python -m conformance …`."""

import argparse
import io
import json
import os
import signal
import sys
import threading
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from conformance import __version__, conventions, environments, runner
from conformance.compare import Mismatch
from conformance.diagnosis import catalogue
from conformance.loading import LoadError, built_in, environment, load, missing_here
from conformance.report import json as json_report
from conformance.report import junit, terminal
from conformance.requirements import HIGHAM, all_requirements
from conformance.subject import Unsupported
from conformance.trace import SubjectError

EXAMPLES = """\
examples:
  conformance run                            lora_torch, this project's layer
  conformance run peft loralib               installed libraries, side by side
  conformance run my_layer.py:MyLoRA         an nn.Module class, or a Subject
  conformance run 'cmd:./my-lora'            a program that speaks the protocol
  conformance run peft --only MERGE GRAD-04  some groups or requirements alone
  conformance explain MERGE-01               what is asked, why, and who says so
  conformance selftest                       how good the suite itself is
  conformance bench                          speed and memory, side by side
  conformance init my_subject.py             a subject to start from
  conformance init --language c my_lora.c    a program to start from
  conformance subjects --install flax_nnx    a library, in an environment

exit status:
  0 conformant   1 a MUST failed   2 usage   3 void or incomplete
  4 a subject could not be loaded, or nothing could be said of it
"""

SKELETONS = {  # by language, for `init`: the file, its ending, and what comes next
    "c": ("skeletons/lora.c", ".c", "cc -O2 -o {program} {path} && conformance run cmd:{program}"),
    "javascript": ("skeletons/lora.js", ".js", "conformance run 'cmd:node {path}'"),
    "python": ("skeletons/lora.py", ".py", "conformance run 'cmd:python {path}'"),
}


def main(argv: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # where ᵀ cannot be shown, something else is
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no worker is left behind
    arguments = _parser().parse_args(argv)
    try:
        return arguments.command(arguments)
    except (ValueError, OSError) as error:
        print(f"conformance {arguments.name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        more = "; the same command with --resume goes on" if getattr(arguments, "resume", None) is not None else ""
        print(f"conformance {arguments.name}: interrupted{more}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "conformance", description="Tells, with proof, whether a LoRA implementation is right.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"conformance {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="name")

    def command(name: str, function, help: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, epilog=EXAMPLES if name == "run" else None,
                                    formatter_class=argparse.RawDescriptionHelpFormatter)
        added.set_defaults(command=function)
        return added

    default = runner.Options()
    run = command("run", _run, "check implementations against every requirement, and give a verdict on each")
    run.add_argument("subjects", nargs="*", default=["lora_torch"], metavar="SUBJECT",
                     help="a built-in name, package.module:attribute, path/to/file.py:attribute, or 'cmd:PROGRAM ARGUMENTS'; "
                          "all stands for every built-in one (default: lora_torch)")
    run.add_argument("--only", nargs="+", default=[], metavar="ID|GROUP", help="these requirements or groups alone")
    run.add_argument("--level", choices=("must", "should", "may"), default="may", help="leave out what is below this level")
    run.add_argument("--dtype", nargs="+", choices=runner.DTYPES, default=list(runner.DTYPES), metavar="D",
                     help=f"of {', '.join(runner.DTYPES)}: these alone")
    run.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where layers are built (default: cpu)")
    run.add_argument("--examples", type=_positive(int), default=default.examples, metavar="N",
                     help=f"cases per requirement, about (default: {default.examples})")
    run.add_argument("--seed", type=int, default=0, metavar="N",
                     help="of the cases (default: 0); one seed gives the same run again")
    run.add_argument("--jobs", type=_positive(int), default=default.jobs, metavar="N",
                     help=f"processes at a time (default: one per core, here {default.jobs})")
    run.add_argument("--timeout", type=_positive(float), default=default.timeout, metavar="S",
                     help=f"seconds that one requirement may take (default: {default.timeout:g}); a tenth after three in "
                          "a row that took longer, until one is answered")
    run.add_argument("--memory", type=_positive(float), default=default.memory, metavar="GIB",
                     help=f"that a program of another process may take (default: {default.memory:g})")
    run.add_argument("--json", metavar="F", help="write the report to F as JSON, anew with every subject that is done")
    run.add_argument("--resume", action="store_true",
                     help="leave out the subjects of which F, from --json, has the report of an equal run")
    run.add_argument("--junit", metavar="F", help="write the report to F as JUnit XML")

    listing = command("list", _list, "every requirement: id, level, group, sentence")
    listing.add_argument("--json", action="store_true", help="as JSON, with formula, sources and faults")
    explain = command("explain", _explain, "one requirement: sentence, formula, why, sources, known faults")
    explain.add_argument("id", metavar="ID", help="as in `conformance list`, for example MERGE-01")
    selftest = command("selftest", _selftest, "try the suite on implementations that are known to be bad, and on honest ones")
    selftest.add_argument("--jobs", type=_positive(int), default=default.jobs, metavar="N", help="processes at a time")
    selftest.add_argument("--examples", type=_positive(int), default=default.examples, metavar="N",
                          help=f"cases per requirement for honest implementations, about (default: {default.examples})")
    selftest.add_argument("--seed", type=int, default=0, metavar="N", help="of the cases (default: 0)")
    selftest.add_argument("--json", metavar="F", help="write the kill matrix to F as JSON")
    bench = command("bench", _bench, "speed and memory beside the frozen layer, as ratios in one run")
    bench.add_argument("subjects", nargs="*", metavar="SUBJECT",
                       help="as for run, and the forms lora_torch-plain, lora_torch-one-pass, torchtune-form, unsloth-form, "
                            "peft-form-compiled, peft-form-autotuned, peft-base-dtype (default: all that can run)")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where layers are built (default: cpu)")
    bench.add_argument("--dtype", choices=runner.DTYPES, metavar="D",
                       help=f"of {', '.join(runner.DTYPES)} (default: float32 on the CPU, bfloat16 on CUDA)")
    bench.add_argument("--workloads", nargs="+", default=[], metavar="W",
                       help="C1 to C6 on the CPU, S1 to S4 on CUDA: these alone (default: all)")
    bench.add_argument("--threads", type=_positive(int), default=2, metavar="N", help="of torch, on the CPU (default: 2)")
    bench.add_argument("--rounds", type=_positive(int), default=11, metavar="N",
                       help="turns that each subject takes at a workload (default: 11)")
    bench.add_argument("--no-sweep", action="store_true", help="leave out how the cost grows with rank, rows and width")
    bench.add_argument("--small", action="store_true", help="a rehearsal: every step, at sizes that take no time")
    bench.add_argument("--out", metavar="DIR", help="write bench.json, bench.md and bench.png to DIR")
    subjects = command("subjects", _subjects, "the built-in subjects, and which of them can run here")
    subjects.add_argument("--install", nargs="+", default=[], metavar="NAME",
                          help="make the environments that these need, or with all every environment that is needed, in "
                               "~/.cache/conformance or $CONFORMANCE_CACHE")
    free = command("conventions", _conventions, "what implementations are free to choose: layout, scale, initialisation, …; "
                   "and, of two, how an adapter of one becomes that of the other")
    free.add_argument("subjects", nargs="+", metavar="SUBJECT", help="as for run")
    init = command("init", _init, "write a commented subject to start from, which passes as it stands")
    init.add_argument("file", metavar="FILE", help="the file to write; it must not exist")
    init.add_argument("--language", choices=SKELETONS,
                      help="a program that speaks the protocol, in this language, in place of a Python subject: for what "
                           "cannot be imported here")
    return parser


def _positive(kind):
    def parse(text: str):
        value = kind(text)
        if not 0 < value <= 1e6:
            raise argparse.ArgumentTypeError(f"{text} is not a positive number of at most a million")
        return value

    parse.__name__ = "number"
    return parse


def _run(arguments) -> int:
    _check_folders(arguments.json, arguments.junit)
    _check_device(arguments.device)
    specs = list(built_in()) if arguments.subjects == ["all"] else arguments.subjects
    repeated = [spec for spec in specs if specs.count(spec) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is named twice")
    if arguments.resume and not arguments.json:
        raise ValueError("--resume needs --json F, the file with the reports that are there")
    options = runner.Options(
        tuple(arguments.only), arguments.level, tuple(arguments.dtype), arguments.device, arguments.examples,
        arguments.seed, arguments.jobs, arguments.timeout, arguments.memory,
    )
    planned = runner.plan(options)
    done = json_report.read(arguments.json, options, planned) if arguments.resume else {}
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 80)
    with terminal.progress(console, specs, len(planned)) as told:
        lock = threading.Lock()

        def noted(report: runner.Report, outcome) -> None:
            told(report, outcome)
            if outcome is None and arguments.json:
                with lock:
                    done[report.spec] = report
                    json_report.write(arguments.json, [done[spec] for spec in dict.fromkeys((*specs, *done)) if spec in done],
                                      options)

        reports = runner.run(specs, options, noted, dict(done))
    terminal.show(console, reports)
    if arguments.junit:
        junit.write(arguments.junit, reports)
    return max(report.exit_status for report in reports)


def _check_folders(*files: str | None) -> None:
    """Before the work, and not after it."""
    for file in filter(None, files):
        if not Path(file).resolve().parent.is_dir():
            raise ValueError(f"{file}: there is no folder {Path(file).parent}")
        if Path(file).is_dir():
            raise ValueError(f"{file} is a folder, expected the name of a file")


def _list(arguments) -> int:
    if arguments.json:
        rows = [{
            "id": r.id, "level": r.level, "group": r.group, "profile": r.profile, "title": r.title, "sentence": r.sentence,
            "formula": r.formula, "why": r.why, "sources": r.sources, "needs": ("build", *r.needs),
            "where_offered": r.where_offered, "faults": r.faults,
        } for r in all_requirements()]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return 0
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("id", "level", "group", "sentence"):
        table.add_column(column, no_wrap=column != "sentence", max_width=None if column == "sentence" else 10)
    for r in all_requirements():
        table.add_row(r.id, r.level, r.group, Text(r.sentence))
    Console(highlight=False, width=None if sys.stdout.isatty() else 80).print(table)
    return 0


def _explain(arguments) -> int:
    found = next((r for r in all_requirements() if r.id == arguments.id.upper()), None)
    if found is None:
        raise ValueError(f"no requirement {arguments.id}, expected one like MERGE-01; `conformance list` shows them")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 80)
    optional = " — for those that offer it" if found.where_offered else ""
    console.print(Text(f"{found.id} {found.title} ({found.level}, profile {found.profile}{optional})", style="bold"))
    table = Table.grid(padding=(0, 2))
    table.add_row("sentence", Text(found.sentence))
    table.add_row("formula", Text(found.formula))
    table.add_row("why", Text(found.why))
    if any("derivations" in source for source in found.sources):
        table.add_row("derivation", "lora_ref/derivations/lora.md")
    if HIGHAM in found.sources:
        table.add_row("bound", "lora_ref/bounds.py")
    table.add_row("needs", Text(", ".join(("build", *found.needs))))
    for i, source in enumerate(found.sources):
        table.add_row("" if i else "sources", Text(source))
    for i, row in enumerate(catalogue()[id] for id in found.faults):
        text = f"{row['id']} {row['project']}: {row['symptom']} ({row['links'][0]})"
        table.add_row("" if i else "known faults", Text(text))
    console.print(table)
    return 0


def _selftest(arguments) -> int:
    _check_folders(arguments.json)
    from conformance import selftest
    from conformance.report import selftest as report

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 80)
    with report.progress(console, selftest.count()) as told:
        found = selftest.run(arguments.jobs, told, examples=arguments.examples, seed=arguments.seed)
    report.show(console, found)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found.as_dict(), indent=1) + "\n", encoding="utf-8")
    return 1 if found.problems else 0


def _bench(arguments) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells each start and end; read when torch is imported
    import torch

    from conformance import bench
    from conformance.report import bench as report

    _check_device(arguments.device)
    known = [workload.name for workload in bench.WORKLOADS[arguments.device]]
    if unknown := set(arguments.workloads) - set(known):
        raise ValueError(f"no workload {', '.join(sorted(unknown))} on {arguments.device}, expected some of {', '.join(known)}")
    if arguments.out and Path(arguments.out).exists() and not Path(arguments.out).is_dir():
        raise ValueError(f"{arguments.out} is no folder")
    if arguments.out and find_spec("matplotlib") is None:
        raise ValueError("--out draws a plot and needs matplotlib, which is not installed (pip install '.[bench]')")
    dtype = arguments.dtype or ("float32" if arguments.device == "cpu" else "bfloat16")
    options = bench.Options(arguments.device, dtype, tuple(arguments.workloads), arguments.threads, arguments.rounds,
                            not arguments.no_sweep, arguments.small)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 80)
    try:
        with report.progress(console) as told:
            found = bench.run(arguments.subjects or bench.default_subjects(arguments.device), options, told)
    except LoadError as error:
        print(f"conformance bench: {error}", file=sys.stderr)
        return 4
    report.show(console, *found)
    if arguments.out:
        device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"cpu, {arguments.threads} threads"
        report.write(Path(arguments.out), *found, json_report.environment(device) | {"dtype": dtype})
        console.print(f"wrote {arguments.out}/bench.json, bench.md, bench.png")
    return 0


def _check_device(device: str) -> None:
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise ValueError("--device cuda: torch finds no CUDA device here")


def _subjects(arguments) -> int:
    if arguments.install:
        return _install(arguments.install)
    for name, missing in built_in().items():
        doc = (import_module(f"conformance.subjects.{name}").__doc__ or "").splitlines()[0]
        state = "ready" if not missing_here(name) else f"ready, in the environment {environment(name)}"
        print(f"{name:15}{f'not available: {missing}' if missing else state}\n{'':15}{doc}")
    return 0


def _install(names: list[str]) -> int:
    """Makes the environments of the subjects of these names."""
    known = built_in()
    for name in names:
        if name != "all" and name not in known:
            raise ValueError(f"no built-in subject {name}; there are {', '.join(known)}")
    wanted = [name for name in known if environment(name)] if "all" in names else names
    needed = dict.fromkeys(environment(name) for name in wanted)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 80)
    for name in wanted:
        if environment(name) is None:
            console.print(f"{name} needs no environment of its own")
    for name in filter(None, needed):
        if environments.made(name):
            console.print(f"{name}: is there, in {environments.folder(name)}", soft_wrap=True)
            continue
        console.print(f"{name}: about {environments.ENVIRONMENTS[name].size}")
        try:
            with terminal.steps(console) as told:
                environments.make(name, told)
        except environments.CannotInstall as error:
            print(f"conformance subjects: {name}: {error}", file=sys.stderr)
            return 4
        console.print(f"{name}: made, in {environments.folder(name)}", soft_wrap=True)
    return 0


def _conventions(arguments) -> int:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 80)
    try:
        subjects = [load(spec) for spec in arguments.subjects]
    except LoadError as error:
        print(f"conformance conventions: {error}", file=sys.stderr)
        return 4
    terminal.show_conventions(console, [(subject.name, conventions.conventions(subject)) for subject in subjects])
    if len(subjects) == 2:
        for source, target in (subjects, subjects[::-1]):
            terminal.show_conversion(console, source.name, target.name, _converted(source, target))
    return 0


def _converted(source, target) -> list[str]:
    try:
        return conventions.conversion(source, target)
    except (Unsupported, SubjectError, Mismatch) as reason:
        return [f"not known: {reason}"]


def _init(arguments) -> int:
    path = Path(arguments.file)
    if path.exists():
        raise ValueError(f"{path} exists already; nothing was written")
    skeleton, ending, following = SKELETONS.get(arguments.language, ("skeleton.py", ".py", "conformance run {path}:MySubject"))
    if path.suffix != ending:
        raise ValueError(f"{path}: expected a name that ends in {ending}")
    path.write_text((Path(__file__).parent / skeleton).read_text(encoding="utf-8"), encoding="utf-8")
    program = f"./{path.with_suffix('')}" if not path.is_absolute() else str(path.with_suffix(""))
    print(f"wrote {path}\nnow run: {following.format(path=path, program=program)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
