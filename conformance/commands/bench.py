"""conformance bench: measures the time and memory that a layer takes."""

import argparse
import os
import secrets
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from conformance.commands.shared import check_device, console, positive
from conformance.drivers import children
from conformance.drivers.hosted import own_environment, python
from conformance.report import json as json_report
from conformance.report.progress import line
from conformance.run.loading import LoadError
from conformance.run.plan import DTYPES

HELP = "measure speed and memory, as ratios to the frozen layer in the same run"

APART = "CONFORMANCE_BENCH_APART"  # the number of a pipe, in the environment of the process that measures
MARK = "CONFORMANCE_BENCH"  # marks the environment of that process and of what it starts
SECONDS = 20.0  # that it may take to write what it has measured


def declare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("subjects", nargs="*", metavar="SUBJECT",
        help="as for run; and the formulas lora_torch-plain, lora_torch-one-pass, torchtune-form, unsloth-form, "
             "peft-form-compiled, peft-form-autotuned, peft-base-dtype (default: all of these that can run)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where layers are built (default: cpu)")
    add("--dtype", choices=DTYPES, metavar="D",
        help=f"one of {', '.join(DTYPES)} (default: float32 on the CPU, bfloat16 on CUDA)")
    add("--workloads", nargs="+", default=[], metavar="W",
        help="only these: of C1 to C6 on the CPU, of S1 to S4 on CUDA (default: all)")
    add("--threads", type=positive(int), default=2, metavar="N", help="threads of torch on the CPU (default: 2)")
    add("--rounds", type=positive(int), default=11, metavar="N",
        help="number of times that each subject takes its turn at a workload (default: 11)")
    add("--no-sweep", action="store_true", help="do not measure how the cost grows with rank, rows and width")
    add("--small", action="store_true", help="a rehearsal: every step, at sizes that take little time")
    add("--out", metavar="DIR", help="write bench.json to DIR after each workload, and bench.md and bench.png at the end")


def run(arguments: argparse.Namespace) -> int:
    """Has a process of its own do the same command: in that one the subjects take turns, and whatever they do there, this one
    goes on."""
    told = os.environ.pop(APART, None)
    if told is not None:  # this is that process
        os.set_inheritable(int(told), False)
        with os.fdopen(int(told), "wb") as done:
            try:
                return measure(arguments)
            finally:
                done.write(b"done")
    reading, writing = os.pipe()
    mark = secrets.token_hex(8)
    env = own_environment(os.environ.get("PYTHONPATH", "")) | {APART: str(writing), MARK: mark}
    process = subprocess.Popen(python("conformance", *sys.argv[1:]), pass_fds=(writing,), env=env)
    os.close(writing)
    with os.fdopen(reading, "rb") as done:
        try:
            process.wait()
        except BaseException:
            with suppress(subprocess.TimeoutExpired):  # it writes what was measured by then
                process.send_signal(signal.SIGTERM)
                process.wait(SECONDS)
            raise
        finally:
            children.end_marked(MARK, mark)
            process.wait()
        os.set_blocking(reading, False)  # something that was left behind may hold the other end
        if done.read(4):
            return process.returncode
    print(f"conformance bench: the process that measured {children.ended(process.returncode)}", file=sys.stderr)
    return 4


def measure(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler tells each start and end; read when torch is imported
    import torch

    from conformance import bench
    from conformance.report import bench as report

    check_device(arguments.device)
    known = [workload.name for workload in bench.WORKLOADS[arguments.device]]
    if unknown := set(arguments.workloads) - set(known):
        raise ValueError(f"no workload {', '.join(sorted(unknown))} on {arguments.device}, expected some of {', '.join(known)}")
    if arguments.out and Path(arguments.out).exists() and not Path(arguments.out).is_dir():
        raise ValueError(f"{arguments.out} is no folder")
    dtype = arguments.dtype or ("float32" if arguments.device == "cpu" else "bfloat16")
    options = bench.Options(arguments.device, dtype, tuple(arguments.workloads), arguments.threads, arguments.rounds,
                            not arguments.no_sweep, arguments.small)
    screen, results, swept, names = console(), [], {}, []
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else f"cpu, {arguments.threads} threads"
    environment = json_report.environment(device) | {"dtype": dtype}

    def kept(*so_far) -> None:
        nonlocal results, swept
        results, swept = so_far
        if arguments.out:
            report.write_json(Path(arguments.out), results, swept, environment)

    try:
        with line(screen, "loading") as told:
            bench.run(arguments.subjects or bench.default_subjects(arguments.device), options, told, kept)
    except LoadError as error:
        print(f"conformance bench: {error}", file=sys.stderr)
        return 4
    finally:  # also if interrupted: writes what was measured by then
        if arguments.out and results:
            names = report.write(Path(arguments.out), results, swept, environment)
    report.show(screen, results, swept)
    if arguments.out:
        missing = "" if "bench.png" in names else "; the picture needs matplotlib (pip install '.[bench]')"
        screen.print(f"wrote {arguments.out}/{', '.join(names)}{missing}")
    return 0
