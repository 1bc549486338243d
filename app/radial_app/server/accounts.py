"""Who may use a server: accounts with passwords, sessions of browsers, keys of programs.

Passwords are kept as Argon2id hashes; session tokens and keys are random and kept as digests. Without any account a
server answers this machine alone, and everything belongs to whoever sits at it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import secrets
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from radial.errors import OutputError, RequestError
from radial_app.jobs.folder import keep_private

SESSION_SECONDS = 14 * 86_400
MIN_PASSWORD, MAX_PASSWORD = 10, 1000
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_KEY_PREFIX = "rk_"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS accounts (
    name TEXT PRIMARY KEY, password TEXT NOT NULL, admin INTEGER NOT NULL, created REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS sessions (
    digest TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts (name) ON DELETE CASCADE, expires REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS keys (
    digest TEXT PRIMARY KEY, account TEXT NOT NULL REFERENCES accounts (name) ON DELETE CASCADE,
    label TEXT NOT NULL, shown TEXT NOT NULL, created REAL NOT NULL
);
"""


def accounts_file(folder: Path) -> Path:
    """Where the accounts of a data folder are kept."""
    return folder / "accounts.db"


@dataclass(frozen=True)
class Visitor:
    """Who asks: the owner of what is made, who sees everybody's jobs as an ``admin``."""

    name: str = ""
    admin: bool = True

    @property
    def scope(self) -> str | None:
        """Whose jobs are shown: one's own, or everybody's (None)."""
        return None if self.admin else self.name


LOCAL = Visitor()  # at this machine, where there are no accounts


class Accounts:
    """The accounts of a data folder. Each thread opens its own.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = accounts_file(folder)
        try:
            keep_private(folder)
            path.touch(mode=0o600)
            self._database = sqlite3.connect(path, timeout=30, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA foreign_keys = ON")
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise OutputError(f"cannot keep accounts in {folder}: {error}") from error

    def __enter__(self) -> Accounts:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def any(self) -> bool:
        """Whether there are accounts."""
        return self._database.execute("SELECT 1 FROM accounts LIMIT 1").fetchone() is not None

    def all(self) -> list[Visitor]:
        """All accounts by name."""
        rows = self._database.execute("SELECT name, admin FROM accounts ORDER BY name")
        return [Visitor(name, bool(admin)) for name, admin in rows]

    def add(self, name: str, password: str, *, admin: bool = False) -> None:
        """Make an account. The first one is an admin's.

        Raises:
            RequestError: the name is taken or no name, or the password too short.
        """
        if not _NAME.fullmatch(name):
            raise RequestError(f"an account's name has a-z, 0-9, dots and dashes, at most 32, not {name!r}")
        if name == "local":
            raise RequestError("the name local is that of the time without accounts; take another")
        hashed = _hash(password)
        try:
            self._database.execute(
                "INSERT INTO accounts VALUES (?, ?, ? OR NOT EXISTS (SELECT 1 FROM accounts), ?)",
                (name, hashed, int(admin), time.time()),
            )
        except sqlite3.IntegrityError as error:
            raise RequestError(f"there is an account {name!r} already") from error

    def remove(self, name: str) -> None:
        """Remove an account with its sessions and keys; its jobs stay, for admins to see.

        Raises:
            RequestError: there is none of this name.
        """
        self._changed(self._database.execute("DELETE FROM accounts WHERE name = ?", (name,)), name)

    def set_password(self, name: str, password: str) -> None:
        """Another password; whoever is logged in must log in again, and programs need new keys: who knew the old
        password may have made some.

        Raises:
            RequestError: there is none of this name, or the password is too short.
        """
        hashed = _hash(password)
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            done = self._database.execute("UPDATE accounts SET password = ? WHERE name = ?", (hashed, name))
            self._changed(done, name)
            self._database.execute("DELETE FROM sessions WHERE account = ?", (name,))
            self._database.execute("DELETE FROM keys WHERE account = ?", (name,))

    def log_in(self, name: str, password: str) -> str | None:
        """A session's token for a right password, else None, after as long a time."""
        row = self._database.execute("SELECT password FROM accounts WHERE name = ?", (name,)).fetchone()
        if not _verify(row[0] if row else _nobodys_hash(), password) or row is None:
            return None
        token = secrets.token_urlsafe(32)
        now = time.time()
        self._database.execute("DELETE FROM sessions WHERE expires < ?", (now,))
        self._database.execute("INSERT INTO sessions VALUES (?, ?, ?)", (_digest(token), name, now + SESSION_SECONDS))
        return token

    def log_out(self, token: str) -> None:
        """End a session."""
        self._database.execute("DELETE FROM sessions WHERE digest = ?", (_digest(token),))

    def of_session(self, token: str) -> Visitor | None:
        """Whose session a token is of."""
        return self._visitor(
            "SELECT name, admin FROM sessions JOIN accounts ON name = account WHERE digest = ? AND expires > ?",
            (_digest(token), time.time()),
        )

    def of_key(self, key: str) -> Visitor | None:
        """Whose key it is."""
        return self._visitor("SELECT name, admin FROM keys JOIN accounts ON name = account WHERE digest = ?",
                             (_digest(key),))  # fmt: skip

    def new_key(self, account: str, label: str = "") -> str:
        """A key for programs of an account, told this once.

        Raises:
            RequestError: there is no such account.
        """
        key = _KEY_PREFIX + secrets.token_urlsafe(32)
        try:
            self._database.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?)", (_digest(key), account, label[:100], key[:7], time.time())
            )
        except sqlite3.IntegrityError as error:
            raise RequestError(f"there is no account {account!r}") from error
        return key

    def keys(self, account: str) -> list[tuple[str, str]]:
        """An account's keys: how each begins, and what it is called."""
        query = "SELECT shown, label FROM keys WHERE account = ? ORDER BY created"
        return self._database.execute(query, (account,)).fetchall()

    def revoke(self, account: str, shown: str) -> None:
        """Take back the keys of an account that begin like this.

        Raises:
            RequestError: there are none.
        """
        done = self._database.execute("DELETE FROM keys WHERE account = ? AND shown = ?", (account, shown))
        if not done.rowcount:
            raise RequestError(f"{account!r} has no key that begins with {shown!r}")

    def _visitor(self, query: str, values: tuple[object, ...]) -> Visitor | None:
        row = self._database.execute(query, values).fetchone()
        return Visitor(row[0], bool(row[1])) if row else None

    @staticmethod
    def _changed(done: sqlite3.Cursor, name: str) -> None:
        if not done.rowcount:
            raise RequestError(f"there is no account {name!r}")


class Throttle:
    """Counts failures by whatever they are counted by: ``limit`` of them within ``seconds``, then a pause."""

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._seconds, self._clock = limit, seconds, clock
        self._failures: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def wait(self, key: str) -> float:
        """Seconds until the next try is let through."""
        with self._lock:
            times = self._failures.get(key)
            if times is None or len(times) < self._limit:
                return 0.0
            return max(0.0, times[0] + self._seconds - self._clock())

    def fail(self, key: str) -> None:
        """Count a try, before it is known how it goes: many at once are many."""
        with self._lock:
            self._failures.setdefault(key, deque(maxlen=self._limit)).append(self._clock())
            for key in [key for key, times in self._failures.items() if self._clock() - times[-1] > self._seconds]:
                del self._failures[key]

    def forget(self, key: str) -> None:
        """It went well."""
        with self._lock:
            self._failures.pop(key, None)


@contextlib.contextmanager
def _argon2() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise RequestError("accounts need more packages: pip install 'radial-video[server]'") from error


def _hash(password: str) -> str:
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise RequestError(f"a password has {MIN_PASSWORD} characters or more, not {len(password)}")
    with _argon2():
        from argon2 import PasswordHasher
    return PasswordHasher().hash(password)


def _verify(hashed: str, password: str) -> bool:
    with _argon2():
        from argon2 import PasswordHasher
        from argon2.exceptions import InvalidHashError, VerificationError
    try:
        return PasswordHasher().verify(hashed, password[:MAX_PASSWORD])
    except (VerificationError, InvalidHashError):
        return False


@functools.cache
def _nobodys_hash() -> str:
    """One that nobody's password has, so that an unknown name takes as long as a known one."""
    return _hash(secrets.token_urlsafe(16))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
