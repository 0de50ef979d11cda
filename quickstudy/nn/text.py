"""An encoder of short texts that needs no download: hashed subwords, compared exactly and by learned embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quickstudy.errors import ConfigError

SCALE = 5.0  # initial length of an embedding: the squared distance of unrelated texts is 2 * 25
ANGLE = 0.3  # initial angle between the two parts: the learned part is a twelfth of an inner product


def text(
    classes: int | None = None,
    *,
    buckets: int = 16384,
    words: int = 24,
    sketch: int = 4096,
    width: int = 128,
    layers: int = 0,
    heads: int = 4,
    dropout: float = 0.2,
) -> nn.Module:
    """Texts as numbers of hashed subwords, x [n, words, subwords] -> an embedding [n, d], or logits [n, classes].

        t   = sum over all subwords p of exp(g_p) sign_p onehot(p mod sketch)    same subwords: hashed TF-IDF
        e_w = sum over the subwords p of word w of exp(g_p) E_p                   similar subwords: learned in training
        h   = e + attention(e) + ..., `layers` times                            words attend to each other
        z   = s (cos a t / |t|, sin a h' / |h'|),   h' = sum_w h_w              d = sketch + width numbers

    The inner product of two texts is s^2 (cos^2 a * TF-IDF cosine + sin^2 a * learned cosine); g, E, s and a are
    learned. x comes from `qs.tasks.from_text`; 0 stands for no subword. g starts as 0, or as log idf after `set_idf`.
    In training each word is left out with probability `dropout`. Attention is off by default (`layers` 0): when
    trained on the intents of one service and tested on those of another, it did better on the first and worse on the
    second.

    Weinberger et al.: Feature Hashing for Large Scale Multitask Learning, ICML 2009, https://arxiv.org/abs/0902.2206
    (hashing keeps cosines in t). Bojanowski et al.: Enriching Word Vectors with Subword Information, TACL 2017,
    https://arxiv.org/abs/1607.04606 (subwords). Vaswani et al.: Attention Is All You Need, NeurIPS 2017,
    https://arxiv.org/abs/1706.03762 (attention).

    >>> import torch
    >>> text(buckets=50, words=4, width=8)(torch.ones(2, 4, 3, dtype=torch.int32)).shape
    torch.Size([2, 4104])

    Raises ConfigError where `heads` does not divide `width`, or a size is below its minimum.
    """
    sizes = {"buckets": buckets, "words": words, "sketch": sketch, "width": width, "heads": heads}
    if wrong := next((name for name, size in sizes.items() if size < 1), None):
        raise ConfigError(f"{wrong} must be at least 1, got {sizes[wrong]}.")
    if layers < 0 or not 0 <= dropout <= 1:
        raise ConfigError(f"layers are 0 or more, dropout is from 0 to 1; got {layers} and {dropout}.")
    if width % heads:
        raise ConfigError(f"heads={heads} must divide width={width}.")
    encoder = TextEncoder(buckets, words, sketch, width, layers, heads, dropout)
    model = nn.Sequential()
    model.add_module("encoder", encoder)
    if classes is not None:
        model.add_module("head", nn.Linear(sketch + width, classes))
    more = {"layers": layers, "dropout": dropout}
    model.architecture = {"name": "text", "classes": classes, **sizes, **more}  # type: ignore[assignment]
    return model


class TextEncoder(nn.Module):
    """x [n, words, subwords] -> [n, sketch + width], see `text`.

    The buffer `idf` keeps what `set_idf` was given: it is where the weights start, and what TF-IDF on the same training
    texts is computed from. It is zero where that was not called.
    """

    idf: Tensor  # [buckets]

    def __init__(
        self, buckets: int, words: int, sketch: int, width: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.sketch, self.dropout = sketch, nn.Dropout(dropout)
        self.subwords = nn.Embedding(buckets, width)
        self.weights = nn.Embedding(buckets, 1)
        self.places = nn.Parameter(torch.zeros(words, width))
        self.register_buffer("idf", torch.zeros(buckets))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.scale, self.angle = nn.Parameter(torch.tensor(SCALE)), nn.Parameter(torch.tensor(ANGLE))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw random embeddings of subwords, and set all other parameters to their initial values."""
        nn.init.normal_(self.subwords.weight, std=self.subwords.embedding_dim**-0.5)
        self.begin_at_idf()
        nn.init.zeros_(self.places)
        nn.init.constant_(self.scale, SCALE)
        nn.init.constant_(self.angle, ANGLE)

    @torch.no_grad()
    def set_idf(self, x: Tensor) -> None:
        """Set the weights to log idf, idf_p = 1 + log((n + 1) / (n_p + 1)).

        x [n, words, subwords] are n texts, of which n_p contain the subword p.
        """
        counts = torch.zeros(self.weights.num_embeddings)
        for one in x.flatten(1).long():
            counts[one.unique()] += 1
        self.idf.copy_(1 + ((len(x) + 1) / (counts + 1)).log())
        self.begin_at_idf()

    @torch.no_grad()
    def begin_at_idf(self) -> None:
        """Set the weights to the logarithm of the buffer `idf`; to 0 where that is not known."""
        self.weights.weight[:, 0] = torch.where(self.idf > 0, self.idf, 1.0).log()

    def forward(self, x: Tensor) -> Tensor:
        known = (x > 0).to(self.subwords.weight.dtype)  # [n, words, subwords]
        known = known * self.dropout(torch.ones_like(known[..., :1]))  # its factor 1 / (1 - p) cancels in |t|, |h'|
        weights = self.weights(x)[..., 0].exp() * known
        h = (weights[..., None, :] @ self.subwords(x))[..., 0, :]  # [n, words, width]
        there = (known.amax(2) > 0).to(known.dtype)
        for block in self.blocks:
            h = block(h, self.places[: h.shape[1]], there)
        learned = F.normalize((h * there[..., None]).sum(1), dim=1)
        same = F.normalize(self._sketched(x, weights), dim=1)
        return self.scale * torch.cat([self.angle.cos() * same, self.angle.sin() * learned], 1)

    def _sketched(self, x: Tensor, weights: Tensor) -> Tensor:
        """[n, sketch]: each subword adds its weight, with its own sign, at its hashed position."""
        subword = x.flatten(1).long()
        signed = weights.flatten(1) * (1 - 2 * (subword // self.sketch % 2))
        return torch.zeros_like(weights[:, 0, :1]).expand(-1, self.sketch).scatter_add(1, subword % self.sketch, signed)


class Block(nn.Module):
    """A Transformer layer whose two branches start at zero. It is safe under vmap and double backward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ask, self.tell = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the last layer of both branches to zero, so that they add nothing at first."""
        for layer in (self.tell, self.narrow):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, places: Tensor, there: Tensor) -> Tensor:
        """h [n, words, width]; places [words, width] encode the order; there [n, words] is 1 where there is a word."""
        h = h + self.tell(self._looked_up(self.before(h) + places, there))
        return h + self.narrow(F.gelu(self.wide(self.between(h))))

    def _looked_up(self, h: Tensor, there: Tensor) -> Tensor:
        n, words, width = h.shape
        parts = self.ask(h).reshape(n, words, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # [n, heads, words, d] each
        fit = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
        seen = (fit + (there[:, None, None, :] - 1) * 1e4).softmax(-1)
        return (seen @ value).transpose(1, 2).reshape(n, words, width)
