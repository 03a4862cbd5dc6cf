"""Log-probs and gradients straight from hidden states against the logits of all tokens.

Ours is `chunked_log_probs`, which skips tokens outside the mask and also gives entropies; the
reference multiplies every hidden state by the head and hands the logits to `token_log_probs`. Both
go forward and backward, to the hidden states and to the head, in float32 on CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from benchmarks.harness import (
    Quartiles,
    Result,
    RoofWatch,
    make_parser,
    measure_pairs,
    publish,
    settings_of,
)

if TYPE_CHECKING:
    from torch import Tensor

SAME_RESULT = 1e-5
"""Largest difference relative to the largest number."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=2048, help="of one micro-batch")
    parser.add_argument("--hidden", type=int, default=256, help="width of the hidden states")
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--kept-share", type=float, default=0.5, help="tokens inside the mask")
    parser.add_argument("--chunk-tokens", type=int, help="default that of the function")
    arguments = parser.parse_args(argv)
    publish(measure(arguments), arguments.json)


def measure(arguments: argparse.Namespace) -> Result:
    import torch

    from equilibrate.models.chunked import CHUNK_TOKENS
    from equilibrate.planner.peak import peak_bytes

    torch.set_num_threads(arguments.threads)
    chunk_tokens = arguments.chunk_tokens or CHUNK_TOKENS
    width, vocabulary = arguments.hidden, arguments.vocabulary
    ours, reference, num_kept = make_sides(
        arguments.tokens, width, vocabulary, arguments.kept_share, chunk_tokens
    )
    difference = largest_difference(ours(), reference())
    if not difference <= SAME_RESULT:
        raise RuntimeError(f"results differ by {difference:.1e} of the largest: other maths")
    peaks = peak_bytes(ours), peak_bytes(reference)
    watch = RoofWatch(
        [
            (chunk_tokens, width, vocabulary),
            (chunk_tokens, vocabulary, width),
            (vocabulary, chunk_tokens, width),
        ]
    )
    pairs = measure_pairs(
        lambda _: ours(),
        lambda _: reference(),
        repeats=arguments.repeats,
        warmups=arguments.warmups,
    )
    roof, about_roof = watch.finish()
    # One product forward and two backward; the second forward of ours is its own affair.
    flops = 6 * num_kept * width * vocabulary
    limit, seconds = flops / roof.flops_per_second, Quartiles.of(pairs.ours)
    return Result(
        name="log_probs",
        ratio=Quartiles.of(pairs.ratios),
        reference="the logits of all tokens",
        limit_fraction=limit / seconds.median,
        config=settings_of(arguments) | {"chunk_tokens": chunk_tokens},
        details={
            "seconds": seconds.median,
            "naive_seconds": Quartiles.of(pairs.reference).median,
            "limit_seconds": limit,
            "num_kept": num_kept,
            "peak_mib": peaks[0] / 2**20,
            "naive_peak_mib": peaks[1] / 2**20,
            "difference": difference,
            "roof": about_roof,
        },
    )


Side = Callable[[], "list[Tensor]"]


def make_sides(
    tokens: int, width: int, vocabulary: int, kept_share: float, chunk_tokens: int
) -> tuple[Side, Side, int]:
    """Ours and the reference, on the same numbers, and how many tokens they are asked for.

    Each returns log-probs [1, T] and the gradients of hidden states and head.
    """
    import torch
    from torch.nn.functional import linear

    from equilibrate.models.chunked import chunked_log_probs
    from equilibrate.models.log_probs import token_log_probs

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, tokens, width, generator=generator, requires_grad=True)
    # Logits of about unit variance, as of a fresh model.
    weight = torch.randn(vocabulary, width, generator=generator).div_(width**0.5).requires_grad_()
    token_ids = torch.randint(vocabulary, (1, tokens), generator=generator)
    mask = torch.rand(1, tokens, generator=generator) < kept_share
    mask[:, 0] = False
    slopes = torch.randn(1, tokens, generator=generator)

    def results(log_probs: Tensor) -> list[Tensor]:
        loss = torch.where(mask, log_probs * slopes, 0.0).sum()
        gradients = torch.autograd.grad(loss, (hidden, weight))
        return [torch.where(mask, log_probs.detach(), 0.0), *gradients]

    def ours() -> list[Tensor]:
        log_probs, _ = chunked_log_probs(hidden, weight, token_ids, mask, chunk_tokens=chunk_tokens)
        return results(log_probs)

    def reference() -> list[Tensor]:
        return results(token_log_probs(linear(hidden, weight), token_ids))

    return ours, reference, int(mask.sum())


def largest_difference(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Over all tensors, each relative to its largest number in the reference."""
    return max(
        float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, reference, strict=True)
    )


if __name__ == "__main__":
    main()
