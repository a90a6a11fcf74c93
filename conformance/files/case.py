"""A case of a requirement on adapter files: a base model, the files of one adapter, and what they mean.

The truth is not read out of the files. It is what the files were made from: see requirements/helpers/adapters.py.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from conformance.files.binary import safetensors
from conformance.subject import Arrays

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


class FileConfig(NamedTuple):
    format: str
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class FileCase:
    """`settings` and `tensors` become the files, unless `files` has their bytes. `truth` is ΔW by module, as the base stores W,
    and under "{module}.bias" what is added to the output. What is wrong with an invalid one is said in `wrong`; if it has a
    truth, a reader that understands it all the same computes that."""

    config: FileConfig
    base: Arrays
    kinds: dict[str, str]
    settings: dict[str, Any] | None
    tensors: Arrays
    truth: Arrays
    metadata: dict[str, str] = field(default_factory=dict)
    name: str = TENSORS  # of the file of tensors
    about: str = ""  # what is special about the adapter, in a few words
    wrong: str = ""
    files: dict[str, bytes | None] = field(default_factory=dict)  # by name; None leaves the file out
    good: "FileCase | None" = None  # the adapter before it was spoiled
    other: "FileCase | None" = None  # a second adapter for the same base

    @property
    def numbers(self) -> int:
        return sum(array.size for array in (*self.base.values(), *self.tensors.values()))

    @property
    def size(self) -> float:
        """Size of the case: fewer numbers are easier to read."""
        return float(self.numbers)

    def copy(self) -> "FileCase":
        return replace(self, base={name: array.copy() for name, array in self.base.items()})

    def replace(self, **changes: Any) -> "FileCase":
        return replace(self, config=self.config._replace(**changes))

    def contents(self) -> dict[str, bytes]:
        """The files by name."""
        made = {self.name: safetensors(self.tensors, self.metadata or None)}
        if self.settings is not None:
            made[CONFIG] = json.dumps(self.settings, indent=1).encode()
        return {name: content for name, content in (made | self.files).items() if content is not None}

    def written(self, folder: Path) -> Path:
        """Writes the files to a folder that is new. What a reader is given: the folder, or in some formats the file."""
        folder.mkdir()
        for name, content in self.contents().items():
            (folder / name).write_bytes(content)
        return folder / self.name if self.config.format in ("kohya", "diffusers") else folder

    @property
    def described(self) -> str:
        """The case in a few words."""
        modules = sorted(name for name in self.truth if not name.endswith(".bias"))
        words = [self.config.format, self.about, self.wrong, f"{', '.join(modules[:3])} of {len(self.kinds)} modules"]
        return "; ".join(word for word in words if word)
