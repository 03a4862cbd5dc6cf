"""TRL's PPO trainer (`trl.experimental.ppo`), one iteration a turn; runs in TRL's environment."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any

from benchmarks.against.job import Job, read_prompts
from benchmarks.against.row_lengths import impose_lengths
from benchmarks.against.turns import Turns


def main(job: Job, turns: Turns) -> None:
    import torch
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl.experimental.ppo import PPOTrainer

    torch.set_num_threads(job.threads)
    tokenizer = AutoTokenizer.from_pretrained(job.policy)
    policy, reference = (AutoModelForCausalLM.from_pretrained(job.policy) for _ in range(2))
    reward, critic = (
        AutoModelForSequenceClassification.from_pretrained(job.reward, num_labels=1)
        for _ in range(2)
    )
    impose_lengths(policy, job, turns, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id)

    class Gate(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.done()
            turns.wait()

    prompts = islice(read_prompts(job), job.rollouts * job.iterations)
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
        for prompt in prompts
    ]
    PPOTrainer(
        args=settings(job),
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=critic,
        train_dataset=Dataset.from_dict({"input_ids": [tokenizer.encode(t) for t in texts]}),
        callbacks=[Gate()],
    ).train()


def settings(job: Job) -> Any:
    from trl.experimental.ppo import PPOConfig

    is_ragged = any(length < job.longest for row in job.lengths for length in row)
    return PPOConfig(
        output_dir=job.output,
        seed=job.seed,
        total_episodes=job.rollouts * job.iterations,
        # One gradient step per minibatch: with accumulation TRL would step once per batch.
        per_device_train_batch_size=job.rollouts,
        gradient_accumulation_steps=1,
        num_mini_batches=job.rollouts // job.minibatch_size,
        num_ppo_epochs=job.epochs,
        response_length=job.longest,
        stop_token="eos" if is_ragged else None,
        temperature=1.0,
        kl_coef=0.02,
        learning_rate=1e-5,
        # Its default recomputes every layer: slower, and not needed at this size.
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        num_sample_generations=0,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


if __name__ == "__main__":
    main(Job.read(sys.argv[1]), Turns())
