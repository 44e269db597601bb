"""What a checkpoint takes, and what it refuses before anything reaches a database."""

from __future__ import annotations

import json
import uuid
from collections import OrderedDict, defaultdict
from datetime import UTC, datetime
from enum import IntEnum, StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apflow.durability.checkpoint import Checkpoint, CheckpointManager


class Thing:
    def __repr__(self) -> str:
        return "secret"


class Level(IntEnum):
    HIGH = 3


class Colour(StrEnum):
    RED = "red"


def nested(levels: int) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for _ in range(levels - 1):
        state = {"a": state}
    return state


def endless() -> dict[str, Any]:
    state: dict[str, Any] = {}
    state["self"] = [state]
    return state


def restored(data: dict[str, Any]) -> Any:
    return json.loads(Checkpoint.of("t1", data).text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_json_comes_back_as_it_was(state: dict[str, Any]) -> None:
    assert repr(restored(state)) == repr(state), "1, 1.0 and True are equal and yet different"


@pytest.mark.parametrize("text", ["\0", "\ud800", "\udfff-\ud800", "a\ud800 Ebbe über", "\u2028", "\U0001f30a"])
def test_every_text_can_be_stored(text: str) -> None:
    checkpoint = Checkpoint.of("t1", {text: text})
    assert "\0" not in checkpoint.text
    assert checkpoint.text.encode()
    assert json.loads(checkpoint.text) == {text: text}


@pytest.mark.parametrize(
    "data",
    [
        {},
        nested(200),
        {"large": 10**4200, "small": -(10**4200)},
        defaultdict(list, {"a": [1]}),
        OrderedDict(a=1, b=None),
        {"level": Level.HIGH, "colour": Colour.RED, Colour.RED: 1},
        {"twice": [shared := ["x"], shared]},
    ],
)
def test_what_equals_its_json_is_taken(data: dict[str, Any]) -> None:
    assert restored(data) == data


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"pages": [1, {"raw": b"secret"}]}, r"data\.pages\[1\]\.raw is of type bytes"),
        ({"a key": {"x": {"secret"}}}, r"data\['a key'\]\.x is of type set"),
        ({"pair": ("secret", 1)}, r"data\.pair is of type tuple"),
        ({"thing": Thing()}, r"data\.thing is of type Thing"),
        ({"when": datetime(2026, 1, 1, tzinfo=UTC)}, r"data\.when is of type datetime"),
        ({"fn": print}, r"data\.fn is of type builtin"),
        ({"rate": float("nan")}, r"data\.rate is not a finite number"),
        ({"rates": [0.0, float("-inf")]}, r"data\.rates\[1\] is not a finite number"),
        ({"by": {7: "secret"}}, r"data\.by is a dict with a key of type int"),
        ({None: 1}, r"data is a dict with a key of type NoneType"),
        ({"large": 10**5000}, r"data\.large is a number of more than 4,000 digits"),
        ({"k" * 5000 + " ": b""}, r"data\['k{2,20}\.\.\.k{2,20} '\] is of type bytes"),
        (nested(202), r"data(\.a){200} is nested more than 200 levels deep"),
        (endless(), r"data\.self.* is nested more than 200 levels deep, or holds itself"),
    ],
)
def test_what_json_would_lose_is_refused_by_its_place(data: dict[str, Any], place: str) -> None:
    with pytest.raises(ValueError, match=place) as caught:
        Checkpoint.of("t1", data)
    assert "not JSON-serializable" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("data", [None, [1], "text", 5])
def test_data_is_a_dict(data: Any) -> None:
    with pytest.raises(TypeError, match="data must be a dict"):
        Checkpoint.of("t1", data)


@pytest.mark.parametrize("task_id", ["", "  ", None, 5, "a\0b"])
def test_a_task_id_is_a_non_empty_string(task_id: Any) -> None:
    with pytest.raises(ValueError, match="non-empty"):
        Checkpoint.of(task_id, {})


def test_a_label_fits_its_column() -> None:
    assert Checkpoint.of("t1", {}, "s" * 255).step_name == "s" * 255
    for bad in ("s" * 256, "a\0b"):
        with pytest.raises(ValueError, match="step_name"):
            Checkpoint.of("t1", {}, bad)


def test_each_checkpoint_has_an_id_of_its_own() -> None:
    ids = [Checkpoint.of("t1", {}).id for _ in range(3)]
    assert [str(uuid.UUID(one)) for one in ids] == ids
    assert len(set(ids)) == 3


@pytest.mark.parametrize("other", [None, "sqlite:///x.db"])
def test_a_manager_needs_a_store(other: Any) -> None:
    with pytest.raises(TypeError, match="store must not be"):
        CheckpointManager(other)
