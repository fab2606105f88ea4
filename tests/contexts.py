"""What Ollama does with a prompt that is longer than its context, by version, for ``serve``.

    rule = Cutting(4096, left="half")
    with serve(rule) as server:
        ...
    rule.lost       # how many tokens of each last turn's prompt were dropped
    rule.probes     # how many requests asked for one token of reply

The model says how many tokens of the prompt it saw.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any, Literal

from servers import Answer, Status

#: Tokens that the template puts at the beginning, and around each turn.
BEGIN, AROUND = 1, 4


def tokens_of(text: str) -> list[str]:
    """Words and parts of words: about as many as byte-level BPE finds.

    Four letters of the Latin script are a token, with the space before them; two of any other; a
    sign; a run of spaces of up to 32.
    """
    return re.findall(
        r" ?[a-zA-Z]{1,4}| ?\d{1,3}|[ \t\n]{1,32}|[^\x00-\x7f]{1,2}|.", text, re.DOTALL
    )


class Cutting:
    """A rule for ``serve`` that counts tokens, and cuts prompts as Ollama does.

    Args:
        context: its tokens; a request's ``num_ctx`` goes before it.
        left: what a cut leaves: the whole context (``"full"``), one token less (``"almost"``), or
            half of it (``"half"``); ``"refused"``: nothing, as newer versions do where they get
            ``truncate: false``; ``"turns"``: whole turns are dropped before the rest is cut.
        caches: leave out of the counts what the prompt has in common with an earlier one.
        system: tokens that a Modelfile puts before each prompt.
        fails: which probes fail, by their number from 0.
    """

    def __init__(
        self,
        context: int,
        left: Literal["full", "almost", "half", "turns", "refused"] = "half",
        *,
        caches: bool = False,
        system: int = 0,
        fails: Callable[[int], bool] = lambda number: False,
        count: Callable[[str], list[Any]] = tokens_of,
    ) -> None:
        self.context, self.left, self.caches, self.system = context, left, caches, system
        self.lost: dict[str, int] = {}
        self.rows = self.probes = self.probe_tokens = 0
        self._fails, self._count = fails, count
        self._lock = threading.Lock()
        self._cached: list[tuple[Any, ...]] = []

    def __call__(self, messages: list[dict[str, str]], body: dict[str, Any]) -> Answer:
        options = body.get("options", {})
        is_probe = options.get("num_predict") == 1
        with self._lock:
            number = self.probes
            self.probes += is_probe
            self.rows += not is_probe
            if is_probe and self._fails(number):
                return Status(500, {"error": "llama runner process has terminated"})
            context = options.get("num_ctx", self.context)
            whole = prompt = self._render(messages)
            while self.left == "turns" and len(prompt) > context and len(messages) > 1:
                first = next(i for i, m in enumerate(messages) if m["role"] != "system")
                if first == len(messages) - 1:
                    break
                messages = messages[:first] + messages[first + 1 :]
                prompt = self._render(messages)
            if len(prompt) > context:
                if self.left == "refused" and body.get("truncate") is False:
                    return Status(400, {"error": "the input length exceeds the context length"})
                keep = 4
                left = {"half": keep + (context - keep) // 2, "almost": context - 1}
                limit = left.get(self.left, context)
                prompt = prompt[:keep] + prompt[len(prompt) - limit + keep :]
            if not is_probe:
                self.lost[messages[-1]["content"]] = len(whole) - len(prompt)
            evaluated = len(prompt) - self._common(tuple(prompt))
            self.probe_tokens += evaluated + 1 if is_probe else 0
        found = {
            "model": body["model"],
            "message": {"role": "assistant", "content": _said(len(prompt), body)},
            "done": True,
            "done_reason": "length" if is_probe else "stop",
            "prompt_eval_count": evaluated,
            "eval_count": 1 if is_probe else 5,
        }
        return found if evaluated else {k: v for k, v in found.items() if k != "prompt_eval_count"}

    def _render(self, messages: list[dict[str, str]]) -> list[Any]:
        prompt: list[Any] = ["<begin>"] * (BEGIN + self.system)
        for message in messages:
            prompt += [f"<{message['role']}>", *self._count(message["content"])]
            prompt += ["<end>"] * (AROUND - 1)
        return [*prompt, "<assistant>"]

    def _common(self, prompt: tuple[Any, ...]) -> int:
        """Tokens at the beginning that an earlier prompt had, too."""
        if not self.caches:
            return 0
        most = 0
        for earlier in self._cached:
            same = 0
            for a, b in zip(prompt, earlier, strict=False):
                if a != b:
                    break
                same += 1
            most = max(most, same)
        self._cached = [*self._cached[-3:], prompt]
        return most


def _said(seen: int, body: dict[str, Any]) -> str:
    """What the model says: as JSON, where that is asked for."""
    names = body.get("format", {}).get("properties", {})
    return json.dumps({name: str(seen) for name in names}) if names else str(seen)
