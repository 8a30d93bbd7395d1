"""Trie-constrained beam search, unrolled over the levels: no loop operator survives in the exported graph.

Scores are log-probabilities normalised over a node's *valid* children, so p(item | sequence) sums to 1 over the
catalogue and a level with one way to go costs nothing. Excluded items are masked at the leaf, and so is every prefix
all of whose items are excluded, before the beam is cut: a beam of N therefore returns N items whenever N are left.

A filter comes as one bit per node of the trie: what it leaves nothing of is masked in the same way, and only
candidates are looked up. Scores stay normalised over the children of the whole trie, whatever is masked.

The leaves can be ordered, and cut, by a mixture of log p and the product of query and item vector. The two are trained
on the same items by different losses and err on different ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offline.models.decoder import Cache, Memory, SidDecoder
from offline.recipe import PLAIN_SEARCH, SearchRecipe
from offline.trie import Trie

MISSING = -torch.inf


class TrieTables(nn.Module):
    """The trie as constant tensors; see `offline.trie.Level` for their meaning."""

    def __init__(self, trie: Trie) -> None:
        super().__init__()
        self.depth = len(trie.levels)
        self.fanout = [level.fanout for level in trie.levels]
        self.sizes = [len(level) for level in trie.levels]
        for number, level in enumerate(trie.levels):
            for name in ("code", "parent", "first", "start", "leaves"):
                self.register_buffer(f"{name}{number}", torch.from_numpy(getattr(level, name)), persistent=False)
        self.starts = [sum(self.sizes[:level]) for level in range(self.depth)]  # of each level, all nodes in one row
        self.bits: Tensor
        bits = torch.arange(256)[:, None] >> torch.arange(8) & 1  # [256, 8], least significant first
        self.register_buffer("bits", bits.flatten() > 0, persistent=False)
        self.item: Tensor
        self.path: Tensor
        self.register_buffer("item", torch.from_numpy(trie.item), persistent=False)
        self.register_buffer("path", torch.from_numpy(trie.path), persistent=False)

    def children_of(self, level: int, node: Tensor) -> tuple[Tensor, Tensor]:
        """Children at `level` of nodes [...] of the level above: int64 and bool [..., F], False where there is none."""
        first = self.table("first", level)
        child = first[node][..., None] + torch.arange(self.fanout[level], device=node.device)
        return child.clamp(max=self.sizes[level] - 1), child < first[node + 1][..., None]

    def alive(self, level: int, node: Tensor, allowed: Tensor) -> Tensor:
        """Bits of nodes [B, C] of a level in a packed mask uint8 [B, A], bool [B, C].

        Node n of the whole trie, levels one after the other, is bit n % 8 of byte n // 8. Beyond the end of a mask its
        last byte repeats, so that the one byte 0xFF allows everything.
        """
        place = node + self.starts[level]
        # Not `place // 8`, which exports as ten operators; a double holds every node exactly.
        byte = (place.double() / 8).long()
        packed = allowed.gather(1, byte.clamp(max=allowed.shape[1] - 1)).long()
        return torch.take(self.bits, place + 8 * (packed - byte))  # 8 * packed + place % 8

    def table(self, name: str, level: int) -> Tensor:
        """One level's table by name."""
        return getattr(self, f"{name}{level}")


@dataclass(frozen=True, slots=True)
class Beam:
    """The best items found.

    `bound` is the highest log p of any prefix that was pruned on the way, and where scores are log p, of any item: the
    first k are then provably the exact top k as soon as the k-th score is not below it.
    """

    items: Tensor  # int64 [B, N], 0 where not valid
    scores: Tensor  # float32 [B, N], descending
    valid: Tensor  # bool [B, N]
    bound: Tensor  # float32 [B]


def beam_search(
    decoder: SidDecoder,
    tables: TrieTables,
    sequence: Tensor,
    present: Tensor,
    exclude: Tensor,
    query: Tensor,
    vectors: Sequence[Tensor] | None,
    width: int,
    search: SearchRecipe = PLAIN_SEARCH,
    allowed: Tensor | None = None,
) -> Beam:
    """The `width` best items after encoder outputs `sequence` [B, T, d].

    present bool [B, T]; exclude int64 [B, E], item indices that must not be returned, 0 for none; query [B, q] and the
    vectors of the trie's nodes that it is compared with, by level, [n, q] each, if the model has any; `search`, how
    many times the width the first levels keep, and w in

        score(i) = (1 - w) log p(i) + w q . v_i

    by which the last level is cut and ordered, and for which there have to be vectors; allowed uint8 [B, A], the nodes
    that may be entered (see `TrieTables.alive`). Which of them lead to an item is for the caller to say: the beam does
    not look ahead.
    """
    memory: Memory = decoder.memory(sequence)
    visible = present[:, None, None, :] | (
        torch.arange(present.shape[1], device=present.device) == present.shape[1] - 1
    )
    dead = _dead_nodes(tables, exclude)
    node = torch.zeros_like(exclude[:, :0]).sum(1, keepdim=True)  # [B, 1], the root
    score = torch.zeros_like(node, dtype=sequence.dtype)
    token = decoder.begin(sequence)  # [B, 1, dim]
    cache: Cache | None = None
    bound = torch.full_like(score[:, 0], MISSING)
    for level in range(tables.depth):
        logits, cache = decoder.step(token, level, memory, visible, cache)  # [B, W, codebook]
        children, child_scores, near = child_log_probabilities(
            tables, level, node, logits, vectors[level] if vectors is not None else None, query
        )  # [B, W, F]
        reached = score[:, :, None] + child_scores  # [B, W, F]
        mixes = bool(search.rerank) and level + 1 == tables.depth
        if mixes:
            assert near is not None  # a leaf's vector is its item's
            mixed = (1 - search.rerank) * reached + search.rerank * near
            reached = torch.where(reached > MISSING, mixed, MISSING)
        reached = reached.flatten(1)  # [B, W * F]
        reached = _mask_dead(tables, level, node, reached, dead[level])
        if allowed is not None:
            reached = torch.where(tables.alive(level, children.flatten(1), allowed), reached, MISSING)
        wanted = width * search.widen[level] if level < min(len(search.widen), tables.depth - 1) else width
        keep = min(wanted, tables.sizes[level], reached.shape[1])
        best, place = torch.topk(reached, min(keep + 1, reached.shape[1]), dim=1)
        if best.shape[1] > keep and not mixes:
            bound = torch.maximum(bound, best[:, keep])
        score, place = best[:, :keep], place[:, :keep]
        node = children.flatten(1).gather(1, place)  # [B, W']
        if level + 1 < tables.depth:
            parent = place // tables.fanout[level]  # [B, W']
            cache = [(_follow(key, parent), _follow(value, parent)) for key, value in cache]
            token = decoder.token(level, tables.table("code", level)[node])
    valid = score > MISSING
    items = torch.where(valid, tables.item[node], 0)
    return _pad(Beam(items, score, valid, bound), width)


def child_log_probabilities(
    tables: TrieTables, level: int, node: Tensor, logits: Tensor, vectors: Tensor | None, query: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Children of `node` [..., W], their log-probabilities, and the products of query and vectors, all [..., W, F].

    Absent children score -inf. There are no products where there are no vectors.

    A child's logit is the decoder's for its code (logits [..., W, codebook]) plus the product of the query [..., q]
    with the child's vector (vectors [n, q]). The first term generalises over items that share codes, the
    second tells the very items apart; a model that knows items by nothing but their codes has no second term.
    """
    child, exists = tables.children_of(level, node)
    scores = logits.gather(-1, tables.table("code", level)[child])
    near: Tensor | None = None
    if vectors is not None:
        near = (vectors[child] @ query[..., None, :, None]).squeeze(-1)
        scores = scores + near
    return child, torch.log_softmax(scores.masked_fill(~exists, MISSING), dim=-1), near


def _dead_nodes(tables: TrieTables, exclude: Tensor) -> list[Tensor]:
    """Per level, nodes whose items are all excluded, int64 [B, E + 1]; -1 where an excluded item begins none.

    The leaves beneath a node are consecutive. So, in the sorted list of excluded leaves without repetition, a node is
    dead where its first leaf stands and its last leaf stands just as many places further on: E log E, however many
    items are excluded.
    """
    end = tables.sizes[-1]  # beyond all leaves: stands for "nothing" and for repetitions
    leaf = torch.where(exclude > 0, tables.path[exclude, -1], end)
    leaf = torch.cat([leaf, torch.full_like(exclude.sum(1, keepdim=True), end)], dim=1).sort(dim=1).values
    repeated = torch.cat([torch.zeros_like(leaf[:, :1]), (leaf[:, 1:] == leaf[:, :-1]).long()], dim=1) > 0
    leaf = torch.where(repeated, end, leaf).sort(dim=1).values  # [B, E + 1]
    place = torch.arange(leaf.shape[1], device=leaf.device)
    path = tables.path[tables.item[leaf.clamp(max=end - 1)]]  # [B, E + 1, L]
    dead: list[Tensor] = []
    for level in range(tables.depth):
        node = path[:, :, level]
        leaves = tables.table("leaves", level)[node]
        last = place + leaves - 1
        begins = (leaf < end) & (leaf == tables.table("start", level)[node]) & (last < leaf.shape[1])
        full = leaf.gather(1, last.clamp(max=leaf.shape[1] - 1)) == leaf + leaves - 1
        dead.append(torch.where(begins & full, node, -1))
    return dead


def _mask_dead(tables: TrieTables, level: int, node: Tensor, reached: Tensor, dead: Tensor) -> Tensor:
    """`reached` [B, W * F] with -inf where a candidate is a dead node."""
    fanout = tables.fanout[level]
    known = dead.clamp(min=0)
    parent = tables.table("parent", level)[known]  # [B, E]
    offset = known - tables.table("first", level)[parent]  # [B, E], the dead node's slot beneath its parent
    beam = torch.arange(node.shape[1], device=node.device)[None, :, None] * fanout  # [1, W, 1]
    hit = (node[:, :, None] == parent[:, None, :]) & (dead >= 0)[:, None, :]  # [B, W, E]
    spare = reached.shape[1]  # one column more takes the writes that mask nothing
    slot = torch.where(hit, beam + offset[:, None, :], spare).flatten(1)  # [B, W * E]
    widened = torch.cat([reached, reached[:, :1]], dim=1)
    return widened.scatter(1, slot, torch.full_like(slot, MISSING, dtype=reached.dtype))[:, :spare]


def _follow(cached: Tensor, parent: Tensor) -> Tensor:
    """Each surviving beam takes over its parent's tokens: [B, W, S, dim] by parent [B, W'] -> [B, W', S, dim]."""
    index = parent[:, :, None, None].expand(-1, -1, cached.shape[2], cached.shape[3])
    return cached.gather(1, index)


def _pad(beam: Beam, width: int) -> Beam:
    """A catalogue smaller than the beam still answers with `width` columns."""
    short = width - beam.items.shape[1]
    if short <= 0:
        return beam
    pad = nn.functional.pad
    return Beam(
        pad(beam.items, (0, short)),
        pad(beam.scores, (0, short), value=MISSING),
        pad(beam.valid, (0, short)),
        beam.bound,
    )
