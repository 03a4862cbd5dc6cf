"""The inputs of the benchmarks are those of the built-in world, and the same every time."""

from pathlib import Path

import pytest

from benchmarks.limits import shape_of
from benchmarks.workloads import ModelFolders, make_prompts, make_rollouts, write_models
from equilibrate.types import Category


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelFolders:
    return write_models(tmp_path_factory.mktemp("models"))


def test_shape_is_that_of_the_folder(models: ModelFolders) -> None:
    shape = shape_of(models.policy)
    # 4 heads of 32 on 4 layers: 2 x 4 x 128 x 4 bytes of keys and values per token.
    assert shape.kv_bytes_per_token == 4096
    # The file holds each shared parameter once; its header is small.
    file = Path(models.policy) / "model.safetensors"
    assert 0 < file.stat().st_size - shape.num_bytes < 20_000


def test_prompts_cover_the_classes_in_turn(models: ModelFolders) -> None:
    prompts = make_prompts(models.policy, 7)
    assert [p.category for p in prompts] == [*Category, *list(Category)[:2]]
    assert len({p.token_ids for p in prompts}) == 7


def test_responses_have_lengths_within_bounds_and_repeat(models: ModelFolders) -> None:
    prompts = make_prompts(models.policy, 50)
    sizes = {"vocabulary": 30, "min_tokens": 2, "max_tokens": 4}
    rollouts = make_rollouts(prompts, **sizes)
    assert {int(r.response_mask.sum()) for r in rollouts} == {2, 3, 4}
    again = make_rollouts(prompts, **sizes)
    assert all((a.token_ids == b.token_ids).all() for a, b in zip(rollouts, again, strict=True))
