"""Update compression: codecs turn chunks of float32 into bytes, feedback keeps what they lose.

>>> import torch
>>> codec = build("topk:0.25")
>>> body = codec.encode(torch.tensor([0.5, -3.0, 1.0, 2.0]), seed=0)
>>> out = torch.empty(4)
>>> codec.decode(body, out)
>>> out
tensor([ 0., -3.,  0.,  0.])
"""

from compressors._registry import build, build_feedback
from compressors.codec import Codec, CodecError, DecodeError
from compressors.describe import CodecDescription, FeedbackDescription, describe, everything
from compressors.feedback import Feedback
from compressors.place import Place

__all__ = [
    "Codec",
    "CodecDescription",
    "CodecError",
    "DecodeError",
    "Feedback",
    "FeedbackDescription",
    "Place",
    "build",
    "build_feedback",
    "describe",
    "everything",
]
