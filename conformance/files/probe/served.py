"""What a server offers, and the fields of a request that choose it: the base model, and adapters.

vLLM, and others with the protocol of OpenAI, take the name of an adapter for the name of a model. llama.cpp has one model and
a list of adapters, each with a scale: one that holds for requests that say nothing, and one that a request may give.
"""

from pathlib import Path
from typing import Any

from conformance.files.probe.server import Refused, Server, Trouble, Who

LOAD, UNLOAD, SCALES = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/lora-adapters"


class Models:
    """A server whose adapters are models."""

    def __init__(self, server: Server):
        """Raises Trouble."""
        self.server = server
        self.cards = {card["id"]: card for card in _entries(server.call("/v1/models"), "data", str)}

    def who(self, model: str) -> Who:
        """The fields that choose a model or an adapter by its name. Raises Trouble."""
        if model not in self.cards:
            raise Trouble(f"it serves no model {model!r}, but {', '.join(self.cards) or 'none'}")
        return {"model": model}

    def only(self) -> str:
        """The name of the only adapter. Raises Trouble."""
        return _only([name for name, card in self.cards.items() if card.get("parent")], "adapter", "--model")

    def base(self, model: str) -> str:
        """The name of the base model of an adapter. Raises Trouble."""
        parent = self.cards.get(model, {}).get("parent")
        others = [name for name, card in self.cards.items() if not card.get("parent") and name != model]
        return parent if isinstance(parent, str) and parent in self.cards else _only(others, "base model", "--base-model")

    def folder(self, model: str) -> str | None:
        """The folder that the model was loaded from, if the server tells it and it is on this machine."""
        root = self.cards.get(model, {}).get("root")
        return root if isinstance(root, str) and Path(root).is_dir() else None

    def load(self, name: str, folder: str, in_place: bool) -> None:
        """Loads an adapter while the server runs. Raises Trouble."""
        self.server.send(LOAD, {"lora_name": name, "lora_path": str(Path(folder).resolve())}
                         | ({"load_inplace": True} if in_place else {}))

    def unload(self, name: str) -> None:
        self.server.send(UNLOAD, {"lora_name": name})


class Scales:
    """llama.cpp's server. An adapter is named by its number, or by its file without the ending."""

    def __init__(self, server: Server, entries: list[dict[str, Any]]):
        """Raises Trouble."""
        self.server = server
        try:
            self.start = {int(entry["id"]): float(entry.get("scale", 1.0)) for entry in entries}
        except (TypeError, ValueError, OverflowError) as error:
            raise Trouble(f"the list of adapters cannot be read: a scale is no number: {error}") from None
        self.names = {Path(str(entry.get("path", ""))).stem: int(entry["id"]) for entry in entries}

    def number(self, model: str) -> int:
        """Raises Trouble."""
        number = int(model) if model.isdecimal() else self.names.get(model)
        if number not in self.start:
            raise Trouble(f"it has no adapter {model!r}, but {', '.join(self.names) or 'none'}")
        return number

    def who(self, model: str) -> Who:
        """The request as users send it, if the server applies this adapter alone to those that say nothing; else one that asks
        for it."""
        number = self.number(model)
        alone = self.start[number] and not any(scale for other, scale in self.start.items() if other != number)
        return {} if alone else self.asked({number: 1.0})

    def asked(self, scales: dict[int, float]) -> Who:
        """A request that gives the scales itself."""
        return {"lora": [{"id": number, "scale": scales.get(number, 0.0)} for number in self.start]}

    def set(self, scales: dict[int, float]) -> None:
        """Sets the scales for requests that say nothing. Raises Trouble."""
        self.server.send(SCALES, self.asked(scales)["lora"])

    def only(self) -> str:
        return _only(list(self.names), "adapter", "--model")

    def base(self, model: str) -> str:
        return ""

    def folder(self, model: str) -> str | None:
        return None  # its files are GGUF


def offered(server: Server) -> Models | Scales:
    """What the server offers. Raises Trouble."""
    try:
        said = server.call(SCALES)
    except Refused:
        return Models(server)
    return Scales(server, _entries({"": said}, "", int))


def request(offer: Models | Scales, model: str, base: str) -> tuple[Who, Who]:
    """The fields for the base model alone, and for the adapter. Raises Trouble."""
    if isinstance(offer, Scales):
        return offer.asked({}), offer.who(model)
    return offer.who(base), offer.who(model)


def _entries(said: Any, key: str, kind: type) -> list[dict[str, Any]]:
    """The objects of the list, each with an id of this kind. Raises Trouble."""
    entries = said.get(key) if isinstance(said, dict) else None
    if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and isinstance(entry.get("id"), kind) for entry in entries):
        wanted = f"a list of objects, each with an id of type {kind.__name__}, was expected"
        raise Trouble(f"the list of adapters cannot be read: {wanted}, and this came: {str(said)[:80]}")
    return entries


def _only(names: list[str], what: str, option: str) -> str:
    if len(names) != 1:
        raise Trouble(f"it serves {len(names)} that may be the {what}: {', '.join(names) or 'none'}; {option} names it")
    return names[0]
