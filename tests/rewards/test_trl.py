"""TRL's GRPOTrainer trains on the scorers."""

import numpy as np
import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from dailydialog_gym.env import load_samples
from dailydialog_gym.env.tokenizer import as_messages, format_prompt, split_prompt
from dailydialog_gym.rewards import IntentMatch, Meteor, RewardModel, TokenCredit
from dailydialog_gym.rewards.length import token_count
from dailydialog_gym.rewards.meteor import meteor
from dailydialog_gym.rewards.trl import reward_funcs, to_trl_dataset


@pytest.fixture(scope="module")
def samples():
    return load_samples(split="validation")


def call(func, dataset: Dataset, completions):
    """As TRL calls it: prompt, completions and every other column, each as a list, and more."""
    columns = dataset.to_dict()
    return func(
        prompts=columns.pop("prompt"), completions=completions, completion_ids=[], trainer_state=None, **columns
    )


@pytest.mark.parametrize("messages", [False, True])
def test_rewards_are_the_scorers(samples, messages, tiny_intent_model, tiny_reward_model):
    rows = to_trl_dataset(samples, messages).select(range(4))
    replies = ["Yes , I think so .", "", " No . <EOU> Yes .", samples.references[3]]
    responses = ["Yes , I think so .", "", "No .", samples.references[3]]
    completions = [[{"role": "assistant", "content": text}] for text in replies] if messages else replies
    intent, judge = IntentMatch(tiny_intent_model), RewardModel(tiny_reward_model, standardize=False)
    funcs = reward_funcs(
        samples,
        meteor=Meteor(),
        intent=intent,
        judge=judge,
        length=token_count,
        credit=TokenCredit(Meteor(), samples.tokenizer),
    )
    assert [func.__name__ for func in funcs] == ["meteor", "intent", "judge", "length", "credit"]
    scores = [call(func, rows, completions) for func in funcs]
    expected = [meteor(*pair) for pair in zip(responses, samples.references[:4], strict=True)]
    assert scores[0] == expected
    assert len(scores[0]) == 4 and isinstance(scores[0][0], float)
    contexts = [split_prompt(prompt) for prompt in samples.prompts[:4]]
    if messages:  # a chat begins with its user, so the first of an even number of utterances is left out
        contexts = [[message["content"] for message in as_messages(context)] for context in contexts]
    prompts = [format_prompt(context) for context in contexts]
    assert scores[1] == intent.match(prompts, responses, samples.acts[:4]).tolist()
    np.testing.assert_allclose(scores[2], judge.scores(contexts, responses), atol=1e-6)
    assert scores[3] == [len(ids) for ids in samples.tokenizer.encode_replies(responses)]
    np.testing.assert_allclose(scores[4], expected)


@pytest.mark.parametrize(
    ("prompt", "columns", "message"),
    [
        ("Hi . <EOU>", {"act": [1]}, "the dataset lacks reference, see to_trl_dataset"),
        ("Hi . <EOU>", {}, "the dataset lacks act and reference"),
        ("Hi . <EOU> How are you ?", {"act": [1], "reference": ["Fine ."]}, "<EOU> after each utterance .* got 'Hi"),
        ([{"role": "system", "content": "Hi ."}], {"act": [1], "reference": ["Fine ."]}, "<EOU> after each .* got ''"),
    ],
)
def test_other_datasets_are_refused(samples, prompt, columns, message):
    (length,) = reward_funcs(samples, length=token_count)
    with pytest.raises(ValueError, match=message):
        length(prompts=[prompt], completions=["Yes ."], completion_ids=[], **columns)


def test_grpo_trains_for_two_steps_on_the_rewards(samples, tiny_model, tiny_intent_model, tmp_path):
    seen = []

    def spy(episodes):
        seen.extend(zip(episodes.prompts, episodes.references, episodes.intents.tolist(), strict=True))
        return np.arange(len(episodes), dtype=float)

    settings = {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6, "use_cpu": True}
    trainer = GRPOTrainer(
        tiny_model,
        reward_funcs=reward_funcs(samples, meteor=Meteor(), intent=IntentMatch(tiny_intent_model), spy=spy),
        args=GRPOConfig(str(tmp_path), **settings, max_steps=2, logging_steps=1, report_to=[], save_strategy="no"),
        train_dataset=to_trl_dataset(samples),
    )
    before = {name: weight.clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    assert any(not weight.equal(before[name]) for name, weight in trainer.model.named_parameters())
    steps = [row for row in trainer.state.log_history if "reward" in row]
    assert len(steps) == 2
    assert {"rewards/meteor/mean", "rewards/intent/mean", "rewards/spy/mean"} <= steps[0].keys()
    known = set(zip(samples.prompts, samples.references, samples.acts.tolist(), strict=True))
    assert len(seen) == 8 and set(seen) <= known
