"""TRL's PPO trainer (trl.experimental.ppo, 1.12.0 is the last release with it), for `ppo_speed.py`.

The same prompts, models, epochs, minibatches and lengths. Where a choice is free, it is the one that is faster for TRL:
no gradient checkpointing (its default), the whole batch in one forward in the rollout, and a reward model that costs
next to nothing, where the others compute METEOR and the acts of replies.
"""

import torch
from datasets import Dataset
from meter import Meter, read_job
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2ForSequenceClassification,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer


class EndOfIteration(TrainerCallback):
    def __init__(self, meter: Meter):
        self.meter, self.tokens = meter, 0

    def on_step_end(self, args, state, control, **kwargs):
        self.meter.end(self.tokens)


def watch(end: EndOfIteration, reference, reward_model, stop_id: int) -> None:
    """Have generation begin an iteration, and the reference and the reward model be the rewards."""
    meter = end.meter
    generation, forward, get_reward = ppo_trainer.batch_generation, ppo_trainer.forward, ppo_trainer.get_reward

    def watched_generation(model, queries, *args):
        meter.begin("rollout")
        result = generation(model, queries, *args)
        meter.begin("update")
        replies = result[0][:, queries.shape[1] :]
        ended = (replies == stop_id).int().cumsum(1)
        end.tokens = int(((ended - (replies == stop_id).int()) == 0).sum())  # up to the first stop, which counts
        return result

    def watched(function, rewarding):
        def watched_function(model, *args):
            if model is not rewarding:
                return function(model, *args)
            meter.begin("rewards")
            result = function(model, *args)
            meter.begin("update")
            return result

        return watched_function

    ppo_trainer.batch_generation = watched_generation
    ppo_trainer.forward = watched(forward, reference)
    ppo_trainer.get_reward = watched(get_reward, reward_model)


if __name__ == "__main__":
    job = read_job()
    meter = Meter()
    load = {"dtype": torch.float32}
    tokenizer = AutoTokenizer.from_pretrained(job["model_folder"], padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(job["model_folder"], **load) for _ in range(2))
    critic = AutoModelForSequenceClassification.from_pretrained(job["model_folder"], num_labels=1, **load)
    tiny = {"n_embd": 16, "n_layer": 1, "n_head": 1, "pad_token_id": tokenizer.pad_token_id, "num_labels": 1}
    reward_model = GPT2ForSequenceClassification(GPT2Config(vocab_size=policy.config.vocab_size, **tiny))
    end = EndOfIteration(meter)
    watch(end, reference, reward_model, job["stop_id"])
    config = PPOConfig(
        output_dir="trl",
        per_device_train_batch_size=job["num_envs"],
        gradient_accumulation_steps=1,
        num_mini_batches=job["num_minibatches"],
        num_ppo_epochs=job["epochs"],
        total_episodes=job["num_envs"] * job["iterations"],
        local_rollout_forward_batch_size=job["num_envs"],
        response_length=20,
        stop_token_id=job["stop_id"],
        temperature=1.0,
        learning_rate=5e-5,
        bf16=bool(job["amp"]),
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        num_sample_generations=0,
        save_strategy="no",
        report_to="none",
    )
    trainer = PPOTrainer(
        config,
        tokenizer,
        policy,
        reference,
        reward_model,
        Dataset.from_dict({"input_ids": job["prompts"]}),
        critic,
        callbacks=[end],
    )
    trainer.train()
    meter.report(job)
