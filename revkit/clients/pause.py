"""How long a server asks to be left alone, in each of the forms that providers use.

An *asked* pause is exact: ``Retry-After``, its form in milliseconds, a field of the body, or the
words of the error's message. Fields and words count only for a server that refuses requests
because it has too many (429, 503, 529). The words have to be a sentence of their own and outside
quotation marks: a message may quote the row, and a row may say anything.

The headers ``x-ratelimit-reset-*`` and ``anthropic-ratelimit-*-reset`` say when a limit is *full*
again. A request may pass long before that, so they are an upper bound, and they say nothing unless
that limit has nothing left.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from ..scheduling.events import OVERLOADED
from .contract import Response

__all__ = ["asked_pause", "latest_reset", "should_retry"]

#: A server that asks for more than a year (seconds) is not serious.
_LONGEST: Final = 366 * 86_400.0
#: Numbers from here on are not seconds to wait, but seconds since 1970; or milliseconds.
_UNIX, _UNIX_MS, _UNIX_END = 1e8, 1e11, 1e14
#: Messages are short; what is longer repeats something.
_MOST_TEXT = 4_000

_SECONDS: Final = {"ms": 1e-3, "millisecond": 1e-3, "msec": 1e-3} | {
    name: seconds
    for seconds, names in (
        (1.0, ("s", "sec", "second")),
        (60.0, ("m", "min", "minute")),
        (3600.0, ("h", "hr", "hour")),
        (86_400.0, ("d", "day")),
    )
    for name in names
}
_FIGURE = r"\d{1,15}(?:\.\d{1,15})?"
_UNIT = "|".join(sorted(_SECONDS, key=len, reverse=True))
_PART = rf"({_FIGURE})\s?({_UNIT})s?(?=\d|[^a-z]|$)"
_PLAIN_PART = _PART.replace("(", "(?:").replace("(?:?", "(?")
_DURATION = rf"{_PLAIN_PART}(?:(?:,? and |, | )?{_PLAIN_PART}){{0,4}}"
_WORDS = re.compile(
    r"(?:^|\n\s*|[.;!?,]\s+)(?:please )?"
    r"(?:(?:re)?try(?: (?:your|the|this) request)?(?: again)? (?:in|after)|wait(?: for)?)"
    rf" (?:about |approximately |at least )?({_DURATION})(?!\w)",
    re.IGNORECASE,
)
_PARTS = re.compile(_PART, re.IGNORECASE)
_WHOLE = re.compile(_DURATION, re.IGNORECASE)
#: From a quotation mark to its partner, or to the end; not the apostrophe of "you've".
_QUOTED = re.compile('"[^"]*(?:"|$)|“[^”]*(?:”|$)|`[^`]*(?:`|$)|(?<!\\w)\'.*?(?:\'(?!\\w)|$)', re.S)
_FIELDS: Final = {"retryafterms": 1e-3, "retryafter": 1.0, "retryafterseconds": 1.0}
_RESET = re.compile(
    r"(?:x-)?ratelimit-reset(?P<suffix>-[a-z0-9-]+)?|anthropic-ratelimit-(?P<kind>[a-z-]+)-reset"
)


def asked_pause(response: Response, status: int | None = None) -> float | None:
    """Seconds for which a response asks not to be asked again, None where it does not say.

    ``retry-after-ms`` is OpenAI's; ``Retry-After`` has seconds or a date (RFC 9110, 10.2.3). A
    date is read against the response's own ``Date``, so that the two clocks need not agree.

    Args:
        status: what the response stands for; None: its own status.

    >>> asked_pause(Response(429, {"retry-after": "2.5"}, b""))
    2.5
    >>> asked_pause(Response(429, {}, b'{"error": {"message": "Please try again in 1m30.5s."}}'))
    90.5
    """
    found = _header_pause(response)
    if found or (response.status if status is None else status) not in OVERLOADED:
        return found
    return max(_body_pauses(response.body), default=found)


def latest_reset(response: Response) -> float | None:
    """Seconds until the limits that have nothing left are full again, None where none says.

    >>> latest_reset(Response(429, {"x-ratelimit-remaining-tokens": "0",
    ...                             "x-ratelimit-reset-tokens": "6m0s"}, b""))
    360.0
    """
    headers = response.headers
    found = list[float]()
    for name, text in headers.items():
        match = _RESET.fullmatch(name.lower())
        if match is None:
            continue
        remaining = (
            f"anthropic-ratelimit-{match['kind']}-remaining"
            if match["kind"]
            else name.lower().replace("-reset", "-remaining", 1)
        )
        left = _number(headers.get(remaining, ""))
        if left is None or left > 0:
            continue
        seconds = _until(text, headers)
        if seconds is not None and seconds > 0:
            found.append(seconds)
    return max(found, default=None)


def should_retry(response: Response) -> bool | None:
    """What the server says about trying again (``x-should-retry``), None where it does not."""
    said = response.headers.get("x-should-retry", "").strip().lower()
    return {"true": True, "false": False}.get(said)


def _header_pause(response: Response) -> float | None:
    headers = response.headers
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        seconds = _number(headers.get(name, ""))
        if seconds is not None:
            return _sane(max(0.0, seconds * unit))
    when = _date(headers.get("retry-after"))
    return None if when is None else _sane(max(0.0, _from_now(when, headers)))


def _body_pauses(body: bytes) -> Iterator[float]:
    """What the fields and the message of an error say, in seconds."""
    try:
        found = orjson.loads(body)
    except ValueError:
        return
    if isinstance(found, list):  # Gemini's
        found = found[0] if found else None
    if not isinstance(found, Mapping):
        return
    error = found.get("error", found.get("detail"))
    places = [found, error]
    if isinstance(error, Mapping):
        places.append(error.get("metadata"))  # OpenRouter's
        details = error.get("details")
        if isinstance(details, list):  # Gemini's, of which one is a RetryInfo
            places += [{"retry_after": one.get("retryDelay")} for one in details if _is_map(one)]
    fields = list(_field_pauses(places))
    if fields:
        yield from fields
        return
    messages = [error, *(one.get("message") for one in (found, error) if _is_map(one))]
    for message in messages:
        if isinstance(message, str):
            yield from _spoken(message)


def _is_map(found: object) -> bool:
    return isinstance(found, Mapping)


def _field_pauses(places: list[Any]) -> Iterator[float]:
    for place in places:
        if not isinstance(place, Mapping):
            continue
        for name, value in place.items():
            unit = _FIELDS.get(name.lower().replace("_", "").replace("-", ""))
            if unit is None or isinstance(value, bool):
                continue
            seconds = _number(value)
            if seconds is not None:
                seconds *= unit
            elif isinstance(value, str):
                seconds = _duration(value)
            if seconds is not None and seconds > 0 and _sane(seconds) is not None:
                yield seconds


def _spoken(message: str) -> Iterator[float]:
    """What the sentences of a message ask for, without what it quotes."""
    for match in _WORDS.finditer(_QUOTED.sub(" ", message[:_MOST_TEXT])):
        seconds = _duration(match[1])
        if seconds:
            yield seconds


def _duration(text: str) -> float | None:
    """Seconds of a duration in figures and units.

    >>> _duration("6m0s"), _duration("17ms"), _duration("1 minute and 5 seconds"), _duration("?")
    (360.0, 0.017, 65.0, None)
    """
    text = text.strip()
    if _WHOLE.fullmatch(text) is None:
        return None
    parts = _PARTS.findall(text)
    return _sane(math.fsum(float(figure) * _SECONDS[unit.lower()] for figure, unit in parts))


def _until(text: str, headers: Mapping[str, str]) -> float | None:
    """Seconds until a reset: a duration, a number of seconds, a unix time or RFC 3339."""
    number = _number(text)
    if number is not None:
        if number < _UNIX:
            return _sane(number)
        unix = number if number < _UNIX_MS else number / 1e3
        if number >= _UNIX_END:
            return None
        return _sane(_from_now(datetime.fromtimestamp(unix, UTC), headers))
    seconds = _duration(text)
    if seconds is not None:
        return seconds
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return _sane(_from_now(when if when.tzinfo else when.replace(tzinfo=UTC), headers))


def _number(value: object) -> float | None:
    """A finite number, or None."""
    if not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _sane(seconds: float) -> float | None:
    return seconds if 0 <= seconds <= _LONGEST else None


def _from_now(when: datetime, headers: Mapping[str, str]) -> float:
    """Seconds until a time, by the server's clock where it shows one."""
    now = _date(headers.get("date"))
    return (when - (datetime.now(UTC) if now is None else now)).total_seconds()


def _date(text: str | None) -> datetime | None:
    if not text:
        return None
    import email.utils  # late: few servers ask for a pause, and it takes milliseconds

    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter from a time zone without end
        return None
    return when if when.tzinfo is not None else when.replace(tzinfo=UTC)
