"""The embedded model, and any other GGUF file, served by llama.cpp on this machine.

The requests are written as for a server at ``http://localhost``; the transports here send them
to wherever the model's process listens at that moment, with its key, and start it when it is
gone. So sessions know neither port nor key.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ConnectionFailed, ModelError, ModelUnavailable, UsageError
from ..contract import (
    Aborted,
    AsyncTransport,
    Client,
    Finding,
    Request,
    Response,
    Session,
    Transport,
    repeats,
)
from ..provider import Provider
from .label_scores import VERSION, LabelSession, ScoringContext, can_score
from .model_file import SHA256, SIZE, cached_model, fetch_model
from .process import Child, ModelProcess, Settings, find_llama, shared_process

if TYPE_CHECKING:
    from ...task.kinds import ModelTask
    from ..aiohttp_transport import AiohttpTransport
    from ..httpx_transport import HttpxTransport

__all__ = ["Local"]

_ENDPOINT = "http://localhost"
#: Most connections of a loop to the process. More workers than this wait for one.
_CONNECTIONS = 64
#: Seconds for one exchange. Workers beyond the slots wait in the server for all before them, and
#: a process that dies is noticed without a timeout.
_TIMEOUT = 600.0


#: What the rows of a task share, by the server's settings and the prompt (``LabelSession.shown``).
_contexts: dict[tuple[Settings, str], ScoringContext] = {}


class Local(Client):
    """A model on this machine, in a process of its own; by default the embedded one.

    The embedded model has 135 million parameters. It is there so that everything works offline
    and without an account, and it tells clearly positive from clearly negative text; it is no
    match for a model of a few billion.

    A task with one class output and nothing else is answered by scoring the labels, and
    ``run.rows`` gets their probabilities; other outputs are generated under their JSON schema.

    Args:
        path: a GGUF file; None is the embedded model, which is fetched (93 MB) at first use.
        slots: prompts that are worked on at the same time.
        n_ctx: most tokens of one prompt and its reply together.
        max_tokens: most tokens of one generated reply.
        temperature: 0 makes replies repeatable; has no part in scoring labels.

    Raises:
        UsageError: an argument cannot be used.

    >>> Local()
    Local('local')
    >>> Local("models/my.gguf")
    Local('local:my')
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        # Two cores are busy at two to four slots. More would only take memory from each prompt.
        slots: int = 4,
        n_ctx: int = 2048,
        max_tokens: int = 256,
        temperature: float = 0.0,
    ):
        for name, value in (("slots", slots), ("n_ctx", n_ctx), ("max_tokens", max_tokens)):
            if not isinstance(value, int) or value < 1:
                raise UsageError(f"{name}= is a whole number from 1, not {value!r}")
        self.path = None if path is None else Path(path).expanduser().absolute()
        self.name = "local" if self.path is None else f"local:{self.path.stem}"
        self.slots = slots
        self.n_ctx = n_ctx
        self.max_tokens = max_tokens
        self.temperature = temperature

    def ready(self, task: ModelTask, *, max_workers: int) -> None:
        """Fetch the model if need be, and see that its process is up.

        Raises:
            UsageError: there is no such file.
            MissingExtra: llama.cpp is not installed.
            ModelUnavailable: the model cannot be fetched, or its process does not start.
        """
        find_llama()  # before 93 MB are fetched for nothing
        if self.path is None:
            fetch_model()
        elif not self.path.is_file():
            raise UsageError(f"there is no file {self.path}; Local() takes a GGUF file's path")
        self._process().start()
        if can_score(task):
            self._learn(self._scoring(task))

    def _learn(self, session: LabelSession) -> None:
        """Once for a process and task: what all rows share, with the prior."""
        key = (self._settings(), session.shown)
        if key in _contexts:
            return
        transport = self.transport(max_workers=1)
        steps = session.learn()
        try:
            request = next(steps)
            while True:
                request = steps.send(transport.send(request))
        except StopIteration as end:
            _contexts[key] = end.value
        except ModelError as error:
            raise ModelUnavailable(f"the model cannot score this task's labels: {error}") from error
        finally:
            transport.close()

    def session(self, task: ModelTask) -> Session:
        if can_score(task):
            return self._scoring(task)
        from ..openai import OpenAICompatible

        # An empty key: the one in the environment is not for this server.
        return OpenAICompatible(
            self.name,
            base_url=f"{_ENDPOINT}/v1",
            api_key="",
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        ).session(task)

    def _scoring(self, task: ModelTask) -> LabelSession:
        session = LabelSession(task, endpoint=_ENDPOINT, measured=self.path is None)
        session.context = _contexts.get((self._settings(), session.shown))
        return session

    def transport(self, *, max_workers: int) -> Transport:
        return _LocalTransport(self._process())

    async def async_transport(self, *, max_workers: int) -> AsyncTransport:
        return _AsyncLocalTransport(self._process(), max_workers)

    def repeats_itself(self, task: ModelTask) -> str | None:
        if can_score(task):
            return "it scores the labels, which leaves nothing to chance"
        return repeats(self.temperature, None)

    def settings(self) -> dict[str, Any]:
        model: Any = SHA256
        if self.path is not None:
            # Hashing gigabytes would delay each run; a changed file has another size or time.
            stat = self.path.stat() if self.path.exists() else None
            model = [self.path.name, stat and stat.st_size, stat and stat.st_mtime_ns]
        return {
            "protocol": "local",
            "model": model,
            "scoring": VERSION,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }

    def check(self) -> Finding:
        """Its runtime and its file."""
        if importlib.util.find_spec("xllamacpp") is None:
            return Finding(
                False, "its runtime is not installed", 'pip install "revkit[local]" installs it'
            )
        runtime = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
        path = cached_model()
        if not path.is_file() or path.stat().st_size != SIZE:
            return Finding(
                True,
                f"{runtime}; the model (93 MB) is fetched at the first use",
                "`revkit demo` fetches it now",
            )
        return Finding(True, f"{runtime}; the model is at {path}")

    def known_slots(self) -> tuple[int, str]:
        return self.slots, f"as revkit.Local(slots={self.slots}) has it"

    def _settings(self) -> Settings:
        model = cached_model() if self.path is None else self.path
        return Settings(str(model), self.slots, self.n_ctx)

    def _process(self) -> ModelProcess:
        return shared_process(self._settings())


class _LocalTransport:
    """Carries requests from threads to the model's process, wherever it listens."""

    def __init__(self, process: ModelProcess):
        self._process = process
        self._lock = threading.Lock()
        #: One for each start of the process: those that broke may still be in use.
        self._carriers: dict[Child, HttpxTransport] = {}
        self._aborted = False
        self._closed = False
        process.run_began()

    def send(self, request: Request) -> Response:
        if self._aborted:  # not even to start the process anew
            raise Aborted
        child = _up(self._process)
        try:
            return self._carrier(child).send(_addressed(request, child))
        except ConnectionFailed as error:
            self._process.await_death(child)
            raise _in_words(error, child) from None

    def _carrier(self, child: Child) -> HttpxTransport:
        from ..httpx_transport import HttpxTransport

        with self._lock:
            if child not in self._carriers:
                carrier = self._carriers[child] = HttpxTransport(child.endpoint, timeout=_TIMEOUT)
                if self._aborted:
                    carrier.abort()
            return self._carriers[child]

    def abort(self) -> None:
        """Abort what waits for a reply. What waits for the process to start goes no further."""
        with self._lock:
            self._aborted = True
            for carrier in self._carriers.values():
                carrier.abort()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._process.run_ended()
        for carrier in self._carriers.values():
            carrier.close()


class _AsyncLocalTransport:
    """Carries requests on the running loop to the model's process, wherever it listens."""

    def __init__(self, process: ModelProcess, max_workers: int):
        import aiohttp  # noqa: F401 - here, not in the service time of the first row

        self._process = process
        self._workers = min(max_workers, _CONNECTIONS)
        self._carriers: dict[Child, AiohttpTransport] = {}
        self._closed = False
        process.run_began()

    async def send(self, request: Request) -> Response:
        import asyncio

        if self._process.is_up:
            child = _up(self._process)
        else:  # starting takes a second or two, in which the loop must not stand still
            child = await asyncio.to_thread(_up, self._process)
        try:
            return await self._carrier(child).send(_addressed(request, child))
        except ConnectionFailed as error:
            await asyncio.to_thread(self._process.await_death, child)
            raise _in_words(error, child) from None

    def _carrier(self, child: Child) -> AiohttpTransport:
        from ..aiohttp_transport import AiohttpTransport

        if child not in self._carriers:
            self._carriers[child] = AiohttpTransport(
                child.endpoint, max_workers=self._workers, timeout=_TIMEOUT
            )
        return self._carriers[child]

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self._process.run_ended()
        for carrier in self._carriers.values():
            await carrier.aclose()


def _up(process: ModelProcess) -> Child:
    try:
        return process.child()
    except ModelUnavailable as error:  # it ran, and does not start again
        failure = ConnectionFailed(str(error))
        failure.ends_run = True
        raise failure from None


def _addressed(request: Request, child: Child) -> Request:
    """The request with the address and the key of the process that is up."""
    path = request.url.removeprefix(_ENDPOINT)
    headers = {**request.headers, "authorization": f"Bearer {child.key}"}
    return replace(request, url=child.endpoint + path, headers=headers)


def _in_words(error: ConnectionFailed, child: Child) -> ConnectionFailed:
    """What a broken connection means here."""
    if child.popen.returncode is None:
        return error
    return ConnectionFailed(
        f"the embedded model's process ended during this attempt {child.last_words()}"
    )


PROVIDER = Provider(
    make=Local,
    title="embedded model",
    choices=(
        ("a GGUF file of yours", 'revkit.use(revkit.Local("model.gguf"))'),
        ("the embedded model", 'revkit.use("local")   135 million parameters: a demonstration'),
    ),
    parallelism="revkit.Local(slots=...) raises that number, as far as the processors carry it",
)
