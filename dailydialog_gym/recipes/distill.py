"""Dialogues that a large model writes, for a small one to learn from (sequence-level distillation, arXiv:1606.07947).

    python -m dailydialog_gym.recipes.distill --teacher models/smollm2-daily-dialog --dataset daily_dialog --out texts
    python -m dailydialog_gym.recipes.sft --dataset daily_dialog --pretraining texts/dialogues.jsonl --out models/small

A dialogue begins with the first one or two utterances of a random dialogue of the train split, and the teacher
continues it to the length of that one. ``OUT/parts`` holds what is written so far; after a kill, the same command
continues with the next part. At the end, ``OUT/dialogues.jsonl`` gets all dialogues but those that `keep` leaves out.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tqdm import tqdm

from dailydialog_gym.agent import DialogueAgent, find_agent_folder
from dailydialog_gym.env.dialogues import TEST_SHARE, Dialogue, load_dialogues
from dailydialog_gym.env.tokenizer import EOU
from dailydialog_gym.errors import run_script
from dailydialog_gym.files import write_text
from dailydialog_gym.models.decoding import Decoding, Reply
from dailydialog_gym.models.precision import choose_kernels
from dailydialog_gym.ranges import Count, Seed, Share
from dailydialog_gym.recipes.training import check_flags, check_inputs
from dailydialog_gym.runs.fingerprint import model_files
from dailydialog_gym.text import MARKS, Spacing, convert_spacing, spacing_of

COPY_WORDS = 6  # an utterance of fewer words, such as "How are you today ?", is no copy of another


@dataclass
class Args:
    teacher: str
    """the model that writes: a folder or hub id, fine-tuned by recipes.sft, so that `<EOU>` is one of its tokens"""
    out: Path
    """folder for the dialogues"""
    dataset: str = "daily_dialog"
    """the dialogues whose beginnings are continued"""
    test_share: float = TEST_SHARE
    """where the dataset has no validation or no test split: the share of its dialogues that is held out for it"""
    dialogues: Count = 100_000
    """number of dialogues to write"""
    part: Count = 512
    """dialogues in a part, the unit of work that a kill loses"""
    rows: Count = 64
    """dialogues that are written at the same time"""
    max_new_tokens: Count = 300
    """longest continuation in tokens; its last utterance is dropped if it has no end"""
    temperature: float = 1.0
    """divides the logits before a token is drawn"""
    top_p: Share = 0.95
    """draw from the fewest tokens that together have this probability"""
    bfloat16: bool = False
    """hold the teacher's weights in bfloat16"""
    seed: Seed = 1
    """random seed"""


def normalized(utterance: str) -> str:
    """The words of an utterance in lower case, without punctuation."""
    return " ".join(re.findall(rf"\w[\w{MARKS}]*", utterance.lower()))


class Teacher:
    """A model that continues dialogues, which are converted to its own spacing, and what it writes back to theirs.

    Raises:
        ValueError: there is no such model, its tokenizer splits ``<EOU>``, or it has too few positions for the longest
            beginning and ``max_new_tokens``.
    """

    def __init__(self, name: str, device: torch.device, dtype: torch.dtype, max_new_tokens: int, spacing: Spacing):
        self.spacing = spacing
        self.agent = DialogueAgent.load(name, device, max_new_tokens=max_new_tokens)
        self.agent.model.to(dtype)
        ((self.eou,),) = self.agent.tokenizer.encode_dialogues([[""]])[0]
        self.bos = self.agent.tokenizer.bos_ids or [self.eou]  # as in recipes.sft

    def encode(self, utterances: Sequence[str]) -> list[int]:
        """The token ids of the beginning of a dialogue."""
        own = [convert_spacing(utterance, self.spacing, self.agent.spacing) for utterance in utterances]
        (ids,) = self.agent.tokenizer.encode_dialogues([own])
        return [*self.bos, *(token for utterance in ids for token in utterance)]

    def begin(self, dialogue: Dialogue, args: Args, rng: random.Random) -> Reply:
        """A continuation that has not begun yet, of one or two utterances to the length of the dialogue."""
        given = rng.randint(1, min(2, len(dialogue.utterances) - 1))
        missing = len(dialogue.utterances) - given
        prompt = self.encode(dialogue.utterances[:given])
        decoding = Decoding(True, args.temperature, 0, args.top_p, args.max_new_tokens, rng.getrandbits(62))
        return Reply(prompt, decoding, lambda ids: ids[-1] == self.eou and ids.count(self.eou) == missing)

    def write(self, replies: Sequence[Reply], rows: int, bar: tqdm) -> None:
        """Decode the continuations, at most ``rows`` of them at the same time."""
        batch, waiting, before = self.agent.decoding_batch(), deque(replies), bar.n
        while waiting or batch.replies:
            live = sum(not reply.done for reply in batch.replies)
            if waiting and live <= rows * 3 // 4:  # prompts are read in groups
                batch.add([waiting.popleft() for _ in range(min(rows - live, len(waiting)))])
            batch.step()
            bar.update(before + sum(reply.done for reply in replies) - bar.n)
        for reply in replies:
            if reply.error:
                raise reply.error

    def utterances(self, reply: Reply) -> list[str]:
        """The whole utterances of a dialogue, the given ones first."""
        ids = [*reply.prompt_ids[len(self.bos) :], *reply.ids]
        text = self.agent.tokenizer.backend.decode(ids, skip_special_tokens=False)
        *whole, _unfinished = text.split(EOU)
        return [convert_spacing(utterance.strip(), self.agent.spacing, self.spacing) for utterance in whole]


def keep(written: Iterable[list[str]], held_out: Iterable[Dialogue]) -> tuple[list[list[str]], Counter[str]]:
    """What is fit to learn from, and how many dialogues were left out for which reason.

    Left out are dialogues that are too short, have an empty utterance, have an utterance of at least `COPY_WORDS` words
    that is also in ``held_out`` or comes twice in them, or were written before. Case and punctuation do not count.

    Args:
        written: the utterances of each dialogue.
        held_out: dialogues of the validation and test splits.
    """
    forbidden = {normalized(utterance) for dialogue in held_out for utterance in dialogue.utterances}
    kept, reasons, before = [], Counter[str](), set[tuple[str, ...]]()
    for utterances in written:
        plain = tuple(map(normalized, utterances))
        long = [text for text in plain if len(text.split()) >= COPY_WORDS]
        if len(utterances) < 2 or not all(utterances):
            reasons["too short or with an empty utterance"] += 1
        elif forbidden.intersection(long):
            reasons["with an utterance of the validation or test split"] += 1
        elif len(set(long)) < len(long):
            reasons["repeat an utterance"] += 1
        elif plain in before:
            reasons["written before"] += 1
        else:
            before.add(plain)
            kept.append(utterances)
    return kept, reasons


def main(args: Args) -> None:
    check_flags(args)
    transformers.utils.logging.disable_progress_bar()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choose_kernels(device)
    train, *others = (
        load_dialogues(args.dataset, split, test_share=args.test_share) for split in ("train", "validation", "test")
    )
    spacing = spacing_of(utterance for dialogue in train for utterance in dialogue.utterances)
    dtype = torch.bfloat16 if args.bfloat16 else torch.float32
    teacher = Teacher(args.teacher, device, dtype, args.max_new_tokens, spacing)
    longest = teacher.agent.max_prompt_length
    beginnings = [
        dialogue
        for dialogue in train
        if len(dialogue.utterances) > 1 and len(teacher.encode(dialogue.utterances[:2])) <= longest
    ]
    if not beginnings:
        raise ValueError(
            f"dataset {args.dataset!r} has no training dialogue of two utterances whose first two have at most "
            f"{longest} tokens, so there is nothing to continue"
        )
    folder, _ = find_agent_folder(args.teacher)
    check_inputs(args.out, teacher=model_files(folder, "policy"), dataset=(train, *others))
    (args.out / "parts").mkdir(exist_ok=True)
    starts = range(0, args.dialogues, args.part)
    parts = {start: args.out / "parts" / f"{start:08}.jsonl" for start in starts}
    done = sum(min(args.part, args.dialogues - start) for start, file in parts.items() if file.exists())
    with tqdm(total=args.dialogues, initial=done, unit=" dialogues", mininterval=1) as bar:
        for start, file in parts.items():
            if file.exists():
                continue
            rng = random.Random(f"{args.seed} {start}")
            count = min(args.part, args.dialogues - start)
            replies = [teacher.begin(rng.choice(beginnings), args, rng) for _ in range(count)]
            teacher.write(replies, args.rows, bar)
            write_text(file, "".join(json.dumps({"dialog": teacher.utterances(reply)}) + "\n" for reply in replies))
    written = [json.loads(line)["dialog"] for file in parts.values() for line in file.open(encoding="utf-8")]
    kept, reasons = keep(written, [dialogue for split in others for dialogue in split])
    write_text(args.out / "dialogues.jsonl", "".join(json.dumps({"dialog": dialog}) + "\n" for dialog in kept))
    print(f"{len(written):,} dialogues, {len(kept):,} of them kept in {args.out / 'dialogues.jsonl'}; left out:")
    print("\n".join(f"{count:8,} {reason}" for reason, count in reasons.most_common()))


if __name__ == "__main__":
    run_script(main, Args, __doc__)
