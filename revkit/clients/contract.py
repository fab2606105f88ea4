"""The contract of clients: everything that a model's protocol decides lives behind these types.

A client builds requests and reads responses, and never touches the network. ``Session.exchange``
is a generator: it yields a :class:`Request`, receives the :class:`Response`, and returns the
:class:`Reply`. A protocol that needs a second request (after the server refused a response
format, say) yields again. A *transport* carries the requests. The engines drive the one with the
other, so each protocol is written once for threads and for asyncio.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ..errors import ModelError
from ..task.chat import Message, Reply

if TYPE_CHECKING:
    import asyncio

    from ..scheduling.limits import RateLimit
    from ..task.kinds import ModelTask

__all__ = [
    "Aborted",
    "AsyncTransport",
    "Client",
    "Exchange",
    "Finding",
    "Request",
    "Response",
    "Session",
    "Transport",
    "repeats",
]


@dataclass(slots=True)  # frozen, it would take three times as long to make
class Request:
    """One HTTP request. Its repr is empty: any of it may hold a key, and tracebacks show it.

    It is no tuple, for tools that report errors walk through those and do not ask for their repr.

    Attributes:
        url: absolute URL.
        body: the encoded body; with a body the method is POST, without one GET.
        headers: headers beside those that the transport sets itself.
    """

    url: str = field(repr=False)
    body: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class Response:
    """One whole HTTP response. Header names are lower-case.

    Its repr is the status alone, for a server may repeat the key: see :class:`Request`.
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


Exchange = Generator[Request, Response, Reply]


class Session(Protocol):
    """A client's side of one run: knows the task, remembers what the server refused."""

    def exchange(self, messages: Sequence[Message]) -> Exchange:
        """Ask for one reply. Raises :class:`~revkit.errors.RowFailure` kinds."""
        ...


class Aborted(ModelError):
    """The transport was aborted before this request's reply had arrived."""

    def __init__(self) -> None:
        super().__init__("the run was stopped before the reply had arrived")


class Transport(Protocol):
    """Carries one request at a time for each calling thread."""

    def send(self, request: Request) -> Response:
        """Send one request and wait for the whole response.

        Raises:
            ModelError: its kinds; :class:`Aborted` after :meth:`abort`.
        """
        ...

    def abort(self) -> None:
        """Wake the threads that wait in :meth:`send`, and send nothing more.

        Never waits itself. It may be called again, for threads that could not be woken before.
        """
        ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """Carries requests on the running event loop."""

    async def send(self, request: Request) -> Response: ...

    async def aclose(self) -> None: ...


class Finding(NamedTuple):
    """What a client says of its server without asking for a reply.

    Attributes:
        ok: a run can use it.
        found: what was found, in words.
        advice: what to do; empty where nothing needs doing.
        models: names of the models that the server has, where it lists them.
    """

    ok: bool
    found: str
    advice: str = ""
    models: Sequence[str] = ()


class Client:
    """Base of all clients: a model at an endpoint.

    Pass a client as ``model=``, or to :func:`revkit.use`. It is configuration and holds no
    connection, so you can keep it, share it between runs and use it on any event loop.

    For a server that speaks the protocol of OpenAI or Ollama, make one of those clients, and name
    it with :func:`revkit.register_client`. For another protocol, write a subclass: its
    ``session`` builds requests and reads responses, its transports carry them. ``docs/clients.md``
    has both, as code that runs.

    Attributes:
        name: what reports call the model, such as ``"ollama:llama3.2:3b"``. Holds no key.
        provider: who bills for it, by name or URL; empty where that is not known.
        model: its name at the provider.
        max_tokens: most tokens of one reply; None where that is left to the server.
        timeout: seconds for one whole reply; None: the client does not bound it.
        rate_limit: of all runs that use this client; None: there is none.
        engines: the engines that can carry it; the first one is what ``engine="auto"`` takes.
        loop_factory: makes a loop for each run on the async engine (a virtual clock, say); None:
            the run takes the loop that revkit keeps.
        opens_connections: whether each worker has a connection of its own, so that the process's
            limit of open files bounds the workers.
        keeps_replies: whether runs keep its replies in the store where nothing else is said.
    """

    name: str
    provider: str = ""
    model: str = ""
    max_tokens: int | None = None
    timeout: float | None = None
    rate_limit: RateLimit | None = None
    engines: tuple[str, ...] = ("async", "thread")
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    opens_connections: bool = True
    keeps_replies: bool = True

    def repeats_itself(self, task: ModelTask) -> str | None:
        """Why it gives one prompt the same reply again and again, in words; None: it need not."""
        return None

    def ready(self, task: ModelTask, *, max_workers: int) -> None:
        """Do what must be done once before a run (the embedded model starts here).

        May block: it is never called on an event loop.
        """

    def session(self, task: ModelTask) -> Session:
        """Open the client's side of one run of ``task``."""
        raise TypeError(f"{type(self).__name__} does not implement session()")

    def transport(self, *, max_workers: int) -> Transport:
        """Open the transport of a run on the thread engine."""
        raise TypeError(f"{type(self).__name__} does not implement transport()")

    async def async_transport(self, *, max_workers: int) -> AsyncTransport:
        """Open the transport of a run on the running event loop."""
        raise TypeError(f"{type(self).__name__} does not implement async_transport()")

    def settings(self) -> dict[str, Any]:
        """What decides the model's answers beside the prompt, as plain JSON; never a key.

        Leave out new options that are not set: another entry changes the keys of kept replies.
        """
        return {"model": self.name}

    def key_settings(self) -> dict[str, Any]:
        """All that decides the answers and is known before a request: what store keys hash."""
        return self.settings()

    def facts(self) -> Mapping[str, str]:
        """What the server says of the model, to tell it from others of the same name.

        A kept reply is reused unless one of these facts is known to have been another one then. So
        name only what stays the same as long as the model does. May ask the server, and block.
        ``"weights"`` is the digest of the model's weights.
        """
        return {}

    def context_advice(self, tokens: int) -> str | None:
        """What to do so that prompts fit that need a context of so many tokens.

        None: nothing, or nothing is known.
        """
        return None

    def check(self) -> Finding:
        """Whether a run can use it, for ``revkit doctor``. Asks for no reply; may block."""
        return Finding(True, f"{self!r} has no way to check its server")

    def known_slots(self) -> tuple[int, str] | None:
        """How many requests its server works on at once, and who says so; None: not known.

        May ask the server, and block.
        """
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def repeats(temperature: Any, seed: Any) -> str | None:
    """Why a model with these options gives one prompt the same reply, None where it need not."""
    if temperature == 0:
        return "its temperature is 0"
    return None if seed is None else f"its seed is always {seed}"
