"""What models cost, given or looked up; never over the network."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from genai_prices import data_snapshot
from genai_prices.types import ModelPrice
from hypothesis import given
from hypothesis import strategies as st

from revkit import MissingExtra, Price, UsageError
from revkit.clients.prices import _as_price, known_price, price_of

MINI = Price(0.4, 1.6)


def test_a_known_model_has_its_price() -> None:
    assert price_of("openai", "gpt-4.1-mini") == MINI
    assert price_of("openai", "gpt-4.1-mini-2025-04-14") == MINI
    assert price_of("https://api.openai.com/v1", "gpt-4.1-mini") == MINI
    assert known_price("openai", "gpt-4.1-mini") == MINI


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("openai", "no-such-model"),
        ("no-such-provider", "gpt-4.1-mini"),
        ("", "gpt-4.1-mini"),
        ("http://localhost:4000/v1", "gpt-4.1-mini"),  # a gateway may bill, or may not
        ("https://example.com/v1", "gpt-4.1-mini"),
    ],
)
def test_an_unknown_model_has_none(provider: str, model: str) -> None:
    assert price_of(provider, model) is None
    assert known_price(provider, model) is None


@pytest.mark.parametrize("provider", ["ollama", "local"])
def test_local_models_cost_nothing(provider: str) -> None:
    assert price_of(provider, "llama3.2:3b") == Price(0, 0)


def test_a_price_that_is_given_goes_first() -> None:
    mine = Price(1, 2)
    assert price_of("openai", "gpt-4.1-mini", mine) is mine
    assert price_of("ollama", "llama3.2:3b", mine) is mine
    prices = {"gpt-4.1": mine}
    assert price_of("openai", "gpt-4.1", prices) is mine
    assert price_of("openai", "gpt-4.1-mini", prices) == MINI
    assert price_of("openai", "no-such-model", prices) is None


def test_without_the_price_list_the_error_names_both_ways_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    with pytest.raises(MissingExtra, match=r'pip install "revkit\[prices\]".*prices='):
        price_of("openai", "gpt-4.1-mini")
    assert known_price("openai", "gpt-4.1-mini") is None
    assert price_of("openai", "gpt-4.1-mini", MINI) is MINI
    assert price_of("ollama", "llama3.2:3b") == Price(0, 0)


def test_the_network_is_never_asked() -> None:
    script = """
import socket, sys
asked = []
def hook(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        asked.append(event)
        raise OSError("no network here")
sys.addaudithook(hook)
from revkit.clients.prices import price_of
assert price_of("openai", "gpt-4.1-mini").input_usd_per_million == 0.4
assert price_of("openai", "no-such-model") is None
assert asked == []
try:
    socket.create_connection(("127.0.0.1", 9))
except OSError:
    pass
assert asked != []
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def listed(*providers: str) -> list[tuple[str, str]]:
    found = data_snapshot.get_snapshot().providers
    return [(one.id, model.id) for one in found if one.id in providers for model in one.models]


@pytest.mark.parametrize("provider", ["anthropic", "google", "mistral", "openai", "perplexity"])
def test_every_listed_model_costs_what_the_list_computes(provider: str) -> None:
    """With tiers by the prompt's length, and fees for each request."""
    seen: set[str] = set()
    for _, model in listed(provider):
        price = price_of(provider, model)
        if price is None:
            continue
        for prompt in {1, 900_000, *(start + more for start, _ in price.tiers for more in (0, 1))}:
            usage = genai_prices.Usage(input_tokens=prompt, output_tokens=321)
            expected = genai_prices.calc_price(usage, model, provider_id=provider).total_price
            assert price.cost(prompt, 321) == pytest.approx(float(expected), rel=1e-9), model
        seen |= {"tiers"} if price.tiers else set()
        seen |= {"requests"} if price.usd_per_request else set()
    wanted = {"google": {"tiers"}, "perplexity": {"requests"}}
    assert seen >= wanted.get(provider, set())


def test_what_is_not_billed_by_tokens_has_no_price() -> None:
    assert _as_price(ModelPrice(input_audio_mtok=Decimal(3))) is None
    assert _as_price(ModelPrice()) == Price(0, 0)  # listed as free


TIERED = Price(1, 2, 0.5, ((100, Price(3, 2, 0.5)), (1000, Price(3, 7, 0.6))))


def test_tiers_bill_the_whole_request() -> None:
    assert TIERED.cost(100, 10) == pytest.approx(0.5 + 120e-6)
    assert TIERED.cost(101, 10) == pytest.approx(0.5 + 323e-6)
    assert TIERED.cost(1001, 10) == pytest.approx(0.6 + 3073e-6)


@given(*[st.integers(0, 2000)] * 4)
def test_more_tokens_never_cost_less(
    prompt: int, completion: int, more_prompt: int, more_completion: int
) -> None:
    more = TIERED.cost(prompt + more_prompt, completion + more_completion)
    assert TIERED.cost(prompt, completion) <= more


@pytest.mark.parametrize("usd", [-1, float("nan"), float("inf"), True, "1", None])
def test_impossible_prices_are_refused(usd: Any) -> None:
    for name in ("input_usd_per_million", "output_usd_per_million", "usd_per_request"):
        arguments = {"input_usd_per_million": 1.0, "output_usd_per_million": 1.0, name: usd}
        with pytest.raises(UsageError, match=rf"Price\({name}="):
            Price(**arguments)


@pytest.mark.parametrize(
    "tiers",
    [((0, Price(1, 2)),), ((9, Price(1, 2)), (9, Price(1, 2))), ((9, Price(0.5, 2)),)],
)
def test_impossible_tiers_are_refused(tiers: Any) -> None:
    with pytest.raises(UsageError, match="in the order of their tokens"):
        Price(1, 2, tiers=tiers)
