"""conformance probe: tells whether a running server applies the adapter that it names."""

import argparse
import json
import math
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from conformance import __version__
from conformance.commands.shared import Written, console, positive
from conformance.files.probe import calibrated
from conformance.files.probe.alternatives import APPLIED
from conformance.files.probe.judge import NOTHING, Verdict
from conformance.files.probe.server import Server, Trouble
from conformance.files.probe.session import Report, Wish, new_prompts, probe
from conformance.files.probe.truth import CannotTell, Truth
from conformance.report import output
from conformance.run.examine import plain

HELP = "is the adapter that a running server names really applied?"
KEY = "CONFORMANCE_PROBE_KEY"
EPILOG = f"""\
It sends prompts of random tokens to a server with the protocol of OpenAI (vLLM,
llama.cpp and others), and compares the log-probabilities of the answers with
those that it computes from the base model's folder and the adapter's folder.
Answers of the base model alone show how large the server's rounding is.

  applied            the answers are those of the adapter
  partly applied     some modules are missing, and which
  wrong strength     and by which factor
  another adapter    one of --other, or a transposed one
  stale              one that had the name before (with --dynamic)
  base model         the adapter is not applied at all
  cannot tell        and why: the noise is too large, for example

examples:
  conformance probe http://127.0.0.1:8000 --model my_adapter
                     a vLLM on this machine: it tells the folders itself
  conformance probe http://127.0.0.1:8080 --base model --adapter my_adapter
                     llama.cpp; the folders are those before the conversion
  conformance probe URL --model a --base model --adapter a --other b=folder_of_b
                     b is asked in the same batches
  conformance probe URL --base model --adapter a --dynamic 20
                     20 changes: vLLM must allow VLLM_ALLOW_RUNTIME_LORA_UPDATING,
                     and must see the same folders; nothing is left behind
  conformance probe --base model --write out
                     adapters of 1 nat, one for each group of modules, to serve

The variable {KEY} holds the key of a server that wants one.

exit status:
  0 applied   1 not applied, or partly, wrongly, or another   2 usage
  3 cannot tell, or the server gives no answer
"""
SHOWN = 12  # alternatives


def declare(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("url", metavar="URL", nargs="?", help="of the server: http://127.0.0.1:8000")
    add("--model", metavar="NAME", help="the adapter's name in the server (default: the only one)")
    add("--adapter", metavar="DIR", help="the adapter's folder or file, as --model must mean it")
    add("--base", metavar="DIR", help="the base model's folder: config.json and .safetensors")
    add("--base-model", metavar="NAME", default="", help="the base model's name in the server")
    add("--other", metavar="[NAME=]DIR", nargs="+", default=[], help="other adapters; with a name, one that is served, too")
    add("--dynamic", metavar="STEPS", type=positive(int), help="load, reload and unload adapters, or set their scales")
    add("--prompts", metavar="N", type=positive(int), default=32, help="(default: 32)")
    add("--tokens", metavar="N", type=positive(int), default=16, help="tokens of a prompt (default: 16)")
    add("--seed", metavar="N", type=int, default=secrets.randbits(32),
        help="of the prompts and of --dynamic; a new one has prompts that are in no cache (default: a new one)")
    add("--timeout", metavar="S", type=positive(float), default=60.0, help="seconds for one answer (default: 60)")
    add("--write", metavar="DIR", help="write adapters of a known effect for --base, and ask no server")
    add("--json", metavar="F", help="write all of it to F as JSON")


def run(arguments: argparse.Namespace) -> int:
    written = Written(arguments.json)
    if (arguments.url is None) == (arguments.write is None):
        raise ValueError("the URL of a server is expected, or --write DIR")
    if arguments.seed < 0:
        raise ValueError(f"--seed {arguments.seed}: expected a whole number of at least 0")
    if arguments.tokens < 2:
        raise ValueError("--tokens 1: a prompt needs 2 tokens at least, so that one comes after another")
    try:
        with console().status("") as shown:  # seen on a terminal alone
            if arguments.write:
                return write(arguments)
            server = Server(arguments.url, arguments.timeout, os.environ.get(KEY, ""))
            report = probe(server, wish(arguments), lambda words: shown.update(Text(words)))
    except (Trouble, CannotTell) as error:
        words = plain(str(error))
        said = {"schema": 1, "url": arguments.url, "verdict": NOTHING, "words": words}
        print(f"{NOTHING}: {words}")
    else:
        said = as_dict(arguments.url, arguments.seed, report)
        show(report)
    written(arguments.json, lambda file: output.write(file, (json.dumps(said, indent=1, allow_nan=False) + "\n").encode()))
    return written.status(3 if said["verdict"] == NOTHING else 0 if said["verdict"] == APPLIED else 1)


def wish(arguments: argparse.Namespace) -> Wish:
    parts = (other.rpartition("=") for other in arguments.other)
    others = tuple((name, place) for name, _, place in parts)
    return Wish(arguments.model or "", arguments.base_model, arguments.adapter or "", arguments.base or "", others,
                arguments.prompts, arguments.tokens, arguments.seed, arguments.dynamic or 0)


def write(arguments: argparse.Namespace) -> int:
    """Writes adapters of a known effect."""
    if not arguments.base:
        raise ValueError("--write DIR needs --base DIR")
    truth = Truth(arguments.base)
    truth.prompts = next(new_prompts(truth.vocabulary, wish(arguments)))
    for name, effect in calibrated.write(truth, Path(arguments.write)).items():
        print(f"{arguments.write}/{name}: {effect:.3g} nat")
    return 0


def worst(report: Report) -> Verdict:
    """The first verdict that is wrong, else one that cannot tell, else the first."""
    verdicts = [verdict for round in report.rounds for verdict in round.verdicts.values()]
    wrong = [verdict for verdict in verdicts if not verdict.right]
    return next((verdict for verdict in wrong if verdict.kind != NOTHING), (wrong or verdicts)[0])


def as_dict(url: str, seed: int, report: Report) -> dict[str, Any]:
    """The JSON report: schema 1."""
    whole = worst(report)
    return {
        "schema": 1, "version": __version__, "url": url, "model": report.model, "seed": seed, "log_probabilities": report.way,
        "verdict": whole.kind, "words": whole.words, "noise": report.noise.size,
        "rounds": [{"round": round.words, "asked": [
            {"name": name, "right": verdict.right, "verdict": verdict.kind, "words": verdict.words, "bound": verdict.bound,
             "strength": verdict.strength, "factors": verdict.factors, "not_told_apart": verdict.possible,
             "alternatives": [{"kind": row.alternative.kind, "words": row.alternative.words,
                               "distance": row.distance if math.isfinite(row.distance) else None, "power": row.power}
                              for row in verdict.rows]}
            for name, verdict in round.verdicts.items()]} for round in report.rounds]}


def show(report: Report) -> None:
    """Prints the verdict, what it rests on, and each answer that is wrong."""
    screen, whole = console(), worst(report)
    first = next(iter(report.rounds[0].verdicts.values()))
    style = "bold" if whole.right else "bold red"
    screen.print(Text(f"{plain(report.model)}: {whole.kind}: {plain(whole.words)}", style=style))
    screen.print(Text(f"noise of the base model {report.noise.size:.2g} nat; honest answers of the adapter are within "
                      f"{first.bound:.2g} nat"))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("answers to new prompts, beside", "nat away", "power"):
        table.add_column(name, overflow="fold", justify="right" if table.columns else "left")
    for row in first.rows[:SHOWN]:
        table.add_row(plain(row.alternative.words), f"{row.distance:.2g}", f"{row.power:.3g}")
    screen.print(table)
    screen.print(Text("power: how far it is from the adapter, in units of what is honest"))
    if first.strength:
        screen.print(Text("strength {:.4g}, give or take {:.2g}".format(*first.strength)))
    if first.possible:
        screen.print(Text(f"not told apart: {'; '.join(map(plain, first.possible))}", style="bold"))
    for round in report.rounds:
        count = sum(verdict.right for verdict in round.verdicts.values())
        screen.print(Text(f"{plain(round.words)}: {count} of {len(round.verdicts)} right"))
        for name, verdict in round.verdicts.items():
            if not verdict.right:
                screen.print(Text(f"  {plain(name)}: {verdict.kind}: {plain(verdict.words)}", style="bold red"))
    sys.stdout.flush()
