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
        ("topk:0.010+int8", "topk:0.01+int8+auto"),
        ("topk:0.01+int8+auto", "topk:0.01+int8+auto"),
        ("topk:0.01+identity+rice", "topk:0.01+rice"),
        ("topk:0.01+varint+zstd", "topk:0.01+varint+zstd"),
        ("topk:0.01+qsgd:4+rice+zstd:3", "topk:0.01+qsgd:4+rice+zstd:3"),
        ("topk:0.01+zstd:1", "topk:0.01+auto+zstd"),
        ("int8+zstd", "int8+zstd"),
        ("randk:0.1:unscaled:common+int8", "randk:0.1:common:unscaled+int8"),
        ("fedzip:.2", "fedzip:0.2"),
    ],
)
def test_spellings(spelling: str, canonical: str) -> None:
    assert compressors.build(spelling).spelling == canonical


@pytest.mark.parametrize(
    ("spelling", "why"),
    [
        ("topkk:0.1", "there is no codec 'topkk' .did you mean 'topk'"),
        ("", "the name of a codec is missing: give one, such as int8"),
        (" ", "the name of a codec is missing"),
        (":3", "the name of a codec is missing"),
        ("|", r"nothing stands before the \| of '\|': it joins codecs, as in int8\|int4"),
        ("int8||int4", r"nothing stands between two \| of 'int8\|\|int4'"),
        ("+", r"nothing stands before the \+ of '\+': it joins codecs, as in topk:0.01\+int8"),
        ("+int8", r"nothing stands before the \+ of"),
        ("int8|topk:0.1+", r"nothing stands after the \+ of 'topk:0.1\+'"),
        ("zzz", r"known: .*bf16, .*int8, .*topk"),
        ("int8:4", "int8 takes no argument but stochastic, not '4'"),
        ("identity:", "identity takes no argument"),
        ("topk", "needs the fraction to keep"),
        ("topk:", "needs the fraction to keep"),
        ("topk:many", "not 'many'"),
        ("topk:0", "above 0 and up to 1, not 0.0"),
        ("topk:1.5", "above 0 and up to 1"),
        ("topk:-0.1", "above 0 and up to 1"),
        ("topk:nan", "above 0 and up to 1"),
        ("topk:0.01+int88", "there is no codec 'int88' .did you mean 'int8'"),
        ("topk:0.01+", r"nothing stands after the \+ of 'topk:0.01\+'"),
        ("int8+topk:0.01", "each at most once and in this order"),
        ("topk:0.01+int8+bf16", "each at most once and in this order"),
        ("topk:0.01+topk:0.1", "each at most once and in this order"),
        ("topk:0.01+fedzip:0.1", "each at most once and in this order"),
        ("topk:0.01+zstd+rice", "there is no codec 'zstd'"),
        ("rice+zstd", r"rice codes indices, and none travel here"),
        ("randk:0.01+rice", r"rice codes indices, and none travel here"),
        ("int8+varint", r"varint codes indices, and none travel here"),
        ("zstd+zstd", "there is no codec 'zstd'"),
        ("topk:0.01+zstd:99", "levels from 1 to 19, not 99"),
        ("topk:0.01+zstd:fast", "zstd takes a level, such as zstd:3, not 'fast'"),
        ("randk:0.1:comon", "then common, unscaled or both, not '0.1:comon'"),
        ("randk:0.1:common:common", "then common, unscaled or both"),
        ("randk", "needs the fraction to keep, such as randk:0.01"),
        ("randk:2", "randk keeps a fraction above 0 and up to 1"),
        ("fedzip", "needs the fraction to keep, such as fedzip:0.01"),
        ("kmeans", "needs a number of centroids"),
        ("kmeans:1", "from 2 to 16 centroids, not 1"),
    ],
)
def test_wrong_spellings_say_what_is_wrong(spelling: str, why: str) -> None:
    with pytest.raises(compressors.CodecError, match=why):
        compressors.build(spelling)


def test_feedbacks() -> None:
    assert compressors.build_feedback("ef14").state_names == ("residual",)
    with pytest.raises(
        compressors.CodecError, match=r"there is no error feedback 'ef144' .did you mean 'ef14'"
    ):
        compressors.build_feedback("ef144")
