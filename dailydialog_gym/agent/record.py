"""What an agent was trained with: recorded in its folder, and read by whatever loads it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dailydialog_gym.env.dialogues import TEST_SHARE
from dailydialog_gym.files import read_text
from dailydialog_gym.text import Spacing

FILE = "dialogue_agent.json"
ANY_CLASS = "transformers:AutoModelForCausalLM"


@dataclass(frozen=True)
class AgentRecord:
    """The file ``dialogue_agent.json`` of an agent folder.

    Attributes:
        dataset, test_share: the training dialogues, see `dailydialog_gym.env.load_dialogues`.
        context_size, max_prompt_length, max_new_tokens: as in the environment.
        spacing: whether the training dialogues separate punctuation from words by spaces, as DailyDialog does, or are
            ordinary text.
        chat_template: whether prompts are written in the tokenizer's chat template.
        policy_class: ``MODULE:CLASS`` of the model.
    """

    dataset: str = "builtin"
    test_share: float = TEST_SHARE
    context_size: int = 5
    max_prompt_length: int = 128
    max_new_tokens: int = 20
    spacing: Spacing = "spaced"
    chat_template: bool = False
    policy_class: str = ANY_CLASS

    @classmethod
    def of(cls, args: Any, **more: Any) -> AgentRecord:
        """The record of a run with these arguments, which have most of the attributes; ``more`` has the others."""
        return cls(**{f.name: getattr(args, f.name) for f in fields(cls) if f.name not in more}, **more)

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def agents_of(run: Path) -> list[Path]:
    """The agent folders of a run: of its checkpoints, the oldest first, and at last the one that it ended with."""
    saved = [path for path in run.glob("checkpoints/*/agent") if path.parent.name.isdecimal()]
    saved.sort(key=lambda path: int(path.parent.name))
    return [path for path in (*saved, run / "agent") if path.is_dir()]


def find_agent_folder(name: str) -> tuple[str, AgentRecord | None]:
    """The agent folder of a run folder, and the record of an agent.

    Args:
        name: a run folder, an agent folder, another model folder, ``"builtin"`` or a hub id.

    Returns:
        name: the agent folder, or the name itself.
        record: from the agent's folder, or from ``config.json`` of its run. None if neither is there. The embedded
            policy has the default one.

    Raises:
        ValueError: the name is empty, the run has not saved an agent yet, or the record cannot be read.
    """
    if not name:
        raise ValueError(
            "the name of the agent is empty: expected a run folder, an agent folder, 'builtin' or a hub id"
        )
    if name == "builtin":
        return name, AgentRecord()
    folder = Path(name)
    # a model that a recipe fine-tuned has its curve beside it too
    is_model = (folder / "tokenizer_config.json").exists()
    if not is_model and ((folder / "metrics.jsonl").exists() or (folder / "agent").is_dir()):
        if not (folder / "agent").is_dir():
            saved = agents_of(folder)
            last = f"; its last checkpoint's agent is {saved[-1]}" if saved else ""
            raise ValueError(f"run {name} has no folder agent/: it has not saved an agent yet{last}")
        folder = folder / "agent"
        name = str(folder)
    if (folder / FILE).exists():
        return name, _read(folder / FILE, ignore_others=False)
    if folder.name == "agent" and (folder.parent / "config.json").exists():
        return name, _read(folder.parent / "config.json", ignore_others=True)
    return name, None


def _read(path: Path, ignore_others: bool) -> AgentRecord:
    try:
        values = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"cannot read {path}: expected what an agent was trained with, as JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"cannot read {path}: expected a JSON object, got {type(values).__name__}")
    default = asdict(AgentRecord())
    known = {key: value for key, value in values.items() if key in default}
    if unknown := [] if ignore_others else sorted(values.keys() - known.keys()):
        raise ValueError(
            f"{path}: unknown entries {', '.join(unknown)}: the agent is of a newer version of this package"
        )
    for key, value in known.items():
        kind = type(default[key])
        right = type(value) is kind and (kind is not int or value > 0)
        if not right or (key == "spacing" and value not in ("spaced", "ordinary")):
            raise ValueError(f"{path}: expected {key} to be like {default[key]!r}, got {str(value)[:80]!r}")
    return AgentRecord(**known)
