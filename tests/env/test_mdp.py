import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paths import GPT2_TOKENIZER, needs_gpt2_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from dailydialog_gym.env.mdp import TokenMDP
from dailydialog_gym.env.samples import Samples, load_samples
from dailydialog_gym.env.tokenizer import EOU

PROMPT, NEW = 16, 4


def builtin() -> Samples:
    return load_samples("builtin", "train", "builtin", 5, PROMPT, False, False)


def eou_id() -> int:
    return builtin().tokenizer.encode([EOU])[0][0]


@pytest.fixture(scope="module")
def bytes_samples(tmp_path_factory) -> Samples:
    """Samples with a byte-level BPE tokenizer without special tokens, which encodes <EOU> as several tokens."""
    folder = tmp_path_factory.mktemp("bytes")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*builtin().references, *[f"Oh ?{EOU}"] * 50], trainer)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8"
    )
    return load_samples("builtin", "train", str(folder), 5, PROMPT, False, False)


@pytest.fixture(scope="module")
def gpt2_samples(tmp_path_factory) -> Samples:
    from transformers import GPT2TokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    GPT2TokenizerFast(
        vocab=str(GPT2_TOKENIZER / "vocab.json"), merges=str(GPT2_TOKENIZER / "merges.txt")
    ).save_pretrained(folder)
    return load_samples("builtin", "validation", str(folder), 5, PROMPT, False, False)


def begun(samples: Samples, num_envs: int = 1, max_new_tokens: int = NEW, lockstep: bool = False) -> TokenMDP:
    mdp = TokenMDP(samples, num_envs, max_new_tokens, lockstep)
    mdp.reset(np.arange(num_envs), np.arange(num_envs))
    return mdp


def write(mdp: TokenMDP, ids: list[int]) -> tuple[int, bool, bool]:
    """Write ``ids`` into the only row until its episode ends. Returns the number written, terminated, truncated."""
    for count, token in enumerate(ids, 1):
        terminated, truncated = mdp.step(np.array([token]))
        if terminated[0] or truncated[0]:
            return count, terminated[0], truncated[0]
    return len(ids), False, False


class PlainMDP:
    """A simple reference implementation of `TokenMDP`: lists, one row at a time, the embedded tokenizer only."""

    def __init__(self, samples: Samples, num_envs: int, lockstep: bool):
        self.samples, self.lockstep = samples, lockstep
        self.rows = [{"sample": 0, "reply": [], "live": False} for _ in range(num_envs)]

    def reset(self, rows, sample_ids):
        for row, sample in zip(rows, sample_ids, strict=True):
            self.rows[row] = {"sample": int(sample), "reply": [], "live": True}

    def step(self, tokens):
        stopped = []
        for i, (row, token) in enumerate(zip(self.rows, tokens, strict=True)):
            if row["live"]:
                row["reply"].append(token)
                row["live"] = token != eou_id() and len(row["reply"]) < NEW
                if not row["live"]:
                    stopped.append(i)
        if self.lockstep:
            all_done = stopped and not any(row["live"] for row in self.rows)
            stopped = range(len(self.rows)) if all_done else []
        complete = [row["reply"][-1:] == [eou_id()] for row in self.rows]
        terminated = [i in stopped and complete[i] for i in range(len(self.rows))]
        truncated = [i in stopped and not complete[i] for i in range(len(self.rows))]
        return terminated, truncated

    def columns(self, row):
        prompt_ids, mask = (list(a[row["sample"]]) for a in (self.samples.prompt_ids, self.samples.prompt_mask))
        padding = NEW - len(row["reply"])
        ids = prompt_ids + row["reply"] + [self.samples.tokenizer.pad_id] * padding
        return ids, [int(m) for m in mask] + [1] * len(row["reply"]) + [0] * padding


@settings(deadline=None, max_examples=100)
@given(st.data(), st.integers(1, 5), st.booleans())
def test_every_step_is_as_a_plain_model_says(data, num_envs, lockstep):
    samples = builtin()
    mdp, plain = TokenMDP(samples, num_envs, NEW, lockstep), PlainMDP(samples, num_envs, lockstep)
    everyone = np.arange(num_envs)
    rows = everyone
    for _ in range(data.draw(st.integers(1, 25))):
        if rows is not None:
            sample_ids = np.array([data.draw(st.integers(0, len(samples) - 1)) for _ in rows])
            mdp.reset(rows, sample_ids)
            plain.reset(rows, sample_ids)
        tokens = data.draw(st.lists(st.sampled_from([eou_id(), 7, 300, 4095]), min_size=num_envs, max_size=num_envs))
        terminated, truncated = mdp.step(np.array(tokens))
        assert (terminated.tolist(), truncated.tolist()) == plain.step(tokens)
        observation = mdp.observation()
        for i, row in enumerate(plain.rows):
            ids, mask = plain.columns(row)
            assert observation["input_ids"][i].tolist() == ids
            assert observation["attention_mask"][i].tolist() == mask
        assert mdp.live.tolist() == [row["live"] for row in plain.rows]
        assert mdp.reply_lengths.tolist() == [len(row["reply"]) for row in plain.rows]
        replies = [np.array(row["reply"], np.int64) for row in plain.rows]
        assert mdp.responses(everyone) == samples.tokenizer.decode(replies)
        mask = np.array(data.draw(st.lists(st.booleans(), min_size=num_envs, max_size=num_envs)))
        rows = mask.nonzero()[0] if mask.any() else None


def test_reset_follows_the_order_of_its_rows():
    mdp = TokenMDP(builtin(), 3, NEW)
    mdp.reset(np.array([2, 0, 1]), np.array([20, 0, 10]))
    assert mdp.sample_ids.tolist() == [0, 10, 20]
    assert np.array_equal(mdp.input_ids[:, :PROMPT], builtin().prompt_ids[[0, 10, 20]])


def test_step_without_a_live_row_changes_nothing():
    mdp = begun(builtin())
    write(mdp, [eou_id()])
    before = mdp.observation()
    terminated, truncated = mdp.step(np.array([7]))
    assert not terminated.any() and not truncated.any()
    assert np.array_equal(mdp.observation()["input_ids"], before["input_ids"])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_tokens_of_any_integer_type_are_written(dtype):
    mdp = begun(builtin(), 2)
    mdp.step(np.array([5, 6], dtype))
    assert mdp.input_ids[:, PROMPT].tolist() == [5, 6]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([3, -1]), r"action -1 of row 1 is outside the vocabulary of tokenizer 'builtin': expected 0 to 4095"),
        (np.array([4096, 3]), r"action 4096 of row 0 is outside the vocabulary"),
        (np.array([3, 2**40]), r"action 1099511627776 of row 1"),
        (np.array([3]), r"expected 2 integer token\(s\), one per row, got an array of shape \(1,\)"),
        (np.array([[3, 4]]), r"shape \(1, 2\)"),
        (np.array([3.0, 4.0]), r"type float64"),
        (np.array([True, False]), r"type bool"),
        (np.array(["3", "4"]), r"type <U1"),
        (np.array([3, 2**70]), r"type object"),
    ],
)
def test_bad_tokens_are_named_and_change_nothing(tokens, message):
    mdp = begun(builtin(), 2)
    mdp.step(np.array([5, 6]))
    before = mdp.observation()
    with pytest.raises(ValueError, match=message):
        mdp.step(tokens)
    assert all(np.array_equal(before[key], value) for key, value in mdp.observation().items())
    assert mdp.reply_lengths.tolist() == [1, 1]


def test_error_names_the_row_among_the_live_ones():
    mdp = begun(builtin(), 3)
    mdp.step(np.array([eou_id(), 5, 5]))
    with pytest.raises(ValueError, match="action -7 of row 2"):
        mdp.step(np.array([-1, 5, -7]))


@pytest.mark.parametrize("action", [-1, 4096, 10**12])
@pytest.mark.parametrize("lockstep", [False, True])
def test_action_of_an_ended_row_may_be_anything(action, lockstep):
    mdp = begun(builtin(), 2, lockstep=lockstep)
    mdp.step(np.array([eou_id(), 5]))
    before = mdp.input_ids[0].copy()
    mdp.step(np.array([action, 5]))
    assert np.array_equal(mdp.input_ids[0], before)
    assert mdp.reply_lengths.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("num_envs", "max_new_tokens", "message"),
    [
        (0, 4, "num_envs must be an integer of at least 1, got 0"),
        (1, 0, "max_new_tokens must be an integer of at least 1, got 0"),
    ],
)
def test_nothing_to_write_is_an_error(num_envs, max_new_tokens, message):
    with pytest.raises(ValueError, match=message):
        TokenMDP(builtin(), num_envs, max_new_tokens)


def test_end_of_utterance_as_last_possible_token_terminates():
    mdp = begun(builtin(), 2)
    for _ in range(NEW - 1):
        mdp.step(np.array([7, 7]))
    terminated, truncated = mdp.step(np.array([eou_id(), 7]))
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, True])


def test_padding_token_written_by_the_agent_is_no_padding():
    mdp = begun(builtin())
    mdp.step(np.array([mdp.samples.tokenizer.pad_id]))
    assert mdp.attention_mask[0, PROMPT] == 1
    assert mdp.reply_lengths.tolist() == [1]


def check_eou_of_several_tokens(samples: Samples) -> None:
    tokenizer = samples.tokenizer
    for text in (f"{EOU}", f" {EOU}", f"Oh ?{EOU}", f"Oh ? {EOU}", f"<EO{EOU}", f"<<EOU{EOU}", f"5 > 3 {EOU}"):
        ids = tokenizer.encode([text])[0]
        mdp = begun(samples, max_new_tokens=30)
        assert write(mdp, ids) == (len(ids), True, False), text
        assert mdp.responses([0]) == [text.removesuffix(EOU).strip()]
        assert mdp.ending(0) == f" {EOU}"
    assert len(tokenizer.encode([EOU])[0]) > 1


def test_eou_of_several_tokens_ends_the_reply(bytes_samples):
    check_eou_of_several_tokens(bytes_samples)


@needs_gpt2_tokenizer
def test_eou_of_gpt2_ends_the_reply(gpt2_samples):
    check_eou_of_several_tokens(gpt2_samples)


@needs_gpt2_tokenizer
def test_eos_of_gpt2_ends_the_reply(gpt2_samples):
    tokenizer = gpt2_samples.tokenizer
    mdp = begun(gpt2_samples, max_new_tokens=30)
    ids = [*tokenizer.encode(["Fine <EO"])[0], 50256]
    assert write(mdp, [*ids, 5]) == (len(ids), True, False)
    assert mdp.responses([0]) == ["Fine <EO"]


def test_unfinished_eou_is_truncated(bytes_samples):
    ids = bytes_samples.tokenizer.encode([EOU])[0]
    mdp = begun(bytes_samples, max_new_tokens=len(ids) - 1)
    assert write(mdp, ids) == (len(ids) - 1, False, True)
    assert mdp.ending(0) == f" [truncated after {len(ids) - 1} tokens]"


def test_reset_forgets_an_unfinished_eou(bytes_samples):
    ids = bytes_samples.tokenizer.encode([EOU])[0]
    mdp = begun(bytes_samples, max_new_tokens=9)
    write(mdp, ids[:-1])
    mdp.reset(np.array([0]), np.array([0]))
    assert write(mdp, ids[-1:]) == (1, False, False)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.sampled_from("<EOU> ?é"), max_size=24))
def test_reply_ends_at_the_first_eou_of_its_text(bytes_samples, text):
    # One token per byte, so that <EOU> is written in every possible way.
    ids = [i for char in text for i in bytes_samples.tokenizer.encode([char])[0]]
    mdp = begun(bytes_samples, max_new_tokens=60)
    length = len(text.partition(EOU)[0] + EOU) if EOU in text else len(text)
    count, terminated, _ = write(mdp, ids)
    assert terminated == (EOU in text)
    assert count == len(text[:length].encode())


def test_transcript_shows_context_reply_and_ending(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    path.write_text(
        json.dumps({"dialog": ["Is it far ?", "No , two stops .", "Thanks !"], "act": [2, 1, 1]}), encoding="utf-8"
    )
    samples = load_samples(str(path), "train", "builtin", 5, PROMPT, False, False)
    mdp = TokenMDP(samples, 1, NEW)
    mdp.reset(np.array([0]), np.array([1]))
    assert mdp.transcript(0) == "  Is it far ?\n  No , two stops .\n> "
    mdp.step(np.array(samples.tokenizer.encode(["Good"])[0][:1]))
    assert mdp.transcript(0) == "  Is it far ?\n  No , two stops .\n> Good"
    mdp.step(np.array([eou_id()]))
    assert mdp.transcript(0) == f"  Is it far ?\n  No , two stops .\n> Good {EOU}"


def test_final_info_holds_texts_and_acts(tmp_path):
    path = tmp_path / "dialogues.jsonl"
    path.write_text(
        json.dumps({"dialog": ["Is it far ?", "No , two stops .", "Thanks !"], "act": [2, 1, 4]}), encoding="utf-8"
    )
    samples = load_samples(str(path), "train", "builtin", 5, PROMPT, False, False)
    mdp = begun(samples, 2)
    assert mdp.final_info(np.array([0, 1])) == {
        "prompt": [f"Is it far ? {EOU}", f"Is it far ? {EOU} No , two stops . {EOU}"],
        "sample_id": [0, 1],
        "act": [1, 4],
        "response": ["", ""],
        "reference": ["No , two stops .", "Thanks !"],
        "intent": [1, 4],
    }


def test_a_long_prompt_loses_its_beginning():
    wide = load_samples("builtin", "train", "builtin", 5, 128, False, False)
    longest = int(wide.prompt_mask.sum(1).argmax())
    mdp = TokenMDP(builtin(), 1, NEW)
    mdp.reset(np.array([0]), np.array([longest]))
    assert mdp.attention_mask[0, :PROMPT].all()
    assert np.array_equal(mdp.input_ids[0, :PROMPT], wide.prompt_ids[longest, -PROMPT:])
