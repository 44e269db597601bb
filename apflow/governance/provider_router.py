"""Downgrade chains: which model comes after the one that has become too expensive."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSelection:
    """A model of a downgrade chain.

    Attributes:
        model: Its name.
        index: Its place in the chain, counted from 0.
        is_downgraded: Whether it stands in for a better one.
    """

    model: str
    index: int
    is_downgraded: bool


class ProviderRouter:
    """Moves along downgrade chains: lists of model names, the most capable and expensive one first.

    A name means nothing to it, so models of different providers may follow each other. It keeps no state;
    one router serves all threads.
    """

    def select_model(self, downgrade_chain: Sequence[str], current_index: int = 0) -> ModelSelection:
        """Return the model at this place of the chain. Every one but the first counts as downgraded.

        Args:
            downgrade_chain: At least one name, the most expensive model first.
            current_index: 0 to the last place of the chain.

        Raises:
            ValueError: The chain is empty or not a list of names, or it has no such place.
        """
        _check(downgrade_chain, current_index, lowest=0)
        length = len(downgrade_chain)
        if length == 0:
            raise ValueError("downgrade_chain must have at least one model")
        if current_index >= length:
            raise ValueError(f"current_index must be below {length}, the length of the chain, got {current_index}")
        return _selection(downgrade_chain, current_index, is_downgraded=current_index > 0)

    def get_next_model(self, downgrade_chain: Sequence[str], current_index: int) -> ModelSelection | None:
        """Return the next cheaper model, always as a downgraded one; None when the chain has no more.

        Args:
            downgrade_chain: Names, the most expensive model first.
            current_index: The place of the present model; -1 when it is not in the chain, so that the
                chain's first model is next.

        Raises:
            ValueError: The chain is not a list of names, or `current_index` is below -1.
        """
        _check(downgrade_chain, current_index, lowest=-1)
        if current_index + 1 < len(downgrade_chain):
            return _selection(downgrade_chain, current_index + 1, is_downgraded=True)
        last = downgrade_chain[-1] if downgrade_chain else None
        logger.warning("the downgrade chain is exhausted: there is no model after %r", last)
        return None


def _selection(chain: Sequence[str], index: int, *, is_downgraded: bool) -> ModelSelection:
    if is_downgraded:
        logger.info("downgraded to model %r, number %d of %d in its chain", chain[index], index + 1, len(chain))
    return ModelSelection(chain[index], index, is_downgraded)


def _check(chain: object, index: object, *, lowest: int) -> None:
    if not isinstance(chain, list | tuple):
        raise ValueError(f"downgrade_chain must be a list of model names, got a {type(chain).__name__}")
    if isinstance(index, bool) or not isinstance(index, int) or index < lowest:
        raise ValueError(f"current_index must be a whole number >= {lowest}, got {index!r}")
