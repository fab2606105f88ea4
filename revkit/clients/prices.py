"""What models cost: the price lists of the package ``genai-prices``, as they were installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import MissingExtra
from ..task.tokens import Price
from .contract import Client

if TYPE_CHECKING:
    from ..scheduling.limits import Budget

__all__ = ["known_price", "price_finder", "price_of"]

#: Run on the user's own machine, where nobody bills a token.
_FREE = ("local", "ollama")


def price_of(
    provider: str, model: str, prices: Price | Mapping[str, Price] | None = None
) -> Price | None:
    """What a model costs today; never asks the network.

    Args:
        provider: its name, such as ``"openai"``, or the base URL of its API. ``"ollama"`` and
            ``"local"`` cost nothing. Empty: not known.
        model: its name at the provider.
        prices: go first: one price for every model, or a mapping of model to price.

    Returns:
        None where the provider or the model is not known, or is not billed by tokens. A server
        at a URL of one's own is not known: it may be a gateway to one that bills.

    Raises:
        MissingExtra: the price is to be looked up, and ``genai-prices`` is not installed.

    >>> price_of("ollama", "llama3.2:3b")
    Price(input_usd_per_million=0.0, output_usd_per_million=0.0, usd_per_request=0.0, tiers=())
    >>> price_of("openai", "mine", {"mine": Price(1, 2)}).cost(1_000_000, 0)
    1.0
    """
    given = prices.get(model) if isinstance(prices, Mapping) else prices
    if given is not None:
        return given
    if provider in _FREE:
        return Price(0.0, 0.0)
    if not provider:
        return None
    try:
        import genai_prices
    except ImportError:
        raise MissingExtra(
            'the price of a model needs a price list: pip install "revkit[prices]"; or give it: '
            f'Budget(usd=…, prices={{"{model}": Price(input_usd_per_million=…, '
            "output_usd_per_million=…)})"
        ) from None
    nothing = genai_prices.Usage(input_tokens=0, output_tokens=0)
    try:
        if "://" in provider:
            found = genai_prices.calc_price(nothing, model, provider_api_url=provider)
        else:
            found = genai_prices.calc_price(nothing, model, provider_id=provider)
    except LookupError:
        return None
    return _as_price(found.model_price)


def known_price(
    provider: str, model: str, prices: Price | Mapping[str, Price] | None = None
) -> Price | None:
    """:func:`price_of`; None also where ``genai-prices`` is not installed.

    >>> known_price("local", "embedded").cost(prompt_tokens=1000, completion_tokens=10)
    0.0
    """
    try:
        return price_of(provider, model, prices)
    except MissingExtra:
        return None


def price_finder(client: Client | None, budget: Budget | None) -> Callable[[], Price | None]:
    """Looks up what a client's tokens cost; holds neither the client nor its key."""
    if client is None:
        return lambda: None
    prices = None if budget is None else budget.prices
    return partial(known_price, client.provider, client.model or client.name, prices)


def _as_price(listed: Any) -> Price | None:
    """A ``genai_prices.types.ModelPrice`` as a :class:`Price`; None: not billed by tokens."""
    rates = (listed.input_mtok, listed.output_mtok)
    if rates == (None, None) and any(usd is not None for usd in vars(listed).values()):
        return None
    per_request = float(listed.requests_kcount or 0) / 1000

    def at(prompt: int, tiers: tuple[tuple[int, Price], ...] = ()) -> Price:
        return Price(_rate(rates[0], prompt), _rate(rates[1], prompt), per_request, tiers)

    starts = {tier.start for rate in rates for tier in getattr(rate, "tiers", ())}
    return at(0, tuple((start, at(start + 1)) for start in sorted(starts)))


def _rate(rate: Any, prompt: int) -> float:
    """US dollars for a million tokens of a request whose prompt has ``prompt`` tokens."""
    usd = getattr(rate, "base", rate)
    for tier in getattr(rate, "tiers", ()):
        if prompt > tier.start:
            usd = tier.price
    return float(usd or 0)
