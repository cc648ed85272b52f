"""ppo_dialog.py against a slow, obviously right implementation: a token at a time, unpadded rows, float64."""

import runpy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from shapes import SHAPES
from transformers import AutoModelForCausalLM, AutoTokenizer

from dailydialog_gym.models.packing import share_out
from ppo_dialog import Agent, Args, Critic, pack

SCRIPT = ROOT / "ppo_dialog.py"
P, T, VOCAB = 9, 5, 50


# Packed rows


def ragged_rows(contexts, K, seed=0):
    """Left-padded prompts, K replies of 1 to T tokens to each, and each row again as an unpadded list."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, VOCAB, (contexts * K, P + T))
    ids[:, P - 1 : P + 1] = 0  # in places that are no padding, what stands in the padding
    ids[:, :P] = ids[::K, :P].repeat(K, axis=0)
    prompt_lengths = rng.integers(1, P - 1, contexts).repeat(K)
    reply_lengths = rng.integers(1, T, contexts * K)
    columns = np.arange(P + T)
    mask = (columns >= P - prompt_lengths[:, None]) & (columns < P + reply_lengths[:, None])
    rows = [row[there] for row, there in zip(ids, mask, strict=True)]
    return ids * mask, mask.astype(np.int64), rows, prompt_lengths


def make_agent(kind, critic):
    config, sizes = SHAPES[kind]
    torch.manual_seed(0)
    folder_free = AutoModelForCausalLM.from_config(config(vocab_size=VOCAB, **sizes)).eval()
    for parameter in folder_free.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    agent = Agent.__new__(Agent)
    torch.nn.Module.__init__(agent)
    agent.policy, agent.vocab_size = folder_free, VOCAB
    agent.shared = not critic
    agent.critic = Critic(
        AutoModelForCausalLM.from_config(folder_free.config).eval().base_model if critic else None, 16
    )
    agent.critic.value_head = torch.nn.Linear(16, 1)
    return agent.double()


def slow_outputs(agent, row, prompt_length, allowed=None):
    """Log-probabilities of the reply's tokens among those allowed, and values before them, by prefix after prefix.
    Without a critic the values are 0."""
    log_probs, values = [], []
    for t in range(prompt_length, len(row)):
        prefix = torch.from_numpy(row[None, :t])
        out = agent.policy(prefix, output_hidden_states=True)
        logits = out.logits[0, -1, : agent.vocab_size]
        if allowed is not None:
            others = torch.ones(agent.vocab_size, dtype=bool)
            others[allowed[t - prompt_length]] = False
            logits = logits.masked_fill(others, -torch.inf)
        log_probs.append(logits.log_softmax(-1)[row[t]])
        if agent.critic is None:
            values.append(torch.zeros((), dtype=torch.double))
        else:
            hidden = out.hidden_states[-1] if agent.shared else agent.critic.body(prefix)[0]
            values.append(agent.critic.value_head(hidden[0, -1])[0])
    return torch.stack(log_probs), torch.stack(values)


@pytest.mark.parametrize("critic", [True, False], ids=["separate", "shared"])
@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("kind", list(SHAPES))
def test_packed_rows_equal_rows_alone(kind, K, critic):
    """Log-probabilities, values and gradients, to 1e-5: Llama's norms and rotations are float32 in every model."""
    agent = make_agent(kind, critic)
    ids, mask, rows, prompt_lengths = ragged_rows(7, K)
    packed = pack(ids, mask, P, np.arange(len(ids)) // K, "cpu")
    logits, values = agent(packed)
    log_probs = logits.log_softmax(-1)
    assert 1 < len(packed.input_ids) < 7  # rows, some with several contexts
    loss = slow_loss = first = 0
    for i, (row, prompt_length) in enumerate(zip(rows, prompt_lengths, strict=True)):
        reply = torch.from_numpy(row[prompt_length:])
        own = slice(first, first + len(reply))
        first = own.stop
        ours = log_probs[own].gather(1, reply[:, None])[:, 0]
        expected, expected_values = slow_outputs(agent, row, prompt_length)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(values[own], expected_values, rtol=0, atol=1e-5)
        weights = torch.sin(torch.arange(len(reply)) + i)
        loss += (weights * (ours + values[own])).sum()
        slow_loss += (weights * (expected + expected_values)).sum()
    assert first == len(log_probs) == mask[:, P:].sum()
    parameters = [parameter for parameter in agent.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    slow_gradients = torch.autograd.grad(slow_loss, parameters, allow_unused=True)
    used = 0
    for gradient, expected in zip(gradients, slow_gradients, strict=True):
        if expected is not None:
            used += 1
            torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5)
    assert used > 20


@given(st.lists(st.integers(1, 148), min_size=1, max_size=40))
def test_rows_hold_every_context_once_and_cost_no_more_than_rows_of_their_own(sizes):
    sizes = np.array(sizes)
    rows = share_out(sizes)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    width = max(sizes[row].sum() for row in rows)
    assert width <= 3 * sizes.max()
    assert len(rows) * width * (width + 1024) <= len(sizes) * sizes.max() * (sizes.max() + 1024)


def test_packed_rows_are_almost_without_padding():
    ids, mask, *_ = ragged_rows(32, 2)
    packed = pack(ids, mask, P, np.arange(64) // 2, "cpu")
    used = mask[::2, :P].sum() + mask[:, P:].sum()
    assert used <= packed.input_ids.numel() < 1.15 * used


# A whole iteration


def waves(episodes):
    """A reward for every token, so that every advantage differs."""
    return np.sin(episodes.reply_ids)


FLAGS = {
    "total_episodes": 12,
    "num_envs": 12,
    "replies_per_prompt": 1,
    "num_minibatches": 1,
    "update_epochs": 3,
    "max_prompt_length": 24,
    "max_new_tokens": 10,
    "eval_samples": 2,
    "learning_rate": 3e-4,
    "critic_learning_rate": 3e-3,
    "ent_coef": 0.01,
    "gamma": 0.98,
    "gae_lambda": 0.9,
    "clip_coef": 0.02,
    "reward": "test_ppo_equivalence:waves=0.5",
}


@pytest.fixture(scope="module")
def lively_model(tiny_model, tmp_path_factory):
    """A random model that has opinions, and that ends replies early, and late."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    torch.manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    model.get_input_embeddings().weight.data[model.config.eos_token_id] *= 4
    folder = tmp_path_factory.mktemp("lively")
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run_script(tiny_intent_model, tmp_path, monkeypatch, no_curves):
    """Runs the script with some flags; returns its global variables at its end."""
    monkeypatch.chdir(tmp_path)

    def run_script(**flags):
        flags = {key.replace("_", "-"): value for key, value in (FLAGS | flags).items()}
        switches = {True: "--{}", False: "--no-{}"}
        arguments = [switches[v].format(k) if isinstance(v, bool) else f"--{k}={v}" for k, v in flags.items()]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--intent-model", tiny_intent_model, *arguments])
        return runpy.run_path(str(SCRIPT), run_name="__main__")

    return run_script


def slow_update(run, critic, flags):
    """What one iteration does to an agent, by the formulas of the papers."""
    agent = Agent(Args(model=flags["model"], critic=critic), run["agent"].vocab_size).double()
    batch, width = run["batch"], flags["max_prompt_length"]
    rows = [ids[mask == 1] for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    prompt_lengths = batch.attention_mask[:, :width].sum(1)
    rewards = batch.infos["token_rewards"]
    gamma, lam, clip = flags["gamma"], flags["gae_lambda"], flags["clip_coef"]

    top_k = flags["top_k"]
    allowed = batch.candidates if top_k else [None] * len(rows)
    old, advantages, returns, baselines = [], [], [], []
    for i, (row, start, reward, some) in enumerate(zip(rows, prompt_lengths, rewards, allowed, strict=True)):
        with torch.no_grad():
            log_probs, values = slow_outputs(agent, row, start, some)
            logits = agent.policy(torch.from_numpy(row[None])).logits[0, start - 1 : -1, : agent.vocab_size]
        if top_k:
            assert (logits.topk(top_k).indices.sort().values == some[: len(logits)].sort().values).all()
        n, K = len(log_probs), flags["replies_per_prompt"]
        group = [rewards[j] for j in range(i - i % K, i - i % K + K) if j != i and flags["group_baseline"]]
        baseline = [float(np.mean([other[t:].sum() for other in group])) if group else 0.0 for t in range(n)]
        values = [*(value + known for value, known in zip(values.tolist(), baseline, strict=True)), 0.0]
        deltas = [reward[t] + gamma * values[t + 1] - values[t] for t in range(n)]
        advantage = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, n)) for t in range(n)]
        if critic == "none":  # the reply is one action, as in RLOO and GRPO
            mean = float(np.mean([other.sum() for other in group])) if group else 0.0
            baseline, advantage = [mean] * n, [reward.sum() - mean] * n
            values = [*baseline, 0.0]
        old.append(log_probs)
        advantages += advantage
        baselines += baseline
        returns += [a + v for a, v in zip(advantage, values, strict=False)]
    advantages, returns = torch.tensor(advantages, dtype=torch.double), torch.tensor(returns, dtype=torch.double)
    baselines = torch.tensor(baselines, dtype=torch.double)
    if flags.get("normalize_groups"):
        K, counts = flags["replies_per_prompt"], [len(log_probs) for log_probs in old]
        groups = [slice(i - i % K, i - i % K + K) for i in range(len(rows))]
        spreads = np.repeat([rewards[group].sum(1).std(ddof=1) for group in groups], counts)
        whitened = advantages / (torch.from_numpy(spreads) + 1e-4)
    else:
        whitened = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    old = torch.cat(old)

    policy, other = list(agent.policy.parameters()), list(agent.critic.parameters()) if agent.critic else []
    groups = [{"params": policy, "lr": flags["learning_rate"]}, {"params": other, "lr": flags["critic_learning_rate"]}]
    optimizer = torch.optim.AdamW(groups if other else groups[:1], eps=1e-5, weight_decay=0.0)
    losses, ratios = [], []
    for _ in range(flags["update_epochs"]):
        new, values, entropies = [], [], []
        for row, start, some in zip(rows, prompt_lengths, allowed, strict=True):
            log_probs, value = slow_outputs(agent, row, start, some)
            new.append(log_probs)
            values.append(value)
            logits = agent.policy(torch.from_numpy(row[None])).logits[0, start - 1 : -1, : agent.vocab_size]
            probabilities = (logits.gather(1, some[: len(logits)]) if top_k else logits).softmax(-1)
            entropies.append(-(probabilities * probabilities.log()).sum(-1))
        ratio = (torch.cat(new) - old).exp()
        surrogate = torch.min(ratio * whitened, ratio.clamp(1 - clip, 1 + clip) * whitened)
        value_loss = 0.5 * (torch.cat(values) + baselines - returns).pow(2).mean()
        loss = -surrogate.mean() + 0.5 * value_loss - flags["ent_coef"] * torch.cat(entropies).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy, 1.0)
        torch.nn.utils.clip_grad_norm_(other, 1.0)
        optimizer.step()
        losses.append((-surrogate.mean().item(), value_loss.item()))
        ratios.append(ratio.detach())
    return agent, old, advantages, whitened, returns, losses, ratios


@pytest.mark.parametrize(
    ("critic", "K", "top_k", "group_baseline", "parts", "seed"),  # seeds with which lengths differ
    [
        ("separate", 1, 5, True, 1, 1),
        ("separate", 3, 0, True, 1, 6),
        ("shared", 2, 5, True, 4, 1),
        ("shared", 2, 0, False, 1, 1),
        ("none", 3, 5, True, 1, 4),
        ("none", 2, 0, "normalized", 1, 1),
    ],
)
def test_an_iteration_equals_the_slow_reference(
    critic, K, top_k, group_baseline, parts, seed, lively_model, run_script
):
    flags = FLAGS | {"model": lively_model, "critic": critic, "replies_per_prompt": K, "top_k": top_k}
    flags |= {"seed": seed, "gradient_accumulation_steps": parts}
    flags |= {"group_baseline": bool(group_baseline), "normalize_groups": group_baseline == "normalized"}
    run = run_script(**flags)
    batch = run["batch"]
    there = batch.reply_mask.bool()
    assert len(set(there.sum(1).tolist())) > 1  # replies of several lengths
    if K > 1:
        prompts = batch.infos["prompt"]
        assert len(set(prompts)) == 12 / K and (prompts[::K] == prompts[1::K]).all()
    agent, old, advantages, whitened, returns, losses, ratios = slow_update(run, critic, flags)

    # Before any update the ratio is 1: what the KV cache drew is what whole replies give.
    torch.testing.assert_close(batch.logprobs[there].double(), old, rtol=0, atol=1e-5)
    torch.testing.assert_close(batch.advantages[there].double(), whitened, rtol=0, atol=1e-4)
    torch.testing.assert_close(batch.returns[there].double(), returns, rtol=0, atol=1e-4)
    assert advantages.std() > 0.03
    assert len(run["logged"]) == parts * flags["update_epochs"]
    for i, name in enumerate(("policy_loss", "value_loss") if parts == 1 else ()):  # a part logs its own mean
        np.testing.assert_allclose([float(row[name]) for row in run["logged"]], [row[i] for row in losses], atol=1e-4)
    assert ((ratios[-1] - 1).abs() > flags["clip_coef"]).any()  # the clip was at work
    moved = 0.0
    before = Agent(Args(model=lively_model, critic=critic), run["agent"].vocab_size)
    for name, expected in agent.named_parameters():
        ours = run["agent"].get_parameter(name).double()
        rate = flags["learning_rate"] if name.startswith("policy") else flags["critic_learning_rate"]
        # Adam divides by the gradient's size, so where that is rounding error, so is the step.
        assert (ours - expected).abs().max() < 0.1 * rate, name
        moved = max(moved, (expected - before.get_parameter(name)).abs().max() / rate)
    assert moved > 1.5


@pytest.mark.parametrize("copies", [1, 3])
def test_in_amp_rollout_and_update_are_near_the_slow_reference(copies, lively_model, run_script):
    still = {"learning_rate": 0, "critic_learning_rate": 0, "replies_per_prompt": copies, "top_k": 0}
    run = run_script(model=lively_model, use_amp=True, **still)
    batch, metrics = run["batch"], run["run"].history[-1]
    there = batch.reply_mask.bool()
    agent = Agent(Args(model=lively_model, critic="separate"), run["agent"].vocab_size).double()
    with torch.no_grad():
        exact = torch.cat(
            [
                slow_outputs(agent, ids[mask == 1], mask[: FLAGS["max_prompt_length"]].sum())[0]
                for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True)
            ]
        )
    error = (batch.logprobs[there] - exact).square().mean().sqrt()
    assert 1e-4 < error < 0.02  # bfloat16's
    assert abs(metrics["losses/approx_kl"]) < 1e-4 and metrics["losses/clipfrac"] == 0
    assert abs(batch.infos["reward/kl"]).max() < 0.05


def test_every_reward_of_the_stack_is_in_the_token_rewards(run_script):
    infos = run_script()["batch"].infos
    total = 0.5 * infos["reward/meteor"] + 0.3 * infos["reward/intent"] + 0.5 * infos["reward/waves"]
    total -= 0.02 * infos["reward/kl"]
    np.testing.assert_allclose(infos["token_rewards"].sum(1), total, atol=1e-6)
    assert infos["reward/kl"] == pytest.approx(0, abs=1e-4)  # at first the policy is the reference
