"""Draws the pictures of the documentation: ``python docs/pictures.py``.

The run is on a virtual clock, so that the same picture comes out each time.
"""

from __future__ import annotations

import random
from pathlib import Path

import revkit
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


if __name__ == "__main__":
    (HERE / "timeline.png").write_bytes(run().timeline_png())
