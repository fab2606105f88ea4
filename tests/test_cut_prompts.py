"""Prompts that Ollama cut without a word are errors, where that is proven; others never are."""

from __future__ import annotations

import math
import random
import re
from typing import Any, Literal

import pandas as pd
import pytest
from contexts import Cutting, tokens_of
from hypothesis import given
from hypothesis import strategies as st
from servers import HANG, Answer, serve

import revkit
from revkit import Ollama, RunFailed, Signature
from revkit.clients.context import ContextWatch, is_cut
from revkit.results.result import ParallelResult

Left = Literal["full", "almost", "half", "turns", "refused"]
engines = pytest.mark.parametrize("engine", ["thread", "async"])

WORDS = ["parcel", "came", "late", "and", "nobody", "at", "the", "desk", "would", "say", "why"]


def text(size: int, seed: int = 0) -> str:
    """So many characters of a ticket."""
    words = random.Random(seed).choices(WORDS, k=size // 2)
    return " ".join([f"Ticket {seed}:", *words])[:size]


def label(
    texts: list[str],
    url: str,
    *,
    task: Any = "Label this ticket: {ticket}",
    engine: str = "thread",
    workers: int = 1,
    **arguments: Any,
) -> ParallelResult:
    """The run over the texts, also where all of them failed."""
    frame = pd.DataFrame({"ticket": texts})
    try:
        return frame.llm.parallel_map(
            task,
            model=Ollama("m", host=url, **arguments),
            engine=engine,
            max_workers=workers,
            store=False,
        )
    except RunFailed as failed:
        found = failed.result
        assert isinstance(found, ParallelResult)
        return found


def kinds(run: ParallelResult) -> list[str]:
    return ["ok" if pd.isna(kind) else str(kind) for kind in run.rows["error_type"]]


FOUR = [text(size, size) for size in (22_000, 25_000, 30_000, 27_000)]


# -- prompts that were cut -------------------------------------------------------------------


@engines
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("left", ["half", "full", "almost", "turns"])
@pytest.mark.parametrize(
    ("context", "tells", "given_ctx"),
    [(4096, False, False), (4096, True, False), (4096, False, True), (3000, False, False),
     (3000, True, False), (3000, False, True)],
)  # fmt: skip
def test_not_one_of_four_cut_prompts_is_ok(
    engine: str, workers: int, left: Left, context: int, tells: bool, given_ctx: bool
) -> None:
    for texts in (FOUR, FOUR[::-1]):
        rule = Cutting(context, left)
        with serve(rule, context=context if tells else None) as server:
            options = {"num_ctx": context} if given_ctx else None
            run = label(texts, server.url, engine=engine, workers=workers, options=options)
        assert kinds(run) == ["PromptTruncated"] * 4
        assert min(rule.lost.values()) > 0


@engines
def test_the_message_names_the_context_that_would_do(engine: str) -> None:
    with serve(Cutting(4096), context=4096) as server:
        run = label(FOUR[:1], server.url, engine=engine, max_tokens=300)
        (error,) = run.errors.to_dict("records")
        found = re.fullmatch(
            r"the prompt has about (\S+) tokens, and the model's context takes 4,096: the server "
            r"dropped a part, and the model read 2,050 of them; pass "
            r'options=\{"num_ctx": (\d+)\} to revkit.Ollama\(\), or shorten the text',
            error["message"],
        )
        assert found is not None
        tokens, num_ctx = int(found[1].replace(",", "")), int(found[2])
        true = len(tokens_of(f"Label this ticket: {FOUR[0]}")) + 6
        assert tokens == pytest.approx(true, rel=0.02)
        assert true + 300 <= num_ctx < true + 300 + 1024 * 1.2
        assert error["status"] == 200
        better = label(FOUR[:1], server.url, engine=engine, options={"num_ctx": num_ctx})
    assert kinds(better) == ["ok"]


def test_one_long_row_among_short_ones_is_found_and_the_others_stand() -> None:
    texts = [text(300, seed) for seed in range(20)]
    texts[11] = text(20_000, 11)
    rule = Cutting(3000, "full")
    with serve(rule) as server:
        run = label(texts, server.url, workers=4)
    assert kinds(run) == ["PromptTruncated" if row == 11 else "ok" for row in range(20)]
    assert rule.rows == 20
    assert rule.probes <= 5  # all of them about that row


@pytest.mark.parametrize("excess", [1.05, 1.2])
@pytest.mark.parametrize("left", ["full", "half"])
@pytest.mark.parametrize("order", [1, -1])
def test_a_prompt_a_little_longer_than_an_odd_context_is_found(
    left: Left, excess: float, order: int
) -> None:
    """By its number alone the first one looks like any other; a longer text shows the limit."""
    sizes = [4_000, 6_000, 8_000, 10_000, int(3000 * 4.4 * excess)]
    rule = Cutting(3000, left)
    with serve(rule) as server:
        run = label([text(size, size) for size in sizes][::order], server.url)
    assert [rule.lost[turn] > 32 for turn in rule.lost] == [kind != "ok" for kind in kinds(run)]
    assert "PromptTruncated" in kinds(run)


def test_prompts_a_little_too_long_that_share_a_count_are_found() -> None:
    """By the limit, at which a few tokens prove a cut; a shared count alone needs many."""
    texts = [text(size, size) for size in (12_400, 25_000, 12_500)]
    rule = Cutting(3000, "full")
    with serve(rule) as server:
        run = label(texts, server.url, workers=3)
    assert 32 < min(rule.lost.values()) < 512
    assert kinds(run) == ["PromptTruncated"] * 3


def test_the_limit_is_looked_for_a_few_times_however_many_rows_there_are() -> None:
    texts = [text(4_000 + 40 * n, n) for n in range(300)]
    rule = Cutting(32_768, "full")
    with serve(rule) as server:
        run = label(texts, server.url)
    assert kinds(run) == ["ok"] * 300
    assert rule.probes <= 12


@engines
def test_a_server_that_drops_examples_is_found(engine: str) -> None:
    examples = [{"ticket": text(5_000, n), "label": "x"} for n in range(3)]
    task = Signature("Label it.", inputs="ticket", outputs={"label": str}, examples=examples)
    rule = Cutting(4096, "turns")
    with serve(rule, context=4096) as server:
        run = label([text(3_000, 7), text(200, 8)], server.url, task=task, engine=engine)
    assert next(iter(rule.lost.values())) > 512
    assert kinds(run) == ["PromptTruncated", "ok"]


def test_newer_versions_refuse_and_are_not_probed() -> None:
    rule = Cutting(4096, "refused")
    with serve(rule, context=4096) as server:
        run = label([*FOUR, text(9_000)], server.url)
    assert kinds(run) == ["PromptTooLong"] * 4 + ["ok"]
    assert rule.probes == 0


def test_a_server_that_has_refused_once_is_not_probed() -> None:
    """It would refuse the other prompts, too, if they were too long."""
    texts = [text(60_000), *(text(9_000, n) for n in range(10))]
    rule = Cutting(4096, "refused")
    with serve(rule) as server:
        run = label(texts, server.url)
    assert kinds(run) == ["PromptTooLong"] + ["ok"] * 10
    assert rule.probes == 0


# -- servers that leave cached tokens out of their counts --------------------------------------


@engines
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("left", ["half", "full"])
def test_cut_prompts_are_found_where_cached_tokens_are_not_counted(
    engine: str, workers: int, left: Left
) -> None:
    for tells in (None, 4096):
        for system in (0, 8):  # what a cut keeps is the template's own then
            with serve(Cutting(4096, left, caches=True, system=system), context=tells) as server:
                texts = [*FOUR[:3], text(60_000)]
                run = label(texts, server.url, engine=engine, workers=workers)
            assert kinds(run) == ["PromptTruncated"] * 4


def test_small_counts_of_cached_prompts_are_no_alarm() -> None:
    """All rows share 6,000 characters, which only the first one is counted with."""
    shared = text(6_000, 1)
    rule = Cutting(8192, "half", caches=True)
    with serve(rule) as server:
        run = label([shared + text(400, n) for n in range(2, 60)], server.url, workers=4)
    assert kinds(run) == ["ok"] * 58
    assert rule.probes <= 8


def test_a_count_without_cached_tokens_that_looks_like_a_cut_is_no_alarm() -> None:
    """The whole is counted again, without the cache's help, before its halves prove anything."""
    cutting = Cutting(4096)

    def rule(messages: Any, body: Any) -> Answer:
        found = cutting(messages, body)
        assert isinstance(found, dict)
        if body["options"].get("num_predict") != 1:
            assert found["prompt_eval_count"] > 3000
            found["prompt_eval_count"] = 2050
        return found

    with serve(rule, context=4096) as server:
        run = label([text(14_000)], server.url)
    assert kinds(run) == ["ok"]
    assert cutting.probes == 4


def test_a_cut_prompt_that_is_asked_again_is_an_error_again() -> None:
    """The second time all of it is in the cache, and the server counts nothing."""
    cutting, asked = Cutting(4096), set[str]()

    def rule(messages: Any, body: Any) -> Answer:
        found = cutting(messages, body)
        assert isinstance(found, dict)
        last = messages[-1]["content"]
        if last in asked:
            del found["prompt_eval_count"]
        asked.add(last)
        return found

    with serve(rule) as server:
        for _ in range(2):
            run = label([FOUR[0]] * 30, server.url)
            assert kinds(run) == ["PromptTruncated"] * 30


# -- no false alarm ----------------------------------------------------------------------------

#: Scripts from a tenth of a token a character to three, by what they are counted with below.
SCRIPTS = {
    "english": (WORDS, " "),
    "chinese": (list("客户投诉快递太慢而且没有人接电话希望退款谢谢"), ""),
    "emoji": (["😀", "🎉", "👍🏽", "👨‍👩‍👧", "🇳🇴"], ""),
    "base64": (["aGVsbG8gd29ybGQ", "Zm9vYmFyCg", "x9/+Qz"], ""),
    "space": ([" " * 60, "\n\n\n", "\t" * 9, "x"], ""),
    "code": (["return {'a': 1}", "def f(x):", "        ", "0x7f3b"], "\n"),
}


def mixed(rows: int, seed: int) -> list[str]:
    chosen = random.Random(seed)
    found = []
    for _ in range(rows):
        pieces, glue = SCRIPTS[chosen.choice(list(SCRIPTS))]
        size = min(6_000, int(math.exp(chosen.gauss(5.5, 1.6))))
        found.append(glue.join(chosen.choice(pieces) for _ in range(1 + size // 5)))
    return found


@pytest.mark.parametrize(
    ("left", "caches", "tells", "options"),
    [("half", False, None, None), ("full", True, None, None), ("half", True, 16_384, None),
     ("half", True, None, {"num_ctx": 16_384}), ("turns", False, None, None)],
)  # fmt: skip
def test_no_false_alarm_in_mixed_languages(
    left: Left, caches: bool, tells: int | None, options: Any
) -> None:
    """2,000 rows each, 10,000 in all; a Modelfile adds 600 tokens to each prompt."""
    texts = [part for part in mixed(2_000, 1) if len(tokens_of(part)) < 15_000]
    rule = Cutting(16_384, left, caches=caches, system=600)
    with serve(rule, context=tells) as server:
        run = label(texts, server.url, workers=4, options=options)
    assert max(rule.lost.values()) == 0
    assert kinds(run) == ["ok"] * len(texts)
    assert rule.probes <= 60


def test_equal_prompts_share_a_count_and_are_not_looked_at() -> None:
    rule = Cutting(8192)
    with serve(rule, context=8192) as server:
        run = label([text(20_000)] * 8, server.url, options={"seed": 1})
    assert kinds(run) == ["ok"] * 8
    assert rule.probes == 0


@pytest.mark.parametrize("left", ["half", "full"])
def test_a_prompt_that_fills_the_context_to_its_last_token_is_ok(left: Left) -> None:
    """It is suspect, and its halves do not prove it."""
    words = tokens_of(" " + text(30_000))
    for context in (4096, 3000):
        for count in (context, context - 1, context // 2 + 2):
            rule = Cutting(context, left)
            with serve(rule, context=context) as server:
                run = label(["".join(words[: count - 6])], server.url, task="{ticket}")
            assert kinds(run) == ["ok"]
            assert run.rows["text"][0] == str(count)  # the model saw so many
            assert rule.probes == 2


@engines
def test_a_probe_that_fails_proves_nothing_and_fails_nothing(engine: str) -> None:
    for fails in (lambda n: True, lambda n: n >= 2):
        rule = Cutting(4096, fails=fails)
        with serve(rule) as server:
            run = label(FOUR, server.url, engine=engine)
        assert kinds(run) == ["ok"] * 4
    flaky = Cutting(4096, fails=lambda n: n % 2 == 0)  # each is asked for once more
    with serve(flaky) as server:
        run = label(FOUR, server.url, engine=engine)
    assert kinds(run) == ["PromptTruncated"] * 4


@engines
def test_a_probe_that_hangs_fails_nothing(engine: str) -> None:
    cutting = Cutting(4096)

    def rule(messages: Any, body: Any) -> Answer:
        return HANG if body["options"].get("num_predict") == 1 else cutting(messages, body)

    with serve(rule) as server:
        run = label(FOUR[:1], server.url, engine=engine, timeout=0.3)
    assert kinds(run) == ["ok"]


def test_a_server_that_does_not_count_is_left_alone() -> None:
    reply = {"message": {"content": "fine"}, "done": True}
    with serve(lambda *_: reply) as server:
        run = label([text(40_000, n) for n in range(40)], server.url)
        assert kinds(run) == ["ok"] * 40
        assert len(server.chats) <= 40 + 7


# -- what probes cost ----------------------------------------------------------------------------


@engines
def test_tokens_of_probes_are_used_tokens_and_no_part_of_the_prompt(engine: str) -> None:
    rule = Cutting(16_384)
    with serve(rule) as server:
        run = label([text(8_000), text(100)], server.url, engine=engine)
    assert kinds(run) == ["ok"] * 2
    assert rule.probes == 1
    prompts = [len(tokens_of(f"Label this ticket: {t}")) + 6 for t in (text(8_000), text(100))]
    assert run.usage.prompt_tokens == sum(prompts) + rule.probe_tokens
    assert run.rows["prompt_tokens"].tolist() == [prompts[0] + rule.probe_tokens, prompts[1]]


def test_a_budget_pays_for_probes() -> None:
    budget = revkit.Budget(tokens=1_000_000)
    with serve(Cutting(16_384)) as server:
        run = pd.DataFrame({"ticket": [text(8_000)]}).llm.parallel_map(
            "{ticket}", model=Ollama("m", host=server.url, max_tokens=50), budget=budget
        )
    assert run.usage.total_tokens is not None
    assert budget.spent_tokens == run.usage.total_tokens > 3 * len(tokens_of(text(8_000)))


def test_cut_prompts_are_not_kept(tmp_path: Any) -> None:
    frame = pd.DataFrame({"ticket": [FOUR[0], "short"]})
    with serve(Cutting(4096)) as server:
        for _ in range(2):
            run = frame.llm.parallel_map(
                "{ticket}", model=Ollama("m", host=server.url), store=tmp_path / "s.sqlite"
            )
            assert kinds(run) == ["PromptTruncated", "ok"]
    assert run.metrics.from_store == 1


# -- the rules alone -----------------------------------------------------------------------------


@given(
    context=st.integers(64, 200_000),
    tokens=st.integers(1, 400_000),
    style=st.sampled_from(["full", "almost", "half"]),
    bos=st.booleans(),
)
def test_what_a_known_context_leaves_is_always_suspect(
    context: int, tokens: int, style: str, bos: bool
) -> None:
    left = {"full": context, "almost": context - 1, "half": 4 + (context - 4) // 2 + bos}[style]
    watch = ContextWatch(None)
    watch.told(context)
    if tokens > context:
        assert not watch.passes(size=tokens, count=left) or left < 256
        assert watch.suspicion(tokens, left, []) == "limit"


@given(st.lists(st.tuples(st.integers(1024, 20_000), st.integers(1, 12)), max_size=40))
def test_a_text_sent_several_times_over_shows_the_limit_before_a_cut_passes(
    rows: list[tuple[int, int]],
) -> None:
    """The server has a context of 5,000 tokens and does not tell; rows: tokens, bytes a token."""
    for half in (False, True):
        watch = ContextWatch(None)
        watch.told(None)
        for tokens, density in rows:
            cut = 2502 if half else 5000
            count = tokens if tokens <= 5000 else cut
            found = watch.suspicion(tokens * density, count, [])
            if found is None and watch.wants_the_limit(count):
                longer = 3 * tokens
                watch.stretched(count, longer if longer <= 5000 else cut)
                found = watch.suspicion(tokens * density, count, [])
            if tokens > 5000:
                assert found is not None
                watch.proven(found, count)


@given(st.integers(1, 200_000), st.integers(0, 300), st.integers(0, 8))
def test_halves_of_a_whole_prompt_never_prove_a_cut(text: int, around: int, seam: int) -> None:
    first = text // 2
    whole, empty = around + text, around + 8
    for at_limit in (False, True):
        assert not is_cut(
            whole,
            around + first + 8 + seam,
            around + (text - first) + 8 + seam,
            empty,
            at_limit=at_limit,
        )
