"""A program that speaks the protocol. Its argument names the fault that it shows when it is asked for a forward pass."""

import json
import os
import sys
import time

FAULT = sys.argv[1]
kept = []


def forward():
    if FAULT == "dies":
        print("about to die", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 11)
    if FAULT == "exits":
        os._exit(7)
    if FAULT == "hangs":
        time.sleep(600)
    if FAULT == "floods":
        while True:
            print("x" * 1000)
    if FAULT == "eats":
        while True:
            kept.append(bytearray(1 << 26))
    if FAULT == "answers-nothing":
        return {}
    if FAULT == "garbles":
        return {"result": {"shape": [2, 2], "dtype": "float32", "data": "AAAA"}}
    return {"error": "no forward today", "type": "RuntimeError"}


for line in sys.stdin:
    request = json.loads(line)
    answer = {"result": None}
    if request["method"] == "hello":
        answer = {"result": {"protocol": 2 if FAULT == "is-newer" else 1, "name": "broken", "version": "0"}}
        if FAULT == "is-noisy":
            print("loading", json.dumps({"id": 99, "result": "not this one"}), "{", "null", sep="\n")
    elif request["method"] == "forward":
        answer = forward()
    elif request["method"] == "adapter":
        zero, one = ({"shape": [n, m], "dtype": "float32", "data": data} for n, m, data in (
            (12, 5, "AACAPwAAAEAAAEBA" * 20), (5, 7, "A" * 187 + "=")))
        answer = {"result": {"A": zero, "B": one}}
    print(json.dumps({"id": request["id"]} | answer), flush=True)
