"""What type checkers know of revkit where it is used; mypy reads this file, and nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import assert_type

import revkit
from revkit import store
from revkit.store import Store, StoreInfo

assert_type(store.info().by_model, Mapping[str, int])
assert_type(revkit.store.info("replies.sqlite"), StoreInfo)
assert_type(store.clear(model="m", before="2026-01-31"), int)
assert_type(store.default_path(), Path)
assert_type(Store.open("replies.sqlite"), Store)
assert_type(revkit.Ollama("llama3.2:3b"), revkit.Ollama)
assert_type(revkit.map_parquet("a.parquet", len, "b.parquet"), revkit.ParquetResult)
assert_type(revkit.collect(None), revkit.ParallelResult)

# A name that is not there is an error, although both packages import theirs late.
store.inof()  # type: ignore[attr-defined]
revkit.paralel_map([])  # type: ignore[attr-defined]
