"""The two tasks that revkit brings ready made."""

from __future__ import annotations

from .kinds import Signature

__all__ = ["SENTIMENT", "SENTIMENT_WITH_REASON"]

_LABELS = ["positive", "neutral", "negative"]

# Two of each label. Which labels stand where moves a small model as much as the words do: these,
# in this order, did best on part of the odd-numbered half in data/amazon_reviews.parquet.
_EXAMPLES = [
    ("I use it with two speakers and a small amplifier.", "neutral",
     "It only says how the product is used."),
    ("It stopped working after a week, and support was no help.", "negative",
     "It failed early and support did not help."),
    ("It is good value, and very easy to use.", "positive",
     "It praises the price and the ease of use."),
    ("The software is a pain and the battery does not last.", "negative",
     "It complains of the software and the battery."),
    ("There are three modes, and the manual explains each.", "neutral",
     "It only states what the product has."),
    ("I love it, and so does everyone I have shown it to.", "positive",
     "The customer and others love it."),
]  # fmt: skip

SENTIMENT = Signature(
    "Classify the sentiment of a customer's product review.",
    inputs={"review": "the customer's review"},
    outputs={"sentiment": _LABELS},
    examples=[{"review": text, "sentiment": label} for text, label, _ in _EXAMPLES],
)

SENTIMENT_WITH_REASON = Signature(
    "Classify the sentiment of a customer's product review, and give the reason in a few words.",
    inputs={"review": "the customer's review"},
    outputs={"sentiment": _LABELS, "reason": (str, "the reason, in a few words")},
    examples=[
        {"review": text, "sentiment": label, "reason": reason} for text, label, reason in _EXAMPLES
    ],
)
