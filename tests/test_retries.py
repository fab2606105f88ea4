"""What is tried again, how often and when: against servers on loopback, and on a virtual clock."""

from __future__ import annotations

import asyncio
import email.utils
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from servers import CLOSE, HALF_HEADER, RESET, SHORT_BODY, Raw, Status, serve

import revkit
from revkit import Retry, RunFailed, Signature
from revkit.clients.contract import Client, Response
from revkit.clients.pause import asked_pause
from revkit.errors import BadOutput, ConnectionFailed, ModelError, ServerError
from revkit.testing import FakeModel

AT_ONCE = Retry(initial=0, maximum=0)
NUMBER = Signature("Count.", inputs="review", outputs={"n": int})


def ollama(url: str) -> Client:
    return revkit.Ollama("m", host=url)


def openai(url: str) -> Client:
    return revkit.OpenAICompatible("m", base_url=url + "/v1", api_key="sk-test")


@pytest.fixture(params=[ollama, openai])
def client(request: pytest.FixtureRequest) -> Callable[[str], Client]:
    return request.param


@pytest.fixture(params=["thread", "async"])
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


def reviews(n: int) -> pd.DataFrame:
    return pd.DataFrame({"review": [f"r{i}" for i in range(n)]})


class Plan:
    """A rule by which row 1 gets ``faults``, one after the other, and then a good answer."""

    def __init__(self, *faults: Any, good: str = "fine"):
        self.faults, self.good = list(faults), good
        self.lock = threading.Lock()
        self.asked: Counter[str] = Counter()

    def __call__(self, messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
        row = messages[-1]["content"]
        with self.lock:
            self.asked[row] += 1
            return self.faults.pop(0) if row == "r1" and self.faults else self.good


# -- what is tried again -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        *[Status(code, {"error": "a moment"}) for code in (408, 409, 425, 429, 500, 502, 503, 529)],
        RESET,
        CLOSE,
        HALF_HEADER,
        SHORT_BODY,
        Status(503, {"error": "busy"}, {"retry-after": "soon"}),
    ],
    ids=lambda fault: str(getattr(fault, "status", "broken")),
)
def test_what_may_go_well_later_is_tried_again(
    client: Callable[[str], Client], engine: str, fault: Any
) -> None:
    plan = Plan(fault, fault)
    df = reviews(3)
    with serve(plan) as server:
        run = df.llm.parallel_map(
            "{review}", model=client(server.url), engine=engine, max_workers=1, retry=AT_ONCE
        )
    assert df["response"].tolist() == ["fine"] * 3
    assert df["error"].isna().all()
    assert plan.asked == {"r0": 1, "r1": 3, "r2": 1}
    assert run.rows["attempts"].tolist() == [1, 3, 1]
    assert run.metrics.retries == 2
    tried = run.attempts[run.attempts["row"] == 1]
    assert tried["attempt"].tolist() == [1, 2, 3]
    assert tried["outcome"].tolist() == ["retried", "retried", "ok"]
    assert tried["error_type"].isna().tolist() == [False, False, True]
    if isinstance(fault, Status):
        assert f"answered {fault.status}" in tried["error"].iloc[0]
    else:
        assert tried["error_type"].iloc[0] == "ConnectionFailed"


@pytest.mark.parametrize(
    "fault",
    [
        *[Status(code, {"error": "never"}) for code in (400, 404, 405, 413, 422)],
        Status(302, b"", {"location": "http://127.0.0.1:9/"}),
    ],
    ids=lambda fault: str(fault.status),
)
def test_what_fails_the_same_way_again_is_that_rows_error(
    client: Callable[[str], Client], engine: str, fault: Any
) -> None:
    plan = Plan(fault, fault)
    df = reviews(3)
    with serve(plan) as server:
        run = df.llm.parallel_map(
            "{review}", model=client(server.url), engine=engine, max_workers=1, retry=AT_ONCE
        )
    assert df["error"].isna().tolist() == [True, False, True]
    assert plan.asked["r1"] == 1
    if isinstance(fault, Status) and fault.status != 200:
        assert run.errors["status"].tolist() == [fault.status]
    assert run.metrics.retries == 0


def test_the_last_attempt_stands_in_the_row(client: Callable[[str], Client], engine: str) -> None:
    plan = Plan(Status(500, {"error": "one"}), RESET, Status(502, {"error": "three"}))
    df = reviews(3)
    with serve(plan) as server:
        run = df.llm.parallel_map(
            "{review}", model=client(server.url), engine=engine, max_workers=1, retry=AT_ONCE
        )
    assert run.rows["attempts"].tolist() == [1, 3, 1]
    assert run.errors["status"].tolist() == [502]
    assert run.errors["attempts"].tolist() == [3]
    assert 'answered 502: "three"' in df["error"].iloc[1]
    causes = run.attempts[run.attempts["row"] == 1]["error_type"].tolist()
    assert causes == ["ServerError", "ConnectionFailed", "ServerError"]


def test_one_attempt_is_never_tried_again(client: Callable[[str], Client], engine: str) -> None:
    plan = Plan(Status(500), "bad")
    with serve(plan) as server:
        run = reviews(3).llm.parallel_map(
            "{review}",
            model=client(server.url),
            engine=engine,
            max_workers=1,
            retry=Retry(attempts=1),
        )
    assert plan.asked["r1"] == 1
    assert run.metrics.failed == 1


# -- what ends the run ---------------------------------------------------------------------------

QUOTA = {"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}


@pytest.mark.parametrize(
    ("make", "fault", "kind", "words"),
    [
        (openai, Status(429, QUOTA), "QuotaUsedUp", "raise it at your provider"),
        (
            openai,
            Status(429, QUOTA, {"retry-after": "1"}),
            "QuotaUsedUp",
            "no quota or credit is left",
        ),
        (openai, Status(401, {"error": "no"}), "AccessDenied", "check OPENAI_API_KEY"),
        (openai, Status(402, {"error": "pay"}), "QuotaUsedUp", "credit is left (402)"),
        (ollama, Status(402, {"error": "pay"}), "QuotaUsedUp", "credit is left (402)"),
        (ollama, Status(401, {"error": "no"}), "AccessDenied", "headers="),
        (
            openai,
            Status(404, {"error": {"code": "model_not_found", "message": "?"}}),
            "ModelMissing",
            "does not have the model 'm'",
        ),
        (
            ollama,
            Status(404, {"error": "model 'm' not found"}),
            "ModelMissing",
            "run `ollama pull m`",
        ),
    ],
)
def test_what_no_row_survives_ends_the_run(
    make: Callable[[str], Client], engine: str, fault: Status, kind: str, words: str
) -> None:
    plan = Plan(fault)
    df = reviews(9)
    with serve(plan) as server, pytest.raises(RunFailed) as caught:
        df.llm.parallel_map("{review}", model=make(server.url), engine=engine, max_workers=1)
    assert sum(plan.asked.values()) == 2
    assert words in str(caught.value)
    rows = caught.value.result.rows
    assert rows["status"].tolist() == ["ok", "error"] + ["not_started"] * 7
    assert rows["error_type"][1] == kind
    assert type(caught.value.__cause__).__name__ == kind
    assert df["response"].notna().tolist() == [True] + [False] * 8


@pytest.mark.parametrize("headers", [{"retry-after": "61"}, {"retry-after-ms": "60001"}])
def test_a_pause_that_is_too_long_ends_the_run(
    client: Callable[[str], Client], engine: str, headers: dict[str, str]
) -> None:
    plan = Plan(Status(429, {"error": "busy"}, headers))
    df = reviews(5)
    with serve(plan) as server, pytest.raises(RunFailed) as caught:
        df.llm.parallel_map("{review}", model=client(server.url), engine=engine, max_workers=1)
    assert sum(plan.asked.values()) == 2
    assert caught.value.result.rows["status"].tolist() == ["ok", "error"] + ["not_started"] * 3
    said = str(caught.value)
    assert "longer than Retry(max_pause=60)" in said
    assert "raise max_pause=, or run it again later" in said


def test_a_pause_that_the_retry_allows_is_obeyed(
    client: Callable[[str], Client], engine: str
) -> None:
    plan = Plan(Status(503, {"error": "busy"}, {"retry-after-ms": "2"}))
    with serve(plan) as server:
        run = reviews(3).llm.parallel_map(
            "{review}", model=client(server.url), engine=engine, retry=Retry(attempts=2)
        )
    assert run.metrics.succeeded == 3
    again = run.attempts[run.attempts["row"] == 1]
    assert again["start_s"].iloc[1] - again["end_s"].iloc[0] >= 0.002


# -- how long a server asks to wait --------------------------------------------------------------


def date(seconds: float) -> str:
    then = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC) + timedelta(seconds=seconds)
    return email.utils.format_datetime(then, usegmt=True)


@pytest.mark.parametrize(
    ("headers", "pause"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after-ms": "?", "retry-after": "9"}, 9.0),
        ({"retry-after": date(90), "date": date(60)}, 30.0),
        ({"retry-after": date(0), "date": date(60)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Tue, 06 May 2031 07:08:09 +99999999999999999999"}, None),
        ({"retry-after": "Tue, 06 May 99999 07:08:09 GMT"}, None),
    ],
)
def test_how_a_pause_is_asked_for(headers: dict[str, str], pause: float | None) -> None:
    assert asked_pause(Response(429, headers, b"")) == pause


def test_a_date_without_the_servers_own_is_read_by_our_clock() -> None:
    then = datetime.now(UTC) + timedelta(hours=1)
    headers = {"retry-after": email.utils.format_datetime(then, usegmt=True)}
    found = asked_pause(Response(429, headers, b""))
    assert found is not None
    assert 3000 < found <= 3600
    past = {"retry-after": "Sun, 06 Nov 1994 08:49:37 GMT"}
    assert asked_pause(Response(429, past, b"")) == 0.0


# -- exact times, on a virtual clock -------------------------------------------------------------


def test_a_pause_slows_all_workers_and_uses_no_attempt() -> None:
    busy = [ServerError("busy", status=429, pause=30.0)] * 2

    def answer(text: str) -> Any:
        return busy.pop() if text == "r1" and busy else text

    fake = FakeModel(answer, latency=1.0, clock="virtual")
    run = reviews(6).llm.parallel_map(
        "{review}", model=fake, max_workers=2, retry=Retry(attempts=2, max_elapsed=1e6)
    )
    assert run.metrics.succeeded == 6
    assert run.rows["attempts"].tolist() == [1, 3, 1, 1, 1, 1]
    starts = run.attempts.sort_values("start_s")["start_s"].tolist()
    assert starts == [0, 0, 31, 31, 62, 62, 63, 63]
    row = run.attempts[run.attempts["row"] == 1]
    assert row["start_s"].tolist() == [0, 31, 62]
    assert run.metrics.wall_s == 64
    assert run.rows["wait_ms"].tolist()[1] == 60_000  # 63 s less three attempts of 1 s
    assert fake.most_in_flight == 2


def test_a_row_is_not_tried_again_after_max_elapsed() -> None:
    fake = FakeModel(
        lambda text: ServerError("busy", status=503, pause=40.0) if text == "r0" else text,
        latency=1.0,
        clock="virtual",
    )
    run = reviews(2).llm.parallel_map(
        "{review}", model=fake, max_workers=1, retry=Retry(attempts=1, max_elapsed=100.0)
    )
    assert run.rows["status"].tolist() == ["error", "ok"]
    # it ends its first attempt at 1; the third again would start after 101
    assert run.attempts[run.attempts["row"] == 0]["start_s"].tolist() == [0, 41, 82]


def test_a_row_that_waits_holds_no_worker() -> None:
    faults = [ConnectionFailed("once")]

    def answer(text: str) -> Any:
        return faults.pop() if text == "r0" and faults else text

    fake = FakeModel(answer, latency=1.0, clock="virtual")
    run = reviews(50).llm.parallel_map(
        "{review}", model=fake, max_workers=1, retry=Retry(initial=5.0, maximum=5.0)
    )
    # its wait is random, of at most 5 s, and the only worker has 49 s of other work meanwhile
    assert run.metrics.wall_s == 51
    again = run.attempts[run.attempts["row"] == 0]["start_s"].tolist()
    assert again[0] == 0
    assert 1 <= again[1] <= 7


def test_waits_are_random_and_bounded() -> None:
    faults: Counter[str] = Counter()

    def answer(text: str) -> Any:
        faults[text] += 1
        return ConnectionFailed("no")  # and none answers: the server would be away

    fake = FakeModel(answer, latency=1.0, clock="virtual")
    retry = Retry(attempts=4, initial=8.0, maximum=20.0)
    with pytest.raises(RunFailed) as caught:
        reviews(40).llm.parallel_map("{review}", model=fake, max_workers=40, retry=retry)
    run = caught.value.result
    assert set(faults.values()) == {4}
    waits: dict[int, list[float]] = {1: [], 2: [], 3: []}
    for _, tries in run.attempts.sort_values("attempt").groupby("row"):
        gaps = tries["start_s"].to_numpy()[1:] - tries["end_s"].to_numpy()[:-1]
        for number, gap in enumerate(gaps, 1):
            waits[number].append(gap)
    for number, limit in ((1, 8.0), (2, 16.0), (3, 20.0)):
        assert all(0 <= wait <= limit + 1e-6 for wait in waits[number])
        assert len({round(wait, 6) for wait in waits[number]}) > 30
        assert max(waits[number]) > limit / 3  # of 40 uniform ones: fails once in 10^19


# -- replies that do not fit ---------------------------------------------------------------------


def shown(messages: list[dict[str, str]]) -> bool:
    return "does not fit" in messages[-1]["content"]


@pytest.mark.parametrize("before", [None, RESET, Status(500, {"error": "boom"})])
@pytest.mark.parametrize("after", [None, RESET, Status(500, {"error": "boom"})])
def test_what_did_not_fit_is_shown_once_whatever_breaks_beside_it(
    client: Callable[[str], Client], engine: str, before: Any, after: Any
) -> None:
    """The fault after the bad reply must not make the model forget what was wrong with it."""
    seen: list[list[dict[str, str]]] = []
    plan = [step for step in (before, '{"n": "many"}', after, '{"n": 7}') if step is not None]

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
        seen.append(messages)
        return plan[len(seen) - 1]

    df = reviews(1)
    with serve(rule) as server:
        run = df.llm.parallel_map(NUMBER, model=client(server.url), engine=engine, retry=AT_ONCE)
    assert df["n"].tolist() == [7]
    at = 0 if before is None else 1  # where the reply came that did not fit
    assert [shown(messages) for messages in seen] == [i > at for i in range(len(plan))]
    assert seen[-1][-2] == {"role": "assistant", "content": '{"n": "many"}'}
    assert run.rows["attempts"].tolist() == [len(plan)]


def test_a_reply_that_does_not_fit_twice_is_not_asked_for_again(
    client: Callable[[str], Client], engine: str
) -> None:
    plan = Plan("bad", RESET, "bad", '{"n": 1}', good='{"n": 1}')

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
        first = next(m["content"] for m in messages if m["content"] in ("r0", "r1"))
        return plan([{"content": first}], body)

    df = reviews(2)
    with serve(rule) as server:
        run = df.llm.parallel_map(
            NUMBER, model=client(server.url), engine=engine, max_workers=1, retry=AT_ONCE
        )
    assert plan.asked == {"r0": 1, "r1": 3}
    assert run.errors["error_type"].tolist() == ["BadOutput"]
    assert run.rows["text"].tolist() == ['{"n": 1}', "bad"]
    assert issubclass(BadOutput, revkit.RowFailure)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_reply_is_corrected_like_any_other(
    client: Callable[[str], Client], engine: str, text: str
) -> None:
    seen: list[list[dict[str, str]]] = []

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
        seen.append(messages)
        return text if len(seen) == 1 else '{"n": 7}'

    df = reviews(1)
    with serve(rule) as server:
        run = df.llm.parallel_map(NUMBER, model=client(server.url), engine=engine)
    assert df["n"].tolist() == [7]
    assert run.attempts["error"].tolist()[0] == "BadOutput: the reply is empty"
    first, second = seen
    assert second[: len(first)] == first
    said, told = second[len(first) :]
    assert said == {"role": "assistant", "content": text or "(empty)"}
    assert told["content"] == f"the reply is empty. {NUMBER.outputs.describe()}"


# -- usage ---------------------------------------------------------------------------------------


def given_up(reason: str, **message: Any) -> dict[str, Any]:
    """A reply of either protocol that holds no text, and took 50 + 7 tokens."""
    return {
        "message": {"content": ""},
        "done_reason": reason,
        "prompt_eval_count": 50,
        "eval_count": 7,
        "choices": [{"message": {"content": None, **message}, "finish_reason": reason}],
        "usage": {"prompt_tokens": 50, "completion_tokens": 7, "total_tokens": 57},
    }


@pytest.mark.parametrize(
    ("make", "answer", "kind", "text", "words"),
    [
        (ollama, given_up("length"), "CutOff", "", "max_tokens="),
        (openai, given_up("length"), "CutOff", "", "max_tokens="),
        (openai, given_up("content_filter"), "ContentFiltered", "", "content filter"),
        (
            openai,
            given_up("tool_calls", tool_calls=[{"id": "1"}]),
            "BadOutput",
            "",
            "called a tool",
        ),
        (
            openai,
            given_up("stop", refusal="I will not."),
            "ModelRefused",
            "I will not.",
            'refused to answer: "I will not."',
        ),
    ],
)
def test_a_reply_without_text_is_paid_for_as_well(
    make: Callable[[str], Client], engine: str, answer: Any, kind: str, text: str, words: str
) -> None:
    """And it is not asked for again: no validation failed, so there is nothing to correct."""
    answers = iter(['{"n": 1}', answer])
    df = reviews(2)
    with serve(lambda *_: next(answers)) as server:
        run = df.llm.parallel_map(NUMBER, model=make(server.url), engine=engine, max_workers=1)
    prompt, completion = run.attempts[["prompt_tokens", "completion_tokens"]].iloc[0]
    assert run.attempts["prompt_tokens"].tolist() == [prompt, 50]
    assert run.usage.prompt_tokens == prompt + 50
    assert run.usage.completion_tokens == completion + 7
    assert run.errors["error_type"].tolist() == [kind]
    assert words in run.errors["message"][0]
    assert run.errors["text"].tolist() == [text]
    last = run.rows.iloc[1]
    reason = answer["done_reason"]
    assert last[["attempts", "completion_tokens", "finish_reason", "text"]].tolist() == [
        1, 7, reason, text,
    ]  # fmt: skip


def test_usage_counts_what_was_paid_for_in_vain(engine: str) -> None:
    replies = {
        "r0": [revkit.Reply("bad", prompt_tokens=10, completion_tokens=1)] * 2,
        "r1": [
            ConnectionFailed("not billed"),
            revkit.Reply("bad", prompt_tokens=20, completion_tokens=2),
            revkit.Reply('{"n": 1}', prompt_tokens=40, completion_tokens=4),
        ],
    }

    def answer(text: str) -> Any:
        return replies[row].pop(0)

    run_rows = []
    for row in ("r0", "r1"):
        df = pd.DataFrame({"review": [row]})
        fake = FakeModel(answer)
        try:
            run = df.llm.parallel_map(NUMBER, model=fake, engine=engine, retry=AT_ONCE)
        except RunFailed as error:
            run = error.result
        run_rows.append((run.usage.prompt_tokens, run.usage.completion_tokens))
        assert run.rows["prompt_tokens"].tolist() == [run.usage.prompt_tokens]
    assert run_rows == [(20, 2), (60, 6)]


# -- functions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (ValueError("mine"), 1),
        (ConnectionError("of Python's own"), 1),
        (TimeoutError("of Python's own"), 1),
        (ModelError("final"), 1),
        (ConnectionFailed("revkit's"), 3),
        (ServerError("busy", status=503), 3),
    ],
)
def test_a_functions_exception_is_final_unless_it_says_otherwise(
    engine: str, error: Exception, calls: int
) -> None:
    made: list[int] = []

    def plain(row: Any) -> int:
        made.append(1)
        raise error

    async def awaited(row: Any) -> int:
        return plain(row)

    with pytest.raises(RunFailed) as caught:
        reviews(1).llm.parallel_map(plain if engine == "thread" else awaited, retry=AT_ONCE)
    assert len(made) == calls
    assert caught.value.result.rows["attempts"].tolist() == [calls]


# -- many rows, many faults ----------------------------------------------------------------------


def test_every_row_is_right_where_a_third_of_all_attempts_fail(
    client: Callable[[str], Client], engine: str
) -> None:
    """Which attempts fail is decided by the row and the attempt: the same in every run."""
    faults = [
        Status(500, {"error": "boom"}),
        Status(429, {"error": "busy"}, {"retry-after-ms": "1"}),
        RESET,
        SHORT_BODY,
        Status(503),
        Status(429, {"error": "busy"}),
    ]
    asked: Counter[int] = Counter()
    lock = threading.Lock()

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Any:
        row = int(messages[-1]["content"][1:])
        with lock:
            asked[row] += 1
            attempt = asked[row]
        chance = (row * 2654435761 + attempt * 40503) % 2**32 / 2**32
        if chance < 1 / 3 and attempt < 9:
            fault: Raw | Status = faults[(row + attempt) % len(faults)]
            return fault
        return f"answer {row}"

    df = reviews(300)
    with serve(rule) as server:
        run = df.llm.parallel_map(
            "{review}",
            model=client(server.url),
            engine=engine,
            max_workers=16,
            retry=Retry(attempts=12, initial=0, maximum=0),
        )
    assert df["response"].tolist() == [f"answer {i}" for i in range(300)]
    assert df["error"].isna().all()
    assert run.rows["attempts"].tolist() == [asked[i] for i in range(300)]
    assert run.metrics.retries == sum(asked.values()) - 300 > 50


# -- a server that we did not write --------------------------------------------------------------


def test_llmock_finds_our_retries_correct(engine: str, llmock: Any) -> None:
    """Its verdict judges whether ``Retry-After`` was kept, and what was tried again."""
    llmock.fail(500).fail(503).fail(408).rate_limit(times=2, retry_after=0.2)
    df = reviews(8)
    run = df.llm.parallel_map(
        "{review}",
        model="openai:gpt-4o-mini",  # the fixture sets the environment
        engine=engine,
        max_workers=4,
        retry=Retry(attempts=6, initial=0.2, maximum=1.0),
    )
    assert run.metrics.succeeded == 8
    assert run.metrics.retries == 5
    verdict = llmock.verdict()
    assert verdict.faults == 5
    assert verdict.attempts == 13
    llmock.assert_resilient()
    assert {finding.code for finding in verdict.findings} <= {"no_backoff"}  # jitter may be small


def test_llmock_finds_nothing_amiss_where_a_reply_does_not_fit_either(
    engine: str, llmock: Any
) -> None:
    llmock.rate_limit(retry_after=0.2).fail(500).reply('{"n": ')
    run = reviews(4).llm.parallel_map(
        NUMBER, model="openai:gpt-4o-mini", engine=engine, max_workers=2
    )
    assert run.metrics.succeeded == 4
    outcomes = run.attempts.loc[run.attempts["outcome"] != "ok", ["error_type", "outcome"]]
    assert sorted(outcomes["error_type"]) == ["BadOutput", "ServerError", "ServerError"]
    assert set(outcomes["outcome"]) == {"retried"}
    assert llmock.verdict().faults == 2  # a reply of our own is none of its faults
    assert run.metrics.attempts == len(llmock.requests) == 7
    llmock.assert_resilient(strict=True)


@pytest.mark.parametrize("status", [400, 404, 422])
def test_llmock_sees_that_client_errors_are_not_tried_again(
    engine: str, llmock: Any, status: int
) -> None:
    llmock.fail(status, message="scripted")
    run = reviews(3).llm.parallel_map(
        "{review}", model="openai:gpt-4o-mini", engine=engine, max_workers=1, retry=AT_ONCE
    )
    assert run.metrics.failed == 1
    assert run.errors["status"].tolist() == [status]
    llmock.assert_resilient(strict=True)


def test_llmock_outage_is_given_up_after_the_attempts(engine: str, llmock: Any) -> None:
    llmock.outage(status=500)  # a 503 of its asks for a pause, which would use no attempt
    with pytest.raises(RunFailed) as caught:
        reviews(2).llm.parallel_map(
            "{review}",
            model="openai:gpt-4o-mini",
            engine=engine,
            retry=Retry(attempts=3, initial=0, maximum=0),
        )
    assert caught.value.result.rows["attempts"].tolist() == [3, 3]
    assert llmock.verdict().errors == ()


def test_awaited_runs_retry_as_well() -> None:
    plan = Plan(Status(500), Status(429, {"error": "x"}, {"retry-after-ms": "1"}), RESET)
    df = reviews(3)

    async def main(url: str) -> Any:
        return await df.llm.aparallel_map("{review}", model=ollama(url), retry=AT_ONCE)

    with serve(plan) as server:
        run = asyncio.run(main(server.url))
    assert run.rows["attempts"].tolist() == [1, 4, 1]
    assert df["response"].tolist() == ["fine"] * 3
