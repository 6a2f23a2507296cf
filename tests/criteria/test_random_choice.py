import torch

from prunekit.criteria.random_choice import RandomChoice
from prunekit.masks.selection import Quota


def draw(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    criterion = RandomChoice()
    scores = criterion.score(torch.zeros(1, 20, 50), generator)
    return criterion.select(scores, Quota(0.3, (50,)), generator)


def test_equal_generators_draw_the_same_connections_and_others_do_not():
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert draw(1).sum() == 300


def test_every_connection_has_the_same_chance():
    kept = sum(draw(seed).double() for seed in range(300))
    # 300 draws at density 0.3 have a deviation of 7.9; of a thousand connections the furthest is near 3.3 of them.
    assert (kept - 90).abs().max() < 5 * 7.9
    assert abs(float(kept.mean()) - 90) < 1e-9
