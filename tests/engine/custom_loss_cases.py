"""Each operation that a custom loss may use, in a small loss.

A case is a function of x (6,), o (6,), m (6, 3), i int64 (6,) and s (), all but i float64, whose result becomes part of
a loss. x are the log-probabilities.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from mint.engine.loss_operations import BINARY, BOTH, MATH, UNARY

Case = Callable[[Any, Any, Any, Any, Any], Any]


def unit(x: Any) -> Any:
    """Between 0.1 and 0.9, where nearly every function is defined and smooth."""
    return torch.sigmoid(x) * 0.8 + 0.1


def _alike(names: str, arguments: Case) -> dict[str, Case]:
    return dict.fromkeys(names.split(), arguments)


ARGUMENTS: dict[str, Case] = {
    **_alike(UNARY, lambda x, o, m, i, s: (unit(x),)),
    **_alike(BINARY, lambda x, o, m, i, s: (x, o)),
    **_alike("acosh", lambda x, o, m, i, s: (1.5 - x,)),
    **_alike("bitwise_not logical_not", lambda x, o, m, i, s: (x > -1,)),
    **_alike("bitwise_and bitwise_or bitwise_xor", lambda x, o, m, i, s: (x > -1, o > 0)),
    **_alike("floor_divide heaviside", lambda x, o, m, i, s: (x.detach(), o)),
    **_alike("round", lambda x, o, m, i, s: (x,)),
    **_alike("logit", lambda x, o, m, i, s: (unit(x), 0.2)),
    **_alike("nan_to_num", lambda x, o, m, i, s: (x.detach() / 0, 0.5, 1.5, 2.5)),
    **_alike("xlogy", lambda x, o, m, i, s: (o, unit(x))),
    **_alike("add sub subtract div divide", lambda x, o, m, i, s: (x, o)),
    **_alike("pow float_power", lambda x, o, m, i, s: (unit(x), o)),
    **_alike("hardshrink", lambda x, o, m, i, s: (x, 0.6)),
    **_alike("clamp clip", lambda x, o, m, i, s: (x, -1.5, -0.2)),
    **_alike("clamp_min clamp_max", lambda x, o, m, i, s: (x, -1.0)),
    **_alike("lerp", lambda x, o, m, i, s: (x, o, 0.3)),
    **_alike("addcmul addcdiv", lambda x, o, m, i, s: (x, o, x)),
    **_alike("masked_fill", lambda x, o, m, i, s: (x, o > 0, 0.0)),
    **_alike("where", lambda x, o, m, i, s: (x > -1, x, o)),
    # reductions, and what runs along a dimension
    **_alike("sum nansum mean nanmean prod amax amin median nanmedian", lambda x, o, m, i, s: (x[:, None] * m,)),
    **_alike("max min std var norm", lambda x, o, m, i, s: (x[:, None] * m,)),
    **_alike("any all", lambda x, o, m, i, s: (x > -1, 0)),
    **_alike("argmax argmin count_nonzero mode", lambda x, o, m, i, s: (x[:, None] * m, 0)),
    **_alike("logsumexp", lambda x, o, m, i, s: (x[:, None] * m, (0, 1))),
    **_alike("quantile nanquantile", lambda x, o, m, i, s: (x, 0.3)),
    **_alike("aminmax msort ravel numel is_floating_point", lambda x, o, m, i, s: (x,)),
    **_alike(
        "softmax log_softmax cumsum cumprod logcumsumexp cummax cummin", lambda x, o, m, i, s: (x[:, None] * m, 0)
    ),
    **_alike("sort argsort", lambda x, o, m, i, s: (x * o, 0, True)),
    **_alike("topk", lambda x, o, m, i, s: (x[:, None] * m, 2, 0)),
    **_alike("kthvalue", lambda x, o, m, i, s: (x * o, 2)),
    **_alike("diff", lambda x, o, m, i, s: (x,)),
    **_alike("roll", lambda x, o, m, i, s: (x, 2)),
    # picking and placing
    **_alike("gather index_select", lambda x, o, m, i, s: (x, 0, i)),
    **_alike("take_along_dim take", lambda x, o, m, i, s: (x, i)),
    **_alike("scatter", lambda x, o, m, i, s: (o, 0, i[:4], x[:4])),
    **_alike("scatter_add index_add", lambda x, o, m, i, s: (o, 0, i, x)),
    **_alike("narrow", lambda x, o, m, i, s: (x, 0, 1, 4)),
    **_alike("select", lambda x, o, m, i, s: (x, 0, 2)),
    **_alike("trace tril triu diagonal fliplr flipud t", lambda x, o, m, i, s: (x * o[:, None],)),
    **_alike("diag diag_embed", lambda x, o, m, i, s: (x, 1)),
    # shapes
    **_alike("flatten", lambda x, o, m, i, s: (x[:, None] * m,)),
    **_alike("unflatten", lambda x, o, m, i, s: (x, 0, (2, 3))),
    **_alike("squeeze", lambda x, o, m, i, s: (x[:, None], 1)),
    **_alike("unsqueeze", lambda x, o, m, i, s: (x, 0)),
    **_alike("unbind", lambda x, o, m, i, s: (x[:, None] * m, 1)),
    **_alike("transpose swapaxes swapdims movedim", lambda x, o, m, i, s: (x[:, None] * m, 0, 1)),
    **_alike("broadcast_to", lambda x, o, m, i, s: (x, (2, 6))),
    **_alike("split chunk", lambda x, o, m, i, s: (x, 3)),
    **_alike("repeat_interleave", lambda x, o, m, i, s: (x, 3)),
    # products
    **_alike("matmul mv", lambda x, o, m, i, s: (x * o[:, None], x)),
    **_alike("mm", lambda x, o, m, i, s: (x[None], m)),
    **_alike("bmm", lambda x, o, m, i, s: (x[None, None], m[None])),
    **_alike("dot vdot inner outer ger", lambda x, o, m, i, s: (x, o)),
}
FIRST_OF_SEVERAL = {"sort", "topk", "cummax", "cummin", "kthvalue", "mode", "aminmax", "split", "chunk", "unbind"}


def _function(name: str) -> Case:
    def case(*inputs: Any) -> Any:
        result = getattr(torch, name)(*ARGUMENTS[name](*inputs))
        return result[0] if name in FIRST_OF_SEVERAL else result

    return case


def _method(name: str) -> Case:
    def case(*inputs: Any) -> Any:
        first, *rest = ARGUMENTS[name](*inputs)
        if name == "where":
            first, rest = rest[0], [first, rest[1]]
        result = getattr(first, name)(*rest)
        return result[0] if name in FIRST_OF_SEVERAL else result

    return case


def _math(name: str) -> Case:
    second = {"log": (2,), "pow": (2,), "atan2": (2,), "hypot": (2,), "fmod": (4,), "copysign": (-1,)}.get(name, ())
    offset = 1 if name == "acosh" else 0
    return lambda x, o, m, i, s: x * getattr(math, name)(x.shape[0] / 7 + offset, *second)


def _each(names: str, module: Any, apply: Callable[[Any, Any, Any], Any]) -> dict[str, Case]:
    return {name: lambda x, o, m, i, s, n=name: apply(getattr(module, n), x, o) for name in names.split()}


def _of_unit(function: Any, x: Any, o: Any) -> Any:
    return function(unit(x))


F = functional
METHODS: dict[str, Case] = {
    "reshape": lambda x, o, m, i, s: x.reshape(2, x.shape[0] // 2),
    "view": lambda x, o, m, i, s: x.view(-1, 2),
    "view_as": lambda x, o, m, i, s: (x[:, None] * m).view_as(m.T),
    "reshape_as": lambda x, o, m, i, s: (x[:, None] * m).reshape_as(m.T),
    "expand": lambda x, o, m, i, s: x.expand(3, -1),
    "expand_as": lambda x, o, m, i, s: x[:, None].expand_as(m),
    "repeat": lambda x, o, m, i, s: x.repeat(2, 2),
    "tile": lambda x, o, m, i, s: x.tile(2),
    "permute": lambda x, o, m, i, s: (x[:, None] * m).permute(1, 0),
    "flip": lambda x, o, m, i, s: x.flip(0),
    "contiguous": lambda x, o, m, i, s: (x[:, None] * m).T.contiguous(),
    "sizes": lambda x, o, m, i, s: x * x.size(0) + x.dim() + x.ndimension() - x.nelement() + m.size()[1],
    "casts": lambda x, o, m, i, s: x.half().bfloat16().float().double() + x.int() + x.long() + x.bool() + x.short(),
    "to": lambda x, o, m, i, s: x.to(torch.float32).to(s) + x.to("cpu", torch.float16) + x.to(dtype=torch.int64),
    "type_as": lambda x, o, m, i, s: x.type_as(i),
    "unfold": lambda x, o, m, i, s: x.unfold(0, 3, 1).mean(1)[:, None],
    "new": lambda x, o, m, i, s: x.new_zeros(x.shape) + x.new_ones(6) + x.new_full((6,), 2.5),
    "new_tensor": lambda x, o, m, i, s: x @ x.new_tensor([[1, 2.5]] * 6),
}
FUNCTIONS: dict[str, Case] = {
    "rsub": lambda x, o, m, i, s: torch.rsub(x, o, alpha=2),
    "div": lambda x, o, m, i, s: torch.div(x, o, rounding_mode=None) + x.div(0.3, rounding_mode="trunc").detach(),
    "std_mean": lambda x, o, m, i, s: torch.std_mean(x)[0] * torch.std_mean(x)[1],
    "var_mean": lambda x, o, m, i, s: torch.var_mean(x, correction=0)[0],
    "reshape": lambda x, o, m, i, s: torch.reshape(x, (2, 3)),
    "permute": lambda x, o, m, i, s: torch.permute(x[:, None] * m, (1, 0)),
    "flip": lambda x, o, m, i, s: torch.flip(x, [0]),
    "tile": lambda x, o, m, i, s: torch.tile(x, (2,)),
    "stack": lambda x, o, m, i, s: torch.stack([x, o], dim=1),
    "cat": lambda x, o, m, i, s: torch.cat([x, o]) + torch.concat((x, o)) + torch.concatenate([x, o], 0),
    "hstack": lambda x, o, m, i, s: torch.hstack([x, o]).sum() + torch.vstack([x, o]) * torch.dstack([x, o]).mean(),
    "broadcast_tensors": lambda x, o, m, i, s: torch.broadcast_tensors(x[:, None], o)[0],
    "meshgrid": lambda x, o, m, i, s: torch.meshgrid(x, o, indexing="ij")[0],
    "atleast": lambda x, o, m, i, s: torch.atleast_2d(x) * torch.atleast_1d(s),
    "einsum": lambda x, o, m, i, s: torch.einsum("i, ij -> j", x, m),
    "cosine_similarity": lambda x, o, m, i, s: torch.cosine_similarity(x, o, 0, 1e-8),
    "F.cosine_similarity": lambda x, o, m, i, s: F.cosine_similarity(x[:, None] * m, m, dim=1),
    "searchsorted": lambda x, o, m, i, s: torch.searchsorted(o.sort()[0], x) + torch.bucketize(x, o.sort()[0]),
    "zeros": lambda x, o, m, i, s: torch.zeros(x.shape[0]) + torch.ones((x.shape[0],)) * x,
    "full": lambda x, o, m, i, s: torch.full((x.shape[0],), 2.5, dtype=x.dtype, device=x.device),
    "arange": lambda x, o, m, i, s: x * torch.arange(x.shape[0], device=x.device),
    "linspace": lambda x, o, m, i, s: torch.linspace(0, 1, x.shape[0]),
    "eye": lambda x, o, m, i, s: torch.eye(x.shape[0]) * x,
    "like": lambda x, o, m, i, s: torch.ones_like(x) + torch.zeros_like(x, dtype=torch.int64) + torch.full_like(x, 0.5),
}
FUNCTIONAL: dict[str, Case] = {
    **_each("relu relu6 mish silu selu logsigmoid softsign tanhshrink", F, lambda f, x, o: f(3 * x + 2)),
    **_each("hardsigmoid hardswish celu elu leaky_relu softplus softshrink hardtanh", F, lambda f, x, o: f(3 * x + 2)),
    "gelu": lambda x, o, m, i, s: F.gelu(x, approximate="tanh") + F.gelu(x),
    "threshold": lambda x, o, m, i, s: F.threshold(x, -1.0, 0.5),
    "softmax": lambda x, o, m, i, s: F.softmax(x, dim=0) + F.log_softmax(x, -1) + F.softmin(x, dim=0),
    "glu": lambda x, o, m, i, s: F.glu(x),
    **_each("mse_loss l1_loss smooth_l1_loss huber_loss", F, lambda f, x, o: f(x, o, reduction="none")),
    **_each("binary_cross_entropy_with_logits", F, lambda f, x, o: f(x, o.sigmoid(), reduction="none")),
    "kl_div": lambda x, o, m, i, s: F.kl_div(x, o, reduction="sum", log_target=True),
    "soft_margin_loss": lambda x, o, m, i, s: F.soft_margin_loss(x, o.sign()),
    "poisson_nll_loss": lambda x, o, m, i, s: F.poisson_nll_loss(x, o.abs(), full=False),
    "hinge_embedding_loss": lambda x, o, m, i, s: F.hinge_embedding_loss(x, o.sign(), margin=0.5),
    "margin_ranking_loss": lambda x, o, m, i, s: F.margin_ranking_loss(x, o, o.sign()),
    "normalize": lambda x, o, m, i, s: F.normalize(x, dim=0),
    "pad": lambda x, o, m, i, s: F.pad(x, (1, 0)),
    "one_hot": lambda x, o, m, i, s: F.one_hot(i, 7),
    "linear": lambda x, o, m, i, s: F.linear(x, m.T),
    "layer_norm": lambda x, o, m, i, s: F.layer_norm(x, x.shape) * o,
}
ELSEWHERE: dict[str, Case] = {
    **_each("expit log1p expm1 exp2 entr erf erfc erfcx erfinv ndtr log_ndtr ndtri", torch.special, _of_unit),
    **_each("gammaln digamma psi sinc i0 i0e logit", torch.special, _of_unit),
    "special.xlogy": lambda x, o, m, i, s: torch.special.xlogy(o, unit(x)) + torch.special.xlog1py(o, unit(x)),
    "special.softmax": lambda x, o, m, i, s: torch.special.softmax(x, 0) + torch.special.log_softmax(x, 0),
    "special.logsumexp": lambda x, o, m, i, s: torch.special.logsumexp(x, 0),
    "linalg": lambda x, o, m, i, s: torch.linalg.norm(x[:, None] * m) + torch.linalg.vector_norm(x, 3),
}
OPERATORS: dict[str, Case] = {
    "arithmetic": lambda x, o, m, i, s: (
        (-x + 2 * o - 1 / x) % 0.7 + x.detach() // 0.3 + abs(x) + x**2 + 2**x + operator.pos(x)
    ),
    "comparisons": lambda x, o, m, i, s: (x > -1) * (x < o) + (x >= o) * (x <= -1) + (x == o) + (x != o),
    "logic": lambda x, o, m, i, s: (~(x > -1) & (o > 0) | (o < -1) ^ (x < -1)) * operator.inv(o > 0),
    "matmul": lambda x, o, m, i, s: x @ m,
    "numbers": lambda x, o, m, i, s: x * (x.shape[0] ** 2 // 5 % 4 + (x.ndim > 0)) - o.shape[0] / -m.shape[1],
    "shapes": lambda x, o, m, i, s: x.reshape(operator.add(x.shape[:-1], (3, 2))),
    "items": lambda x, o, m, i, s: x[0] + x[-1] + x[1:].sum() + x[:: x.ndim + 1].prod() + x[..., None][2, 0],
    "index tensors": lambda x, o, m, i, s: x[i] + x[[0, -1, 1, 2, 3, 3]] + (x[:, None] * m)[i, 1] + x[i - 6],
    "index of one": lambda x, o, m, i, s: x[x.argmax()] * x[o.argmin() - 6],
    "attributes": lambda x, o, m, i, s: x * m.T.sum() + x.data + m.mT.ndim + x.unsqueeze(0).mT[:, 0],
    "names": lambda x, o, m, i, s: (x[:, None] * m).max(dim=0).values.sum() + x.sort().indices * x.aminmax().min,
    "names of aminmax": lambda x, o, m, i, s: x.aminmax().max + torch.topk(x, 2).values.sum(),
    "keywords": lambda x, o, m, i, s: torch.clamp(input=x, min=-1.0).sum(dim=0, keepdim=True, dtype=torch.float32),
    "infinity": lambda x, o, m, i, s: torch.where(x > 0, float("inf"), x).clamp(max=float("inf")),
    "constants": lambda x, o, m, i, s: x * math.log(2) + math.pi,
}


def all_cases() -> Iterator[tuple[str, Case]]:
    """Every case with its name."""
    yield from ((f"torch.{name}", _function(name)) for name in BOTH)
    yield from ((f"Tensor.{name}", _method(name)) for name in BOTH)
    yield from ((f"math.{name}", _math(name)) for name in MATH)
    for prefix, cases in (
        ("method", METHODS),
        ("function", FUNCTIONS),
        ("functional", FUNCTIONAL),
        ("elsewhere", ELSEWHERE),
        ("operators", OPERATORS),
    ):
        yield from ((f"{prefix}: {name}", case) for name, case in cases.items())


CASES = dict(all_cases())
