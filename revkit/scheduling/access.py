"""Whether a 403 is one row's error or ends the run: a firewall may object to one row's text."""

from __future__ import annotations

from typing import Final

from ..errors import plural

__all__ = ["Access"]

#: Fewest denied rows, one after the other, that end a run which has had replies.
_FEWEST: Final = 3


class Access:
    """Counts the rows that were denied access.

    Args:
        workers: of the run: so many rows may be denied at once for the same reason.

    Attributes:
        is_granted: a reply was the last word.

    >>> access = Access(workers=4)
    >>> access.deny()
    True
    >>> access.reply()
    >>> [access.deny() for row in range(4)]
    [False, False, False, True]
    """

    def __init__(self, workers: int):
        self._most = max(_FEWEST, workers)
        self._answered = False
        #: rows that were denied since the last reply
        self._denied = 0
        self.is_granted = False

    def know(self) -> None:
        """A reply is known from an earlier run: the key was good then."""
        self._answered = True

    def reply(self) -> None:
        """The model replied."""
        self._answered = self.is_granted = True
        self._denied = 0

    def deny(self) -> bool:
        """A row was denied access; says whether that ends the run."""
        self.is_granted = False
        self._denied += 1
        return not self._answered or self._denied >= self._most

    def reason(self, failure: str) -> str:
        """Why the run ends; continues the sentence "the run was stopped:"."""
        if not self._answered:
            return failure
        denied = plural(self._denied, "row", "were denied access")
        return f"{denied}, and no other got a reply: {failure}"
