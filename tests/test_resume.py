"""Runs with a store: what was answered once is not asked again, and twins are asked once."""

from __future__ import annotations

import asyncio
import threading
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from calls import Run, awaited, by_loop, by_thread
from servers import serve

import revkit
from revkit import Reply, RunFailed, Signature, UsageError, store
from revkit.testing import FakeModel

every_engine = pytest.mark.parametrize("run_on", [by_thread, by_loop, awaited])


def reviews(*texts: str | None) -> pd.DataFrame:
    return pd.DataFrame({"review": list(texts)}, index=[7] * len(texts))


def label(text: str) -> str:
    return "negative" if "bad" in text else "positive"


def sources(run: revkit.ParallelResult) -> list[str]:
    return run.rows["source"].tolist()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "replies.sqlite"


# -- resume ----------------------------------------------------------------------------------------


@every_engine
def test_what_was_answered_is_not_asked_again(run_on: Run, place: Path) -> None:
    fake, df = FakeModel(label), reviews("good", "bad", None, "fine")
    first = run_on(df, model=fake, store=place)
    assert sources(first) == ["model", "model", "none", "model"]
    wanted, df = df, reviews("good", "bad", None, "fine")
    again = run_on(df, model=fake, store=place)
    assert len(fake.calls) == 3
    assert sources(again) == ["store", "store", "none", "store"]
    pd.testing.assert_frame_equal(df, wanted)
    assert again.metrics.from_store == 3
    assert again.metrics.attempts == 0
    assert again.usage.total_tokens is None  # nothing was paid for
    assert again.rows["text"].tolist()[:2] == ["positive", "negative"]
    assert "3 from the store" in repr(again)
    assert "3 from the store" in again.report()


@every_engine
def test_only_what_is_missing_is_asked(run_on: Run, place: Path) -> None:
    fake = FakeModel(label)
    run_on(reviews("a", "c"), model=fake, store=place)
    run = run_on(reviews("a", "b bad", "c", "d"), model=fake, store=place)
    assert [messages[-1]["content"] for messages in fake.calls[2:]] == ["b bad", "d"]
    assert sources(run) == ["store", "model", "store", "model"]
    assert run.frame["sentiment"].tolist() == ["positive", "negative", "positive", "positive"]


def test_no_server_is_needed_where_all_is_kept(place: Path) -> None:
    df = reviews("good", "bad")
    with serve(lambda messages, body: label(messages[-1]["content"])) as server:
        client = revkit.OpenAICompatible("m", base_url=f"{server.url}/v1")
        df.llm.parallel_map(model=client, store=place)
    run = df.llm.parallel_map(model=client, store=place)  # nobody listens there any more
    assert sources(run) == ["store", "store"]


def asked_twice(first: dict[str, Any], second: dict[str, Any], place: Path) -> bool:
    """Whether a run with the second's settings asks what one with the first's has asked."""
    with serve("positive") as server:
        for settings in (first, second):
            settings = {"task": revkit.SENTIMENT, "name": "m", "max_workers": 2} | settings
            options = {k: v for k, v in settings.items() if k in ("temperature", "seed")}
            reviews("good").llm.parallel_map(
                settings["task"],
                model=revkit.Ollama(settings["name"], host=server.url, **options),
                max_workers=settings["max_workers"],
                store=place,
            )
        return len(server.chats) == 2


def classify(*labels: str, instructions: str = "Classify.", examples: Any = ()) -> Signature:
    outputs = {"sentiment": list(labels)}
    return Signature(instructions, inputs="review", outputs=outputs, examples=examples)


PLAIN = classify("positive", "negative")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"task": PLAIN}, {"task": classify("positive", "negative", "mixed")}),
        ({"task": PLAIN}, {"task": classify("negative", "positive")}),
        ({"task": PLAIN}, {"task": classify("positive", "negative", instructions="Judge.")}),
        (
            {"task": PLAIN},
            {
                "task": classify(
                    "positive", "negative", examples=[{"review": "ok", "sentiment": "positive"}]
                )
            },
        ),
        ({"name": "m"}, {"name": "n"}),
        ({"temperature": 0.0}, {"temperature": 0.5}),
        ({"seed": 1}, {"seed": 2}),
    ],
    ids=["a label", "their order", "instructions", "an example", "model", "option", "seed"],
)
def test_what_changes_the_answer_asks_again(
    first: dict[str, Any], second: dict[str, Any], place: Path
) -> None:
    assert asked_twice(first, second, place)


def test_a_model_that_was_updated_is_asked_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import servers

    with serve("positive", models=["m:latest"]) as server:
        client = revkit.Ollama("m:latest", host=server.url)
        for asked, digest in ((1, "0"), (1, "0"), (2, "1")):
            tags = {"name": "m:latest", "digest": digest * 64}
            monkeypatch.setattr(servers, "_ollama_model", lambda name, tags=tags: tags)
            reviews("good").llm.parallel_map(model=client, store=place)
            assert len(server.chats) == asked


def test_another_endpoint_is_asked_again(place: Path) -> None:
    for _ in range(2):
        with serve("positive") as server:
            reviews("good").llm.parallel_map(model=revkit.Ollama(host=server.url), store=place)
            assert len(server.chats) == 1


def test_the_number_of_workers_asks_nothing_again(place: Path) -> None:
    assert not asked_twice({"max_workers": 1}, {"max_workers": 4}, place)


@every_engine
def test_a_corrected_reply_is_kept_for_its_row(run_on: Run, place: Path) -> None:
    def answer(messages: Any, body: Any) -> str:
        return "positive" if len(messages) > 1 and messages[-2]["content"] == "hm" else "hm"

    with serve(answer) as server:
        client = revkit.Ollama(host=server.url)
        for _ in range(2):
            run = run_on(reviews("good"), model=client, store=place)
            assert run.frame["sentiment"].tolist() == ["positive"]
        assert len(server.chats) == 2  # the first answer and its correction


def test_bad_replies_are_not_kept(place: Path) -> None:
    fake = FakeModel(lambda text: "hm")
    for calls in (2, 4):
        with pytest.raises(RunFailed):
            reviews("good").llm.parallel_map(model=fake, store=place)
        assert len(fake.calls) == calls


def test_a_kept_reply_that_does_no_longer_do_is_asked_for_again(place: Path) -> None:
    task = Signature("Rate.", inputs="review", outputs={"stars": int})
    fake = FakeModel(lambda text: {"stars": 4})
    df = reviews("good")
    df.llm.parallel_map(task, model=fake, store=place)
    with store.Store.open(place) as replies, replies.connection() as db:
        assert db is not None
        db.execute("UPDATE replies SET text = 'four'")
    for calls in (2, 2):
        run = df.llm.parallel_map(task, model=fake, store=place)
        assert run.frame["stars"].tolist() == [4]
        assert len(fake.calls) == calls


def test_a_faulty_validator_costs_no_reply_that_is_kept(place: Path) -> None:
    import pydantic

    class Rated(pydantic.BaseModel):
        stars: int

        @pydantic.field_validator("stars")
        @classmethod
        def check(cls, stars: int) -> int:
            if broken[0]:
                raise NameError("a typo")
            return stars

    broken, fake = [False], FakeModel(lambda text: {"stars": 4})
    df = pd.DataFrame({"review": [f"review {i}" for i in range(5)]})
    options: dict[str, Any] = {
        "instructions": "Rate.", "on": ["review"], "model": fake, "store": place,
    }  # fmt: skip
    df[["review"]].llm.parallel_map(Rated, **options)
    broken[0] = True
    with pytest.raises(RunFailed):
        df[["review"]].llm.parallel_map(Rated, **options)
    broken[0], asked = False, len(fake.calls)
    run = df[["review"]].llm.parallel_map(Rated, **options)
    assert sources(run) == ["store"] * 5
    assert len(fake.calls) == asked


def test_what_is_kept_is_found_where_the_weights_cannot_be_asked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    df = reviews("good", "bad")
    with serve("positive", models=["m:latest"]) as server:
        client = revkit.Ollama("m:latest", host=server.url)
        df.llm.parallel_map(model=client, store=place)
    run = df.llm.parallel_map(model=client, store=place)  # nobody listens there any more
    assert sources(run) == ["store", "store"]


@pytest.mark.parametrize("tags", [{"models": 5}, {"models": [{"name": "m"}]}, {"models": [3]}])
def test_an_odd_answer_about_the_weights_ends_no_run(
    place: Path, tags: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revkit.Ollama, "get", lambda self, path: tags)
    with serve("positive") as server:
        client = revkit.Ollama("m", host=server.url)
        assert reviews("good").llm.parallel_map(model=client, store=place).metrics.succeeded == 1


@every_engine
def test_nothing_to_ask_opens_nothing(run_on: Run, place: Path) -> None:
    with serve("positive") as server:
        client = revkit.Ollama(host=server.url)
        run_on(pd.DataFrame({"review": []}, dtype=object), model=client, store=place)
        with pytest.raises(RunFailed, match="nothing was sent"):
            run_on(reviews(None, None), model=client, store=place)
        assert server.requests == []
    assert not place.exists()


def test_looking_up_is_a_part_of_the_run(place: Path) -> None:
    df, fake = reviews(*[f"good {i}" for i in range(3000)]), FakeModel(label)
    df.llm.parallel_map(model=fake, store=place, max_workers=16)
    again = df.llm.parallel_map(model=fake, store=place)
    assert 0 < again.metrics.rows_per_s < 3000 / 0.001
    with pytest.raises(revkit.RunTimeout) as stopped:
        df.llm.parallel_map(model=fake, store=place, timeout=1e-6)
    assert stopped.value.result.metrics.not_started > 0
    assert len(fake.calls) == 3000


def test_an_awaited_run_does_not_wait_for_the_users_threads(place: Path) -> None:
    """The loop's own pool is full until the run is over."""

    async def main() -> int:
        loop, release = asyncio.get_running_loop(), threading.Event()
        held = [loop.run_in_executor(None, release.wait, 20) for _ in range(40)]
        run = await reviews("good", "bad").llm.aparallel_map(model=FakeModel(label), store=place)
        release.set()
        await asyncio.gather(*held)
        return run.metrics.succeeded

    assert asyncio.run(main()) == 2


def test_an_interrupt_while_rows_are_looked_up_gives_what_was_found(place: Path) -> None:
    df, fake = reviews(*[f"good {i}" for i in range(600)]), FakeModel(label)
    df.llm.parallel_map(model=fake, store=place, max_workers=16)

    def press(completed: int, total: int, row: revkit.RowResult) -> None:
        if completed == 10:
            raise KeyboardInterrupt

    fresh = reviews(*[f"good {i}" for i in range(600)])
    with pytest.raises(revkit.Interrupted) as stopped:
        fresh.llm.parallel_map(model=fake, store=place, progress=press)
    assert stopped.value.result.metrics.from_store >= 10
    assert fresh["sentiment"].notna().sum() == stopped.value.result.metrics.succeeded


class _Slow(FakeModel):
    """Getting ready takes until it is interrupted."""

    def ready(self, task: Any, *, max_workers: int) -> None:
        import _thread

        _thread.interrupt_main()
        threading.Event().wait(20)


def test_an_interrupt_while_the_model_gets_ready_gives_what_was_found(place: Path) -> None:
    texts = [f"good {i}" for i in range(5)]
    reviews(*texts).llm.parallel_map(model=FakeModel(label), store=place)
    df = reviews(*texts, "new")
    with pytest.raises(revkit.Interrupted, match="5 of 6 rows are done"):
        df.llm.parallel_map(model=_Slow(label), store=place)
    assert df["sentiment"].notna().tolist() == [True] * 5 + [False]


def test_a_row_that_cannot_be_rendered_fails_alone(place: Path) -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError("no text")

    df = pd.DataFrame({"review": ["good", Broken(), "bad"]})
    run = df.llm.parallel_map("Sum up: {review}", model=FakeModel(label), store=place)
    assert run.rows["status"].tolist() == ["ok", "error", "ok"]
    assert run.errors["message"].tolist() == ["no text"]


@every_engine
def test_retry_failed_keeps_what_it_gets(run_on: Run, place: Path) -> None:
    down = [True]

    def answer(text: str) -> Any:
        return revkit.BadReply("garbage") if down[0] and "bad" in text else label(text)

    fake = FakeModel(answer)
    run = run_on(reviews("good", "bad", "bad"), model=fake, store=place)
    assert sources(run) == ["model", "model", "duplicate"]
    assert run.rows["status"].tolist() == ["ok", "error", "error"]
    down[0] = False
    both = run.retry_failed()
    assert both.rows["status"].tolist() == ["ok"] * 3
    assert sources(both) == ["model", "model", "duplicate"]
    assert store.info(place).replies == 2


# -- twins -----------------------------------------------------------------------------------------


@every_engine
def test_twins_are_asked_once(run_on: Run, place: Path) -> None:
    fake, df = FakeModel(label), reviews(*["good", "bad", "good"] * 500)
    run = run_on(df, model=fake, store=place, max_workers=4)
    assert len(fake.calls) == 2
    assert df["sentiment"].tolist() == ["positive", "negative", "positive"] * 500
    assert run.metrics.duplicates == 1498
    assert "1,498 duplicates" in repr(run)
    assert set(run.rows["text"]) == {"positive", "negative"}


@every_engine
def test_a_row_shares_the_failure_of_its_twin(run_on: Run, place: Path) -> None:
    fake = FakeModel(
        lambda text: ZeroDivisionError("no") if "bad" in text else "positive", latency=0.001
    )
    df = reviews("bad", "good", "bad", *["good"] * 300, "bad")
    run = run_on(df, model=fake, store=place, max_workers=1)
    assert len(fake.calls) == 2
    assert run.errors["row"].tolist() == [0, 2, 303]
    assert run.errors["attempts"].tolist() == [1, 0, 0]
    assert df["error"].dropna().tolist() == ["ZeroDivisionError: no"] * 3


def test_followers_that_fail_count_as_failures(place: Path) -> None:
    fake = FakeModel(lambda text: ZeroDivisionError("no") if "bad" in text else "positive")
    df = reviews(*["bad"] * 5, *[f"good {i}" for i in range(2000)])
    with pytest.raises(RunFailed, match="5 rows failed, more than max_failures allows") as failed:
        df.llm.parallel_map(model=fake, store=place, max_failures=4, max_workers=1)
    metrics = failed.value.result.metrics
    assert metrics.failed == 5
    assert metrics.not_started > 1000


@every_engine
def test_followers_of_a_cancelled_row_are_not_started(run_on: Run, place: Path) -> None:
    cancel = revkit.CancelToken()
    begun = threading.Event()

    def answer(messages: Any, body: Any) -> str:
        cancel.cancel("enough")
        begun.wait(10)
        return "positive"

    with serve(answer) as server:
        client = revkit.Ollama(host=server.url)
        with pytest.raises(revkit.RunCancelled) as stopped:
            run_on(reviews("good", "good"), model=client, store=place, cancel=cancel)
        begun.set()
    assert stopped.value.result.rows["status"].tolist() == ["cancelled", "not_started"]
    assert sources(stopped.value.result) == ["model", "none"]


# -- what is promised of a kill --------------------------------------------------------------------


@every_engine
def test_calls_that_are_not_committed_never_exceed_the_workers(
    run_on: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, at_risk, committed = FakeModel(label), [], [0]
    put = store.Store.put

    def watched(self: store.Store, items: Any, **names: str) -> bool:
        items = list(items)
        at_risk.append(len(fake.calls) - committed[0])
        done = put(self, items, **names)
        at_risk.append(len(fake.calls) - committed[0])
        committed[0] += len(items)
        return done

    monkeypatch.setattr(store.Store, "put", watched)
    run = run_on(
        reviews(*[f"good {i}" for i in range(400)]), model=fake, store=place, max_workers=8
    )
    assert run.metrics.succeeded == 400
    assert max(at_risk) <= 8


@every_engine
def test_a_row_is_in_the_store_before_it_is_told(run_on: Run, place: Path) -> None:
    kept: list[bool] = []

    def told(completed: int, total: int, row: revkit.RowResult) -> None:
        kept.append(store.info(place).replies >= len({*range(completed)}) or row.source != "model")

    run_on(reviews(*[f"good {i}" for i in range(20)]), model=FakeModel(label), store=place,
           progress=told, max_workers=2)  # fmt: skip
    assert kept == [True] * 20


@every_engine
def test_progress_reaches_the_total_whatever_the_source(run_on: Run, place: Path) -> None:
    told: list[tuple[int, str]] = []
    fake = FakeModel(label)
    run_on(reviews("a", "b"), model=fake, store=place)
    run_on(
        reviews("a", "bad", "bad", None, "b", "c"),
        model=fake,
        store=place,
        progress=lambda completed, total, row: told.append((completed, row.source)),
    )
    assert [completed for completed, _ in told] == [1, 2, 3, 4, 5, 6]
    assert sorted(source for _, source in told) == [
        "duplicate", "model", "model", "none", "store", "store",
    ]  # fmt: skip


# -- a store that cannot do its part ---------------------------------------------------------------


@every_engine
def test_the_run_goes_on_where_nothing_can_be_kept(run_on: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.warns(store.StoreWarning, match="cannot be made"):
        run = run_on(
            reviews("good", "bad"), model=FakeModel(label), store=tmp_path / "file" / "store.sqlite"
        )
    assert run.metrics.succeeded == 2
    assert "cannot be made" in " ".join(run.report().split())
    assert "cannot be made" in run._repr_html_()
    with pytest.warns(store.StoreWarning), pytest.raises(RunFailed) as stopped:
        run_on(
            reviews("good", "bad"),
            model=FakeModel(lambda text: ValueError("no") if text == "bad" else "positive"),
            store=tmp_path / "file" / "store.sqlite",
            fail_fast=True,
            max_workers=1,
        )
    assert "replies that came are kept" not in str(stopped.value)


@every_engine
def test_the_run_goes_on_where_nothing_can_be_written_any_more(
    run_on: Run, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store.Store, "put", lambda self, items, **names: False)
    fake = FakeModel(label)
    run = run_on(reviews(*[f"good {i}" for i in range(50)]), model=fake, store=place, max_workers=2)
    assert run.metrics.succeeded == 50


def test_something_else_at_its_place_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("my notes, which are long enough to be no database\n" * 9)
    fake = FakeModel(label)
    with pytest.raises(UsageError, match="not a store of revkit"):
        reviews("good").llm.parallel_map(model=fake, store=tmp_path / "notes.txt")
    assert fake.calls == []


@pytest.mark.parametrize("given", [3, "", ["a"]])
def test_impossible_places_are_refused(given: Any) -> None:
    with pytest.raises(UsageError, match="store= takes a path"):
        reviews("good").llm.parallel_map(model=FakeModel(label), store=given)


# -- when there is one -----------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("REVKIT_STORE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def test_it_is_on_for_models_and_says_once_where_it_is(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve("positive") as server:
        for _ in range(2):
            reviews("good").llm.parallel_map(model=revkit.Ollama(host=server.url))
        assert len(server.chats) == 1
    assert store.default_path().is_relative_to(home)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"replies are kept in {store.default_path()}" in said


def test_it_is_off_for_functions_fake_models_and_by_request(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews("good").llm.parallel_map(lambda row: 1)
    reviews("good").llm.parallel_map(model=FakeModel(label))
    with serve("positive") as server:
        client = revkit.Ollama(host=server.url)
        reviews("good", "good").llm.parallel_map(model=client, store=False)
        monkeypatch.setenv("REVKIT_STORE", "off")
        reviews("good", "good").llm.parallel_map(model=client)
        assert len(server.chats) == 4  # without a store twins are asked like any other row
    assert not store.default_path().exists()
    assert capsys.readouterr().err == ""


def test_a_function_has_no_replies_to_keep(place: Path) -> None:
    with pytest.raises(UsageError, match="<lambda> is a function"):
        reviews("good").llm.parallel_map(lambda row: 1, store=place)
    reviews("good").llm.parallel_map(lambda row: 1, store=False)


def test_the_variable_names_its_place(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REVKIT_STORE", str(place))
    with serve("positive") as server:
        reviews("good").llm.parallel_map(model=revkit.Ollama(host=server.url))
    assert store.info().replies == 1
    assert str(place) in capsys.readouterr().err


def test_probabilities_and_reasons_survive(place: Path) -> None:
    said = Reply("positive", 5, 1, "stop", {"sentiment": {"positive": 0.75, "negative": 0.25}})
    fake, df = FakeModel(lambda text: said), reviews("good")
    first = df.llm.parallel_map(model=fake, store=place)
    again = df.llm.parallel_map(model=fake, store=place)
    for column in ("finish_reason", "text", "probabilities", "sentiment"):
        assert again.rows[column].tolist() == first.rows[column].tolist()
    assert len(fake.calls) == 1


def test_a_store_leaves_no_connection_open(place: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        reviews("good").llm.parallel_map(model=FakeModel(label), store=place)
        with pytest.raises(RunFailed):
            reviews("x").llm.parallel_map(model=FakeModel(lambda text: "hm"), store=place)


def test_twins_and_stored_rows_are_in_the_timeline(place: Path) -> None:
    df = reviews("a", "a", "b", "a")
    first = df.llm.parallel_map(model=FakeModel(label), store=place, max_workers=2)
    assert sum(rows for _, rows in first._record.visits) == 2
    assert first.plot_timeline().get_title("left") == "4 rows, 2 attempted, on 2 workers"
    again = df.llm.parallel_map(model=FakeModel(label), store=place, max_workers=2)
    assert sum(rows for _, rows in again._record.visits) == 4
    assert again.plot_timeline().get_title("left").startswith("4 rows, 0 attempted, on")
