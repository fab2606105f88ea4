"""How many requests a server works on at once: asked, or found out by a few small requests.

``revkit doctor --parallel MODEL`` does it, and nothing else: it costs replies, so it is never done
unasked. The requests are few (31), small (16 tokens of reply) and bounded in time.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from ..api.call import parallel_map
from ..clients.contract import Client
from ..clients.http_client import HttpClient
from ..display import duration, number
from ..errors import RunFailed
from ..results.bottleneck import flat_from
from ..results.result import ParallelResult
from ..scheduling.policy import Retry

__all__ = ["LEVELS", "REQUESTS", "Probe", "probe"]

#: Requests that are kept running at once, one round after the other, ...
LEVELS = (1, 2, 4, 8)
#: ... until each of these workers has had two; before that one, for which the model is loaded.
_EACH = 2
REQUESTS = 1 + _EACH * sum(LEVELS)
#: Tokens of a reply at most; few of them, and so many that every reply takes as long.
MAX_TOKENS = 16
#: Seconds for all of it.
LIMIT_S = 120.0
_TOO_LONG = f"more than {LIMIT_S:g} s are not spent on it"
#: Errors of a reply that came, and took its time.
_REPLIES = ("BadOutput", "CutOff", "ContentFiltered", "ModelRefused")
#: Seconds for one reply below which revkit's own work counts too much.
_QUICKEST = 0.02


class Probe(NamedTuple):
    """What a few small requests have shown.

    Attributes:
        rates: requests at once -> replies per second, as far as it came.
        slots: how many at once are enough for the highest rate; None: as many as were tried, or
            more, or it cannot be told.
        problem: why it ended before its last round or tells nothing, in words; else None.
    """

    rates: dict[int, float]
    slots: int | None
    problem: str | None = None

    def lines(self) -> list[str]:
        """The rounds, and what they come to."""
        lines = [
            f"{level} at once: {number(rate)} replies a second, {duration(level / rate)} each"
            for level, rate in self.rates.items()
        ]
        if self.problem is not None and self.slots is None:
            return [*lines, f"no more can be told: {self.problem}"]
        if self.slots is None:
            most = max(self.rates)
            return [*lines, f"throughput still grew at {most} at once: it takes {most} or more"]
        if self.problem is not None:
            lines.append(f"it ended there: {self.problem}")
        return [
            *lines,
            f"throughput is flat from {self.slots} at once: more workers than that cannot help",
        ]


def probe(client: Client) -> Probe:
    """Ask a model for some short replies, more and more at once; at most :data:`REQUESTS`."""
    if isinstance(client, HttpClient):
        client = client.replace(max_tokens=MAX_TOKENS)
    end = time.monotonic() + LIMIT_S
    sent, rates = 0, dict[int, float]()
    for level, requests in [(1, 1), *((level, level * _EACH) for level in LEVELS)]:
        left = end - time.monotonic()
        if left <= 0:
            return Probe(rates, flat_from(rates), _TOO_LONG)
        # Each has a number of its own: a server may know the answer to what it was just asked.
        numbers = [{"number": number} for number in range(sent, sent + requests)]
        run = _round(client, numbers, level, left)
        if isinstance(run, str):
            return Probe(rates, flat_from(rates), run)
        attempts = run.attempts
        seconds = float(attempts["end_s"].max() - attempts["start_s"].min())
        if sent:  # for the first one the model was loaded
            if seconds < _QUICKEST * requests / level:
                return Probe(rates, None, "replies are so quick that revkit's own work counts")
            rates[level] = requests / seconds
        sent += requests
    return Probe(rates, flat_from(rates))


def _round(
    client: Client, numbers: list[dict[str, int]], level: int, left: float
) -> ParallelResult | str:
    """So many requests, so many at once; or why they do not count."""
    try:
        run: ParallelResult | None = parallel_map(
            numbers,
            "Write twenty words about the number {number}.",
            model=client,
            max_workers=level,
            store=False,
            retry=Retry(attempts=1),
            truncated="keep",
            timeout=left,
        )
    except RunFailed as error:
        run = error.result
    if run is None:
        return "it did not answer"
    attempts = run.attempts
    failed = attempts["error_type"].notna() & ~attempts["error_type"].isin(_REPLIES)
    if failed.any():
        return str(attempts.loc[failed, "error"].iloc[0])
    return run if run.stopped is None else _TOO_LONG
