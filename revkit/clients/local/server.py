"""The program of the embedded model's own process. revkit runs this file; it never imports it.

It imports the standard library and llama.cpp's server and nothing else, so that it starts at
once. What it is told comes over stdin, where no other user of the machine can read it: first one
line of JSON, the settings; then ``+`` for each run that begins and ``-`` for each that ends. When
the server is up, its address goes to stdout as the one line. The end of stdin means that
revkit's process is gone, however it went, and this one goes too.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from typing import Any

#: The log starts anew when it is larger than this (bytes).
_MAX_LOG = 1 << 20


def main() -> None:
    # llama.cpp may print to stdout: what it prints goes to the log, like its errors.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.stdin.readline())
    events: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(events,), daemon=True).start()
    server = _serve(settings)
    answer.write(json.dumps({"endpoint": server.listening_address}) + "\n")
    answer.close()
    runs = 0
    while True:
        try:
            runs += 1 if events.get(timeout=settings["idle_s"]) == "+" else -1
        except queue.Empty:
            if runs == 0:
                # Not by return: nothing is left to be tidied up, and native threads are still at
                # work, which do not survive an interpreter that is being taken down.
                os._exit(0)
        if os.fstat(2).st_size > _MAX_LOG:
            os.ftruncate(2, 0)
            os.lseek(2, 0, os.SEEK_SET)


def _listen(events: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        events.put(line.strip())
    os._exit(0)


def _serve(settings: dict[str, Any]) -> Any:
    """Start llama.cpp's server; returns when the model is loaded."""
    sys.path.append(settings["site"])  # where revkit's process found it
    import xllamacpp  # type: ignore[import-untyped, unused-ignore]

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.hostnames = ["127.0.0.1"]
    params.port = 0  # the system chooses
    params.api_keys = [settings["key"]]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["slots"] * settings["n_ctx"]  # the server divides it among the slots
    params.cache_ram_mib = 0  # it would keep a gigabyte of old prompts
    if settings["threads"]:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    params.offline = True
    params.ui = False
    params.endpoint_slots = False  # it shows the prompts
    params.verbosity = 1  # errors: more would be a dozen lines for each row
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
