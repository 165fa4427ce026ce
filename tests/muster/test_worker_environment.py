"""A task finds what it needs to compute, and nobody's secrets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muster.runtime.cores import VARIABLES
from muster.worker.environment import worker_environment

NEEDED = [
    *("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV"),
    *("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_HOME"),
    *("PYTORCH_CUDA_ALLOC_CONF", "HF_HOME", "TOKENIZERS_PARALLELISM", "XDG_CACHE_HOME", "SSL_CERT_FILE"),
]
SECRET = [
    *("MUSTER_COORDINATOR__DATABASE_URL", "MUSTER_FAILPOINT", "PGPASSWORD", "PGHOST", "AWS_ACCESS_KEY_ID"),
    *("AWS_PROFILE", "GITHUB_TOKEN", "HF_TOKEN", "SSH_AUTH_SOCK", "DATABASE_URL", "XDG_SECRET", "HF_API_KEY"),
    *("TORCH_PASSWORD", "OPENAI_API_KEY", "KUBECONFIG", "GOOGLE_APPLICATION_CREDENTIALS", "ANYTHING"),
]


@pytest.mark.parametrize("name", NEEDED)
def test_what_computing_needs_passes(name: str) -> None:
    assert worker_environment({name: "x"}) == {name: "x"}


@pytest.mark.parametrize("name", SECRET)
def test_secrets_and_what_nobody_asked_for_do_not(name: str) -> None:
    assert worker_environment({name: "x"}) == {}
    assert worker_environment({name: "x"}, more=[name]) == {name: "x"}  # the owner's own word


def test_a_pattern_lets_no_secret_through() -> None:
    own = {"S3_ENDPOINT": "here", "S3_SECRET_KEY": "x", "OTHER": "x"}
    assert worker_environment(own, more=["S3_*"]) == {"S3_ENDPOINT": "here"}


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "no_proxy"])
def test_a_proxy_passes_without_its_password(name: str) -> None:
    assert worker_environment({name: "http://proxy:3128"}) == {name: "http://proxy:3128"}
    assert worker_environment({name: "http://me:secret@proxy:3128"}) == {}


@given(st.sampled_from(["TOKEN", "SECRET", "PASSWORD", "KEY", "API_KEY"]), st.sampled_from(NEEDED))
def test_what_sounds_like_a_secret_is_one_whatever_it_begins_with(word: str, first: str) -> None:
    assert worker_environment({f"{first}_{word}": "x"}) == {}


def test_threads_are_told_unless_they_were_said() -> None:
    assert worker_environment({}, threads=3) == dict.fromkeys(VARIABLES, "3")
    assert worker_environment({"MKL_NUM_THREADS": "1"}, threads=3)["MKL_NUM_THREADS"] == "1"
