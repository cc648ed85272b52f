"""How long people wait for replies of the embedded policy in chat_app.py: python benchmarks/chat_speed.py

The benchmark measures one person alone, and 20 and 40 people at once who say different things, both in this process and
through the page's endpoint.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing
from statistics import median

import httpx
import torch
import transformers
from machine import processor, versions

from dailydialog_gym.chat.conversation import Chat
from dailydialog_gym.chat.page import build_page
from dailydialog_gym.chat.server import launch
from dailydialog_gym.models.decoding import Decoding

MESSAGE = "I was thinking about going to the cinema on Friday. Would you like to come with me?"
HISTORY = ["Good morning! How are you?", "Fine, thanks. And you?", "Very well. It's a lovely day.", "Yes, it is."]


async def in_process(chat: Chat, people: int) -> list[tuple[float, float]]:
    """For each person: the seconds to the first token, and the tokens per second, counted from the request."""

    async def talk(seed: int) -> tuple[float, float]:
        start = time.perf_counter()
        how = Decoding(sample=True, top_k=20, max_new_tokens=60, seed=seed)
        title = chat.default.title
        reply = chat.agent(title).open_reply([*HISTORY, f"{seed} times I thought: {MESSAGE}"], how)
        async with aclosing(chat.stream((title, reply))) as growing:
            await anext(growing)
            first = time.perf_counter() - start
            async for _ in growing:
                pass
        return first, len(reply.ids) / (time.perf_counter() - start)

    return await asyncio.gather(*(talk(seed) for seed in range(people)))


async def through_endpoint(url: str, people: int) -> list[float]:
    """For each person: the seconds to the first words."""

    async def talk(client: httpx.AsyncClient, seed: int) -> float:
        start, first = time.perf_counter(), None
        data = [f"{seed} times I thought: {MESSAGE}", HISTORY, True, 1.0, 20, 1.0, 20, seed]
        event = (await client.post(url, json={"data": data})).json()["event_id"]
        async with client.stream("GET", f"{url}/{event}") as lines:
            async for line in lines.aiter_lines():
                if line.startswith("data: ["):
                    first = first or time.perf_counter() - start
        return first

    async with httpx.AsyncClient(timeout=60) as client:
        return await asyncio.gather(*(talk(client, seed) for seed in range(people)))


def ms(seconds: list[float], summary: Callable[[list[float]], float]) -> str:
    return f"{1e3 * summary(seconds):.0f} ms"


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    chat = Chat.open("builtin", intent_model=None)
    asyncio.run(in_process(chat, 2))  # warm-up: the first forward pass of a process takes longer
    print(f"{processor()}, {torch.get_num_threads()} threads; {versions('torch', 'transformers', 'gradio')}")
    first, speed = zip(*(asyncio.run(in_process(chat, 1))[0] for _ in range(10)), strict=True)
    print(
        f"alone, in process: first token {ms(first, median)} (median of 10), {ms(first, max)} (maximum); "
        f"{median(speed):.0f} tokens/s"
    )
    for people in (20, 40):
        first, speed = zip(*asyncio.run(in_process(chat, people)), strict=True)
        print(
            f"{people} at once, in process: first token {ms(first, max)} (maximum); {sum(speed):.0f} tokens/s together"
        )
    page = build_page(chat)
    port = launch(page, prevent_thread_lock=True, quiet=True)
    url = f"http://127.0.0.1:{port}/gradio_api/call/chat"
    asyncio.run(through_endpoint(url, 2))  # warm-up
    first = [asyncio.run(through_endpoint(url, 1))[0] for _ in range(10)]
    print(f"alone, through the endpoint: first words {ms(first, median)} (median of 10), {ms(first, max)} (maximum)")
    for people in (20, 40):
        start = time.process_time()
        first = asyncio.run(through_endpoint(url, people))
        print(
            f"{people} at once, through the endpoint: first words {ms(first, median)} (median), {ms(first, max)} "
            f"(maximum); {time.process_time() - start:.1f} s of CPU time for all of them"
        )
    page.close()


if __name__ == "__main__":
    main()
