from __future__ import annotations

import numpy as np
import pytest
import torch

from examples.digits import Digits, DigitsCNN
from muster import Site


def site(index: int, count: int = 4, **options: object) -> Site:
    return Site(name=f"site-{index}", data={"index": index, "count": count}, options=options, seed=1)


def labels(task: Digits, where: Site) -> np.ndarray:
    return task.train_data(where)[:][1].numpy()


@pytest.mark.parametrize("options", [{}, {"partition": "dirichlet", "alpha": 0.3}, {"partition": "by-class"}])
def test_sites_share_out_all_training_data_and_never_the_hold_out(options: dict[str, object]) -> None:
    task = Digits()
    parts = [task.train_data(site(index, **options))[:] for index in range(4)]
    held_out, _ = task.test_data(site(0))[:]
    assert sum(len(images) for images, _ in parts) + len(held_out) == 1797
    seen = torch.cat([images for images, _ in parts] + [held_out]).flatten(1)
    # A few images occur twice in the collection itself; sharing out must not add to them.
    from sklearn.datasets import load_digits

    assert len(seen.unique(dim=0)) == len(np.unique(load_digits().data, axis=0))


def test_the_hold_out_is_the_same_for_everybody() -> None:
    first, second = (task.test_data(site(index))[:] for task, index in ((Digits(), 0), (DigitsCNN(), 3)))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_partitions_differ_as_they_say() -> None:
    task = Digits()
    assert all(len(np.unique(labels(task, site(index)))) == 10 for index in range(4))
    assert all(
        len(np.unique(labels(task, site(index, count=5, partition="by-class", classes=2)))) == 2
        for index in range(5)
    )
    skewed = [
        np.bincount(labels(task, site(i, partition="dirichlet", alpha=0.1)), minlength=10) for i in range(4)
    ]
    assert max(counts.max() / max(1, counts.sum()) for counts in skewed) > 0.25


@pytest.mark.parametrize("data", [{"index": 4, "count": 4}, {"index": -1, "count": 4}])
def test_a_site_outside_the_count_is_refused(data: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="index must be 0 to count - 1"):
        Digits().train_data(Site(name="x", data=data))


def test_an_unknown_partition_is_refused() -> None:
    with pytest.raises(ValueError, match="'shards' is none of iid, dirichlet, by-class"):
        Digits().train_data(site(0, partition="shards"))


@pytest.mark.parametrize(("task", "parameters"), [(Digits(), 4810), (DigitsCNN(), 9930)])
def test_a_model_learns_in_a_few_passes(task: Digits, parameters: int) -> None:
    torch.manual_seed(0)
    model = task.model()
    assert sum(each.numel() for each in model.parameters()) == parameters
    images, targets = task.train_data(site(0, count=1))[:]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = task.evaluate(model, site(0))["accuracy"]
    for _ in range(4):
        for batch in torch.randperm(len(images)).split(32):
            optimizer.zero_grad()
            task.loss(model, (images[batch], targets[batch])).backward()
            optimizer.step()
    after = task.evaluate(model, site(0))
    assert before < 0.3
    assert after["accuracy"] > 0.9
    assert after["examples"] == 359
