"""TRL's GRPO and RLOO trainers, one iteration a turn; runs in TRL's environment."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.against.job import GROUP, Job, read_prompts
from benchmarks.against.row_lengths import impose_lengths
from benchmarks.against.turns import Turns


def main(job: Job, turns: Turns) -> None:
    import torch
    import trl
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )

    torch.set_num_threads(job.threads)
    tokenizer = AutoTokenizer.from_pretrained(job.policy)
    policy = AutoModelForCausalLM.from_pretrained(job.policy)
    reward = AutoModelForSequenceClassification.from_pretrained(job.reward, num_labels=1)
    impose_lengths(policy, job, turns, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id)
    steps = job.rollouts // job.minibatch_size * job.epochs

    class Gate(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            turns.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % steps == 0:
                turns.done()
                turns.wait()

    trainer, config = {
        "grpo": (trl.GRPOTrainer, trl.GRPOConfig),
        "rloo": (trl.RLOOTrainer, trl.RLOOConfig),
    }[job.algorithm]
    texts = [
        tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
        for prompt in read_prompts(job)
    ]
    trainer(
        model=policy,
        reward_funcs=reward,
        args=config(**settings(job), max_steps=steps * job.iterations),
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        reward_processing_classes=tokenizer,
        callbacks=[Gate()],
    ).train()


def settings(job: Job) -> dict[str, Any]:
    return {
        "output_dir": job.output,
        "seed": job.seed,
        "per_device_train_batch_size": job.minibatch_size,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": job.rollouts // job.minibatch_size,
        "num_generations": GROUP,
        "num_iterations": job.epochs,
        "max_completion_length": job.longest,
        "temperature": 1.0,
        # A reference pass, as ours has.
        "beta": 0.02,
        "learning_rate": 1e-5,
        # Its default recomputes every layer: slower, and not needed at this size.
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


if __name__ == "__main__":
    main(Job.read(sys.argv[1]), Turns())
