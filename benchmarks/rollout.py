"""RolloutWorker.generate against bare vllm.LLM.generate.

Both calls use the one engine of the worker: two engines in a process would share its threads and
caches and disturb each other. So the ratio is what the worker adds around vLLM: the check of
prompts and version, building sampling parameters, and turning outputs into rollouts. The bare call
gets prompts and parameters ready-made, and its outputs are left as they are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness import (
    Quartiles,
    Result,
    RoofWatch,
    make_parser,
    measure_pairs,
    publish,
    settings_of,
)
from benchmarks.limits import rollout_seconds, shape_of

VERSION = 0


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="", help="model folder; default untrained built-in")
    parser.add_argument("--batch", type=int, default=64, help="prompts of one call")
    parser.add_argument("--response-tokens", type=int, default=32, help="length limit")
    arguments = parser.parse_args(argv)
    publish(measure(arguments), arguments.json)


def measure(arguments: argparse.Namespace) -> Result:
    from actors.rollout import engine_environment

    # vLLM reads it at import.
    os.environ.update(engine_environment(device="cpu", threads=arguments.threads))
    import torch

    from benchmarks.workloads import make_prompts, write_models

    torch.set_num_threads(arguments.threads)
    with TemporaryDirectory() as folder:
        model = arguments.model or write_models(Path(folder)).policy
        prompts = make_prompts(model, arguments.batch)
        worker = _start_worker(model, max(len(p.token_ids) for p in prompts), arguments)
        shape = shape_of(model)
    num_rounds = arguments.warmups + arguments.repeats
    requests = [_requests(prompts, number) for number in range(num_rounds)]
    bare = [_bare_inputs(worker, each) for each in requests]
    kept: dict[str, Any] = {}

    def ours(number: int) -> None:
        kept["ours"] = worker.generate(requests[number], VERSION)

    def reference(number: int) -> None:
        kept["bare"] = worker._llm.generate(*bare[number], use_tqdm=False)

    watch = RoofWatch(shape.gemm_shapes(arguments.batch))
    pairs = measure_pairs(ours, reference, repeats=arguments.repeats, warmups=arguments.warmups)
    roof, about_roof = watch.finish()
    responses = [rollout.token_ids[rollout.response_mask].tolist() for rollout in kept["ours"]]
    if responses != [list(output.outputs[0].token_ids) for output in kept["bare"]]:
        raise RuntimeError("the two calls sampled different tokens: they did different work")
    lengths = [len(response) for response in responses]
    limit = rollout_seconds(shape, roof, [len(p.token_ids) for p in prompts], lengths)
    seconds = Quartiles.of(pairs.ours)
    return Result(
        name="rollout",
        ratio=Quartiles.of(pairs.ratios),
        reference="bare vllm.LLM.generate on the same engine",
        limit_fraction=limit / seconds.median,
        config=settings_of(arguments) | {"num_parameters": shape.num_parameters},
        details={
            "seconds": seconds.median,
            "bare_seconds": Quartiles.of(pairs.reference).median,
            "limit_seconds": limit,
            "tokens_per_second": sum(lengths) / seconds.median,
            "mean_response": sum(lengths) / len(lengths),
            "roof": about_roof,
        },
    )


def _start_worker(model: str, longest_prompt: int, arguments: argparse.Namespace) -> Any:
    from actors.rollout import RolloutWorker
    from actors.weights import pack_model
    from equilibrate.models.device import Accelerator
    from equilibrate.models.loading import load_policy

    worker = RolloutWorker(
        model_folder=model,
        dtype="float32",
        temperature=1.0,
        max_new_tokens=arguments.response_tokens,
        max_model_len=longest_prompt + arguments.response_tokens,
        kv_cache_gib=0.25,
        enforce_eager=True,
    )
    policy = load_policy(model, Accelerator("cpu", "float32")).model
    worker.update_weights(pack_model(policy), VERSION)
    return worker


def _requests(prompts: Sequence[Any], iteration: int) -> list[Any]:
    from equilibrate.seeds import request_seed
    from equilibrate.types import RolloutRequest

    return [
        RolloutRequest(
            prompt_id=prompt.prompt_id,
            copy=0,
            category=prompt.category,
            token_ids=prompt.token_ids,
            seed=request_seed(0, iteration, prompt.prompt_id, 0),
        )
        for prompt in prompts
    ]


def _bare_inputs(worker: Any, requests: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """The same seeds and settings, and the cheapest form of output that vLLM has."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    parameters = [
        SamplingParams(
            seed=request.seed,
            logprobs=0,
            detokenize=False,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,
            **worker._sampling,
        )
        for request in requests
    ]
    return [{"prompt_token_ids": list(request.token_ids)} for request in requests], parameters


if __name__ == "__main__":
    main()
