"""How many examples a property test tries."""

from __future__ import annotations

from hypothesis import settings


def examples(count: int) -> settings:
    """Try so many examples, and more in proportion in a profile that tries more than 100.

    The profiles are in ``conftest.py``.
    """
    return settings(max_examples=max(1, count * settings.default.max_examples // 100))
