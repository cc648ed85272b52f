"""Chat with an agent, in the browser or in the terminal.

    python chat_app.py                           # the newest finished run, or the embedded policy if there is none
    python chat_app.py --agent runs/NAME         # or an agent folder, or any Hugging Face causal language model
    python chat_app.py --terminal                # in the terminal, or over a pipe

The page listens on 127.0.0.1 and loads nothing from other hosts.
"""

import io
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import dailydialog_gym.chat  # noqa: F401  # isort: skip  (first, to say what is not installed)
import transformers

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.chat.conversation import USUAL, Chat, check_message
from dailydialog_gym.errors import run_script
from dailydialog_gym.ranges import Port, Seed
from dailydialog_gym.text import escape_invisible


@dataclass
class Args:
    agent: str | None = None
    """a run folder, an agent folder, "builtin" or a hub id; by default the newest finished run"""
    baseline: str | None = None
    """the agent or model that the agent is compared with; by default the model that its run started from"""
    policy_class: str | None = None
    """MODULE:CLASS of the agent's model if it was trained with --policy-class; others that name it in their folders
    have it too"""
    intent_model: str | None = "builtin"
    """the classifier that shows the act of a reply: "builtin", a sequence classifier by folder or hub id, or None"""
    intent_labels: tuple[str, ...] | None = None
    """the acts of the classifier's labels in order, if the names in its configuration are wrong"""
    votes: Path | None = None
    """the file for votes; by default votes.jsonl in the run folder, next to an agent folder, or in this folder"""
    terminal: bool = False
    """chat in the terminal instead of the browser"""
    greedy: bool = False
    """in the terminal: always take the most probable token instead of sampling"""
    seed: Seed | None = None
    """in the terminal: random seed of sampling; by default a new one for each reply"""
    trust_remote_code: bool = False
    """allow the model to run Python code of its own, which has all of your permissions"""
    host: str = "127.0.0.1"
    """the address to listen on; 0.0.0.0 is all networks of this machine"""
    port: Port = 7860
    """the port to listen on, or the next one that is free"""
    root_path: str | None = None
    """the URL under which a proxy shows the page, such as https://example.org/chat"""
    share: bool = False
    """open a public link through Gradio's servers"""
    auth: str | None = None
    """NAME:PASSWORD that visitors must enter"""


def talk_in_terminal(agent: DialogueAgent, greedy: bool, seed: int | None) -> None:
    """Answer messages from standard input, one per line, until "quit" or the end of the input.

    "reset" starts a new conversation.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # what is no text in its encoding
    print('"reset" begins a new conversation, "quit" ends it.')
    history: list[str] = []
    while True:
        print("> You: ", end="", flush=True)
        line = sys.stdin.readline()
        if not sys.stdin.isatty():
            print(escape_invisible(line.strip()))  # a terminal shows the line while it is typed
        if not line or line.strip() == "quit":
            return
        if line.strip() == "reset":
            history = []
            print("(a new conversation)")
            continue
        try:
            message = check_message(line.strip())
        except ValueError as error:
            print(f"({error})")
            continue
        decoding = {"sample": not greedy, "temperature": USUAL.temperature, "top_k": USUAL.top_k}
        decoding["seed"] = random.getrandbits(32) if seed is None else seed
        print("> Agent: ", end="", flush=True)
        shown = ""
        for text in map(escape_invisible, agent.chat_stream(message, history, **decoding)):
            if sys.stdout.isatty():
                same = next((i for i, (a, b) in enumerate(zip(shown, text, strict=False)) if a != b), len(shown))
                # The end of the text may change, from "I '" to "I'm": go back, clear the rest of the line, write.
                print("\b" * (len(shown) - same) + "\x1b[K" + text[same:], end="", flush=True)
            shown = text
        print("" if sys.stdout.isatty() else shown)
        history += [message, shown] if shown else []


def main(args: Args) -> None:
    transformers.utils.logging.disable_progress_bar()
    intent_model = None if args.terminal else args.intent_model
    more = (intent_model, args.intent_labels, args.trust_remote_code)
    chat = Chat.open(args.agent, args.baseline, args.policy_class, *more)
    print(f"agent     {chat.default.title}: {chat.default.story}")
    if args.terminal:
        talk_in_terminal(chat.agent(chat.default.title), args.greedy, args.seed)
        return
    votes = args.votes or chat.default.home / "votes.jsonl"
    print(f"votes     {votes}")
    # Imported here because it takes seconds, which --terminal does not need.
    from dailydialog_gym.chat.page import build_page
    from dailydialog_gym.chat.server import launch

    launch(build_page(chat, votes), args.host, args.port, args.share, args.auth, args.root_path)


if __name__ == "__main__":
    run_script(main, Args, __doc__)
