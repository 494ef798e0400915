"""Windows and their attention, against the definition: every token once, explicit bias and mask."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnunetv2_sam3d.network_architecture.image_encoder import WindowAttention3d
from nnunetv2_sam3d.network_architecture.windows import relative_table, window_layout

CPU = torch.device("cpu")
GRIDS = [(16, 16, 16), (8, 8, 8), (10, 14, 9), (17, 8, 5), (3, 5, 7), (1, 9, 2), (24, 4, 16)]
HEADS, HEAD_DIM = 2, 16
WIDTH = HEADS * HEAD_DIM


def make_attention(rows: int = 27, scale: float = 1.0) -> WindowAttention3d:
    torch.manual_seed(0)
    attention = WindowAttention3d(WIDTH, HEADS, rows)
    with torch.no_grad():
        for table in (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w):
            table.normal_()
        attention.lr.fill_(0.7)
        attention.qkv.weight.mul_(scale)
    return attention.eval()


def attend(attention: WindowAttention3d, tokens: Tensor, shifted: bool) -> Tensor:
    """(B, D, H, W, C) -> the same, as a block uses the layout."""
    layout = window_layout(tuple(tokens.shape[1:4]), shifted, CPU)
    windows = tokens.flatten(1, 3)[:, layout.gather].unflatten(1, (-1, layout.tokens))
    return attention(windows, layout).flatten(1, 2)[:, layout.scatter].view_as(tokens)


def axis_windows(tokens: int, shifted: bool) -> list[list[tuple[int, int, int]]]:
    """The windows along one axis: for each slot its place in the window, its token and its region in Swin's numbering.

    Slots of padding have token -1.
    """
    edge = min(8, tokens)
    padded = -(-tokens // edge) * edge
    shift = 4 if shifted and padded > edge else 0
    order = [(slot + shift) % padded for slot in range(padded)]  # torch.roll by -shift
    regions = [0 if slot < padded - edge else 1 if slot < padded - shift else 2 for slot in range(padded)]
    return [
        [
            (slot - start, order[slot] if order[slot] < tokens else -1, regions[slot] if shift else 0)
            for slot in range(start, start + edge)
        ]
        for start in range(0, padded, edge)
    ]


def rel_pos(table: Tensor) -> Tensor:
    """SAM's ``get_rel_pos`` for a window of 8: R[q, k]."""
    resized = F.interpolate(table.t()[None], size=15, mode="linear", align_corners=False)[0].t()
    return torch.stack([torch.stack([resized[q - k + 7] for k in range(8)]) for q in range(8)])


def plain_attention(attention: WindowAttention3d, tokens: Tensor, shifted: bool) -> Tensor:
    """Window by window with the whole matrix of logits; padding gets minus infinity, other regions -100."""
    out = torch.full_like(tokens, float("nan"))
    tables = [rel_pos(table) for table in (attention.rel_pos_d, attention.rel_pos_h, attention.rel_pos_w)]
    for axes in product(*(axis_windows(size, shifted) for size in tokens.shape[1:4])):
        slots = list(product(*axes))
        place = torch.tensor([[axis[0] for axis in slot] for slot in slots])
        source = torch.tensor([[axis[1] for axis in slot] for slot in slots])
        region = torch.tensor([[axis[2] for axis in slot] for slot in slots])
        real = (source >= 0).all(1)
        place, (z, y, x), region = place[real], source[real].unbind(1), region[real]
        qkv = attention.qkv(tokens[:, z, y, x]).unflatten(-1, (3, HEADS, HEAD_DIM))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # (B, heads, tokens, head_dim)
        logits = q @ k.transpose(-1, -2) / HEAD_DIM**0.5
        for axis, table in enumerate(tables):
            offsets = table[place[:, axis, None], place[None, :, axis]]  # (q, k, head_dim)
            logits = logits + attention.lr * torch.einsum("bhqc,qkc->bhqk", q, offsets)
        logits = logits - 100.0 * (region[:, None] != region[None]).any(-1)
        attended = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        out[:, z, y, x] = attention.proj(attended)
    return out


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_layout_holds_every_token_once(grid: tuple[int, int, int], shifted: bool) -> None:
    layout = window_layout(grid, shifted, CPU)
    count = grid[0] * grid[1] * grid[2]
    assert layout.size == tuple(min(8, tokens) for tokens in grid)
    assert len(layout.gather) % layout.tokens == 0
    assert torch.equal(layout.gather[layout.scatter], torch.arange(count))
    assert len(layout.scatter.unique()) == count
    padding = torch.ones(len(layout.gather), dtype=torch.bool)
    padding[layout.scatter] = False
    if layout.region is None:
        assert not padding.any()
    else:  # exactly one region for a token, none for padding
        assert torch.equal(layout.region.flatten(0, 1).sum(1), (~padding).float())


def test_regions_only_where_they_are_needed() -> None:
    assert window_layout((16, 8, 24), False, CPU).region is None
    assert window_layout((8, 8, 8), True, CPU).region is None  # a single window has no neighbour
    assert window_layout((16, 8, 8), True, CPU).region is not None
    assert window_layout((9, 8, 8), False, CPU).region is not None


def test_shifted_windows_join_neighbours() -> None:
    """Tokens 4 .. 11 of an axis share a shifted window, 0 .. 7 an unshifted one."""
    for shifted, first in ((False, 0), (True, 4)):
        layout = window_layout((16, 1, 1), shifted, CPU)
        assert layout.gather[:8].tolist() == list(range(first, first + 8))


@pytest.mark.parametrize(("grid", "rows"), [((8, 8, 8), 127), ((16, 8, 16), 27), ((10, 14, 9), 127)])
@pytest.mark.parametrize("shifted", [False, True])
def test_equals_the_definition(grid: tuple[int, int, int], shifted: bool, rows: int) -> None:
    attention = make_attention(rows)
    tokens = torch.randn(1, *grid, WIDTH)
    with torch.no_grad():
        expected = plain_attention(attention, tokens, shifted)
        torch.testing.assert_close(attend(attention, tokens, shifted), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("grid", [(3, 5, 7), (1, 9, 2), (17, 3, 5), (1, 1, 2)])
def test_equals_the_definition_on_grids_below_a_window(grid: tuple[int, int, int], shifted: bool) -> None:
    attention = make_attention()
    tokens = torch.randn(2, *grid, WIDTH)
    with torch.no_grad():
        expected = plain_attention(attention, tokens, shifted)
        torch.testing.assert_close(attend(attention, tokens, shifted), expected, rtol=0, atol=1e-5)


def test_gradients_equal_the_definition() -> None:
    attention = make_attention()
    tokens = torch.randn(1, 9, 3, 10, WIDTH)
    direction = torch.randn_like(tokens)
    ours, expected = (
        torch.autograd.grad((function(attention, tokens, True) * direction).sum(), list(attention.parameters()))
        for function in (attend, plain_attention)
    )
    for mine, plain in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, plain, rtol=0, atol=1e-5 * max(1.0, plain.abs().max().item()))


@pytest.mark.parametrize("shifted", [False, True])
def test_padding_is_not_attended_to(shifted: bool) -> None:
    """Padding slots hold a copy of token 0. Another token 0 moves nothing outside its own window."""
    grid = (10, 14, 9)
    attention = make_attention(scale=3.0)  # logits of a trained network, not of a fresh one
    tokens = torch.randn(1, *grid, WIDTH)
    other = tokens.clone()
    other[:, 0, 0, 0] = 3 * torch.randn(WIDTH)
    layout = window_layout(grid, shifted, CPU)
    window_of = torch.div(layout.scatter, layout.tokens, rounding_mode="floor").view(grid)
    elsewhere = window_of != window_of[0, 0, 0]
    with torch.no_grad():
        before, after = attend(attention, tokens, shifted), attend(attention, other, shifted)
    assert elsewhere.any() and not torch.equal(before[0, 0, 0, 0], after[0, 0, 0, 0])
    torch.testing.assert_close(after[:, elsewhere], before[:, elsewhere], rtol=0, atol=1e-6)


def test_regions_do_not_see_each_other() -> None:
    """In a shifted window that joins both ends of an axis, the far end does not reach the near one."""
    attention = make_attention(scale=3.0)
    tokens = torch.randn(1, 16, 8, 8, WIDTH)
    other = tokens.clone()
    other[:, 12:] = torch.randn(1, 4, 8, 8, WIDTH)
    with torch.no_grad():
        before, after = attend(attention, tokens, True), attend(attention, other, True)
    torch.testing.assert_close(after[:, :12], before[:, :12], rtol=0, atol=1e-6)
    assert not torch.allclose(after[:, 12:], before[:, 12:])


@pytest.mark.parametrize("rows", [15, 27, 127])
def test_table_follows_sams_rule(rows: int) -> None:
    table = torch.randn(rows, 6)
    torch.testing.assert_close(relative_table(table, 8), rel_pos(table))
    torch.testing.assert_close(relative_table(table, 3), rel_pos(table)[:3, :3])


def test_table_of_15_rows_is_taken_as_it_is() -> None:
    offsets = relative_table(torch.arange(15.0)[:, None], 8)[..., 0]
    assert offsets[0].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]  # q - k + 7
    assert offsets[7].tolist() == [14, 13, 12, 11, 10, 9, 8, 7]


def test_the_factor_of_the_positions_is_no_parameter() -> None:
    attention = make_attention()
    assert "lr" in attention.state_dict() and "lr" not in dict(attention.named_parameters())
