"""A look before a run: what it shows is what is sent, what it expects is about what is used."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from contexts import Cutting
from pages import Page
from servers import Status, serve
from test_display import NASTY, sanitized

import revkit
from revkit import (
    Adaptive,
    Budget,
    ColumnExists,
    MissingColumn,
    NoModel,
    Price,
    RateLimit,
    Reply,
    Signature,
    UsageError,
    preview,
)
from revkit.clients.contract import Client
from revkit.testing import FakeModel

CLASSIFY = Signature(
    "Classify.",
    inputs="review",
    outputs={"sentiment": ["positive", "negative"], "stars": int},
    examples=[{"review": "Fine.", "sentiment": "positive", "stars": 4}],
)
PRICE = Price(1.0, 10.0, usd_per_request=0.001)


def openai(url: str, **options: Any) -> Client:
    return revkit.OpenAICompatible("m", base_url=f"{url}/v1", **options)


def ollama(url: str, **options: Any) -> Client:
    return revkit.Ollama("m", host=url, **options)


every_client = pytest.mark.parametrize("client", [openai, ollama])


def reviews(rows: int, word: str = "word") -> pd.DataFrame:
    texts = [f"review {i:04} " + f"{word} " * (1 + i % 7) for i in range(rows)]
    return pd.DataFrame({"review": texts}, index=[f"r{i}" for i in range(rows)])


def fake(rule: Callable[[str], Any] = lambda text: "fine", **options: Any) -> FakeModel:
    return FakeModel(rule, latency=2.0, clock="virtual", **options)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "replies.sqlite"


def turns(look: revkit.Preview, row: int) -> list[dict[str, str]]:
    of_row = look.prompts[look.prompts["row"] == row]
    return of_row[["role", "content"]].to_dict("records")


# -- prompts ---------------------------------------------------------------------------------------


@every_client
@pytest.mark.parametrize("task", [CLASSIFY, "Summarise {{in}} five words: {review}"])
def test_the_prompts_are_what_the_server_receives(
    client: Callable[[str], Client], task: Any
) -> None:
    df = reviews(12)
    with serve() as server:
        look = df.llm.preview(task, model=client(server.url), max_workers=1)
        sent = [seen.body["messages"] for seen in server.chats]
    rows = look.prompts["row"].unique().tolist()
    assert rows == [2, 6, 10]
    assert [turns(look, row) for row in rows] == sent
    assert look.prompts.index.unique().tolist() == ["r2", "r6", "r10"]
    assert look.prompts["row"].dtype == np.int64


def test_without_sending_the_prompts_are_the_same() -> None:
    df, model = reviews(12), fake()
    quiet = df.llm.preview("{review}?", model=model, send=False)
    assert model.calls == []
    loud = df.llm.preview("{review}?", model=model)
    pd.testing.assert_frame_equal(quiet.prompts, loud.prompts)
    assert quiet.answers is None


@pytest.mark.parametrize(("rows", "n", "chosen"), [(10, 1, [5]), (2, 3, [0, 1]), (8, 2, [2, 6])])
def test_the_sample_is_evenly_spaced(rows: int, n: int, chosen: list[int]) -> None:
    look = reviews(rows).llm.preview("{review}", n, model=fake(), send=False)
    assert look.prompts["row"].tolist() == chosen


def test_rows_without_an_input_are_skipped_and_counted() -> None:
    df = reviews(6)
    df.iloc[[0, 2, 4], 0] = None
    model = fake()
    look = df.llm.preview("{review}", n=9, model=model)
    assert look.prompts["row"].tolist() == [1, 3, 5]
    assert len(model.calls) == 3
    assert (look.rows.total, look.rows.missing_input, look.rows.to_ask) == (6, 3, 3)
    assert "6 rows, 3 without an input, 3 to ask" in repr(look)


def test_half_a_character_and_what_cannot_be_rendered_stop_nothing() -> None:
    class Broken:
        def __str__(self) -> str:
            raise ValueError("no text")

    items = [{"x": "half \ud83d"}, {"x": Broken()}]
    look = preview(items, "{x}", model=fake())
    assert look.answers is not None
    assert look.prompts["row"].tolist() == [0]
    assert look.answers["error"].tolist()[1] == "ValueError: no text"
    assert all(line.isprintable() for line in repr(look).splitlines())
    look._repr_html_().encode()


# -- nothing is sent -------------------------------------------------------------------------------


@every_client
@pytest.mark.parametrize("keeps", [True, False])
def test_nothing_is_sent_where_nothing_is_to_be_sent(
    client: Callable[[str], Client], keeps: bool, place: Path
) -> None:
    with serve() as server:
        look = reviews(20).llm.preview(
            CLASSIFY, model=client(server.url), send=False, store=place if keeps else False
        )
        assert server.connections == 0
    assert look.expected.time_s is None
    assert look.expected.completion_tokens is None
    assert look.expected.total_tokens is None
    size = sum(len(turn["content"]) for turn in turns(look, 10)) * 20  # in ASCII: bytes
    assert look.expected.prompt_tokens == pytest.approx(size / 3, rel=0.1)


def test_without_sending_completions_are_at_most_max_tokens(place: Path) -> None:
    budget = Budget(usd=1000, prices=PRICE)
    with serve() as server:
        look = reviews(20).llm.preview(
            "{review}", model=openai(server.url, max_tokens=50), send=False, budget=budget
        )
    assert look.expected.completion_tokens == 1000
    cost = look.expected.cost_usd
    assert cost == pytest.approx(20 * 0.001 + look.expected.prompt_tokens / 1e6 + 0.01, rel=1e-3)
    assert "at most" in look.expected.basis
    assert budget.spent_usd == 0


def test_the_store_is_looked_at_without_sending(place: Path) -> None:
    df = reviews(10)
    with serve() as server:
        for client in (openai(server.url), ollama(server.url)):
            df[:4].llm.preview("{review}", n=4, model=client, store=place)
            sent = len(server.requests)
            look = df.llm.preview("{review}", model=client, store=place, send=False)
            assert look.rows.from_store == 4
            assert len(server.requests) == sent
            assert look.rows.to_ask == 6


# -- rows ------------------------------------------------------------------------------------------


def test_kept_replies_duplicates_and_what_is_left_are_counted(place: Path) -> None:
    df = reviews(10)
    df.iloc[8, 0] = None
    df.iloc[9, 0] = df.iloc[7, 0]
    model = fake()
    df[:4].llm.parallel_map("{review}", model=model, store=place, inplace=False)
    look = df.llm.preview("{review}", n=1, model=model, store=place)
    counts = dataclasses.asdict(look.rows)
    assert counts == {
        "total": 10, "missing_input": 1, "from_store": 5, "duplicates": 1, "to_ask": 3,
        "looked_at": 9,
    }  # fmt: skip
    asked = len(model.calls)
    run = df.llm.parallel_map("{review}", model=model, store=place)
    assert len(model.calls) - asked == look.rows.to_ask
    assert run.metrics.from_store == look.rows.from_store
    assert run.metrics.duplicates == look.rows.duplicates


def test_replies_of_the_sample_are_kept_and_a_second_look_asks_for_nothing(place: Path) -> None:
    df, model = reviews(12), fake()
    first = df.llm.preview("{review}", model=model, store=place)
    again = df.llm.preview("{review}", model=model, store=place)
    assert len(model.calls) == 3
    assert first.rows.to_ask == again.rows.to_ask == 9
    assert repr(first) == repr(again)
    assert first.expected.time_s is not None
    assert again.expected.time_s is None  # nothing was timed
    run = df.llm.parallel_map("{review}", model=model, store=place)
    assert len(model.calls) == 12
    assert (run.rows["source"] == "store").to_numpy().nonzero()[0].tolist() == [2, 6, 10]


def test_of_very_many_rows_some_are_looked_at(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    df, model = reviews(1000), fake()
    options: dict[str, Any] = {"model": model, "store": place}
    df[:500].llm.parallel_map("{review}", **options, inplace=False)
    whole = df.llm.preview("{review}", **options)
    monkeypatch.setattr(sys.modules["revkit.api.preview"], "_LOOKED_AT", 100)
    look = df.llm.preview("{review}", **options)
    assert (whole.rows.looked_at, look.rows.looked_at) == (1000, 100)
    assert look.rows.to_ask == pytest.approx(whole.rows.to_ask, rel=0.05)
    assert look.expected.prompt_tokens == pytest.approx(whole.expected.prompt_tokens, rel=0.05)
    assert look.rows.from_store + look.rows.to_ask == 1000
    assert "100 evenly spaced" in repr(look)


def test_an_empty_frame_is_nothing_to_ask() -> None:
    look = reviews(0).llm.preview("{review}", model=fake())
    assert look.rows.to_ask == 0
    assert look.expected.total_tokens == 0
    assert look.expected.time_s == 0.0
    assert look.answers is not None
    assert list(look.answers) == ["row", "response", "error"]
    Page(look._repr_html_())  # every tag is closed


# -- expectations ----------------------------------------------------------------------------------


def by_the_word(text: str) -> Reply:
    """Four bytes a token, and replies that differ."""
    return Reply("x", prompt_tokens=round(len(text) / 4), completion_tokens=2 + len(text) % 3)


@pytest.mark.parametrize("n", [5, 20])
def test_tokens_cost_and_time_are_about_those_of_the_run(n: int) -> None:
    df, model = reviews(200), fake(by_the_word)
    budget = Budget(usd=1000, prices=PRICE)
    model.max_tokens = 10
    options: dict[str, Any] = {"model": model, "budget": budget, "max_workers": 8}
    look = df.llm.preview("{review}", n, **options)
    run = df.llm.parallel_map("{review}", **options)
    expected, used = look.expected, run.usage
    assert expected.sampled == n
    assert expected.prompt_tokens == pytest.approx(used.prompt_tokens, rel=0.05)
    assert expected.completion_tokens == pytest.approx(used.completion_tokens, rel=0.15)
    assert expected.total_tokens == expected.prompt_tokens + (expected.completion_tokens or 0)
    assert expected.cost_usd == pytest.approx(used.cost_usd, rel=0.05)
    assert expected.time_s == pytest.approx(run.metrics.wall_s)  # on the virtual clock
    assert look.workers == 8


def test_each_request_is_priced_by_itself() -> None:
    """Prompts of 10 tokens and of 1000, of which only these reach the dearer tier."""
    steep = Price(1.0, 0.0, tiers=((500, Price(100.0, 0.0)),))
    model = FakeModel(lambda text: Reply("x", prompt_tokens=len(text), completion_tokens=1))
    model.max_tokens = 1
    df = pd.DataFrame({"x": ["a" * 10, "b" * 1000] * 10})
    options: dict[str, Any] = {"model": model, "budget": Budget(usd=99, prices=steep)}
    run = df.llm.parallel_map("{x}", **options)
    assert run.usage.cost_usd == pytest.approx(10 * (10 + 1000 * 100) / 1e6)
    look = df.llm.preview("{x}", **options)
    assert look.expected.cost_usd == pytest.approx(run.usage.cost_usd)


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({"max_workers": 4}, 20.0),
        ({"max_workers": 1}, 80.0),
        ({"max_workers": 99}, 2.0),
        ({"max_workers": 4, "rate_limit": RateLimit(requests_per_minute=60)}, 40.0),
        ({"max_workers": 4, "rate_limit": RateLimit(requests_per_minute=6000)}, 20.0),
        ({"max_workers": 4, "rate_limit": RateLimit(tokens_per_minute=60)}, 40 * 3.0),
        ({"max_workers": Adaptive()}, None),
    ],
)
def test_the_time_is_bounded_by_workers_and_by_the_rate_limit(
    options: dict[str, Any], seconds: float | None
) -> None:
    model = fake(lambda text: Reply("x", prompt_tokens=2, completion_tokens=1))
    look = pd.DataFrame({"x": ["same"] * 40}).llm.preview("{x}", n=1, model=model, **options)
    assert look.rows.to_ask == 40  # nothing is kept, so twins are asked as well
    assert look.expected.time_s == seconds


def test_where_the_server_does_not_count_sizes_are_what_is_known() -> None:
    def uncounted(messages: Any, body: Any) -> dict[str, Any]:
        return {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}

    with serve(uncounted) as server:
        look = reviews(9).llm.preview("{review}", model=openai(server.url))
    assert look.expected.sampled == 0
    assert look.expected.completion_tokens is None
    assert look.expected.prompt_tokens > 9
    assert look.expected.time_s is not None
    assert "3 bytes" in look.expected.basis


def test_attempts_that_are_repeated_are_expected_again() -> None:
    bad, good = Reply("no", None, 3, "stop"), Reply('{"n": 1}', None, 3, "stop")
    model = FakeModel([bad, good] * 2)
    task = Signature("Count.", inputs="review", outputs={"n": int})
    look = reviews(10).llm.preview(task, n=2, model=model, max_workers=1)
    assert len(model.calls) == 4
    assert look.expected.completion_tokens == 10 * 6


# -- answers ---------------------------------------------------------------------------------------


def test_answers_and_errors_of_the_sample_are_shown_and_not_raised() -> None:
    def rule(text: str) -> Any:
        if "0002" in text:
            raise ValueError("no such thing")
        return {"sentiment": "negative", "stars": 2}

    df = reviews(12)
    look = df.llm.preview(CLASSIFY, model=fake(rule), fail_fast=True)
    assert look.answers is not None
    assert look.answers["row"].tolist() == [2, 6, 10]
    assert look.answers.index.tolist() == ["r2", "r6", "r10"]
    assert look.answers["sentiment"].tolist()[1:] == ["negative"] * 2
    assert look.answers["stars"].tolist()[1:] == [2, 2]
    assert look.answers["error"].tolist()[0] == "ValueError: no such thing"
    shown = repr(look)
    assert "  -> error: ValueError: no such thing" in shown
    assert "  -> sentiment: negative\n  -> stars: 2" in shown
    assert shown.count("Fine.") == 1  # what all rows share stands there once


def test_a_server_that_refuses_all_is_shown() -> None:
    with serve(lambda *_: Status(401, {"error": "who?"})) as server:
        look = reviews(3).llm.preview("{review}", model=openai(server.url), max_workers=1)
    assert look.answers is not None
    assert look.answers["error"].str.startswith("AccessDenied").tolist()[0]
    assert look.expected.time_s is None
    assert len(server.chats) == 1  # the others would be refused too


def test_an_output_may_have_any_name() -> None:
    for name in ("row", "error"):
        look = reviews(3).llm.preview("{review}", model=fake(), output=name, error=None)
        assert look.answers is not None
        assert list(look.answers) == ["row", f"output_{name}", "error"]
        assert f"output_{name}: fine" in repr(look)


# -- the longest prompt ----------------------------------------------------------------------------


def long_reviews() -> pd.DataFrame:
    df = reviews(12)
    df.iloc[6, 0] = "word " * 4_000  # 20,000 characters, and 4,000 tokens of the test server
    return df


@every_client
def test_the_longest_prompt_and_the_context_that_it_needs(client: Callable[[str], Client]) -> None:
    df = long_reviews()
    with serve("fine") as server:
        model = client(server.url, max_tokens=100)
        quiet = df.llm.preview("{review}", model=model, send=False, store=False)
        look = df.llm.preview("{review}", model=model, store=False)
    assert quiet.longest is not None
    assert (quiet.longest.row, quiet.longest.characters) == (6, 20_000)
    assert not quiet.longest.measured
    assert quiet.longest.tokens == 6667  # 3 bytes each
    assert quiet.longest.context == 7168
    assert look.longest is not None
    assert (look.longest.measured, look.longest.tokens, look.longest.context) == (True, 4000, 5120)
    words = "longest prompt: row 6, 20,000 characters, 4,000 tokens; needs a context of 5,120"
    assert words in repr(look)
    assert words in look._repr_html_()


def test_a_longest_prompt_beside_the_sample_is_estimated_by_it() -> None:
    df = long_reviews()
    with serve("fine") as server:
        look = df.llm.preview("{review}", n=2, model=ollama(server.url))
    assert look.longest is not None
    assert not look.longest.measured
    assert look.longest.tokens == pytest.approx(4000, rel=0.5)
    assert "about " in repr(look)


@pytest.mark.parametrize(
    ("num_ctx", "rows", "warned"),
    [(None, 12, True), (None, 3, False), (4096, 12, True), (8192, 12, False)],
)
def test_ollama_is_warned_of_where_its_context_is_too_small(
    num_ctx: int | None, rows: int, warned: bool
) -> None:
    options = None if num_ctx is None else {"num_ctx": num_ctx}
    with serve("fine") as server:
        look = long_reviews()[:rows].llm.preview(
            "{review}", model=ollama(server.url, options=options)
        )
    assert look.longest is not None
    assert (look.longest.advice is not None) is warned
    assert ("warning: " in repr(look)) is warned
    if warned:
        assert 'pass options={"num_ctx": 5120}' in " ".join(repr(look).split())


def test_other_models_contexts_are_not_known() -> None:
    look = long_reviews().llm.preview("{review}", model=fake(), send=False)
    assert look.longest is not None
    assert look.longest.advice is None


def test_a_sample_that_was_cut_measures_nothing() -> None:
    rule = Cutting(4096, count=str.split)
    df = pd.DataFrame({"review": ["word " * 9_000]})
    with serve(rule, context=4096) as server:
        look = df.llm.preview("{review}", model=ollama(server.url))
    assert look.answers is not None
    assert look.answers["error"][0].startswith("PromptTruncated")
    assert look.longest is not None
    assert (look.longest.measured, look.longest.tokens) == (False, 15_000)


def test_probes_are_no_part_of_what_is_expected() -> None:
    rule = Cutting(64_000, count=str.split)
    df = pd.DataFrame({"review": ["word " * (3_000 + n) for n in range(10)]})
    with serve(rule) as server:
        look = df.llm.preview("{review}", model=ollama(server.url), store=False)
    assert rule.probes >= 1
    assert look.expected.prompt_tokens == pytest.approx(30_000, rel=0.01)
    assert look.longest is not None
    assert look.longest.tokens == pytest.approx(3_015, rel=0.01)


def test_without_rows_no_prompt_is_the_longest() -> None:
    look = reviews(0).llm.preview("{review}", model=fake())
    assert look.longest is None
    assert "longest" not in repr(look)


# -- the frame, and what is refused ----------------------------------------------------------------


@pytest.mark.parametrize("send", [True, False])
def test_the_frame_stays_as_it_was(send: bool) -> None:
    df = reviews(5)
    df.attrs["mine"] = 1
    before, attrs = df.copy(deep=True), dict(df.attrs)
    last = revkit.last_result()
    df.llm.preview("{review}", model=fake(), send=send)
    pd.testing.assert_frame_equal(df, before)
    assert df.attrs == attrs
    assert revkit.last_result() is last  # a preview is not a run


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"task": "{reveiw}"}, MissingColumn),
        ({"task": "{review}", "model": None}, NoModel),
        ({"task": "{review}", "output": "review"}, UsageError),
        ({"task": "{review}", "output": "other"}, ColumnExists),
        ({"task": "{review}", "max_workers": 0}, UsageError),
        ({"task": "{review}", "budget": Budget(tokens=9)}, UsageError),
        ({"task": "{review}", "retry": 3}, UsageError),
    ],
)
@pytest.mark.parametrize("send", [True, False])
def test_what_parallel_map_refuses_is_refused_in_the_same_words(
    options: dict[str, Any], kind: type[Exception], send: bool
) -> None:
    df, model = reviews(3).assign(other=1), fake()
    options = {"model": model} | options
    with pytest.raises(kind) as wanted:
        df.llm.parallel_map(**options)
    with pytest.raises(kind) as got:
        df.llm.preview(send=send, **options)
    assert str(got.value) == str(wanted.value)
    assert model.calls == []


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "3"])
def test_a_number_of_rows_that_is_none_is_refused(n: Any) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        reviews(3).llm.preview("{review}", n, model=fake())


def test_a_function_has_no_prompt() -> None:
    def function(row: Any) -> Any:
        raise AssertionError

    with pytest.raises(UsageError, match=r"function is a function.*call it on a row yourself"):
        reviews(3).llm.preview(function)


def test_an_unknown_argument_is_refused_as_python_does() -> None:
    with pytest.raises(TypeError, match=r'preview has no argument max_worker=; .*"max_workers"'):
        reviews(3).llm.preview("{review}", model=fake(), max_worker=3)


# -- the other doors -------------------------------------------------------------------------------


def test_a_series_and_a_list_have_it_too() -> None:
    wanted = repr(reviews(9).llm.preview("{review}", 2, model=fake()))
    series = reviews(9)["review"]
    assert repr(series.llm.preview("{review}", 2, model=fake())) == wanted
    items = series.tolist()
    assert repr(preview(items, "{review}", 2, model=fake())) == wanted.replace(
        " (index r2)", ""
    ).replace(" (index r6)", "")


def test_it_can_be_awaited(place: Path) -> None:
    df = reviews(9)
    with serve() as server:
        model = openai(server.url)

        async def all_doors() -> list[revkit.Preview]:
            options: dict[str, Any] = {"model": model, "store": place}
            return [
                await df.llm.apreview("{review}", 2, **options),
                await df["review"].llm.apreview("{review}", 2, **options),
                await revkit.apreview(df, "{review}", 2, **options),
            ]

        looks = asyncio.run(all_doors())
        assert len(server.chats) == 2
        assert {repr(look) for look in looks} == {
            repr(df.llm.preview("{review}", 2, model=model, store=place))
        }
        with pytest.raises(UsageError, match="loop= is for preview; apreview"):
            asyncio.run(df.llm.apreview("{review}", model=model, loop="background"))


# -- how it looks ----------------------------------------------------------------------------------


@pytest.fixture
def nasty() -> revkit.Preview:
    column = f"{NASTY} column"
    df = pd.DataFrame({column: [NASTY * 200, "</style></div>"]}, index=[NASTY, NASTY])
    task = Signature(NASTY, inputs="x", outputs={NASTY: str, "label": [NASTY, "b"]})
    model = fake(lambda text: {NASTY: NASTY, "label": NASTY} if "style" in text else NASTY)
    model.name = NASTY
    return df.llm.preview(task, on={"x": column}, model=model)


def test_foreign_text_can_neither_run_nor_draw_nor_break_a_line(nasty: revkit.Preview) -> None:
    page = Page(nasty._repr_html_())
    assert set(page.tags) <= {
        "div", "style", "p", "b", "small", "span", "table", "thead", "tbody", "tr", "th", "td",
    }  # fmt: skip
    assert page.text.count('<script>alert("1")</script>') >= 5
    assert "{braces} %s" in page.text
    for shown in (repr(nasty), nasty._repr_html_()):
        assert all(c.isprintable() or c == "\n" for c in shown)
        assert r"\x1b[31mr" in shown
        assert "more characters: preview.prompts" in shown
    assert max(map(len, repr(nasty).splitlines())) <= 100


def test_what_time_decides_stands_in_the_html_only_and_is_marked() -> None:
    def shown(seconds: float, workers: int) -> tuple[str, str]:
        model = FakeModel(by_the_word, latency=seconds, clock="virtual")
        look = reviews(50).llm.preview("{review}", model=model, max_workers=workers)
        return repr(look), look._repr_html_()

    (one, page), (other, slower) = shown(0.5, 3), shown(7.25, 40)
    assert one == other
    assert page != slower
    assert "8.33 s with 3 workers" in page
    assert sanitized(page) == sanitized(slower)


def test_many_rows_are_cut_and_say_so() -> None:
    look = reviews(40).llm.preview("{review}", 25, model=fake())
    for shown in (repr(look), Page(look._repr_html_()).text):
        assert "15 more rows: preview.prompts, preview.answers" in shown
    assert repr(look).count("-> response: fine") == 10
    assert len(look.prompts) == 25


def test_fields_that_hold_times_are_sanitised() -> None:
    look = reviews(5).llm.preview("{review}", model=fake())
    other = dataclasses.replace(look.expected, time_s=0.25)
    assert repr(look.expected) != repr(other)
    assert sanitized(repr(look.expected)) == sanitized(repr(other))
