"""Python that starts at once: processes as forks of one that has the libraries already.

To start Python with PyTorch and diffusers takes ten seconds of a core, and what most tests have such a process do takes
one. So the first process of a test run starts a source (:func:`begin`), which forks for whoever asks: tests, by
:func:`start`, whose pid is the fork's own; and processes of the product that start others, which find a stand-in for
Python under ``sys.executable``: it hands its arguments, files, folder and variables to the source, passes signals on,
and the fork dies with it. A fork reads the hub's variables again. What runs anything but our commands and scripts, or
has others that libraries read when they are imported, is started as ever; so is all where ``RADIAL_COLD`` is set.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

_SOURCE = "RADIAL_WARM_SOURCE"  # where the source listens, for everybody below
_MODULES = ("radial_app", "torch.distributed.run", "accelerate.commands.launch")
# Read when libraries are imported: a process that has them otherwise is no fork.
_READ_AT_IMPORT = ("CUDA", "DIFFUSERS_", "GOMP_", "HOME", "HUGGINGFACE", "LD_PRELOAD", "MKL_", "OMP_", "OPENBLAS",
                   "PATH", "PYTHON", "TRANSFORMERS_", "TRITON_", "USE_", "XDG_")  # fmt: skip
_OF_THE_HUB = "HF_"  # read then too, but a fork reads them again
_UNBUFFERED = "PYTHONUNBUFFERED"  # as -u, which a fork knows


def begin(folder: str) -> None:
    """Start the source of this test run in a folder of its own, and have children ask it."""
    place = os.path.join(folder, "source")
    stand_in = os.path.join(folder, "python")
    with open(stand_in, "w", encoding="utf-8") as file:
        file.write(f"#!{sys.executable} -IS\nimport sys\nsys.path.insert(0, {os.path.dirname(__file__)!r})\n"
                   f"import warm\nwarm.be_stand_in({sys.executable!r})\n")  # fmt: skip
    os.chmod(stand_in, 0o700)
    os.environ[_SOURCE] = place
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(64)
    command = [sys.executable, __file__, str(listener.fileno()), stand_in, str(os.getpid())]
    with open(os.path.join(folder, "source.txt"), "wb") as said:
        subprocess.Popen(
            command, pass_fds=[listener.fileno()], stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
    listener.close()


def use() -> None:
    """Start Python by the source of the test run, where there is one."""
    if _SOURCE in os.environ:
        sys.executable = os.path.join(os.path.dirname(os.environ[_SOURCE]), "python")


def _starting_with(beginnings: str | tuple[str, ...], environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(beginnings) and name != _UNBUFFERED}


def start(command: list[str], **options: Any) -> Any:
    """A process that runs Python, a fork where it can be one. Options and what it is are those of
    ``subprocess.Popen``; a fork knows some of them."""
    if _program(command[1:]) is not None and _SOURCE in os.environ and "RADIAL_COLD" not in os.environ:
        with contextlib.suppress(NoFork, OSError):
            return Fork(command, **options)
    return subprocess.Popen(command, **options)


class NoFork(Exception):
    """The process must be started as ever."""


class Fork:
    """A fork of the source, with what tests use of ``subprocess.Popen``."""

    def __init__(
        self, command: list[str], *, stdout: Any = None, stderr: Any = None, stdin: Any = None, text: bool = False,
        cwd: Any = None, env: Any = None,
    ) -> None:  # fmt: skip
        self.args, self.returncode = command, None
        files, ends = [], []
        own: list[Any] = []
        for number, wanted in enumerate((stdin, stdout, stderr)):
            if wanted == subprocess.PIPE:
                read, write = os.pipe()
                files.append(write)
                ends.append(write)
                own.append(os.fdopen(read, "r" if text else "rb"))
                continue
            own.append(None)
            if wanted == subprocess.DEVNULL:
                ends.append(os.open(os.devnull, os.O_RDWR))
                files.append(ends[-1])
            elif wanted == subprocess.STDOUT:
                files.append(files[1])
            else:
                files.append(number if wanted is None else wanted if isinstance(wanted, int) else wanted.fileno())
        self.stdin, self.stdout, self.stderr = own
        self._source, self.pid = _ask(command[1:], files, dict(env or os.environ), os.fspath(cwd or os.getcwd()), False)
        for end in ends:
            os.close(end)
        if self.pid == -1:
            raise NoFork

    def poll(self) -> int | None:
        """Its code where it has ended."""
        return self.wait(0)

    def wait(self, timeout: float | None = None) -> int | None:
        """Until it has ended; with 0 its code or None."""
        if self.returncode is None:
            ready, _, _ = select.select([self._source], [], [], timeout)
            if ready:
                self.returncode = int(self._source.recv(64) or b"-9")
                self._source.close()
            elif timeout:
                raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """All that it says, once it has ended."""
        said: list[Any] = [None, None]

        def read(at: int, file: Any) -> None:
            said[at] = file.read()
            file.close()

        readers = [
            threading.Thread(target=read, args=(at, file), daemon=True)
            for at, file in enumerate((self.stdout, self.stderr))
            if file is not None and not file.closed
        ]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return said[0], said[1]

    def send_signal(self, number: int) -> None:
        """A signal, where it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)


def _program(arguments: list[str]) -> list[str] | None:
    """The module or file that Python is to run, and its arguments; None where it is to do something else, or what other
    libraries start, which may hold more files than three."""
    for at, word in enumerate(arguments):
        if word == "-m":
            return arguments[at + 1 :] if arguments[at + 1 : at + 2] and arguments[at + 1] in _MODULES else None
        if word not in ("-P", "-u"):
            return arguments[at:] if word.endswith(".py") and "site-packages" not in word else None
    return None


def _ask(
    arguments: list[str], files: list[int], environment: dict[str, str], cwd: str, dies_with_us: bool
) -> tuple[socket.socket, int]:
    """Have the source fork: a connection that tells its end, and its pid, -1 where it must be started as ever."""
    source = socket.socket(socket.AF_UNIX)
    source.connect(os.environ[_SOURCE])
    asked = {"arguments": arguments, "environment": environment, "cwd": cwd, "dies": dies_with_us,
             "leads": os.getsid(0) == os.getpid() and dies_with_us}  # fmt: skip
    content = json.dumps(asked).encode()
    source.sendmsg([array.array("Q", [len(content)]).tobytes()],
                   [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))])  # fmt: skip
    source.sendall(content)
    told = b""
    while not told.endswith(b"\n"):
        if not (part := source.recv(1)):  # it has died
            return source, -1
        told += part
    return source, int(told)


def be_stand_in(python: str) -> None:
    """Stand in for Python: ask the source for a fork with these arguments, and live as long as it does."""
    arguments = sys.argv[1:]
    pid = -1
    if _program(arguments) is not None and "RADIAL_COLD" not in os.environ:
        early: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: early.append(number))
        with contextlib.suppress(OSError, KeyError):
            source, pid = _ask(arguments, [0, 1, 2], dict(os.environ), os.getcwd(), True)
    if pid == -1:
        os.execv(python, [python, *arguments])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    for number in early:
        os.kill(pid, number)
    code = int(source.recv(64) or b"-9")
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    os._exit(code)


def _be_source(listener: socket.socket, stand_in: str, parent: int) -> None:
    """Import what forks need, then fork for whoever asks until the test run has ended."""
    sys.path[0] = os.getcwd()
    imported_with = _starting_with(_READ_AT_IMPORT, os.environ)
    import torch
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline
    from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

    import radial_app.server.run
    import radial_finetune.training.train  # noqa: F401

    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # as the studio sets it
    with contextlib.suppress(ImportError):
        import radial_app.studio.page  # noqa: F401
    gc.collect()
    gc.freeze()  # forks neither look through what they share nor copy it for that
    del AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, PreTrainedTokenizerFast, UMT5EncoderModel, torch
    sys.executable = stand_in
    wakes, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    forks: dict[int, tuple[socket.socket, dict[str, Any]]] = {}
    while os.getppid() == parent:
        living = [connection for connection, asked in forks.values() if asked["dies"]]
        ready, _, _ = select.select([listener, wakes, *living], [], [], 1.0)
        if wakes in ready:
            os.read(wakes, 4096)
        _bury(forks)
        for pid, (connection, asked) in list(forks.items()):
            if connection in ready and pid in forks and not connection.recv(1):  # who asked is dead
                with contextlib.suppress(ProcessLookupError):
                    (os.killpg if asked["leads"] else os.kill)(pid, signal.SIGKILL)
                asked["dies"] = False
        if listener in ready:
            connection, _ = listener.accept()
            asked, files = _hear(connection)
            if _starting_with(_READ_AT_IMPORT, asked["environment"]) != imported_with:
                connection.sendall(b"-1\n")
                connection.close()
            elif (pid := os.fork()) == 0:
                for other, _ in forks.values():
                    other.close()
                listener.close()
                connection.close()
                _become(asked, files)
            else:
                forks[pid] = connection, asked
                connection.sendall(b"%d\n" % pid)
            for file in files:
                os.close(file)
    for pid in forks:
        os.kill(pid, signal.SIGKILL)


def _hear(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    files = array.array("i")
    size, ancillary, *_ = connection.recvmsg(8, socket.CMSG_LEN(3 * files.itemsize))
    files.frombytes(ancillary[0][2])
    content = b""
    while len(content) < int.from_bytes(size, sys.byteorder):
        content += connection.recv(65536)
    return json.loads(content), list(files)


def _bury(forks: dict[int, tuple[socket.socket, dict[str, Any]]]) -> None:
    """Tell of forks that have ended."""
    while forks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        connection, _ = forks.pop(pid)
        with contextlib.suppress(OSError):
            connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))
        connection.close()


def _read_again() -> None:
    """Have all libraries know the hub's variables as they are now: the constants read from them are read again, and put
    where they were imported by name."""
    for name in ("huggingface_hub.constants", "diffusers.utils.constants"):
        constants = sys.modules[name]
        before = dict(vars(constants))
        importlib.reload(constants)
        changed = {key: (old, vars(constants)[key]) for key, old in before.items() if key.isupper()}
        changed = {key: (old, new) for key, (old, new) in changed.items() if old != new}
        for module in list(sys.modules.values()):
            there = getattr(module, "__dict__", {})
            for key in changed.keys() & there.keys():
                old, new = changed[key]
                if type(there[key]) is type(old) and there[key] == old:
                    setattr(module, key, new)
    if "huggingface_hub.hf_api" in sys.modules:  # whose client was made with them
        sys.modules["huggingface_hub.hf_api"].api.endpoint = sys.modules["huggingface_hub.constants"].ENDPOINT


def _become(asked: dict[str, Any], files: list[int]) -> None:
    """Be a process that was just started with such arguments, and end as one."""
    import atexit
    import random
    import runpy

    signal.set_wakeup_fd(-1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if asked["leads"]:
        os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.closerange(3, 4096)
    of_the_hub = _starting_with(_OF_THE_HUB, os.environ)
    os.environ.clear()
    os.environ.update(asked["environment"])
    if _starting_with(_OF_THE_HUB, os.environ) != of_the_hub:
        _read_again()
    os.chdir(asked["cwd"])
    arguments = asked["arguments"]
    sys.argv = _program(arguments) or [""]
    if "-P" not in arguments:
        sys.path.insert(0, asked["cwd"] if "-m" in arguments else os.path.dirname(os.path.abspath(sys.argv[0])))
    at_once = "-u" in arguments or bool(os.environ.get(_UNBUFFERED))
    sys.stdout, sys.stderr = (
        open(number, "w", encoding="utf-8", closefd=False, buffering=1 if at_once or number == 2 else -1)  # noqa: SIM115
        for number in (1, 2)
    )
    random.seed()
    code: Any = 0
    try:
        run = runpy.run_path if sys.argv[0].endswith(".py") else runpy.run_module
        run(sys.argv[0], run_name="__main__", **({} if run is runpy.run_path else {"alter_sys": True}))
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(int(code or 0))


if __name__ == "__main__":
    _be_source(socket.socket(fileno=int(sys.argv[1])), sys.argv[2], int(sys.argv[3]))
