"""Qwen2.5-7B-Instruct on GSM8K, on a TPU slice.

Run:      python -m grpo_jax.train --config configs/gsm8k_qwen2p5_7b_tpu.py
Offline:  --config.model.path=DIR --config.data.dataset=train.jsonl --config.evaluation.dataset=test.jsonl
Hardware: v5e:8x8 with --config.mesh.tensor=4, or v6e:4x4, or v5p:2x2x2; plan:
          python tools/plan.py --config configs/gsm8k_qwen2p5_7b_tpu.py --topology v5e:8x8 --config.mesh.tensor=4
Expect:   planned with the TPU's compiler and never run: see "Plans" in docs/benchmarks.md.
"""

from configs import gsm8k_qwen2p5_0p5b


def get_config():
    config = gsm8k_qwen2p5_0p5b.get_config()
    config.output_dir = "runs/gsm8k_qwen2p5_7b_tpu"
    config.model.path = "Qwen/Qwen2.5-7B-Instruct"
    config.model.remat = "full"
    config.mesh.preset = "zero3"
    config.rollout.num_prompts = 128
    config.rollout.max_completion_length = 1024
    config.grpo.beta = 0.0
    config.grpo.per_device_train_batch_size = 4
    return config
