"""Draws the pictures of the documentation: ``python docs/pictures.py``.

The runs are on a virtual clock, so that the same pictures come out each time.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from pathlib import Path

import pandas as pd

import revkit
from revkit.results.evaluate import Evaluation
from revkit.results.forecast import WhatIf
from revkit.testing import FakeModel

HERE = Path(__file__).parent
WORKERS = 6
ROWS = 48


def run() -> revkit.ParallelResult:
    """Reviews at a model with log-normal latency and most of what may happen to a row.

    Two replies do not fit, one is none; once the server is at fault, once it asks for a pause.
    """
    random.seed(4)  # how long the row waits that the server was at fault for
    reviews = revkit.load_reviews("amazon").head(ROWS)
    chance = random.Random(3)
    seconds = {text: 0.3 + chance.lognormvariate(-0.6, 0.5) for text in reviews["review"]}
    asked: dict[str, int] = {}

    def answer(text: str) -> str | Exception:
        label = ("positive", "neutral", "positive", "negative")[len(text) % 4]
        if text not in seconds or text in asked:  # the second try
            return label
        asked[text] = len(asked)
        if asked[text] == 4:
            return revkit.ServerError("a moment, please", status=500)
        if asked[text] == 26:
            return revkit.ServerError("too many requests", status=429, pause=1.0)
        if asked[text] in (9, 30):
            return "It depends on what one expects of it."
        if asked[text] == 21:
            return revkit.ServerError("this text is too long", status=400)  # not tried again
        return label

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


def what_if() -> WhatIf:
    """A run with 32 workers at a server of 8 slots, and what other numbers would have done."""
    free = [0.0] * 8

    def latency(text: str) -> float:
        now = asyncio.get_running_loop().time()
        done = max(now, heapq.heappop(free)) + random.Random(text).lognormvariate(-0.6, 0.6)
        heapq.heappush(free, done)
        return done - now

    model = FakeModel(lambda text: "positive", latency=latency, clock="virtual")
    reviews = pd.DataFrame({"review": [f"review {n}" for n in range(300)]})
    result: revkit.ParallelResult = reviews.llm.parallel_map(model=model, max_workers=32)
    return result.what_if([1, 2, 4, 8, 16, 64])


if __name__ == "__main__":
    shown = run()
    (HERE / "timeline.png").write_bytes(shown.timeline_png())
    for name, picture in (
        ("latency", shown.plot_latency()),
        ("panel", shown.plot()),
        ("confusion", evaluation().plot()),
        ("what-if", what_if().plot()),
    ):
        (HERE / f"{name}.png").write_bytes(picture._repr_png_()[0])
