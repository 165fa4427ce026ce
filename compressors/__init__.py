"""Update compression: codecs turn chunks of float32 into bytes, feedback keeps what they lose.

>>> import torch
>>> codec = build("topk:0.25")
>>> body = codec.encode(torch.tensor([0.5, -3.0, 1.0, 2.0]), seed=0)
>>> out = torch.empty(4)
>>> codec.decode(body, out)
>>> out
tensor([ 0., -3.,  0.,  0.])

What a plug-in is written against: `Codec`, or `PlainCodec` of one without options ("muster.codecs"), and `Feedback`
("muster.feedbacks"). A class whose constructor takes options names them in a dataclass `Options`.
"""

from compressors.core.codec import Codec, CodecError, DecodeError, PlainCodec
from compressors.core.context import ChunkContext
from compressors.core.describe import CodecDescription, FeedbackDescription, describe, everything
from compressors.core.registry import build, build_feedback
from compressors.feedback.feedback import Feedback

__all__ = [
    "ChunkContext",
    "Codec",
    "CodecDescription",
    "CodecError",
    "DecodeError",
    "Feedback",
    "FeedbackDescription",
    "PlainCodec",
    "build",
    "build_feedback",
    "describe",
    "everything",
]
