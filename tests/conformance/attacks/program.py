"""Programs that speak the protocol badly: `program.py NAME` does what the function NAME below does, at the method that it says.

Apart from that each is `conformance init --language python` with a scale of the wrong sign, or with the right one if the
decorator says so."""

import base64
import json
import os
import signal
import sys
import time
from collections.abc import Callable

import numpy as np

from conformance.skeletons import lora

LONG = 1000.0  # seconds
faults: dict[str, tuple[str, float, Callable]] = {}
out, layers = os.fdopen(os.dup(1), "wb"), {}
kept: list = []


def at(method: str, scale: float = -1.0):
    """A decorator: the function is called with (id, result) in the place of an answer to this method. "start" is the start of
    the program."""
    def noted(function: Callable) -> Callable:
        faults[function.__name__] = (method, scale, function)
        return function

    return noted


def raw(data: bytes) -> None:
    out.write(data)
    out.flush()


def say(message: object) -> None:
    raw(json.dumps(message).encode() + b"\n")


# --- ids and order ------------------------------------------------------------------------------------------------

@at("forward")
def has_another_id(id, result):
    say({"id": id + 1, "result": result})


@at("forward")
def has_no_id(id, result):
    say({"result": result})


@at("forward")
def has_a_text_for_an_id(id, result):
    say({"id": str(id), "result": result})


@at("forward")
def has_true_for_an_id(id, result):
    say({"id": True, "result": result})


@at("forward")
def has_a_fraction_for_an_id(id, result):
    say({"id": id + 0.5, "result": result})


@at("forward")
def answers_twice(id, result):
    say({"id": id, "result": result})
    say({"id": id, "result": result})


@at("forward")
def answers_in_advance(id, result):
    """To all requests that will come, with an array of zeros."""
    say({"id": id, "result": result})
    for later in range(id + 1, id + 50):
        say({"id": later, "result": result})


@at("forward")
def answers_late(id, result):
    """Every answer is that to the request before."""
    kept.append({"id": id, "result": result})
    if len(kept) > 1:
        say(kept[-2])


# --- silence and ends ---------------------------------------------------------------------------------------------

@at("forward")
def drips(id, result):
    for byte in json.dumps({"id": id, "result": result}).encode():
        raw(bytes([byte]))
        time.sleep(1)


@at("forward")
def says_nothing(id, result):
    pass


@at("forward")
def closes_its_output(id, result):
    out.close()
    os.closerange(0, 2)
    time.sleep(LONG)


@at("forward")
def closes_its_input(id, result):
    os.close(0)
    say({"id": id, "result": result})
    time.sleep(LONG)


@at("forward")
def closes_everything(id, result):
    os.closerange(0, 64)
    time.sleep(LONG)


@at("hello")
def ends_at_hello(id, result):
    sys.exit(0)


@at("hello")
def says_no_hello(id, result):
    time.sleep(LONG)


@at("start")
def ends_at_once(id, result):
    sys.exit(0)


@at("hello")
def speaks_a_later_protocol(id, result):
    say({"id": id, "result": result | {"protocol": 99}})


@at("hello")
def speaks_protocol_true(id, result):
    say({"id": id, "result": result | {"protocol": True}})


@at("hello")
def has_odd_names(id, result):
    odd = {"name": {"a": [1]}, "version": "\x1b[2J\ud800[/]\n", "freezes": 7, "methods": "lora", "scale": "no number"}
    say({"id": id, "result": result | odd})


@at("hello")
def promises_models(id, result):
    say({"id": id, "result": result | {"models": True, "strided": True, "methods": ["lora", 7, None]}})


@at("forward")
def dies_every_second_time(id, result):
    """Whatever it says before it dies is wrong."""
    if kept:
        os._exit(0)
    kept.append(id)
    say({"id": id, "result": result})


@at("forward")
def ignores_signals(id, result):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(LONG)


@at("forward")
def leaves_a_daemon_that_holds_pipes(id, result):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(LONG)
        os._exit(0)
    os._exit(0)


@at("start")
def leaves_a_daemon_and_goes_on(id, result):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(LONG)
        os._exit(0)


# --- messages -----------------------------------------------------------------------------------------------------

@at("forward")
def nests_deeply(id, result):
    raw(b'{"id":%d,"result":' % id + b"[" * 100_000 + b"]" * 100_000 + b"}\n")


@at("forward")
def sends_a_long_number(id, result):
    raw(b'{"id":%d,"result":' % id + b"9" * 1_000_000 + b"}\n")


@at("forward")
def has_a_long_number_for_an_id(id, result):
    raw(b'{"id":' + b"9" * 1_000_000 + b',"result":null}\n')


@at("forward")
def sends_not_a_number(id, result):
    raw(b'{"id":%d,"result":NaN}\n' % id)


@at("forward")
def names_keys_twice(id, result):
    """A parser that keeps the first key reads a failure, and one that keeps the last an answer."""
    raw(b'{"id":%d,"error":"no","error":"no","id":%d,"result":%s}\n' % (id, id, json.dumps(result).encode()))


@at("forward")
def says_both(id, result):
    say({"id": id, "unsupported": "such a forward pass", "error": "no", "result": result})


@at("forward")
def sends_latin_1(id, result):
    raw(b'{"id":%d,"error":"\xe4\xf6\xfc \xff"}\n' % id)


@at("forward")
def sends_utf_16(id, result):
    raw(json.dumps({"id": id, "result": result}).encode("utf-16") + b"\n")


@at("forward")
def sends_a_list(id, result):
    say([{"id": id, "result": result}])


@at("forward")
def sends_text(id, result):
    raw(b"forward: done\n" * 3)


@at("forward")
def sends_an_empty_object(id, result):
    say({"id": id})


@at("forward")
def sends_300_megabytes(id, result):
    for _ in range(300):
        raw(b" " * 1_000_000)
    say({"id": id, "result": result})


@at("forward")
def sends_a_line_without_end(id, result):
    while True:
        raw(b"a" * 100_000)


@at("forward")
def sends_lines_without_end(id, result):
    while True:
        raw(b'{"id":0}\n' * 10_000)


@at("forward")
def complains_without_end(id, result):
    while True:
        os.write(2, b"warning\n" * 10_000)


@at("forward")
def says_unsupported_in_an_object(id, result):
    say({"id": id, "unsupported": {"because": [1, 2]}})


@at("forward")
def raises_an_exit(id, result):
    say({"id": id, "error": "0", "type": "SystemExit"})


@at("forward")
def raises_unsupported(id, result):
    """As an error with this name. It is an error."""
    say({"id": id, "error": "nothing is wrong", "type": "Unsupported"})


@at("forward")
def raises_odd_types(id, result):
    say({"id": id, "error": ["\ud800", {"a": 1}], "type": "a b\x00\ud800[/]" * 1000})


@at("forward")
def raises_no_type(id, result):
    say({"id": id, "error": None, "type": None})


@at("forward")
def changed_what_was_never_sent(id, result):
    value = {"shape": [1, 1], "dtype": "float32", "data": "AAAAAA=="}
    say({"id": id, "result": result, "changed": [
        {"id": id, "argument": "x", "key": "", "value": value}, {"id": 7, "argument": "W", "key": "", "value": value},
        {"id": -1, "argument": "x", "key": [], "value": 3}, 7, {}]})


@at("forward")
def changed_nothing_in_no_list(id, result):
    say({"id": id, "result": result, "changed": 7})


@at("forward")
def changed_the_case(id, result):
    """Says that x is now zero, in the shape that x had, and gives the answer to that."""
    layer = list(layers.values())[-1]
    x = lora.encode(np.zeros_like(layer.x))
    y = lora.encode(layer.forward(np.zeros_like(layer.x)))
    say({"id": id, "result": y, "changed": [{"id": id, "argument": "x", "key": "", "value": x}]})


# --- arrays -------------------------------------------------------------------------------------------------------

def with_array(name: str, scale: float = -1.0, **changes) -> None:
    """A program whose answers to forward have these fields in the place of their own."""
    faults[name] = ("forward", scale, lambda id, result: say({"id": id, "result": result | changes}))


with_array("has_a_negative_shape", shape=[-1, 4], scale=1.0)
with_array("has_a_fractional_shape", shape=[1.0, 4.5])
with_array("has_a_shape_of_truth_values", shape=[True, True])
with_array("has_a_shape_of_texts", shape=["1", "4"])
with_array("has_no_shape", shape=None)
with_array("has_a_nested_shape", shape=[[1], [4]])
with_array("has_a_trillion_elements", shape=[1_000_000, 1_000_000])
with_array("has_too_many_dimensions", shape=[1] * 100_000)
with_array("has_a_shape_beyond_64_bits", shape=[10**30, 0])
with_array("strides_over_a_trillion_elements", shape=[1_000_000, 1_000_000], strides=[0, 0], first=0, writeable=True,
           data="AAAAAA==")
with_array("strides_beyond_its_memory", strides=[1 << 40, 1 << 40], first=0, writeable=True)
with_array("strides_before_its_memory", strides=[-4, -1], first=-(1 << 30), writeable=True)
with_array("is_of_objects", dtype="object")
with_array("is_of_big_endian_floats", dtype=">f4")
with_array("is_of_void", dtype="V8")
with_array("is_of_an_unknown_dtype", dtype="float13")
with_array("is_of_a_structured_dtype", dtype="f4,f4")
with_array("is_of_a_dtype_with_a_shape", dtype="(2,2)f4")
with_array("is_of_a_dtype_that_is_a_number", dtype=4)
with_array("has_data_of_the_wrong_length", data="AAAA")
with_array("has_data_that_are_no_text", data=[0, 0, 0, 0])
with_array("has_no_data", data=None)


@at("forward", scale=1.0)
def is_of_long_doubles(id, result):
    y = lora.decode(result).astype(np.longdouble)
    say({"id": id, "result": result | {"dtype": "float128", "data": base64.b64encode(y.tobytes()).decode()}})


@at("forward", scale=1.0)
def has_junk_in_its_base64(id, result):
    """The right data, with letters between that are no base64."""
    data = result["data"]
    say({"id": id, "result": result | {"data": data[:3] + "!*\n " + data[3:]}})


@at("forward", scale=1.0)
def has_more_data_than_its_shape(id, result):
    data = base64.b64decode(result["data"])
    say({"id": id, "result": result | {"data": base64.b64encode(data + data[:4]).decode()}})


@at("forward", scale=1.0)
def has_unpadded_base64(id, result):
    say({"id": id, "result": result | {"data": result["data"].rstrip("=")}})


@at("forward")
def eats_memory(id, result):
    for _ in range(96):
        kept.append(np.ones(1 << 23))  # 6 GiB in all
    say({"id": id, "result": result})


@at("build")
def builds_without_a_word(id, result):
    say({"id": id, "result": {"anything": [1, 2, 3]}})


# --- right ones ---------------------------------------------------------------------------------------------------

@at("forward", scale=1.0)
def prints_between_answers(id, result):
    raw(b"loading\n{}\nnull\n" + json.dumps({"id": id + 5, "note": 1}).encode() + b"\n\n")
    os.write(2, b"\x1b[31mwarning\x1b[0m \xff\xfe\n" * 1000)
    say({"id": id, "result": result})


@at("forward", scale=1.0)
def prints_after_answers(id, result):
    raw(json.dumps({"id": id, "result": result}).encode() + b"\nforward: done\n\n")


@at("forward", scale=1.0)
def answers_in_pieces(id, result):
    line = json.dumps({"id": id, "result": result}).encode() + b"\r\n"
    for start in range(0, len(line), 16):
        raw(line[start : start + 16])


@at("start", scale=1.0)
def is_in_the_c_locale(id, result):
    os.environ |= {"LC_ALL": "C", "LANG": "C"}


@at("hello", scale=1.0)
def has_a_long_name(id, result):
    say({"id": id, "result": result | {"name": "[bold]ü\U0001f680" * 20_000, "version": "1." * 20_000}})


def main() -> None:
    method, scale, fault = faults[sys.argv[1]]
    if method == "start":
        fault(0, None)
    for line in sys.stdin.buffer:
        request = json.loads(line)
        id, asked = request.pop("id"), request["method"]
        if asked == "build" and isinstance(request["config"]["alpha"], float):
            request["config"]["alpha"] *= scale
        try:
            answer = {"result": lora.encode(lora.answer(layers, **request))}
        except lora.Unsupported as reason:
            answer = {"unsupported": str(reason)}
        except Exception as error:
            answer = {"error": str(error), "type": type(error).__name__}
        if asked == method and "result" in answer:
            fault(id, answer["result"])
        else:
            say({"id": id} | answer)


if __name__ == "__main__":
    main()
