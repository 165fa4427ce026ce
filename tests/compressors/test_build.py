import pytest

import compressors


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("identity", "identity"),
        ("bf16", "bf16"),
        ("int8", "int8"),
        ("topk:0.01", "topk:0.01"),
        ("topk:0.010", "topk:0.01"),
        ("topk:1e-2", "topk:0.01"),
        ("topk:1", "topk:1.0"),
    ],
)
def test_spellings(spelling: str, canonical: str) -> None:
    assert compressors.build(spelling).spelling == canonical


@pytest.mark.parametrize(
    ("spelling", "why"),
    [
        ("topkk:0.1", "no codec is called 'topkk'; did you mean 'topk'"),
        ("", "no codec is called ''"),
        ("zzz", r"there are: .*bf16, .*int8, .*topk"),
        ("int8:4", "int8 takes no argument but stochastic, not '4'"),
        ("identity:", "identity takes no argument"),
        ("topk", "needs the fraction to keep"),
        ("topk:", "needs the fraction to keep"),
        ("topk:many", "not 'many'"),
        ("topk:0", "above 0 and up to 1, not 0.0"),
        ("topk:1.5", "above 0 and up to 1"),
        ("topk:-0.1", "above 0 and up to 1"),
        ("topk:nan", "above 0 and up to 1"),
        ("topk:0.01+int8", r"not '0.01\+int8'"),
    ],
)
def test_wrong_spellings_say_what_is_wrong(spelling: str, why: str) -> None:
    with pytest.raises(compressors.CodecError, match=why):
        compressors.build(spelling)


def test_feedbacks() -> None:
    assert compressors.build_feedback("ef14").state_names == ("residual",)
    with pytest.raises(compressors.CodecError, match="no feedback is called 'ef144'; did you mean 'ef14'"):
        compressors.build_feedback("ef144")
