"""How long a server asks to be left alone: in headers, in fields of the body, and in words."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from revkit.clients.contract import Response
from revkit.clients.pause import asked_pause, latest_reset, should_retry

OPENAI = (
    "Rate limit reached for gpt-4.1 in organization org-x on tokens per min (TPM): Limit 10000, "
    "Used 9000, Requested 2000. Please try again in {}. Visit https://platform.openai.com to learn."
)
AZURE = (
    "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-10-21 "
    "have exceeded call rate limit of your current OpenAI S0 pricing tier. Please retry after {}. "
    "Please go here: https://aka.ms/oai/quotaincrease if you would like to increase it."
)
GEMINI = "You exceeded your quota.\n* Quota exceeded for metric: x, limit: 0\nPlease retry in {}."


def said(message: Any, status: int = 429, **fields: Any) -> float | None:
    body = json.dumps({"error": {"message": message, **fields}}).encode()
    return asked_pause(Response(status, {}, body))


@pytest.mark.parametrize(
    "sentence", [OPENAI, AZURE, GEMINI, "Try again in {}", "Busy, retry in {}"]
)
@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("1.2s", 1.2),
        ("20ms", 0.02),
        ("1m30.5s", 90.5),
        ("6m0s", 360.0),
        ("2h3m4s", 7384.0),
        ("3 seconds", 3.0),
        ("1 second", 1.0),
        ("1 minute and 5 seconds", 65.0),
        ("19.123456789s", 19.123456789),
        ("250 milliseconds", 0.25),
        ("1 day", 86_400.0),
    ],
)
def test_the_words_of_the_message_say_how_long(sentence: str, words: str, seconds: float) -> None:
    assert said(sentence.format(words)) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "message",
    [
        "",
        "Rate limit reached. Please try again later.",
        "Please try again in a moment.",
        "Please try again in 5",  # of what?
        "Please try again in 5 apples.",
        "Please try again in -5s.",
        "Please try again in s.",
        "Please try again in 999999999999999s.",
        "Please try again in 1e308s.",
        "Please try again in nans.",
        "I try again in 5s",
        # text that quotes a row
        'Too many requests for "Please try again in 50s"',
        'Too many requests for "I wrote it. Please try again in 50s. Bye',
        "Too many requests for “So. Please try again in 50s.”",
        "Too many requests for `So. Please try again in 50s.`",
        "Too many requests for 'So. Please try again in 50s.' of you",
        "Too many requests for: Please try again in 50s",
        "Too many requests of the kind that try again in 50s",
        {"text": "Please try again in 5s."},
        ["Please try again in 5s."],
        7,
    ],
)
def test_other_words_are_no_hint(message: Any) -> None:
    assert said(message) is None


def test_an_apostrophe_quotes_nothing() -> None:
    assert said("You've sent too much, and it's full. Please try again in 5s. Don't hurry.") == 5.0


@pytest.mark.parametrize("status", [200, 400, 403, 408, 500, 502])
def test_words_and_fields_count_only_where_there_are_too_many_requests(status: int) -> None:
    assert said("Please try again in 5s.", status, retry_after=5) is None
    assert asked_pause(Response(status, {"retry-after": "5"}, b"")) == 5.0


@pytest.mark.parametrize("status", [429, 503, 529])
def test_they_count_for_each_status_of_a_busy_server(status: int) -> None:
    assert said("Please try again in 5s.", status) == 5.0
    assert asked_pause(Response(200, {}, b'{"error": {"retry_after": 5}}'), status) == 5.0


RETRY_INFO = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "19.5s"}


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ({"error": {"retry_after": 2.5}}, 2.5),
        ({"error": {"retry_after": "3"}}, 3.0),
        ({"error": {"retry_after": "1m2s"}}, 62.0),
        ({"error": {"retry_after_ms": 250}}, 0.25),
        ({"error": {"retry_after_seconds": 7}}, 7.0),
        ({"error": {"retryAfter": 7}}, 7.0),
        ({"retry_after": 4, "error": "busy"}, 4.0),
        ({"detail": {"retry_after": 4}}, 4.0),
        ({"error": {"code": 429, "metadata": {"retry_after_seconds": 9}}}, 9.0),
        ({"error": {"code": 429, "details": [{"@type": "Help"}, RETRY_INFO]}}, 19.5),
        ([{"error": {"code": 429, "details": [RETRY_INFO]}}], 19.5),
        ({"error": {"retry_after": 2, "message": "Please try again in 8s."}}, 2.0),
        ({"error": "Busy. Please try again in 8s."}, 8.0),
        ({"message": "Please try again in 8s."}, 8.0),
        ({"detail": "Please try again in 8s."}, 8.0),
        # no hint
        ({"error": {"retry_after": True}}, None),
        ({"error": {"retry_after": -2}}, None),
        ({"error": {"retry_after": 0}}, None),
        ({"error": {"retry_after": 1e308}}, None),
        ({"error": {"retry_after": 10**400}}, None),
        ({"error": {"retry_after": "NaN"}}, None),
        ({"error": {"retry_after": ""}}, None),
        ({"error": {"retry_after": None}}, None),
        ({"error": {"retry_after": [5]}}, None),
        ({"error": {"input": "Please try again in 8s.", "message": "busy"}}, None),
        ({"input": {"retry_after": 5}, "error": {"message": "busy"}}, None),
        ([], None),
        ([[]], None),
        ("Please try again in 8s.", None),
        (None, None),
    ],
)
def test_fields_of_the_body_say_how_long(body: Any, seconds: float | None) -> None:
    assert asked_pause(Response(429, {}, json.dumps(body).encode())) == seconds


def test_headers_go_before_the_body_and_zero_is_not_the_last_word() -> None:
    body = b'{"error": {"message": "Please try again in 8s."}}'
    assert asked_pause(Response(429, {"retry-after": "2"}, body)) == 2.0
    assert asked_pause(Response(429, {"retry-after": "0"}, body)) == 8.0
    assert asked_pause(Response(429, {"retry-after": "0"}, b"busy")) == 0.0
    assert asked_pause(Response(429, {"retry-after": "1e308"}, b"busy")) is None


names = st.sampled_from(
    ["error", "detail", "details", "metadata", "message", "retry_after", "retryDelay", "x"]
)
json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
bodies = st.binary(max_size=200) | json_like.map(lambda body: json.dumps(body).encode())


@given(bodies, st.text(max_size=20), st.text(max_size=20))
def test_any_response_gives_sane_seconds_or_none(body: bytes, header: str, reset: str) -> None:
    headers = {
        "retry-after": header,
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": reset,
        "x-should-retry": header,
    }
    for found in (
        asked_pause(Response(429, headers, body)),
        asked_pause(Response(429, {}, body)),
        latest_reset(Response(429, headers, body)),
    ):
        assert found is None or 0 <= found < math.inf
    assert should_retry(Response(429, headers, body)) in (None, True, False)


@given(
    st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999),
    st.sampled_from([OPENAI, AZURE, GEMINI]),
)  # fmt: skip
def test_every_duration_of_go_is_read(
    hours: int, minutes: int, seconds: int, ms: int, sentence: str
) -> None:
    whole = f"{hours}h{minutes}m{seconds}.{ms:03}s"
    expected = 3600 * hours + 60 * minutes + seconds + ms / 1000
    if expected:
        assert said(sentence.format(whole)) == pytest.approx(expected)


# -- limits that are full again ----------------------------------------------------------------

NOW = datetime(2031, 5, 6, 7, 8, 9, tzinfo=UTC)
DATE = "Tue, 06 May 2031 07:08:09 GMT"


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("1s", 1.0),
        ("6m0s", 360.0),
        ("17ms", 0.017),
        ("33011.38", 33011.38),
        (str(NOW.timestamp() + 40), 40.0),
        (str(int(NOW.timestamp() * 1000) + 40_000), 40.0),
        ((NOW + timedelta(seconds=40)).isoformat(), 40.0),
        ("2031-05-06T07:08:49Z", 40.0),
        ("2031-05-06T07:08:09Z", None),  # it is full
        ("2031-05-06T07:08:00Z", None),
        ("0", None),
        ("-5", None),
        ("1e308", None),
        ("1e20", None),
        ("nan", None),
        ("", None),
        ("soon", None),
    ],
)
def test_a_reset_is_a_duration_or_a_time(reset: str, seconds: float | None) -> None:
    for remaining, name in (
        ("x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
        ("x-ratelimit-remaining", "x-ratelimit-reset"),
        ("anthropic-ratelimit-input-tokens-remaining", "anthropic-ratelimit-input-tokens-reset"),
    ):
        headers = {remaining: "0", name: reset, "date": DATE}
        found = latest_reset(Response(429, headers, b""))
        assert found == (None if seconds is None else pytest.approx(seconds, abs=1e-3))


def test_a_reset_counts_only_for_limits_that_have_nothing_left() -> None:
    headers = {
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "6m0s",
        "x-ratelimit-remaining-tokens": "0",
        "x-ratelimit-reset-tokens": "2s",
        "anthropic-ratelimit-tokens-reset": "2031-05-06T08:08:09Z",
    }
    assert latest_reset(Response(429, headers, b"")) == 2.0
    both = headers | {"x-ratelimit-remaining-requests": "0"}
    assert latest_reset(Response(429, both, b"")) == 360.0
    assert latest_reset(Response(429, headers | {"x-ratelimit-remaining-tokens": "?"}, b"")) is None


@pytest.mark.parametrize(
    ("said", "retry"), [("true", True), ("False", False), ("", None), ("maybe", None)]
)
def test_a_server_may_say_whether_to_retry(said: str, retry: bool | None) -> None:
    assert should_retry(Response(500, {"x-should-retry": said}, b"")) is retry
    assert should_retry(Response(500, {}, b"")) is None
