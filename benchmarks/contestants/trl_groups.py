"""TRL's current GRPO and RLOO trainers (1.16.0), for `ppo_speed.py`.

The same prompts, model, epochs, minibatches, lengths and replies per prompt, and a reference model (`beta` 0.05). Where
a choice is free, it is the one that is faster for TRL: no critic, no METEOR and no intent model but a reward that costs
next to nothing, no gradient checkpointing, no dropout, and prompts that are decoded beforehand.
"""

import torch
from datasets import Dataset
from meter import Meter, read_job
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


class EndOfIteration(TrainerCallback):
    """Ends an iteration when a generated batch has been used in all of its optimizer steps."""

    def __init__(self, meter: Meter, steps: int):
        self.meter, self.steps, self.tokens = meter, steps, 0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            self.meter.end(self.tokens)


def watch(meter: Meter, trainer: type) -> None:
    """Have generation be the rollout, what else makes a batch the rewards, and all that follows the update."""
    generate, score = trainer._generate, trainer._generate_and_score_completions

    def watched_generate(self, *args, **kwargs):
        meter.begin("rollout")
        result = generate(self, *args, **kwargs)
        meter.begin("rewards")
        return result

    def watched_score(self, *args, **kwargs):
        result = score(self, *args, **kwargs)
        meter.begin("update")
        return result

    trainer._generate, trainer._generate_and_score_completions = watched_generate, watched_score


if __name__ == "__main__":
    job = read_job()
    meter = Meter()
    trainer_class, config_class = TRAINERS[job["algorithm"]]
    watch(meter, trainer_class)
    tokenizer = AutoTokenizer.from_pretrained(job["model_folder"], padding_side="left")
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(job["stop_id"])
    end = EndOfIteration(meter, job["num_minibatches"] * job["epochs"])

    def reward(completion_ids, **kwargs):
        end.tokens = sum(map(len, completion_ids))
        return [float(len(ids) % 7) for ids in completion_ids]

    config = config_class(
        output_dir="trl",
        per_device_train_batch_size=job["num_envs"] // job["num_minibatches"],
        gradient_accumulation_steps=1,
        steps_per_generation=job["num_minibatches"],
        num_iterations=job["epochs"],
        max_steps=job["iterations"] * end.steps,
        num_generations=job["replies_per_prompt"],
        max_completion_length=20,
        temperature=1.0,
        top_k=0,
        beta=0.05,
        learning_rate=5e-5,
        bf16=bool(job["amp"]),
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        disable_dropout=True,
        shuffle_dataset=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
    )
    trainer_class(
        model=AutoModelForCausalLM.from_pretrained(job["model_folder"], dtype=torch.float32),
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": tokenizer.batch_decode(job["prompts"])}),
        processing_class=tokenizer,
        callbacks=[end],
    ).train()
    meter.report(job)
