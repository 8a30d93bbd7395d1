from __future__ import annotations

import pytest
import torch
from torch import nn

from offline.models.sasrec import SASRec, SASRecBlock


def encoder() -> SASRec:
    torch.manual_seed(0)
    made = SASRec(dim=8, blocks=2, heads=3, ff=12, length=6, dropout=0.0).eval()
    with torch.no_grad():
        made.position.weight.normal_()
    return made


def test_a_block_is_a_transformer_layer() -> None:
    """Against torch's own, with the same weights."""
    torch.manual_seed(0)
    block = SASRecBlock(dim=12, heads=3, ff=20, dropout=0.0)
    reference = nn.TransformerEncoderLayer(12, 3, 20, dropout=0.0, batch_first=True, norm_first=True)
    reference.load_state_dict(
        {
            "self_attn.in_proj_weight": block.qkv.weight,
            "self_attn.in_proj_bias": block.qkv.bias,
            **{f"self_attn.out_proj.{k}": v for k, v in block.out.state_dict().items()},
            **{f"norm1.{k}": v for k, v in block.norm.state_dict().items()},
            **{f"norm2.{k}": v for k, v in block.ff_norm.state_dict().items()},
            **{f"linear1.{k}": v for k, v in block.ff_in.state_dict().items()},
            **{f"linear2.{k}": v for k, v in block.ff_out.state_dict().items()},
        }
    )
    x = torch.randn(2, 5, 12)
    causal = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(block(x, causal[None, None]), reference(x, src_mask=~causal), atol=1e-5, rtol=1e-5)


def test_no_position_sees_its_future() -> None:
    made, x = encoder(), torch.randn(1, 6, 8)
    present = torch.ones(1, 6, dtype=torch.bool)
    before = made(x, present)
    x[:, 4:] = torch.randn(1, 2, 8)
    after = made(x, present)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@pytest.mark.parametrize("cut", [1, 2])
def test_padding_changes_nothing(cut: int) -> None:
    """A sequence cut to its own length is encoded like the same sequence padded: batches may be trimmed."""
    made, x = encoder(), torch.randn(1, 6, 8)
    present = torch.tensor([[False, False, True, True, True, True]])
    torch.testing.assert_close(made(x, present)[:, 2:], made(x[:, cut:], present[:, cut:])[:, 2 - cut :])


def test_an_empty_history_is_encoded_as_something() -> None:
    made = encoder()
    assert torch.isfinite(made(torch.randn(1, 6, 8), torch.zeros(1, 6, dtype=torch.bool))).all()
