"""The clients that ``calls.py`` compares, each as little code as its documentation asks for.

A client is made once for a server and a number of workers, and gives a function from prompts to
replies in their order. All send one request a row, with the same instructions and, where they can,
the same JSON schema; all read the label out of the reply. What a client does beyond that (checks,
retries, a cache) is what it does by default.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

Map = Callable[[list[str]], list[Any]]

MODEL = "m"
INSTRUCTIONS = (
    "Say what the customer who wrote the review thinks of the product.\n\n"
    "Reply with one JSON object that has these keys and no others:\n"
    '- "sentiment": one of "positive", "neutral", "negative"'
)
SCHEMA = {
    "properties": {"sentiment": {"enum": ["positive", "neutral", "negative"], "type": "string"}},
    "type": "object",
    "required": ["sentiment"],
    "additionalProperties": False,
}
FORMAT: Any = {
    "type": "json_schema",
    "json_schema": {"name": "outputs", "strict": True, "schema": SCHEMA},
}

#: litellm and dspy fetch a list of prices, but for this.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

CLIENTS: dict[str, Callable[[str, int], Map]] = {}


def client(name: str) -> Callable[[Callable[[str, int], Map]], Callable[[str, int], Map]]:
    """Gives a client the name that tables call it by."""

    def note(make: Callable[[str, int], Map]) -> Callable[[str, int], Map]:
        CLIENTS[name] = make
        return make

    return note


def messages(prompt: str) -> list[Any]:
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": prompt}]


def body(prompt: str) -> dict[str, Any]:
    asked = {"model": MODEL, "messages": messages(prompt), "temperature": 0}
    return {**asked, "response_format": FORMAT}


def sentiment(text: str | None) -> Any:
    return json.loads(text or "{}").get("sentiment")


@client("revkit")
def revkit_by_default(url: str, workers: int) -> Map:
    import pandas as pd

    import revkit

    task = revkit.Signature(
        "Say what the customer who wrote the review thinks of the product.",
        inputs="review",
        outputs={"sentiment": ["positive", "neutral", "negative"]},
    )
    model = revkit.OpenAICompatible(MODEL, base_url=f"{url}/v1", api_key="none")

    def run(prompts: list[str]) -> list[Any]:
        frame = pd.DataFrame({"review": prompts})
        with tempfile.TemporaryDirectory() as place:  # a store of its own for each run
            run = frame.llm.parallel_map(
                task, model=model, max_workers=workers, store=Path(place) / "replies.sqlite"
            )
        assert run.latency["p99"] > 0
        sentiments: list[Any] = frame["sentiment"].tolist()
        return sentiments

    return run


@client("revkit, threads")
def revkit_threads(url: str, workers: int) -> Map:
    import pandas as pd

    import revkit

    task = revkit.Signature(
        "Say what the customer who wrote the review thinks of the product.",
        inputs="review",
        outputs={"sentiment": ["positive", "neutral", "negative"]},
    )
    model = revkit.OpenAICompatible(MODEL, base_url=f"{url}/v1", api_key="none")

    def run(prompts: list[str]) -> list[Any]:
        frame = pd.DataFrame({"review": prompts})
        with tempfile.TemporaryDirectory() as place:
            store = Path(place) / "replies.sqlite"
            frame.llm.parallel_map(
                task, model=model, engine="thread", max_workers=workers, store=store
            )
        sentiments: list[Any] = frame["sentiment"].tolist()
        return sentiments

    return run


async def bare_aiohttp(url: str, workers: int, prompts: list[str]) -> list[Any]:
    """Nothing but workers on one iterator: what one would write by hand for speed."""
    import aiohttp
    import orjson

    headers = {"content-type": "application/json", "authorization": "Bearer none"}
    found: list[Any] = [None] * len(prompts)
    rows = iter(enumerate(prompts))

    async def work(session: aiohttp.ClientSession) -> None:
        for row, prompt in rows:
            async with session.post(
                f"{url}/v1/chat/completions", data=orjson.dumps(body(prompt)), headers=headers
            ) as response:
                response.raise_for_status()
                reply = orjson.loads(await response.read())
            text = reply["choices"][0]["message"]["content"]
            found[row] = orjson.loads(text)["sentiment"]

    connector = aiohttp.TCPConnector(limit=workers)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(work(session) for _ in range(workers)))
    return found


@client("bare aiohttp workers")
def aiohttp_workers(url: str, workers: int) -> Map:
    return lambda prompts: asyncio.run(bare_aiohttp(url, workers, prompts))


@client("bare aiohttp workers, uvloop")
def aiohttp_workers_on_uvloop(url: str, workers: int) -> Map:
    import uvloop

    return lambda prompts: uvloop.run(bare_aiohttp(url, workers, prompts))


@client("httpx.AsyncClient + gather")
def httpx_gather(url: str, workers: int) -> Map:
    import httpx

    async def run(prompts: list[str]) -> list[Any]:
        slots = asyncio.Semaphore(workers)
        limits = httpx.Limits(max_connections=workers, max_keepalive_connections=workers)
        async with httpx.AsyncClient(limits=limits, timeout=60) as http:

            async def ask(prompt: str) -> Any:
                async with slots:
                    response = await http.post(f"{url}/v1/chat/completions", json=body(prompt))
                response.raise_for_status()
                return sentiment(response.json()["choices"][0]["message"]["content"])

            return await asyncio.gather(*map(ask, prompts))

    return lambda prompts: asyncio.run(run(prompts))


@client("OpenAI SDK + thread_map")
def openai_thread_map(url: str, workers: int) -> Map:
    import httpx
    import openai
    from tqdm.contrib.concurrent import thread_map

    limits = httpx.Limits(max_connections=workers, max_keepalive_connections=workers)
    sdk = openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", http_client=openai.DefaultHttpxClient(limits=limits)
    )

    def ask(prompt: str) -> Any:
        said = sdk.chat.completions.create(
            model=MODEL, messages=messages(prompt), temperature=0, response_format=FORMAT
        )
        return sentiment(said.choices[0].message.content)

    def run(prompts: list[str]) -> list[Any]:
        return list(thread_map(ask, prompts, max_workers=workers, disable=True))

    return run


@client("OpenAI async SDK + gather")
def openai_gather(url: str, workers: int) -> Map:
    import httpx
    import openai

    limits = httpx.Limits(max_connections=workers, max_keepalive_connections=workers)

    async def run(prompts: list[str]) -> list[Any]:
        slots = asyncio.Semaphore(workers)
        async with openai.AsyncOpenAI(
            base_url=f"{url}/v1",
            api_key="none",
            http_client=openai.DefaultAsyncHttpxClient(limits=limits),
        ) as sdk:

            async def ask(prompt: str) -> Any:
                async with slots:
                    said = await sdk.chat.completions.create(
                        model=MODEL,
                        messages=messages(prompt),
                        temperature=0,
                        response_format=FORMAT,
                    )
                return sentiment(said.choices[0].message.content)

            return await asyncio.gather(*map(ask, prompts))

    return lambda prompts: asyncio.run(run(prompts))


@client("dspy.Parallel")
def dspy_parallel(url: str, workers: int) -> Map:
    import dspy

    model = dspy.LM(
        f"openai/{MODEL}", api_base=f"{url}/v1", api_key="none", cache=False, temperature=0
    )
    dspy.configure(lm=model, adapter=dspy.JSONAdapter())
    signature = dspy.Signature("review -> sentiment", INSTRUCTIONS).with_updated_fields(
        "sentiment", type_=Literal["positive", "neutral", "negative"]
    )
    predict = dspy.Predict(signature)

    def run(prompts: list[str]) -> list[Any]:
        parallel = dspy.Parallel(num_threads=workers, disable_progress_bar=True)
        asked = [(predict, {"review": prompt}) for prompt in prompts]
        return [said.sentiment for said in parallel(asked)]

    return run


@client("LangChain batch")
def langchain_batch(url: str, workers: int) -> Map:
    from langchain_openai import ChatOpenAI

    model = ChatOpenAI(model=MODEL, base_url=f"{url}/v1", api_key="none", temperature=0)
    asking = model.bind(response_format=FORMAT)

    def run(prompts: list[str]) -> list[Any]:
        said = asking.batch(
            [messages(prompt) for prompt in prompts], config={"max_concurrency": workers}
        )
        return [sentiment(one.content) for one in said]

    return run


@client("litellm batch_completion")
def litellm_batch(url: str, workers: int) -> Map:
    import litellm

    def run(prompts: list[str]) -> list[Any]:
        said = litellm.batch_completion(
            model=f"openai/{MODEL}",
            messages=[messages(prompt) for prompt in prompts],
            api_base=f"{url}/v1",
            api_key="none",
            temperature=0,
            response_format=FORMAT,
            max_workers=workers,
        )
        return [sentiment(one.choices[0].message.content) for one in said]

    return run


@client("distribatch")
def distribatch_job(url: str, workers: int) -> Map:
    import distribatch
    import pandas as pd
    from pydantic import create_model

    os.environ["OPENAI_API_KEY"] = "none"
    outputs = create_model("Outputs", sentiment=Literal["positive", "neutral", "negative"])
    job = distribatch.GenerateJob(
        model=distribatch.models.openai(MODEL, base_url=f"{url}/v1"),
        prompt="{review}",
        system=INSTRUCTIONS,
        output_schema=outputs,
        engine_options={"max_concurrency": workers},
    )

    def run(prompts: list[str]) -> list[Any]:
        # Rows wait for the last one of their batch: with a batch of all rows, for nothing.
        done = job.run(
            pd.DataFrame({"review": prompts}), output_col="found", batch_size=len(prompts)
        )
        return [one["sentiment"] for one in done["found"]]

    return run


@client("silkloom-core")
def silkloom_extract(url: str, workers: int) -> Map:
    import pandas as pd
    import silkloom_core

    def run(prompts: list[str]) -> list[Any]:
        with tempfile.TemporaryDirectory() as place:
            silkloom_core.configure(
                api_key="none", base_url=f"{url}/v1", cache_path=Path(place) / "cache.db"
            )
            frame = pd.DataFrame({"review": prompts})
            done = frame.llm.extract(
                "{{ review }}",
                model=MODEL,
                max_workers=workers,
                system_prompt=INSTRUCTIONS,
                verbose=False,
                temperature=0,
                response_format=FORMAT,
            )
            sentiments: list[Any] = done["sentiment"].tolist()
        return sentiments

    return run


@client("openaivec, one row a request")
def openaivec_responses(url: str, workers: int) -> Map:
    import openai
    import openaivec
    import pandas as pd
    import tiktoken
    from openaivec import pandas_ext  # noqa: F401 - registers .aio

    # It counts tokens with a table that it would fetch; single bytes do as well.
    ranks = {bytes([byte]): byte for byte in range(256)}
    tiktoken.registry.ENCODINGS["o200k_base"] = tiktoken.Encoding(
        "o200k_base", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={}
    )
    openaivec.set_responses_model(MODEL)

    async def run(prompts: list[str]) -> list[Any]:
        openaivec.set_async_client(openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none"))
        said = await pd.Series(prompts).aio.responses(
            INSTRUCTIONS, batch_size=1, max_concurrency=workers, show_progress=False
        )
        sentiments: list[Any] = said.tolist()
        return sentiments

    return lambda prompts: asyncio.run(run(prompts))
