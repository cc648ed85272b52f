"""Talk with an agent, in the browser or in the terminal.

    python chat_app.py                           # the newest finished run, else the embedded policy
    python chat_app.py --agent runs/NAME         # or an agent folder, or any Hugging Face causal language model
    python chat_app.py --terminal                # here; works over a pipe too

The page listens on 127.0.0.1 and asks nothing of any other host.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
import tyro
from transformers import AutoModelForCausalLM

from dailydialog_gym.agent import DialogueAgent
from dailydialog_gym.chat.conversation import Chat, check_message, choose_threads
from dailydialog_gym.chat.trained import find_agent
from dailydialog_gym.objects import import_object
from dailydialog_gym.text import visible


@dataclass
class Args:
    agent: str | None = None
    """a run folder, an agent folder, "builtin" or a Hugging Face name; by default the newest finished run"""
    baseline: str | None = None
    """what Compare sets beside the agent; by default the model that its run started from"""
    policy_class: str | None = None
    """MODULE:CLASS of the agent, where it was trained with one"""
    intent_model: str | None = "builtin"
    """reads the acts of replies on demand: "builtin", a sequence classifier by folder or hub id, or None"""
    intent_labels: tuple[str, ...] | None = None
    """what the classifier's outputs stand for, where its configuration doesn't say it"""
    votes: Path | None = None
    """where votes go; by default votes.jsonl in the run's folder, beside an agent folder, or here"""
    terminal: bool = False
    """talk here rather than in the browser"""
    greedy: bool = False
    """in the terminal: the likeliest token each time, rather than drawing"""
    seed: int | None = None
    """in the terminal: of the drawing; by default another each time"""
    trust_remote_code: bool = False
    """run Python code that comes with the model: it can do anything you can"""
    host: str = "127.0.0.1"
    """the address to listen on; 0.0.0.0 is every network of this machine"""
    port: int = 7860
    """the port to listen on"""
    share: bool = False
    """open a public link through Gradio's servers"""
    auth: str | None = None
    """NAME:PASSWORD that visitors must give"""


def talk_in_terminal(agent: DialogueAgent, greedy: bool, seed: int | None) -> None:
    """Read messages from standard input, a line each, until `quit` or its end; `reset` begins anew."""
    print('"reset" begins a new conversation, "quit" ends it.')
    history: list[str] = []
    while True:
        print("> You: ", end="", flush=True)
        line = sys.stdin.readline()
        if not sys.stdin.isatty():
            print(visible(line.strip()))  # a terminal has shown it already
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
        how = {"sample": not greedy, "top_k": 20, "seed": random.getrandbits(32) if seed is None else seed}
        print("> Agent: ", end="", flush=True)
        shown = ""
        for text in map(visible, agent.chat_stream(message, history, **how)):
            if sys.stdout.isatty():
                same = next((i for i, (a, b) in enumerate(zip(shown, text, strict=False)) if a != b), len(shown))
                # "I '" may become "I'm": back, clear the rest of the line, write
                print("\b" * (len(shown) - same) + "\x1b[K" + text[same:], end="", flush=True)
            shown = text
        print("" if sys.stdout.isatty() else shown)
        history += [message, shown] if shown else []


def main(args: Args) -> None:
    transformers.utils.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trained = find_agent(args.agent)
    baseline = args.baseline or trained.baseline
    options = {"trust_remote_code": args.trust_remote_code, **trained.shape}
    model_class = import_object(args.policy_class, "--policy-class") if args.policy_class else AutoModelForCausalLM
    agent = DialogueAgent.load(trained.model, device, model_class, use_template=trained.run is None, **options)
    choose_threads(agent.model)
    print(f"agent     {trained.title}: {trained.story}")
    if args.terminal:
        talk_in_terminal(agent, args.greedy, args.seed)
        return
    start = None
    if baseline is not None:
        start = DialogueAgent.load(baseline, device, use_template=agent.template is not None, **options)
    votes = args.votes or trained.home / "votes.jsonl"
    # These take seconds to import, which --terminal need not wait for.
    from dailydialog_gym.chat.page import build_page, launch
    from dailydialog_gym.rewards.intent import IntentMatch

    intent = IntentMatch(args.intent_model, device, args.intent_labels) if args.intent_model else None
    chat = Chat(agent, start, intent, votes)
    print(f"votes     {votes}" if start else "compare   nothing to compare with; name a model with --baseline")
    launch(build_page(chat, trained), args.host, args.port, args.share, args.auth)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, description=__doc__))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
