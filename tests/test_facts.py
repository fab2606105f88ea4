"""A kept reply is reused only for the model that gave it, as far as the server tells them apart."""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest
from calls import by_loop, by_thread
from hypothesis import given
from hypothesis import strategies as st
from servers import Raw, Seen, Server, Status, serve

import revkit
from revkit import OpenAICompatible, Reply, Secret
from revkit.clients.contract import Client
from revkit.store.beside import contradict
from revkit.store.keys import ReplyKeys
from revkit.store.replies import Store
from revkit.store.rows import COLUMNS
from revkit.store.shared import SharedStore
from revkit.task.kinds import Template
from revkit.testing import FakeModel

TASK = Template("Summarise: {review}")
MESSAGES = TASK.messages({"review": "Broke twice."})


def key(client: Client) -> bytes:
    return ReplyKeys(TASK, client.key_settings()).key(MESSAGES)


# ------------------------------------------------------------------ known before sending


def openai(url: str = "http://127.0.0.1:1/v1", **options: Any) -> OpenAICompatible:
    return OpenAICompatible("m", base_url=url, **options)


def test_headers_and_query_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIG", "pc-1")
    url = "http://127.0.0.1:1/v1"
    with (
        httpx.Client(headers={"x-portkey-config": "pc-1"}) as one,
        httpx.Client(headers={"x-portkey-config": "pc-2"}) as two,
        httpx.Client(params={"deployment": "c"}) as three,
    ):
        clients = [
            openai(),
            openai(headers={"x-portkey-config": "pc-1"}),
            openai(headers={"x-portkey-config": "pc-2"}),
            openai(headers={"x-portkey-provider": "pc-1"}),
            openai(f"{url}?deployment=a"),
            openai(f"{url}?deployment=b"),
            openai(f"{url}?deployment=a&empty="),
            openai(f"{url}?deployment=a", headers={"x-portkey-config": "pc-1"}),
            openai(http=two, headers={"x-other": "1"}),
            openai(http=three),
        ]
        keys = [key(client) for client in clients]
        assert len(set(keys)) == len(keys)
        assert key(openai(http=one)) == key(clients[1])
    tiny = revkit.Ollama(headers={"x-tenant": "a"}), revkit.Ollama(headers={"x-tenant": "b"})
    assert key(tiny[0]) != key(tiny[1]) != key(revkit.Ollama())


def test_a_key_does_not_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER", "hush")
    url = "http://127.0.0.1:1/v1"
    with httpx.Client(headers={"X-Api-Key": "k"}, cookies={"a": "b"}, auth=("me", "k")) as http:
        same = [
            openai(),
            openai(api_key="sk-1"),
            openai(headers={"Authorization": "Bearer sk-2"}),
            openai(headers={"X-Api-Key": "sk-2", "X-JWT": "eyJ", "api-keys": "a,b"}),
            openai(headers={"x-portkey-config": Secret(env="OTHER")}),
            openai(f"{url}?key=one"),
            openai(f"{url}?api_key=two&access_token=three"),
            openai("http://me:secret@127.0.0.1:1/v1"),
            openai(http=http),
        ]
        assert len({key(client) for client in same}) == 1
    configs = [
        '{"provider": "a", "api_key": "sk-onelongkey"}',
        '{"provider": "a", "api_key": "sk-twolongkey"}',
    ]
    one, two = (openai(headers={"x-portkey-config": config}) for config in configs)
    assert key(one) == key(two) != key(openai())


def test_the_order_of_headers_and_query_does_not_decide() -> None:
    url = "http://127.0.0.1:1/v1"
    assert key(openai(f"{url}?a=1&b=2")) == key(openai(f"{url}?b=2&a=1"))
    assert key(openai(headers={"A": "1", "b": "2"})) == key(openai(headers={"B": "2", "a": "1"}))


def test_only_a_digest_stands_in_the_provenance() -> None:
    with serve("well") as server:
        client = openai(f"{server.url}/v1?deployment=hushhush", headers={"x-config": "hush-config"})
        run = revkit.parallel_map(["a"], "{item}", model=client, store=False)
    settings = run.provenance["model"]["settings"]
    assert len(settings["routing"]) == 32
    assert "hush" not in json.dumps(run.provenance)


def test_where_nothing_is_set_settings_are_those_of_before() -> None:
    assert openai().key_settings() == openai().settings()
    assert "routing" not in openai(api_key="k", headers={"x-api-key": "k"}).key_settings()


# ------------------------------------------------------------------ said by the server


class Listing:
    """A server with a list of models, and llama.cpp's properties."""

    def __init__(self, model: dict[str, Any], props: dict[str, Any] | None = None):
        self.model, self.props = model, props
        self.asked: list[str] = []
        self.created = itertools.count(1)

    def answer(self, seen: Seen) -> Status | Raw | None:
        self.asked.append(seen.path)
        if seen.path == "/v1/models":
            fresh = {"created": next(self.created), "permission": [{"id": str(next(self.created))}]}
            return Status(200, {"object": "list", "data": [self.model | fresh]})
        if seen.path == "/props" and self.props is not None:
            return Status(200, self.props)
        return None


@contextmanager
def listing(says: list[Listing], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that lists its model as the last of these does."""
    decide = Server._decide

    def answer(self: Server, seen: Seen) -> Status | Raw:
        found = says[-1].answer(seen) if seen.method == "GET" else None
        return decide(self, seen) if found is None else found

    monkeypatch.setattr(Server, "_decide", answer)
    with serve("positive") as server:
        yield server


def llama(path: str, **meta: Any) -> Listing:
    meta = {"vocab_type": 2, "n_params": 134515008, "size": 90_000_000} | meta
    model = {"id": "gpt-3.5-turbo", "object": "model", "owned_by": "llamacpp", "meta": meta}
    return Listing(model, {"model_path": path, "total_slots": 1, "build_info": "b1"})


def sources(run: Any) -> list[str]:
    return run.rows["source"].tolist()


@pytest.mark.parametrize("run_on", [by_thread, by_loop])
@pytest.mark.parametrize(
    ("before", "after", "again"),
    [
        (llama("/m/a.gguf"), llama("/m/a.gguf"), False),
        (llama("/m/a.gguf"), llama("/m/b.gguf"), True),
        (llama("/m/a.gguf"), llama("/m/a.gguf", size=91_000_000), True),
        (llama("/m/a.gguf"), llama("/m/a.gguf", new_in_llama=1), False),
        (llama("/m/a.gguf"), Listing({"id": "m", "root": "org/a"}), False),  # nothing contradicts
        (Listing({"id": "m", "root": "org/a"}), Listing({"id": "m", "root": "org/b"}), True),
        (Listing({"id": "m", "root": "org/a"}), Listing({"id": "m"}), False),
        (Listing({"id": "m"}), Listing({"id": "m", "root": "org/b"}), False),
        (Listing({"id": "m", "root": "org/a"}), Listing({"id": "x", "root": "org/b"}), False),
    ],
)
def test_another_model_behind_the_same_name_is_asked(
    run_on: Any, before: Listing, after: Listing, again: bool, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    store = tmp_path / "replies.sqlite"
    df = pd.DataFrame({"review": ["good", "bad"]})
    after.asked.clear()
    says = [before]
    with listing(says, monkeypatch) as server:
        client = openai(f"{server.url}/v1")
        assert sources(run_on(df, model=client, store=store)) == ["model"] * 2
        says.append(after)
        wanted = ["model" if again else "store"] * 2
        assert sources(run_on(df, model=client, store=store)) == wanted
        assert sources(run_on(df, model=client, store=store)) == ["store"] * 2
        assert revkit.store.info(store).replies == 2
        # Once a run; what a server does not have is asked for once, too.
        assert after.asked.count("/v1/models") == 2
        assert after.asked.count("/props") == (2 if after.props else 0)


def test_facts_stand_in_the_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with listing([llama("/m/a.gguf")], monkeypatch) as server:
        run = revkit.parallel_map(
            ["a"], "{item}", model=openai(f"{server.url}/v1"), store=tmp_path / "s.sqlite"
        )
    facts = run.provenance["model"]["facts"]
    assert facts["model_path"] == "/m/a.gguf"
    assert not any("created" in name or "permission" in name for name in facts)
    path = tmp_path / "run.parquet"
    run.to_parquet(path)
    assert revkit.ParallelResult.read_parquet(path).provenance["model"]["facts"] == facts


@pytest.mark.parametrize("odd", [
    {"data": 5}, {"data": [3, None]}, {"data": [{"id": 5}]}, [1], {},
    {"data": [{"id": "m", "meta": 3}]},
    {"data": [{"id": "m", "root": ["x"], "meta": {"size": {}}}]},
])  # fmt: skip
def test_odd_answers_say_nothing(odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Server, "_decide", lambda self, seen: Status(200, odd if seen.path == "/v1/models" else {})
    )
    with serve("x") as server:
        assert openai(f"{server.url}/v1").facts() == {}


def test_openai_itself_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenAICompatible, "get", lambda self, path: pytest.fail(path))
    for url in (
        "https://api.openai.com/v1",
        "https://eu.api.openai.com/v1",
        "https://me.openai.azure.com/openai/v1",
    ):
        assert openai(url).facts() == {}


# ------------------------------------------------------------------ both kinds of store

names = st.sampled_from("abc")
facts = st.dictionaries(names, st.sampled_from("12"), max_size=3)


@given(facts, facts)
def test_what_contradicts(kept: dict[str, str], now: dict[str, str]) -> None:
    both = kept.keys() & now.keys()
    assert contradict(kept, now) == any(kept[name] != now[name] for name in both)
    assert contradict(kept, now) == contradict(now, kept)


WHOLE = Reply(
    "positive",
    120,
    3,
    "length",
    {"x": {"a": 0.75}},
    "it is \ud800 good",
    "gpt-4o-2024",
    "json",
    True,
)


@pytest.mark.parametrize("kind", [Store, SharedStore])
def test_all_of_a_reply_is_kept(kind: Any, tmp_path: Path) -> None:
    path = tmp_path / ("s.sqlite" if kind is Store else "shared")
    about: dict[str, Any] = {"task": "t", "model": "m"}
    with contextlib.closing(kind(path)) as store:
        assert store.put([(b"1", WHOLE), (b"2", Reply("x"))], **about, facts={"a": "1"})
    with contextlib.closing(kind(path)) as store:
        assert store.get([b"1", b"2"]) == {b"1": WHOLE, b"2": Reply("x")}
        assert store.get([b"1"])[b"1"].truncated is True
        assert store.get([b"1"], facts={"b": "1"}) == {b"1": WHOLE}
        assert store.get([b"1"], facts={"a": "2", "b": "1"}) == {}
        # The first one stands while nothing contradicts it.
        assert store.put([(b"1", Reply("other"))], **about, facts={"b": "2"})
        assert store.get([b"1"])[b"1"] == WHOLE
        assert store.put([(b"1", Reply("other"))], **about, facts={"a": "2"})
        assert store.get([b"1"]) == {b"1": Reply("other")}


# ------------------------------------------------------------------ revkit 0.1.0 beside this one

#: The table and the statements of revkit 0.1.0.
OLD = COLUMNS[:10]
OLD_TABLE = """
CREATE TABLE replies (
    key BLOB PRIMARY KEY, text TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER,
    finish_reason TEXT, probabilities TEXT, task TEXT NOT NULL, model TEXT NOT NULL, weights TEXT,
    created INTEGER NOT NULL
)"""
OLD_INSERT = (
    f"INSERT INTO replies ({', '.join(OLD)}) VALUES ({', '.join('?' * 10)}) "
    "ON CONFLICT (key) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in OLD[1:])
    + " WHERE excluded.weights IS NOT NULL AND weights IS NOT excluded.weights"
)


def old_row(key: bytes, text: str, weights: str | None) -> tuple[Any, ...]:
    return (key, text, 5, 1, "stop", None, "t", "m", weights, 1_700_000_000)


def old_file(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(OLD_TABLE)
        db.execute(f"PRAGMA application_id={0x72766B74}")
        db.execute("PRAGMA user_version=1")
        db.execute(OLD_INSERT, old_row(b"1", "old", None))
        db.execute(OLD_INSERT, old_row(b"2", "old with weights", "w1"))
        db.commit()


def test_a_file_of_revkit_0_1_gets_the_new_columns(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    old_file(path)
    with Store.open(path) as store:
        assert store.columns == COLUMNS
        assert store.get([b"1", b"2"]) == {
            b"1": Reply("old", 5, 1, "stop"),
            b"2": Reply("old with weights", 5, 1, "stop"),
        }
        assert list(store.get([b"1", b"2"], facts={"weights": "w2"})) == [b"1"]
        store.put([(b"3", WHOLE)], task="t", model="m", facts={"weights": "w1", "root": "r"})
    with contextlib.closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        assert db.execute("SELECT weights FROM replies WHERE key = ?", (b"3",)).fetchone() == (
            "w1",
        )


def test_a_reply_that_revkit_0_1_replaces_is_shown_without_the_fields_of_the_one_before(
    tmp_path: Path,
) -> None:
    path, exported = tmp_path / "s.sqlite", tmp_path / "s.parquet"
    with Store.open(path) as store:
        store.put([(b"1", WHOLE)], task="t", model="m", facts={"weights": "w1", "root": "r"})
        store.put([(b"2", WHOLE)], task="t", model="m")
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(OLD_INSERT, old_row(b"1", "new", "w2"))
        db.execute(OLD_INSERT, old_row(b"2", "new", "w2"))
        db.execute(OLD_INSERT, old_row(b"3", "third", None))
        db.commit()
    with Store.open(path) as store:
        assert store.get([b"1", b"2"]) == dict.fromkeys([b"1", b"2"], Reply("new", 5, 1, "stop"))
        assert store.get([b"1"], facts={"weights": "w2", "root": "s"})
        assert not store.get([b"1"], facts={"weights": "w1", "root": "r"})
    revkit.store.to_parquet(exported, store=path)
    frame = pd.read_parquet(exported)
    assert frame[["served", "format", "thought", "truncated", "facts"]].isna().all(axis=None)


def test_an_old_file_that_cannot_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.sqlite"
    old_file(path)
    monkeypatch.setattr("revkit.store.file._is_writable", lambda db: False)
    with pytest.warns(revkit.store.StoreWarning, match="cannot be written"):
        store = Store.open(path)
    with store:
        assert store.columns == OLD
        assert store.get([b"1"]) == {b"1": Reply("old", 5, 1, "stop")}
        assert list(store.get([b"1", b"2"], facts={"weights": "w2"})) == [b"1"]
    with pytest.warns(revkit.store.StoreWarning):
        revkit.store.to_parquet(tmp_path / "s.parquet", store=path)
    assert pd.read_parquet(tmp_path / "s.parquet")["text"].tolist() == ["old", "old with weights"]


def test_a_file_that_cannot_get_the_new_columns_now_is_written_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.sqlite"
    old_file(path)
    monkeypatch.setattr("revkit.store.file._PATIENCE", 0.01)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store = Store.open(path)
        other.execute("ROLLBACK")
    with store:
        assert store.columns == OLD
        assert store.put([(b"4", WHOLE)], task="t", model="m", facts={"weights": "w", "root": "r"})
        assert store.get([b"4"]) == {b"4": Reply("positive", 120, 3, "length", {"x": {"a": 0.75}})}


# ------------------------------------------------------------------ who answered


def served_by(*said: Any) -> Any:
    """Models that answer one after the other."""
    return FakeModel([Reply("positive", model=name, format=form) for name, form in said])


SCHEMA, JSON = "schema", "json"
OLD_GPT, NEW_GPT = "gpt-4o-2024-08-06", "gpt-4o-2024-11-20"


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        ([(OLD_GPT, SCHEMA)] * 3, []),
        ([(None, None)] * 3, []),
        (
            [(OLD_GPT, SCHEMA), (NEW_GPT, SCHEMA), (OLD_GPT, SCHEMA)],
            [f"2 models answered: {OLD_GPT} (2 rows), {NEW_GPT} (1 row)"],
        ),
        ([(OLD_GPT, JSON)] * 3, ["form: JSON mode 3 rows"]),
        ([(OLD_GPT, "prompt")] * 3, ["form: prompt alone 3 rows"]),
        (
            [(OLD_GPT, SCHEMA), (OLD_GPT, JSON), (OLD_GPT, SCHEMA)],
            ["form: JSON schema 2 rows, JSON mode 1 row"],
        ),
        (
            [("<b>x</b>", SCHEMA), ("y\n", SCHEMA)],
            ["2 models answered: <b>x</b> (1 row), y (1 row)"],
        ),
    ],
)
def test_which_models_answered_and_in_which_form_is_reported(
    said: Any, lines: list[str], tmp_path: Path, no_picture: None
) -> None:
    df = pd.DataFrame({"review": list("abc")[: len(said)]})
    run = df.llm.parallel_map(model=served_by(*said), store=tmp_path / "s.sqlite", max_workers=1)
    path = tmp_path / "run.parquet"
    run.to_parquet(path)
    kept = df.llm.parallel_map(model=served_by(), store=tmp_path / "s.sqlite", overwrite=True)
    for one in (run, revkit.ParallelResult.read_parquet(path), kept):
        report = one.report() if one.report() is not None else ""
        for line in lines:
            assert line in report
            assert html.escape(line) in one._repr_html_()
        assert ("models answered" in report) == any("models answered" in line for line in lines)
        assert ("form:" in report) == any("form:" in line for line in lines)
    model = run.provenance["model"]
    assert sum(model["served"].values()) == sum(name is not None for name, _ in said)
    assert model["formats"] == dict(Counter(form for _, form in said if form).most_common())


def test_the_form_of_free_text_is_not_reported(tmp_path: Path) -> None:
    run = revkit.parallel_map(["a"], "{item}", model=served_by((OLD_GPT, "prompt")))
    assert "form:" not in run.report()


# ------------------------------------------------------------------ only whole answers


@pytest.mark.parametrize("kind", ["CutOff", "ContentFiltered", "ModelRefused", "PromptTruncated"])
@pytest.mark.parametrize("run_on", [by_thread, by_loop])
def test_only_replies_of_ok_rows_are_kept(run_on: Any, kind: str, tmp_path: Path) -> None:
    store, failure = tmp_path / "s.sqlite", getattr(revkit, kind)

    def answer(text: str) -> Any:
        if text == "good":
            return Reply("positive", finish_reason="stop")
        raise failure("not whole", reply=Reply("positive", finish_reason="length"))

    df = pd.DataFrame({"review": ["good", "cut"]})
    run = run_on(df, model=FakeModel(answer), store=store)
    assert run.errors["error_type"].tolist() == [kind]
    with Store.open(store) as opened, opened.connection() as db:
        assert db is not None
        kept = db.execute("SELECT text, finish_reason FROM replies").fetchall()
    assert kept == [("positive", "stop")]
