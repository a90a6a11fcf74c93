"""The one line that long work shows on a terminal: how far it is, how long it will take, and what is being done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Column
from rich.text import Text

Told = Callable[[str, int, int | None], None]  # words, steps that are done, and all steps if that is known
CALM = 2  # times a second that the line is drawn


class Words(ProgressColumn):
    """The line: 12/232, about 3 min left: peft MERGE-11, 1 failed."""

    def render(self, task: Task) -> Text:
        seconds = task.time_remaining
        left = f"{seconds:.0f} s" if seconds is not None and seconds < 100 else f"{(seconds or 0) / 60:.0f} min"
        done = f"{task.completed:.0f}/{task.total:.0f}" if task.total else ""
        done += f", about {left} left" if done and seconds is not None else ""
        return Text(f"{done}: {task.description}" if done else task.description)


@contextmanager
def line(console: Console, first: str, total: int | None = None, drawn: bool = True) -> Iterator[Told]:
    """Yields what is to be called at each step. The line is drawn on a terminal, if it is to be `drawn`, and nowhere else. It
    is gone when the work is done. `first` says what is done before the first step. Threads may share it."""
    column = Words(table_column=Column(no_wrap=True, overflow="ellipsis"))
    with Progress(column, console=console, transient=True, disable=not (drawn and console.is_terminal),
                  refresh_per_second=CALM) as shown:
        task = shown.add_task(first, total=total)
        yield lambda words, done, total: shown.update(task, description=words, completed=done, total=total)
