"""What a codec is that works on devices too."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from torch import Tensor

from compressors.core.codec import Codec
from compressors.device.transfer import download, upload


class DeviceCodec(Codec):
    """Packs and unpacks where the chunk lies, so that only bodies cross."""

    @abstractmethod
    def pack(self, x: Tensor, seed: int) -> Tensor:
        """The body [bytes] uint8 of x [size > 0], both on the same device."""

    @abstractmethod
    def check(self, body: bytes | memoryview, size: int) -> None:
        """Raises `DecodeError` for what `decode_host` would not take."""

    @abstractmethod
    def unpack(self, body: Tensor, out: Tensor) -> None:
        """Fills out [size > 0] from a body [bytes] uint8 that passed `check`, both on the same device."""

    def encode_device(self, x: Tensor, seed: int) -> bytes:
        if not x.numel():
            return super().encode_device(x, seed)
        body: bytes = download(self.pack(x.detach(), seed)).tobytes()
        return body

    def decode_device(self, body: bytes | memoryview, out: Tensor) -> None:
        self.check(body, out.numel())
        if out.numel():
            self.unpack(upload(np.frombuffer(body, dtype=np.uint8), out.device), out.detach())
