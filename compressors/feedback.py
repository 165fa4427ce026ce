"""What a feedback is: how the sender makes up for what its codec loses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from compressors.codec import Codec


class Feedback(ABC):
    """A pure function of the chunk and its state; where the state is kept is the caller's business.

    The new state counts only once the receiver has acknowledged the body; until then the old one survives.
    """

    state_names: ClassVar[tuple[str, ...]]  # float32 [d] vectors, zeros at first, that outlive a round

    @abstractmethod
    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        """The body to send for x [size]; each state [size] is updated in place, x never.

        Where values are not finite the body tells so (see `Codec.encode`) and the state stays as it was.
        """


class NoFeedback(Feedback):
    """Sends each chunk as it is; what the codec loses is lost."""

    state_names = ()

    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:  # none
        return codec.encode(x, seed)
