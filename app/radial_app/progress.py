"""Live progress in the terminal: the stage, the step, the time that is left."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from rich import progress
from rich.console import Console

from radial.pipeline import Event

_WORDS = {
    "load": "loading the model",
    "encode": "encoding the text",
    "denoise": "denoising",
    "decode": "decoding frames",
    "write": "writing the file",
}


class Progress:
    """A line per clip, moving through the stages; none when hidden or where stderr is no terminal."""

    def __init__(self, console: Console, *, hidden: bool = False) -> None:
        self._console = console
        self._bar = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("{task.description:17}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[steps]:>7}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=console,
            disable=hidden or not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, steps="")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, stage: str) -> None:
        """Show a stage that has no steps."""
        self._bar.reset(self._task, total=None, description=_WORDS[stage], steps="")

    def on_event(self, event: Event) -> None:
        """Follow the pipeline."""
        if event.stage != "denoise":
            self.say(event.stage)
        elif event.step == 0:
            self._bar.reset(self._task, total=event.steps, description=_WORDS["denoise"], steps=f"0/{event.steps}")
        else:
            self._bar.update(self._task, completed=event.step, steps=f"{event.step}/{event.steps}")

    def report(self, path: Path, seconds: float, computed_share: float) -> None:
        """Say that a clip is done."""
        self._console.print(
            f"[bold green]done[/] in {seconds:.1f} s, {computed_share:.0%} of attention computed", highlight=False
        )
        print(path, flush=True)
