"""Lets something happen between two given instructions of Python code, or at a given operation of torch."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lora_torch import linear as torch_linear

OURS, MODULE = str(Path(torch_linear.__file__ or "").parent), nn.modules.module.__file__ or ""
# What changes nothing that lives on.
READING = {
    "__getattr__", "state_dict", "_save_to_state_dict", "_check_state", "<dictcomp>", "<listcomp>", "<genexpr>", "named_arrays",
    "array_names", "modules", "named_modules", "_mergeable",
}


@contextmanager
def at_instruction(n: int, action: Callable[[], object]) -> Iterator[list[str]]:
    """Calls action before the n-th instruction from now. What it gives is empty until then, and then says where that was.

    Counted are in this thread all instructions of lora_torch and all lines of nn.Module. Functions that only read count as one.
    """
    left, where = n, []

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        code = frame.f_code
        ours = code.co_filename.startswith(OURS)
        if where or not ours and code.co_filename != MODULE or code.co_name in READING:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = ours, not ours
        return count

    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == "opcode" or event == "line":
            left -= 1
            if left < 0 and not where:
                where.append(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                action()
        return count

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield where
    finally:
        sys.settrace(before)


class FailingOperation(TorchDispatchMode):
    """Raises MemoryError in the place of the n-th operation of torch under it. `where` is empty until then."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left, self.where = n, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left < 0 and not self.where:
            self.where.append(str(func))
            raise MemoryError
        return func(*args, **(kwargs or {}))
