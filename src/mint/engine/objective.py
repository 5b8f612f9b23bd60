"""What a micro-batch minimises: the losses of its passes, over the log-probabilities of all their targets.

The engine computes log-probabilities of pairs (token, target), in the order of the tokens in the packed batch; a
token that several datums share has a pair for each. Here is told which pair is whose, and what each pass makes of its
own.

Shapes: P pairs of the micro-batch, p of one part of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from mint.engine.core import FloatArray, ForwardBackward, Int64Array
from mint.engine.loss_parts import CorrectedPart, Item, Survey, Tally, cut_into_parts
from mint.engine.losses import Datums
from mint.models.logprobs import Pairs


def combined(surveys: Sequence[Survey]) -> Survey:
    """Of several micro-batches."""
    offsets = np.cumsum([0, *(survey.datums.count for survey in surveys)]).tolist()
    of_token = [survey.datums.of_token + offset for survey, offset in zip(surveys, offsets, strict=False)]
    weight, counted = torch.cat([s.weight for s in surveys]), torch.cat([s.counted for s in surveys])
    return Survey(weight, counted, Datums(torch.cat(of_token), offsets[-1]))


class BatchObjective:
    """The objective of one micro-batch; see `mint.models.logprobs.Objective`.

    Args:
        rows: for each item, where its tokens lie in the packed batch, int64 (n,).
        weight_scales: by pass, the factor of a rollout correction that is normalised over the whole pass.
    """

    def __init__(
        self,
        passes: Sequence[ForwardBackward],
        items: Sequence[Item],
        rows: Sequence[Int64Array],
        weight_scales: Mapping[int, float],
        device: torch.device,
    ) -> None:
        targets = [item.datum.loss_inputs["target_tokens"] for item in items]
        sizes = [target.size for target in targets]
        predicting = [r[len(r) - len(target) :] for r, target in zip(rows, targets, strict=True)]
        spread = [np.repeat(r, target.size // len(r)) for r, target in zip(predicting, targets, strict=True)]
        unsorted = np.concatenate(spread)
        self._order = np.argsort(unsorted, kind="stable")
        ordered = unsorted[self._order]
        one_each = bool((ordered == np.arange(len(ordered))).all())
        flat_targets = np.concatenate([target.ravel() for target in targets])[self._order]
        pair_rows, pair_targets = (torch.from_numpy(values).to(device) for values in (ordered, flat_targets))
        self.pairs = Pairs(pair_rows, pair_targets, one_each)
        self._shapes = [target.shape for target in targets]
        self._borders = np.cumsum([0, *sizes])
        self._parts = list(cut_into_parts(passes, items, sizes, self._order, weight_scales, device))
        self.per_token = all(part.per_token for part in self._parts)
        self._items = items
        self._slopes = torch.zeros(len(ordered), device=device)

    def gradient(self, logprobs: Tensor, pairs: slice) -> Tensor:
        """See `Objective`."""
        leaf = logprobs.detach().requires_grad_()
        losses = []
        with torch.enable_grad():
            for part in self._parts:
                first, stop = max(part.pairs.start, pairs.start), min(part.pairs.stop, pairs.stop)
                if first < stop:
                    within = slice(first - part.pairs.start, stop - part.pairs.start)
                    losses.append(part.loss(leaf[first - pairs.start : stop - pairs.start], within))
            grad = torch.autograd.grad(losses, leaf)[0]
        self._slopes[pairs] = grad
        return grad

    def survey(self, logprobs: Tensor) -> Iterator[tuple[int, Survey]]:
        """The importance weights of each pass that corrects them, from the log-probabilities of all pairs."""
        for part in self._parts:
            if isinstance(part, CorrectedPart):
                yield part.survey(logprobs[part.pairs])

    def evaluate(self, logprobs: Tensor) -> None:
        """Compute the losses of all pairs without their gradients."""
        with torch.no_grad():
            for part in self._parts:
                part.loss(logprobs[part.pairs], slice(0, part.pairs.stop - part.pairs.start))

    def tallies(self) -> Iterator[tuple[int, Tally]]:
        """What each pass has summed up, once all pairs have been computed; see `Part.tallies`."""
        for part in self._parts:
            yield from part.tallies()

    def by_datum(self, logprobs: Tensor) -> Iterator[tuple[Item, FloatArray]]:
        """The log-probabilities of each item's targets, in the targets' shape, from those of all pairs."""
        pieces = np.split(self._item_by_item(logprobs), self._borders[1:-1])
        for item, piece, shape in zip(self._items, pieces, self._shapes, strict=True):
            yield item, piece.reshape(shape)

    def slopes(self) -> Iterator[tuple[Item, float]]:
        """The largest |∂loss / ∂logprob| of each item, once all gradients have been computed."""
        steepest = np.maximum.reduceat(np.abs(self._item_by_item(self._slopes)), self._borders[:-1])
        yield from zip(self._items, steepest.tolist(), strict=True)

    def _item_by_item(self, of_pairs: Tensor) -> FloatArray:
        values = np.empty(len(self._order), np.float32)
        values[self._order] = of_pairs.cpu().numpy()
        return values
