"""Conversations with agents for the page and its API: load agents, check messages, and stream replies."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from dailydialog_gym.agent import DialogueAgent, agents_of, find_agent_folder
from dailydialog_gym.chat.closer import closer_look, read_act, read_tokens, reward_by_token
from dailydialog_gym.chat.trained import TrainedAgent, find_agents
from dailydialog_gym.chat.worker import ReplyWorker
from dailydialog_gym.models.decoding import Decoding, DecodingBatch, Reply
from dailydialog_gym.objects import import_object
from dailydialog_gym.rewards.model import load_reward_models
from dailydialog_gym.text import escape_invisible

if TYPE_CHECKING:
    from dailydialog_gym.rewards.intent import IntentMatch
    from dailydialog_gym.rewards.model import RewardModel

MAX_REPLIES = 200  # that are being written or waiting; who comes then is asked to come again
MAX_MESSAGE = 1000  # characters; the embedded policy only reads the last 128 tokens
SMALL = 20e6  # parameters of a model that more than one thread does not speed up
USUAL = Decoding(sample=True, temperature=0.6, top_k=20)  # how a reply is chosen unless the user says otherwise

Turn = dict[str, Any]  # role "user" or "assistant", content; of a reply also note, agent, prompt_ids and ids


class Chat:
    """The agents that can be talked to, and the thread that generates their replies.

    Nobody waits while an agent is loaded, except those who asked for one that is not loaded yet.

    Args:
        choices: the agents, the default one first.
        load: loads one of them. Each is loaded when it is first asked for, and stays loaded.
        intent: the classifier of dialogue acts, for text in the default agent's spacing, or None.

    >>> chat = Chat.open("builtin", intent_model=None)
    >>> list(chat.choices)[0]
    'Embedded policy'
    """

    def __init__(
        self,
        choices: Sequence[TrainedAgent],
        load: Callable[[TrainedAgent], DialogueAgent],
        intent: IntentMatch | None = None,
    ):
        self.choices = {choice.title: choice for choice in choices}
        self.default, self.intent, self.worker = choices[0], intent, ReplyWorker()
        self._load, self._loading = load, threading.Lock()
        self._loaded: dict[str, tuple[DialogueAgent, DecodingBatch]] = {}
        # Visitors who wait for an agent must not hold the threads of the event loop, which has only a few
        self._loader = ThreadPoolExecutor(1)
        self._revisions: dict[str, str] = {}
        self._reward_models: dict[str, list[tuple[str, RewardModel]]] = {}
        self._loading_rewards = threading.Lock()
        self._threads = torch.get_num_threads()

    @classmethod
    def open(
        cls,
        agent: str | None = None,
        baseline: str | None = None,
        policy_class: str | None = None,
        intent_model: str | None = "builtin",
        intent_labels: Sequence[str] | None = None,
        trust_remote_code: bool = False,
    ) -> Chat:
        """The agents of `find_agents`, of which the first is loaded, on a GPU if there is one.

        Args:
            agent, baseline: as in `find_agents`.
            policy_class: ``MODULE:CLASS`` of the default agent, of the model that its run started from, and of all
                agents whose records name it. Other agents, and all if it is None, have transformers' classes.
            intent_model, intent_labels: as in `dailydialog_gym.rewards.IntentMatch`. None is no classifier.
            trust_remote_code: as in `DialogueAgent.load`.

        Raises:
            ValueError: one of them is not there, or the default agent or the classifier cannot be loaded.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        choices = find_agents(agent, baseline)
        model_class = import_object(policy_class, "--policy-class") if policy_class else AutoModelForCausalLM
        # Without --baseline the second is what the run of the first started from, if that is known
        with_class = choices[: 2 if choices[0].baseline and not baseline else 1]
        # A model without a record, such as the one that a run started from, is read as the agent is
        _, record = find_agent_folder(choices[0].model)

        def load(choice: TrainedAgent) -> DialogueAgent:
            model = choice.model
            if choice.run and not Path(model).is_dir() and (saved := agents_of(choice.run)):
                model = str(saved[-1])  # a run that goes on removes its older checkpoints
            _, own = find_agent_folder(model)
            has_class = choice in with_class or (own and own.policy_class == policy_class)
            own_class = model_class if has_class else AutoModelForCausalLM
            return DialogueAgent.load(model, device, own_class, True, trust_remote_code, record)

        chat = cls(choices, load)
        spacing = chat.agent(chat.default.title).spacing
        if intent_model:
            from dailydialog_gym.rewards.intent import IntentMatch  # takes seconds, and the terminal needs none

            chat.intent = IntentMatch(intent_model, device, intent_labels, spacing=spacing)
            chat._choose_threads(chat.intent.classifier)
        return chat

    def agent(self, title: str) -> DialogueAgent:
        """The agent of this title. The first call loads it, which takes its time.

        Raises:
            ValueError: there is no such agent, or it cannot be loaded.
        """
        return self._find(title)[0]

    def _find(self, title: str) -> tuple[DialogueAgent, DecodingBatch]:
        if title not in self.choices:
            raise ValueError(f"there is no agent {str(title)[:80]!r}")
        if title not in self._loaded:
            with self._loading:
                if title not in self._loaded:  # another thread may have loaded it meanwhile
                    agent = self._load(self.choices[title])
                    self._choose_threads(agent.model)
                    self._loaded[title] = agent, agent.decoding_batch()
        return self._loaded[title]

    def _choose_threads(self, model: nn.Module) -> None:
        """Let a small model compute on one core, because the server needs the others, and a large one on all.

        Each forward pass sets torch's number of threads, because torch keeps one for each Python thread, and the same
        Python thread runs models of all sizes.
        """
        small = sum(parameter.numel() for parameter in model.parameters()) < SMALL
        count = 1 if small else self._threads
        model.register_forward_pre_hook(lambda *_: torch.set_num_threads(count))

    def identity(self, title: str) -> dict[str, str]:
        """What a vote says of an agent: its ``name``, its ``model`` and its ``revision``, a hash of the weights."""
        if title not in self._revisions:
            digest = hashlib.sha256()
            for tensor in self.agent(title).model.state_dict().values():
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            self._revisions[title] = digest.hexdigest()[:12]
        return {"name": title, "model": self.choices[title].model, "revision": self._revisions[title]}

    def look_closer(self, utterances: Sequence[str], turn: Turn) -> str:
        """HTML of the tokens of a reply, see `dailydialog_gym.chat.closer`.

        Args:
            utterances: the conversation before the reply.
            turn: the reply, from `reply_turn`, once it is done.
        """
        title, agent = turn["agent"], self.agent(turn["agent"])
        rewards = {name: reward_by_token(model, agent, utterances, turn["ids"]) for name, model in self._rewards(title)}
        act = None
        if self.intent and turn["content"]:
            texts = (utterances[-1], turn["content"])
            act = read_act(self.intent, *map(self.agent(self.default.title).own_text, texts))
        return closer_look(read_tokens(agent, turn["prompt_ids"], turn["ids"]), rewards, act)

    def _rewards(self, title: str) -> list[tuple[str, RewardModel]]:
        """The learned rewards that an agent was trained against, and their names."""
        if title not in self._reward_models:
            with self._loading_rewards:
                if title not in self._reward_models:
                    flags = self.choices[title].reward_models
                    found = load_reward_models(flags, self.agent(title).model.device, False, None, "ordinary")
                    for model, _, _ in found:
                        self._choose_threads(model.classifier)
                    self._reward_models[title] = [(name, model) for model, _, name in found]
        return self._reward_models[title]

    async def open_reply(self, title: str, utterances: Sequence[str], decoding: Decoding) -> Reply:
        """`DialogueAgent.open_reply` in a thread, because loading an agent, or its chat template, may be slow."""
        if title not in self._loaded:
            await asyncio.get_running_loop().run_in_executor(self._loader, self._find, title)
        return await asyncio.to_thread(self.agent(title).open_reply, utterances, decoding)

    async def stream(self, *writing: tuple[str, Reply]) -> AsyncGenerator[None, None]:
        """Generate replies, and yield each time one has changed. The last yield is after all are done.

        `Reply.cancel`, or closing the iterator (`contextlib.aclosing`), stops the generation before the next token.

        Args:
            writing: for each reply the agent's title and the reply, from `open_reply`.

        Raises:
            ValueError: too many replies are being written.
            Exception: the exception that the model raised.
        """
        if self.worker.load + len(writing) > MAX_REPLIES:
            raise ValueError(f"{MAX_REPLIES} replies are being written: try again in a moment")
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        replies = [reply for _, reply in writing]
        for title, reply in writing:
            reply.on_change = lambda: loop.is_closed() or loop.call_soon_threadsafe(changed.set)
            self.worker.submit(self._find(title)[1], reply)
        if any(reply.done for reply in replies):
            changed.set()  # a reply was cancelled before it was submitted
        try:
            done = False
            while not done:
                await changed.wait()
                changed.clear()
                for reply in replies:
                    if reply.error:
                        raise reply.error
                done = all(reply.done for reply in replies)  # read before the yield, during which it may end
                yield
        finally:
            for reply in replies:
                reply.cancel()


def reply_turn(title: str, agent: DialogueAgent, reply: Reply) -> Turn:
    """A reply as a turn of a conversation. Once it is done, the turn also has a note to the user and the tokens."""
    turn: Turn = {"role": "assistant", "content": escape_invisible(agent.reply_text(reply.ids)), "agent": title}
    if reply.done:
        turn |= {"prompt_ids": reply.prompt_ids, "ids": list(reply.ids)}
        if reply.cancelled:
            turn["note"] = "Stopped."
        elif not turn["content"]:
            turn["note"] = "The agent ended its reply without writing a word."
    return turn


def check_message(text: Any) -> str:
    """The message with invisible characters escaped and without surrounding whitespace. A tab is a blank.

    Raises:
        ValueError: the message is not a text, is empty, or is too long.
    """
    if not isinstance(text, str):
        raise ValueError(f"a message is {type(text).__name__}: expected text")
    if len(text) > MAX_MESSAGE:
        raise ValueError(f"the message has {len(text):,} characters: expected at most {MAX_MESSAGE:,}")
    text = escape_invisible(text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", " ")).strip()
    if not text:
        raise ValueError("the message is empty")
    return text


def make_decoding(sample: Any, temperature: Any, top_k: Any, top_p: Any, longest: Any, seed: Any) -> Decoding:
    """The `Decoding` of the untrusted values that a form or a client sends.

    Args:
        sample, temperature, top_k, top_p: see `Decoding`. Any type that converts to a number is accepted.
        longest: the maximum number of tokens of the reply.
        seed: an integer or its digits. None and ``""`` choose a new seed.

    Raises:
        ValueError: a value is not a number or is out of range.
    """
    try:
        seed = random.getrandbits(32) if seed in (None, "") else int(seed)
        return Decoding(bool(sample), float(temperature), int(top_k), float(top_p), int(longest), seed)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"a setting is not a number ({error})") from error


def turns_before(turns: list[Turn], index: Any, role: str) -> list[Turn]:
    """The turns before one of them, whose index and role a browser names.

    Raises:
        ValueError: there is no such turn.
    """
    if type(index) is not int or not 0 <= index < len(turns) or turns[index]["role"] != role:
        raise ValueError("this message is no longer in the conversation")
    return turns[:index]


def conversation_so_far(turns: list[Turn], message: str) -> list[str]:
    """The utterances that the agent reads: those of the turns, and the new message.

    Messages whose reply was empty are left out, so that the speakers alternate.
    """
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [*(turn["content"] for pair in pairs if pair[1]["content"] for turn in pair), message]
