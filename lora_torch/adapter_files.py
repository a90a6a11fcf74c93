"""The two files of an adapter as files: JSON with every key once, safetensors, written whole or not at all.

Nothing here knows what a key means. checkpoint.py does. A file that cannot be read is a ValueError that says why. A pickle is
never opened. safetensors itself refuses a header that is too long, that claims bytes twice, or that claims more or fewer than
the file has.
"""

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from lora_torch.checks import require

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_require = partial(require, "load_adapter")
Shapes = Mapping[str, tuple[int, ...]]


def some(names: Sequence[str]) -> str:
    """The names for a message: eight of them, and how many more."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "none"


def read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    _require(file.is_file(), "directory", str(folder), f"one with {CONFIG} and {TENSORS}", "an adapter is these two files")
    try:
        config = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"load_adapter: {CONFIG} is unreadable, expected JSON with each key once, because: {error}") from error
    _require(isinstance(config, dict), CONFIG, type(config).__name__, "an object", "it has settings by name")
    return config


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"a key stands twice among {some([key for key, _ in pairs])}")
    return dict(pairs)


def read_tensors(folder: Path, check: Callable[[Shapes], None]) -> dict[str, Tensor]:
    """All tensors by key. `check` sees the shapes of the header before any number is read, and may raise ValueError."""
    file, has_pickle = folder / TENSORS, (folder / PICKLE).exists()
    why = f"{PICKLE} is a pickle, which can run any code and is never read" if has_pickle else "it holds the numbers"
    _require(file.is_file(), "directory", str(folder), f"one with {TENSORS}", why)
    try:
        with safe_open(file, framework="pt", device="cpu") as content:
            shapes = {key: tuple(content.get_slice(key).get_shape()) for key in content.keys()}  # noqa: SIM118 it is no dict
            check(shapes)
            return {key: content.get_tensor(key) for key in shapes}
    except ValueError:
        raise
    except Exception as error:  # what safetensors and torch raise for a broken file is of many types
        raise ValueError(f"load_adapter: {TENSORS} is unreadable, expected the safetensors format, because: {error}") from error


def put_files(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Write all files beside their places and flush them to the disk. Then put each in its place. If one of them cannot be put
    there, the others return to what they were."""
    folder.mkdir(parents=True, exist_ok=True)
    beside, before = ({name: folder / f".{name}.{secrets.token_hex(8)}" for name in writers} for _ in range(2))
    placed, had = [], [name for name in writers if (folder / name).exists()]
    try:
        for name, write in writers.items():
            write(beside[name])
            _flush(beside[name])
        for name in had:
            with suppress(OSError):  # a file system without links: then the first file stays new if the second one fails
                os.link(folder / name, before[name])
        for name, path in beside.items():
            os.replace(path, folder / name)
            placed.append(name)
        _flush(folder)
    except BaseException:
        for name in placed:
            if before[name].exists():
                os.replace(before[name], folder / name)
            elif name not in had:
                (folder / name).unlink()
        raise
    finally:
        for path in (*beside.values(), *before.values()):
            path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
