"""The losses of a micro-batch in parts: passes next to each other that are computed alike.

What a pass is computed by is a loss of the table, importance sampling with rollout correction, or a custom loss; each
has a kind of part, which knows which pairs (token, target) are its own and sums up what its passes report.

Shapes: p pairs of one part.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mint.engine.adapters import Adapter
from mint.engine.core import Datum, ForwardBackward, Int32Array, Int64Array
from mint.engine.corrections import corrected_importance_sampling
from mint.engine.graph_runner import run_graph
from mint.engine.loads import datum_work
from mint.engine.loss_refusals import not_finite
from mint.engine.loss_specs import LOSS_SPECS
from mint.engine.losses import LOSSES, Datums
from mint.engine.rollout_correction import RolloutCorrection
from mint.errors import BadRequestError


@dataclass(frozen=True)
class Item:
    """A datum on its way through a batch: datum `index` of pass number `owner`; see `Sharable`."""

    owner: int
    index: int
    adapter: Adapter
    datum: Datum
    family: object

    @property
    def tokens(self) -> Int32Array:
        """See `Packable`."""
        return self.datum.tokens


@dataclass
class Tally:
    """What has been summed up for one pass: its loss, the elements that a custom loss went through, and by name sums
    that become means over `counts`."""

    loss: float = 0.0
    work: int = 0
    sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: Tally) -> None:
        """Take in what another micro-batch has summed up."""
        self.loss += other.loss
        self.work += other.work
        for name in other.sums:
            self.sums[name] += other.sums[name]
            self.counts[name] += other.counts[name]

    def note(self, name: str, total: float, count: float) -> None:
        """Add to a sum and to what it is divided by."""
        self.sums[name] += total
        self.counts[name] += count


@dataclass(frozen=True)
class Survey:
    """Importance weights of one pass's pairs in one micro-batch, (p,), and where they count."""

    weight: Tensor
    counted: Tensor
    datums: Datums


class Part(Protocol):
    """Passes next to each other that are computed alike.

    Attributes:
        pairs: where their pairs lie.
        per_token: a pair's gradient follows from its own log-probability.
    """

    pairs: slice
    per_token: bool

    def loss(self, logprobs: Tensor, within: slice) -> Tensor:
        """The scalar whose gradient is wanted, from the log-probabilities of some of the part's pairs.

        Of all its pairs, unless `per_token`. `within` counts from the part's first pair.
        """
        ...

    def tallies(self) -> Iterator[tuple[int, Tally]]:
        """Of each pass, once all its pairs have been through `loss`.

        Raises:
            BadRequestError: the loss of a datum is not finite.
        """
        ...


def cut_into_parts(
    passes: Sequence[ForwardBackward],
    items: Sequence[Item],
    sizes: Sequence[int],
    order: Int64Array,
    weight_scales: Mapping[int, float],
    device: torch.device,
) -> Iterator[Part]:
    """Cut a micro-batch where passes begin that are not computed like those before them."""
    start = 0
    for _, members in groupby(zip(items, sizes, strict=True), key=lambda member: _alike(passes, member[0])):
        mine, counts = zip(*members, strict=True)
        stop = start + sum(counts)
        share = _Share(slice(start, stop), list(mine), list(counts), order[start:stop] - start, device)
        command = passes[mine[0].owner]
        if command.loss_graph is not None:
            yield GraphPart(share, command)
        elif command.rollout_correction is not None:
            yield CorrectedPart(share, command, weight_scales.get(mine[0].owner, 1.0))
        else:
            yield TokenPart(share, command)
        start = stop


def _alike(passes: Sequence[ForwardBackward], item: Item) -> object:
    command = passes[item.owner]
    if command.loss_graph is not None or command.rollout_correction is not None:
        return item.owner
    names = frozenset(command.data[0].loss_inputs)  # equal for all data of a pass
    return command.loss_fn, tuple(sorted(command.loss_config.items())), names


@dataclass(frozen=True)
class _Share:
    """The items of one part and how their pairs lie: `order[k]` is the place, item by item, of the part's pair k."""

    pairs: slice
    items: list[Item]
    sizes: list[int]
    order: Int64Array
    device: torch.device

    def gather(self, name: str) -> Tensor:
        """One loss input of all items, (p,) in the order of the pairs."""
        flat = np.concatenate([item.datum.loss_inputs[name].ravel() for item in self.items])
        return torch.from_numpy(flat[self.order]).to(self.device)

    def inputs(self, config: Mapping[str, float]) -> dict[str, Tensor]:
        """All loss inputs but the targets, and the settings where no input stands for them."""
        names = self.items[0].datum.loss_inputs.keys() - {"target_tokens"}
        settings = {name: torch.tensor(value, device=self.device) for name, value in config.items()}
        return settings | {name: self.gather(name) for name in names}

    @property
    def datums(self) -> Datums:
        """Which item each pair belongs to."""
        of_token = np.repeat(np.arange(len(self.items)), self.sizes)[self.order]
        return Datums(torch.from_numpy(of_token).to(self.device), len(self.items))

    def tallies(self, terms: Tensor) -> Iterator[tuple[int, Tally]]:
        """The loss of each pass, from the terms of all pairs.

        Raises:
            BadRequestError: one is not finite.
        """
        values = np.empty(len(self.order), np.float64)
        values[self.order] = terms.cpu().numpy()
        with np.errstate(all="ignore"):
            by_item = np.add.reduceat(values, np.cumsum([0, *self.sizes])[:-1])
        for owner, members in groupby(zip(self.items, by_item, strict=True), key=lambda member: member[0].owner):
            losses = {item.index: float(loss) for item, loss in members}
            bad = [index for index, loss in losses.items() if not np.isfinite(loss)]
            if bad:
                raise not_finite(min(bad))
            yield owner, Tally(sum(losses.values()))


class TokenPart:
    """Passes with one of the losses of `LOSSES`."""

    def __init__(self, share: _Share, command: ForwardBackward) -> None:
        self.pairs = share.pairs
        self.per_token = LOSS_SPECS[command.loss_fn].per_token
        self._share = share
        self._function = LOSSES[command.loss_fn]
        self._inputs = share.inputs(command.loss_config)
        self._datums = share.datums
        self._terms = torch.empty(len(share.order), device=share.device)

    def loss(self, logprobs: Tensor, within: slice) -> Tensor:
        """See `Part`."""
        inputs = {name: value[within] if value.ndim else value for name, value in self._inputs.items()}
        datums = Datums(self._datums.of_token[within], self._datums.count)
        terms = self._function(logprobs, inputs, datums) * inputs["weights"]
        self._terms[within] = terms.detach()
        return terms.sum()

    def tallies(self) -> Iterator[tuple[int, Tally]]:
        """See `Part`."""
        return self._share.tallies(self._terms)


class CorrectedPart:
    """One pass of importance sampling with rollout correction."""

    def __init__(self, share: _Share, command: ForwardBackward, weight_scale: float) -> None:
        assert command.rollout_correction is not None
        self.pairs = share.pairs
        self._config: RolloutCorrection = command.rollout_correction
        self.per_token = self._config.per_token
        self._share = share
        self._inputs = share.inputs(command.loss_config)
        self._datums = share.datums
        self._weight_scale = weight_scale
        self._terms = torch.empty(len(share.order), device=share.device)
        self._tally = Tally()

    def loss(self, logprobs: Tensor, within: slice) -> Tensor:
        """See `Part`."""
        inputs = {name: value[within] if value.ndim else value for name, value in self._inputs.items()}
        datums = Datums(self._datums.of_token[within], self._datums.count)
        corrected = corrected_importance_sampling(logprobs, inputs, datums, self._config, self._weight_scale)
        terms = corrected.terms * inputs["weights"]
        self._terms[within] = terms.detach()
        counted = corrected.counted
        self._tally.note("rollout_correction/kept_fraction:mean", _dot(corrected.kept, counted), float(counted.sum()))
        self._tally.note("rollout_correction/weight:mean", _dot(corrected.weight, counted), float(counted.sum()))
        return terms.sum()

    def survey(self, logprobs: Tensor) -> tuple[int, Survey]:
        """The pass and its weights before they are normalised."""
        corrected = corrected_importance_sampling(logprobs, self._inputs, self._datums, self._config)
        return self._share.items[0].owner, Survey(corrected.weight, corrected.counted, self._datums)

    def tallies(self) -> Iterator[tuple[int, Tally]]:
        """See `Part`."""
        for owner, tally in self._share.tallies(self._terms):
            tally.add(self._tally)
            yield owner, tally


def _dot(values: Tensor, counted: Tensor) -> float:
    return float((values * counted).sum(dtype=torch.float64))


class GraphPart:
    """One pass with a custom loss, which is computed datum by datum."""

    per_token = False

    def __init__(self, share: _Share, command: ForwardBackward) -> None:
        self.pairs = share.pairs
        self._share = share
        self._command = command
        self._tally = Tally()
        places = np.empty(len(share.order), np.int64)
        places[share.order] = np.arange(len(share.order))
        borders = np.cumsum([0, *share.sizes])[1:-1]
        self._places = [torch.from_numpy(piece).to(share.device) for piece in np.split(places, borders)]

    def loss(self, logprobs: Tensor, within: slice) -> Tensor:  # noqa: ARG002
        """See `Part`."""
        return torch.stack(
            [self._datum(logprobs[p], i) for i, p in zip(self._share.items, self._places, strict=True)]
        ).sum()

    def _datum(self, logprobs: Tensor, item: Item) -> Tensor:
        inputs = {name: torch.tensor(value, device=logprobs.device) for name, value in item.datum.loss_inputs.items()}
        graph = self._command.loss_graph
        assert graph is not None
        try:
            self._tally.work += datum_work(self._command, item.datum)
            loss, metrics = run_graph(graph, logprobs.view(inputs["target_tokens"].shape), inputs)
        except BadRequestError as error:
            error.args, error.datum = (f"{error}; this is for data[{item.index}]",), item.index
            raise
        self._tally.loss += float(loss.detach())
        for name, value in metrics.items():
            self._tally.note(name, float(value), 1.0 if name.endswith(":mean") else 0.0)
        return loss

    def tallies(self) -> Iterator[tuple[int, Tally]]:
        """See `Part`."""
        yield self._share.items[0].owner, self._tally
