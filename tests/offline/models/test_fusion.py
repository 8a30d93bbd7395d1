from __future__ import annotations

import math

import torch
from torch.nn import functional

from offline.models.fusion import Adapter, Fusion, info_nce


def test_adapter_is_equations_1_and_2() -> None:
    torch.manual_seed(0)
    adapter = Adapter(steps=5, width=12, dim=8)
    reasoning = torch.randn(3, 5, 12)
    found = adapter(reasoning)
    for step in range(5):
        projected = reasoning[:, step] @ adapter.project.weight.T + adapter.project.bias
        mean, variance = projected.mean(1, keepdim=True), projected.var(1, keepdim=True, unbiased=False)
        normed = (projected - mean) / (variance + adapter.norm.eps).sqrt()
        torch.testing.assert_close(found[:, step], normed + adapter.position[step], atol=1e-5, rtol=1e-5)


def test_fusion_is_equations_3_to_5() -> None:
    torch.manual_seed(0)
    fusion = Fusion(dim=8, heads=2, dropout=0.0, gate_bias=0.5).eval()
    sequence, steps = torch.randn(3, 6, 8), torch.randn(3, 5, 8)
    found = fusion(sequence, steps, torch.tensor([True, True, True]))[0]
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    key, value = fusion.key_value.weight.chunk(2)
    key_bias, value_bias = fusion.key_value.bias.chunk(2)
    with torch.no_grad():
        reference.in_proj_weight.copy_(torch.cat([fusion.query.weight, key, value]))
        reference.in_proj_bias.copy_(torch.cat([fusion.query.bias, key_bias, value_bias]))
        reference.out_proj.load_state_dict(fusion.out.state_dict())
    attended, weights = reference(sequence, steps, steps)
    gate = torch.sigmoid(torch.cat([sequence, attended], -1) @ fusion.gate.weight.T + fusion.gate.bias)
    mixed = gate * sequence + (1 - gate) * attended
    assert isinstance(fusion.norm, torch.nn.LayerNorm)
    expected = functional.layer_norm(mixed, (8,), fusion.norm.weight, fusion.norm.bias)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    again, attention = fusion(sequence, steps, torch.tensor([True, False, True]))
    torch.testing.assert_close(again[0], found[0])
    torch.testing.assert_close(attention[::2], weights[::2, -1], atol=1e-5, rtol=1e-5)  # averaged over heads by torch
    assert not attention[1].any()


def test_without_reasoning_the_steps_have_no_effect() -> None:
    torch.manual_seed(0)
    fusion = Fusion(dim=50, heads=4, dropout=0.0, gate_bias=0.0).eval()
    sequence = torch.randn(2, 6, 50)
    has = torch.tensor([False, True])
    one = fusion(sequence, torch.randn(2, 5, 50), has)[0]
    other = fusion(sequence, torch.randn(2, 5, 50) * 100, has)[0]
    torch.testing.assert_close(one[0], other[0])
    torch.testing.assert_close(one[0], fusion.norm(sequence[0]))
    assert not torch.allclose(one[1], other[1])


def test_the_order_of_steps_matters_and_only_through_their_positions() -> None:
    torch.manual_seed(0)
    adapter, fusion = Adapter(5, 12, 8), Fusion(8, 2, 0.0, 0.0).eval()
    sequence, reasoning, has = torch.randn(2, 6, 8), torch.randn(2, 5, 12), torch.tensor([True, True])
    forward = fusion(sequence, adapter(reasoning), has)[0]
    backward = fusion(sequence, adapter(reasoning.flip(1)), has)[0]
    assert not torch.allclose(forward, backward, atol=1e-4)
    with torch.no_grad():
        adapter.position.zero_()
    torch.testing.assert_close(
        fusion(sequence, adapter(reasoning), has)[0], fusion(sequence, adapter(reasoning.flip(1)), has)[0]
    )


def test_info_nce_is_equation_6() -> None:
    torch.manual_seed(0)
    step, items = torch.randn(4, 8), torch.randn(4, 8)
    targets = torch.tensor([3, 7, 9, 1])
    total = 0.0
    for i in range(4):
        likeness = [math.exp(float(functional.cosine_similarity(step[i], items[j], dim=0)) / 0.2) for j in range(4)]
        total -= math.log(likeness[i] / sum(likeness))
    assert math.isclose(float(info_nce(step, items, targets, 0.2)), total / 4, rel_tol=1e-5)


def test_another_row_with_the_same_target_is_no_negative() -> None:
    torch.manual_seed(0)
    step, items = torch.randn(3, 8), torch.randn(3, 8)
    items[1] = items[0]
    both = info_nce(step, items, torch.tensor([5, 5, 2]), 0.1)
    pairs = [
        info_nce(step[[0, 2]], items[[0, 2]], torch.tensor([5, 2]), 0.1),
        info_nce(step[[1, 2]], items[[1, 2]], torch.tensor([5, 2]), 0.1),
    ]
    likeness = functional.normalize(step, dim=1) @ functional.normalize(items, dim=1).T / 0.1
    rows = [
        -functional.log_softmax(likeness[0, [0, 2]], 0)[0],
        -functional.log_softmax(likeness[1, [1, 2]], 0)[0],
        -functional.log_softmax(likeness[2], 0)[2],
    ]
    torch.testing.assert_close(both, torch.stack(rows).mean())
    assert all(torch.isfinite(p) for p in pairs)


def test_without_positions_all_other_weights_start_the_same() -> None:
    torch.manual_seed(0)
    told, after = Adapter(5, 12, 8), torch.randn(3)
    torch.manual_seed(0)
    untold, after_all = Adapter(5, 12, 8, position=False), torch.randn(3)
    torch.testing.assert_close(after, after_all, rtol=0, atol=0)
    torch.testing.assert_close(told.project.weight, untold.project.weight, rtol=0, atol=0)
    assert told.position.any()
    assert not untold.position.any()
    assert [told.position.requires_grad, untold.position.requires_grad] == [True, False]


def test_attention_is_dropped_in_training_and_shown_whole() -> None:
    torch.manual_seed(0)
    fusion, sequence, steps = Fusion(8, 2, dropout=1.0, gate_bias=-1.5), torch.randn(2, 6, 8), torch.randn(2, 5, 8)
    assert (fusion.gate.bias == -1.5).all()
    for training in (False, True):
        attended, weights = fusion.train(training).attend(sequence, steps)
        assert torch.equal(attended, fusion.out.bias.expand_as(attended)) is training
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 6))
