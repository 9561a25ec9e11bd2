"""Attention-only models with weights written down, not trained: what each head does is known.

- :func:`induction_model`: 2 layers × 3 heads. 0:0 looks at the previous token and passes it on; 0:1
  looks at the current token and predicts its successor in a table; 1:1 is an induction head, whose
  keys read what 0:0 wrote; the others are idle.
- :func:`bracket_model`: 3 layers. 0:0 counts the depth; the heads of layer 1 compare it with 1, 2,
  …; 2:0 looks at the innermost open bracket and predicts its counterpart.

Every feature of the residual stream is a pair of coordinates (+a, −a), so that LayerNorm's mean is
0. A large constant feature, the ballast, holds its norm constant to 1e-3, and the scales of the
LayerNorms undo the division. So heads read the residual stream as it is, and attention is 0 or 1 up
to e^−SHARP.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rllc.models import AttentionOnly, AttentionOnlyConfig

BOS = 0
"""Every row must begin with it and have it nowhere else. Heads with nothing to look at rest on
it."""
SHARP = 30.0
"""Difference of attention scores between where a head looks and where it does not."""
LOGIT = 12.0
"""Logit of a predicted token; all others have 0."""
BALLAST = 100.0

ROLES = {
    "0:0": "previous token",
    "0:1": "current token",
    "1:1": "induction",
}
"""Heads of :func:`induction_model`; the others have no attention of their own and write nothing."""


class Space:
    """Named features of the residual stream.

    Positions have coordinates of their own, which only Q and K see.
    """

    def __init__(self, n_ctx: int, **sizes: int) -> None:
        self.n_ctx = n_ctx
        self.sizes = sizes | {"ballast": 1}
        self.start = {}
        self.positions = 0
        for name, size in self.sizes.items():
            self.start[name] = self.positions
            self.positions += 2 * size
        self.d_model = self.positions + n_ctx

    def write(self, name: str) -> Tensor:
        """``[size, d_model]``: what has to be added to the stream to set each feature to 1."""
        size = self.sizes[name]
        out = torch.zeros(size, self.d_model)
        for i in range(size):
            plus = self.start[name] + 2 * i
            out[i, plus] = 1.0
            out[i, plus + 1] = -1.0
        return out

    def read(self, name: str) -> Tensor:
        """``[d_model, size]``: gives each feature's value."""
        return self.write(name).T / 2

    def position(self) -> Tensor:
        """``[d_model, n_ctx]``: gives the position, one-hot."""
        out = torch.zeros(self.d_model, self.n_ctx)
        out[self.positions :] = torch.eye(self.n_ctx)
        return out


def induction_model(
    d_vocab: int = 12,
    n_ctx: int = 24,
    bigrams: Mapping[int, int] | None = None,
    n_heads: int = 3,
) -> AttentionOnly:
    """A previous-token, a current-token and an induction head; see the module.

    Args:
        bigrams: token to what the current-token head predicts after it; ``None``: it writes
            nothing.
    """
    space = Space(
        n_ctx,
        token=d_vocab,
        previous=d_vocab,
        out=d_vocab,
    )
    model = idle_model(
        space,
        n_layers=2,
        n_heads=n_heads,
        d_head=max(n_ctx, d_vocab + 1),
        d_vocab=d_vocab,
    )
    token = space.read("token")
    position = space.position()
    one_back = torch.zeros(n_ctx, n_ctx)
    one_back[0, 0] = 1.0
    one_back[1:, :-1] += torch.eye(n_ctx - 1)
    write_head(
        model,
        "0:0",
        Q=position @ one_back,
        K=position,
        V=token,
        O=space.write("previous"),
    )
    table = torch.zeros(d_vocab, d_vocab)
    for first, second in (bigrams or {}).items():
        table[first, second] = 1.0
    write_head(
        model,
        "0:1",
        Q=position,
        K=position,
        V=token,
        O=table @ space.write("out"),
    )
    words = token.clone()
    words[:, BOS] = 0.0
    rest = 0.5 * position[:, :1]  # at BOS, when there is nothing to continue
    write_head(
        model,
        "1:1",
        Q=token,
        K=torch.cat([space.read("previous"), rest], 1),
        V=words,
        O=space.write("out"),
        b_Q=torch.eye(d_vocab + 1)[d_vocab],
    )
    return model


def repeats(
    num_rows: int = 6,
    segment: int = 9,
    d_vocab: int = 12,
    seed: int = 0,
) -> Tensor:
    """Rows of BOS and a random segment of distinct tokens, twice: ``[row, 1 + 2·segment]``."""
    stream = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(num_rows):
        once = 1 + torch.randperm(d_vocab - 1, generator=stream)[:segment]
        rows.append(torch.cat([torch.tensor([BOS]), once, once]))
    return torch.stack(rows)


def bracket_model(
    types: int = 2,
    max_depth: int = 3,
    n_ctx: int = 24,
) -> AttentionOnly:
    """A model of Dyck words: ids 1 … types open, types + 1 … 2·types close; see the module.

    0:0 rests on BOS with weight 1 − O(k/M), M = 1e4. So what it adds up over the row, +1 for every
    opening and −1 for every closing bracket, is M times its output, to a relative k/M.
    """
    d_vocab, heads = 1 + 2 * types, max_depth
    space = Space(
        n_ctx,
        token=d_vocab,
        depth=1,
        at_least=max_depth,
        out=d_vocab,
    )
    model = idle_model(
        space,
        n_layers=3,
        n_heads=heads,
        d_head=max(types, max_depth + 1),
        d_vocab=d_vocab,
    )
    token, first = space.read("token"), space.position()[:, :1]
    opens, closes = token[:, 1 : types + 1], token[:, types + 1 :]
    many = 1e4
    sign = opens.sum(1, keepdim=True) - closes.sum(1, keepdim=True)
    one = torch.ones(1)
    write_head(
        model,
        "0:0",
        K=first,
        V=sign,
        O=many * space.write("depth"),
        b_Q=torch.log(many * one) / SHARP,
    )
    # 1:i writes 1 if the depth is at least i + 1: it attends to BOS by the sign of depth − i − ½.
    for i in range(max_depth):
        write_head(
            model,
            f"1:{i}",
            Q=3 * space.read("depth"),
            K=first,
            V=token[:, :1],
            O=space.write("at_least")[i : i + 1],
            b_Q=-3 * (i + 0.5) * one,
        )
    at_least = space.read("at_least")
    exactly = at_least.clone()
    exactly[:, :-1] -= at_least[:, 1:]
    exactly_key = exactly.clone()
    # At BOS every head of layer 1 sees only BOS, as if the depth were the largest.
    exactly_key[:, -1:] -= first
    # The score of key j is match·(same depth) + match·(opens) + j, and 1.5 match at BOS.
    match = 2.5 * n_ctx
    late = space.position() @ torch.arange(n_ctx, dtype=torch.float32)[:, None]
    bonus = match * opens.sum(1, keepdim=True) + late + 1.5 * match * first
    write_head(
        model,
        "2:0",
        Q=match * exactly,
        K=torch.cat([exactly_key, bonus], 1),
        V=opens,
        O=space.write("out")[types + 1 :],
        b_Q=torch.eye(max_depth + 1)[max_depth],
    )
    return model


def bracket_rows(
    num_rows: int = 6,
    pos: int = 24,
    types: int = 2,
    max_depth: int = 3,
    seed: int = 0,
) -> Tensor:
    """Random prefixes of Dyck words of bounded depth, after BOS: ``[row, pos]``."""
    stream = torch.Generator().manual_seed(seed)
    rows = torch.full((num_rows, pos), BOS)
    for row in rows:
        stack: list[int] = []
        for k in range(1, pos):
            chance, kind = torch.rand(2, generator=stream).tolist()
            closes = chance < 0.5 or len(stack) == max_depth
            if stack and closes:
                row[k] = types + stack.pop()
            else:
                stack.append(1 + int(kind * types))
                row[k] = stack[-1]
    return rows


def innermost(row: Tensor, types: int = 2) -> list[int]:
    """The position of the innermost bracket that is open after each position, or 0 (BOS)."""
    stack = [0]
    positions = []
    for k, token in enumerate(row.tolist()):
        if 1 <= token <= types:
            stack.append(k)
        elif token > types:
            stack.pop()
        positions.append(stack[-1])
    return positions


def idle_model(space: Space, **sizes: int) -> AttentionOnly:
    """A model whose heads write nothing and whose logits read the feature ``out``."""
    config = AttentionOnlyConfig(d_model=space.d_model, n_ctx=space.n_ctx, **sizes)
    with torch.random.fork_rng(devices=[]):
        model = AttentionOnly(config).eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    variance = 2 * (1 + BALLAST**2) / space.d_model
    scale = (variance + config.layer_norm_eps) ** 0.5
    for norm in (*(block.ln1 for block in model.blocks), model.ln_final):
        norm.w.data.fill_(scale)
    model.embed.W_E.data = space.write("token") + BALLAST * space.write("ballast")
    model.pos_embed.W_pos.data = space.position().T.contiguous()
    model.unembed.W_U.data = LOGIT * space.read("out")
    return model


def write_head(model: AttentionOnly, head: str, **parts: Tensor) -> None:
    """Write matrices of a head, in as many of its dimensions as they have.

    Attention scores are in units of SHARP.
    """
    layer, number = (int(part) for part in head.split(":"))
    attn = model.blocks[layer].attn
    scale = SHARP * model.config.d_head**0.5
    for name, value in parts.items():
        if name in ("Q", "b_Q"):
            value = scale * value
        if name == "b_Q":
            attn.b_Q.data[number, : len(value)] = value
        elif name == "O":
            attn.W_O.data[number, : len(value)] = value
        else:
            getattr(attn, f"W_{name}").data[number, :, : value.shape[1]] = value
