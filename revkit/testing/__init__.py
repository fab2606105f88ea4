"""For users' own tests: a model that answers by rule, and what nbval needs to compare notebooks.

``FakeModel`` stands in for a server, so that a pipeline can be tested without one, with faults
and latency, in no time at all. ``NBVAL_SANITIZE`` is the path of a file for nbval's
``--nbval-sanitize-with``, which takes times and pictures out of revkit's outputs.

    clock  an event loop on a virtual clock
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import orjson

from ..clients.contract import Aborted, Client, Exchange, Request, Response
from ..errors import ModelError, UsageError
from ..task.chat import Message, Reply

if TYPE_CHECKING:
    from ..task.kinds import ModelTask

__all__ = ["NBVAL_SANITIZE", "FakeModel"]

#: Path of the sanitising file for nbval.
NBVAL_SANITIZE = str(Path(__file__).with_name("nbval_sanitize.cfg"))

#: What a fake model may say: a text, outputs that are written as JSON, a whole reply, or a fault.
Answer = str | Mapping[str, Any] | Reply | BaseException


class FakeModel(Client):
    """A model that answers by rule, for tests.

    Args:
        answers: a function of the row's text (the last chat turn) that gives an answer; or a
            list of answers, given out in the order of the requests, which is the order of the
            rows. An answer is a text, a mapping of outputs, a :class:`~revkit.Reply`, or an
            exception, which is raised: a fault. In a run with a store, rows with one text share the
            answer of a function, and each takes its own from a list.
        latency: seconds that each reply takes, or a function of the row's text that gives them.
        clock: ``"real"``, or ``"virtual"``: waiting takes no real time, and the figures of the
            run are those of the virtual clock. The virtual clock is for ``parallel_map``. It
            starts anew with each run, so give each a :class:`~revkit.RateLimit` of its own; and
            waits between retries are drawn from :mod:`random`, so seed that.

    Attributes:
        calls: the messages of each request, in order.
        most_in_flight: highest number of requests that were waiting for their reply at once.

    >>> import pandas as pd, revkit
    >>> from revkit.testing import FakeModel
    >>> fake = FakeModel(lambda text: "positive" if "good" in text else "negative",
    ...                  latency=2.0, clock="virtual")
    >>> df = pd.DataFrame({"review": ["so good", "so bad", "good!"]})
    >>> run = df.llm.parallel_map(model=fake, max_workers=2)
    >>> df["sentiment"].tolist()
    ['positive', 'negative', 'positive']
    >>> run.metrics.wall_s
    4.0
    """

    name = "fake"
    opens_connections = False
    keeps_replies = False  # a test would get the answers of the one before

    def __init__(
        self,
        answers: Callable[[str], Answer] | Sequence[Answer],
        *,
        latency: float | Callable[[str], float] = 0.0,
        clock: Literal["real", "virtual"] = "real",
    ):
        if isinstance(answers, str) or not (callable(answers) or isinstance(answers, Sequence)):
            raise UsageError("answers= takes a function of the row's text, or a list of answers")
        if clock not in ("real", "virtual"):
            raise UsageError(f'clock={clock!r}: there are "real" and "virtual"')
        self._answers = answers
        self._latency = latency
        self._lock = threading.Lock()
        self._in_flight = 0
        self.calls: list[list[Message]] = []
        self.most_in_flight = 0
        if clock == "virtual" or not callable(answers):
            self.engines = ("async",)  # threads keep neither a virtual clock nor an order
        if clock == "virtual":
            from .clock import VirtualClockLoop

            self.loop_factory = VirtualClockLoop

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy has calls of its own from here on."""
        self.__dict__.update(state, _lock=threading.Lock())

    def repeats_itself(self, task: ModelTask) -> str | None:
        if callable(self._answers):
            return "its rule sees only the row's text (a list of answers may vary)"
        return None

    def session(self, task: ModelTask) -> _Session:
        return _Session()

    def transport(self, *, max_workers: int) -> _Transport:
        return _Transport(self)

    async def async_transport(self, *, max_workers: int) -> _AsyncTransport:
        return _AsyncTransport(self)

    def _begin(self, request: Request) -> tuple[Answer, float]:
        """Take a request; gives its answer and how long that takes."""
        messages: list[Message] = orjson.loads(request.body or b"[]")
        text = messages[-1]["content"]
        with self._lock:
            number = len(self.calls)
            self.calls.append(messages)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
        answer: Answer
        try:
            if callable(self._answers):
                answer = self._answers(text)
            elif number < len(self._answers):
                answer = self._answers[number]
            else:
                answer = ModelError(f"the fake model has only {len(self._answers)} answers")
        except Exception as error:  # noqa: BLE001 - a rule may raise its fault as well
            answer = error
        return answer, self._latency(text) if callable(self._latency) else self._latency

    def _end(self, answer: Answer) -> Response:
        with self._lock:
            self._in_flight -= 1
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Reply):
            body = {name: getattr(answer, name) for name in Reply.__slots__}
        else:
            text = answer if isinstance(answer, str) else orjson.dumps(dict(answer)).decode()
            body = {"text": text, "completion_tokens": len(text.split()), "finish_reason": "stop"}
        return Response(200, {}, orjson.dumps(body))


class _Session:
    def exchange(self, messages: Sequence[Message]) -> Exchange:
        response = yield Request("fake:chat", orjson.dumps(list(messages)))
        said = orjson.loads(response.body)
        prompt = sum(len(message["content"].split()) for message in messages)
        return Reply(
            **{"prompt_tokens": prompt, **{k: v for k, v in said.items() if v is not None}}
        )


class _Transport:
    def __init__(self, model: FakeModel):
        self._model = model
        self._aborted = threading.Event()

    def send(self, request: Request) -> Response:
        answer, seconds = self._model._begin(request)
        if self._aborted.wait(seconds):
            answer = Aborted()
        return self._model._end(answer)

    def abort(self) -> None:
        self._aborted.set()

    def close(self) -> None: ...


class _AsyncTransport:
    def __init__(self, model: FakeModel):
        self._model = model

    async def send(self, request: Request) -> Response:
        answer, seconds = self._model._begin(request)
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError as error:
            answer = error
        return self._model._end(answer)

    async def aclose(self) -> None: ...
