#!/usr/bin/env bash
# The measurements of docs/speed.md on a processor that does nothing else, some hours; each writes a JSON file to
# docs/speed/, from which `speed_tables.py` writes the document's tables. TRL needs environments of its own.
#
#     TRL_PYTHON=trl_venv/bin/python TRL_NOW_PYTHON=trl_now_venv/bin/python benchmarks/speed.sh BASE_REVISION
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p docs/speed

# This revision against an older one, in turns, with the same weights: "builtin" was another model then
for model in dailydialog_gym/assets/policy gpt2-small; do
    python benchmarks/ppo_speed.py --models "$model" --contestants ours --critics shared --replies-per-prompt 8 \
        --precisions fp32 amp --num-envs 64 --num-minibatches 2 --epochs 1 --iterations 4 --rounds 3 \
        --revisions "$1" --out "docs/speed/revisions-$(basename "$model").json"
done

# Against TRL's trainers of today and against its PPO, with one epoch and with five
for epochs in 1 5; do
    python benchmarks/ppo_speed.py --models gpt2-small --dataset daily_dialog --critics shared \
        --contestants ours trl trl-grpo trl-rloo --replies-per-prompt 8 --precisions amp --num-envs 16 \
        --num-minibatches 2 --epochs "$epochs" --iterations 3 --rounds 2 --out "docs/speed/trl-$epochs.json" \
        --trl-python "${TRL_PYTHON:-python}" --trl-now-python "${TRL_NOW_PYTHON:-python}"
done

# The tutorial's setting, beside a per-token loop and TRL's PPO
python benchmarks/ppo_speed.py --dataset daily_dialog --models gpt2-small --num-envs 16 --num-minibatches 2 \
    --iterations 3 --trl-python "${TRL_PYTHON:-python}" --precisions fp32 amp --replies-per-prompt 1 8 --compiled \
    --out docs/speed/gpt2-small.json
python benchmarks/ppo_speed.py --dataset daily_dialog --num-envs 64 --num-minibatches 2 --iterations 4 \
    --trl-python "${TRL_PYTHON:-python}" --precisions fp32 amp --compiled --rollouts 8 16 32 64 \
    --out docs/speed/builtin.json

# As work grows; what was measured before stays
python benchmarks/scaling.py --sweeps replies prompts lengths --out docs/speed/scaling.json
python benchmarks/scaling.py --sweeps models --out docs/speed/scaling-models.json

# DeepSpeed with a model so large that the stages save memory
python benchmarks/deepspeed_speed.py --model gpt2-medium --num-envs 16 --out docs/speed/deepspeed.json \
    --variants plain "stage 0 (data parallel)" "stage 1" "stage 2" "stage 3"
python benchmarks/reward_speed.py
python benchmarks/speed_tables.py docs/speed.md docs/deepspeed.md
