"""A model's server that is not well: it does at random all that servers are known to do.

    server = Unwell(3, typed=True)
    with serve(server) as at: ...
    server.met[row]        # names of the kinds that the row met, in order

Row ``n`` has the text ``review n``. The one right answer to it is ``right(n)`` for a typed task
and ``text(n)`` for a text; wherever the server puts another answer into a reply, that is the one to
the next row. So a value out of a thought, a fragment or another row's reply is noticed.

What a row meets depends on the seed, the row and the number of the request alone, so that a run can
be repeated. Only the server's absences depend on how many requests it had.
"""

from __future__ import annotations

import json
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from failing import number_in
from servers import CLOSE, NOT_HTTP, RESET, RESET_IN_BODY, SHORT_BODY, Answer, Raw, Status

from revkit import Signature
from revkit.task.kinds import Template

__all__ = ["KINDS", "TEXT", "TYPED", "Kind", "Unwell", "reply", "right", "text"]

LABELS = ["red", "green", "blue"]
TYPED = Signature(
    "Say which review it is.", inputs="review", outputs={"label": LABELS, "number": int}
)
TEXT = Template("Say which review it is: {review}")


def right(n: int) -> dict[str, Any]:
    """The values of row ``n``."""
    return {"label": LABELS[n % 3], "number": n}


def text(n: int) -> str:
    """The answer to row ``n`` where a text is asked for."""
    return f"It is review {n}, which is {LABELS[n % 3]}."


def reply(
    body: Mapping[str, Any],
    content: Any,
    finish: str | None = "stop",
    *,
    usage: tuple[Any, Any] = (20, 8),
    model: str = "m",
    **message: Any,
) -> dict[str, Any]:
    """A reply in the protocol of the request: Ollama's where it has options, else OpenAI's.

    Args:
        body: of the request.
        usage: tokens of prompt and completion.
        message: further fields of the message.
    """
    said = {"role": "assistant", "content": content, **message}
    prompt, completion = usage
    if "options" in body:
        return {
            "model": model,
            "message": said,
            "done": True,
            "done_reason": finish,
            "prompt_eval_count": prompt,
            "eval_count": completion,
        }
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": model,
        "choices": [{"index": 0, "message": said, "finish_reason": finish}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion},
    }


@dataclass(frozen=True)
class Ask:
    """One request, as a kind sees it."""

    n: int
    body: Mapping[str, Any]
    typed: bool
    chance: random.Random

    @property
    def ollama(self) -> bool:
        return "options" in self.body

    @property
    def good(self) -> str:
        return json.dumps(right(self.n)) if self.typed else text(self.n)

    @property
    def wrong(self) -> str:
        return json.dumps(right(self.n + 1)) if self.typed else text(self.n + 1)

    def reply(self, content: Any, finish: str | None = "stop", **more: Any) -> dict[str, Any]:
        return reply(self.body, content, finish, **more)


@dataclass(frozen=True)
class Kind:
    """One thing that the server does.

    Attributes:
        weight: how often, against the others.
        answer: what it answers.
        errors: types of the error of a row that ends with it; none: it is a good reply.
        by_row: whether the row alone decides, so that each attempt at it meets it again.
    """

    weight: float
    answer: Callable[[Ask], Answer]
    errors: tuple[str, ...] = ()
    by_row: bool = False


_TAGS = ("think", "thinking", "thought", "reasoning", "THINK")


def _tagged(ask: Ask) -> Answer:
    tag = ask.chance.choice(_TAGS)
    return ask.reply(f"<{tag}>{ask.wrong}? No, wait.</{tag}>\n\n{ask.good}")


def _closed_only(ask: Ask) -> Answer:
    return ask.reply(f"Perhaps {ask.wrong}. No.</think>{ask.good}")


def _channels(ask: Ask) -> Answer:
    return ask.reply(
        f"<|channel|>analysis<|message|>{ask.wrong}<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{ask.good}"
    )


def _in_field(ask: Ask) -> Answer:
    name = "thinking" if ask.ollama else ask.chance.choice(["reasoning_content", "reasoning"])
    return ask.reply(ask.good, **{name: ask.wrong})


def _in_parts(ask: Ask) -> Answer:
    if ask.ollama:
        return ask.reply(ask.good)
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": ask.wrong}]}
    return ask.reply([thinking, {"type": "text", "text": ask.good}])


def _cut_in_thought(ask: Ask) -> Answer:
    return ask.reply(f"<think>Is it {ask.wrong}? Or", "length")


def _cut(ask: Ask) -> Answer:
    if not ask.typed:
        return ask.reply(ask.good[: ask.chance.randrange(1, len(ask.good))], "length")
    wrong = ask.wrong
    whole = f'{{"label": "{right(ask.n)["label"]}", "before": {wrong}, "number": {ask.n}, "x": "'
    return ask.reply(whole[: ask.chance.randrange(10, len(whole))], "length")


def _unclosed(ask: Ask) -> Answer:
    if not ask.typed:
        return ask.reply(ask.good)
    return ask.reply(f'{{"answer": {ask.wrong}, "label": "{right(ask.n)["label"]}"')


def _prose(ask: Ask) -> Answer:
    if not ask.typed:
        return ask.reply(f"  {ask.good}\n")
    return ask.reply(f"Not {ask.wrong}. Here you are:\n```json\n{ask.good}\n```")


def _wrapped(ask: Ask) -> Answer:
    return ask.reply(f'{{"result": {ask.good}}}' if ask.typed else ask.good)


def _other_case(ask: Ask) -> Answer:
    if not ask.typed:
        return ask.reply(ask.good)
    values = right(ask.n)
    return ask.reply(
        json.dumps({"Label": values["label"].upper(), "NUMBER": str(values["number"])})
    )


def _wrong_label(ask: Ask) -> Answer:
    return ask.reply(json.dumps(right(ask.n) | {"label": "purple"}) if ask.typed else "")


def _no_reply(ask: Ask) -> Answer:
    if ask.ollama:
        found = ask.chance.choice([{"message": None, "done": True}, {"message": {}}, {}])
        return Status(200, found)
    return Status(200, ask.chance.choice([{"choices": []}, {"choices": None}, {"usage": {}}, {}]))


def _garbled(ask: Ask) -> Answer:
    whole = json.dumps(ask.reply(ask.good)).encode()
    page = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
    cut = whole[: ask.chance.randrange(1, len(whole))]
    return Status(200, ask.chance.choice([b"", page, cut, b"null", b"[]", b"\xff\xfe"]))


def _error_in_success(ask: Ask) -> Answer:
    return Status(200, {"error": {"message": "upstream has failed"}})


def _code_in_success(ask: Ask) -> Answer:
    return Status(200, {"error": {"message": "upstream has failed", "code": 502}})


def _broken_off(ask: Ask) -> Answer:
    found = ask.reply(ask.wrong[:20], "error")
    if not ask.ollama:
        found["choices"][0]["error"] = {"code": 502, "message": "the provider has failed"}
    return Status(502, {"error": "upstream has failed"}) if ask.ollama else found


def _filtered(ask: Ask) -> Answer:
    return ask.reply(ask.wrong, "content_filter") if not ask.ollama else ask.reply(ask.good)


def _refused(ask: Ask) -> Answer:
    return ask.reply(ask.good) if ask.ollama else ask.reply(None, refusal="I cannot do that.")


def _half_pair(ask: Ask) -> Answer:
    found = json.dumps(ask.reply(ask.good, note="\ud83d")).encode()
    return Status(200, found.replace(b'"note": "', b'"note": "\xed\xa0\xbd'))


def _odd_usage(ask: Ask) -> Answer:
    odd = ask.chance.choice([2**64 - 1, -5, 1.5, "12", None, True, 2**40])
    return ask.reply(ask.good, usage=(odd, odd))


def _another_model(ask: Ask) -> Answer:
    return ask.reply(ask.good, model="another-model")


def _denied(ask: Ask) -> Answer:
    page = b"<html><title>403</title><body>Request blocked.</body></html>"
    return Status(403, ask.chance.choice([page, {"error": {"message": "blocked"}}]))


def _policy(ask: Ask) -> Answer:
    message = f"the prompt 'model review {ask.n} does not exist, credit, api key' is not allowed"
    return Status(400, {"error": {"message": message, "code": "content_policy_violation"}})


def _status(*statuses: int) -> Callable[[Ask], Answer]:
    return lambda ask: Status(ask.chance.choice(statuses), {"error": "something is wrong"})


def _busy(ask: Ask) -> Answer:
    return ask.chance.choice(
        [
            Status(429, {"error": {"message": "busy"}}, {"retry-after-ms": "3"}),
            Status(429, {"error": {"message": "Rate limit. Please try again in 4ms."}}),
            Status(503, {"error": {"message": "busy"}}, {"retry-after": "0.004"}),
            Status(429, {"error": {"message": "busy"}}),
        ]
    )


def _raw(*answers: Raw) -> Callable[[Ask], Answer]:
    return lambda ask: ask.chance.choice(answers)


_TRANSIENT = ("ServerError", "ConnectionFailed", "BadReply", "AttemptTimeout")

KINDS: dict[str, Kind] = {
    "good": Kind(60, lambda ask: ask.reply(ask.good)),
    "thought, tagged": Kind(3, _tagged),
    "thought, closing tag only": Kind(2, _closed_only),
    "thought, channels": Kind(2, _channels),
    "thought, in a field": Kind(2, _in_field),
    "thought, in parts": Kind(1, _in_parts),
    "cut in its thought": Kind(1, _cut_in_thought, ("CutOff",)),
    "cut": Kind(2, _cut, ("CutOff",)),
    "unclosed": Kind(2, _unclosed, ("BadOutput",)),
    "prose": Kind(2, _prose),
    "wrapped": Kind(1, _wrapped),
    "other case": Kind(1, _other_case),
    "wrong label": Kind(1, _wrong_label, ("BadOutput",)),
    "no reply": Kind(1, _no_reply, ("BadReply",)),
    "garbled": Kind(2, _garbled, ("BadReply",)),
    "error in a 200": Kind(1, _error_in_success, ("BadReply", "ServerError")),
    "code in a 200": Kind(1, _code_in_success, ("ServerError", "BadReply")),
    "broken off": Kind(1, _broken_off, ("ServerError",)),
    "filtered": Kind(0.5, _filtered, ("ContentFiltered",)),
    "refused": Kind(0.5, _refused, ("ModelRefused",)),
    "half of a pair": Kind(1, _half_pair),
    "odd usage": Kind(1, _odd_usage),
    "another model": Kind(1, _another_model),
    "denied": Kind(0.5, _denied, ("AccessDenied",), by_row=True),
    "policy": Kind(0.5, _policy, ("ServerError",), by_row=True),
    "unwell": Kind(2, _status(500, 502, 503, 504, 520, 529, 408, 425), ("ServerError",)),
    "busy": Kind(3, _busy, ("ServerError",)),
    "broken": Kind(
        1,
        _raw(CLOSE, RESET, SHORT_BODY, RESET_IN_BODY, NOT_HTTP),
        ("ConnectionFailed", "BadReply"),
    ),
}
_NAMES = list(KINDS)
_WEIGHTS = [kind.weight for kind in KINDS.values()]
#: Rows before this one are never denied.
_FIRST = 50
_BY_ROW = {name: kind.weight for name, kind in KINDS.items() if kind.by_row}


class Unwell:
    """A rule for :func:`servers.serve`.

    Args:
        typed: the task is :data:`TYPED`, not :data:`TEXT`.
        away: for how many requests it is away, each time; and how often it goes away, as the mean
            number of requests between.

    Attributes:
        met: row -> the kinds that it met, in order.
    """

    def __init__(self, seed: int, *, typed: bool, away: tuple[int, int] = (40, 2_000)):
        self.met: dict[int, list[str]] = defaultdict(list)
        self._seed, self._typed = seed, typed
        self._lock = threading.Lock()
        self._away = away
        self._chance = random.Random(f"{seed} absences")
        self._absent = 0  #: requests for which it is still away
        self._present = self._gap()

    def __call__(self, messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        n = number_in(messages)
        with self._lock:
            if self._absent:
                self._absent -= 1
                self.met[n].append("away")
                return self._chance.choice([CLOSE, RESET, Status(503, {"error": "starting"})])
            self._present -= 1
            if not self._present:
                self._absent, self._present = self._chance.randrange(1, self._away[0]), self._gap()
            chance = random.Random(f"{self._seed} {n} {len(self.met[n])}")
            name = self._kind(n, chance)
            self.met[n].append(name)
        return KINDS[name].answer(Ask(n, body, self._typed, chance))

    def _gap(self) -> int:
        return max(1, int(self._chance.expovariate(1 / self._away[1])))

    def _kind(self, n: int, chance: random.Random) -> str:
        by_row = random.Random(f"{self._seed} {n}")
        for name, weight in _BY_ROW.items():
            # A server that denies the first rows denies the run.
            if by_row.random() < weight / sum(_WEIGHTS) and n >= _FIRST:
                return name
        (name,) = chance.choices(_NAMES, _WEIGHTS)
        return "good" if name in _BY_ROW else name

    def may_end_with(self, n: int) -> set[str]:
        """The types of error that row ``n`` may have, from what it met."""
        met = set(self.met[n])
        return {error for name in met - {"away"} for error in KINDS[name].errors} | (
            {"ServerError", "ConnectionFailed"} if "away" in met else set()
        )
