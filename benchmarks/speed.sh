#!/usr/bin/env bash
# The measurements of docs/speed.md on a processor that does nothing else, some hours; each writes a JSON file to
# docs/speed/, from which `speed_tables.py` writes the document's tables. TRL needs environments of its own.
#
#     TRL_PYTHON=trl_venv/bin/python TRL_NOW_PYTHON=trl_now_venv/bin/python benchmarks/speed.sh BASE_REVISION
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p docs/speed

# This revision against an older one, in turns
for model in builtin gpt2-small; do
    python benchmarks/ppo_speed.py --models "$model" --contestants ours --critics shared --replies-per-prompt 8 \
        --precisions fp32 amp --num-envs 64 --num-minibatches 2 --epochs 1 --iterations 4 --rounds 3 \
        --revisions "$1" --out "docs/speed/revisions-$model.json"
done

# Against TRL's trainers of today and against its PPO, with one epoch and with five
for epochs in 1 5; do
    python benchmarks/ppo_speed.py --models gpt2-small --dataset daily_dialog --critics shared \
        --contestants ours trl trl-grpo trl-rloo --replies-per-prompt 8 --precisions amp --num-envs 16 \
        --num-minibatches 2 --epochs "$epochs" --iterations 3 --rounds 2 --out "docs/speed/trl-$epochs.json" \
        --trl-python "${TRL_PYTHON:-python}" --trl-now-python "${TRL_NOW_PYTHON:-python}"
done

# As the batch grows
for replies in 16 64 256 1024; do
    python benchmarks/ppo_speed.py --models builtin --contestants ours --critics shared --replies-per-prompt 8 \
        --precisions amp --num-envs "$replies" --num-minibatches 2 --epochs 1 --iterations 4 \
        --out "docs/speed/replies-$replies.json"
done
python benchmarks/reward_speed.py
python benchmarks/speed_tables.py docs/speed.md
