"""``radial accounts``: who may use a server over the network."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from radial.errors import RequestError
from radial_app.cli.terminal.options import DataDir
from radial_app.jobs.folder import data_folder
from radial_app.jobs.store import JobStore
from radial_app.server.accounts import Accounts

app = typer.Typer(name="accounts", help="Who may use a server over the network.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The account's name.")]


@app.command()
def add(
    name: Name,
    admin: Annotated[
        bool, typer.Option("--admin", help="Sees everybody's videos; the first account always is.")
    ] = False,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Make an account."""
    with Accounts(data_folder(data_dir)) as accounts:
        accounts.add(name, _password(from_stdin=password_stdin), admin=admin)


@app.command()
def password(
    name: Name,
    password_stdin: Annotated[bool, typer.Option("--password-stdin", help="Read the password from stdin.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Give an account another password; whoever is logged in must log in again, and its keys are taken back."""
    with Accounts(data_folder(data_dir)) as accounts:
        keys = accounts.keys(name)
        accounts.set_password(name, _password(from_stdin=password_stdin))
    if keys:
        print(f"{len(keys)} keys were taken back; `radial accounts key {name}` makes new ones")


@app.command()
def remove(name: Name, data_dir: DataDir = None) -> None:
    """Remove an account with its keys and uploads; its jobs and videos stay, for admins to see."""
    with Accounts(data_folder(data_dir)) as accounts, JobStore(data_dir) as store:
        accounts.remove(name)
        store.disown(name)
        needed = store.inputs_of_unfinished()
        for upload in (store.folder / "inputs" / name).glob("*"):
            if str(upload) not in needed:
                upload.unlink(missing_ok=True)


@app.command("list")
def list_accounts(data_dir: DataDir = None) -> None:
    """List accounts and the beginnings of their keys."""
    table = Table("name", "admin", "keys")
    with Accounts(data_folder(data_dir)) as accounts:
        for one in accounts.all():
            keys = ", ".join(f"{shown}... {label}".strip() for shown, label in accounts.keys(one.name))
            table.add_row(one.name, "yes" if one.admin else "", keys)
    Console().print(table)


@app.command()
def key(
    name: Name,
    label: Annotated[str, typer.Option(help="What the key is for.")] = "",
    data_dir: DataDir = None,
) -> None:
    """Make a key for programs, and print it this once; they send it as `Authorization: Bearer KEY`."""
    with Accounts(data_folder(data_dir)) as accounts:
        print(accounts.new_key(name, label or time.strftime("%Y-%m-%d")))


@app.command()
def revoke(
    name: Name, shown: Annotated[str, typer.Argument(help="How the key begins, as listed.")], data_dir: DataDir = None
) -> None:
    """Take a key back."""
    with Accounts(data_folder(data_dir)) as accounts:
        accounts.revoke(name, shown)


def _password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    first: str = typer.prompt("Password", hide_input=True)
    if first != typer.prompt("Again", hide_input=True):
        raise RequestError("the two passwords differ")
    return first
