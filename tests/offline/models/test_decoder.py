from __future__ import annotations

import torch

from offline.models.decoder import Cache, Decoder


def decoder() -> Decoder:
    torch.manual_seed(0)
    made = Decoder(levels=4, codebook=7, layers=2, heads=2, dim=16, ff=24, memory_dim=10, dropout=0.0).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.4)
    return made


def test_cached_steps_equal_teacher_forcing() -> None:
    made = decoder()
    sequence = torch.randn(3, 6, 10)
    present = torch.ones(3, 6, dtype=torch.bool)
    present[1, :4] = False
    codes = torch.randint(0, 7, (3, 1, 4))
    with torch.no_grad():
        expected = made.train_logits(sequence, present, torch.tensor([5]), codes)
        memory, visible, cache = made.memory(sequence), present[:, None, None, :], None
        token = made.start(sequence[:, -1:])
        for level in range(4):
            logits, cache = made.step(token, level, memory, visible, cache)
            torch.testing.assert_close(logits, expected[level], atol=1e-5, rtol=1e-5)
            if level < 3:
                token = made.codes[level](codes[:, :, level])
    grown: Cache | None = cache
    assert grown is not None
    assert grown[0][0].shape == (3, 1, 4, 16)


def test_a_level_does_not_see_the_codes_it_has_to_write() -> None:
    made = decoder()
    sequence, present = torch.randn(2, 6, 10), torch.ones(2, 6, dtype=torch.bool)
    at, codes = torch.tensor([2, 5]), torch.randint(0, 7, (2, 2, 4))
    with torch.no_grad():
        before = made.train_logits(sequence, present, at, codes)
        for level in range(4):
            changed = codes.clone()
            changed[:, :, level:] = (changed[:, :, level:] + 1) % 7
            after = made.train_logits(sequence, present, at, changed)
            for known in range(level + 1):
                torch.testing.assert_close(before[known], after[known])
            if level < 3:
                assert not torch.allclose(before[level + 1], after[level + 1])


def test_a_position_does_not_see_what_comes_after_it() -> None:
    made = decoder()
    sequence, present = torch.randn(2, 6, 10), torch.ones(2, 6, dtype=torch.bool)
    at, codes = torch.tensor([1, 3]), torch.randint(0, 7, (2, 2, 4))
    with torch.no_grad():
        before = made.train_logits(sequence, present, at, codes)
        later = sequence.clone()
        later[:, 2:] += 1
        after = made.train_logits(later, present, at, codes)
    for level in range(4):
        torch.testing.assert_close(before[level][:, 0], after[level][:, 0])
        assert not torch.allclose(before[level][:, 1], after[level][:, 1])
