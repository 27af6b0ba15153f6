"""JSON of others has one meaning or is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmt.strict_json import MAX_DEPTH, dump, parse

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text() | st.floats(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"a": 1, "a": 1}', "'a' twice"),
        (b'[{"b": {"a": 1, "x": 0, "a": 2}}]', "'a' twice"),
        (b"NaN", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e400]", "too large"),
        (b"1" + b"0" * 400, "too large"),
        (b"-1" + b"0" * 100_000, "too large"),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), "nested too deeply"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "nested too deeply"),
        (b"[" * 1_000_000, "nested too deeply"),
        ('{"a": 1}'.encode("utf-16"), "utf-8"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'["\xff"]', "utf-8"),
        (b'["\\ud800"]', "surrogates"),
        (b'{"\\udfff": 1}', "surrogates"),
        (b"", "Expecting value"),
        (b"{} {}", "Extra data"),
    ],
)
def test_what_has_no_one_meaning_is_refused(content: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(content)


def test_nesting_is_allowed_up_to_the_limit() -> None:
    assert json.dumps(parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)).count("[") == MAX_DEPTH


def test_integers_beyond_64_bits_are_no_integers() -> None:
    assert parse(b"[18446744073709551615, -9223372036854775808]") == [2**64 - 1, -(2**63)]
    assert [type(n) for n in parse(b"[18446744073709551616, -9223372036854775809]")] == [float] * 2


@given(VALUES)
def test_what_is_written_is_read_again(value: object) -> None:
    try:
        text = dump(value)
    except ValueError:
        assert "NaN" in repr(value) or "nan" in repr(value) or "inf" in repr(value)
        return
    assert parse(text) == value
    assert parse(text.encode()) == value


@given(st.binary(max_size=80))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        value = parse(content)
    except ValueError:
        return
    assert parse(dump(value)) == value


def test_a_path_that_is_not_utf8_is_written_readable() -> None:
    assert parse(dump({"path": "caf\udce9"})) == {"path": "caf?"}
