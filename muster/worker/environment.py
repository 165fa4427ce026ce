"""What a worker process finds in its environment: what Python, torch and data loaders need, and no secrets.

A task's code is not Muster's. It gets the variables below; the owner of the machine names what else it needs in
`worker_environment`. Names that sound like a secret do not pass unless they are named there in full.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from muster.runtime.cores import VARIABLES

# Where things lie and how they are spoken to.
_PLACES = (
    "PATH HOME USER LOGNAME LANG LANGUAGE LC_* TZ TMPDIR TEMP TMP XDG_* LD_LIBRARY_PATH LD_PRELOAD DYLD_*"
)
_PYTHON = "PYTHON* VIRTUAL_ENV CONDA_PREFIX SYSTEMROOT"
_COMPUTING = (
    "CUDA* CUDNN_* CUBLAS_* NVIDIA_* NCCL_* HIP_* ROCR_* ROCM_* HSA_* MIOPEN_* PYTORCH_* TORCH* TRITON_* OMP_* MKL_* "
    "KMP_* GOMP_* OPENBLAS_* NUMEXPR_* VECLIB_* MALLOC_* GLIBC_TUNABLES"
)
_DATA = "HF_* HUGGINGFACE_* TRANSFORMERS_* TOKENIZERS_* SCIKIT_LEARN_DATA SSL_CERT_* REQUESTS_CA_BUNDLE CURL_CA_BUNDLE"
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_ALLOWED = tuple(f"{_PLACES} {_PYTHON} {_COMPUTING} {_DATA}".split())
_SECRET = re.compile(r"TOKEN(?!IZERS)|SECRET|PASSW|CREDENTIAL|APIKEY|(^|_)(KEY|PAT|AUTH)(_|$)", re.IGNORECASE)


def worker_environment(
    own: Mapping[str, str], *, more: Sequence[str] = (), threads: int | None = None
) -> dict[str, str]:
    """Of this process's own variables those that a worker gets; `more` are names or patterns such as "S3_*".

    `threads` are told to the libraries that read them when they are loaded, where nobody has told them otherwise.
    """
    found = {name: value for name, value in own.items() if _passes(name, value, more)}
    if threads is not None:
        found = {**dict.fromkeys(VARIABLES, str(threads)), **found}
    return found


def _passes(name: str, value: str, more: Sequence[str]) -> bool:
    if name in more:
        return True
    if _SECRET.search(name):
        return False
    if name.upper() in _PROXIES:
        return "@" not in value  # a proxy's password is a secret too
    return any(fnmatchcase(name, pattern) for pattern in (*_ALLOWED, *more))
