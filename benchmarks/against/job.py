"""What one system is asked to do; written by the parent, read in the environment of the system."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

GROUP = 4
"""Responses per prompt where their mean is the baseline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    algorithm: str
    """`ppo`, `lagrangian` or `grpo` of ours; `ppo`, `grpo` or `rloo` of a peer."""
    policy: str
    """Model folder with its tokenizer; frozen copies of it are the reference."""
    reward: str
    """Folder of a sequence classifier with one label; critics start from it."""
    cost: str
    prompts: str
    """JSON lines with `prompt` and `category`; all prompts have `prompt_tokens` tokens."""
    prompt_tokens: int
    lengths: list[list[int]]
    """Tokens of each response, by iteration and row."""
    longest: int
    """Upper end of the lengths; a response of this length ends without an end token."""
    minibatch_size: int
    epochs: int
    dtype: str
    threads: int
    seed: int
    output: str
    peer_path: str = ""
    """Source folder of a peer that is no package."""

    @property
    def rollouts(self) -> int:
        return len(self.lengths[0])

    @property
    def iterations(self) -> int:
        return len(self.lengths)

    def write(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: str | Path) -> Job:
        return cls(**json.loads(Path(file).read_text()))


def read_prompts(job: Job) -> Iterator[str]:
    """Texts of the prompts, without the template of the conversation."""
    for line in Path(job.prompts).read_text().splitlines():
        yield json.loads(line)["prompt"]
