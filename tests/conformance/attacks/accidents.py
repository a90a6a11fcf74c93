"""Right layers with untidy manners: they change the process for everybody, and have odd names, threads, processes, signals."""

import atexit
import builtins
import collections
import faulthandler
import gc
import json
import locale
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
import unittest.mock
import warnings

import numpy as np
from layers import Honest, at, subject

from conformance import Layer, Subject


def named(attribute: str, name="named", version="1", methods: object = ("lora",)) -> type[Subject]:
    """A right subject with this name, version and methods. `attribute` is what it is called in this file."""
    return type(attribute, (subject("named", Honest),), {
        "__init__": lambda self: None, "name": name, "version": version, "methods": methods})


# --- settings of the process --------------------------------------------------------------------------------------

@at("load", Honest)
def numpy_raises():
    np.seterr(all="raise")


@at("load", Honest)
def warnings_are_errors():
    warnings.simplefilter("error")
    warnings.simplefilter = warnings.filterwarnings = lambda *args, **more: None


@at("forward", Honest)
def changes_the_folder(layer, x):
    os.chdir("/")


@at("forward", Honest)
def changes_the_umask(layer, x):
    os.umask(0o777)


@at("load", Honest)
def sets_the_locale():
    locale.setlocale(locale.LC_ALL, "C")


@at("load", Honest)
def clears_the_environment():
    os.environ.clear()


@at("load", Honest)
def allows_little_recursion():
    sys.setrecursionlimit(120)


@at("load", Honest)
def sets_random_seeds():
    random.seed(1)
    np.random.seed(1)
    random.random = lambda: 0.5


@at("load", Honest)
def collects_no_garbage():
    gc.disable()
    gc.freeze()


@at("load", Honest)
def reads_the_command_line():
    """As scripts do that parse their arguments when they are imported."""
    sys.argv[:] = ["train.py", "--epochs", "3"]


@at("load", Honest)
def prints_arrays_its_own_way():
    np.set_printoptions(precision=1, threshold=0, legacy="1.13")


@at("load", Honest)
def wraps_builtins():
    """Functions that do what they did before, and count."""
    calls = []
    for name in ("len", "isinstance", "print"):
        right = getattr(builtins, name)
        setattr(builtins, name, lambda *args, right=right, **more: (calls.append(right), right(*args, **more))[1])


@at("load", Honest)
def has_another_json():
    """A faster one, whose `dumps` gives bytes."""
    right = json.dumps
    json.dumps = lambda value, *args, **more: right(value, *args, **more).encode()


@at("load", Honest)
def mocks_the_clock():
    time.time = time.perf_counter = time.monotonic = lambda: 0.0
    time.sleep = lambda seconds: None


@at("load", Honest)
def traces_its_calls():
    seen = collections.Counter()
    sys.setprofile(lambda frame, event, argument: seen.update([event]))


# --- output -------------------------------------------------------------------------------------------------------

@at("load", Honest)
def prints_when_it_is_loaded():
    logging.basicConfig(stream=sys.stdout, level=logging.DEBUG)
    for number in range(20_000):
        logging.info("loading the weights of block %d, please wait, and have a look at our page in the meantime", number)


@at("forward", Honest)
def prints_in_colour(layer, x):
    print("\x1b[31mstep\x1b[0m \x1b]0;title\x07 [bold]not markup[/] \ufffe \U0001f680", {"outcome": "pass"})


@at("forward", Honest)
def prints_no_text(layer, x):
    os.write(1, bytes(range(256)))
    os.write(2, b"\xff\xfe\x00")


@at("forward", Honest)
def closes_its_output(layer, x):
    sys.stdout.close()
    sys.stderr.close()


@at("load", Honest)
def closes_files_0_to_2():
    os.closerange(0, 3)


@at("load", Honest)
def has_another_output():
    class Screen:
        def write(self, text):
            raise OSError("no screen")

    sys.stdout = sys.stderr = Screen()


@at("forward", Honest)
def asks_the_user(layer, x):
    assert sys.stdin.read() == ""


# --- signals, threads, processes ----------------------------------------------------------------------------------

@at("load", Honest)
def handles_alarms():
    signal.signal(signal.SIGALRM, lambda *args: None)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)


@at("load", Honest)
def ignores_signals():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)


@at("load", Honest)
def is_ended_by_broken_pipes():
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    faulthandler.enable()


@at("load", Honest)
def leaves_a_thread():
    """One that is waited for at the end."""
    threading.Thread(target=time.sleep, args=(1000,)).start()


@at("load", Honest)
def leaves_a_server():
    subprocess.Popen(["/bin/sleep", "1000"])


@at("load", Honest)
def does_much_at_exit():
    atexit.register(time.sleep, 1000)


@at("forward", Honest)
def works_in_threads(layer, x):
    found = []
    thread = threading.Thread(target=lambda: found.append(Honest.forward(layer, x)))
    thread.start()
    thread.join()
    return found[0]


def product(x, y):
    return x @ y


@at("forward", Honest)
def works_in_forks(layer, x, _pools=[]):  # noqa: B006 it is kept on purpose
    if not _pools:
        _pools.append(multiprocessing.get_context("fork").Pool(1))
    return Honest.forward(layer, x) + 0 * _pools[0].apply(product, (x, layer.A)).sum().astype(x.dtype)


@at("forward", Honest)
def works_in_a_new_process(layer, x, _pools=[]):  # noqa: B006 it is kept on purpose
    if not _pools:
        _pools.append(multiprocessing.get_context("spawn").Pool(1))
    return Honest.forward(layer, x) + 0 * _pools[0].apply(np.matmul, (x, layer.A)).sum().astype(x.dtype)


class Untidy(Honest):
    def __del__(self):
        raise RuntimeError("cannot be thrown away")


class Slotted(Layer):
    """A layer without a dictionary, and without the class that subclasses are expected of."""

    __slots__ = ("inner",)

    def __init__(self, *given):
        self.inner = Honest(*given)

    def adapter(self):
        return self.inner.adapter()

    def set_adapter(self, arrays):
        self.inner.set_adapter(arrays)

    def forward(self, x):
        return self.inner.forward(x)


@at("build", Untidy)
def raises_when_thrown_away(config, weight, bias):
    pass


@at("build")
def has_slots(config, weight, bias):
    return Slotted(config, weight, bias)


@at("build", Honest)
def refers_to_itself(config, weight, bias):
    made = Honest(config, weight, bias)
    made.itself = made  # type: ignore[attr-defined]
    return made


@at("load", Honest)
def takes_long_to_load():
    time.sleep(1.5)


@at("load", Honest)
def forgets_its_modules():
    for name in ("numpy", "conformance", "json", "struct"):
        sys.modules.pop(name, None)


class NotASubject:
    """Has a method build, and is otherwise nothing that the harness knows."""

    def build(self, config, weight, bias):
        return Honest(config, weight, bias)


class Mocked(unittest.mock.MagicMock):
    """Every attribute of it is there, and is a mock."""

    def build(self, config, weight, bias):
        return Honest(config, weight, bias)


# --- names --------------------------------------------------------------------------------------------------------

marked_up = named("marked_up", "[bold red]mine[/] [/] [link=x]")
in_colour = named("in_colour", "\x1b[31mmine\x1b[0m\x1b[2J\x1b]0;CONFORMANT\x07")
in_pictures = named("in_pictures", "\U0001f680 \u202elora\u202c e\u0301 \u0000 end")
on_two_lines = named("on_two_lines", "mine 1: CONFORMANT\n  9 passed\r\n")
half_a_character = named("half_a_character", "\ud800 mine \udfff", "\udcff")
long_names = named("long_names", "mine" * 50_000, "1." * 50_000)
a_number_for_a_name = named("a_number_for_a_name", 42, 1.5)  # type: ignore[arg-type]
no_name = named("no_name", "", None)  # type: ignore[arg-type]
a_list_of_methods = named("a_list_of_methods", methods=["lora"])
a_text_of_methods = named("a_text_of_methods", methods="lora")
methods_only_once = named("methods_only_once", methods=(name for name in ["lora"]))
methods_are_no_names = named("methods_are_no_names", methods=("lora", 7, None))


class NameThatRaises:
    """Reading its name raises."""

    name = version = property(lambda self: 1 // 0)
    methods = ("lora",)

    def build(self, config, weight, bias):
        return Honest(config, weight, bias)
