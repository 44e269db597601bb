"""Inputs of executor classes, checked by the JSON schema that the class gives."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from apflow.engine.problems import NOT_JSON, Problem, as_text, invalid, not_json, of_rule, path_text, unknown
from apflow.errors import InvalidInputsError, TaskDefinitionError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

#: Rules about a whole object that may hold once the rest of it is there.
_WHOLE = frozenset(
    {"anyOf", "oneOf", "not", "if", "dependencies", "dependentRequired", "dependentSchemas", "minProperties"}
)


def check_by_schema(
    executor_id: str, schema: Mapping[str, Any], inputs: Mapping[str, Any], *, later: Collection[str] = ()
) -> None:
    """Find out whether inputs fit the JSON schema of an executor class.

    Args:
        executor_id: The executor, for the error.
        schema: What its `get_input_schema()` returns.
        inputs: What is known by now.
        later: Names of inputs that will be there when it runs, with values that nobody knows yet.

    Raises:
        InvalidInputsError: They do not fit; the message names each field and what is wrong with it.
        TaskDefinitionError: The schema is no JSON schema.
    """
    if not isinstance(inputs, Mapping):
        raise InvalidInputsError(f"inputs of {executor_id!r} have to be a JSON object, not {type(inputs).__qualname__}")
    given = {name: value for name, value in inputs.items() if name not in later}
    try:
        as_text(given)
    except NOT_JSON:
        problems = not_json(given)
    else:
        problems = _broken_rules(executor_id, schema, given, later)
    if problems:
        raise invalid(executor_id, problems)


def _broken_rules(
    executor_id: str, schema: Mapping[str, Any], given: dict[str, Any], later: Collection[str]
) -> list[Problem]:
    problems: list[Problem] = []
    failure = ""
    try:
        validator = _validator(executor_id, schema)
        for error in validator.iter_errors(given):
            problems += _of_error(error, later)
    except Exception as error:  # noqa: BLE001 - a reference to nowhere, a pattern that is none
        failure = type(error).__qualname__
    if failure:
        raise TaskDefinitionError(f"the input schema of executor {executor_id!r} cannot be used ({failure})")
    if schema.get("additionalProperties") is False:
        names = [name for name in later if name != "dependencies"]  # results of others are given to every class
        problems += unknown(_surplus(names, schema), schema.get("properties", {}))
    return problems


def _of_error(error: Any, later: Collection[str]) -> list[Problem]:
    """Return what jsonschema found, without its text; of the root only what holds whatever comes later."""
    above, keyword, rule = tuple(error.absolute_path), str(error.validator), error.validator_value
    if not above and later and keyword in _WHOLE:
        return []
    if keyword == "required":
        coming = () if above else later
        missing = [name for name in rule if name not in error.instance and name not in coming]
        return [(path_text((*above, name)), "is missing") for name in missing]
    if keyword == "additionalProperties" and rule is False and isinstance(error.schema, Mapping):
        names = _surplus(error.instance, error.schema)
        if not above:
            return unknown(names, error.schema.get("properties", {}))
        return [(path_text((*above, name)), "is unknown") for name in names]
    return [(path_text(above), of_rule(keyword, rule))]


def _surplus(instance: Iterable[str], schema: Mapping[str, Any]) -> list[str]:
    """Return the names in an object that its schema does not mention."""
    patterns = [re.compile(pattern) for pattern in schema.get("patternProperties", {})]
    known = schema.get("properties", {})
    return [name for name in instance if name not in known and not any(p.search(name) for p in patterns)]


#: By executor: the last schema, and what checks by it.
_validators: dict[str, tuple[Mapping[str, Any], Any]] = {}


def _validator(executor_id: str, schema: Mapping[str, Any]) -> Any:
    kept = _validators.get(executor_id)
    if kept is not None and kept[0] == schema:
        return kept[1]
    from jsonschema import Draft202012Validator, validators
    from referencing import Registry

    kind = validators.validator_for(schema, default=Draft202012Validator)
    kind.check_schema(dict(schema))
    # A registry of its own, so that a reference to another document is refused and not looked up in the network.
    own = deepcopy(dict(schema))
    made = kind(own, registry=Registry())
    _validators[executor_id] = own, made
    return made
