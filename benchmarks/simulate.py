"""Simulate RLHF on clusters of GPUs, checked against step times that others published.

A discrete-event model: requests with a distribution of lengths run through engines with
continuous batching, batches are scored and trained on, weights travel back, and the policy may
lag behind. Costs are rooflines times a few constants, fitted to the published rows of one kind of
hardware and shared by all of them. Rows come first, with the error that is left when a row is not
fitted on; then the predictions for 8 to 1,024 GPUs. No GPU is needed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.simulation.report import Run


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there too")
    parser.add_argument("--seed", type=int, default=0, help="of the response lengths")
    parser.add_argument(
        "--sigma",
        type=float,
        default=0.8,
        help="assumed spread of the logarithm of response lengths (default 0.8)",
    )
    arguments = parser.parse_args(argv)
    if not 0.0 <= arguments.sigma <= 2.0:
        parser.error(f"--sigma ({arguments.sigma}) must lie in 0 to 2; the default is 0.8")

    from benchmarks.simulation.report import as_json, markdown

    run = simulate_all(sigma=arguments.sigma, seed=arguments.seed)
    if arguments.json:
        arguments.json.write_text(json.dumps(as_json(run), indent=1) + "\n")
    print(markdown(run))


def simulate_all(*, sigma: float, seed: int) -> Run:
    """Fit every kind of hardware, compare every row, predict on H100."""
    from dataclasses import replace

    from benchmarks.simulation.calibrate import fit
    from benchmarks.simulation.predict import Job, predict
    from benchmarks.simulation.published import read
    from benchmarks.simulation.report import Compared, Run
    from equilibrate.planner.events import simulate
    from equilibrate.planner.hardware import GPUS

    published = read(sigma)
    fits, compared = {}, []
    for gpu in dict.fromkeys(row.gpu for row in published.rows):
        rows = [row for row in published.rows if row.gpu == gpu]
        fits[gpu] = fit(rows, seed=seed)
        for row, error in zip(rows, fits[gpu].left_out_errors, strict=True):
            result = simulate(row.costs(fits[gpu].efficiency), seed=seed)
            compared.append(Compared(row, result, error))
    held_out = [
        Compared(row, simulate(row.costs(fits[row.gpu].efficiency), seed=seed), None)
        for row in published.held_out
    ]
    model = published.models["Llama-3.1-8B"]
    short = Job(model=model, rollouts=2048, sigma=sigma)
    long = replace(short, response_mean=4096, longest=16384)
    jobs = {
        "PPO-Lagrangian, 8B, H100, 2,048 responses of 1,024 tokens": short,
        "the same with 4,096 tokens": long,
    }
    return Run(
        sigma=sigma,
        seed=seed,
        fits=fits,
        compared=compared,
        held_out=held_out,
        not_modelled=published.not_modelled,
        sources=published.sources,
        predictions={
            title: predict(job, GPUS["H100"], fits["H100"].efficiency, seed=seed)
            for title, job in jobs.items()
        },
    )


if __name__ == "__main__":
    main()
