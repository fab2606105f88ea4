"""The two tasks that revkit brings ready made."""

from __future__ import annotations

from .task import Signature

__all__ = ["SENTIMENT", "SENTIMENT_WITH_REASON"]

_LABELS = ["positive", "neutral", "negative"]

_EXAMPLES = [
    ("The zipper broke on the second day and nobody answers my emails.", "negative",
     "It broke at once and support does not answer."),
    ("Exactly what I hoped for: light, quiet, and it charges in an hour.", "positive",
     "It meets every hope the customer had."),
    ("It arrived on Tuesday. The box holds the lamp, a cable and a manual.", "neutral",
     "It only states what arrived."),
    ("Great screen, but the battery barely lasts a morning, so it evens out.", "neutral",
     "Praise and complaint balance."),
    ("My daughter loves it and asks for it every evening.", "positive",
     "The child enjoys it."),
    ("Too loud, too hot, and the lid never closes. I sent it back.", "negative",
     "Several faults led to a return."),
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
