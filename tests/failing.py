"""A model's server that fails by plan: which attempts at a row fail, and how, is decided before.

    plan = Plan(a_third(range(2000)))
    with serve(plan) as server: ...
    plan.hits              # fault -> attempts that met it
    plan.asked             # row -> requests

Row ``n`` has the text ``review n`` and the only right answer ``said(n)``, so that a reply which
ends up in another row is noticed.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from servers import DRIP, HANG, NOT_HTTP, RESET, RESET_IN_BODY, SHORT_BODY, Answer, Status

import revkit
from revkit import Signature
from revkit.clients.contract import Client
from revkit.store import Store
from revkit.store.keys import ReplyKeys

LABELS = ["red", "green", "blue"]
TASK = Signature(
    "Say which review it is.", inputs="review", outputs={"label": LABELS, "number": int}
)


@dataclass(frozen=True)
class Fault:
    """What the server does to one attempt.

    Attributes:
        error: type of the error of a row that ends with it.
        again: how often a row that meets it is tried again: it ``counts`` against
            ``Retry.attempts``; is ``free``, because the server asked for a pause, or answered 429
            while other rows succeed; ``once``, with
            the model being shown what was wrong; or ``never``.
    """

    answer: Answer
    error: str
    again: Literal["counts", "free", "once", "never"] = "counts"


FAULTS: dict[str, Fault] = {
    "429, pause": Fault(
        Status(429, {"error": "busy"}, {"retry-after-ms": "5"}), "ServerError", "free"
    ),
    "503, pause": Fault(
        Status(503, {"error": "busy"}, {"retry-after": "0.005"}), "ServerError", "free"
    ),
    "429": Fault(Status(429, {"error": "busy"}), "ServerError", "free"),
    "500": Fault(Status(500, {"error": "boom"}), "ServerError"),
    "truncated": Fault(SHORT_BODY, "ConnectionFailed"),
    "reset": Fault(RESET, "ConnectionFailed"),
    "reset in body": Fault(RESET_IN_BODY, "ConnectionFailed"),
    "hang": Fault(HANG, "AttemptTimeout"),
    "drip": Fault(DRIP, "AttemptTimeout"),
    "wrong label": Fault('{"label": "purple", "number": 0}', "BadOutput", "once"),
    "broken JSON": Fault('{"label": "red", "num', "BadOutput", "once"),
    "not HTTP": Fault(NOT_HTTP, "BadReply"),
    "another JSON": Fault(Status(200, {"hello": "world"}), "BadReply"),
    "413": Fault(Status(413, {"error": "too long"}), "ServerError", "never"),
}
#: A client finds these out only when its time is over.
SLOW = ("hang", "drip")
#: How often faults occur where rows outlive them all; a slow one is rare, because it takes time.
_SHARES = {
    name: 1 if name in SLOW else 6 for name, fault in FAULTS.items() if fault.again != "never"
}

Faults = Mapping[int, Sequence[str]]


def a_third(rows: Iterable[int], most: int = 9) -> Faults:
    """Faults that a third of all attempts meets: each row outlives them, in ``most`` + 1 attempts.

    What does not fit the task comes at most once for a row: the second time would be final.
    """
    return {row: _some_faults(random.Random(row), most) for row in rows}


def _some_faults(chance: random.Random, most: int) -> list[str]:
    found: list[str] = []
    while len(found) < most and chance.random() < 1 / 3:
        corrected = any(FAULTS[name].again == "once" for name in found)
        names = [n for n in _SHARES if not (corrected and FAULTS[n].again == "once")]
        found += chance.choices(names, [_SHARES[name] for name in names])
    return found


def comes_to(faults: Sequence[str], attempts: int) -> tuple[str | None, int]:
    """What becomes of a row with ``Retry(attempts)``: its error, and the requests it takes."""
    counted, corrected = 0, False
    for number, name in enumerate(faults, 1):
        fault = FAULTS[name]
        counted += fault.again == "counts"
        final = counted == attempts or (fault.again == "once" and corrected)
        if final or fault.again == "never":
            return fault.error, number
        corrected = corrected or fault.again == "once"
    return None, len(faults) + 1


class Plan:
    """A rule for the server: row ``n`` meets ``faults[n]``, one after the other, and then is told
    what is right.

    Attributes:
        hits: fault -> attempts that met it.
        asked: row -> requests.
    """

    def __init__(self, faults: Faults):
        self.hits: Counter[str] = Counter()
        self.asked: Counter[int] = Counter()
        self._faults = faults
        self._lock = threading.Lock()

    def __call__(self, messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        row = number_in(messages)
        faults = self._faults.get(row, ())
        with self._lock:
            self.asked[row] += 1
            if self.asked[row] > len(faults):
                return said(row)
            name = faults[self.asked[row] - 1]
            self.hits[name] += 1
        return FAULTS[name].answer


def number_in(messages: list[dict[str, str]]) -> int:
    """The row that a request is about; in a correction, too, it stands in the first turns."""
    found = re.search(r"review (\d+)", " ".join(message["content"] for message in messages))
    assert found is not None
    return int(found[1])


def label(row: int) -> str:
    return LABELS[row % len(LABELS)]


def said(row: int) -> str:
    """The right answer."""
    return json.dumps({"label": label(row), "number": row})


def right_answer(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
    """A rule for a server that does not fail."""
    return said(number_in(messages))


def reviews(rows: int) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"review {row}" for row in range(rows)]})


def right(frame: pd.DataFrame) -> list[bool]:
    """Of each row of :func:`reviews`, whether it has its own right answer."""
    answers = zip(frame["label"], frame["number"], strict=True)
    return [
        not pd.isna(number) and (name, int(number)) == (label(row), row)
        for row, (name, number) in enumerate(answers)
    ]


def kept(path: Path, client: Client, rows: int) -> dict[int, str]:
    """What a store holds for the rows of :func:`reviews`."""
    keys = ReplyKeys(TASK, client.settings())
    key = {
        keys.key(TASK.messages({"review": text})): row
        for row, text in enumerate(reviews(rows)["review"])
    }
    with Store.open(path) as store:
        assert store.problem is None
        return {key[found]: reply.text for found, reply in store.get(list(key)).items()}


def ollama(url: str, timeout: float = 60.0) -> Client:
    return revkit.Ollama("m", host=url, timeout=timeout)


def openai(url: str, timeout: float = 60.0) -> Client:
    return revkit.OpenAICompatible("m", base_url=url + "/v1", api_key="sk-test", timeout=timeout)
