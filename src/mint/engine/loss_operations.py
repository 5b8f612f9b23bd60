"""The operations that a custom loss may use, by their public names; whatever is not here is refused.

Torch-free: what they are is in `mint.engine.graph_operations`. Left out on purpose is all that is random, leaves torch,
changes a tensor in place, reads memory that nobody has written, has an output whose shape depends on values, or asserts
on the device about its values, which would end the worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """How an operation may be called: with so many positional arguments, a method's tensor included, and keywords."""

    positional: int
    keywords: frozenset[str]


MANY = 16
"""Positional arguments of operations that take any number, such as sizes."""


def _family(names: str, positional: int, keywords: str = "") -> dict[str, Signature]:
    return dict.fromkeys(names.split(), Signature(positional, frozenset(keywords.split())))


UNARY = """abs absolute neg negative positive exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sign sgn
    signbit sigmoid relu tanh sinh cosh sin cos tan asin acos atan arcsin arccos arctan asinh acosh atanh erf erfc
    erfinv lgamma digamma sinc floor ceil trunc fix frac deg2rad rad2deg isnan isinf isfinite isposinf isneginf
    logical_not bitwise_not detach clone"""
BINARY = """maximum minimum fmax fmin fmod remainder floor_divide true_divide atan2 arctan2 hypot logaddexp logaddexp2
    copysign xlogy eq ne not_equal lt less le less_equal gt greater ge greater_equal logical_and logical_or logical_xor
    bitwise_and bitwise_or bitwise_xor mul multiply"""
PRODUCTS = "matmul mm mv bmm dot vdot inner outer ger"

BOTH: Mapping[str, Signature] = {
    **_family(UNARY, 1),
    **_family("round", 1, "decimals"),
    **_family("logit nan_to_num", 4, "eps nan posinf neginf"),
    **_family(BINARY, 2, "other"),
    **_family("add sub subtract", 2, "other alpha"),
    **_family("div divide", 2, "other rounding_mode"),
    **_family("pow float_power", 2, "exponent"),
    **_family("heaviside", 2, "values"),
    **_family("hardshrink", 2, "lambd"),
    **_family("clamp clip", 3, "min max"),
    **_family("clamp_min", 2, "min"),
    **_family("clamp_max", 2, "max"),
    **_family("lerp", 3, "end weight"),
    **_family("addcmul addcdiv", 3, "tensor1 tensor2 value"),
    **_family("where", 3, "self condition input other"),
    **_family("masked_fill", 3, "mask value"),
    # reductions, and what runs along a dimension
    **_family("sum nansum mean nanmean prod any all logsumexp amax amin median nanmedian mode", 3, "dim keepdim dtype"),
    **_family("max min argmax argmin", 3, "dim keepdim other"),
    **_family("std var", 4, "dim unbiased keepdim correction"),
    **_family("norm", 5, "p dim keepdim dtype"),
    **_family("quantile nanquantile", 4, "q dim keepdim interpolation"),
    **_family("count_nonzero", 2, "dim"),
    **_family("aminmax", 1, "dim keepdim"),
    **_family("softmax log_softmax cumsum cumprod logcumsumexp cummax cummin", 2, "dim dtype"),
    **_family("sort argsort", 3, "dim descending stable"),
    **_family("msort trace ravel t", 1),
    **_family("topk", 5, "k dim largest sorted"),
    **_family("kthvalue", 4, "k dim keepdim"),
    **_family("diff", 1, "dim prepend append"),
    **_family("roll", 3, "shifts dims"),
    # picking and placing
    **_family("gather", 3, "dim index"),
    **_family("take_along_dim", 3, "indices dim"),
    **_family("index_select", 3, "dim index"),
    **_family("take", 2, "index"),
    **_family("scatter", 4, "dim index src value"),
    **_family("scatter_add", 4, "dim index src"),
    **_family("index_add", 4, "dim index source alpha"),
    **_family("narrow", 4, "dim start length"),
    **_family("select", 3, "dim index"),
    **_family("tril triu diag", 2, "diagonal"),
    **_family("diagonal diag_embed", 4, "offset dim1 dim2"),
    **_family("fliplr flipud", 1),
    # shapes
    **_family("flatten", 3, "start_dim end_dim"),
    **_family("unflatten", 3, "dim sizes"),
    **_family("squeeze unsqueeze unbind", 2, "dim"),
    **_family("transpose swapdims", 3, "dim0 dim1"),
    **_family("swapaxes", 3, "axis0 axis1"),
    **_family("movedim", 3, "source destination"),
    **_family("broadcast_to", 2, "size"),
    **_family("split", 3, "split_size_or_sections split_size dim"),
    **_family("chunk", 3, "chunks dim"),
    **_family("repeat_interleave", 3, "repeats dim"),
    **_family("numel is_floating_point", 1),
    **_family(PRODUCTS, 2),
}

FUNCTIONS: Mapping[str, Signature] = {
    **BOTH,
    **_family("rsub", 2, "other alpha"),
    **_family("std_mean var_mean", 4, "dim unbiased keepdim correction"),
    **_family("reshape", 2, "shape"),
    **_family("permute flip tile", 2, "dims"),
    **_family("stack cat concat concatenate", 2, "tensors dim"),
    **_family("hstack vstack dstack", 1, "tensors"),
    **_family("broadcast_tensors", MANY),
    **_family("meshgrid", MANY, "indexing"),
    **_family("atleast_1d atleast_2d", 1),
    **_family("einsum", 3),
    **_family("cosine_similarity", 4, "x1 x2 dim eps"),
    **_family("searchsorted", 2, "sorted_sequence right"),
    **_family("bucketize", 2, "boundaries right"),
    **_family("zeros ones", MANY, "size dtype"),
    **_family("full", 2, "size fill_value dtype"),
    **_family("arange", 3, "start end step dtype"),
    **_family("linspace", 3, "start end steps dtype"),
    **_family("eye", 2, "n m dtype"),
    **_family("zeros_like ones_like", 1, "dtype"),
    **_family("full_like", 2, "fill_value dtype"),
}

METHODS: Mapping[str, Signature] = {
    **BOTH,
    **_family("reshape view expand repeat tile permute flip", MANY),
    **_family("view_as reshape_as expand_as type_as", 2, "other"),
    **_family("contiguous dim ndimension nelement float double half bfloat16 int long bool short", 1),
    **_family("size", 2, "dim"),
    **_family("unfold", 4, "dimension size step"),
    **_family("to", 4, "dtype other"),
    **_family("new_zeros new_ones", MANY, "size dtype"),
    **_family("new_full", 3, "size fill_value dtype"),
    **_family("new_tensor", 2, "dtype"),
}

ELEMENTWISE_LOSSES = (
    "mse_loss l1_loss smooth_l1_loss huber_loss kl_div binary_cross_entropy_with_logits soft_margin_loss"
)
FUNCTIONAL: Mapping[str, Signature] = {
    **_family("relu relu6 mish silu selu logsigmoid softsign tanhshrink hardsigmoid hardswish", 1),
    **_family("gelu", 1, "approximate"),
    **_family("celu elu", 2, "alpha"),
    **_family("leaky_relu", 2, "negative_slope"),
    **_family("softplus", 3, "beta threshold"),
    **_family("softshrink", 2, "lambd"),
    **_family("hardtanh", 3, "min_val max_val"),
    **_family("threshold", 3, "threshold value"),
    **_family("softmax log_softmax softmin", 2, "dim dtype"),
    **_family("glu", 2, "dim"),
    **_family(ELEMENTWISE_LOSSES, 2, "target reduction weight beta delta log_target pos_weight"),
    **_family("poisson_nll_loss", 2, "target log_input full eps reduction"),
    **_family("hinge_embedding_loss", 2, "target margin reduction"),
    **_family("margin_ranking_loss", 3, "input1 input2 target margin reduction"),
    **_family("normalize", 4, "p dim eps"),
    **_family("pad", 4, "pad mode value"),
    **_family("one_hot", 2, "num_classes"),
    **_family("linear", 3),
    **_family("layer_norm", 5, "normalized_shape weight bias eps"),
}
SPECIAL: Mapping[str, Signature] = {
    **_family(
        "expit log1p expm1 exp2 entr erf erfc erfcx erfinv ndtr log_ndtr ndtri gammaln digamma psi sinc i0 i0e", 1
    ),
    **_family("logit", 2, "eps"),
    **_family("xlogy xlog1py", 2, "other"),
    **_family("softmax log_softmax", 2, "dim dtype"),
    **_family("logsumexp", 3, "dim keepdim"),
}
LINALG: Mapping[str, Signature] = _family("norm vector_norm", 4, "ord dim keepdim dtype")
OPERATOR: Mapping[str, Signature] = {
    **_family("neg pos abs invert", 1),
    **_family("add sub mul truediv floordiv mod pow eq ne lt le gt ge and_ or_ xor matmul getitem", 2),
}
MATH: Mapping[str, Signature] = {
    **_family("sqrt exp exp2 expm1 log2 log10 log1p floor ceil trunc fabs isfinite isinf isnan", 1),
    **_family("sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc gamma lgamma", 1),
    **_family("log pow atan2 hypot fmod copysign", 2),
}

TABLES: Mapping[str, Mapping[str, Signature]] = {
    "torch": FUNCTIONS,
    "torch.nn.functional": FUNCTIONAL,
    "torch.special": SPECIAL,
    "torch.linalg": LINALG,
    "operator": OPERATOR,
    "math": MATH,
    "Tensor": METHODS,
}
OPERATIONS: Mapping[str, Signature] = {
    f"{module}.{name}": signature for module, table in TABLES.items() for name, signature in table.items()
}

ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device", "T", "mT", "data", "values", "indices", "min", "max"})
"""What `getattr` may read: of a tensor, or of the results of `max`, `sort` and the like."""

FACTORIES = frozenset(f"torch.{name}" for name in ("zeros", "ones", "full", "arange", "linspace", "eye"))
"""Operations that make a tensor of nothing, and must be told where."""

DTYPES = frozenset({"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "uint8", "bool"})
TEXTS = frozenset(
    {"mean", "sum", "none", "batchmean", "fro", "floor", "trunc", "tanh", "ij", "xy"}
    | {"linear", "lower", "higher", "nearest", "midpoint", "constant", "reflect", "replicate", "circular"}
)
"""Strings that mean something to one of the operations; the equation of `einsum` is the one other string."""

PRIVATE_MODULES = {
    "torch.functional.": ("torch.", ""),
    "torch._C._nn.": ("torch.nn.functional.", ""),
    "torch._C._special.": ("torch.special.", "special_"),
    "torch._C._linalg.": ("torch.linalg.", "linalg_"),
    "_operator.": ("operator.", ""),
}
"""Where Python finds some functions: as what they are public, and the prefix that their names have there."""

RENAMED = {
    "torch.nn.functional.log_sigmoid": "torch.nn.functional.logsigmoid",
    "torch.nn.functional._threshold": "torch.nn.functional.threshold",
    "torch.nn.functional.cosine_similarity": "torch.cosine_similarity",
    "torch.nn.functional.hardshrink": "torch.hardshrink",
    "operator.inv": "operator.invert",
}


def public_name(target: str) -> str:
    """The documented name of a function, from that in a traced graph: `torch.functional.norm` is `torch.norm`."""
    for private, (public, prefix) in PRIVATE_MODULES.items():
        if target.startswith(private):
            target = public + target.removeprefix(private).removeprefix(prefix)
    return RENAMED.get(target, target)


REASONS = {
    "its result leaves torch; keep every value a tensor": "item tolist numpy cpu cuda backward",
    "its output's shape depends on values; use torch.where": "nonzero argwhere masked_select unique unique_consecutive",
    "it is random; a loss must be the same when it is computed again": (
        "dropout rand randn rand_like randn_like randint randperm bernoulli multinomial normal"
    ),
    "it reads memory that nobody has written; use zeros": "empty empty_like new_empty empty_strided",
}


def reason_against(name: str) -> str:
    """Why an operation is not allowed, where there is a particular reason."""
    last = name.rpartition(".")[2]
    if name.startswith("Tensor.") and last.endswith("_"):
        return f"it changes a tensor in place; use {last.rstrip('_')}"
    return next((reason for reason, names in REASONS.items() if last in names.split()), "it is not on the list")
