#!/usr/bin/env bash
# Everything that ppo_dialog.py does on one GPU, once, in about fifteen minutes, with Markdown tables for docs/speed.md:
# float32, AMP with bfloat16 and with float16, each with --compile and with --cuda-graphs, too; a run that is stopped and
# resumed; DeepSpeed.
# "of a matmul's" is the MFU relative to a plain matrix product on the same device.
#
#     benchmarks/gpu.sh
#     MODEL=builtin REPLIES=16 DEEPSPEED_MODEL=27M GRAPHS= benchmarks/gpu.sh      # the same, smaller, without a GPU
set -euo pipefail
cd "$(dirname "$0")/.."
echo "revision $(git describe --always --dirty)"

for replies in ${REPLIES:-64 256 1024}; do
    python benchmarks/ppo_speed.py --models "${MODEL:-gpt2-small}" --contestants ours --critics shared \
        --replies-per-prompt 8 --num-envs "$replies" --num-minibatches 2 --epochs 1 --iterations 4 \
        --precisions fp32 amp fp16 --compiled ${GRAPHS---cuda-graphs}
done

# SIGTERM ends the run after an iteration, with a checkpoint
run=gpu-$$
python ppo_dialog.py --use-amp --checkpoint-every 1 --run-name "$run" ${GRAPHS---cuda-graphs} &
until compgen -G "runs/$run/checkpoints/*/state.pt" > /dev/null || ! kill -0 $! 2> /dev/null; do sleep 0.1; done
kill -TERM $!
wait $! || true
python ppo_dialog.py --resume "runs/$run"

python benchmarks/deepspeed_speed.py --devices 1 --model "${DEEPSPEED_MODEL:-gpt2-small}" --num-envs 64 \
    --flags=--use-amp --variants plain "stage 0 (data parallel)" "stage 2" "stage 2, moments on the processor" \
    "stage 3" "stage 3, all on the processor"
