"""The error tree: every error is documented there, can be pickled, and says whether to try again."""

from __future__ import annotations

import pickle

import pytest

from apflow import errors
from apflow.errors import ApflowError

CLASSES = sorted(
    (one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, ApflowError)),
    key=lambda one: one.__name__,
)


@pytest.mark.parametrize("error", CLASSES, ids=lambda one: one.__name__)
def test_the_tree_in_the_docstring_has_each_error(error: type[ApflowError]) -> None:
    assert f" {error.__name__}" in str(errors.__doc__)
    assert error.__doc__
    assert error.__module__ == "apflow"


@pytest.mark.parametrize(
    "error",
    [
        errors.RunFailedError("r1", "ValueError", "broken"),
        errors.RunTimeoutError("r1", "research", 2.0, still_running=True),
        errors.SerializationError("research", "result.page", "tuple", "annotate it"),
        errors.CircuitOpenError("research", 3.5),
        errors.FencedError("r1"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_errors_survive_pickling_with_their_fields(error: ApflowError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_what_another_attempt_could_mend_is_retryable() -> None:
    assert {one.__name__ for one in CLASSES if one.retryable} == {
        "CircuitOpenError",
        "RunFailedError",
        "StorageBusyError",
        "StorageFullError",
        "StorageUnavailableError",
    }
