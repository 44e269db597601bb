"""The `self` of a method that is a task."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel

from apflow.errors import SerializationError
from apflow.storage.serialize import Codec
from tests.codecs import codec_of


class Wrapped:
    """Stands for what the decorator leaves in a class."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn


def method_codec(method: Any) -> Codec:
    return codec_of(getattr(method, "fn", method), takes_self=True)


class Agent(BaseModel):
    model: str = "small"
    tags: set[str] = set()

    async def step(self, n: int) -> int: ...  # type: ignore[empty-body]


class LoudAgent(Agent):
    volume: int = 11


@dataclass
class Worker:
    name: str
    done: int = 0
    client: Any = None

    def work(self, /, n: int = 1) -> None: ...


@dataclass
class Keyed:
    name: str
    calls: int = 0

    def __apflow_key__(self) -> str:
        return self.name

    def work(self) -> None: ...


class Service:
    def __init__(self, key: object = "main") -> None:
        self.key = key

    def __apflow_key__(self) -> object:
        return self.key

    def work(self) -> None: ...


class OtherService(Service): ...


class Opaque:
    def work(self, n: int) -> None: ...


class Decorated(BaseModel):
    n: int = 0

    model_config = {"ignored_types": (Wrapped,)}

    @Wrapped
    def work(self) -> None: ...


class Stranger(BaseModel):
    model: str = "small"


def test_a_model_is_stored_with_its_class_and_comes_back() -> None:
    codec = method_codec(Agent.step)
    arguments = codec.bind((Agent(model="large", tags={"a"}), 2), {})
    encoded = codec.encode(arguments)
    assert json.loads(encoded.text) == {
        "self": {"__apflow_type__": f"{__name__}:Agent", "value": {"model": "large", "tags": ["a"]}},
        "n": 2,
    }
    assert (encoded.reusable, encoded.restorable) == (True, True)
    assert codec.load_arguments(encoded.text) == arguments
    assert codec.call_with(arguments) == ([arguments["self"], 2], {})


def test_a_subclass_comes_back_as_itself() -> None:
    codec = method_codec(Agent.step)
    loud = {"self": LoudAgent(volume=3), "n": 1}
    back = codec.load_arguments(codec.dump_arguments(loud))
    assert type(back["self"]) is LoudAgent
    assert back == loud
    assert codec.fingerprint(loud) != codec.fingerprint({"self": Agent(), "n": 1})


def test_a_dataclass_is_told_apart_by_its_fields() -> None:
    codec = method_codec(Worker.work)
    one, two = codec.bind((Worker("a"),), {}), codec.bind((Worker("a", done=1),), {})
    assert codec.fingerprint(one) == codec.fingerprint(codec.bind((Worker("a"), 1), {}))
    assert codec.fingerprint(one) != codec.fingerprint(two)
    assert codec.load_arguments(codec.dump_arguments(two)) == two


def test_a_decorated_method_is_found_in_its_class() -> None:
    codec = method_codec(Decorated.__dict__["work"])
    arguments = {"self": Decorated(n=3)}
    assert codec.restorable(arguments)
    assert codec.load_arguments(codec.dump_arguments(arguments)) == arguments


def test_a_local_class_is_told_apart_but_not_made_again() -> None:
    @dataclass
    class Local:
        n: int

        def work(self) -> None: ...

    codec = method_codec(Local.work)
    arguments = {"self": Local(1)}
    assert codec.reusable(arguments)
    assert not codec.restorable(arguments)
    assert codec.fingerprint(arguments) != codec.fingerprint({"self": Local(2)})
    with pytest.raises(SerializationError, match="its class is not there"):
        codec.load_arguments(codec.dump_arguments(arguments))


def test_a_key_stands_for_what_cannot_be_stored() -> None:
    codec = method_codec(Service.work)
    arguments = {"self": Service()}
    encoded = codec.encode(arguments)
    assert encoded.text == '{"self":{"__apflow_key__":"main"}}'
    assert (encoded.reusable, encoded.restorable) == (True, False)
    assert (codec.reusable(arguments), codec.restorable(arguments)) == (True, False)
    assert encoded.fingerprint == codec.fingerprint({"self": Service()})
    assert encoded.fingerprint != codec.fingerprint({"self": Service("other")})
    assert encoded.fingerprint != codec.fingerprint({"self": OtherService()})
    with pytest.raises(SerializationError, match="only its `__apflow_key__") as caught:
        codec.load_arguments(encoded.text)
    assert caught.value.path == "arguments.self"


def test_a_key_decides_what_a_stored_instance_is_the_same_as() -> None:
    codec = method_codec(Keyed.work)
    used = {"self": Keyed("a", calls=9)}
    assert codec.fingerprint(used) == codec.fingerprint({"self": Keyed("a")})
    assert codec.fingerprint(used) != codec.fingerprint({"self": Keyed("b")})
    assert codec.load_arguments(codec.dump_arguments(used)) == used


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(SerializationError, match="has to return a str") as caught:
        method_codec(Service.work).dump_arguments({"self": Service(5)})
    assert (caught.value.path, caught.value.type_name) == ("arguments.self.__apflow_key__()", "int")


@pytest.mark.parametrize("instance", [Opaque(), Worker("a", client=object())], ids=["plain", "not all of it"])
def test_an_instance_that_cannot_be_told_apart_is_only_named(instance: Any) -> None:
    codec = method_codec(type(instance).work)
    arguments = codec.bind((instance, 1), {})
    encoded = codec.encode(arguments)
    name = f"{__name__}.{type(instance).__name__}"
    assert json.loads(encoded.text) == {"self": {"__apflow_object__": name}, "n": 1}
    assert (encoded.reusable, encoded.restorable) == (False, False)
    with pytest.raises(SerializationError, match="only the name of its class was") as caught:
        codec.load_arguments(encoded.text)
    assert caught.value.type_name == name


@pytest.mark.parametrize(
    "stored",
    [
        {"__apflow_type__": f"{__name__}:Stranger", "value": {"model": "x"}},
        {"__apflow_type__": f"{__name__}:Missing", "value": {}},
        {"__apflow_type__": f"{__name__}:json", "value": {}},
        {"__apflow_type__": "this_module_is_not_loaded:Agent", "value": {}},
        {"__apflow_type__": "subprocess:Popen", "value": {}},
        {"__apflow_type__": 5, "value": {}},
        "text",
        {},
    ],
    ids=map(str, range(8)),
)
def test_only_classes_with_this_method_are_made(stored: Any) -> None:
    with pytest.raises(SerializationError) as caught:
        method_codec(Agent.step).load_arguments(json.dumps({"self": stored, "n": 1}))
    assert caught.value.path == "arguments.self"
    assert "this_module_is_not_loaded" not in sys.modules


def test_an_instance_whose_fields_changed_since_is_refused() -> None:
    stored = {"__apflow_type__": f"{__name__}:Agent", "value": {"model": 5}}
    with pytest.raises(SerializationError, match="Was it changed since"):
        method_codec(Agent.step).load_arguments(json.dumps({"self": stored, "n": 1}))


def test_a_function_is_always_reusable_and_restorable() -> None:
    def fn(n: int) -> None: ...

    assert codec_of(fn).reusable({"n": 1})
    assert codec_of(fn).restorable({"n": 1})
    assert codec_of(fn).encode({"n": 1})[2:] == (True, True)
