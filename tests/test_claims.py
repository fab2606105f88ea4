"""Two runs with one store at a time: no prompt is paid for twice, and no row waits for ever."""

from __future__ import annotations

import signal
import tempfile
import threading
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from calls import Run, awaited, by_loop, by_thread
from examples import examples
from failing import TASK, number_in, ollama, reviews, right_answer, said
from hypothesis import given
from hypothesis import strategies as st
from kills import Child, Told
from servers import HANG, RESET, Answer, Status, serve

import revkit
from revkit import Interrupted, Reply, Retry, RunCancelled
from revkit.dask.claims import Claims as ClusterClaims
from revkit.scheduling.events import Attempt, Decision, Failure, Success
from revkit.scheduling.scheduler import Scheduler
from revkit.store import Store, StoreWarning
from revkit.store import claims as module
from revkit.store.claims import FileClaims
from revkit.testing import FakeModel

every_engine = pytest.mark.parametrize("run_on", [by_thread, by_loop, awaited])
kills = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9")

WORKERS = 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replies.sqlite"


def claims_of(store: Store) -> FileClaims:
    assert isinstance(store.claims, FileClaims)
    return store.claims


def claim(store: Store, keys: list[bytes]) -> set[bytes]:
    taken, _ = claims_of(store).claim(keys)
    return set(taken)


def owners(path: Path) -> list[Path]:
    return list(path.parent.glob("*.owner-*"))


# -- what is claimed -------------------------------------------------------------------------------


def test_a_key_is_claimed_once_until_it_is_released(path: Path) -> None:
    with Store.open(path) as one, Store.open(path) as other:
        mine, theirs = claims_of(one), claims_of(other)
        assert claim(one, [b"a", b"b"]) == set()
        assert claim(other, [b"b", b"c"]) == {b"b"}
        assert theirs.freed([b"b"]) == []
        mine.release([b"b"])
        assert not mine.is_due  # others can wait a moment
        mine.flush()
        assert theirs.freed([b"b"]) == [b"b"]
        assert claim(other, [b"b"]) == set()
        assert claim(one, [b"b"]) == {b"b"}
    assert owners(path) == []


def test_a_claim_to_a_key_with_a_reply_is_none(path: Path) -> None:
    with Store.open(path) as one, Store.open(path) as other:
        claims_of(one).claim([b"a"])
        one.put([(b"a", Reply("good"))], task="t", model="m")
        assert claims_of(other).freed([b"a"]) == [b"a"]
        assert claim(other, [b"a"]) == {b"a"}  # so the store is read again


def test_any_number_of_keys_is_claimed(path: Path) -> None:
    keys = [n.to_bytes(20, "big") for n in range(2_000)]
    with Store.open(path) as one, Store.open(path) as other:
        assert claim(one, keys[:1_500]) == set()
        assert claim(other, keys) == set(keys[:1_500])
        claims_of(one).release(keys[:1_500])
        claims_of(one).flush()
        assert claim(other, keys) == set()


def test_a_closed_owner_has_no_claims(path: Path) -> None:
    with Store.open(path) as other:
        with Store.open(path) as one:
            claims_of(one).claim([b"a"])
            assert len(owners(path)) == 1
        assert owners(path) == []
        assert claims_of(other).freed([b"a"]) == [b"a"]
        assert claim(other, [b"a"]) == set()


@pytest.mark.parametrize("how", ["its lock is gone", "its file is gone", "it has a strange name"])
def test_the_claims_of_a_dead_owner_are_taken_over(path: Path, how: str) -> None:
    with Store.open(path) as one, Store.open(path) as other:
        claims_of(one).claim([b"a", b"b"])
        if how == "its lock is gone":
            assert claims_of(one)._owner is not None
            claims_of(one)._owner._lock.close()
        elif how == "its file is gone":
            owners(path)[0].unlink()
        else:
            with one.connection() as db:
                assert db is not None
                db.execute("UPDATE claims SET owner = '../../etc/passwd'")
        assert claims_of(other).freed([b"a"]) == [b"a"]
        assert claim(other, [b"a"]) == set()
        with other.connection() as db:
            assert db is not None
            assert db.execute("SELECT keys FROM claims").fetchall() == [(b"a".hex(),)]
        assert len(owners(path)) == 1 + (how == "it has a strange name")
        # It finds out, and is another owner from then on.
        if how == "its file is gone":
            assert claim(one, [b"a", b"b"]) == {b"a"}


def test_where_no_claim_can_be_written_a_run_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(store: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with Store.open(path) as one, Store.open(path) as other:
        claims_of(one).claim([b"a"])
        monkeypatch.setattr(module, "_Owner", refuse)
        with pytest.warns(StoreWarning, match="no claims at present.*Permission denied"):
            assert claim(other, [b"a"]) == set()
        assert claim(other, [b"a"]) == set()
        assert claims_of(other).freed([b"a"]) == [b"a"]


def test_there_are_no_claims_on_a_network_file_system(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("revkit.store.file.network_file_system", lambda path: "nfs4")
    with Store.open(path) as store:
        assert store.claims is None
    run = by_loop(reviews(5), TASK, model=FakeModel(said_of), store=path)
    assert run.metrics.succeeded == 5
    assert run.store_problem is None


def said_of(text: str) -> str:
    return said(int(text.split()[-1]))


keys = st.lists(st.sampled_from([b"a", b"b", b"c", b"d"]), max_size=4, unique=True)
steps = st.tuples(st.sampled_from(["claim", "release", "close"]), st.integers(0, 2), keys)


@examples(25)
@given(st.lists(steps, max_size=12))
def test_claims_are_those_of_a_cluster(history: list[tuple[str, int, list[bytes]]]) -> None:
    cluster = ClusterClaims()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        stores = [stack.enter_context(Store.open(place)) for _ in range(3)]
        for what, number, some in history:
            claims, name = claims_of(stores[number]), str(number)
            if what == "claim":
                assert set(claims.claim(some)[0]) == set(cluster.claim(name, "", some))
            elif what == "release":
                claims.release(some)
                claims.flush()
                cluster.release(name, "", some)
            else:
                claims.close()
                cluster.close(name)


# -- runs ------------------------------------------------------------------------------------------


@kills
@pytest.mark.parametrize("engine", ["thread", "async"])
def test_two_processes_begun_together_pay_once(engine: str, path: Path) -> None:
    rows = 600
    with serve(right_answer, gate=2 * WORKERS) as server:
        children = [
            Child(server.url, path, rows=rows, workers=WORKERS, engine=engine) for _ in range(2)
        ]
        for child in children:
            child.go()
        for child in children:
            assert child.told() == Told("done", list(range(rows)), rows)
        assert server.highest == 2 * WORKERS  # none waits while there are other rows
        asked = Counter(number_in(seen.body["messages"]) for seen in server.chats)
    assert asked == Counter(range(rows))
    assert owners(path) == []


@kills
@pytest.mark.parametrize("engine", ["thread", "async"])
def test_a_killed_runs_claims_are_taken_over(engine: str, path: Path) -> None:
    rows, lock = 100, threading.Lock()
    asked = Counter[int]()
    all_in = threading.Event()

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        row = number_in(messages)
        with lock:
            asked[row] += 1
            first = asked.total() <= WORKERS
            if asked.total() == WORKERS:
                all_in.set()
            if asked.total() == rows - WORKERS:  # the others are claimed and not asked for
                victim.send_signal(signal.SIGKILL)
        return HANG if first else said(row)

    with serve(rule) as server:
        victim = Child(server.url, path, rows=rows, workers=WORKERS, engine=engine)
        victim.go()
        assert all_in.wait(60)
        heir = Child(server.url, path, rows=rows, workers=WORKERS, engine=engine)
        heir.go()
        assert victim.told() is None
        assert heir.told() == Told("done", list(range(rows)), rows)
    assert asked.total() == rows + WORKERS  # what was in flight is paid for twice
    assert owners(path) == []


@every_engine
def test_two_threads_with_one_store_pay_once(run_on: Run, path: Path) -> None:
    rows = 200
    results: list[revkit.ParallelResult] = []
    with serve(right_answer, gate=2 * WORKERS) as server:

        def work() -> None:
            run = run_on(
                reviews(rows), TASK, model=ollama(server.url), max_workers=WORKERS, store=path
            )
            results.append(run)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.chats) == rows
    for run in results:
        assert run.frame["number"].tolist() == list(range(rows))
    sources = Counter(source for run in results for source in run.rows["source"])
    assert sources == {"model": rows, "store": rows}


@every_engine
def test_a_row_that_failed_elsewhere_is_asked_for_here(run_on: Run, path: Path) -> None:
    """While the other run goes on. One with the same prompt shares the reply; both have waited."""
    asked = Counter[int]()
    came, other_waits, again = threading.Event(), threading.Event(), threading.Event()
    lock = threading.Lock()

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        row = number_in(messages)
        with lock:
            asked[row] += 1
            first = asked[row] == 1
        if row == 0 and first:
            came.set()
            assert other_waits.wait(60)
            return Status(413, {"error": "too long"})
        if row == 0:
            again.set()
        elif not again.wait(30):
            return "the failed row was not let go"
        return said(row)

    def freed(self: FileClaims, keys: Any) -> Any:
        other_waits.set()
        return look(self, keys)

    look = FileClaims.freed
    with serve(rule) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileClaims, "freed", freed)
        runs: list[revkit.ParallelResult] = []

        def first() -> None:
            options: dict[str, Any] = {"store": path, "max_workers": 2}
            runs.append(run_on(reviews(2), TASK, model=ollama(server.url), **options))

        thread = threading.Thread(target=first)
        thread.start()
        assert came.wait(60)
        frame = reviews(1)
        second = run_on(
            frame.loc[frame.index.repeat(2)],
            TASK,
            model=ollama(server.url),
            store=path,
            max_workers=2,
        )
        thread.join()
    assert asked == {0: 2, 1: 1}
    assert runs[0].rows["status"].tolist() == ["error", "ok"]
    assert second.rows["status"].tolist() == ["ok", "ok"]
    assert second.rows["source"].tolist() == ["model", "duplicate"]


@pytest.mark.parametrize("has_other_rows", [False, True])
@pytest.mark.parametrize("run_on", [by_thread, by_loop])
def test_an_interrupt_ends_a_run_that_waits(
    run_on: Run, path: Path, has_other_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, ask, looks = FileClaims.freed, FileClaims.claim, Counter[str]()

    def freed(self: FileClaims, keys: Any) -> Any:
        looks["all"] += 1
        if looks["all"] == 3:
            signal.raise_signal(signal.SIGINT)
        return look(self, keys)

    def claimed(self: FileClaims, keys: Any) -> Any:
        ask(other, keys[:4])  # faster
        return ask(self, keys)

    with Store.open(path) as store:
        other = claims_of(store)
        monkeypatch.setattr(FileClaims, "freed", freed)
        monkeypatch.setattr(FileClaims, "claim", claimed)
        rows = reviews(5 if has_other_rows else 4)
        with pytest.raises(Interrupted) as caught:
            run_on(rows, TASK, model=FakeModel(said_of), store=path, max_workers=8)
    result = caught.value.result
    assert result.rows["status"].tolist() == ["not_started"] * 4 + ["ok"] * has_other_rows
    assert len(owners(path)) == 0


@every_engine
def test_a_stop_ends_a_run_that_waits(
    run_on: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, looks, cancel = FileClaims.freed, Counter[str](), revkit.CancelToken()

    def freed(self: FileClaims, keys: Any) -> Any:
        looks["all"] += 1
        if looks["all"] == 3:
            cancel.cancel("enough")
        return look(self, keys)

    ask = FileClaims.claim

    def claimed(self: FileClaims, keys: Any) -> Any:
        ask(other, keys)  # faster
        return ask(self, keys)

    with Store.open(path) as store:
        other = claims_of(store)
        monkeypatch.setattr(FileClaims, "freed", freed)
        monkeypatch.setattr(FileClaims, "claim", claimed)
        fake = FakeModel(said_of)
        with pytest.raises(RunCancelled) as caught:
            run_on(reviews(4), TASK, model=fake, store=path, cancel=cancel)
    assert caught.value.result.rows["status"].tolist() == ["not_started"] * 4
    assert fake.calls == []


@pytest.mark.parametrize("run_on", [by_thread, by_loop])
def test_a_row_that_failed_is_let_go_while_others_wait(
    run_on: Run, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be that the server is away, which no row that waits can show."""
    ask, taken = FileClaims.claim, list[bytes]()

    def claimed(self: FileClaims, keys: Any) -> Any:
        if not taken:
            taken.append(keys[0])
            ask(other, taken)  # faster
        return ask(self, keys)

    def settled(done: int, total: int, row: Any) -> None:
        if row.status == "error":
            other.release(taken)
            other.flush()

    def rule(messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        row = number_in(messages)
        if row == 2:
            assert first_is_through.wait(30)
        elif row == 1:
            first_is_through.set()
        return RESET if row == 2 else said(row)

    first_is_through = threading.Event()
    with Store.open(path) as store, serve(rule) as server:
        other = claims_of(store)
        monkeypatch.setattr(FileClaims, "claim", claimed)
        run = run_on(
            reviews(3),
            TASK,
            model=ollama(server.url),
            store=path,
            max_workers=2,
            retry=Retry(attempts=2, initial=0.001),
            progress=settled,
            timeout=30,
        )
    assert run.rows["status"].tolist() == ["ok", "ok", "error"]


def test_rows_that_wait_elsewhere_do_not_keep_a_parked_row_waiting() -> None:
    """The other run may itself wait for the parked one."""
    scheduler = Scheduler(
        [0, 1], more=True, commits=False, max_workers=2, retry=Retry(attempts=1), chance=lambda: 0.5
    )
    decided: list[Any] = []
    scheduler.decided = decided.append
    first, second = scheduler.take(0, 0.0), scheduler.take(1, 0.0)
    assert isinstance(first, Attempt)
    assert isinstance(second, Attempt)
    scheduler.settle(second, Success({}), 1.0)
    failure = Failure("ConnectionFailed", "refused", transient=True)
    assert scheduler.settle(first, failure, 1.0) is Decision.PARK
    scheduler.add([], more=True)
    assert decided == []
    scheduler.add([], more=True, elsewhere=True)
    assert [fact.fact.decision for fact in decided] == [Decision.FAIL]
