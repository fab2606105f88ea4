"""The prompts of one run: rendered once, and held from the lookahead until their row is settled."""

from __future__ import annotations

from ..tables.rows import Rows
from ..task.chat import Message
from ..task.kinds import CallableTask, ModelTask
from ..task.tokens import prompt_size

__all__ = ["Prompts"]


class Prompts:
    """Renders rows into prompts; what is kept is not rendered again.

    Rendering may raise anything: the inputs are the user's own objects.
    """

    def __init__(self, task: ModelTask | CallableTask, rows: Rows):
        self._task = task
        self._rows = rows
        self._kept: dict[int, list[Message]] = {}

    def render(self, row: int) -> list[Message]:
        """The row's chat turns, none of which is kept."""
        assert isinstance(self._task, ModelTask)
        return self._task.messages(self._rows.mapping(row))

    def keep(self, row: int, prompt: list[Message]) -> None:
        """Hold a prompt until the row is settled."""
        self._kept[row] = prompt

    def drop(self, row: int) -> None:
        """Forget a prompt, if there is one."""
        self._kept.pop(row, None)

    def of(self, row: int) -> list[Message]:
        """The row's chat turns."""
        kept = self._kept.get(row)
        return self.render(row) if kept is None else kept

    def size(self, row: int) -> int:
        """Bytes of the row's prompt; 0 where it cannot be rendered, as its attempt will say."""
        try:
            return prompt_size(self.of(row))
        except Exception:  # noqa: BLE001 - a value of the user's own may raise anything
            return 0
