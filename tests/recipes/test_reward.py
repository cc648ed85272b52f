"""The recipe of reward models: what it reads, what it learns from it, and what it says of a result."""

import gzip
import json
import math
import re
from dataclasses import asdict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from dailydialog_gym.chat.votes import Votes
from dailydialog_gym.embedded import ASSETS
from dailydialog_gym.env.dialogues import load_dialogues
from dailydialog_gym.models.decoding import Decoding
from dailydialog_gym.recipes import pairs as pairs_recipe
from dailydialog_gym.recipes import reward
from dailydialog_gym.recipes.reward import Pair, loss_of, read_pairs, scores, split_pairs
from dailydialog_gym.recipes.training import Training
from dailydialog_gym.rewards import RewardModel
from dailydialog_gym.text import join_punctuation

WORDS = ["tea", "rain", "ferry", "kettle", "garden", "letter", "market", "train"]
FAST = {"epochs": 2, "max_length": 32, "batch_tokens": 512, "learning_rate": 3e-3}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def polite_pairs(count, first=0):
    """Pairs in which a thank-you beats a refusal."""
    return [
        {
            "prompt": f"Is it about the {WORDS[i % 8]} , number {i} ? <EOU>",
            "chosen": f" Thank you , the {WORDS[(i + 3) % 8]} . <EOU>",
            "rejected": f" No way , the {WORDS[(i + 5) % 8]} . <EOU>",
        }
        for i in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run, and its flags."""
    folder = tmp_path_factory.mktemp("reward")
    file = write(folder / "pairs.jsonl", polite_pairs(80))
    args = reward.Args(out=folder / "out", pairs=(file,), **FAST)
    reward.main(args)
    return args


def test_it_learns_what_the_pairs_have_in_common_and_the_scorer_agrees(trained):
    found = json.loads((trained.out / "scores.json").read_text(encoding="utf-8"))
    assert found["n"] == 8 and found["accuracy"] == 1 and found["loss"] < 0.4
    assert found["interval"][0] < 0.7  # so few pairs do not prove more
    model = RewardModel(str(trained.out))
    contexts = [["Shall we go now ?"]] * 2
    kind, rude = model.scores(contexts, ["Thank you , the boat .", "No way , the boat ."])
    assert kind > rude


def test_a_run_that_stops_goes_on_as_if_it_had_not_stopped(trained, tmp_path, monkeypatch):
    args = reward.Args(**{**asdict(trained), "out": tmp_path})
    end_epoch = Training.end_epoch

    def stop(self, *arguments, **options):
        end_epoch(self, *arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "end_epoch", stop)
        reward.main(args)
    assert len((tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    reward.main(args)
    one, two = (load_file(folder / "model.safetensors") for folder in (trained.out, tmp_path))
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = ((folder / "scores.json").read_text(encoding="utf-8") for folder in (trained.out, tmp_path))
    assert one == two


TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_it_begins_with_a_causal_model_too_which_the_scorer_then_reads_alike(tiny_model, tmp_path, template, trained):
    from transformers import AutoModelForCausalLM

    start = tmp_path / "start"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(start)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token, tokenizer.chat_template = None, template  # as GPT-2's
    tokenizer.save_pretrained(start)
    args = reward.Args(out=tmp_path / "out", pairs=trained.pairs, start=str(start), **{**FAST, "epochs": 1})
    reward.main(args)
    model = RewardModel(str(args.out))
    assert model.format.spacing == ("ordinary" if template else "spaced")
    _, held_out = split_pairs(read_pairs(trained.pairs[0]), args.held_out, args.seed)
    sides = [model.scores([p.context for p in held_out], [getattr(p, s) for p in held_out]) for s in Pair._fields[1:3]]
    said = json.loads((args.out / "scores.json").read_text(encoding="utf-8"))
    lead = torch.from_numpy(np.subtract(*sides)).float()
    assert loss_of(lead, held_out).item() == pytest.approx(said["loss"], rel=1e-4)


PAIR = Pair(("Hi .",), "Yes .", "No .", 1.0, 0.0, None)


def test_the_loss_is_that_of_bradley_and_terry():
    lead = torch.tensor([0.5])
    assert loss_of(lead, [PAIR]).item() == pytest.approx(math.log(1 + math.exp(-0.5)))
    assert loss_of(lead, [PAIR._replace(margin=2.0)]).item() == pytest.approx(math.log(1 + math.exp(1.5)))
    both = (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(0.5))) / 2
    assert loss_of(lead, [PAIR._replace(target=0.5)]).item() == pytest.approx(both)
    assert loss_of(torch.zeros(1), [PAIR]).item() == pytest.approx(0.693, abs=1e-3)


def test_scores_leave_ties_out():
    pairs = [PAIR, PAIR._replace(target=0.5), PAIR, PAIR._replace(chosen="No !")]
    found = scores(torch.tensor([1.0, -9.0, -1.0, 2.0]), pairs)
    assert (found["n"], found["accuracy"]) == (3, pytest.approx(2 / 3))
    assert found["longer_is_chosen"] == pytest.approx((1 + 1 + 0.5) / 3)
    sure, unsure = torch.tensor([1.0, 2.0]).sigmoid().tolist()
    # two pairs of the same confidence, one of them right, and one right pair of another confidence
    assert found["calibration_error"] == pytest.approx((abs(1 - 2 * sure) + abs(1 - unsure)) / 3, abs=1e-6)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"prompt": "A . <EOU> B ? <EOU>", "chosen": " C . <EOU>", "rejected": " D . <EOU>", "preferred": "start"},
            (("A .", "B ?"), "C .", "D .", 1.0, 0.0, None),
        ),
        ({"prompt": "A?", "chosen": "C.", "rejected": "", "margin": 2}, (("A?",), "C.", "", 1.0, 2.0, None)),
        (
            {"prompt": "A?", "chosen": "C.", "rejected": "D.", "preferred": "tie", "split": "test"},
            (("A?",), "C.", "D.", 0.5, 0.0, True),
        ),
        (
            {
                "prompt": [
                    {"role": "system", "content": "Be kind."},
                    {"role": "user", "content": "A?"},
                    {"role": "assistant", "content": "B."},
                    {"role": "user", "content": "C?"},
                ],
                "chosen": [{"role": "assistant", "content": "D."}],
                "rejected": [{"role": "assistant", "content": "E."}],
                "split": "train",
            },
            (("A?", "B.", "C?"), "D.", "E.", 1.0, 0.0, False),
        ),
        (  # with an implicit prompt
            {
                "chosen": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "D."}],
                "rejected": [{"role": "user", "content": "A?"}, {"role": "assistant", "content": "E."}],
            },
            (("A?",), "D.", "E.", 1.0, 0.0, None),
        ),
    ],
    ids=["vote", "margin", "tie", "messages", "implicit"],
)
def test_pairs_are_texts_or_messages(tmp_path, row, expected):
    assert read_pairs(write(tmp_path / "pairs.jsonl", [row])) == [Pair(*expected)]
    (tmp_path / "pairs.jsonl.gz").write_bytes(gzip.compress((tmp_path / "pairs.jsonl").read_bytes()))
    assert read_pairs(str(tmp_path / "pairs.jsonl.gz")) == [Pair(*expected)]


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"prompt": "A"}', '{"prompt": "A", "chosen": 1, "rejected": "B"}', '"text"', '{"chosen": []}']
)
def test_a_line_that_is_no_pair_is_named(tmp_path, line):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(polite_pairs(1)[0]) + f"\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"pairs.jsonl, line 2: expected {\"prompt\": ..., \"chosen\""):
        read_pairs(str(file))


def test_blank_lines_and_messages_of_tools_are_left_out_and_a_split_has_any_case(tmp_path):
    said = [{"role": role, "content": f"{role} ."} for role in ("system", "user", "tool", "assistant", "developer")]
    row = {"prompt": said[:-1], "chosen": said[3:4], "rejected": said[1:2], "split": "Train"}
    file = tmp_path / "pairs.jsonl"
    file.write_text(f"\n{json.dumps(row)}\n\n", encoding="utf-8")
    assert read_pairs(str(file)) == [Pair(("user .", "assistant ."), "assistant .", "user .", 1.0, 0.0, False)]


def test_a_margin_that_is_not_finite_is_refused_by_its_line(tmp_path):
    rows = polite_pairs(2)
    rows[1]["margin"] = math.nan
    with pytest.raises(ValueError, match="line 2: expected"):
        read_pairs(write(tmp_path / "pairs.jsonl", rows))


def test_the_page_s_votes_are_read(tmp_path):
    from dailydialog_gym.agent import DialogueAgent

    votes, asked = Votes(tmp_path / "votes.jsonl"), ["Hello!", "Hi.", "It's late, isn't it?"]
    names, decodings = (dict.fromkeys(("trained", "start"), value) for value in ({"name": "it"}, Decoding()))
    for verdict in ("start", "tie", "both bad"):
        replies = {"trained": "Yes, it is.", "start": "I see."}
        ticket = votes.add_pair(DialogueAgent.load("builtin"), names, asked, replies, decodings, blind=True)
        votes.vote(ticket, verdict)
    context = ("Hello !", "Hi .", "It's late , isn't it ?")
    tie = Pair(context, "Yes , it is .", "I see .", 0.5, 0.0, None)
    assert read_pairs(str(votes.path)) == [Pair(context, "I see .", "Yes , it is .", 1.0, 0.0, None), tie, tie]


def test_held_out_contexts_are_never_trained_on():
    pairs = [PAIR._replace(context=(f"{i // 2} .",)) for i in range(40)]
    train, held_out = split_pairs(pairs, 0.1, 1)
    assert (len(train), len(held_out)) == (36, 4)
    assert not {pair.context for pair in train} & {pair.context for pair in held_out}
    own = [pair._replace(held_out=i == 7) for i, pair in enumerate(pairs)]
    assert split_pairs(own, 0.1, 1)[1] == own[7:8]
    assert len(split_pairs([pair._replace(held_out=False) for pair in pairs], 0.1, 1)[1]) == 4


def test_votes_beside_pairs_with_splits_are_held_out_too():
    """Otherwise the held-out accuracy would say nothing of the votes."""
    votes = [PAIR._replace(context=(f"{i // 2} .",)) for i in range(40)]
    split = [PAIR._replace(context=(f"{i} !",), held_out=i < 3) for i in range(9)]
    split += [PAIR._replace(context=("0 .",), held_out=True), PAIR._replace(context=("1 .",), held_out=False)]
    train, held_out = split_pairs([*votes, *split], 0.1, 1)
    assert [pair for pair in held_out if pair in split] == [*split[:3], split[-2]]
    contexts = [{pair.context for pair in side if pair in votes} for side in (train, held_out)]
    assert not contexts[0] & contexts[1] and len(contexts[1]) == 1 + 2  # "0 .", and a tenth of the 18 without a split
    assert ("1 .",) in contexts[0]
    assert len(split_pairs([*votes[:6], *split], 0.1, 1)[1]) == 3 + 1 + 2  # few votes are all trained on, but for "0 ."


def test_the_accuracy_of_each_file_is_printed(tmp_path, capsys):
    names = [write(tmp_path / f"{i}.jsonl", polite_pairs(n, i)) for i, n in ((0, 20), (100, 1))]
    reward.main(reward.Args(out=tmp_path / "out", pairs=tuple(names), **{**FAST, "epochs": 1}))
    said = capsys.readouterr().out
    assert re.search(rf"    {re.escape(names[0])}: in [\d.]+% of 2 pairs\n", said)
    assert f"    {names[1]}: no pair is held out\n" in said
    for useless in ([PAIR], [PAIR._replace(target=0.5), PAIR._replace(context=("B .",), target=0.5)]):
        with pytest.raises(ValueError, match="expected at least one of each, so collect more votes"):
            split_pairs(useless, 0.1, 1)


def test_few_pairs_are_called_few(tmp_path, capsys):
    file = write(tmp_path / "votes.jsonl", polite_pairs(6))
    reward.main(reward.Args(out=tmp_path / "out", pairs=(file,), **{**FAST, "epochs": 1}))
    said = capsys.readouterr().out
    assert "6 pairs are few. Expect" in said and "of 1 pairs (95% interval" in said


def test_the_embedded_pairs_are_those_that_their_recipe_makes():
    """For the validation dialogues; drawing the others takes minutes."""
    assert (ASSETS / "pairs.jsonl.gz").stat().st_size < 1e6
    with gzip.open(ASSETS / "pairs.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    assert [row for row in rows if row["split"] == "validation"] == pairs_recipe.make_pairs(
        pairs_recipe.Args(out=None), "validation"
    )
    texts = {
        text for split in ("train", "validation") for d in load_dialogues("builtin", split) for text in d.utterances
    }
    assert len(rows) > 2000
    assert {text for pair in read_pairs("builtin") for text in pair.context} <= texts  # none of another corpus


def test_both_replies_of_a_pair_have_the_spacing_of_the_dataset(tmp_path):
    """Otherwise a reward model would learn to tell the policy's replies by their spacing."""
    said = {"spaced": ["Can you help me , Ann ?", "No , sorry ."], "ordinary": ["Can you help me, Ann?", "No, sorry."]}
    found = {}
    for spacing, utterances in said.items():
        file = tmp_path / f"{spacing}.jsonl"
        file.write_text(json.dumps({"dialog": utterances}), encoding="utf-8")
        (found[spacing],) = pairs_recipe.make_pairs(pairs_recipe.Args(tmp_path, str(file)), "train")
    assert found["spaced"]["rejected"] != found["ordinary"]["rejected"]
    assert {side: join_punctuation(text) for side, text in found["spaced"].items()} == found["ordinary"]
