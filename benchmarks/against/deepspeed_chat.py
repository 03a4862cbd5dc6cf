"""DeepSpeed-Chat's PPO (its step 3), one iteration a turn; runs in an environment of its own.

Its package `dschat` is taken from the environment, or from the folder of sources that the job
names. The engine and the trainer are its own; its script around them, which wants data sets with
names that it knows, is not used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.against.job import Job, read_prompts
from benchmarks.against.row_lengths import impose_lengths
from benchmarks.against.turns import Turns


def main(job: Job, turns: Turns) -> None:
    # What its launcher would say; read by DeepSpeed at import and later.
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions_folder())
    if job.peer_path:
        sys.path.insert(0, job.peer_path)
    import torch
    from dschat.rlhf.ppo_trainer import DeepSpeedPPOTrainer
    from dschat.rlhf.rlhf_engine import DeepSpeedRLHFEngine
    from dschat.utils.data.data_utils import MiniDataset
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{job.output}/rendezvous", rank=0, world_size=1
    )
    # Its class by name: the folder may name one of a later transformers.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(job.policy)
    scorer = Path(job.output) / "scorer"
    write_scorer(job, scorer, num_tokens=-(-len(tokenizer) // 8) * 8)
    options = settings(job, tokenizer)
    steps = job.iterations * job.epochs * (job.rollouts // job.minibatch_size)
    engine = DeepSpeedRLHFEngine(job.policy, str(scorer), tokenizer, options, steps)
    trainer = DeepSpeedPPOTrainer(engine, options)
    impose_lengths(
        engine.actor.module, job, turns, eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id
    )
    parts = MiniDataset(1, job.minibatch_size)
    for step, prompts in enumerate(prompt_batches(job, tokenizer)):
        turns.wait()
        experience = trainer.generate_experience(prompts, torch.ones_like(prompts), step)
        minibatches = parts.add(experience)
        for _ in range(job.epochs):
            for minibatch in minibatches:
                trainer.train_rlhf(minibatch)
        turns.done()


def extensions_folder() -> Path:
    """Where its optimizers are compiled, once for an environment."""
    folder = Path(sys.prefix) / "torch_extensions"
    for lock in folder.rglob("lock"):
        # Left by a process that was killed while it compiled; torch would wait for it for ever.
        lock.unlink()
    return folder


def prompt_batches(job: Job, tokenizer: Any) -> Iterator[Any]:
    """Token ids [rollouts, prompt_tokens], one batch per iteration."""
    import torch

    prompts = cycle(list(read_prompts(job)))
    for _ in range(job.iterations):
        texts = [
            tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False)
            for prompt in islice(prompts, job.rollouts)
        ]
        yield torch.tensor(tokenizer(texts, add_special_tokens=False)["input_ids"])


def write_scorer(job: Job, folder: Path, *, num_tokens: int) -> None:
    """The reward model under the names that its step 2 would have written.

    It enlarges the vocabulary to a multiple of 8 before it reads the weights.
    """
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(job.reward, num_labels=1)
    model.resize_token_embeddings(num_tokens)
    model.config.save_pretrained(folder)
    weights = {
        name.replace("model.", "rwtransformer.", 1).replace("score.", "v_head."): tensor
        for name, tensor in model.state_dict().items()
    }
    torch.save(weights, folder / "pytorch_model.bin")


def settings(job: Job, tokenizer: Any) -> SimpleNamespace:
    """What its script would read from the command line."""
    model = {
        f"{model}_{key}": value
        for model in ("actor", "critic")
        for key, value in {
            "zero_stage": 0,
            "dropout": None,
            "lora_dim": 0,
            "weight_decay": 0.0,
            "learning_rate": 1e-5,
            "lora_learning_rate": 1e-5,
            "gradient_checkpointing": False,
        }.items()
    }
    return SimpleNamespace(
        **model,
        dtype="bf16",
        max_prompt_seq_len=job.prompt_tokens,
        max_answer_seq_len=job.longest,
        per_device_training_batch_size=job.minibatch_size,
        gradient_accumulation_steps=1,
        gradient_accumulation_steps_actor=1,
        lr_scheduler_type="constant",
        num_warmup_steps=0,
        num_padding_at_beginning=0,
        end_of_conversation_token=tokenizer.eos_token,
        local_rank=0,
        # For CUDA alone.
        enable_hybrid_engine=False,
        inference_tp_size=1,
        tp_gather_partition_size=8,
        release_inference_cache=False,
        unpin_actor_parameters=False,
        enable_mixed_precision_lora=False,
        offload=False,
        offload_reference_model=False,
        offload_reward_model=False,
        compute_fp32_loss=False,
        align_overflow=False,
        enable_ema=False,
        enable_tensorboard=False,
        tensorboard_path="",
        print_answers=False,
    )


if __name__ == "__main__":
    main(Job.read(sys.argv[1]), Turns())
