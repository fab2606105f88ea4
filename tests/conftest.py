"""Every test starts as a new process would: nothing configured or kept, no bar drawn."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import revkit

# HYPOTHESIS_PROFILE=nightly tries ten times as many examples. No profile fails a test because the
# machine is busy. With CI set, every run tries the same examples, and a failure prints how to
# reproduce it.
settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100
)
settings.register_profile(
    "ci", settings.get_profile("default"), derandomize=True, print_blob=True, database=None
)
settings.register_profile(
    "nightly", settings.get_profile("default"), max_examples=1000, print_blob=True
)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "default")
)

# For the processes that are started before a test's own settings: kernels, above all.
os.environ["REVKIT_STORE"] = "off"
# Dask's profiler hangs a worker now and then on Python 3.11 before 3.11.12 (python/cpython#106883).
os.environ["DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED"] = "False"
# A shell has interrupts ignored in what it starts in the background, and in all that this starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def nothing_configured(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("REVKIT_", "OPENAI_", "OLLAMA_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("REVKIT_STORE", "off")
    revkit.use(None)
    yield
    revkit.use(None)


@pytest.fixture
def no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what a run's HTML says: its picture, which takes longer, is left empty."""
    monkeypatch.setattr(revkit.ParallelResult, "timeline_png", lambda self: b"")
