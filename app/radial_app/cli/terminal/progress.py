"""Live progress in the terminal: the stage, the step, the time that is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import progress
from rich.console import Console
from rich.markup import escape

from radial_app.cli.terminal.text import looked_at

if TYPE_CHECKING:
    from radial.generation.watch import Event

_WORDS = {
    "load": "loading the model",
    "download": "downloading, MB",
    "encode": "encoding the text",
    "denoise": "denoising",
    "decode": "decoding frames",
    "write": "writing the file",
    "finish": "finishing frames",
}


class Progress:
    """A line per clip, moving through the stages; none when hidden or where stderr is no terminal. ``stage`` is the one
    that the clip is in."""

    def __init__(self, console: Console, *, hidden: bool = False) -> None:
        self._bar = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description:17}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[steps]:>7}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[looked]}"),
            console=console,
            disable=hidden or not console.is_terminal,
            transient=True,
            redirect_stdout=False,  # paths printed meanwhile belong on stdout
        )
        self._task: progress.TaskID | None = None
        self.stage = ""

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def begin(self, stage: str, steps: int | None = None) -> None:
        """Show a stage; without steps its bar pulses."""
        if self._task is not None:
            self._bar.remove_task(self._task)
        self.stage = stage
        shown = f"0/{steps}" if steps else ""
        self._task = self._bar.add_task(_WORDS[stage], total=steps, steps=shown, looked="")

    def end(self) -> None:
        """Clear the line."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self._bar.refresh()

    def on_event(self, event: Event) -> None:
        """Follow the pipeline."""
        if event.note:
            self._bar.console.print(f"[yellow]note:[/] {escape(event.note)}", highlight=False, soft_wrap=True)
            return
        if event.step == 0 or event.stage != self.stage:
            self.begin(event.stage, event.steps or None)
        if event.step and self._task is not None:
            self._bar.update(self._task, completed=event.step, steps=f"{event.step}/{event.steps}")
            if event.recall is not None and event.attention_error is not None:
                self._bar.update(self._task, looked=looked_at(event.recall, event.attention_error))
