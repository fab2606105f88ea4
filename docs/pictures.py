"""Draws the pictures of the documentation: ``python docs/pictures.py``.

The run is on a virtual clock, so that the same picture comes out each time.
"""

from __future__ import annotations

import random
from pathlib import Path

import revkit
from revkit.evaluate import Evaluation
from revkit.testing import FakeModel

HERE = Path(__file__).parent
WORKERS = 6
ROWS = 48


def run() -> revkit.ParallelResult:
    """Reviews at a model with log-normal latency; two replies do not fit, and one is none."""
    reviews = revkit.load_reviews("amazon").head(ROWS)
    chance = random.Random(3)
    seconds = {text: 0.3 + chance.lognormvariate(-0.6, 0.5) for text in reviews["review"]}
    asked: dict[str, int] = {}

    def answer(text: str) -> str | Exception:
        if text not in seconds:  # the second try, which shows the model what was wrong
            return "positive"
        asked[text] = len(asked)
        if asked[text] in (9, 30):
            return "It depends on what one expects of it."
        if asked[text] == 21:
            return revkit.BadReply("what arrived is not a reply")  # and so is not tried again
        return "positive"

    model = FakeModel(answer, latency=lambda text: seconds.get(text, 0.7), clock="virtual")
    result: revkit.ParallelResult = reviews.llm.parallel_map(model=model, max_workers=WORKERS)
    return result


def evaluation() -> Evaluation:
    """200 rated reviews at a model that is right three times in four, else one label off."""
    reviews = revkit.load_reviews("amazon").head(200)
    labels = ["negative", "neutral", "positive"]
    chance = random.Random(3)

    def answer(right: str) -> str:
        if chance.random() < 0.75:
            return right
        return labels[1] if right != labels[1] else chance.choice(labels)

    answers = [answer(label) for label in reviews["label"]]
    result: revkit.ParallelResult = reviews.llm.parallel_map(model=FakeModel(answers))
    return result.evaluate("label")


if __name__ == "__main__":
    (HERE / "timeline.png").write_bytes(run().timeline_png())
    evaluation().plot().figure.savefig(HERE / "confusion.png", dpi=144)
