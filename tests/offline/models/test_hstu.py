from __future__ import annotations

import math

import torch
from torch.nn import functional

from offline.models.hstu import HSTU, HSTUBlock


def test_block_is_pointwise_aggregated_attention() -> None:
    """Against a loop over rows, heads, queries and keys, written from the equations."""
    torch.manual_seed(0)
    heads, qk, v, length = 2, 3, 4, 5
    block = HSTUBlock(dim=6, heads=heads, qk_dim=qk, v_dim=v, length=length, dropout=0.0).eval()
    with torch.no_grad():
        block.bias.normal_()
    x = torch.randn(2, length, 6)
    present = torch.tensor([[True] * 5, [False, False, True, True, True]])
    place = torch.arange(length)
    distance = (place[:, None] - place[None]).clamp(min=0)
    mask = ((place[:, None] >= place[None]) & present[:, None])[:, None]
    found = block(x, mask, distance)
    mixed = functional.silu(block.uvqk(block.norm(x)))
    for row in range(2):
        for query in range(length):
            gathered = []
            for head in range(heads):
                q0, k0 = 2 * heads * v + head * qk, 2 * heads * v + heads * qk + head * qk
                total = torch.zeros(v)
                for key in range(query + 1):
                    if not present[row, key]:
                        continue
                    q, k = mixed[row, query, q0 : q0 + qk], mixed[row, key, k0 : k0 + qk]
                    score = q @ k / math.sqrt(qk) + block.bias[head, query - key]
                    total += functional.silu(score) / length * mixed[row, key, heads * v + head * v :][:v]
                gathered.append(total)
            u = mixed[row, query, : heads * v]
            expected = x[row, query] + block.out(block.attended_norm(torch.cat(gathered)) * u)
            torch.testing.assert_close(found[row, query], expected, atol=1e-5, rtol=1e-5)


def encoder() -> HSTU:
    torch.manual_seed(0)
    made = HSTU(dim=8, blocks=2, heads=1, qk_dim=8, v_dim=8, length=6, dropout=0.0).eval()
    with torch.no_grad():
        made.position.weight.normal_()
    return made


def test_no_position_sees_its_future() -> None:
    made, x = encoder(), torch.randn(1, 6, 8)
    present = torch.ones(1, 6, dtype=torch.bool)
    before = made(x, present)
    x[:, 4:] = torch.randn(1, 2, 8)
    after = made(x, present)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_padding_changes_nothing() -> None:
    """A sequence cut to its own length is encoded like the same sequence padded: batches may be trimmed."""
    made, x = encoder(), torch.randn(1, 6, 8)
    present = torch.tensor([[False, False, True, True, True, True]])
    torch.testing.assert_close(made(x, present)[:, 2:], made(x[:, 2:], present[:, 2:]))


def test_what_enters_and_what_each_block_adds_is_dropped() -> None:
    made = HSTU(dim=8, blocks=2, heads=1, qk_dim=8, v_dim=8, length=6, dropout=1.0)
    x, present = torch.randn(1, 6, 8), torch.ones(1, 6, dtype=torch.bool)
    assert made.eval()(x, present).all()
    assert not made.train()(x, present).any()


def test_places_start_at_the_scale_of_items() -> None:
    made = HSTU(dim=64, blocks=1, heads=1, qk_dim=8, v_dim=8, length=50, dropout=0.0)
    assert math.isclose(float(made.position.weight.detach().std()), 0.02, rel_tol=0.1)
