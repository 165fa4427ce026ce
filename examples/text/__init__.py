"""A character-level transformer that reads the language reference shipped with Python (`pydoc_data.topics`).

The topics are shared out over the sites by title, so each site reads chapters of its own: data that is
naturally uneven. A site's policy file says which share is its own: `data = { index = 0, count = 4 }`. Every
tenth topic is the hold-out. The text is that of the Python at hand: run all processes on one minor version.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from muster import Task

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

    from muster import Site

CONTEXT = 64  # characters that a prediction may look back on
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = len(ALPHABET) + 1  # the last code stands for every other character
HOLD_OUT_EVERY = 10
EVALUATION_WINDOWS = 512  # of the hold-out, spread evenly: enough for two digits of accuracy, quick on a CPU


@cache
def _topics() -> tuple[tuple[str, str], ...]:
    """(title, text) in order of title."""
    from pydoc_data.topics import topics

    return tuple(sorted(topics.items()))


def encode(text: str) -> torch.Tensor:
    """Codes [len(text)], int64."""
    import torch

    codes = {character: code for code, character in enumerate(ALPHABET)}
    return torch.tensor([codes.get(character, VOCABULARY - 1) for character in text], dtype=torch.int64)


def windows(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets, both [n, CONTEXT], without overlap; a target is the character after its input."""
    codes = encode(text)
    count = (len(codes) - 1) // CONTEXT
    stop = count * CONTEXT
    return codes[:stop].view(count, CONTEXT), codes[1 : stop + 1].view(count, CONTEXT)


class Text(Task):
    """Next-character prediction; metrics are the loss in nats a character and the accuracy."""

    def model(self) -> nn.Module:
        from examples.text.transformer import CharTransformer

        return CharTransformer(vocabulary=VOCABULARY, context=CONTEXT)

    def train_data(self, site: Site) -> Dataset[Any]:
        from torch.utils.data import TensorDataset

        index, count = int(site.data["index"]), int(site.data["count"])
        if not 0 <= index < count:
            raise ValueError(f"site data: index must be 0 to count - 1; index is {index}, count is {count}")
        kept = [text for at, (_, text) in enumerate(_topics()) if at % HOLD_OUT_EVERY]
        return TensorDataset(*windows("\n".join(kept[index::count])))

    def test_data(self, site: Site) -> Dataset[Any]:
        from torch.utils.data import TensorDataset

        held_out = [text for at, (_, text) in enumerate(_topics()) if at % HOLD_OUT_EVERY == 0]
        inputs, targets = windows("\n".join(held_out))
        step = max(1, len(inputs) // EVALUATION_WINDOWS)
        return TensorDataset(inputs[::step], targets[::step])

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        from torch.nn import functional

        inputs, targets = batch
        return functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    def evaluate(self, model: nn.Module, site: Site) -> dict[str, float]:
        import torch
        from torch.nn import functional

        device = next(model.parameters()).device
        inputs, targets = self.test_data(site)[:]
        loss = correct = 0.0
        was_training = model.training
        model.eval()
        with torch.inference_mode():
            for at in range(0, len(inputs), 64):
                expected = targets[at : at + 64].to(device).flatten()
                logits = model(inputs[at : at + 64].to(device)).flatten(0, 1)
                loss += functional.cross_entropy(logits, expected, reduction="sum").item()
                correct += (logits.argmax(1) == expected).sum().item()
        model.train(was_training)
        count = targets.numel()
        return {"loss": loss / count, "accuracy": correct / count, "examples": float(len(inputs))}
