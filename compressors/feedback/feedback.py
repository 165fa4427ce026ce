"""What a feedback is: how the two ends of a link make up for what a codec loses.

A link is one sender, one receiver and one direction. The sender's state lies with the sender and is nobody
else's business. Some feedbacks send differences, which the receiver adds up, and so have a receiver's state H:

    one for all senders    H += share * mean(m);  the estimate of the mean is H. Only a mean goes with it.
    one for each sender    H_i += m_i;  the estimate of each sender's x is its H_i. Any rule goes with it, at
                           the cost of a vector [d] for each sender.

`share` is how many senders took part of all that H stands for (EF21-PP, Fatkhullin et al. 2021). Those all begin
with zeros, so a sender that joins n others only makes H smaller, by n / (n + 1). A sender that leaves takes an
unknown part of H with it: then, with one H for all, all resynchronise.

Both ends must have counted the same bodies. The sender keeps the states before and after each body until it
knows whether that counted. If it has neither state that the receiver's goes with, both set theirs to zeros and
the next body is made with the codec `identity`: that is all, as then m = x.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import ClassVar, Self

from torch import Tensor

from compressors.core.codec import Codec, CodecError
from methods import Requirement, SpecValues

LOSSLESS = "identity"
DELTA_ENOUGH = 0.99  # of every squared norm; a codec that keeps so much, bf16 or int8, does well by itself
MAGNITUDE_MAX = 2.0**126  # nothing below this becomes infinite by a codec's rounding


class Feedback(ABC):
    """A pure function of the chunk and its state; where the state is kept is the caller's business.

    The new state counts only once the receiver has acknowledged the body; until then the old one survives.
    """

    spelling: str  # canonical: `build_feedback(feedback.spelling)` is the same feedback
    example: ClassVar[str] = ""  # a spelling to begin with, of a feedback that needs an argument
    source: ClassVar[str] = ""  # the paper
    state_names: ClassVar[tuple[str, ...]]  # float32 [d] vectors, zeros at first, that outlive a round
    receiver_state_names: ClassVar[tuple[str, ...]] = ()  # the same at the other end
    receiver_follows: ClassVar[bool] = True  # else it stays where the last body without loss has put it
    needs_mean: ClassVar[bool] = (
        False  # what is decoded means nothing to any other rule, unless H is each sender's
    )

    has_momentum: bool = False  # the update that it makes is one already: the receiver's step must have none

    whole_batches: ClassVar[bool] = False  # a step of training has to take in all of a site's examples

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """The feedback from what stands after the colon of its spelling. Raises `CodecError`."""
        feedback = cls()
        if argument is not None:
            raise CodecError(f"{feedback.spelling} takes no argument, but {argument!r} was given")
        return feedback

    def refuse(self, codec: Codec, size: int) -> str | None:
        """Why it does not go with this codec on chunks of this size, in one sentence; None if it does."""
        return None

    def codec_in(self, codec: str, step: int, warm_up_rounds: int) -> str:
        """The spelling of a round's codec, where the round is to make version `step`: in the first ones what begins
        more gently."""
        return LOSSLESS if step <= warm_up_rounds else codec

    def norm_max(self, senders: int) -> float:
        """The largest norm of an update, of all its chunks together, in a round for which so many senders are asked:
        who sends a larger one scales it down before its chunks go to `encode`."""
        return math.inf

    def refuse_warm_up(self, codec: Codec) -> str | None:
        """Why `codec_in` cannot do what it says of this codec, in one sentence; None if it can."""
        return None

    def requires(self, spec: SpecValues) -> Iterable[Requirement]:
        """What it demands of the rest of a run spec and does not have there, see `methods.requirements`."""
        return ()

    def warn(self, codec: Codec, size: int) -> str | None:
        """Why it may do badly with this codec on chunks of this size; None if nothing is known against it."""
        return None

    @abstractmethod
    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:
        """The body to send for x [size]; each state [size] is updated in place, x never.

        Where values are not finite the body tells so (see `Codec.encode`) and the state stays as it was.
        """

    def receive(  # noqa: B027  # without a state at the receiver what is decoded is the estimate
        self, decoded: Tensor, state: dict[str, Tensor], share: float = 1.0
    ) -> None:
        """Makes of what was decoded, or of its mean, the estimate of what was put in: [size], in place.

        `state` is the receiver's, [size] each, updated in place; `share` belongs to one H for all senders.
        """


class NoFeedback(Feedback):
    """Sends each chunk as it is; what the codec loses is lost."""

    spelling = "none"
    state_names = ()

    def warn(self, codec: Codec, size: int) -> str | None:
        if not codec.contractive or codec.unbiased or codec.delta(size) >= DELTA_ENOUGH:
            return None
        return f"{codec.spelling} is biased, and what it leaves out is lost; ef14 keeps it and sends it later"

    def encode(self, codec: Codec, x: Tensor, state: dict[str, Tensor], seed: int) -> bytes:  # none
        return codec.encode(x, seed)


def is_bounded(values: Tensor) -> bool:
    """Whether values [size] are finite, with room for a codec's rounding. An empty chunk is."""
    if not values.numel():
        return True
    # Two reductions are quicker than isfinite; a NaN passes through both and fails the comparison.
    return max(-float(values.amin()), float(values.amax())) < MAGNITUDE_MAX


def contractive_only(name: str, codec: Codec) -> str | None:
    """The refusal of a feedback that keeps what the codec loses: without a contraction that grows for ever."""
    if codec.contractive:
        return None
    told = "; it is unbiased and needs none" if codec.unbiased else ""
    return f"{name} needs a contractive codec, and {codec.spelling} is not one{told}"
