"""Asks a running server for log-probabilities over HTTP.

A server gives them in one of three ways, and the first that works is used:

    next              of the most probable tokens after the prompt      llama.cpp, and vLLM
    prompt_logprobs   of every token of the prompt                      vLLM
    echo              of every token of the prompt                      the completions of OpenAI, with echo

The first is what a user gets: it goes through the caches of the server, and vLLM 0.32 on the CPU ends with an error when
requests for prompt_logprobs of adapters come at once.

Prompts are token ids, so that no tokenizer stands between. What the server says is not believed: an answer that is no JSON,
too long, too slow or of another shape is a Trouble.

Sources: vllm-project/vllm, docs, OpenAI-Compatible Server and LoRA Adapters; ggml-org/llama.cpp, tools/server/README.md.
"""

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

LONGEST = 64 << 20  # bytes of an answer
TOP = 20  # most probable tokens that are asked for: vLLM gives no more, unless it is told to

Who = dict[str, Any]  # the fields of a request that choose the model and its adapters
Prompt = list[int]  # token ids


class Trouble(Exception):
    """The server gives no answer that can be used. The message says why."""


class Refused(Trouble):
    """The server answered with an HTTP status that is an error."""


class NoAnswer(Trouble):
    """The server cannot be reached, or does not answer in time."""


class Answer(NamedTuple):
    """Log-probabilities that the server gives for one prompt."""

    position: np.ndarray  # the number of tokens before the token
    token: np.ndarray
    value: np.ndarray  # nat


class Server:
    """A server at a URL, and the way in which it gives log-probabilities."""

    def __init__(self, url: str, timeout: float, key: str = ""):
        try:
            parts = urllib.parse.urlsplit(url)
            right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # of a port that is no number, for example
            right = False
        if not right:
            raise ValueError(f"URL {url}: it is no address of a server, expected for example http://127.0.0.1:8000")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.timeout = timeout
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.way = ""

    def send(self, path: str, body: Any = None) -> bytes:
        """The answer to a POST of the body as JSON, or to a GET. Raises Trouble."""
        data = None if body is None else json.dumps(body).encode()
        end = time.monotonic() + self.timeout
        try:
            request = urllib.request.Request(self.url + path, data, self.headers)
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return b"".join(_pieces(answer, path, end))
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(f"{path}: HTTP {error.code}: {error.read(400).decode(errors='replace')}") from None
        except OSError as error:
            raise NoAnswer(f"{path}: no answer: {getattr(error, 'reason', error)}") from None
        except http.client.HTTPException as error:
            raise Trouble(f"{path}: the answer is no HTTP: {error!r}") from None

    def call(self, path: str, body: Any = None) -> Any:
        """The same, where the answer is JSON."""
        said = self.send(path, body)
        try:
            return json.loads(said)
        except (ValueError, RecursionError):
            raise Trouble(f"{path}: the answer is no JSON: {said[:80].decode(errors='replace')!r}") from None

    def choose_way(self, who: Who, prompts: list[Prompt]) -> None:
        """Finds the way in which the server gives log-probabilities. Raises Trouble if there is none."""
        why = []
        for way in WAYS:
            self.way = way
            try:
                if any(self.ask(who, prompt).token.size for prompt in prompts):
                    return
                why.append(f"{way}: none for any prompt")
            except NoAnswer:
                raise
            except Trouble as error:
                why.append(f"{way}: {error}")
        raise Trouble("the server gives no log-probabilities in a way that is known: " + "; ".join(why))

    def ask(self, who: Who, prompt: Prompt) -> Answer:
        """Raises Trouble."""
        fields, read = WAYS[self.way]
        said = self.call("/v1/completions", {"prompt": prompt, "max_tokens": 1, "temperature": 0, **fields, **who})
        try:
            position, token, value = np.array(list(read(said["choices"][0], prompt)), np.float64).reshape(-1, 3).T
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise Trouble(f"the answer has no log-probabilities where {self.way} has them: {error!r}"[:300]) from None
        return Answer(position.astype(int), token.astype(int), value)

    def ask_all(self, asked: list[tuple[Who, Prompt]], at_once: int = 1) -> list[Answer]:
        """The answers to many requests, in their order, with so many requests in flight. Raises Trouble."""
        with ThreadPoolExecutor(at_once) as pool:
            try:
                return list(pool.map(lambda pair: self.ask(*pair), asked))
            except Trouble:
                pool.shutdown(cancel_futures=True)
                raise


def _pieces(answer: Any, path: str, end: float) -> Iterator[bytes]:
    """The answer, a piece at a time, until it is too long or takes too long."""
    size = 0
    while piece := answer.read1(1 << 16):
        size += len(piece)
        if size > LONGEST or time.monotonic() > end:
            raise NoAnswer(f"{path}: the answer is too {'long' if size > LONGEST else 'slow'}")
        yield piece


Rows = Iterable[tuple[int, int, float]]  # position, token, log-probability


def _prompt_logprobs(choice: dict, prompt: Prompt) -> Rows:
    for position in range(1, len(prompt)):
        given = choice["prompt_logprobs"][position]
        for token in {str(prompt[position])} | given.keys():
            yield position, int(token), _number(given[token]["logprob"])


def _echo(choice: dict, prompt: Prompt) -> Rows:
    given = choice["logprobs"]["token_logprobs"]
    if given[0] is not None:
        raise ValueError(f"{given[0]} for the first token, before which there is none")
    for position in range(1, len(prompt)):
        yield position, prompt[position], _number(given[position])


def _next(choice: dict, prompt: Prompt) -> Rows:
    given = choice["logprobs"]
    if given is None:  # llama.cpp says nothing of a token that is a part of a character
        return
    if "content" in given:  # llama.cpp
        pairs = [(said["id"], said["logprob"]) for said in given["content"][0]["top_logprobs"]]
    else:  # of others a token's text is not taken: it may be that of several
        pairs = [(name.removeprefix("token_id:"), value) for name, value in given["top_logprobs"][0].items()]
    for token, value in pairs:
        yield len(prompt), int(token), _number(value)


def _number(value: Any) -> float:
    """A log-probability. JSON has no NaN: servers give null."""
    return float("nan") if value is None else float(value)


WAYS: dict[str, tuple[Who, Callable[[dict, Prompt], Rows]]] = {
    "next": ({"logprobs": TOP, "return_tokens_as_token_ids": True}, _next),
    "prompt_logprobs": ({"prompt_logprobs": 1}, _prompt_logprobs),
    "echo": ({"echo": True, "logprobs": 1}, _echo),
}
