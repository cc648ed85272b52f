"""ppo_dialog.py on DeepSpeed, from one process to many machines; `diff` the two files to see what that takes.

    deepspeed ppo_dialog_deepspeed.py                           # all GPUs of this machine
    deepspeed --hostfile hosts ppo_dialog_deepspeed.py --use-amp --zero-stage 3 --config configs/opt-1.3b.yaml

The flags mean what they mean in ppo_dialog.py: they say what all ranks do together.

The algorithm is PPO-clip (Schulman et al. 2017, arXiv:1707.06347) in the form of Ziegler et al. (2019,
arXiv:1909.08593): a token is an action, a reply an episode, and the divergence from the starting model is paid token by
token. The names are CleanRL's (https://github.com/vwxyzjn/cleanrl/blob/master/cleanrl/ppo.py).
"""

import copy
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import gymnasium as gym
import numpy as np
import torch
import transformers
import tyro
from torch import nn
from transformers import AutoModelForCausalLM

import dailydialog_gym  # noqa: F401  (registers DailyDialog-v0)
from dailydialog_gym.distributed import ranks
from dailydialog_gym.distributed.engines import (
    CheckedSteps,
    DeepSpeedArgs,
    engine,
    evaluation_config,
    gathered,
    training_config,
)
from dailydialog_gym.distributed.runs import DistributedRun
from dailydialog_gym.env.samples import load_samples
from dailydialog_gym.models.cache import read_prompts
from dailydialog_gym.models.last_block import only_tail_is_read
from dailydialog_gym.models.loading import load_model
from dailydialog_gym.models.packing import pack
from dailydialog_gym.objects import import_object
from dailydialog_gym.rewards.coefficients import AdaptiveCoefficient, FixedCoefficient, ZieglerCoefficient
from dailydialog_gym.rewards.intent import IntentMatch
from dailydialog_gym.rewards.kl import KLDivergence
from dailydialog_gym.rewards.own import load_scorer
from dailydialog_gym.runs import RandomState, RunArgs, parse_args
from dailydialog_gym.wrappers.vector import IntentReward, KLPenalty, MeteorReward, ScoreReward


@dataclass
class ModelArgs:
    model: str = "builtin"
    """the policy to start from: "builtin", or a Hugging Face causal language model by folder or hub id"""
    dataset: str = "builtin"
    """"builtin", a folder, a .jsonl file or a hub id such as daily_dialog"""
    full_context: bool = False
    """only replies with `context_size` utterances before them, as RL4LMs and OpenRL do"""
    context_size: int = 5
    """utterances of context"""
    max_prompt_length: int = 128
    """tokens of context"""
    max_new_tokens: int = 20
    """tokens of reply"""
    policy_class: str | None = None
    """MODULE:CLASS of your own policy, which `CLASS.from_pretrained(model)` loads"""
    critic_class: str | None = None
    """MODULE:CLASS of your own critic, loaded in the same way; README shows both"""


@dataclass
class RewardArgs:
    meteor_weight: float = 0.5
    """what a METEOR of 1 against the reference reply is worth"""
    meteor_by_token: bool = True
    """pay METEOR to the tokens that raise it, rather than all to the last: less noise, the same sum"""
    intent_weight: float = 0.3
    """what a reply that does what the reference reply does (inform, ask, direct, commit) is worth"""
    intent_model: str = "builtin"
    """who judges that: "builtin", or a sequence classifier by folder or hub id"""
    intent_probability: bool = True
    """pay how probable the judge finds that, rather than 0 or 1: less noise"""
    intent_labels: tuple[str, ...] | None = None
    """what the classifier's outputs stand for, where its configuration doesn't say it"""
    reward: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """your own reward, as module:callable=weight; may be given several times"""
    kl_coef: float = 0.02
    """what a nat of divergence from the starting model costs at first"""
    kl_rule: Literal["openrl", "ziegler", "fixed"] = "openrl"
    """how that adapts: OpenRL's rule by the divergence a token, Ziegler's by that of a reply, or not at all"""
    kl_target: float = 0.1
    """the divergence, in nats, that the coefficient steers to: a token, or a reply for Ziegler's rule (his was 6)"""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """of the logged divergence: k1 is what is paid, k3 has less variance"""


@dataclass
class PPOArgs:
    total_episodes: int = 10240
    """replies to train on"""
    num_envs: int = 128
    """replies written at once; each iteration trains on one batch of them"""
    replies_per_prompt: int = 8
    """replies to each context of a batch; the context is read once for all of them, in rollout and update"""
    group_baseline: bool = True
    """expect of a reply what its context's other replies earn; the critic learns the rest"""
    update_epochs: int = 1
    """passes over each batch"""
    num_minibatches: int = 4
    """minibatches of a pass"""
    learning_rate: float = 5e-5
    """of the policy"""
    critic_learning_rate: float = 3e-4
    """of the critic; a shared critic's backbone learns at the policy's"""
    anneal_lr: bool = True
    """lower both linearly to zero"""
    critic: Literal["separate", "shared"] = "shared"
    """"separate": a second copy of the model estimates values; "shared": a value head on the policy does"""
    top_k: int = 20
    """replies are drawn from the likeliest K tokens, which the update then chooses among, as in NLPO; 0 is all"""
    gamma: float = 1.0
    """discount"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation"""
    clip_coef: float = 0.2
    """how far the probability ratio may go from 1"""
    ent_coef: float = 0.0
    """weight of the entropy bonus"""
    vf_coef: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 1.0
    """gradients are clipped to this norm, policy and critic each"""
    use_amp: bool = False
    """automatic mixed precision: bfloat16 where the device has it, else float16 with loss scaling"""
    compile: bool = False
    """compile update and decoding, for long runs: it takes a minute or more, and without a GPU a C++ compiler"""
    seed: int = 1
    """of everything"""


@dataclass
class Args(DeepSpeedArgs, RunArgs, PPOArgs, RewardArgs, ModelArgs):  # one flat namespace here, five groups in --help
    pass


class Critic(nn.Module):
    """Estimates the return before each token of the reply: a model without its language-model head, a value head."""

    def __init__(self, body: nn.Module, width: int):
        super().__init__()
        self.body = body
        self.value_head = nn.Linear(width, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, input_ids, attention_mask, position_ids, tail, before):
        """Values (N,) before each reply token of packed rows, see `Packed`."""
        with only_tail_is_read(self.body, tail):
            hidden = self.body(input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)[0]
        return self.values(hidden[:, -tail:].flatten(0, 1)[before])

    def values(self, hidden):
        return self.value_head(hidden).squeeze(-1)


class Agent(nn.Module):
    """A policy and a critic, which may share the policy's body."""

    def __init__(self, model: str, critic: str, vocab_size: int, policy_class=AutoModelForCausalLM, critic_class=None):
        super().__init__()
        # In eval mode for good: with dropout the first ratio would not be 1
        self.policy = load_model(model, policy_class)
        self.shared = critic == "shared"
        width = self.policy.get_output_embeddings().in_features
        body = self.policy.base_model
        if not self.shared:
            body = load_model(model, critic_class) if critic_class else load_model(model, policy_class).base_model
        if critic_class:
            one = torch.ones(1, 1, dtype=torch.long)
            hidden = body(one, attention_mask=one, position_ids=one - 1, use_cache=False)[0]
            if hidden.shape[-1] != width:
                raise ValueError(f"--critic-class: its hidden states are {hidden.shape[-1]} wide, the policy's {width}")
        self.critic = Critic(body, width)
        self.vocab_size = vocab_size

    def forward(self, input_ids, attention_mask, position_ids, tail, before):
        """Logits (N, vocab_size) and, of a shared critic, values (N,) before each reply token."""
        inputs = {"attention_mask": attention_mask, "position_ids": position_ids, "use_cache": False}
        with only_tail_is_read(self.policy, tail):
            outputs = self.policy(input_ids, **inputs, logits_to_keep=tail, output_hidden_states=self.shared)
        logits = outputs.logits[..., : self.vocab_size].flatten(0, 1)[before]
        if not self.shared:
            return logits
        return logits, self.critic.values(outputs.hidden_states[-1][:, -tail:].flatten(0, 1)[before])


@torch.no_grad()
def next_token(agent, input_ids, attention_mask, cache):
    """(n, vocabulary) logits of the token after the last column, whose inputs ``input_ids`` are the columns that the
    cache lacks, and a shared critic's values (n,) before it."""
    device = agent.policy.device
    input_ids, attention_mask = (torch.as_tensor(array, device=device) for array in (input_ids, attention_mask))
    position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)  # prompts are left-padded
    outputs = agent.policy(
        input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids[:, -input_ids.shape[1] :],
        past_key_values=cache,
        logits_to_keep=1,
        output_hidden_states=agent.shared,
    )
    value = (
        agent.critic.values(outputs.hidden_states[-1][:, -1])
        if agent.shared
        else torch.zeros_like(outputs.logits[:, 0, 0])
    )
    return outputs.logits[:, 0], value


def narrow(logits, allowed):
    """Logits of the tokens that may be drawn: (..., top_k) of those in ``allowed``, or all where it is None."""
    return logits if allowed is None else logits.gather(-1, allowed)


if __name__ == "__main__":
    whole, resume = parse_args(Args, __doc__, ranks.flags())
    if whole.compile:
        raise SystemExit("--compile: DeepSpeed's hooks stand between the layers, so leave it out")
    transformers.utils.logging.disable_progress_bar()
    rank, world, device = ranks.start()
    config = training_config(whole, world)
    # What is this rank's; a minibatch of DeepSpeed's is several of the loop's
    args = replace(
        whole,
        seed=whole.seed + rank * whole.num_envs,
        num_envs=whole.num_envs // world,
        total_episodes=whole.total_episodes // world,
        num_minibatches=whole.num_minibatches * config["gradient_accumulation_steps"],
    )
    K = args.replies_per_prompt
    num_contexts = args.num_envs // max(K, 1)
    if (
        num_contexts * K * world != whole.num_envs
        or not 1 <= args.num_minibatches <= num_contexts <= args.total_episodes // K
    ):
        raise SystemExit(
            f"expected a number of contexts a rank, num_envs ({whole.num_envs}) / ranks ({world}) / replies_per_prompt "
            f"({K}), that is whole and at least num_minibatches * gradient_accumulation_steps "
            f"({args.num_minibatches}), and num_envs <= total_episodes ({whole.total_episodes})"
        )
    if args.critic_class and args.critic == "shared":
        raise SystemExit("--critic-class is a critic of its own: add --critic separate")
    num_iterations = args.total_episodes // args.num_envs
    rng = np.random.default_rng(whole.seed)  # the same on all ranks
    torch.manual_seed(args.seed)
    amp_dtype = torch.float16 if device.type == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16

    # Environment, rewards, agent
    shape = {name: getattr(args, name) for name in ("context_size", "max_prompt_length", "full_context")}
    T = args.max_new_tokens
    P = args.max_prompt_length
    envs = gym.make_vec(
        "DailyDialog-v0",
        num_envs=args.num_envs,
        lockstep=True,  # all replies of a batch begin and end together: one cache length, one call of each scorer
        autoreset_mode="Disabled",
        dataset=args.dataset,
        tokenizer=args.model,
        max_new_tokens=T,
        **shape,
    )
    samples = envs.unwrapped.samples
    eval_samples = load_samples(args.dataset, args.eval_split, args.model, **shape)
    vocab_size = samples.tokenizer.vocab_size
    if not 0 <= args.top_k <= vocab_size:
        raise SystemExit(f"top_k is 0 to {vocab_size}, the policy's vocabulary, got {args.top_k}")
    own = {
        f"{part}_class": import_object(name, f"--{part}-class")
        for part, name in (("policy", args.policy_class), ("critic", args.critic_class))
        if name
    }
    agent = Agent(args.model, args.critic, vocab_size, **own)
    longest = getattr(agent.policy.config, "max_position_embeddings", P + T)
    if longest < P + T:
        raise SystemExit(
            f"model {args.model!r} reads {longest} tokens, but max_prompt_length {P} + max_new_tokens {T} = {P + T}"
        )
    reward_amp_dtype = amp_dtype if args.use_amp else None
    intent = IntentMatch(args.intent_model, device, args.intent_labels, args.intent_probability, reward_amp_dtype)
    reference = KLDivergence(copy.deepcopy(agent.policy), vocab_size, device, reward_amp_dtype)
    rules = {"openrl": AdaptiveCoefficient, "ziegler": ZieglerCoefficient}
    fixed = args.kl_rule == "fixed"
    coefficient = FixedCoefficient(args.kl_coef) if fixed else rules[args.kl_rule](args.kl_coef, args.kl_target)
    coefficient = ranks.GlobalCoefficient(coefficient)
    engine(reference.model, evaluation_config(args.ref_deepspeed_config, config, "the reference"))
    engine(intent.classifier, evaluation_config(args.intent_deepspeed_config, config, "the intent model"))
    envs = MeteorReward(envs, args.meteor_weight, args.meteor_by_token)
    envs = IntentReward(envs, intent, args.intent_weight)
    for scorer, weight, name in map(load_scorer, args.reward):
        envs = ScoreReward(envs, scorer, weight, name)
    envs = KLPenalty(envs, reference, coefficient, args.kl_estimator)

    policy_params = list(agent.policy.parameters())
    critic_params = list((agent.critic.value_head if agent.shared else agent.critic).parameters())
    groups = [
        {"params": policy_params, "lr": args.learning_rate},
        {"params": critic_params, "lr": args.critic_learning_rate},
    ]
    initial_lrs = [group["lr"] for group in groups]
    if agent.shared:
        agent = engine(agent, config, groups)
        engines = {"the agent": agent}
    else:
        agent.policy, agent.critic = engine(agent.policy, config, groups[:1]), engine(agent.critic, config, groups[1:])
        engines = {"the policy": agent.policy, "the critic": agent.critic}
    steps = {name: CheckedSteps(each) for name, each in engines.items()}
    engines = list(engines.values())
    autocast = nullcontext()  # DeepSpeed's own precision

    def step(name, loss, *groups):
        """Descend: the engine's parameters move unless a gradient isn't finite."""
        steps[name].backward_and_step(loss, partial(run.check_step, name))

    run = DistributedRun(whole, num_iterations * whole.num_envs, resume)
    run.print_setup(
        agent.policy,
        samples,
        eval_samples,
        device,
        amp_dtype,
        deepspeed=f"{world} ranks, ZeRO stage {engines[0].zero_optimization_stage()}, {config}",
    )
    evaluate = partial(run.evaluate, agent.policy, samples.tokenizer, eval_samples, intent)
    run.checkpoint_parts(
        agent.policy,
        engines=engines,
        kl_coef=envs.ledger.coefficient,
        random=RandomState(rng),
    )
    groups = [group for each in engines for group in each.optimizer.param_groups]  # a checkpoint brings new ones
    run.start(run.before or evaluate())
    for iteration in range(run.iteration + 1, num_iterations + 1):
        start = time.perf_counter()
        if args.anneal_lr:
            frac = 1.0 - (iteration - 1.0) / num_iterations
            for group, initial_lr in zip(groups, initial_lrs, strict=True):
                group["lr"] = frac * initial_lr

        # Rollout: read each context once, then write a token a step in all rows, with a KV cache
        drawn = rng.choice(len(samples), num_contexts * world, replace=len(samples) < num_contexts * world)
        drawn = drawn[rank::world]
        obs, _ = envs.reset(seed=args.seed, options={"sample_id": np.repeat(drawn, K)})
        first = int(obs["attention_mask"].any(0).argmax())  # columns that are padding in every row are cut
        prompts = obs["input_ids"][::K, first:P], obs["attention_mask"][::K, first:P]
        (weights := ExitStack()).enter_context(gathered(engines[0]))
        with autocast:
            outputs, cache = read_prompts(partial(next_token, agent), *prompts)
        cache.batch_repeat_interleave(K)
        logits, value = (output.repeat_interleave(K, dim=0) for output in outputs)
        logprobs, values = torch.zeros(2, args.num_envs, T, device=device)
        choices = torch.zeros(args.num_envs, T, dtype=torch.long, device=device)  # positions in allowed, or tokens
        allowed = torch.zeros(args.num_envs, T, args.top_k, dtype=torch.long, device=device)
        contexts = np.arange(args.num_envs) // K
        rows = np.arange(args.num_envs)  # those whose replies are still being written
        tokens, log_probs = np.zeros(args.num_envs, np.int64), np.zeros(args.num_envs)
        # Within another block, the next one finds the weights that this one has cast
        with torch.autocast(device.type, enabled=False):
            for t in range(T):
                logits = logits[:, :vocab_size].float()
                drawable = logits.topk(args.top_k).indices if args.top_k else None
                distribution = narrow(logits, drawable).log_softmax(-1)  # (rows, top_k or vocab_size)
                choice = torch.multinomial(distribution.exp(), 1)  # (rows, 1)
                choices[rows, t] = choice.squeeze(1)
                logprobs[rows, t] = distribution.gather(1, choice).squeeze(1)
                values[rows, t] = value.float()
                next_ids = choice
                if args.top_k:
                    allowed[rows, t], next_ids = drawable, drawable.gather(1, choice)
                # The divergence from the reference is one of whole distributions
                whole_logprob = logits.gather(1, next_ids).squeeze(1) - logits.logsumexp(1)
                numbers = torch.stack([next_ids[:, 0].double(), whole_logprob.double()])
                tokens[rows], log_probs[rows] = numbers.cpu().numpy()  # the one CPU-GPU sync of a token
                obs, episode_rewards, terminated, truncated, infos = envs.step({"token": tokens, "log_prob": log_probs})
                if (terminated | truncated).all():
                    break
                live = envs.unwrapped.mdp.live[rows]
                if live.mean() < 0.8:  # leaving the others out pays for the copy of the cache
                    rows, next_ids = rows[live], next_ids[live]
                    cache.batch_select_indices(torch.from_numpy(live.nonzero()[0]).to(device))
                with autocast:
                    logits, value = next_token(agent, next_ids, obs["attention_mask"][rows, first : P + t + 1], cache)
        weights.close()
        del cache  # the update needs the memory
        rollout_time = time.perf_counter() - start

        # The batch: whole replies, (num_envs, T)
        reply_mask = torch.from_numpy(obs["attention_mask"][:, P:]).to(device).float()
        rewards = torch.from_numpy(infos["token_rewards"]).float().to(device)
        # What a context's other replies earn from the same token on (leave-one-out, as RLOO does, arXiv:2402.14740)
        returns = rewards.flip(1).cumsum(1).flip(1).view(-1, K, T)
        others = (returns.sum(1, keepdim=True) - returns).view(-1, T) / max(K - 1, 1)
        baseline = others * args.group_baseline
        if not agent.shared:  # a shared critic's came with the tokens
            with torch.no_grad(), autocast:
                value = agent.critic(*pack(obs["input_ids"], obs["attention_mask"], P, contexts, device))
            values[reply_mask.bool()] = value.float()
        values = (values + baseline) * reply_mask

        # Generalised advantage estimation (arXiv:1506.02438); the reply's end is final, so nothing is bootstrapped
        advantages = torch.zeros_like(rewards)
        lastgaelam = torch.zeros(args.num_envs, device=device)
        for t in reversed(range(T)):
            nextnonterminal = reply_mask[:, t + 1] if t < T - 1 else torch.zeros_like(lastgaelam)
            nextvalues = values[:, t + 1] if t < T - 1 else torch.zeros_like(lastgaelam)
            delta = rewards[:, t] + args.gamma * nextvalues * nextnonterminal - values[:, t]
            lastgaelam = delta + args.gamma * args.gae_lambda * nextnonterminal * lastgaelam
            advantages[:, t] = lastgaelam * reply_mask[:, t]
        returns = advantages + values
        num_tokens = ranks.all_reduce_mean(reply_mask.sum())
        mean = ranks.all_reduce_mean(advantages.sum()) / num_tokens
        std = (ranks.all_reduce_mean(((advantages - mean) * reply_mask).pow(2).sum()) / num_tokens).sqrt()
        advantages = (advantages - mean) / (std + 1e-8) * reply_mask

        # Update on whole replies: one forward gives all log-probabilities and values of a context's K replies
        stats = []
        for _ in range(args.update_epochs):
            for mb_contexts in np.array_split(rng.permutation(num_contexts), args.num_minibatches):
                mb_inds = (mb_contexts[:, None] * K + np.arange(K)).ravel()  # rows
                packed = pack(obs["input_ids"][mb_inds], obs["attention_mask"][mb_inds], P, contexts[mb_inds], device)
                row, t = obs["attention_mask"][mb_inds, P:].nonzero()
                here = mb_inds[row], t  # the minibatch's tokens, (N,), as all below
                mb_tokens = ranks.all_reduce_mean(reply_mask[here].sum())

                with autocast:
                    newlogits, newvalue = agent(*packed) if agent.shared else (None, agent.critic(*packed))
                v_loss = 0.5 * (newvalue.float() + baseline[here] - returns[here]).pow(2).sum() / mb_tokens
                if not agent.shared:  # then nothing of this is in memory while the policy learns
                    step("the critic", args.vf_coef * v_loss, critic_params)
                    with autocast:
                        newlogits = agent(*packed)

                drawable = allowed[here] if args.top_k else None
                distribution = narrow(newlogits, drawable).float().log_softmax(-1)  # (N, top_k or vocab_size)
                newlogprob = distribution.gather(1, choices[here][:, None]).squeeze(1)
                with torch.set_grad_enabled(args.ent_coef != 0):
                    entropy_loss = torch.special.entr(distribution.exp()).sum() / mb_tokens
                logratio = newlogprob - logprobs[here]
                ratio = logratio.exp()
                pg_loss1 = -advantages[here] * ratio
                pg_loss2 = -advantages[here] * ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                pg_loss = torch.max(pg_loss1, pg_loss2).sum() / mb_tokens
                loss = pg_loss - args.ent_coef * entropy_loss
                if agent.shared:
                    step("the agent", loss + args.vf_coef * v_loss, policy_params, critic_params)
                else:
                    step("the policy", loss, policy_params)
                with torch.no_grad():
                    # k3 of http://joschu.net/blog/kl-approx.html
                    approx_kl = (ratio - 1 - logratio).sum() / mb_tokens
                    clipfrac = ((ratio - 1).abs() > args.clip_coef).sum() / mb_tokens
                stats.append(torch.stack([pg_loss, v_loss, entropy_loss, approx_kl, clipfrac]).detach())
                del newlogits, distribution  # the next minibatch needs the memory

        # Logs: what the wrappers put into the final info, as means over the batch, and the algorithm's own
        pg_loss, v_loss, entropy_loss, approx_kl, clipfrac = torch.stack(stats).nanmean(0).tolist()
        residual = ((returns - values) * reply_mask)[reply_mask.bool()].var()
        seconds = time.perf_counter() - start
        run.log(
            {
                "charts/episodic_return": episode_rewards.mean(),
                "charts/episodic_length": (num_tokens / args.num_envs).item(),
                "charts/FPS": world * num_tokens.item() / seconds,
                "charts/learning_rate": groups[0]["lr"],
                "time/rollout": rollout_time / seconds,
                **{key: infos[key].mean() for key in infos if key.startswith(("reward/", "metric/"))},
                "losses/policy_loss": pg_loss,
                "losses/value_loss": v_loss,
                "losses/entropy": entropy_loss,
                "losses/approx_kl": approx_kl,
                "losses/clipfrac": clipfrac,
                "losses/explained_variance": (1 - residual / returns[reply_mask.bool()].var()).item(),
            },
            episodes=iteration * whole.num_envs,
        )
        run.print_samples(iteration, infos["prompt"], infos["response"], episode_rewards)
        run.checkpoint(iteration)

    run.finish(evaluate())
    envs.close()
