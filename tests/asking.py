"""One prompt through a client, on either engine's transport: what tests of the clients share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from revkit.clients.contract import Client
from revkit.runtime.work import adrive, drive
from revkit.task.chat import Reply
from revkit.task.kinds import ModelTask, Signature, Template

CLASSIFY = Signature(
    "Classify.", inputs="review", outputs={"sentiment": ["positive", "negative"], "stars": int}
)
SUMMARISE = Template("Summarise: {review}")
ROW = {"review": "Broke twice."}

Ask = Callable[..., Reply]


def ask_in_a_thread(client: Client, task: ModelTask = SUMMARISE) -> Reply:
    with contextlib.closing(client.transport(max_workers=1)) as transport:
        return drive(client.session(task).exchange(task.messages(ROW)), transport.send)


def ask_on_a_loop(client: Client, task: ModelTask = SUMMARISE) -> Reply:
    async def main() -> Reply:
        async with contextlib.aclosing(await client.async_transport(max_workers=1)) as transport:
            return await adrive(client.session(task).exchange(task.messages(ROW)), transport.send)

    return asyncio.run(main())


ENGINES = [ask_in_a_thread, ask_on_a_loop]
