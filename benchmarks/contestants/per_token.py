"""PPO token by token in the manner of OpenRL (github.com/OpenRL-Lab/openrl, examples/nlp), for `ppo_speed.py`.

This is not OpenRL but its arithmetic: the forwards and backwards that it runs for a token, over all 148 columns,
without a cache. A comment names the place in OpenRL for each. Where theirs costs more without being arithmetic, this is
cheaper: no deep copy of observations and no decoding of the reply so far for every token (`Observation.update`), no
dropout in the critic, no pipes between processes, one vector environment instead of many.

A whole iteration (128 steps of 2 rows, 5 epochs of 20 minibatches) takes 20 minutes with GPT-2 on two cores. So some
steps and some minibatches are timed, and the minibatches scaled to the number that those steps' tokens would need.
"""

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from meter import Meter, read_job
from torch import nn
from torch.distributions import Categorical

import dailydialog_gym  # noqa: F401  (registers DailyDialog-v0)
from dailydialog_gym.models.loading import load_model
from dailydialog_gym.rewards.intent import IntentMatch
from dailydialog_gym.wrappers.vector import MeteorReward

ROWS = 12  # of a step and of a minibatch; nlp_ppo.yaml's minibatch, 2 * 128 / 20
STEPS = 8  # long enough for some replies to end
MINIBATCHES = 2


def right_aligned(observation: dict[str, np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """OpenRL's columns: all padding on the left, the newest token in the last one (`Observation._concat`)."""
    order = observation["attention_mask"].argsort(axis=1, kind="stable")
    arrays = (np.take_along_axis(observation[key], order, axis=1) for key in ("input_ids", "attention_mask"))
    return tuple(torch.from_numpy(array).to(device) for array in arrays)


def forward(model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor):
    """All columns, logits of each and hidden states, no cache (`forward_policy`, `forward_value`, `KLPenalty`)."""
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)  # `prepare_inputs_for_generation`
    return model(
        input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=False,
        output_hidden_states=True,
    )


if __name__ == "__main__":
    job = read_job()
    meter = Meter()
    torch.manual_seed(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    envs = gym.make_vec(
        "DailyDialog-v0",
        num_envs=ROWS,
        autoreset_mode=AutoresetMode.SAME_STEP,  # a row begins a new episode while the others go on
        dataset=job["dataset"],
        tokenizer=job["model"],
        context_size=job["context_size"],
    )
    envs = MeteorReward(envs, 0.5)  # in the step that ends a reply (`NLPReward.inner_reward_fn`)
    intent = IntentMatch(job["intent_model"], device)
    policy, critic, reference = (load_model(job["model"]).to(device) for _ in range(3))  # each with its head
    value_head = nn.Linear(policy.get_output_embeddings().in_features, 1, bias=False).to(device)
    actor_optimizer = torch.optim.Adam(policy.parameters(), lr=1e-7, eps=1e-5)
    critic_optimizer = torch.optim.Adam([*critic.parameters(), *value_head.parameters()], lr=1e-7, eps=1e-5)
    # OpenRL's use_amp covers the update alone (`PPOAlgorithm.ppo_update`)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bool(job["amp"]))

    def value(columns):
        return value_head(forward(critic, *columns).hidden_states[-1][:, -1])  # its head's logits are not used

    def iterate(steps: int, minibatches: int) -> None:
        meter.begin("rollout")
        observation, _ = envs.reset(seed=1, options={"sample_id": np.array(job["sample_ids"][:ROWS])})
        stored, finished = [], {"prompt": [], "response": [], "intent": []}
        with torch.no_grad():
            for _ in range(steps):
                columns = right_aligned(observation, device)
                distribution = Categorical(logits=forward(policy, *columns).logits[:, -1, : envs.single_action_space.n])
                actions = distribution.sample()
                log_probs = distribution.log_prob(actions)
                values = value(columns)  # `PPOModule.get_actions` runs policy and critic for each token
                meter.begin("rewards")
                logits = forward(reference, *columns).logits[:, -1, : envs.single_action_space.n]
                kl = log_probs - Categorical(logits=logits).log_prob(actions)  # `NLPReward.step_reward`, for each token
                meter.begin("rollout")
                observation, rewards, _, _, infos = envs.step(actions.cpu().numpy())
                if "final_info" in infos:
                    ended = infos["final_info"]["_response"]
                    for key, texts in finished.items():
                        texts.extend(infos["final_info"][key][ended])
                rewards = torch.from_numpy(rewards).float().to(device) - 0.2 * kl
                stored.append((columns, actions, log_probs, values.squeeze(-1), rewards))
            meter.begin("rewards")
            if finished["response"]:
                intent.match(finished["prompt"], finished["response"], finished["intent"])  # `NLPReward.batch_rewards`
            meter.begin("rollout")
            value(right_aligned(observation, device))  # `OnPolicyDriver.compute_returns`

        meter.begin("update")
        for i in range(minibatches):  # `PPOAlgorithm.ppo_update`: a row of 148 columns for every token
            # Which tokens are drawn changes no cost, nor does the advantage, for which this takes the reward.
            columns, actions, log_probs, values, rewards = stored[i % steps]
            with autocast:
                values_now = value(columns).float().squeeze(-1)
                logits = forward(policy, *columns).logits[:, -1, : envs.single_action_space.n].float()
            distribution = Categorical(logits=logits)
            ratio = (distribution.log_prob(actions) - log_probs).exp()
            surrogate = torch.min(ratio * rewards, ratio.clamp(0.8, 1.2) * rewards)
            policy_loss = -surrogate.mean() - 0.01 * distribution.entropy().mean()
            clipped = values + (values_now - values).clamp(-0.2, 0.2)
            value_loss = torch.max((values_now - rewards) ** 2, (clipped - rewards) ** 2).mean()
            for optimizer in (actor_optimizer, critic_optimizer):
                optimizer.zero_grad()
            policy_loss.backward()
            (0.5 * value_loss).backward()
            for optimizer in (actor_optimizer, critic_optimizer):
                nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 10.0)
                optimizer.step()
        needed = job["epochs"] * steps  # minibatches of as many rows as a step has
        meter.end(steps * ROWS, repeat={"update": needed / minibatches})

    iterate(1, 1)
    for _ in range(job["iterations"] - 1):
        iterate(STEPS, MINIBATCHES)
    meter.report(job)
