"""How long people wait for the embedded policy in chat_app.py: python benchmarks/chat_speed.py

Alone and 20 at once, in process and through the page's endpoint.
"""

import asyncio
import socket
import statistics
import time
from contextlib import aclosing
from pathlib import Path

import httpx
import torch
import transformers

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.chat.conversation import Chat, choose_threads
from dailydialog_gym.chat.page import build_page, launch
from dailydialog_gym.chat.trained import find_agent
from dailydialog_gym.models.decoding import Decoding

MESSAGE = "I was thinking about going to the cinema on Friday. Would you like to come with me?"
HISTORY = ["Good morning! How are you?", "Fine, thanks. And you?", "Very well. It's a lovely day.", "Yes, it is."]


async def in_process(chat: Chat, people: int) -> list[tuple[float, float]]:
    """Seconds to the first token, and tokens a second from the request on, for each."""

    async def talk(seed: int) -> tuple[float, float]:
        start = time.perf_counter()
        how = Decoding(sample=True, top_k=20, max_new_tokens=60, seed=seed)
        reply = chat.trained.open_reply([*HISTORY, MESSAGE], how)
        async with aclosing(chat.stream(reply)) as growing:
            await anext(growing)
            first = time.perf_counter() - start
            async for _ in growing:
                pass
        return first, len(reply.ids) / (time.perf_counter() - start)

    return await asyncio.gather(*(talk(seed) for seed in range(people)))


async def through_endpoint(url: str, people: int) -> list[float]:
    """Seconds to the first words, for each."""

    async def talk(client: httpx.AsyncClient, seed: int) -> float:
        start, first = time.perf_counter(), None
        data = [MESSAGE, HISTORY, True, 1.0, 20, 1.0, 20, seed]
        event = (await client.post(url, json={"data": data})).json()["event_id"]
        async with client.stream("GET", f"{url}/{event}") as lines:
            async for line in lines.aiter_lines():
                if line.startswith("data: ["):
                    first = first or time.perf_counter() - start
        return first

    async with httpx.AsyncClient(timeout=60) as client:
        return await asyncio.gather(*(talk(client, seed) for seed in range(people)))


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    chat = Chat(DialogueAgent.load("builtin"), None, None, Path())
    choose_threads(chat.trained.model)
    asyncio.run(in_process(chat, 2))  # the first forward pass of a process takes longer
    print(f"{torch.get_num_threads()} threads")
    alone = [asyncio.run(in_process(chat, 1))[0] for _ in range(10)]
    print(
        f"alone, in process: first token {1e3 * statistics.median(first for first, _ in alone):.0f} ms (median of 10, "
        f"worst {1e3 * max(first for first, _ in alone):.0f}), {statistics.median(speed for _, speed in alone):.0f} "
        "tokens/s"
    )
    many = asyncio.run(in_process(chat, 20))
    print(
        f"20 at once, in process: first token {1e3 * max(first for first, _ in many):.0f} ms for the last, "
        f"{sum(speed for _, speed in many):.0f} tokens/s together"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = build_page(chat, find_agent("builtin"))
    launch(page, "127.0.0.1", port, share=False, auth=None, prevent_thread_lock=True, quiet=True)
    url = f"http://127.0.0.1:{port}/gradio_api/call/chat"
    asyncio.run(through_endpoint(url, 2))
    first = [asyncio.run(through_endpoint(url, 1))[0] for _ in range(10)]
    print(
        f"alone, through the endpoint: first words {1e3 * statistics.median(first):.0f} ms (median of 10, "
        f"worst {1e3 * max(first):.0f})"
    )
    processor = time.process_time()
    first = asyncio.run(through_endpoint(url, 20))
    print(
        f"20 at once, through the endpoint: first words {1e3 * statistics.median(first):.0f} ms (median), "
        f"{1e3 * max(first):.0f} ms for the last; {time.process_time() - processor:.1f} s of processor time for all"
    )
    page.close()


if __name__ == "__main__":
    main()
