"""Downgrade chains: which model is next, and when there is none."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from apflow.governance.provider_router import ModelSelection, ProviderRouter

if TYPE_CHECKING:
    from collections.abc import Callable

CHAIN = ["opus", "sonnet", "haiku"]

router = ProviderRouter()


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_the_first_model_is_no_downgrade(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        assert router.select_model(CHAIN) == ModelSelection("opus", 0, is_downgraded=False)
    assert lines(caplog) == []


@pytest.mark.parametrize(("index", "model"), [(1, "sonnet"), (2, "haiku")])
def test_every_later_model_is_a_downgrade_and_logged(index: int, model: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert router.select_model(CHAIN, index) == ModelSelection(model, index, is_downgraded=True)
    ((level, text),) = lines(caplog)
    assert level == "INFO"
    assert model in text


def test_a_walk_down_the_chain_sees_each_model_once() -> None:
    seen = [router.select_model(CHAIN)]
    while (following := router.get_next_model(CHAIN, seen[-1].index)) is not None:
        seen.append(following)
    assert [selection.model for selection in seen] == CHAIN
    assert [selection.is_downgraded for selection in seen] == [False, True, True]


def test_a_model_that_is_not_in_the_chain_is_followed_by_the_first_as_a_downgrade(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        assert router.get_next_model(CHAIN, -1) == ModelSelection("opus", 0, is_downgraded=True)
    assert [level for level, _ in lines(caplog)] == ["INFO"]


@pytest.mark.parametrize("index", [2, 3, 99])
def test_after_the_last_model_there_is_none_and_a_warning(index: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert router.get_next_model(CHAIN, index) is None
    ((level, text),) = lines(caplog)
    assert level == "WARNING"
    assert "'haiku'" in text


def test_a_single_model_can_be_selected_but_not_followed() -> None:
    assert router.select_model(["only"]).model == "only"
    assert router.get_next_model(["only"], 0) is None
    following = router.get_next_model(["only"], -1)
    assert following is not None
    assert following.model == "only"


def test_an_empty_chain_has_nothing_to_select_and_nothing_next() -> None:
    with pytest.raises(ValueError, match="downgrade_chain must have at least one model"):
        router.select_model([])
    assert router.get_next_model([], 0) is None
    assert router.get_next_model([], -1) is None


def test_a_tuple_is_a_chain_too() -> None:
    assert router.select_model(("a", "b"), 1).model == "b"


@pytest.mark.parametrize("index", [3, 4, 1000])
def test_a_place_behind_the_chain_cannot_be_selected(index: int) -> None:
    with pytest.raises(ValueError, match=f"current_index must be below 3.*got {index}"):
        router.select_model(CHAIN, index)


@pytest.mark.parametrize(
    ("method", "index"),
    [(router.select_model, -1), (router.select_model, True), (router.select_model, 1.0), (router.get_next_model, -2)],
)
def test_what_is_no_place_is_refused(method: Callable[..., Any], index: Any) -> None:
    with pytest.raises(ValueError, match="current_index must be a whole number"):
        method(CHAIN, index)


@pytest.mark.parametrize("method", [router.select_model, router.get_next_model])
@pytest.mark.parametrize("chain", ["opus", {"opus", "sonnet"}, None])
def test_what_is_no_list_is_no_chain(method: Callable[..., Any], chain: Any) -> None:
    with pytest.raises(ValueError, match="downgrade_chain must be a list"):
        method(chain, 0)
