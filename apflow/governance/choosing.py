"""What the policies above a run say before an attempt, and which model it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from apflow.governance.entries import Verdict
from apflow.governance.policy import PolicyAction, PolicyEngine
from apflow.governance.provider_router import ProviderRouter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from apflow.governance.policy import CostPolicy

_router = ProviderRouter()


@dataclass(frozen=True, slots=True)
class Choice:
    """What is judged before an attempt.

    Attributes:
        policies: Of the task and of the runs above it, the most restrictive first.
        own: Those of the task itself.
        given: Models that governance gave to runs above: who asks for one of them was downgraded already.
        asked: The model that the call asks for; None when its function has no argument `model`.
        kept: The model that governance gave this run before: it stays, whatever the budget looks like now.
    """

    policies: Sequence[CostPolicy]
    own: Sequence[CostPolicy]
    given: frozenset[str]
    asked: str | None
    kept: str | None

    @property
    def chained(self) -> bool:
        """Whether some policy could change the model."""
        return any(policy.action is PolicyAction.DOWNGRADE for policy in self.policies)

    def judge(self, utilization: float) -> Verdict:
        """Return what the policies say when this part of the fullest budget is taken."""
        verdict = Verdict(model=self.kept)
        for policy in self.policies:
            downgrades = policy.action is PolicyAction.DOWNGRADE
            if downgrades and (verdict.model is not None or self._is_foreign(policy)):
                continue
            evaluation = PolicyEngine.judge(policy, utilization, self._place(policy.downgrade_chain))
            if not evaluation.triggered:
                continue
            if evaluation.action is PolicyAction.BLOCK:
                verdict.refused_by = (policy.name, evaluation.message)
                return verdict
            if evaluation.action is PolicyAction.NOTIFY:
                verdict.notes.append(("notify", policy.name, evaluation.message, self.asked, None))
            elif downgrades:
                verdict.model = evaluation.model_override
                verdict.notes.append(("downgrade", policy.name, evaluation.message, self.asked, verdict.model))
        return verdict

    def _is_foreign(self, policy: CostPolicy) -> bool:
        """Whether a run above brings the policy, and it has nothing to say about the model that is asked for.

        So it is when its chain does not name that model, which may be a cheaper one, or has led to it already.
        """
        if self.asked is None or policy in self.own:
            return False
        return self.asked not in policy.downgrade_chain or self.asked in self.given

    def _place(self, chain: Sequence[str]) -> int:
        """Return where in a chain the run stands; -1 is before its first model."""
        if self.asked is None:
            return 0
        return chain.index(self.asked) if self.asked in chain else -1


def first_of(models: Sequence[str]) -> str | None:
    """Return the model that a chain starts with."""
    return _router.select_model(list(models)).model if models else None
