"""Ahead of the workers: which rows need the model at all.

Rows are rendered, keyed and looked up in the store in batches, a bounded number of rows before the
workers come to them. What is kept settles without a worker. A row whose twin (the same prompt, so
the same key) is running or waiting follows it, and shares its outcome. Where the model does not
repeat itself rows have no twins: each is a draw of its own (``draws.py``).

A key that is not in the store is claimed before its row starts, so that no two runs pay for the
same prompt. A row whose key another run has claimed waits, and holds no worker. When the claim is
released the row is looked up again: it finds the reply, or gets the claim.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from ..clients.contract import Client
from ..store.keys import ReplyKeys
from ..task.answer import Answers
from ..task.chat import Message, Reply
from ..task.kinds import ModelTask
from .prompts import Prompts

if TYPE_CHECKING:
    from ..store.contract import Claims, ReplyStore

__all__ = ["Lookahead", "Seen"]

#: Rows that are looked up at once; and those that are, beside two for each worker, before the
#: workers come to them.
_BATCH = _AHEAD = 256


@dataclass(slots=True)
class Seen:
    """What became of a batch of rows.

    Attributes:
        run: rows that need the model.
        kept: rows whose reply is in the store, with what it says.
        twins: rows whose prompt a row before them has, and that row.
        more: rows are left to be looked at.
    """

    run: list[int] = field(default_factory=list)
    kept: list[tuple[int, Mapping[str, Any], Reply]] = field(default_factory=list)
    twins: list[tuple[int, int]] = field(default_factory=list)
    more: bool = True


@dataclass(slots=True)
class _Missing:
    """Rows with one key that is not in the store, and their prompt."""

    rows: list[int]
    messages: list[Message]


class Lookahead:
    """Looks the rows of one run up in the store, in order, and keeps their replies there.

    Args:
        prompts: keeps those of rows that need the model, for the workers.
        todo: the rows to look at.
        answers: reads the replies that are kept.
        store: closed by :meth:`close`.
        sample: number of the sample of a row.
        draw: number of the draw of a row, by its key as the first one; None: rows with one prompt
            share its reply.
        offline: do not ask the server for facts of its model; any reply that is kept will do.
        workers: of the run.
        claims: those of the store; None: rows are run without.
    """

    def __init__(
        self,
        task: ModelTask,
        client: Client,
        prompts: Prompts,
        todo: Iterable[int],
        store: ReplyStore,
        *,
        answers: Answers,
        sample: Callable[[int], int] = lambda row: 0,
        draw: Callable[[int, bytes], int] | None = None,
        offline: bool = False,
        workers: int = 1,
        claims: Claims | None = None,
    ):
        self._task = task
        self._client = client
        self._keys = ReplyKeys(task, client.key_settings())
        #: what the server says of the model
        self.facts: Mapping[str, str] = {}
        self._asks_facts = not offline
        self._answers = answers
        self._prompts = prompts
        self._sample, self._draw = sample, draw
        self._todo = iter(todo)
        self._store = store
        #: key -> the first row of this run that asks the model for it
        self._first: dict[bytes, int] = {}
        #: keys whose reply in the store does not do; it stays until another one takes its place
        self._unfit: set[bytes] = set()
        #: replies that the store could not write so far
        self._unwritten = 0
        #: rows that need the model, may run, and are not settled
        self._key: dict[int, bytes] = {}
        self._claims = claims
        # What a run claims, no other one can do meanwhile.
        at_once = _BATCH if claims is None else claims.at_once
        self._window = 2 * workers + _AHEAD
        #: most rows that may run and were not tried yet, or are running
        self._untried = self._window if at_once else 2 * workers
        self._at_once = at_once or workers
        #: rows are left that were not looked at
        self._left = True
        #: keys that need the model and are not claimed; and those that another run has claimed
        self._missing: dict[bytes, _Missing] = {}
        self._waiting: dict[bytes, _Missing] = {}
        #: the claims' version when the first of these was looked up
        self._looked_at: object = None

    def is_ready(self, tried: int) -> bool:
        """Whether it is time to look at the next rows.

        Args:
            tried: rows that have failed, and are not running: they keep no worker busy. Where they
                wait for others to show whether the server is away, there must be others.
        """
        rows = len(self._key)
        if rows >= self._window or rows - tried >= self._untried:
            return False
        if self._left or self._missing:
            return True
        return self._claims is not None and bool(self._waiting) and self._claims.has_news

    @property
    def waiting(self) -> int:
        """Rows that wait for another run."""
        return sum(len(missing.rows) for missing in self._waiting.values())

    @property
    def only_waits(self) -> bool:
        """Whether all rows that are left wait for another run."""
        return bool(self._waiting) and not (self._left or self._missing)

    def look(self) -> Seen:
        """Look at the next rows. Reads the store, writes claims, and may block."""
        seen = Seen()
        if self._claims is not None and self._waiting and self._claims.has_news:
            free = set(self._claims.freed(list(self._waiting)))
            first = {key: self._waiting.pop(key) for key in list(self._waiting) if key in free}
            self._missing = first | self._missing
        if self._left and len(self._missing) < self._at_once:
            self._look_up(seen)
        if self._missing:
            self._claim(seen)
        seen.run.sort()
        seen.more = bool(self._left or self._missing or self._waiting)
        return seen

    def _look_up(self, seen: Seen) -> None:
        """Look at the next rows: those that are not in the store are missing."""
        keyed: list[tuple[int, bytes, list[Message]]] = []
        batch = list(islice(self._todo, _BATCH))
        self._left = len(batch) == _BATCH
        if batch and self._asks_facts:
            self._asks_facts = False
            self.facts = _facts(self._client)
        for row in batch:
            try:
                messages = self._prompts.render(row)
                key = self._keys.key(messages, self._sample(row))
                if self._draw is not None and (draw := self._draw(row, key)):
                    key = self._keys.key(messages, self._sample(row), draw)
            except Exception:  # noqa: BLE001 - the attempt fails with it, as that row's error
                seen.run.append(row)
                self._key[row] = b""
                continue
            keyed.append((row, key, messages))
        first = self._first
        if self._claims is not None and not (self._missing or self._waiting):
            self._looked_at = self._claims.version
        wanted = list({key for _, key, _ in keyed if key not in first})
        found = self._store.get(wanted, facts=self.facts)
        for row, key, messages in keyed:
            if (twin := first.get(key)) is not None:
                seen.twins.append((row, twin))
            elif (same := self._missing.get(key) or self._waiting.get(key)) is not None:
                same.rows.append(row)
            elif key not in found or not self._is_kept(row, key, found[key], messages, seen):
                self._missing[key] = _Missing([row], messages)

    def _claim(self, seen: Seen) -> None:
        """Claim the next missing keys, and let those that no other run has claimed run."""
        claims, some = self._claims, list(islice(self._missing, self._at_once))
        taken: Collection[bytes] = ()
        found: Mapping[bytes, Reply] = {}
        if claims is not None:
            taken, version = claims.claim(some)
            if version != self._looked_at:
                # A claim is released after its reply was written, so it is found now.
                found = self._store.get(some, facts=self.facts)
        for key in some:
            missing = self._missing.pop(key)
            left, messages = missing.rows, missing.messages
            if key in found:
                reply = found[key]
                left = [row for row in left if not self._is_kept(row, key, reply, messages, seen)]
            if key in taken:
                if left:
                    self._waiting[key] = _Missing(left, messages)
            elif left:
                row, *twins = left
                seen.run.append(row)
                self._key[row] = key
                self._first[key] = row
                self._prompts.keep(row, messages)
                if twins:
                    seen.twins += [(twin, row) for twin in twins]
            elif claims is not None:
                claims.release([key])

    def _is_kept(
        self, row: int, key: bytes, reply: Reply, messages: list[Message], seen: Seen
    ) -> bool:
        kept = self._read(key, reply, messages)
        if kept is not None:
            seen.kept.append((row, *kept))
        return kept is not None

    def _read(
        self, key: bytes, reply: Reply, sent: list[Message]
    ) -> tuple[Mapping[str, Any], Reply] | None:
        """The values of a reply that is kept, and the reply; None where it is no answer (now)."""
        try:
            if reply.thought is None:  # a reply of an older revkit may hold its thoughts still
                reply = self._answers.split(reply, sent)
            return self._answers.read(reply)
        except Exception:  # noqa: BLE001 - a validator of the user's own may raise anything
            self._unfit.add(key)
            return None

    def keep(self, replies: Iterable[tuple[int, Reply]]) -> int:
        """Put the good replies of rows into the store. Writes, and may block.

        Returns:
            How many were written: none where the store could not, and those of earlier calls as
            well once it can again.
        """
        items = [(key, reply) for row, reply in replies if (key := self._key.get(row))]
        unfit = [key for key, _ in items if key in self._unfit]
        if unfit:
            self._store.forget(unfit)
        self._unwritten += len(items)
        if not self._store.put(
            items, task=self._task.fingerprint, model=self._client.name, facts=self.facts
        ):
            return 0
        written, self._unwritten = self._unwritten, 0
        return written

    def close(self) -> None:
        """Close the store; closing twice does no harm."""
        self._store.close()

    @property
    def path(self) -> str:
        """Where replies are kept."""
        return str(self._store.path)

    @property
    def problem(self) -> str | None:
        """What the store could not do, None where all is well."""
        return self._store.problem

    @property
    def is_due(self) -> bool:
        """Whether it is time to call :meth:`flush`."""
        return self._claims is not None and self._claims.is_due

    def flush(self) -> None:
        """Let other runs know of released claims. May block."""
        assert self._claims is not None
        self._claims.flush()

    def settled(self, row: int) -> None:
        """The row is done with."""
        key = self._key.pop(row, None)
        if key and self._claims is not None:
            self._claims.release([key])
        self._prompts.drop(row)


def _facts(client: Client) -> Mapping[str, str]:
    """What the client can tell; whatever goes wrong in asking must not end the run."""
    try:
        return {str(name): str(value) for name, value in client.facts().items()}
    except Exception:  # noqa: BLE001 - a hook of the user's httpx client may raise anything
        return {}
