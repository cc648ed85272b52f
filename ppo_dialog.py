"""PPO on dialogue: a language model writes replies in DailyDialog-v0 and learns from rewards for whole replies.

    python ppo_dialog.py                       # embedded model and dialogues, a few minutes on a laptop
    python ppo_dialog.py --critic none         # RLOO; with --normalize-groups too, GRPO's normalization

PPO-clip (Schulman et al. 2017, arXiv:1707.06347) as Ziegler et al. (2019, arXiv:1909.08593) apply it to text: an action
is a token, an episode is a reply, and a KL penalty for every token keeps the policy near the model it started from.
Structure and names follow https://github.com/vwxyzjn/cleanrl/blob/master/cleanrl/ppo.py

Shapes, here and in the comments below:
    P  max_prompt_length, tokens of context     C  num_contexts, contexts in a batch
    T  max_new_tokens, tokens of reply          K  replies_per_prompt, replies to each context
    V  tokens in the vocabulary                 B  num_envs = C * K, replies in a batch: rows i*K to i*K+K-1 answer
    A  candidates to draw from: top_k, or V        context i; an action is a candidate's index
    N  tokens of all replies of a minibatch     n  rows whose replies have not ended yet
    input_ids, attention_mask   (B, P + T)      the context left-padded in the first P columns, the reply after it
    logprobs, values, rewards   (B, T)          one entry for each token of a reply, 0 after its end
"""

import copy
import time
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import dailydialog_gym.runs  # noqa: F401  # isort: skip  (registers DailyDialog-v0; first, to say what is not installed)
import gymnasium as gym
import numpy as np
import torch
import tyro
from torch import nn
from torch.distributions import Categorical

from dailydialog_gym.env import load_samples
from dailydialog_gym.models import AdamW8bit, Decoder, GraphDecoder, MixedPrecision, Packed, compile_agent, pack
from dailydialog_gym.models.forward import forward_cached, forward_packed
from dailydialog_gym.models.last_block import head_on_predicting
from dailydialog_gym.models.loading import head_of, load_model
from dailydialog_gym.models.precision import choose_amp_dtype, choose_kernels
from dailydialog_gym.models.self_check import self_check
from dailydialog_gym.models.steps import step_if_finite
from dailydialog_gym.objects import import_object
from dailydialog_gym.ranges import Count, CountOrZero, NotNegative, Positive, Seed, Share
from dailydialog_gym.rewards import FixedCoefficient, IntentMatch, KLDivergence, load_reward_models, load_scorer
from dailydialog_gym.runs import DataArgs, RandomState, Run, RunArgs, count_contexts, parse_args, settle
from dailydialog_gym.wrappers.vector import IntentReward, KLPenalty, MeteorReward, ScoreReward, replay


@dataclass
class ModelArgs:
    model: str = "builtin"
    """the initial policy: "builtin", or a Hugging Face causal language model by folder or hub id"""
    policy_class: str = "transformers:AutoModelForCausalLM"
    """MODULE:CLASS of the policy network, loaded by `CLASS.from_pretrained(model)`; may be your own"""
    critic_class: str | None = None
    """MODULE:CLASS of a critic network of your own, loaded in the same way (with --critic separate)"""


@dataclass
class RewardArgs:
    meteor_weight: float = 0.5
    """weight of the METEOR score against the reference reply"""
    meteor_by_token: bool = True
    """give each token the increase in METEOR that it causes, instead of the whole score to the last token"""
    intent_weight: float | None = None
    """weight of the intent reward, whether the reply has the reference reply's dialogue act; 0.3 if there are acts"""
    intent_model: str = "builtin"
    """the classifier of dialogue acts: "builtin", or a sequence classifier by folder or hub id"""
    intent_probability: bool = True
    """reward the probability of the reference reply's act, instead of 1 where it is the likeliest act and else 0"""
    intent_labels: tuple[str, ...] | None = None
    """the acts of the classifier's outputs, in order, if its configuration does not name them"""
    reward: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """your own reward, as module:callable=weight; the weight 0 only logs it; may be given several times"""
    reward_model: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """a reward model, a sequence classifier, as FOLDER_OR_ID[:label][=WEIGHT]; may be given several times"""
    reward_model_raw: bool = False
    """use the scores of reward models as they are, not standardized by their running mean and standard deviation"""
    kl_coef: NotNegative = 0.02
    """initial KL coefficient: the weight of the KL penalty, in reward per nat"""
    kl_rule: Literal["openrl", "ziegler", "fixed"] = "openrl"
    """how the KL coefficient adapts: to the KL per token (OpenRL), to the KL per reply (Ziegler et al.), or not"""
    kl_target: Positive | None = None
    """KL divergence at which the coefficient stays: by default 0.1 nats per token (openrl), 6 per reply (ziegler)"""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """estimator of the logged KL divergence; the penalty is always k1, and k3 has less variance"""


@dataclass
class PPOArgs:
    total_episodes: Count = 10240
    """total number of replies to train on"""
    num_envs: Count = 128
    """number of replies in a batch; each iteration collects one batch and trains on it"""
    replies_per_prompt: Count = 8
    """number of replies to each context of a batch"""
    group_baseline: bool = True
    """leave-one-out baseline: subtract the mean return of the other replies to the same context"""
    update_epochs: Count = 1
    """number of passes over each batch"""
    num_minibatches: Count = 4
    """number of minibatches in each pass"""
    gradient_accumulation_steps: Count = 1
    """number of parts of a minibatch, which go through the model one after the other; more need less memory"""
    learning_rate: NotNegative = 5e-5
    """policy learning rate"""
    critic_learning_rate: NotNegative = 3e-4
    """critic learning rate; of a shared critic only its value head has it"""
    anneal_lr: bool = True
    """anneal both learning rates linearly to zero"""
    critic: Literal["separate", "shared", "none"] = "shared"
    """the critic: a network of its own, a value head on the policy, or none (the leave-one-out baseline alone, RLOO)"""
    normalize_groups: bool = False
    """normalize advantages by the standard deviation of the returns to each context (GRPO), not over the batch"""
    top_k: CountOrZero = 20
    """draw each token from the k likeliest, over which the update then normalizes too; 0 draws from all tokens"""
    gamma: Share = 1.0
    """discount factor of generalized advantage estimation (with a critic); the baseline's returns are not discounted"""
    gae_lambda: Share = 0.95
    """lambda of generalized advantage estimation (with a critic)"""
    clip_coef: Positive = 0.2
    """clipping coefficient of the probability ratio"""
    ent_coef: float = 0.0
    """coefficient of the entropy bonus"""
    vf_coef: NotNegative = 0.5
    """coefficient of the value loss"""
    max_grad_norm: Positive = 1.0
    """maximum norm of the gradients of policy and critic, each clipped on its own"""
    use_amp: bool = False
    """automatic mixed precision: bfloat16, or on GPUs without it float16 with loss scaling"""
    compile: bool = False
    """compile the networks: takes a minute or more at the start, and on a CPU needs a C++ compiler"""
    cuda_graphs: bool = False
    """launch each token of a rollout as one CUDA graph (experimental: not yet tried on a GPU)"""
    seed: Seed = 1
    """random seed"""


@dataclass
class Args(RunArgs, PPOArgs, RewardArgs, DataArgs, ModelArgs):  # the bases are the groups of --help
    pass


class Critic(nn.Module):
    """Predicts the return minus the leave-one-out baseline: a linear head on its own or the policy's hidden states."""

    def __init__(self, body: nn.Module | None, width: int):
        super().__init__()
        self.body = body
        self.value_head = nn.Linear(width, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, packed: Packed):
        return self.value(packed.predicting(forward_packed(self.body, packed)[0]))  # (N,)

    def value(self, hidden):
        return self.value_head(hidden).squeeze(-1)


class Agent(nn.Module):
    """A policy and a critic. Both stay in evaluation mode: with dropout the first ratio would not be 1."""

    def __init__(self, args: Args, vocab_size: int):
        super().__init__()
        policy_class, body = import_object(args.policy_class, "--policy-class"), None
        self.policy = load_model(args.model, policy_class)
        self.vocab_size = vocab_size  # the tokenizer's; models often have more rows in their embeddings
        width = head_of(self.policy).in_features
        if args.critic_class:
            body = load_model(args.model, import_object(args.critic_class, "--critic-class"))
            width = body(torch.zeros(1, 1, dtype=torch.long))[0].shape[-1]
        elif args.critic == "separate":
            body = load_model(args.model, policy_class, with_head=False)
        self.shared = args.critic == "shared"
        self.critic = None if args.critic == "none" else Critic(body, width)

    def forward(self, packed: Packed):
        """Whole replies, for the update: logits (N, V) and values (N,) before every reply token."""
        with head_on_predicting(self.policy, packed):
            outputs = forward_packed(self.policy, packed, logits_to_keep=packed.tail, output_hidden_states=self.shared)
        logits = outputs.logits[0, :, : self.vocab_size]
        if self.shared:
            return logits, self.critic.value(packed.predicting(outputs.hidden_states[-1]))
        return logits, self.critic(packed) if self.critic else torch.zeros_like(logits[:, 0])

    def next_token(self, input_ids, **inputs):
        """For the rollout: logits (n, V) of the token after input_ids (n, L); values (n,) of a shared critic, or 0."""
        outputs = forward_cached(self.policy, input_ids, **inputs, output_hidden_states=self.shared)
        logits = outputs.logits[:, -1, : self.vocab_size]
        hidden = outputs.hidden_states[-1][:, -1] if self.shared else None
        return logits, self.critic.value(hidden) if self.shared else torch.zeros_like(logits[:, 0])


class Batch(NamedTuple):
    """B replies. The arrays are numpy's on the CPU, the tensors are on the agent's device."""

    input_ids: np.ndarray  # (B, P + T)
    attention_mask: np.ndarray  # (B, P + T)
    reply_mask: torch.Tensor  # (B, T) float, 1 for the tokens of the reply
    actions: torch.Tensor  # (B, T) which of the A candidates was drawn
    candidates: torch.Tensor | None  # (B, T, A) token ids with top-k; without it action i is token i
    logprobs: torch.Tensor  # (B, T) of the actions, among the candidates
    values: torch.Tensor  # (B, T) of the critic
    rewards: torch.Tensor  # (B, T)
    infos: dict  # final infos of the environments, one entry for each reply
    advantages: torch.Tensor | None = None  # (B, T), as the next two by `compute_advantages`
    returns: torch.Tensor | None = None  # (B, T)
    baselines: torch.Tensor | None = None  # (B, T)


def candidate_logits(candidates, logits):
    """Of the logits of all tokens, (..., V), those of the candidates, (..., A)."""
    return logits.float() if candidates is None else logits.gather(-1, candidates).float()


@torch.no_grad()
def rollout(agent, envs, decoder, sample_ids, args, autocast) -> Batch:
    """K replies to each of the C samples, written by the current policy.

    `Decoder.write` calls `next_token`, draws one of the A likeliest tokens, and so on until all replies have ended. No
    token waits for the environment, which gets whole replies; tests/test_rollout.py has the same token by token.
    """
    B, K, P, T = args.num_envs, args.replies_per_prompt, args.max_prompt_length, args.max_new_tokens
    device = agent.policy.device
    obs, _ = envs.reset(options={"sample_id": np.repeat(sample_ids, K)})
    uniform = torch.rand(B, T, dtype=torch.double, device=device)  # for inverse transform sampling
    drawn, values = decoder.write(obs["input_ids"][::K, :P], obs["attention_mask"][::K, :P], K, uniform)  # (B, T) each
    # The KL penalty compares the whole distributions of policy and reference, not those among the candidates
    tokens, log_probs = drawn.tokens.cpu().numpy(), drawn.log_probs.double().cpu().numpy()
    obs, _, _, _, infos = replay(envs, {"token": tokens, "log_prob": log_probs})
    ids, mask = obs["input_ids"], obs["attention_mask"]
    reply_mask, values = torch.from_numpy(mask[:, P:]).to(device).float(), values.float()
    if args.critic == "separate":
        with autocast:
            values[reply_mask.bool()] = agent.critic(pack(ids, mask, P, np.arange(B) // K, device)).float()
    rewards = torch.from_numpy(infos["token_rewards"]).float().to(device)
    logprobs, values = drawn.action_log_probs * reply_mask, values * reply_mask
    return Batch(ids, mask, reply_mask, drawn.actions, drawn.candidates, logprobs, values, rewards, infos)


def compute_advantages(batch, args):
    """The batch with advantages, returns and baselines, and how much of the returns' variance the values explain."""
    K, T = args.replies_per_prompt, args.max_new_tokens
    mask, num_tokens = batch.reply_mask, batch.reply_mask.sum()
    # G_i,t is what reply i earns from token t on. Without a critic, a whole reply is one action, as in RLOO
    # (arXiv:2402.14740) and GRPO, so each of its tokens has the return of the reply, G_i,0.
    rewards_to_go = batch.rewards.flip(1).cumsum(1).flip(1).view(-1, K, T)
    rewards_to_go = rewards_to_go[:, :, :1].expand(-1, -1, T) if args.critic == "none" else rewards_to_go
    # Leave-one-out baseline, of the K - 1 other replies to the same context:  b_i,t = 1/(K-1) * sum_{j != i} G_j,t
    baselines = (rewards_to_go.sum(1, keepdim=True) - rewards_to_go).view(-1, T) / max(K - 1, 1)
    baselines = baselines * mask * args.group_baseline
    values = batch.values + baselines  # V(s_t) = b_t + critic(s_t)
    if args.critic == "none":
        advantages = (rewards_to_go.reshape(-1, T) - baselines) * mask  # A_t = G_i,0 - b_i,0
    else:
        # Generalized advantage estimation (arXiv:1506.02438):
        #   delta_t = r_t + gamma * V(s_t+1) - V(s_t)        A_t = delta_t + gamma * lambda * A_t+1
        # After the end of a reply rewards and values are 0, so nothing is bootstrapped there and advantages are 0.
        deltas = batch.rewards + args.gamma * nn.functional.pad(values, (0, 1))[:, 1:] - values
        advantages, lastgaelam = torch.zeros_like(deltas), 0.0
        for t in reversed(range(T)):
            advantages[:, t] = lastgaelam = deltas[:, t] + args.gamma * args.gae_lambda * lastgaelam
    returns = advantages + values
    explained_variance = 1 - advantages[mask.bool()].var() / returns[mask.bool()].var()

    if args.normalize_groups:
        # GRPO (arXiv:2402.03300) divides G_i,0 - mean(G) by the context's std(G). G_i,0 - b_i,0 is K/(K - 1) times that
        # difference, a constant factor, which is left in here
        std = rewards_to_go[:, :, 0].std(1, keepdim=True).repeat_interleave(K, dim=0)  # (B, 1)
        advantages = advantages / (std + 1e-4)
    else:
        mean = advantages.sum() / num_tokens
        std = (((advantages - mean) * mask).pow(2).sum() / num_tokens).sqrt()
        advantages = (advantages - mean) / (std + 1e-8) * mask
    return batch._replace(advantages=advantages, returns=returns, baselines=baselines), explained_variance


def ppo_loss(agent, batch, packed, args, autocast):
    """The policy's and the critic's loss of a part of a minibatch, means over its N tokens, and statistics to log."""
    with autocast:
        newlogits, newvalue = agent(packed)  # (N, V), (N,)
    mb_inds, part_tokens = packed.replies, len(packed.replies)

    def mb(tensor):  # (B, T, ...) -> (N, ...)
        return tensor.flatten(0, 1)[mb_inds]

    # Policy loss:  L = mean_t max(-A_t * ratio_t, -A_t * clip(ratio_t, 1 - eps, 1 + eps))
    #   with ratio_t = pi(a_t | s_t) / pi_old(a_t | s_t)
    candidates = mb(batch.candidates) if args.top_k else None
    dist = Categorical(logits=candidate_logits(candidates, newlogits), validate_args=False)
    logratio = dist.log_prob(mb(batch.actions)) - mb(batch.logprobs)
    ratio = logratio.exp()
    pg_loss1 = -mb(batch.advantages) * ratio
    pg_loss2 = -mb(batch.advantages) * ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    pg_loss = torch.max(pg_loss1, pg_loss2).sum() / part_tokens
    # Value loss:  L = 1/2 * mean_t (b_t + critic(s_t) - R_t)^2
    v_loss = 0.5 * (newvalue.float() + mb(batch.baselines) - mb(batch.returns)).pow(2).sum() / part_tokens
    with torch.set_grad_enabled(args.ent_coef != 0):  # without a bonus it is only logged
        entropy = dist.entropy().sum() / part_tokens
    kl = (ratio - 1 - logratio).sum() / part_tokens  # k3 of http://joschu.net/blog/kl-approx.html
    clipfrac = ((ratio - 1).abs() > args.clip_coef).sum() / part_tokens
    stats = {"policy_loss": pg_loss, "value_loss": v_loss, "entropy": entropy, "approx_kl": kl, "clipfrac": clipfrac}
    stats = {name: value.detach() for name, value in stats.items()}
    return pg_loss - args.ent_coef * entropy, args.vf_coef * v_loss, stats


if __name__ == "__main__":
    args, resume = parse_args(Args, __doc__)
    P, T, K = args.max_prompt_length, args.max_new_tokens, args.replies_per_prompt
    num_parts = args.gradient_accumulation_steps
    num_contexts = count_contexts(args, num_parts)
    num_iterations = args.total_episodes // args.num_envs
    context = np.arange(num_contexts * K) // K  # of each reply of a batch
    rng = np.random.default_rng(args.seed)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    choose_kernels(device)
    amp_dtype = choose_amp_dtype(device) if args.use_amp else None
    # Environment: one token is one action. In lockstep all replies of a batch start and finish together.
    sample_settings = {"tokenizer": args.model, **args.sample_settings()}
    settings = {"max_new_tokens": T, **sample_settings}
    envs = gym.make_vec("DailyDialog-v0", num_envs=args.num_envs, lockstep=True, autoreset_mode="Disabled", **settings)
    samples = envs.unwrapped.samples
    eval_samples = load_samples(split=args.eval_split, **sample_settings)
    settle(args, samples)  # the spacing, and the intent reward's weight, which is None if the dialogues have no acts
    args.kl_target = args.kl_target or {"openrl": 0.1, "ziegler": 6.0}.get(args.kl_rule)
    # Rewards are wrappers:  r_t = sum of weight * score_t - beta * (log pi(a_t | s_t) - log pi_ref(a_t | s_t))
    agent = Agent(args, samples.tokenizer.vocab_size).to(device)
    if args.top_k > agent.vocab_size:
        raise ValueError(f"--top-k {args.top_k}: expected at most {agent.vocab_size}, the tokenizer's number of tokens")
    self_check(agent, agent.vocab_size, P, T, args.cuda_graphs)
    agent.to(torch.bfloat16 if args.low_memory else torch.float32)
    reference = KLDivergence(copy.deepcopy(agent.policy), agent.vocab_size, device, amp_dtype)
    how = {"labels": args.intent_labels, "probability": args.intent_probability, "spacing": args.spacing}
    intent = None if args.intent_weight is None else IntentMatch(args.intent_model, device, amp_dtype=amp_dtype, **how)
    reward_models = load_reward_models(args.reward_model, device, not args.reward_model_raw, amp_dtype, args.spacing)
    kl_coef = FixedCoefficient(args.kl_coef)  # fixed for the wrapper; the loop below adapts it after each rollout
    envs = MeteorReward(envs, args.meteor_weight, args.meteor_by_token)
    if intent:
        envs = IntentReward(envs, intent, args.intent_weight)
    scorers = [*map(load_scorer, args.reward), *reward_models]
    for scorer, weight, name in scorers:
        envs = ScoreReward(envs, scorer, weight, name)
    envs = KLPenalty(envs, reference, kl_coef, args.kl_estimator)
    fixed_cache = compile_agent(agent, P + T, not args.cuda_graphs) if args.compile else None
    lr_of = {agent.policy: args.learning_rate, agent.critic: args.critic_learning_rate}
    groups = [{"params": [*part.parameters()], "lr": lr, "initial_lr": lr} for part, lr in lr_of.items() if part]
    adamw = AdamW8bit if args.low_memory else partial(torch.optim.AdamW, weight_decay=0.0, fused=True)
    optimizer = adamw(groups, eps=1e-5)
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype == torch.float16)
    autocast = MixedPrecision(device, amp_dtype, P + K * T)
    decoding = agent.next_token, samples.tokenizer.transitions, T, autocast, device, args.top_k
    decoder = GraphDecoder(*decoding) if args.cuda_graphs else Decoder(*decoding, fixed_cache, agent.policy)
    run = Run(args, num_iterations * args.num_envs, resume)
    run.print_setup(agent.policy, samples, eval_samples, device, amp_dtype)
    state = {"agent": agent, "optimizer": optimizer, "scaler": scaler, "kl_coef": kl_coef, "rng": RandomState(rng)}
    state |= {f"reward/{name}": scorer for scorer, _, name in scorers if hasattr(scorer, "load_state_dict")}
    run.restore(agent.policy, **state)
    run.start(run.before or run.evaluate(agent.policy, eval_samples, intent))
    for iteration in range(run.iteration + 1, num_iterations + 1):
        start = time.perf_counter()
        if args.anneal_lr:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (1.0 - (iteration - 1.0) / num_iterations)
        sample_ids = rng.choice(len(samples), num_contexts, replace=len(samples) < num_contexts)
        batch = rollout(agent, envs, decoder, sample_ids, args, autocast)
        rollout_time = time.perf_counter() - start
        batch, explained_variance = compute_advantages(batch, args)

        # Adaptive KL coefficient:  beta <- beta * (1 + rate * clip(KL / target - 1, -0.2, 0.2))
        num_tokens, kl_sum = batch.reply_mask.sum().item(), batch.infos["reward/kl"].sum()
        kl, rate = kl_sum / num_tokens, 0.1  # of OpenRL: the KL per token
        if args.kl_rule == "ziegler":  # the KL per reply (section 2.2), and the rate of their code
            kl, rate = kl_sum / args.num_envs, args.num_envs / 10_000
        if args.kl_rule != "fixed":
            kl_coef.value *= 1 + rate * float(np.clip(kl / args.kl_target - 1, -0.2, 0.2))
        logged, checks = [], []
        for _ in range(args.update_epochs):
            minibatches = []  # of packed rows: each context is read once for its K replies
            for contexts in np.array_split(rng.permutation(num_contexts), args.num_minibatches):
                parts = [(part[:, None] * K + np.arange(K)).ravel() for part in np.array_split(contexts, num_parts)]
                minibatches += [[pack(batch.input_ids, batch.attention_mask, P, context, device, p) for p in parts]]
            for parts in minibatches:
                mb_tokens = sum(len(packed.replies) for packed in parts)
                for packed in parts:  # whose gradients add up
                    policy_loss, value_loss, stats = ppo_loss(agent, batch, packed, args, autocast)
                    loss = (policy_loss + value_loss) * (len(packed.replies) / mb_tokens)
                    scaler.scale(loss).backward()
                    logged.append(stats)
                scaler.unscale_(optimizer)
                norms = [nn.utils.clip_grad_norm_(group["params"], args.max_grad_norm) for group in groups]
                checks.append((scaler.get_scale(), step_if_finite(scaler, optimizer, loss, *norms)))
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
        # A step whose loss or gradient is not finite was left out; three of them in a row end the run
        for loss_scale, numbers in checks:
            run.check_step("the agent", *numbers, loss_scale=loss_scale)
        run.log_rollouts(iteration, agent, batch, samples.tokenizer, autocast)
        seconds = time.perf_counter() - start
        metrics = {
            "charts/episodic_return": batch.rewards.sum(1).mean(),
            "charts/episodic_length": num_tokens / args.num_envs,
            "charts/FPS": num_tokens / seconds,
            "charts/learning_rate": optimizer.param_groups[0]["lr"],
            "time/rollout": rollout_time / seconds,
            **{key: batch.infos[key].mean() for key in batch.infos if key.startswith(("reward/", "metric/"))},
            **{f"losses/{name}": torch.stack([row[name] for row in logged]).nanmean() for name in logged[0]},
            "losses/explained_variance": explained_variance,
        }
        run.log(metrics, episodes=iteration * args.num_envs)
        run.print_samples(iteration, batch.infos["prompt"], batch.infos["response"], batch.rewards.sum(1))
        run.checkpoint(iteration)
    run.finish(run.evaluate(agent.policy, eval_samples, intent), eval_samples, envs)
