"""What the subjects of this folder are made of: an honest layer, a wrong one, and a decorator that lets either do more."""

from conformance import Subject
from conformance.skeletons.subject import MyLayer as Honest


class Wrong(Honest):
    """It subtracts the LoRA part, in the output and in every gradient."""

    def __init__(self, config, weight, bias):
        super().__init__(config, weight, bias)
        self.scale = -self.scale


def subject(name: str, base: type[Honest] = Wrong, on_load=None, on_build=None, **methods) -> type[Subject]:
    """A subject whose layer is `base` with these methods in the place of its own. `on_load` and `on_build` are called first,
    when it is loaded and whenever it builds a layer."""
    layer = type(name, (base,), methods)

    class Made(Subject):
        version = "1"

        def __init__(self):
            self.name = name
            if on_load is not None:
                on_load()

        def build(self, config, weight, bias):
            made = None if on_build is None else on_build(config, weight, bias)
            return layer(config, weight, bias) if made is None else made

    return Made


def at(when: str, base: type[Honest] = Wrong):
    """A decorator: makes a subject of a function. It is called without arguments when the subject is loaded ("load"), or with
    (config, weight, bias) before a layer is built ("build"), or with (layer, *arguments) before a method of that name. What it
    returns is the answer, in the place of the layer's own, unless that is None."""
    def made(action) -> type[Subject]:
        if when in ("load", "build"):
            return subject(action.__name__, base, **{f"on_{when}": action})

        def method(self, *args):
            answer = action(self, *args)
            return getattr(base, when)(self, *args) if answer is None else answer

        return subject(action.__name__, base, **{when: method})

    return made
