"""Messages as bytes: what goes in comes out, openpi's own codec agrees, and nothing else is let in."""

from __future__ import annotations

from contextlib import suppress

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from openpi_client import msgpack_numpy
from tests import tiny
from tests.fakes import POINT

from hypervla.contracts import UserError
from hypervla.runtime import wire
from hypervla.runtime.wire import Request, WireError, decode_actions, decode_request, encode_request, pack, unpack

NUMBERS = arrays.arrays(
    st.sampled_from([np.uint8, np.int64, np.float32, np.float64, np.bool_, np.dtype(">f4")]),
    arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@given(NUMBERS)
def test_an_array_comes_out_as_it_went_in(array: np.ndarray) -> None:
    assert same(unpack(pack({"x": array}))["x"], array)


@given(NUMBERS)
def test_openpis_codec_reads_and_writes_the_same(array: np.ndarray) -> None:
    message = {"x": array, "nested": {"y": array}, "words": "now", "number": np.float32(2.5)}
    ours, theirs = unpack(msgpack_numpy.packb(message)), msgpack_numpy.unpackb(pack(message))
    for found in (ours, theirs):
        assert same(found["x"], array)
        assert same(found["nested"]["y"], array)
        assert found["words"] == "now"
        assert found["number"] == np.float32(2.5)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with suppress(WireError):
        assert isinstance(unpack(data), dict)


def array(**changes) -> bytes:
    """A message with one array of four bytes, and whatever is wrong with it."""
    pairs = {b"__ndarray__": True, b"data": b"1234", b"dtype": "<f4", b"shape": (1,)}
    return msgpack.packb({"x": {**pairs, **{key.encode(): value for key, value in changes.items()}}})


def scalar(dtype: str, value: object) -> bytes:
    return msgpack.packb({"x": {b"__npgeneric__": True, b"data": value, b"dtype": dtype}})


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (array(dtype="|O"), "booleans, integers or floats, but object came"),
        (array(dtype="<c8"), "but complex64 came"),
        (array(dtype="|V4"), r"but \|V4 came"),
        (array(dtype="<U1"), "but <U1 came"),
        (array(dtype="<M8"), "booleans, integers or floats, but datetime64 came"),
        (array(dtype=[("a", "<f4")]), "a short text like '<f4'"),
        (array(dtype="nothing at all"), "a short text like '<f4'"),
        (array(dtype="<f9"), "a short text like '<f4'"),
        (array(shape=(2,)), r"shape \(2,\) does not have 4 bytes"),
        (array(shape=(-1,)), "of whole numbers, but"),
        (array(shape=(1.0,)), "of whole numbers, but"),
        (array(shape=(2**40, 2**40, 0)), r"does not have 4 bytes"),
        (array(shape=(1,) * 9), "at most eight dimensions"),
        (array(shape="1"), "at most eight dimensions"),
        (array(data="1234"), "comes as bytes"),
        (scalar("|i1", 1000), "no msgpack map"),
        (scalar("<f4", "words"), "no msgpack map"),
        (msgpack.packb([1, 2]), "A message is a map with names"),
        (msgpack.packb({1: 2}), "no msgpack map"),
        (msgpack.packb({b"x": 2}), "A message is a map with names"),
        (b"\x81\xa1x", "no msgpack map"),
        (b"\x91" * 2000, "no msgpack map"),
        ("text", "binary msgpack, but text came"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, match: str) -> None:
    with pytest.raises(WireError, match=match):
        unpack(data)


def test_a_message_has_a_size_that_it_may_not_exceed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_BYTES", 10)
    with pytest.raises(WireError, match="at most 10 bytes, but"):
        unpack(pack({"x": np.zeros(100)}))


@pytest.mark.parametrize("thing", [object(), np.array([object()]), {"x": {1, 2}}, 1j])
def test_only_numbers_texts_and_arrays_are_sent(thing) -> None:
    with pytest.raises(WireError):
        pack({"x": thing})


# Requests and answers


@pytest.mark.parametrize("episode", [None, "seventh"])
def test_a_request_comes_out_as_it_went_in(episode: str | None) -> None:
    seen = tiny.observation(3)
    found = decode_request(unpack(pack(encode_request(Request(seen, "find the goal", episode)))), POINT)
    assert (found.prompt, found.episode) == ("find the goal", episode)
    assert same(found.observation.images["top"], seen.images["top"])
    assert seen.proprio is not None
    assert found.observation.proprio is not None
    assert same(found.observation.proprio, seen.proprio)


def request(**changes) -> dict:
    """A good message, but for what is changed; None leaves a name out."""
    message = encode_request(Request(tiny.observation(0), "find the goal"))
    message |= {name.replace("__", "/"): value for name, value in changes.items()}
    return {name: value for name, value in message.items() if value is not None}


@pytest.mark.parametrize(
    ("message", "match"),
    [
        (request(colour="red"), "There is no 'colour' in a request for point, only episode_id, observation/state"),
        (request(prompt=None), "the instruction as a text under 'prompt'"),
        (request(prompt=7), "the instruction as a text under 'prompt'"),
        (request(episode_id=7), "'episode_id' is a text"),
        (request(observation__top=None), "has an image under 'observation/top'"),
        (request(observation__top="picture.png"), "has an image under 'observation/top'"),
        (request(observation__top=np.zeros((4, 4, 3), np.uint8)), r"delivers uint8 images of shape \(32, 32, 3\)"),
        (request(observation__state=[1.0, 2.0]), "'observation/state' is an array of one dimension"),
        (request(observation__state=np.zeros((2, 2))), "'observation/state' is an array of one dimension"),
    ],
)
def test_a_request_that_is_none_is_refused(message: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        decode_request(message, POINT)


@pytest.mark.parametrize(
    ("actions", "match"),
    [
        (None, "takes chunks of 3 numbers a step, but NoneType came"),
        (np.zeros((2, 4)), r"takes chunks of 3 numbers a step, but \(2, 4\) came"),
        (np.zeros((0, 3)), r"but \(0, 3\) came"),
        (np.full((2, 3), np.nan), "something else than finite numbers"),
        (np.zeros((2, 3), bool), "something else than finite numbers"),
        (np.full((2, 3), 1e300), "something else than finite numbers"),
    ],
)
def test_an_answer_without_actions_is_refused(actions, match: str) -> None:
    with pytest.raises(WireError, match=match):
        decode_actions({"actions": actions}, POINT)
