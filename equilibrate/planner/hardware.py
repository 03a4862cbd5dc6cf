"""What a GPU could do at most, and the share of it that software reaches."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Rates of the data sheet, one direction, dense bfloat16."""

    name: str
    flops_per_second: float
    memory_bytes_per_second: float
    memory_bytes: float
    nvlink_bytes_per_second: float
    network_bytes_per_second: float
    """Of the network card of one GPU, between NVLink domains."""
    nvlink_domain: int
    """GPUs that reach one another over NVLink."""

    def link(self, num_gpus: int) -> float:
        """Bytes per second between the members of a group of this size."""
        fits = num_gpus <= self.nvlink_domain
        return self.nvlink_bytes_per_second if fits else self.network_bytes_per_second

    def broadcast_link(self, num_gpus: int) -> float:
        """The same where all receive the same bytes: the network cards of a domain share them."""
        rails = self.network_bytes_per_second * self.nvlink_domain
        nvlink = self.nvlink_bytes_per_second
        return nvlink if num_gpus <= self.nvlink_domain else min(nvlink, rails)


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="H100",
            flops_per_second=989e12,
            memory_bytes_per_second=3.35e12,
            memory_bytes=80 * 2**30,
            nvlink_bytes_per_second=450e9,
            network_bytes_per_second=50e9,
            nvlink_domain=8,
        ),
        Gpu(
            name="H200",
            flops_per_second=989e12,
            memory_bytes_per_second=4.8e12,
            memory_bytes=140 * 2**30,
            nvlink_bytes_per_second=450e9,
            network_bytes_per_second=50e9,
            nvlink_domain=8,
        ),
        Gpu(
            name="A100",
            flops_per_second=312e12,
            memory_bytes_per_second=2.04e12,
            memory_bytes=80 * 2**30,
            nvlink_bytes_per_second=300e9,
            network_bytes_per_second=25e9,
            nvlink_domain=8,
        ),
        Gpu(
            name="GB200",
            flops_per_second=2500e12,
            memory_bytes_per_second=8e12,
            memory_bytes=186 * 2**30,
            nvlink_bytes_per_second=900e9,
            network_bytes_per_second=50e9,
            nvlink_domain=72,
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """The few constants that are fitted; one set serves every row of a kind of hardware."""

    matmul: float
    """Fraction of the peak FLOP/s in training, scoring and prefill."""
    memory: float
    """Fraction of the memory bandwidth while decoding."""
    exchange: float
    """Fraction of the link over which tokens go to experts and back."""
    sync: float
    """Fraction of the link over which weights go to the engines."""
    layer_seconds: float
    """Fixed seconds of a layer in one decode step: kernel launches and collectives."""
    network_seconds: float
    """Added to it where one engine spans NVLink domains."""
    fixed_seconds: float
    """Seconds of an iteration that no size explains: driver, data, offload, optimizer."""
