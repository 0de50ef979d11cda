"""The layers and functions, each on data that is awkward for it: padding, ties, zeros, repeated indices.

A case maps an input to features [n, d]; a linear head turns them into logits. Its inputs are made for one task at a
time, so that what is awkward occurs in some tasks and not in others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXAMPLES = 6  # in a support set, and in a query set
WIDTH = 8

Draw = Callable[[torch.Generator, int], Any]  # of one task: its generator and number -> inputs of EXAMPLES examples


class Case(NamedTuple):
    name: str
    build: Callable[[], nn.Module]  # the body, whose output [n, ...] is flattened
    draw: Draw


class Function(nn.Module):
    """A function of torch between two linear layers: h -> function(h, weight), h [n, WIDTH] from x."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...] = (WIDTH, WIDTH)) -> None:
        super().__init__()
        self.function = function
        self.into = nn.Linear(WIDTH, WIDTH)
        self.weight = nn.Parameter(0.5 * torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.into(x), self.weight)


class Indexed(nn.Module):
    """A function of a weight and of whole numbers: x [n, k] -> function(weight, x)."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], rows: int = 12, width: int = WIDTH) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.randn(rows, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.weight, x)


class Behind(nn.Module):
    """A layer behind one that learns, so that the gradient passes through it: x -> layer(first(x))."""

    def __init__(self, first: nn.Module, layer: nn.Module) -> None:
        super().__init__()
        self.first, self.layer = first, layer

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(self.first(x))
        return out[0] if isinstance(out, tuple) else out


class Attention(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, x, x, key_padding_mask=None, need_weights=False)[0]


class Masked(nn.Module):
    """Attention over tokens of which those with number 0 are padding."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(12, WIDTH, padding_idx=0)
        self.layer = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        return self.layer(h, h, h, key_padding_mask=x == 0, need_weights=False)[0].mean(1)


# --- inputs ----------------------------------------------------------------------------------------------------------


def vectors(g: torch.Generator, task: int) -> Tensor:
    """[n, WIDTH], with zeros and repeated values in every second task."""
    x = torch.randn(EXAMPLES, WIDTH, generator=g)
    if task % 2:
        x[:, :2], x[:, 3] = 0.0, x[:, 4]
    return x


def sequences(g: torch.Generator, task: int) -> Tensor:
    """[n, 5, WIDTH], whose last places are zeros in every second task."""
    x = torch.randn(EXAMPLES, 5, WIDTH, generator=g)
    if task % 2:
        x[:, 3:] = 0.0
    return x


def signals(g: torch.Generator, task: int) -> Tensor:
    """[n, 4, 8], with equal values in every second task: ties for pooling."""
    x = torch.randn(EXAMPLES, 4, 8, generator=g)
    return x.round() if task % 2 else x


def pictures(g: torch.Generator, task: int) -> Tensor:
    """[n, 4, 8, 8], with equal values in every second task: ties for pooling."""
    x = torch.randn(EXAMPLES, 4, 8, 8, generator=g)
    return x.round() if task % 2 else x


def volumes(g: torch.Generator, task: int) -> Tensor:
    """[n, 4, 4, 4, 4], with equal values in every second task."""
    x = torch.randn(EXAMPLES, 4, 4, 4, 4, generator=g)
    return x.round() if task % 2 else x


def tokens(g: torch.Generator, task: int) -> Tensor:
    """Whole numbers [n, 5] below 12, with repeats; padded with 0 in every second task only."""
    x = torch.randint(1, 12, (EXAMPLES, 5), generator=g)
    if task % 2:
        x[:, 3:] = 0
    x[0] = x[0, 0]
    return x


# --- layers ----------------------------------------------------------------------------------------------------------


def _behind(first: Callable[[], nn.Module], layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Behind(first(), layer())


def _dense() -> nn.Module:
    return nn.Linear(WIDTH, WIDTH)


def _conv1() -> nn.Module:
    return nn.Conv1d(4, 4, 3, padding=1)


def _conv2() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


def _conv3() -> nn.Module:
    return nn.Conv3d(4, 4, 3, padding=1)


def _layers(first: Callable[[], nn.Module], draw: Draw, **layers: Callable[[], nn.Module]) -> list[Case]:
    return [Case(f"nn.{name}", _behind(first, layer), draw) for name, layer in layers.items()]


ACTIVATIONS = _layers(
    _dense,
    vectors,
    ELU=nn.ELU,
    Hardshrink=nn.Hardshrink,
    Hardsigmoid=nn.Hardsigmoid,
    Hardtanh=nn.Hardtanh,
    Hardswish=nn.Hardswish,
    LeakyReLU=nn.LeakyReLU,
    LogSigmoid=nn.LogSigmoid,
    PReLU=nn.PReLU,
    ReLU=nn.ReLU,
    ReLU6=nn.ReLU6,
    RReLU=nn.RReLU,
    SELU=nn.SELU,
    CELU=nn.CELU,
    GELU=nn.GELU,
    Sigmoid=nn.Sigmoid,
    SiLU=nn.SiLU,
    Mish=nn.Mish,
    Softplus=nn.Softplus,
    Softshrink=nn.Softshrink,
    Softsign=nn.Softsign,
    Tanh=nn.Tanh,
    Tanhshrink=nn.Tanhshrink,
    Threshold=lambda: nn.Threshold(0.1, -1.0),
    GLU=lambda: nn.GLU(1),
    Softmin=lambda: nn.Softmin(1),
    Softmax=lambda: nn.Softmax(1),
    LogSoftmax=lambda: nn.LogSoftmax(1),
    Dropout=lambda: nn.Dropout(0.3),
    AlphaDropout=lambda: nn.AlphaDropout(0.3),
    FeatureAlphaDropout=lambda: nn.FeatureAlphaDropout(0.3),
)

LINEAR = [
    *_layers(
        _dense,
        vectors,
        Identity=nn.Identity,
        Linear=lambda: nn.Linear(WIDTH, 5),
        Flatten=nn.Flatten,
        Unflatten=lambda: nn.Unflatten(1, (2, 4)),
        LayerNorm=lambda: nn.LayerNorm(WIDTH),
        RMSNorm=lambda: nn.RMSNorm(WIDTH),
        BatchNorm1d=lambda: nn.BatchNorm1d(WIDTH),
    ),
    Case("nn.BatchNorm1d in eval mode", _behind(_dense, lambda: nn.BatchNorm1d(WIDTH).eval()), vectors),
    Case("nn.Bilinear", lambda: Function(lambda h, w: F.bilinear(h, h, w), (5, WIDTH, WIDTH)), vectors),
    Case(
        "nn.utils.parametrizations.spectral_norm",
        _behind(_dense, lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, 5))),
        vectors,
    ),
    Case(
        "nn.utils.parametrizations.weight_norm",
        _behind(_dense, lambda: nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 5))),
        vectors,
    ),
    Case(
        "nn.utils.parametrizations.orthogonal",
        _behind(_dense, lambda: nn.utils.parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH))),
        vectors,
    ),
]

OF_SIGNALS = _layers(
    _conv1,
    signals,
    Conv1d=lambda: nn.Conv1d(4, 3, 3, stride=2),
    ConvTranspose1d=lambda: nn.ConvTranspose1d(4, 3, 3),
    MaxPool1d=lambda: nn.MaxPool1d(2),
    AvgPool1d=lambda: nn.AvgPool1d(2),
    LPPool1d=lambda: nn.LPPool1d(2, 2),
    AdaptiveMaxPool1d=lambda: nn.AdaptiveMaxPool1d(3),
    AdaptiveAvgPool1d=lambda: nn.AdaptiveAvgPool1d(3),
    ConstantPad1d=lambda: nn.ConstantPad1d(2, 0.5),
    ReflectionPad1d=lambda: nn.ReflectionPad1d(2),
    ReplicationPad1d=lambda: nn.ReplicationPad1d(2),
    CircularPad1d=lambda: nn.CircularPad1d(2),
    ZeroPad1d=lambda: nn.ZeroPad1d(2),
    InstanceNorm1d=lambda: nn.InstanceNorm1d(4, affine=True),
    Dropout1d=lambda: nn.Dropout1d(0.3),
    LocalResponseNorm=lambda: nn.LocalResponseNorm(2),
)

OF_PICTURES = [
    *_layers(
        _conv2,
        pictures,
        Conv2d=lambda: nn.Conv2d(4, 4, 3, stride=2, groups=2),
        ConvTranspose2d=lambda: nn.ConvTranspose2d(4, 3, 3),
        MaxPool2d=lambda: nn.MaxPool2d(2),
        AvgPool2d=lambda: nn.AvgPool2d(2),
        LPPool2d=lambda: nn.LPPool2d(2, 2),
        FractionalMaxPool2d=lambda: nn.FractionalMaxPool2d(2, 3),
        AdaptiveMaxPool2d=lambda: nn.AdaptiveMaxPool2d(3),
        AdaptiveAvgPool2d=lambda: nn.AdaptiveAvgPool2d(3),
        ReflectionPad2d=lambda: nn.ReflectionPad2d(1),
        ReplicationPad2d=lambda: nn.ReplicationPad2d(1),
        CircularPad2d=lambda: nn.CircularPad2d(1),
        ConstantPad2d=lambda: nn.ConstantPad2d(1, 0.5),
        ZeroPad2d=lambda: nn.ZeroPad2d(1),
        BatchNorm2d=lambda: nn.BatchNorm2d(4),
        GroupNorm=lambda: nn.GroupNorm(2, 4),
        InstanceNorm2d=lambda: nn.InstanceNorm2d(4, affine=True),
        Dropout2d=lambda: nn.Dropout2d(0.3),
        PixelShuffle=lambda: nn.PixelShuffle(2),
        PixelUnshuffle=lambda: nn.PixelUnshuffle(2),
        ChannelShuffle=lambda: nn.ChannelShuffle(2),
        Softmax2d=nn.Softmax2d,
        Unfold=lambda: nn.Unfold(3),
        UpsamplingNearest2d=lambda: nn.UpsamplingNearest2d(scale_factor=2),
        UpsamplingBilinear2d=lambda: nn.UpsamplingBilinear2d(scale_factor=2),
    ),
    Case("nn.MaxPool2d with overlap", _behind(_conv2, lambda: nn.MaxPool2d(3, 1)), pictures),
    Case("nn.MaxPool2d of the inputs", lambda: nn.Sequential(nn.MaxPool2d(3, 1), _conv2()), pictures),
    Case("nn.Upsample, bicubic", _behind(_conv2, lambda: nn.Upsample(scale_factor=1.5, mode="bicubic")), pictures),
    Case(
        "nn.InstanceNorm2d with running averages",
        _behind(_conv2, lambda: nn.InstanceNorm2d(4, track_running_stats=True)),
        pictures,
    ),
    Case("nn.Fold", _behind(_conv2, lambda: nn.Sequential(nn.Flatten(2), nn.Fold((9, 9), (2, 2)))), pictures),
]

OF_VOLUMES = _layers(
    _conv3,
    volumes,
    Conv3d=lambda: nn.Conv3d(4, 3, 2),
    ConvTranspose3d=lambda: nn.ConvTranspose3d(4, 2, 2),
    MaxPool3d=lambda: nn.MaxPool3d(2),
    AvgPool3d=lambda: nn.AvgPool3d(2),
    LPPool3d=lambda: nn.LPPool3d(2, 2),
    FractionalMaxPool3d=lambda: nn.FractionalMaxPool3d(2, 2),
    AdaptiveMaxPool3d=lambda: nn.AdaptiveMaxPool3d(2),
    AdaptiveAvgPool3d=lambda: nn.AdaptiveAvgPool3d(2),
    ReflectionPad3d=lambda: nn.ReflectionPad3d(1),
    ReplicationPad3d=lambda: nn.ReplicationPad3d(1),
    CircularPad3d=lambda: nn.CircularPad3d(1),
    ConstantPad3d=lambda: nn.ConstantPad3d(1, 0.5),
    ZeroPad3d=lambda: nn.ZeroPad3d(1),
    BatchNorm3d=lambda: nn.BatchNorm3d(4),
    InstanceNorm3d=lambda: nn.InstanceNorm3d(4, affine=True),
    Dropout3d=lambda: nn.Dropout3d(0.3),
)

OF_SEQUENCES = [
    *_layers(
        _dense,
        sequences,
        RNN=lambda: nn.RNN(WIDTH, 4, batch_first=True),
        LSTM=lambda: nn.LSTM(WIDTH, 4, batch_first=True),
        GRU=lambda: nn.GRU(WIDTH, 4, batch_first=True),
        MultiheadAttention=Attention,
        TransformerEncoderLayer=lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, 0.0, batch_first=True),
    ),
    Case(
        "nn.TransformerEncoderLayer with dropout",
        _behind(_dense, lambda: nn.TransformerEncoderLayer(WIDTH, 2, 8, 0.2, batch_first=True)),
        sequences,
    ),
    Case(
        "nn.MultiheadAttention with zeros and bias",
        _behind(_dense, lambda: Attention(add_zero_attn=True, add_bias_kv=True)),
        sequences,
    ),
    Case("nn.MultiheadAttention with a padding mask", Masked, tokens),
]

OF_TOKENS = [
    Case("nn.Embedding", lambda: nn.Embedding(12, WIDTH), tokens),
    Case("nn.Embedding(padding_idx=0)", lambda: nn.Embedding(12, WIDTH, padding_idx=0), tokens),
    Case("nn.Embedding(max_norm=1)", lambda: nn.Embedding(12, WIDTH, max_norm=1.0), tokens),
    Case("nn.Embedding(scale_grad_by_freq=True)", lambda: nn.Embedding(12, WIDTH, scale_grad_by_freq=True), tokens),
    Case("nn.Embedding(sparse=True)", lambda: nn.Embedding(12, WIDTH, sparse=True), tokens),
    *(
        Case(
            f"nn.EmbeddingBag(mode={mode!r}{more})",
            lambda mode=mode, padding=padding: nn.EmbeddingBag(12, WIDTH, mode=mode, padding_idx=padding),
            tokens,
        )
        for mode in ("mean", "sum", "max")
        for padding, more in ((None, ""), (0, ", padding_idx=0"))
    ),
]

# --- functions -------------------------------------------------------------------------------------------------------


def _square(h: Tensor) -> Tensor:
    return h[:, :, None] * h[:, None, :] + torch.eye(WIDTH, dtype=h.dtype)


def _grid(h: Tensor, w: Tensor) -> Tensor:
    image = w.reshape(1, 1, WIDTH, WIDTH).expand(len(h), 1, WIDTH, WIDTH)
    grid = torch.tanh(h).reshape(len(h), 2, 2, 2)
    return F.grid_sample(image, grid, align_corners=False)


def _theta_grid(h: Tensor, w: Tensor) -> Tensor:
    return F.affine_grid(h[:, :6].reshape(-1, 2, 3), [len(h), 1, 3, 3], align_corners=False) * w[0, 0]


def _put(h: Tensor, w: Tensor, accumulate: bool) -> Tensor:
    where = torch.tensor([0, 2, 2, 5])
    return torch.zeros_like(h).t().index_put((where,), (h @ w)[:, :4].t(), accumulate=accumulate).t()


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cumsum": lambda h, w: (h @ w).cumsum(1),
    "cumprod with zeros": lambda h, w: (torch.relu(h) @ w * (h > 0)).cumprod(1),
    "cummax": lambda h, w: (h @ w).cummax(1).values,
    "cummin": lambda h, w: (h @ w).cummin(1).values,
    "logcumsumexp": lambda h, w: (h @ w).logcumsumexp(1),
    "prod with zeros": lambda h, w: (torch.relu(h) @ w * (h > 0)).prod(1, keepdim=True),
    "sort": lambda h, w: (torch.relu(h) @ w).sort(1).values,
    "sort of ties": lambda h, w: torch.relu(h).sort(1).values @ w,
    "topk of ties": lambda h, w: torch.relu(h).topk(3, 1).values @ w[:3],
    "kthvalue of ties": lambda h, w: torch.relu(h).kthvalue(3, 1, keepdim=True).values * w[0],
    "median of ties": lambda h, w: torch.relu(h).median(1, keepdim=True).values * w[0],
    "mode": lambda h, w: h.round().mode(1, keepdim=True).values * w[0] + h,
    "max of ties": lambda h, w: torch.relu(h).max(1, keepdim=True).values * w[0],
    "amax of ties": lambda h, w: torch.relu(h).amax(1, keepdim=True) * w[0],
    "maximum of ties": lambda h, w: torch.maximum(torch.relu(h), torch.relu(-h)) @ w,
    "minimum of ties": lambda h, w: torch.minimum(torch.relu(h), torch.relu(-h)) @ w,
    "clamp at its bound": lambda h, w: torch.relu(h).clamp(0.0, 0.5) @ w,
    "abs at zero": lambda h, w: torch.relu(h).abs() @ w,
    "sign": lambda h, w: h * h.sign() @ w,
    "norm at zero": lambda h, w: (torch.relu(h) @ w).norm(dim=1, keepdim=True),
    "vector_norm, 1": lambda h, w: torch.linalg.vector_norm(h @ w, 1, dim=1, keepdim=True),
    "vector_norm, infinity": lambda h, w: torch.linalg.vector_norm(h @ w, torch.inf, dim=1, keepdim=True),
    "cdist": lambda h, w: torch.cdist(h, w),
    "cdist of itself": lambda h, w: torch.cdist(h, h) @ w[: len(h)],
    "pairwise_distance": lambda h, w: F.pairwise_distance(h, h @ w, keepdim=True),
    "cosine_similarity": lambda h, w: F.cosine_similarity(h[:, None], w[None], dim=-1),
    "normalize": lambda h, w: F.normalize(h, dim=1) @ w,
    "renorm": lambda h, w: h.renorm(2, 0, 1.0) @ w,
    "var": lambda h, w: (h @ w).var(1, keepdim=True),
    "std": lambda h, w: (h @ w).std(1, keepdim=True),
    "logsumexp": lambda h, w: (h @ w).logsumexp(1, keepdim=True),
    "einsum": lambda h, w: torch.einsum("ni,ij,nj->ni", h, w, h),
    "baddbmm": lambda h, w: torch.baddbmm(_square(h), _square(h), w.expand(len(h), -1, -1)),
    "addcmul": lambda h, w: torch.addcmul(h, h @ w, h, value=0.5),
    "addcdiv": lambda h, w: torch.addcdiv(h, h @ w, 2 + h.square(), value=0.5),
    "outer": lambda h, w: torch.outer(h[:, 0], w[0]),
    "cross": lambda h, w: torch.linalg.cross(h[:, :3], (h @ w)[:, :3]),
    "kron": lambda h, w: torch.kron(h, w[:1]),
    "diag_embed": lambda h, w: torch.diag_embed(h @ w),
    "tril": lambda h, w: h @ w.tril(),
    "gather": lambda h, w: (h @ w).gather(1, torch.tensor([[0, 0, 3, 3]]).expand(len(h), -1)),
    "gather by rank": lambda h, w: (h @ w).gather(1, h.argsort(1)),
    "take_along_dim": lambda h, w: torch.take_along_dim(h @ w, h.argsort(dim=1, stable=True), 1),
    "scatter": lambda h, w: torch.zeros_like(h).scatter(
        1, torch.tensor([[0, 1, 5, 2]]).expand(len(h), -1), (h @ w)[:, :4]
    ),
    "scatter_add of repeats": lambda h, w: torch.zeros_like(h).scatter_add(
        1, torch.tensor([[0, 0, 5, 5]]).expand(len(h), -1), (h @ w)[:, :4]
    ),
    "scatter_reduce, mean": lambda h, w: h.scatter_reduce(
        1, torch.tensor([[0, 0, 5, 5]]).expand(len(h), -1), (h @ w)[:, :4], "mean"
    ),
    "scatter_reduce, amax": lambda h, w: h.scatter_reduce(
        1, torch.tensor([[0, 0, 5, 5]]).expand(len(h), -1), torch.relu(h @ w)[:, :4], "amax"
    ),
    "scatter_reduce, prod": lambda h, w: h.scatter_reduce(
        1, torch.tensor([[0, 0, 5, 5]]).expand(len(h), -1), (h @ w)[:, :4], "prod"
    ),
    "index_select of repeats": lambda h, w: (h @ w).index_select(1, torch.tensor([0, 0, 3])),
    "index_add of repeats": lambda h, w: h.index_add(1, torch.tensor([0, 0, 3]), (h @ w)[:, :3]),
    "index_copy": lambda h, w: h.index_copy(1, torch.tensor([0, 2, 3]), (h @ w)[:, :3]),
    "index_fill": lambda h, w: (h @ w).index_fill(1, torch.tensor([0, 2]), 0.5),
    "index_put": lambda h, w: _put(h, w, False)[:, :2],
    "index_put, accumulate": lambda h, w: _put(h, w, True),
    "indexing with repeats": lambda h, w: (h @ w)[:, [0, 0, 3, 5]],
    "indexing with a rank": lambda h, w: w[h.argmax(1)] * h,
    "indexing with a mask": lambda h, w: (h @ w)[h > 0].sum() + h,
    "writing into a part": lambda h, w: _written(h, w),
    "masked_fill": lambda h, w: (h @ w).masked_fill(h > 0, -1.0),
    "masked_scatter": lambda h, w: h.masked_scatter(h > 0, h @ w),
    "where": lambda h, w: torch.where(h > 0, h @ w, h.square()),
    "where beside a NaN": lambda h, w: torch.where(h > 0, h.clamp(min=0).sqrt(), h) @ w,
    "roll": lambda h, w: (h @ w).roll(2, 1),
    "flip": lambda h, w: (h @ w).flip(1) * h,
    "repeat_interleave": lambda h, w: (h @ w).repeat_interleave(2, 1),
    "tile": lambda h, w: (h @ w).tile(1, 2),
    "unfold": lambda h, w: (h @ w).unfold(1, 3, 2),
    "as_strided": lambda h, w: (h @ w).as_strided((len(h), 3, 3), (WIDTH, 2, 1)),
    "pad, circular": lambda h, w: F.pad((h @ w)[:, None], (2, 2), mode="circular"),
    "cat and split": lambda h, w: torch.cat(
        [a * b for a, b in zip((h @ w).split(2, 1), h.split(2, 1), strict=True)], 1
    ),
    "grid_sample": _grid,
    "affine_grid": _theta_grid,
    "interpolate, linear": lambda h, w: F.interpolate((h @ w)[:, None], scale_factor=1.5, mode="linear"),
    "fft": lambda h, w: torch.fft.fft(h @ w).abs(),
    "rfft and irfft": lambda h, w: torch.fft.irfft(torch.fft.rfft(h @ w) * torch.fft.rfft(h)),
    "complex": lambda h, w: torch.view_as_real(torch.complex(h, h @ w) ** 2).flatten(1),
    "angle": lambda h, w: torch.complex(h, h @ w).angle(),
    "polar": lambda h, w: torch.polar(h, h @ w).real,
    "inverse": lambda h, w: torch.linalg.inv(_square(h @ w)),
    "solve": lambda h, w: torch.linalg.solve(_square(h), h @ w),
    "cholesky": lambda h, w: torch.linalg.cholesky(_square(h @ w)),
    "qr": lambda h, w: torch.linalg.qr(_square(h @ w))[1].diagonal(dim1=1, dim2=2).abs(),
    "eigvalsh": lambda h, w: torch.linalg.eigvalsh(w @ w.T) * h,
    "svdvals": lambda h, w: torch.linalg.svdvals(w) * h,
    "slogdet": lambda h, w: torch.linalg.slogdet(_square(h @ w))[1][:, None],
    "matrix_exp": lambda h, w: torch.linalg.matrix_exp(0.1 * _square(h @ w)),
    "lstsq by pinv": lambda h, w: torch.linalg.pinv(_square(h)) @ w,
    "triangular_solve": lambda h, w: (
        torch.linalg.solve_triangular(w.tril(-1) + 2 * torch.eye(WIDTH, dtype=w.dtype), h.T, upper=False).T
    ),
    "softmax of -inf": lambda h, w: (
        (h @ w).masked_fill(torch.eye(len(h), WIDTH, dtype=torch.bool), -torch.inf).softmax(1)
    ),
    "gumbel_softmax": lambda h, w: F.gumbel_softmax(h @ w, dim=1),
    "dropout": lambda h, w: F.dropout(h @ w, 0.3, True),
    "bernoulli as a mask": lambda h, w: (h @ w) * torch.bernoulli(torch.full_like(h, 0.5)),
    "randn_like as noise": lambda h, w: h @ w + torch.randn_like(h),
    "rand as noise": lambda h, w: h @ w + torch.rand(WIDTH, dtype=h.dtype),
    "normal_ in place": lambda h, w: h @ w + torch.empty(WIDTH, dtype=h.dtype).normal_(),
    "randperm": lambda h, w: (h @ w)[:, torch.randperm(WIDTH)],
    "multinomial": lambda h, w: w[torch.multinomial(h.detach().softmax(1), 1)[:, 0]] * h,
    "scaled_dot_product_attention": lambda h, w: F.scaled_dot_product_attention(
        h[:, None], (h @ w)[:, None], h[:, None]
    ),
    "attention with dropout": lambda h, w: F.scaled_dot_product_attention(
        h[None], (h @ w)[None], h[None], dropout_p=0.2
    )[0],
    "layer_norm": lambda h, w: F.layer_norm(h, (WIDTH,), w[0], w[1]),
    "batch_norm": lambda h, w: F.batch_norm(h, None, None, w[0], w[1], training=True),
    "group_norm": lambda h, w: F.group_norm(h, 2, w[0], w[1]),
    "instance_norm": lambda h, w: F.instance_norm(h.reshape(-1, 2, 4), weight=w[0, :2], bias=w[1, :2]),
    "rms_norm": lambda h, w: F.rms_norm(h, (WIDTH,), w[0]),
    "local_response_norm": lambda h, w: F.local_response_norm((h @ w)[:, :, None], 2),
    "xlogy": lambda h, w: torch.xlogy(torch.relu(h), 1 + (h @ w).square()),
    "pow at zero": lambda h, w: torch.relu(h) ** 2 @ w,
    "sqrt near zero": lambda h, w: (torch.relu(h) + 1e-3).sqrt() @ w,
    "atan2": lambda h, w: torch.atan2(h, h @ w),
    "hypot": lambda h, w: torch.hypot(h, h @ w),
    "erf": lambda h, w: torch.erf(h @ w),
    "lgamma": lambda h, w: torch.lgamma(1 + (h @ w).square()),
    "digamma": lambda h, w: torch.digamma(1 + (h @ w).square()),
    "sinc": lambda h, w: torch.sinc(h @ w),
    "logit": lambda h, w: torch.logit(torch.sigmoid(h @ w)),
    "fmod": lambda h, w: torch.fmod(h @ w, 0.7),
    "lerp": lambda h, w: torch.lerp(h, h @ w, torch.sigmoid(h)),
    "nan_to_num": lambda h, w: torch.nan_to_num(h @ w),
    "trapezoid": lambda h, w: torch.trapezoid(h @ w, dim=1)[:, None],
    "unique": lambda h, w: h @ w + h.detach().round().unique().sum(),
    "histc": lambda h, w: h @ w + torch.histc(h.detach(), 4, -1, 1).sum(),
    "bucketize": lambda h, w: w[torch.bucketize(h[:, 0].detach(), torch.tensor([-0.5, 0.0, 0.5], dtype=h.dtype))] * h,
}


def _written(h: Tensor, w: Tensor) -> Tensor:
    out = h @ w
    out = out.clone()
    out[:, 1:3] = h[:, 1:3].square()
    return out


INDEXED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "embedding": lambda w, x: F.embedding(x, w),
    "embedding, padding_idx": lambda w, x: F.embedding(x, w, padding_idx=0),
    "embedding, scale_grad_by_freq": lambda w, x: F.embedding(x, w, scale_grad_by_freq=True),
    "embedding, max_norm": lambda w, x: F.embedding(x, w, max_norm=1.0),
    "embedding_bag, mean": lambda w, x: F.embedding_bag(x, w),
    "embedding_bag, sum, padding_idx": lambda w, x: F.embedding_bag(x, w, mode="sum", padding_idx=0),
    "embedding_bag, sum, weighted": lambda w, x: F.embedding_bag(
        x, w, mode="sum", per_sample_weights=(x > 2).to(w.dtype)
    ),
    "embedding_bag, max": lambda w, x: F.embedding_bag(x, w, mode="max"),
    "w[x]": lambda w, x: w[x],
    "index_select": lambda w, x: w.index_select(0, x.reshape(-1)).reshape(*x.shape, -1),
    "one_hot and matmul": lambda w, x: F.one_hot(x, 12).to(w.dtype) @ w,
    "take": lambda w, x: w.take(x),
    "put": lambda w, x: w.put(torch.tensor([3, 3]), w[0, :2], accumulate=True)[x],
    "segments by index_add": lambda w, x: torch.zeros(12, WIDTH, dtype=w.dtype).index_add(
        0, x.reshape(-1), w[x].reshape(-1, WIDTH)
    )[x[:, 0]],
    "segments by scatter_add": lambda w, x: torch.zeros(len(x), 12, dtype=w.dtype).scatter_add(1, x, w[x].sum(-1)),
    "mean without padding": lambda w, x: (
        (w[x] * (x != 0)[..., None]).sum(1) / (x != 0).sum(1, keepdim=True).clamp(min=1)
    ),
    "softmax without padding": lambda w, x: (
        w[x].sum(-1).masked_fill(x == 0, -torch.inf).softmax(1)[..., None] * w[x]
    ).sum(1),
    "packed lengths": lambda w, x: (
        w[x].cumsum(1).gather(1, ((x != 0).sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, WIDTH))
    ),
}

CASES = (
    *LINEAR,
    *ACTIVATIONS,
    *OF_SIGNALS,
    *OF_PICTURES,
    *OF_VOLUMES,
    *OF_SEQUENCES,
    *OF_TOKENS,
    *(Case(f"torch: {name}", lambda f=f: Function(f), vectors) for name, f in FUNCTIONS.items()),
    *(Case(f"torch: {name}", lambda f=f: Indexed(f), tokens) for name, f in INDEXED.items()),
)
