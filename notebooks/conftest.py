"""While notebooks are compared, nothing of this machine decides what they show."""

from __future__ import annotations

import os

os.environ["TQDM_DISABLE"] = "1"
os.environ["REVKIT_STORE"] = "off"
for _name in ("REVKIT_MODEL", "OLLAMA_HOST", "OPENAI_BASE_URL", "OPENAI_API_KEY"):
    os.environ.pop(_name, None)
