"""The sink for the user's eyes: the progress callback, and the bar or live display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ...errors import said
from ...record.record import Record, RowResult
from ..wiring import Display, Wiring

__all__ = ["ProgressSink"]


class ProgressSink:
    """Shows how far a run is. What raises is dropped with a warning, and the run goes on.

    Attributes:
        wants_rows: there is a callback, which gets each settled row.
    """

    def __init__(self, wiring: Wiring, record: Record):
        self._plan = wiring.plan
        self._record = record
        self._callback = wiring.callback
        self._open_display = wiring.open_display
        self._display: Display | None = None
        self._settled = 0

    @property
    def wants_rows(self) -> bool:
        return self._callback is not None

    def settled(self, row: RowResult) -> KeyboardInterrupt | None:
        """Call the callback with a settled row.

        Returns:
            An interrupt that came while it ran, which must not be lost.
        """
        self._settled += 1
        if self._callback is None:
            return None
        if self._plan.positions is not None or self._plan.samples > 1:
            number, sample = self._plan.place(row.row)
            row = replace(row, row=number, sample=sample)
        try:
            self._callback(self._settled, self._plan.total, row)
        except KeyboardInterrupt as error:
            self._callback = None
            return error
        except BaseException as error:  # noqa: BLE001 - reported, and the run goes on
            self._callback = None
            # Said when the run is over: where warnings are errors, it would end the run.
            self._record.warnings.append(
                f"the progress callback raised {said(error)}; it was not "
                "called again, and the run went on"
            )
        return None

    def open_display(self) -> None:
        """Open the bar or live display, if the user wants one."""
        open_display, self._open_display = self._open_display, None
        if open_display is not None:
            with self._display_may_fail():
                self._display = open_display(self._plan.total)

    @property
    def is_shown(self) -> bool:
        return self._display is not None

    def show(self) -> None:
        """Show the record as it is now."""
        if self._display is not None:
            with self._display_may_fail():
                self._display.update(self._record)

    def close(self) -> None:
        """Leave the screen as it should stay."""
        if self._display is not None:
            with self._display_may_fail():
                self._display.close()

    @contextmanager
    def _display_may_fail(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - reported, and the run goes on
            self._display = None
            self._record.warnings.append(
                f"the progress display raised {said(error)}; it was not "
                "drawn again, and the run went on"
            )
