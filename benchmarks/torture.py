"""What the project does when things go wrong, counted: python benchmarks/torture.py

Runs are killed, run out of disk, and are resumed from damaged checkpoints; the chat page gets many visitors at once and
requests that make no sense; models come with senseless configurations. Each line says how many of how many cases went
as docs/reliability.md promises; the exit code is 1 if one did not. It needs Linux or macOS.
"""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
import transformers
import tyro
from machine import processor, versions
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dailydialog_gym.chat.conversation import Chat
from dailydialog_gym.chat.page import build_page
from dailydialog_gym.chat.server import launch
from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.models.loading import load_model

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))
from forks import Server  # noqa: E402

SCRIPT = ROOT / "ppo_dialog.py"
FLAGS = "--num-envs 8 --total-episodes 64 --num-minibatches 2 --replies-per-prompt 2 --update-epochs 1 --eval-samples 4"
FLAGS += " --checkpoint-every 2 --max-prompt-length 32 --max-new-tokens 6 --critic separate --run-name run"


@dataclass
class Args:
    kills: int = 40
    """how often a run is killed, at random moments"""
    full_disks: int = 5
    """how often a run finds the disk full"""
    corruptions: int = 16
    """how many damaged checkpoints a run is resumed from"""
    clients: int = 40
    """how many people talk to the page at once"""
    requests: int = 1000
    """how many requests that make no sense the page gets"""
    configurations: int = 60
    """how many models with a senseless configuration are loaded"""
    seed: int = 1
    """random seed of all of these"""


def weights(run: Path) -> tuple[bytes, bytes]:
    """What a finished run learned and measured."""
    return (run / "agent/model.safetensors").read_bytes(), (run / "evaluation.json").read_bytes()


class Trainings:
    """Runs of the script in folders of their own, of a small random model, and the outcome of an undisturbed one."""

    def __init__(self, folder: Path):
        self.model, self.folder = str(folder / "small"), folder
        config = AutoConfig.from_pretrained(ASSETS / "policy", n_layer=2, n_embd=64, n_head=2)
        AutoModelForCausalLM.from_config(config).save_pretrained(self.model)
        AutoTokenizer.from_pretrained(ASSETS / "policy").save_pretrained(self.model)
        self.server = Server(SCRIPT, self.model)
        for name in ("first", "whole"):  # the server starts with the first
            start = time.perf_counter()
            whole = self.begin(name)
            assert self.server.wait() == 0, self.log(whole)
        self.seconds, self.expected = time.perf_counter() - start, weights(whole / "runs/run")

    def begin(self, name: str, **options: int) -> Path:
        """Begin a run, or go on with it."""
        cwd = self.folder / name
        cwd.mkdir(exist_ok=True)
        resumed = (cwd / "runs/run").exists()
        command = ("--resume", "runs/run") if resumed else (*FLAGS.split(), "--model", self.model)
        self.pid = self.server.start(cwd, SCRIPT, *command, **options)
        return cwd

    def log(self, cwd: Path) -> str:
        return (cwd / "log.txt").read_text(encoding="utf-8")

    def ended_in_one_line(self, cwd: Path, code: int) -> bool:
        lines = self.log(cwd).splitlines()
        return code == 1 and "error: " in lines[-1] and not any("Traceback" in line for line in lines)

    def goes_on(self, cwd: Path) -> bool:
        """Whether the run ends as the undisturbed one does."""
        self.begin(cwd.name)
        return self.server.wait() == 0 and weights(cwd / "runs/run") == self.expected


def killed(trainings: Trainings, kills: int, chance: random.Random) -> tuple[int, int]:
    """Of the runs that were killed on their way, how many end as the undisturbed one does."""
    finished = good = done = 0
    while done < kills or finished == 0:
        cwd = trainings.begin(f"killed{finished}")
        if done < kills:
            time.sleep(chance.uniform(0, 0.6 * trainings.seconds))
            with contextlib.suppress(ProcessLookupError):
                os.kill(trainings.pid, signal.SIGKILL)
        code = trainings.server.wait()
        if code == -signal.SIGKILL:
            done += 1
        else:
            finished += 1
            good += code == 0 and weights(cwd / "runs/run") == trainings.expected
    return good, finished


def out_of_disk(trainings: Trainings, cases: int, chance: random.Random) -> tuple[int, int]:
    """A killed run goes on, and the disk is full; a limit on the size of files simulates that."""
    good = 0
    for case in range(cases):
        trainings.begin(f"full{case}")
        time.sleep(chance.uniform(0, 0.6 * trainings.seconds))
        os.kill(trainings.pid, signal.SIGKILL)
        trainings.server.wait()
        cwd = trainings.begin(f"full{case}", file_size=chance.randrange(1000, 1_000_000))
        good += trainings.ended_in_one_line(cwd, trainings.server.wait()) and trainings.goes_on(cwd)
    return good, cases


def damaged(trainings: Trainings, cases: int, chance: random.Random) -> tuple[int, int]:
    """The newest checkpoint has a fault in a random file: it is refused, and without it the run goes on."""
    good = 0
    for case in range(cases):
        cwd = trainings.folder / f"damaged{case}"
        shutil.copytree(trainings.folder / "whole", cwd)
        newest = max((cwd / "runs/run/checkpoints").iterdir())
        path = chance.choice([path for path in sorted(newest.rglob("*")) if path.is_file()])
        content = bytearray(path.read_bytes())
        match case % 4:
            case 0:
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
            case 1:
                del content[chance.randrange(len(content)) :]
            case 2:
                content[:] = chance.randbytes(len(content))
        if case % 4 == 3:
            path.unlink()
        else:
            path.write_bytes(content)
        trainings.begin(cwd.name)
        refused = trainings.ended_in_one_line(cwd, trainings.server.wait())
        named = str(path.relative_to(cwd)) in trainings.log(cwd).splitlines()[-1]
        newest.rename(newest.with_name("damaged"))
        good += refused and named and trainings.goes_on(cwd)
        shutil.rmtree(cwd)
    return good, cases


async def visited(url: str, chat: Chat, people: int) -> tuple[int, int, float]:
    """How many of the people at once get the reply that they would get alone, and the longest wait for a first word."""

    def message(person: int) -> str:
        return f"I am number {person} of {people}. How are you?"

    agent = chat.agent(chat.default.title)
    alone = [agent.chat(message(n), sample=True, top_k=20, seed=n) for n in range(people)]
    call = f"{url}/gradio_api/call/chat"

    async def talk(client: httpx.AsyncClient, n: int) -> tuple[str, float]:
        start, first, last = time.perf_counter(), None, ""
        event = (await client.post(call, json={"data": [message(n), [], True, 1.0, 20, 1.0, 20, n]})).json()["event_id"]
        async with client.stream("GET", f"{call}/{event}") as lines:
            async for line in lines.aiter_lines():
                if line.startswith("data: ["):
                    first, last = first or time.perf_counter() - start, json.loads(line[6:])[0]
        return last, first

    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as client:
        await talk(client, 0)  # warm-up
        answers = await asyncio.gather(*(talk(client, n) for n in range(people)))
    return sum(text == own for (text, _), own in zip(answers, alone, strict=True)), people, max(t for _, t in answers)


def anything(chance: random.Random, depth: int = 0):
    """A random JSON value."""
    kind = chance.randrange(8 if depth < 4 else 6)
    if kind < 6:
        texts = ["", "Hi.", "<script>", "\0", "x" * 5000, "\u202e", "__class__", "../../etc/passwd"]
        numbers = [0, -1, 1e308, 10**30, 0.5]
        return chance.choice([None, True, chance.choice(numbers), *[chance.choice(texts) for _ in range(3)]])
    values = [anything(chance, depth + 1) for _ in range(chance.randrange(9))]
    keys = ["data", "session_hash", "fn_index", "event_id", "do", "text", "component_id", "fn_name", "event_data"]
    return values if kind == 6 else {chance.choice(keys): value for value in values}


def requests(chance: random.Random, count: int) -> Iterator[tuple[str, str, bytes, dict[str, str]]]:
    """Method, path, body and headers."""
    paths = ["call/chat", "call/compare", "call/vote", "call/about", "run/chat", "queue/join"]
    paths += [
        "component_server",
        "upload",
        "reset",
        "cancel",
        "stream/x",
        "heartbeat/x/y",
        "file=/etc/passwd",
        "nothing",
    ]
    hosts = ["127.0.0.1", "evil.example", "", "localhost:1", "[::1", "\xff"]
    for _ in range(count):
        body = json.dumps(anything(chance) if chance.random() < 0.5 else {"data": [anything(chance) for _ in range(8)]})
        body = chance.choice([body.encode(), chance.randbytes(200), body.encode()[: len(body) // 2], b""])
        headers = {"Content-Type": chance.choice(["application/json", "multipart/form-data; boundary=x", "text/plain"])}
        if chance.random() < 0.2:
            headers["Host"] = chance.choice(hosts)
        if chance.random() < 0.2:
            headers["Origin"] = chance.choice(["null", "https://evil.example", "//", "http://[", ""])
        yield (
            chance.choice(["POST", "POST", "POST", "GET", "PUT"]),
            f"/gradio_api/{chance.choice(paths)}",
            body,
            headers,
        )


def pestered(url: str, chance: random.Random, count: int) -> tuple[int, int]:
    """How many senseless requests are answered within 10 seconds; afterwards the page must still work."""
    good = 0
    with httpx.Client(timeout=10) as client:
        for method, path, body, headers in requests(chance, count):
            raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
            try:
                # "queue/data" and the like stream without an end, so only the beginning of an answer counts
                with client.stream(method, url + path, content=body, headers=raw) as answer:
                    good += answer.status_code >= 200 and b"root:" not in next(answer.iter_raw(), b"")
            except httpx.TimeoutException:
                print("no answer to", method, path, body[:200], headers)
        about = client.post(f"{url}/gradio_api/run/about", json={"data": []})
    assert about.status_code == 200, about.text
    return good, count


def misconfigured(folder: Path, cases: int, chance: random.Random) -> tuple[int, int]:
    """How many models with a changed entry in their configuration are refused with a ValueError, or load, in 10 s."""
    good = 0
    config = json.loads((ASSETS / "policy/config.json").read_text(encoding="utf-8"))
    shutil.copytree(ASSETS / "policy", folder / "model")
    values = [None, True, 0, -1, 1, 10**6, 10**9, 2**40, 10**30, 1e308, "", "some/kernel", [], {}, [1], {"a": {"b": 1}}]
    for _ in range(cases):
        changed = config | {chance.choice(sorted(config)): chance.choice(values)}
        (folder / "model/config.json").write_text(json.dumps(changed), encoding="utf-8")
        start = time.perf_counter()
        try:
            load_model(str(folder / "model"))
        except ValueError:
            pass
        except Exception as error:  # what else is raised is a finding
            difference = {key: value for key, value in changed.items() if config[key] != value}
            print(f"{type(error).__name__} for {difference}: {error}")
            continue
        if time.perf_counter() - start > 10:
            print("slow:", {key: value for key, value in changed.items() if config[key] != value})
        good += time.perf_counter() - start < 10
    return good, cases


def main(args: Args) -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    chance = random.Random(args.seed)
    print(f"{processor()}, load {os.getloadavg()[0]:.0f}; {versions('torch', 'transformers', 'gradio')}", flush=True)
    bad, start = 0, time.perf_counter()

    def report(what: str, good: int, count: int, more: str = "") -> None:
        nonlocal bad, start
        bad += count - good
        print(f"{what}: {good} of {count}{more} ({time.perf_counter() - start:.0f} s)", flush=True)
        start = time.perf_counter()

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report(
            "models with a senseless configuration that load or are refused within 10 s",
            *misconfigured(folder, args.configurations, chance),
        )
        trainings = Trainings(folder)
        good, runs = killed(trainings, args.kills, chance)
        report("killed runs that end bit for bit as an undisturbed one", good, runs, f", after {args.kills} kills")
        report("full disks that end in one line and lose nothing", *out_of_disk(trainings, args.full_disks, chance))
        report("damaged checkpoints that are named, and left behind", *damaged(trainings, args.corruptions, chance))
        trainings.server.close()
        chat = Chat.open("builtin", intent_model=None)
        page = build_page(chat, folder / "votes.jsonl")
        with contextlib.redirect_stderr(open(os.devnull, "w", encoding="utf-8")):  # Gradio logs each senseless request
            port = launch(page, prevent_thread_lock=True, quiet=True)
            url = f"http://127.0.0.1:{port}"
            good, people, waited = asyncio.run(visited(url, chat, args.clients))
            report(
                "people at once who get their own reply",
                good,
                people,
                f", the last one's first word after {waited:.2f} s",
            )
            report("senseless requests that are answered", *pestered(url, chance, args.requests))
            good, people, waited = asyncio.run(visited(url, chat, args.clients))
            report("people at once who get their own reply afterwards", good, people)
            page.close()
    raise SystemExit(bad > 0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Args, description=__doc__))
