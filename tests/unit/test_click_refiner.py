"""The refiner of clicked results and the ways from the clicks that it is shown."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from nnunetv2_sam3d.network_architecture import SAM3D
from nnunetv2_sam3d.network_architecture.click_refiner import ClickRefiner3d
from nnunetv2_sam3d.network_architecture.click_ways import STEP, UNREACHED, cheapest_ways

Make = Callable[..., SAM3D]
GRID = (5, 8, 6)


def rough_image(grid: tuple[int, ...] = GRID) -> Tensor:
    return torch.randn(1, 1, *grid, generator=torch.Generator().manual_seed(1))


def by_dijkstra(image: Tensor, sources: list[tuple[int, int, int]]) -> np.ndarray:
    """The same costs on the graph of neighbouring voxels."""
    padded = np.pad(image[0, 0].numpy(), 1, mode="edge")
    gray = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3)).mean((3, 4, 5))
    number = np.arange(gray.size).reshape(gray.shape)
    pairs = [(np.delete(number, -1, axis).ravel(), np.delete(number, 0, axis).ravel()) for axis in range(3)]
    one, two = (np.concatenate(side) for side in zip(*pairs, strict=True))
    costs = np.abs(gray.ravel()[one] - gray.ravel()[two]) + STEP
    graph = coo_matrix((costs, (one, two)), (gray.size, gray.size))
    starts = [np.ravel_multi_index(source, gray.shape) for source in sources]
    return dijkstra(graph, directed=False, indices=starts, min_only=True).reshape(gray.shape)


def test_ways_are_those_of_dijkstra() -> None:
    """The worst image for sweeps along axes is noise, in which the cheapest way turns all the time."""
    image, clicks = rough_image(), [(0, 0, 0), (4, 3, 5)]
    expected = by_dijkstra(image, clicks)
    points, signs = torch.tensor([clicks], dtype=torch.float32), torch.ones(1, 2)
    np.testing.assert_allclose(cheapest_ways(image, points, GRID, signs, rounds=12)[0, 0], expected, atol=1e-5)
    found = cheapest_ways(image, points, GRID, signs)[0, 0].numpy()
    assert (found > expected - 1e-5).all()
    assert (found - expected).mean() < 0.01 * expected.mean()


def test_ways_stay_on_the_clicked_side_of_an_edge() -> None:
    image = torch.zeros(1, 1, 8, 8, 16)
    image[..., 8:] = 3.0
    points = torch.tensor([[[4.0, 4.0, 2.0], [4.0, 4.0, 13.0]]])
    fore, back = cheapest_ways(image, points, image.shape[2:], torch.tensor([[1.0, -1.0]]))[0]
    assert fore[:, :, :7].max() < 0.5 < 2.5 < fore[:, :, 9:].min()
    assert back[:, :, 9:].max() < 0.5 < 2.5 < back[:, :, :7].min()


def test_without_a_click_of_a_sign_nothing_is_reached() -> None:
    image, points = rough_image().expand(3, -1, -1, -1, -1), torch.full((3, 2, 3), 2.0)
    signs = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 0.0]])
    reached = (cheapest_ways(image, points, GRID, signs) < UNREACHED).flatten(2).all(2)
    assert reached.tolist() == [[True, False], [False, True], [False, False]]
    assert (cheapest_ways(image, points[:, :0], GRID, signs[:, :0]) >= UNREACHED).all()


def test_points_are_in_voxels_of_the_image_that_the_grid_covers() -> None:
    image = rough_image()
    on_grid = cheapest_ways(image, torch.tensor([[[2.0, 5.0, 3.0]]]), GRID, torch.ones(1, 1))
    finer = [2 * length for length in GRID]
    torch.testing.assert_close(
        cheapest_ways(image, torch.tensor([[[4.4, 10.6, 6.5]]]), finer, torch.ones(1, 1)), on_grid
    )


@pytest.mark.parametrize("grid", [(5, 8, 6), (1, 7, 3), (16, 16, 16)])
def test_any_grid(grid: tuple[int, int, int]) -> None:
    refiner = ClickRefiner3d(8)
    torch.nn.init.ones_(refiner.last.weight)
    features, points = torch.randn(2, 8, *grid), torch.zeros(2, 1, 3)
    refined = refiner(features, torch.randn(2, 1, *grid), points, grid, torch.tensor([[1.0], [0.0]]))
    assert refined.shape == features.shape
    assert not torch.equal(refined[0], features[0])
    assert torch.equal(refined[1], features[1])  # without clicks


def test_clicks_change_what_is_near_them_at_the_resolution_of_the_decoder(make_network: Make) -> None:
    """A reference network's clicks act through queries and tokens; moving one by a voxel hardly matters to it."""
    image = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(2))
    one, two = torch.tensor([[[8.0, 8.0, 8.0]]]), torch.tensor([[[8.0, 8.0, 9.0]]])
    with torch.no_grad():
        network = make_network(click_refiner=True, decoder_scale=4)
        change = (network(image, one) - network(image, two)).abs().amax((0, 1))
    assert change.max() > 1e-3
