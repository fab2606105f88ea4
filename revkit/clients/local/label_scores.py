"""Classification by asking a model how likely each label is, rather than what it would say.

A small model that must write JSON says its favourite label nearly always; the same model's
probabilities, once its bias is taken out, know better. Everything that decides between labels
lives here:

- **Prompt**: plain text for the model to go on with, not chat turns: the instructions, each
  example as ``Review: "…"`` and ``Sentiment: …``, then the row and ``Sentiment:``. The embedded
  model does better on it than on a chat, in fewer tokens. All but the row is the same for every
  row, and the server keeps it evaluated. A row is put on one line and tokenised apart from the
  head, so that nothing in it can pass for an example or for the markup of a chat.
- **Score**: the labels form a tree of tokens. At each branching the server is asked for one token
  under a bias that lifts the branches, equally, over all else: their probabilities are then those
  of decoding that can only say labels. Labels with different first tokens take one request.
- **Calibration**: the scores are divided by a prior, the model's bias under this prompt. It never
  depends on the other rows: it is a constant where it has been measured, else it is taken from
  texts without meaning (Zhao et al. 2021, "Calibrate Before Use"). Where there are examples these
  are their words in random order (Fei et al. 2023, "Mitigating Label Biases for In-context
  Learning"): for SENTIMENT that comes near to what was measured, and "N/A" does not.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import orjson

from ...errors import BadReply, ServerError
from ...task.chat import Message, Reply
from ..contract import Exchange, Request, Response
from ..error_body import error_body

if TYPE_CHECKING:
    from ...task.kinds import ModelTask

__all__ = ["VERSION", "LabelSession", "ScoringContext", "can_score"]

#: Goes up whenever the same row may get another label.
VERSION = 1

#: Larger than any difference of logits, so that only labels are left; small enough for float32.
_LIFT = 100.0
#: How many texts without meaning are averaged.
_CONTENT_FREE = 8

#: Priors that were measured: what the model was shown -> label -> probability. SENTIMENT's did
#: best on half of the shipped Amazon reviews (``benchmarks/prior.py``).
_MEASURED: dict[str, dict[str, float]] = {
    "a09941f560affa3e": {"positive": 0.3318, "neutral": 0.0235, "negative": 0.6447},
}

#: Tokens of a label up to a branching -> the tokens that may come next.
_Tree = Mapping[tuple[int, ...], tuple[int, ...]]


def can_score(task: ModelTask) -> bool:
    """Whether the task is a classification and nothing else: one output, of labels."""
    return len(task.outputs) == 1 and all(field.labels for field in task.outputs.values())


@dataclass(frozen=True)
class ScoringContext:
    """What all rows of a task share, as one model sees it.

    Attributes:
        head: the tokens before the row's.
        labels: the tokens of each label.
        tree: where the labels branch.
        prior: log probability of each label, to be subtracted.
    """

    head: list[int]
    labels: Sequence[tuple[int, ...]]
    tree: _Tree
    prior: Sequence[float]


@dataclass(frozen=True)
class _Scores:
    """The log probability of each label, and what it took."""

    log: Sequence[float]
    prompt_tokens: int
    completion_tokens: int


class LabelSession:
    """One run's classifications by a llama.cpp server.

    Args:
        task: a classification (see :func:`can_score`).
        endpoint: URL of the server.
        measured: use the prior that was measured for the embedded model, where there is one.

    Attributes:
        shown: changes whenever the model is shown something else.
        context: what :meth:`learn` found for the same server and ``shown``. Without it the rows
            that come first learn it, each for itself: none waits, and they learn the same.
    """

    def __init__(self, task: ModelTask, *, endpoint: str, measured: bool):
        ((self._output, field),) = task.outputs.items()
        self._labels = tuple(field.labels or ())
        self._task = task
        self._endpoint = endpoint
        self._head, self._tail = self._prompt()
        shown = json.dumps([self._head, self._tail, [str(label) for label in self._labels]])
        self.shown = hashlib.sha256(shown.encode()).hexdigest()[:16]
        self._measured = _MEASURED.get(self.shown) if measured else None
        self.context: ScoringContext | None = None

    def exchange(self, messages: Sequence[Message]) -> Exchange:
        """Classify one row. Raises :class:`~revkit.errors.RowFailure` kinds."""
        if self.context is None:
            self.context = yield from self.learn()
        # Turns after the row's own would ask for a correction, and scores need none.
        row = messages[len(self._task.prefix)]["content"]
        scores = yield from self._score(self.context, row)
        odds = [log - bias for log, bias in zip(scores.log, self.context.prior, strict=True)]
        shares = _softmax(odds)
        best = self._labels[shares.index(max(shares))]
        return Reply(
            self._task.outputs.dump({self._output: best}),
            prompt_tokens=scores.prompt_tokens,
            completion_tokens=scores.completion_tokens,
            finish_reason="stop",
            probabilities={
                self._output: {str(x): p for x, p in zip(self._labels, shares, strict=True)}
            },
        )

    def _prompt(self) -> tuple[str, str]:
        """The text before the row, and the text between the row and its label."""
        task = self._task
        head = [task.instructions, task.outputs[self._output].description]
        if len(task.inputs) > 1:
            head += [f"{n}: {f.description}." for n, f in task.inputs.items() if f.description]
        shown = {str(example[self._output]) for example in task.examples}
        if shown != {str(label) for label in self._labels}:
            head.append(f"Answer with one of: {', '.join(map(str, self._labels))}.")
        asked = _title(next(iter(task.inputs))) if len(task.inputs) == 1 else "Input"
        tail = f'"\n{_title(self._output)}:'
        parts = [" ".join(filter(None, head))]
        for example in task.examples:
            row = _one_line(task.user_text(example))
            parts.append(f'{asked}: "{row}{tail} {example[self._output]}')
        return "\n\n".join([*parts, f'{asked}: "']), tail

    def learn(self) -> Generator[Request, Response, ScoringContext]:
        """Find out what all rows share. Raises :class:`~revkit.errors.RowFailure` kinds."""
        head = yield from self._tokens(self._head, first=True)
        end = yield from self._tokens("\n")
        labels = []
        for label in self._labels:
            tokens = yield from self._tokens(f" {label}")
            # The end of the line tells "good" from "good enough".
            labels.append((*tokens, *end))
        context = ScoringContext(head, labels, _tree(labels), [0.0] * len(labels))
        if self._measured is not None:
            prior = [math.log(self._measured[str(label)]) for label in self._labels]
        else:
            logs = []
            for text in self._content_free():
                scores = yield from self._score(context, text)
                logs.append(scores.log)
            prior = [sum(of_label) / len(logs) for of_label in zip(*logs, strict=True)]
        return replace(context, prior=prior)

    def _content_free(self) -> list[str]:
        texts = [self._task.user_text(example) for example in self._task.examples]
        words = [word for text in texts for word in text.split()]
        if not words:
            return ["N/A"]
        chance = random.Random(0)  # the same texts in every run
        length = math.ceil(len(words) / len(texts))
        return [
            " ".join(chance.sample(words, min(length, len(words)))) for _ in range(_CONTENT_FREE)
        ]

    def _score(self, context: ScoringContext, row: str) -> Generator[Request, Response, _Scores]:
        # Together with the tail: a full stop and the quotation mark after it may be one token, as
        # they are in the examples. Apart, the model was right in 3 rows of 100 less.
        tokens = yield from self._tokens(_one_line(row) + self._tail)
        prompt = [*context.head, *tokens]
        logs = [0.0] * len(context.labels)
        evaluated = predicted = 0
        for path, following in context.tree.items():
            found = yield from self._ask("/completion", _one_of([*prompt, *path], following))
            try:
                given = found["completion_probabilities"][0]["top_probs"]
                shares = {entry["id"]: math.log(max(entry["prob"], 1e-30)) for entry in given}
                for number, label in enumerate(context.labels):
                    if label[: len(path)] == path:
                        logs[number] += shares[label[len(path)]]
                evaluated += int(found["tokens_evaluated"])
                predicted += int(found["tokens_predicted"])
            except (KeyError, IndexError, TypeError, ValueError):
                raise BadReply(
                    "the embedded model's server replied without the labels' probabilities; is "
                    "this version of xllamacpp too old?"
                ) from None
        return _Scores(logs, evaluated, predicted)

    def _tokens(self, text: str, *, first: bool = False) -> Generator[Request, Response, list[int]]:
        """Tokens of a text; markup of chats in it is text. ``first``: it begins a prompt."""
        text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be sent
        fields = {"content": text, "add_special": first, "parse_special": False}
        found = yield from self._ask("/tokenize", fields)
        return list(found.get("tokens") or ())

    def _ask(
        self, path: str, fields: Mapping[str, Any]
    ) -> Generator[Request, Response, dict[str, Any]]:
        body = orjson.dumps(fields)
        response = yield Request(self._endpoint + path, body, {"content-type": "application/json"})
        if response.status != 200:
            message = error_body(response.body).message[:300]
            raise ServerError(
                f'the embedded model\'s server answered {response.status}: "{message}"',
                status=response.status,
            )
        try:
            found = orjson.loads(response.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise BadReply("the embedded model's server answered with something else than JSON")
        return found


def _one_of(prompt: list[int], tokens: Sequence[int]) -> dict[str, Any]:
    """A request for the probability of each of ``tokens`` to come next, where no other can."""
    return {
        "prompt": prompt,
        "n_predict": 1,
        "n_probs": len(tokens),
        "logit_bias": [[token, _LIFT] for token in tokens],
        "post_sampling_probs": True,  # those under the bias
        "samplers": ["temperature"],
        "temperature": 1.0,
        "seed": 0,  # which token is drawn does not matter, but a reply should repeat
        "cache_prompt": True,
        "response_fields": ["completion_probabilities", "tokens_evaluated", "tokens_predicted"],
    }


def _title(name: str) -> str:
    """An input's or output's name as it heads a line.

    >>> _title("product_review")
    'Product review'
    """
    text = name.replace("_", " ").strip()
    return text[:1].upper() + text[1:]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _tree(labels: Sequence[tuple[int, ...]]) -> _Tree:
    """Where labels branch: the common beginnings, and the tokens that may come next.

    >>> _tree([(1, 9), (2, 9), (2, 5, 9)])
    {(): (1, 2), (2,): (9, 5)}
    """
    following: dict[tuple[int, ...], dict[int, None]] = {}
    for label in labels:
        for depth, token in enumerate(label):
            following.setdefault(label[:depth], {})[token] = None
    return {path: tuple(tokens) for path, tokens in following.items() if len(tokens) > 1}


def _softmax(logs: Sequence[float]) -> list[float]:
    top = max(logs)
    powers = [math.exp(log - top) for log in logs]
    return [power / sum(powers) for power in powers]
