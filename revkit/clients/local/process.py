"""The process that the embedded model runs in, seen from revkit's side.

Why a process: in revkit's own, llama.cpp would leave 350 MB and its environment variables in the
notebook's kernel, and a native abort would take the notebook with it. One process serves all
runs with the same settings. It ends with revkit's process (its stdin is a pipe, which the system
closes however that one ends), after ``IDLE_S`` without a run, or at exit. It is not shared with
forks: a fork starts its own.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from ...errors import ConnectionFailed, MissingExtra, ModelUnavailable
from ..redact import without_secrets

__all__ = ["Child", "ModelProcess", "Settings", "find_llama", "shared_process"]

#: The process ends by itself after so long without a run (seconds).
IDLE_S = 600.0
#: Loading takes a second or two, and minutes for a large file on a slow disk.
START_TIMEOUT_S = 300.0
#: A process that broke a connection gets this long to be seen dead (seconds).
_DEATH_S = 1.0

#: Threads of OpenMP that spin while they wait take the processor from those that work: with a
#: busy neighbour, 0.35 requests/s became 2.8 with these. They are read when it is loaded.
_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


@dataclass(frozen=True)
class Settings:
    """What a process serves, and how.

    Attributes:
        model: path of the GGUF file.
        slots: prompts that are worked on at the same time; more wait in the server.
        n_ctx: tokens of one prompt and its reply.
    """

    model: str
    slots: int
    n_ctx: int


class Log:
    """A file without a name that a process writes its errors to; it goes when nobody holds it."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile() as file:
            self.fd = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.fd)

    def last_words(self, code: int | None) -> str:
        """How a process ended, with the end of what it wrote."""
        size = os.fstat(self.fd).st_size
        os.lseek(self.fd, max(0, size - 4000), os.SEEK_SET)
        lines = os.read(self.fd, 4000).decode("utf-8", "replace").splitlines()
        tail = "\n".join("  " + line for line in lines[-8:])
        return f"(exit code {code})" + (
            f"; its last words:\n{tail}" if tail else ", without a word"
        )


@dataclass(frozen=True, eq=False)
class Child:
    """One start of the process: where it listens, and the key that it asks for."""

    popen: subprocess.Popen[bytes]
    log: Log = field(repr=False)
    endpoint: str
    key: str = field(repr=False)

    def last_words(self) -> str:
        """How it ended, for the end of a message."""
        return self.log.last_words(self.popen.returncode)


class ModelProcess:
    """The process for one group of settings; threads may share it.

    Use :func:`shared_process`, which makes one for each settings.
    """

    def __init__(self, settings: Settings):
        self.settings = settings
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._restarts = 1  #: how often it may still crash before a run must end
        self._runs = 0

    def start(self) -> None:
        """See that it is up; the start of a run.

        Raises:
            MissingExtra: xllamacpp is not installed.
            ModelUnavailable: it does not start; the message ends with its last words.
        """
        if not self.is_up:
            self.stop()  # how it ended in an earlier run does not count in this one
        self._restarts = 1
        self.child()

    def child(self) -> Child:
        """The process that is up, which is started if there is none; this takes a second or two.

        Raises:
            ConnectionFailed: it has crashed again after a restart (``ends_run`` is set).
            MissingExtra, ModelUnavailable: as :meth:`start`.
        """
        with self._lock:
            child = self._child
            if child is not None:
                code = child.popen.poll()
                if code is None:
                    return child
                _end(child.popen)
                if code != 0:  # 0 is the end after being idle
                    self._crashed(child)
                self._child = None
            self._child = self._launch()
            return self._child

    @property
    def is_up(self) -> bool:
        """Whether :meth:`child` returns at once."""
        child = self._child
        return child is not None and child.popen.poll() is None

    def _crashed(self, child: Child) -> None:
        if self._restarts == 0:
            failure = ConnectionFailed(
                "the embedded model's process crashed, was restarted, and crashed again "
                f"{child.last_words()}"
            )
            failure.ends_run = True
            raise failure
        self._restarts -= 1

    def await_death(self, child: Child) -> None:
        """Called when a connection to ``child`` broke: if it is dying, wait until it is dead, so
        that the next request goes to a new one and is not lost as well.
        """
        with suppress(subprocess.TimeoutExpired):
            child.popen.wait(_DEATH_S)

    def run_began(self) -> None:
        """It is not idle until :meth:`run_ended`."""
        with self._lock:
            self._runs += 1
            self._send(b"+\n")

    def run_ended(self) -> None:
        with self._lock:
            self._runs -= 1
            self._send(b"-\n")

    def _send(self, line: bytes) -> None:
        if self._child is not None:
            with suppress(OSError):  # it has ended
                _stdin(self._child.popen).write(line)

    def stop(self) -> None:
        """End it; the next request starts it anew."""
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            _end(child.popen)

    def forget(self) -> None:
        """In a fork: the process belongs to the parent. Close our copy of its stdin, or it would
        outlive the parent for as long as this fork lives.
        """
        self._lock = threading.Lock()  # the old one may be held by a thread that was not forked
        child, self._child, self._runs = self._child, None, 0
        if child is not None:
            with suppress(OSError):
                _stdin(child.popen).close()
            child.popen.returncode = 0  # not ours to wait for

    def _launch(self) -> Child:
        key = secrets.token_urlsafe(24)
        settings = asdict(self.settings) | {
            "key": key,
            "site": find_llama(),
            "threads": _threads(),
            "idle_s": IDLE_S,
        }
        log = Log()
        # -P: files beside the program must not shadow modules of Python.
        program = str(Path(__file__).with_name("server.py"))
        popen = subprocess.Popen(
            [sys.executable, "-P", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.fd,
            bufsize=0,
            env=without_secrets(os.environ) | _ENVIRONMENT,
            start_new_session=True,  # Ctrl-C is for revkit's process only
        )
        late = threading.Timer(START_TIMEOUT_S, popen.kill)
        late.daemon = True
        late.start()
        try:
            with suppress(OSError):  # it is gone already: it says why in its log
                _stdin(popen).write(json.dumps(settings).encode() + b"\n" + b"+\n" * self._runs)
            assert popen.stdout is not None
            with popen.stdout:
                line = popen.stdout.readline()
            if not line:
                code = _end(popen)
                raise ModelUnavailable(
                    f"the embedded model's process did not start {log.last_words(code)}"
                )
        except BaseException:
            _end(popen)
            raise
        finally:
            late.cancel()
        return Child(popen, log, json.loads(line)["endpoint"], key)


def find_llama() -> str:
    """The folder that the package ``xllamacpp`` is in.

    Raises:
        MissingExtra: it is not installed.
    """
    # Looked for, not imported: nothing of it may come into this process.
    found = importlib.util.find_spec("xllamacpp")
    if found is None or found.origin is None:
        raise MissingExtra(
            'the embedded model needs llama.cpp: pip install "revkit[local]"; or use another '
            'model, such as revkit.use("ollama:llama3.2:3b")'
        )
    return str(Path(found.origin).parents[1])


def _threads() -> int:
    """Threads to compute with; 0 leaves it to llama.cpp, which takes one for each core.

    It does not see that a container or ``taskset`` has given the process fewer.
    """
    if hasattr(os, "sched_getaffinity"):
        mine = len(os.sched_getaffinity(0))
        return mine if mine < (os.cpu_count() or 1) else 0
    return 0


def _stdin(popen: subprocess.Popen[bytes]) -> IO[bytes]:
    assert popen.stdin is not None
    return popen.stdin


def _end(popen: subprocess.Popen[bytes]) -> int:
    """End a process: ask it by closing its stdin, then insist. Returns its exit code."""
    with suppress(OSError):
        _stdin(popen).close()
    try:
        return popen.wait(5)
    except subprocess.TimeoutExpired:
        popen.kill()
        return popen.wait()


_processes: dict[Settings, ModelProcess] = {}
_processes_lock = threading.Lock()


def shared_process(settings: Settings) -> ModelProcess:
    """The one process of this Python process for ``settings``; not started yet when new."""
    with _processes_lock:
        return _processes.setdefault(settings, ModelProcess(settings))


@atexit.register
def _stop_all() -> None:
    for process in list(_processes.values()):
        process.stop()


def _forget_all() -> None:
    global _processes_lock
    _processes_lock = threading.Lock()
    for process in _processes.values():
        process.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
