"""What a machine does at best: the bandwidth of a large copy, the rate of a large product, and the floor they set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.comparison import Work
from benchmarks.in_process import linear_shapes

PRODUCT = 2048
"""Rows and columns of the matrices whose product is measured."""
COPY_BYTES = 256 << 20
"""More than caches hold."""
FLOAT_BYTES = 4


def product_rate() -> Work:
    """GFLOP of a float32 product of torch's."""
    import torch

    a, b, out = (torch.randn(PRODUCT, PRODUCT) for _ in range(3))
    return Work(2 * PRODUCT**3 / 1e9, lambda: torch.mm(a, b, out=out), repeats=5)


def copy_rate() -> Work:
    """GB that a copy reads and writes."""
    import torch

    source, target = (torch.ones(COPY_BYTES // FLOAT_BYTES) for _ in range(2))
    return Work(2 * COPY_BYTES / 1e9, lambda: target.copy_(source), repeats=5)


@dataclass(frozen=True)
class Floor:
    """The side that takes no longer than it takes to move some bytes once, or to multiply and add so often."""

    amount: float
    gigabytes: float
    gigaflops: float
    copy: Work
    product: Work

    def warm_up(self) -> None:
        """Run both once."""
        self.copy.warm_up()
        self.product.warm_up()

    def rate(self, threads: int) -> float:
        """Amount per second, by the larger of the two times."""
        seconds = max(self.gigabytes / self.copy.rate(threads), self.gigaflops / self.product.rate(threads))
        return self.amount / seconds


@dataclass(frozen=True)
class Arithmetic:
    """Of one token through a model in float32, without a gradient; `rank` 0 is the base model.

    Attributes:
        decoder: parameters of the decoder's linear layers and their factors.
        head: of the unembedding and its factors.
    """

    config: Any
    decoder: int
    head: int

    @classmethod
    def of(cls, config: Any, rank: int) -> Arithmetic:
        """Read off a configuration of transformers."""
        sizes = {name: inner * outer + rank * (inner + outer) for name, (inner, outer) in linear_shapes(config).items()}
        head = sizes.pop("lm_head")
        return cls(config, sum(sizes.values()), head)

    @property
    def weight_bytes(self) -> int:
        """Of all that a step reads whatever its batch."""
        return FLOAT_BYTES * (self.decoder + self.head)

    @property
    def cached_bytes(self) -> int:
        """Of keys and values, for each token before."""
        width = int(self.config.num_key_value_heads * self.config.head_dim)
        return FLOAT_BYTES * 2 * int(self.config.num_hidden_layers) * width

    def attention_flops(self, behind: float) -> float:
        """Of a token with so many tokens behind it, itself among them."""
        width = int(self.config.num_attention_heads * self.config.head_dim)
        return 4 * behind * int(self.config.num_hidden_layers) * width
