"""Cost policies: what happens when a budget has been used up to some part."""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeGuard

from apflow.errors import PolicyNotFoundError
from apflow.governance.provider_router import ProviderRouter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

#: From which part of the budget on `models=[...]` of a task takes the next model.
DOWNGRADE_THRESHOLD = 0.8
#: Characters; both are columns of the table of decisions.
LONGEST_NAME = 100
LONGEST_MODEL = 255

logger = logging.getLogger(__name__)
_router = ProviderRouter()


class PolicyAction(Enum):
    """What a policy does from its threshold on. The most restrictive action comes first."""

    BLOCK = "block"
    DOWNGRADE = "downgrade"
    NOTIFY = "notify"
    CONTINUE = "continue"


_RESTRICTIVENESS = {action: place for place, action in enumerate(PolicyAction)}


@dataclass(frozen=True, slots=True)
class CostPolicy:
    """An action, and the part of the budget from which on it is taken.

    Attributes:
        name: Unique within a runtime: 1 to 100 characters.
        action: Stop, take a cheaper model, give notice, or do nothing.
        threshold: The part of the budget that has to be taken: more than 0, at most 1.
        downgrade_chain: Model names, the most expensive one first, none twice. DOWNGRADE needs at least one;
            the other actions do not read it. Always a list of its own, whatever sequence was given.
        description: For people.

    Raises:
        ValueError: A value is out of its range; the message names the field.
    """

    name: str
    action: PolicyAction
    threshold: float
    downgrade_chain: list[str] = field(default_factory=list)
    description: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ValueError("name must be a non-empty string")
        if len(self.name) > LONGEST_NAME:
            raise ValueError(f"name must have at most {LONGEST_NAME} characters, got {len(self.name)}")
        if not isinstance(self.action, PolicyAction):
            raise ValueError(f"action must be a PolicyAction, got {self.action!r}")
        if not _is_number(self.threshold) or not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be more than 0 and at most 1, got {self.threshold!r}")
        object.__setattr__(self, "downgrade_chain", _models("downgrade_chain", self.downgrade_chain))
        if self.action is PolicyAction.DOWNGRADE and not self.downgrade_chain:
            raise ValueError("downgrade_chain must not be empty when action is DOWNGRADE")
        if not isinstance(self.description, str):
            raise ValueError(f"description must be a string, got a {type(self.description).__name__}")


@dataclass(frozen=True, slots=True)
class PolicyEvaluation:
    """What a policy says about a utilization.

    Attributes:
        policy: The policy that was asked.
        triggered: Whether its threshold is reached.
        action: What to do: CONTINUE when it is not triggered, BLOCK when its chain has no further model.
        model_override: The model to use instead, when the action is DOWNGRADE.
        message: Why, in one sentence.
    """

    policy: CostPolicy
    triggered: bool
    action: PolicyAction
    model_override: str | None = None
    message: str = ""


class PolicyEngine:
    """The policies of one runtime by name, and the judgement of any policy. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Replaced and never changed, so that readers need no lock.
        self._policies: Mapping[str, CostPolicy] = {}

    def register_policy(self, policy: CostPolicy) -> None:
        """Make the policy known by its name.

        Raises:
            ValueError: The name is taken, or this is no `CostPolicy`.
        """
        if not isinstance(policy, CostPolicy):
            raise ValueError(f"policy must be a CostPolicy, got a {type(policy).__name__}")
        with self._lock:
            if policy.name in self._policies:
                raise ValueError(f"a policy named {policy.name!r} is already registered")
            self._policies = {**self._policies, policy.name: policy}
        logger.debug("policy %r registered, action %s", policy.name, policy.action.value)

    def get_policy(self, name: str) -> CostPolicy | None:
        """Return the policy of this name, None when there is none."""
        return self._policies.get(name)

    def evaluate(self, policy_name: str, utilization: float, current_model_index: int = 0) -> PolicyEvaluation:
        """Do what `judge` does, with a registered policy.

        Raises:
            KeyError: No policy of this name is registered; it is a `PolicyNotFoundError`.
            ValueError: `utilization` is negative or not a number.
        """
        _check_utilization(utilization)
        return self.judge(self._named(policy_name), utilization, current_model_index)

    @staticmethod
    def judge(policy: CostPolicy, utilization: float, current_model_index: int = 0) -> PolicyEvaluation:
        """Return what the policy says when this part of a budget is taken.

        Args:
            policy: Registered or not.
            utilization: 0 is an untouched budget, 1 a full one; it may be more.
            current_model_index: The place of the present model in the policy's chain, counted from 0; -1
                when it is not in there, so that the chain's first model is next.

        Raises:
            ValueError: `utilization` is negative or not a number, or `current_model_index` is below -1.
        """
        _check_utilization(utilization)
        taken = f"{_percent(utilization)} of the budget is taken"
        if utilization < policy.threshold:
            message = f"Policy {policy.name!r} does nothing yet: {taken}, it acts from {_percent(policy.threshold)}."
            return PolicyEvaluation(policy, triggered=False, action=PolicyAction.CONTINUE, message=message)
        reason = f"{taken}, its threshold is {_percent(policy.threshold)}"
        if policy.action is PolicyAction.DOWNGRADE:
            return _downgrade(policy, current_model_index, reason)
        message = f"Policy {policy.name!r} {_VERBS[policy.action]}: {reason}."
        return PolicyEvaluation(policy, triggered=True, action=policy.action, message=message)

    def resolve(self, policies: Sequence[str | CostPolicy]) -> list[CostPolicy]:
        """Return these policies in this order, each name replaced by the policy registered under it.

        Raises:
            KeyError: A name is not registered; it is a `PolicyNotFoundError`.
            ValueError: An entry is neither a name nor a policy.
        """
        if isinstance(policies, str):
            raise ValueError("policies must be a list of names and CostPolicy objects, got a str")
        return [self._named(entry) if isinstance(entry, str) else _policy(entry) for entry in policies]

    @staticmethod
    def ordered(policies: Iterable[CostPolicy]) -> list[CostPolicy]:
        """Return these policies by falling threshold; at equal thresholds the most restrictive action is first."""
        return sorted(policies, key=lambda policy: (-policy.threshold, _RESTRICTIVENESS[policy.action]))

    def _named(self, name: str) -> CostPolicy:
        policies = self._policies
        policy = policies.get(name)
        if policy is None:
            raise PolicyNotFoundError(name, policies)
        return policy


_VERBS = {
    PolicyAction.BLOCK: "stops the task",
    PolicyAction.NOTIFY: "gives notice",
    PolicyAction.CONTINUE: "lets the task continue",
}


def policy_for_models(task: str, models: Sequence[str]) -> CostPolicy:
    """Return the policy that `@apflow.task(models=[...])` stands for: the next model from 80 % on.

    Raises:
        ValueError: `models` is not a list of different model names, or it is empty.
    """
    chain = _models("models", models)
    if not chain:
        raise ValueError("models must have at least one model")
    name = f"models of {task}"[:LONGEST_NAME]
    return CostPolicy(name, PolicyAction.DOWNGRADE, DOWNGRADE_THRESHOLD, chain)


def dump_policy(policy: CostPolicy) -> dict[str, Any]:
    """Return the policy as plain JSON values, to be stored with a run."""
    return {**asdict(policy), "action": policy.action.value}


def load_policy(data: Mapping[str, Any]) -> CostPolicy:
    """Return the policy that `dump_policy` made this of.

    Raises:
        ValueError: A field is missing, unknown or out of its range; the message names it.
    """
    unknown = sorted(data.keys() - CostPolicy.__dataclass_fields__.keys())
    if unknown:
        raise ValueError(f"a stored policy has no field {unknown[0]!r}")
    action = data.get("action")
    known = next((one for one in PolicyAction if one.value == action), action)
    return CostPolicy(**{"name": None, "threshold": None, **data, "action": known})


def _downgrade(policy: CostPolicy, index: int, reason: str) -> PolicyEvaluation:
    selection = _router.get_next_model(policy.downgrade_chain, index)
    if selection is None:
        message = (
            f"Policy {policy.name!r} stops the task: {reason}, "
            f"and no model follows {policy.downgrade_chain[-1]!r} in its downgrade chain."
        )
        return PolicyEvaluation(policy, triggered=True, action=PolicyAction.BLOCK, message=message)
    message = f"Policy {policy.name!r} takes model {selection.model!r} instead: {reason}."
    return PolicyEvaluation(
        policy, triggered=True, action=policy.action, model_override=selection.model, message=message
    )


def _models(name: str, value: object) -> list[str]:
    """Return a copy of a list of model names. A string would pass for a list of letters, a set has no order."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{name} must be a list of model names, got a {type(value).__name__}")
    for place, model in enumerate(value):
        if not isinstance(model, str) or not model.strip():
            raise ValueError(f"{name}[{place}] must be a non-empty string, got {model!r}")
        if len(model) > LONGEST_MODEL:
            raise ValueError(f"{name}[{place}] must have at most {LONGEST_MODEL} characters, got {len(model)}")
        if model in value[:place]:
            raise ValueError(f"{name} must not name a model twice, got {model!r} again at place {place}")
    return list(value)


def _policy(value: object) -> CostPolicy:
    if isinstance(value, CostPolicy):
        return value
    raise ValueError(f"policies must hold names and CostPolicy objects, got a {type(value).__name__}")


def _check_utilization(value: object) -> None:
    if not _is_number(value) or not value >= 0:
        raise ValueError(f"utilization must be a number >= 0, got {value!r}")


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _percent(part: float) -> str:
    # Six digits: what is just below a threshold must not be shown as equal to it.
    return f"{part * 100:.6g}%"
