"""The ``radial`` command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl+C."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from importlib.metadata import entry_points
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from radial.errors import RadialError, RequestError
from radial.models.hub.download import set_offline
from radial.version import __version__
from radial_app.cli import (
    doctor,
    estimate,
    generate,
    inspect,
    jobs,
    presets,
    receipts,
    render,
    story,
    watch,
)
from radial_app.cli.clips import control, finish
from radial_app.cli.models import download, profile
from radial_app.cli.serving import accounts, serve
from radial_app.cli.terminal.text import printable
from radial_app.cli.terminal.torchrun import refuse_several

app = typer.Typer(
    name="radial",
    help="Generate video with radial attention.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
stderr = Console(stderr=True)
_ALONE = (
    "render", "story", "watch", "serve", "studio", "ui", "rerun", "inspect", "estimate", "download", "doctor",
    "profile",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit. Errors are one line on stderr.

    Anywhere among the arguments, ``--debug`` shows the traceback and ``--offline`` forbids downloads.
    """
    # Where another program keeps the cores busy, threads that spin for long wait for each other without end.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    for library in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao"):
        logging.getLogger(library).setLevel(logging.ERROR)  # what they say of each other's versions
    arguments = _with_dashes(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    if "--offline" in arguments:
        set_offline()
    arguments = [a for a in arguments if a not in ("--debug", "--offline")]
    _add_commands(arguments)
    try:
        code = app(arguments, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        stderr.print("stopped")
        sys.exit(130)
    except RadialError as error:
        if debug:
            traceback.print_exc()
        for message in getattr(error, "problems", [str(error)]):
            _complain(message)
        sys.exit(2 if isinstance(error, RequestError) else 1)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # typer's own
            if message := error.format_message():
                _complain(message)
            sys.exit(error.exit_code)
        if debug:
            traceback.print_exc()
        _complain(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''} (--debug shows more)")
        sys.exit(1)
    if code == 130:  # typer's own answer to Ctrl+C
        stderr.print("stopped")
    sys.exit(code if isinstance(code, int) else 0)


def _add_commands(arguments: list[str]) -> None:
    """Commands that other packages bring, such as fine-tuning; looked for only where none of ours is asked for."""
    ours = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    ours |= {group.name for group in app.registered_groups if group.name}
    if next((a for a in arguments if not a.startswith("-")), None) in ours:
        return
    known = {group.name for group in app.registered_groups}
    for entry in entry_points(group="radial.commands"):
        if entry.name not in known:
            app.add_typer(entry.load(), name=entry.name)


def _with_dashes(arguments: list[str]) -> list[str]:
    """Accept options with underscores, as diffusers names its parameters."""
    result: list[str] = []
    for index, argument in enumerate(arguments):
        if argument == "--":
            return [*result, *arguments[index:]]
        if argument.startswith("--"):
            name, equals, value = argument.partition("=")
            argument = name.replace("_", "-") + equals + value
        result.append(argument)
    return result


def _complain(message: str) -> None:
    line = escape(printable(" ".join(message.split())))
    stderr.print(f"[bold red]error:[/] {line}", soft_wrap=True, highlight=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"radial {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback when something fails.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Download nothing.")] = False,
) -> None:
    """Generate video with radial attention."""
    if context.invoked_subcommand in _ALONE:
        refuse_several(f"radial {context.invoked_subcommand}")


app.command()(generate.generate)
app.add_typer(jobs.app)
app.add_typer(accounts.app)
app.add_typer(presets.app)
for command in (
    render.render, story.story, watch.watch, jobs.work, receipts.receipt, receipts.rerun, receipts.verify,
    serve.serve, serve.studio, doctor.doctor, finish.finish, control.control,
):  # fmt: skip
    app.command()(command)
app.command("ui", hidden=True)(serve.studio)
app.command()(download.download)
app.command()(estimate.estimate)
app.command()(inspect.inspect)
app.command()(inspect.models)
app.command()(inspect.lora)
app.command()(profile.profile)
