"""Rate limits and budgets, on a virtual clock."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import pytest
from examples import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from revkit import Budget, Price, RateLimit, UsageError, load_reviews
from revkit.errors import BudgetReached, RunFailed
from revkit.scheduling import accounts, buckets
from revkit.scheduling.accounts import Refusal, Reservation
from revkit.task.tokens import TokenEstimate, prompt_size

# --- rate limits ---


def starts(
    limit: RateLimit, gaps: list[float], amounts: list[int], *, most: int, began: float = 1e6
) -> Iterator[tuple[float, int]]:
    """When requests start that ask at once, ask again when told, and now and then do nothing."""
    now = began
    for turn in range(most):
        amount = amounts[turn % len(amounts)]
        when = limit.reserve(amount, now)
        if when is not None:
            assert when > now
            now = when
            assert limit.reserve(amount, now) is None, "the time that was told is too early"
        yield now, amount
        now += gaps[turn % len(gaps)]


def fullest(made: list[tuple[float, int]], seconds: float) -> list[tuple[int, int, int]]:
    """For the window that begins at each start: starts, their amounts, and the last of these."""
    times = [time for time, _ in made]
    sums = [0, *accumulate(amount for _, amount in made)]
    windows = []
    for first, time in enumerate(times):
        end = bisect_right(times, time + seconds)
        windows.append((end - first, sums[end] - sums[first], made[end - 1][1]))
    return windows


gaps = st.lists(
    st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.03]) | st.floats(0, 70), min_size=1, max_size=8
)
rates = st.integers(1, 600) | st.floats(0.5, 600)


@given(rate=rates, gaps=gaps)
def test_no_minute_has_more_requests_than_the_limit(rate: float, gaps: list[float]) -> None:
    made = list(starts(RateLimit(requests_per_minute=rate), gaps, [0], most=700))
    assert max(count for count, _, _ in fullest(made, 60.0)) <= math.ceil(rate)


@given(rate=st.floats(60, 1e6), seconds=st.sampled_from([1.0, 2.5, 10.0]), gaps=gaps)
def test_nor_is_a_shorter_window_overfilled(rate: float, seconds: float, gaps: list[float]) -> None:
    made = list(starts(RateLimit(requests_per_minute=rate), gaps, [0], most=300))
    most = max(count for count, _, _ in fullest(made, seconds))
    assert most <= rate * seconds / 60 * (1 + 1e-9) + 1


@given(
    rate=st.floats(100, 1e6),
    gaps=gaps,
    shares=st.lists(st.floats(0, 1.5), min_size=1, max_size=5),
    seconds=st.sampled_from([1.0, 5.0, 60.0]),
)
def test_tokens_exceed_a_window_by_one_request_at_most(
    rate: float, gaps: list[float], shares: list[float], seconds: float
) -> None:
    amounts = [int(share * rate) for share in shares]
    made = list(starts(RateLimit(tokens_per_minute=rate), gaps, amounts, most=100))
    for _, tokens, last in fullest(made, seconds):
        assert tokens - last <= rate * seconds / 60 * (1 + 1e-9)


@given(rate=st.integers(600, 10**6), gaps=gaps, data=st.data())
def test_small_requests_never_exceed_the_tokens_of_a_minute(
    rate: int, gaps: list[float], data: st.DataObject
) -> None:
    amounts = data.draw(st.lists(st.integers(0, rate // 60), min_size=1, max_size=4))
    made = list(starts(RateLimit(tokens_per_minute=rate), gaps, amounts, most=300))
    assert max(tokens for _, tokens, _ in fullest(made, 60.0)) <= rate


@given(rate=st.floats(1, 6000))
def test_the_limit_is_nearly_used(rate: float) -> None:
    made = list(starts(RateLimit(requests_per_minute=rate), [0.0], [0], most=200))
    seconds = made[-1][0] - made[0][0]
    assert seconds * 0.98 <= 199 * 60 / rate + 0.02


def test_what_a_late_timer_lost_is_made_up_for() -> None:
    """100 requests a second, whose worker is told to wait and comes 5 ms late each time."""
    limit, now, made = RateLimit(requests_per_minute=6000), 0.0, 0
    while now < 10.0:
        when = limit.reserve(0, now)
        if when is None:
            made += 1
        else:
            now = when + 0.005
    assert made >= 970


def test_a_run_begins_with_one_request_and_not_with_a_minutes_worth() -> None:
    limit = RateLimit(requests_per_minute=60)
    assert limit.reserve(0, 0.0) is None
    assert limit.reserve(0, 0.0) == pytest.approx(1.0, abs=0.01)
    assert limit.reserve(0, 3600.0) is None  # an hour of silence saves nothing up
    assert limit.reserve(0, 3600.0) is not None


def test_both_limits_hold_and_one_that_refuses_takes_nothing_of_the_other() -> None:
    limit = RateLimit(requests_per_minute=60, tokens_per_minute=6000)
    assert limit.reserve(1000, 0.0) is None  # ten seconds' worth of tokens
    for _ in range(50):
        when = limit.reserve(10, 0.0)
    assert when == pytest.approx(10.2, abs=0.05)
    assert limit.reserve(10, when) is None
    assert limit.reserve(10, when) == pytest.approx(when + 1.0, abs=0.05)


def test_a_request_larger_than_a_minute_is_let_through_and_paid_back() -> None:
    limit = RateLimit(tokens_per_minute=1000)
    assert limit.reserve(10, 0.0) is None
    when = limit.reserve(5000, 0.0)
    assert when is not None
    assert when < 1.0
    assert limit.reserve(5000, when) is None
    assert limit.reserve(1, when) == pytest.approx(when + 300, rel=0.03)


def test_what_was_not_used_is_given_back_and_what_was_used_too_is_taken() -> None:
    limit = RateLimit(tokens_per_minute=600)
    assert limit.reserve(100, 0.0) is None
    limit.correct(100, 20, 1.0)
    assert limit.reserve(1, 1.0) == pytest.approx(2.0, abs=0.05)
    limit.correct(0, 80, 1.0)
    assert limit.reserve(1, 1.0) == pytest.approx(10.2, abs=0.05)


def test_what_is_given_back_late_makes_no_burst() -> None:
    limit = RateLimit(tokens_per_minute=600)
    assert limit.reserve(100, 0.0) is None
    limit.correct(100, 0, 500.0)
    limit.correct(100, 0, 500.0)
    assert limit.reserve(100, 500.0) is None
    assert limit.reserve(100, 500.0) == pytest.approx(510.0, abs=0.3)


@given(
    rate=st.floats(60, 6000),
    steps=st.lists(
        st.tuples(st.integers(1, 200), st.floats(0, 1.5), st.floats(0, 5), st.floats(0, 3)),
        min_size=1,
        max_size=60,
    ),
)
def test_corrected_tokens_keep_to_the_rate(
    rate: float, steps: list[tuple[int, float, float, float]]
) -> None:
    """At every start, what was used before, by estimate or by count, keeps to the rate."""
    limit, now, began = RateLimit(tokens_per_minute=rate), 50.0, 50.0
    flying: list[tuple[float, int, int]] = []
    counted = 0  # what was used where it is known, else the estimate
    for estimated, share, service, gap in steps:
        while (when := limit.reserve(estimated, now)) is not None:
            due = min(flying, default=(math.inf, 0, 0))
            if due[0] <= when:
                flying.remove(due)
                now = max(now, due[0])
                limit.correct(due[1], due[2], now)
                counted += due[2] - due[1]
            else:
                now = when
        assert counted <= rate / 60 * (now - began + 0.02) * (1 + 1e-9)
        counted += estimated
        flying.append((now + service, estimated, int(estimated * share)))
        now += gap


@given(st.lists(st.floats(0, 100), min_size=1, max_size=60))
def test_a_clock_that_lags_behind_refills_nothing(times: list[float]) -> None:
    """Runs ask out of order; those that are admitted still keep apart by their latest time."""
    limit, latest, admitted = RateLimit(requests_per_minute=60), 0.0, []
    for now in times:
        latest = max(latest, now)
        when = limit.reserve(0, now)
        if when is None:
            admitted.append(latest)
        else:
            assert when > latest >= now
    assert all(later - sooner >= 0.98 for sooner, later in pairwise(admitted))


def test_what_was_given_back_is_gone_for_a_lagging_clock_too() -> None:
    limit = RateLimit(tokens_per_minute=600)
    assert limit.reserve(100, 100.0) is None
    limit.correct(100, 0, 300.0)
    assert limit.reserve(100, 290.0) is None  # by a run that read its clock before
    assert limit.reserve(100, 301.0) == pytest.approx(310.0, abs=0.3)


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "60"])
def test_impossible_rate_limits_are_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=rf"RateLimit\({name}=.*above 0"):
        RateLimit(**{name: value})


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="give requests_per_minute= or tokens_per_minute="):
        RateLimit()
    with pytest.raises(UsageError, match="give tokens= or usd="):
        Budget()


def test_a_rate_limit_shows_what_it_is() -> None:
    assert repr(RateLimit(tokens_per_minute=9.5)) == "RateLimit(tokens_per_minute=9.5)"


# --- budgets ---

PRICE = Price(0.4, 1.6, usd_per_request=0.001, tiers=((500, Price(0.8, 2.4, 0.001)),))


class Spending(RuleBasedStateMachine):
    """Attempts of several runs share a budget, and none uses more than it reserved."""

    def __init__(self) -> None:
        super().__init__()
        self.budget = Budget(tokens=10_000, usd=0.02)
        self.flying: list[Reservation] = []
        self.spent: list[tuple[int, float]] = []

    @rule(prompt=st.integers(0, 1500), completion=st.integers(0, 3000))
    def reserve(self, prompt: int, completion: int) -> None:
        got = self.budget.reserve(prompt, completion, PRICE)
        tokens, usd = prompt + completion, PRICE.cost(prompt, completion)
        spent_tokens = sum(tokens for tokens, _ in self.spent)
        spent_usd = math.fsum(usd for _, usd in self.spent)
        held_tokens = sum(one.prompt + one.completion for one in self.flying)
        held_usd = math.fsum(PRICE.cost(one.prompt, one.completion) for one in self.flying)
        if got is Refusal.NEVER:
            assert spent_tokens + tokens > 10_000 or spent_usd + usd > 0.02 - 1e-9
        elif got is Refusal.LATER:
            assert self.flying, "nothing is in flight that could come back"
            assert spent_tokens + tokens <= 10_000
            assert spent_usd + usd <= 0.02 + 1e-9
            all_usd = spent_usd + held_usd + usd
            assert spent_tokens + held_tokens + tokens > 10_000 or all_usd > 0.02 - 1e-9
        else:
            assert isinstance(got, Reservation)
            self.flying.append(got)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), known=st.tuples(st.booleans(), st.booleans()))
    def settle(self, data: st.DataObject, known: tuple[bool, bool]) -> None:
        one = self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1)))
        prompt = data.draw(st.integers(0, one.prompt)) if known[0] else None
        completion = data.draw(st.integers(0, one.completion)) if known[1] else None
        self.budget.settle(one, prompt, completion)
        used = (
            one.prompt if prompt is None else prompt,
            one.completion if completion is None else completion,
        )
        self.spent.append((sum(used), PRICE.cost(*used)))

    @precondition(lambda self: self.flying)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.budget.release(self.flying.pop(data.draw(st.integers(0, len(self.flying) - 1))))

    @invariant()
    def the_budget_is_kept(self) -> None:
        budget = self.budget
        assert 0 <= budget.spent_tokens + budget.reserved_tokens <= 10_000
        assert 0 <= budget.spent_usd + budget.reserved_usd <= 0.02 + 1e-15
        assert budget.spent_tokens == sum(tokens for tokens, _ in self.spent)
        assert budget.spent_usd == pytest.approx(math.fsum(usd for _, usd in self.spent), abs=1e-9)
        if not self.flying:
            assert budget.reserved_tokens == budget.reserved_usd == 0

    def teardown(self) -> None:
        for one in self.flying:
            self.budget.release(one)
        self.flying.clear()
        self.the_budget_is_kept()


TestSpending = Spending.TestCase
TestSpending.settings = settings(examples(100), stateful_step_count=40)


def reserved(budget: Budget, prompt: int, completion: int, price: Price | None = None) -> Any:
    got = budget.reserve(prompt, completion, price)
    assert isinstance(got, Reservation)
    return got


def test_the_three_answers() -> None:
    budget = Budget(tokens=1000)
    one = reserved(budget, 300, 400)
    assert budget.reserve(300, 400) is Refusal.LATER
    assert budget.reserve(600, 401) is Refusal.NEVER  # for which the whole budget is too small
    budget.settle(one, 300, 1)
    two = reserved(budget, 300, 399)
    assert budget.reserve(1, 0) is Refusal.LATER
    budget.settle(two)
    assert budget.reserve(1, 0) is Refusal.NEVER
    assert budget.spent_tokens == 1000


def test_what_is_not_known_counts_in_full() -> None:
    budget = Budget(tokens=1000)
    budget.settle(reserved(budget, 100, 50), None, 5)
    assert budget.spent_tokens == 105
    budget.settle(reserved(budget, 100, 50), 5, None)
    assert budget.spent_tokens == 105 + 55
    budget.settle(reserved(budget, 100, 50))
    assert budget.spent_tokens == 105 + 55 + 150


def test_a_prompt_that_was_estimated_too_low_is_counted_and_is_the_last() -> None:
    budget = Budget(tokens=1000)
    one = reserved(budget, 500, 100)
    budget.settle(one, 1200, 100)
    assert budget.spent_tokens == 1300
    assert budget.reserve(0, 0) is Refusal.NEVER
    assert budget.reserved_tokens == 0


def test_a_budget_in_dollars_counts_tokens_too() -> None:
    budget = Budget(usd=1.0)
    one = reserved(budget, 100_000, 0, Price(10, 30))  # all of it, to the cent
    assert budget.reserved_usd == 1.0
    assert budget.reserve(0, 1, Price(10, 30)) is Refusal.LATER
    assert reserved(budget, 0, 1, Price(0, 0)) is not one
    budget.settle(one, 50_000, 0)
    assert (budget.spent_usd, budget.spent_tokens) == (0.5, 50_000)
    assert repr(budget) == "Budget(usd=1.0, spent_tokens=50000, spent_usd=0.5, reserved_tokens=1)"
    with pytest.raises(UsageError, match="needs the price"):
        budget.reserve(1, 1)


def test_dollars_that_no_binary_fraction_holds_add_up() -> None:
    budget = Budget(usd=0.3)
    for _ in range(3):
        budget.settle(reserved(budget, 1_000_000, 0, Price(0.1, 0)))
    assert budget.spent_usd == 0.3
    assert budget.reserve(1, 0, Price(0.1, 0)) is Refusal.NEVER


def test_a_request_that_was_never_sent_costs_nothing() -> None:
    budget = Budget(usd=1.0)
    budget.release(reserved(budget, 10, 10, Price(1, 1, usd_per_request=0.5)))
    assert budget.spent_usd == budget.reserved_usd == budget.spent_tokens == 0
    budget.settle(reserved(budget, 10, 10, Price(1, 1, usd_per_request=0.5)), 0, 0)
    assert budget.spent_usd == 0.5


def test_an_attempt_is_settled_once() -> None:
    budget = Budget(tokens=1000)
    one, other = reserved(budget, 10, 10), reserved(budget, 10, 10)
    budget.settle(one, 1, 1)
    with pytest.raises(KeyError):
        budget.settle(one, 1, 1)
    with pytest.raises(KeyError):
        budget.release(one)
    assert (budget.spent_tokens, budget.reserved_tokens) == (2, 20)
    budget.release(other)


@pytest.mark.parametrize(
    "arguments",
    [
        *({"tokens": value} for value in (0, -1, 1.5, True, "9", math.nan, math.inf)),
        *({"usd": value} for value in (0, -0.1, math.nan, math.inf, True, "9")),
        {"tokens": 9, "prices": 3},
        {"tokens": 9, "prices": {"gpt-4.1": 3}},
    ],
)
def test_impossible_budgets_are_refused(arguments: dict[str, Any]) -> None:
    name = list(arguments)[-1]
    with pytest.raises(UsageError, match=rf"Budget\({name}=.*: give"):
        Budget(**arguments)


def test_what_a_budget_cannot_be_kept_for_is_refused_before_sending() -> None:
    price = Price(1, 2)
    Budget(tokens=9).check("m", 100, None)
    Budget(usd=9).check("m", 100, price)
    with pytest.raises(UsageError, match="give the model max_tokens="):
        Budget(tokens=9).check("m", None, price)
    with pytest.raises(UsageError, match=r"price of m is not known.*prices="):
        Budget(usd=9).check("m", 100, None)
    with pytest.raises(UsageError, match=r"costs nothing; use Budget\(tokens=\)"):
        Budget(usd=9).check("m", 100, Price(0, 0))


def test_nothing_is_counted_outside_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several threads share these; the arithmetic alone would lose counts between them."""
    limit, budget = RateLimit(requests_per_minute=60), Budget(tokens=1000)
    seen = []

    def watched(owner: type, name: str, shared: Any) -> None:
        original = getattr(owner, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            assert shared._lock.locked()
            seen.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapper)

    watched(buckets.TokenBucket, "take", limit)
    for name in ("refusal", "reserve", "settle"):
        watched(accounts.Account, name, budget)
    limit.reserve(1, 0.0)
    limit.correct(1, 2, 0.0)
    budget.settle(reserved(budget, 1, 1))
    budget.release(reserved(budget, 1, 1))
    assert set(seen) == {"take", "refusal", "reserve", "settle"}
    assert not limit._lock.locked()
    assert not budget._lock.locked()


def test_a_budget_that_is_reached_is_a_run_that_failed() -> None:
    assert issubclass(BudgetReached, RunFailed)


# --- estimates ---

#: The tokens of each review, then of these: as two of OpenAI's vocabularies make them.
OTHER_SCRIPTS = [
    "电池可以用整整三天,声音非常清晰。这是我用过的最好的耳机!",
    "バッテリーは丸三日もち、音はとてもクリアです。今まで使った中で最高のヘッドホンです。",
    "배터리가 꼬박 사흘을 가고 소리가 정말 맑아요. 지금까지 써 본 헤드폰 중 최고예요!",
    "Батарея держит целых три дня, звук на удивление чистый. Лучшие наушники, что у меня были!",
    "البطارية تدوم ثلاثة أيام كاملة والصوت واضح بشكل رائع.",
    "แบตเตอรี่ใช้ได้นานถึงสามวันเต็ม เสียงใสมาก",
    "ဘက်ထရီ သုံးရက်ပြည့် ခံပြီး အသံက အရမ်းကြည်လင်တယ်။",
    "👍👍👍🎧🔋💯🧑🏽‍💻",
    "f8a7c2e1-93b4-4d0f-8c55-1e2d3c4b5a69 0x7fffe3a1",
]
REVIEW_TOKENS = {
    "cl100k_base": [21, 24, 27, 29, 19, 23, 25, 21, 19, 18, 16, 19],
    "o200k_base": [21, 24, 27, 29, 19, 23, 26, 21, 19, 18, 16, 19],
}
OTHER_TOKENS = {
    "cl100k_base": [31, 43, 54, 46, 40, 39, 93, 27, 42],
    "o200k_base": [24, 32, 32, 28, 14, 17, 26, 17, 42],
}
vocabularies = pytest.mark.parametrize("vocabulary", list(REVIEW_TOKENS))


def size(text: str) -> int:
    return prompt_size([{"role": "user", "content": text}])


@vocabularies
def test_before_any_reply_the_upper_estimate_is_never_too_low(vocabulary: str) -> None:
    texts = [*load_reviews()["review"], *OTHER_SCRIPTS]
    counts = REVIEW_TOKENS[vocabulary] + OTHER_TOKENS[vocabulary]
    for text, count in zip(texts, counts, strict=True):
        assert count <= size(text) < TokenEstimate().upper(size(text))


@vocabularies
def test_the_mean_is_learnt(vocabulary: str) -> None:
    estimate = TokenEstimate()
    texts, counts = list(load_reviews()["review"]), REVIEW_TOKENS[vocabulary]
    for text, count in zip(texts[:4], counts[:4], strict=True):
        assert count < estimate.expected(size(text)) < 2 * count  # cautious at first
    for text, count in zip(texts[:4], counts[:4], strict=True):
        estimate.observe(size(text), count, 5)
    for text, count in zip(texts[4:], counts[4:], strict=True):
        assert estimate.expected(size(text)) == pytest.approx(count, rel=0.25)


@vocabularies
def test_a_learnt_upper_estimate_holds_for_prompts_of_the_same_kind(vocabulary: str) -> None:
    """Prompts of ten reviews, or ten times the same in Chinese, Japanese or Korean."""
    reviews = list(zip(load_reviews()["review"], REVIEW_TOKENS[vocabulary], strict=True))
    asian = list(zip(OTHER_SCRIPTS[:3], OTHER_TOKENS[vocabulary][:3], strict=True))
    for texts in (reviews, asian):
        estimate = TokenEstimate()
        for text, count in texts:
            assert 10 * count <= estimate.upper(10 * size(text))
            estimate.observe(10 * size(text), 10 * count)
        for text, count in texts:  # and is not far above the truth by then
            assert estimate.upper(10 * size(text)) <= 64 + 2 * 10 * count


def test_an_upper_estimate_is_too_low_once_and_then_knows() -> None:
    estimate = TokenEstimate()
    estimate.observe(8000, 2000)
    assert estimate.upper(8000) < 6000  # 2000 and a quarter, and the template
    estimate.observe(8000, 6000)
    assert estimate.upper(8000) > 6000


def test_a_server_that_does_not_count_teaches_nothing() -> None:
    estimate = TokenEstimate()
    estimate.observe(600)
    estimate.observe(0, 5)
    assert (estimate.expected(600), estimate.upper(600), estimate.completion()) == (200, 664, None)
    estimate.observe(600, completion_tokens=3)
    estimate.observe(600, completion_tokens=4)
    assert estimate.completion() == 4  # of 3.5


@given(st.lists(st.tuples(st.integers(1, 10**5), st.integers(0, 10**5)), max_size=20))
def test_estimates_are_in_order(seen: list[tuple[int, int]]) -> None:
    estimate = TokenEstimate()
    for bytes_, tokens in seen:
        estimate.observe(bytes_, tokens)
    for bytes_ in (0, 1, 100, 10**6):
        assert 0 <= estimate.expected(bytes_) <= estimate.upper(bytes_)
        assert estimate.expected(bytes_) <= estimate.expected(bytes_ + 1)


def test_sizes_are_bytes_of_all_messages() -> None:
    messages: list[Any] = [
        {"role": "system", "content": "né"},
        {"role": "user", "content": "\ud800"},
    ]
    assert prompt_size(messages) == 3 + 3
    assert prompt_size([]) == 0
