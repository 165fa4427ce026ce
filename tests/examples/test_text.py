from __future__ import annotations

import math

import pytest
import torch

from examples.text import ALPHABET, CONTEXT, VOCABULARY, Text, encode, windows
from muster import Site


def site(index: int, count: int = 4) -> Site:
    return Site(name=f"reader-{index}", data={"index": index, "count": count})


def test_characters_become_codes_and_strangers_share_one() -> None:
    assert encode("aé\n☃").tolist() == [ALPHABET.index("a"), VOCABULARY - 1, 0, VOCABULARY - 1]


def test_a_target_is_the_character_after_its_input() -> None:
    text = "".join(ALPHABET[at % 90] for at in range(3 * CONTEXT + 10))
    inputs, targets = windows(text)
    assert inputs.shape == targets.shape == (3, CONTEXT)
    assert torch.equal(targets.flatten()[:-1], inputs.flatten()[1:])
    assert targets[-1, -1] == encode(text)[3 * CONTEXT]


def test_sites_read_different_chapters_of_like_size() -> None:
    task = Text()
    parts = [{tuple(row) for row in task.train_data(site(index))[:][0].tolist()} for index in range(4)]
    held_out = {tuple(row) for row in task.test_data(site(0))[:][0].tolist()}
    for index, part in enumerate(parts):
        assert len(part) > 1000
        assert not part & held_out
        assert all(len(part & other) < 20 for other in parts[index + 1 :])


def test_a_site_outside_the_count_is_refused() -> None:
    with pytest.raises(ValueError, match="index must be 0 to count - 1"):
        Text().train_data(site(4))


def test_a_prediction_looks_at_the_past_only() -> None:
    torch.manual_seed(0)
    model = Text().model().eval()
    codes = torch.randint(VOCABULARY, (1, CONTEXT))
    changed = codes.clone()
    changed[0, 40:] = (changed[0, 40:] + 1) % VOCABULARY
    with torch.inference_mode():
        before, after = model(codes), model(changed)
    torch.testing.assert_close(before[0, :40], after[0, :40])
    assert not torch.allclose(before[0, 40:], after[0, 40:])


def test_an_untrained_model_guesses_and_a_few_steps_teach_it() -> None:
    torch.manual_seed(0)
    task = Text()
    model = task.model()
    untrained = task.evaluate(model, site(0))
    assert untrained["loss"] == pytest.approx(math.log(VOCABULARY), rel=0.1)
    inputs, targets = task.train_data(site(0))[:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.006)
    for step in range(12):
        optimizer.zero_grad()
        task.loss(model, (inputs[step * 16 : step * 16 + 16], targets[step * 16 : step * 16 + 16])).backward()
        optimizer.step()
    trained = task.evaluate(model, site(0))
    assert model.training
    assert trained["loss"] < untrained["loss"] - 0.8
    assert trained["accuracy"] > 0.1
