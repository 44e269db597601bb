"""Cost policies: which values they take, from where on they act, and in which order they are asked."""

from __future__ import annotations

import json
import logging
import math
import pickle
import threading
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apflow.errors import ApflowError, PolicyNotFoundError
from apflow.governance.policy import (
    DOWNGRADE_THRESHOLD,
    CostPolicy,
    PolicyAction,
    PolicyEngine,
    dump_policy,
    load_policy,
    policy_for_models,
)

CHAIN = ["opus", "sonnet", "haiku"]
BLOCK = CostPolicy("stop", PolicyAction.BLOCK, 0.8)
DOWNGRADE = CostPolicy("cheaper", PolicyAction.DOWNGRADE, 0.8, CHAIN, "the big one first")
NOTIFY = CostPolicy("tell", PolicyAction.NOTIFY, 0.8)
CONTINUE = CostPolicy("nothing", PolicyAction.CONTINUE, 0.8)
EVERY = [BLOCK, DOWNGRADE, NOTIFY, CONTINUE]

actions = st.sampled_from(PolicyAction)
policies = st.builds(
    CostPolicy,
    name=st.text(min_size=1, max_size=100).filter(str.strip),
    action=actions,
    threshold=st.floats(0, 1, exclude_min=True),
    downgrade_chain=st.lists(st.text(min_size=1, max_size=20).filter(str.strip), min_size=1, unique=True),
    description=st.text(),
)


@pytest.fixture
def engine() -> PolicyEngine:
    engine = PolicyEngine()
    for policy in EVERY:
        engine.register_policy(policy)
    return engine


# --- the values of a policy -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("name", value) for value in ("", "  \n", None, 7, "x" * 101)),
        *(("action", value) for value in ("block", None, 1)),
        *(("threshold", value) for value in (0, 0.0, -0.1, 1.0001, 2, math.nan, math.inf, True, "0.5", None)),
        *(("downgrade_chain", value) for value in ("opus", {"opus"}, None, [""], [" "], [None], ["a", "b", "a"])),
        ("downgrade_chain", ["x" * 256]),
        ("description", None),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(field: str, value: Any) -> None:
    values: dict[str, Any] = {"name": "p", "action": PolicyAction.NOTIFY, "threshold": 0.5, field: value}
    with pytest.raises(ValueError, match=f"^{field}"):
        CostPolicy(**values)


@pytest.mark.parametrize("threshold", [1, 1.0, 0.5, math.ulp(0.0)])
def test_thresholds_lie_above_zero_and_include_one(threshold: float) -> None:
    assert CostPolicy("p", PolicyAction.BLOCK, threshold).threshold == threshold


def test_the_longest_name_and_model_fit() -> None:
    assert CostPolicy("x" * 100, PolicyAction.DOWNGRADE, 1, ["m" * 255]).name == "x" * 100


@pytest.mark.parametrize("action", PolicyAction)
def test_only_downgrade_needs_a_chain(action: PolicyAction) -> None:
    if action is PolicyAction.DOWNGRADE:
        with pytest.raises(ValueError, match=r"^downgrade_chain must not be empty"):
            CostPolicy("p", action, 0.5)
    else:
        assert CostPolicy("p", action, 0.5).downgrade_chain == []


def test_a_later_change_of_the_callers_list_changes_no_policy() -> None:
    chain = ["opus", "sonnet"]
    policy = CostPolicy("p", PolicyAction.DOWNGRADE, 0.5, chain)
    chain.append("haiku")
    assert policy.downgrade_chain == ["opus", "sonnet"]
    assert policy == CostPolicy("p", PolicyAction.DOWNGRADE, 0.5, ["opus", "sonnet"])


def test_a_tuple_and_a_list_make_the_same_policy() -> None:
    given_tuple: Any = tuple(CHAIN)
    assert CostPolicy("cheaper", PolicyAction.DOWNGRADE, 0.8, given_tuple, "the big one first") == DOWNGRADE


# --- judging --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", EVERY, ids=lambda policy: policy.action.value)
@pytest.mark.parametrize("utilization", [0, 0.79, math.nextafter(0.8, 0)])
def test_below_its_threshold_every_policy_lets_things_continue(
    engine: PolicyEngine, policy: CostPolicy, utilization: float
) -> None:
    evaluation = engine.evaluate(policy.name, utilization)
    assert evaluation.policy is policy
    assert not evaluation.triggered
    assert evaluation.action is PolicyAction.CONTINUE
    assert evaluation.model_override is None


@pytest.mark.parametrize("policy", EVERY, ids=lambda policy: policy.action.value)
@pytest.mark.parametrize("utilization", [800_000_000 / 1_000_000_000, 0.8001, 1, 3.5, math.inf])
def test_from_its_threshold_on_a_policy_takes_its_action(
    engine: PolicyEngine, policy: CostPolicy, utilization: float
) -> None:
    evaluation = engine.evaluate(policy.name, utilization)
    assert evaluation.policy is policy
    assert evaluation.triggered
    assert evaluation.action is policy.action
    assert evaluation.model_override == ("sonnet" if policy is DOWNGRADE else None)


@pytest.mark.parametrize(("index", "model"), [(-1, "opus"), (0, "sonnet"), (1, "haiku")])
def test_downgrade_takes_the_next_model_of_the_chain(engine: PolicyEngine, index: int, model: str) -> None:
    evaluation = engine.evaluate("cheaper", 0.9, index)
    assert (evaluation.action, evaluation.model_override) == (PolicyAction.DOWNGRADE, model)


@pytest.mark.parametrize("index", [2, 3, 50])
def test_an_exhausted_chain_blocks(engine: PolicyEngine, index: int) -> None:
    evaluation = engine.evaluate("cheaper", 0.9, index)
    assert evaluation.triggered
    assert (evaluation.action, evaluation.model_override) == (PolicyAction.BLOCK, None)
    assert "no model follows 'haiku'" in evaluation.message


def test_a_chain_of_one_model_blocks_whoever_uses_it_already() -> None:
    policy = policy_for_models("t", ["haiku"])
    assert PolicyEngine.judge(policy, 0.8).action is PolicyAction.BLOCK
    assert PolicyEngine.judge(policy, 0.8, -1).model_override == "haiku"


@pytest.mark.parametrize("utilization", [-0.01, -math.inf, math.nan, None, "1", True])
def test_a_utilization_is_a_number_from_zero_up(engine: PolicyEngine, utilization: Any) -> None:
    with pytest.raises(ValueError, match=r"^utilization must be a number >= 0"):
        engine.evaluate("stop", utilization)
    with pytest.raises(ValueError, match=r"^utilization must be a number >= 0"):
        engine.judge(BLOCK, utilization)


def test_a_place_before_the_chain_is_refused() -> None:
    with pytest.raises(ValueError, match="current_index"):
        PolicyEngine.judge(DOWNGRADE, 0.9, -2)


@pytest.mark.parametrize(
    ("policy", "utilization", "index", "words"),
    [
        (BLOCK, 0.85, 0, ["'stop'", "stops", "85%", "80%"]),
        (DOWNGRADE, 0.85, 0, ["'cheaper'", "'sonnet'", "85%", "80%"]),
        (DOWNGRADE, 0.85, 2, ["'cheaper'", "stops", "'haiku'", "85%", "80%"]),
        (NOTIFY, 0.85, 0, ["'tell'", "notice", "85%", "80%"]),
        (CONTINUE, 1.25, 0, ["'nothing'", "continue", "125%", "80%"]),
        (BLOCK, 0.5, 0, ["'stop'", "nothing yet", "50%", "80%"]),
        (BLOCK, 0.79999, 0, ["79.999%", "80%"]),
    ],
)
def test_a_message_is_a_sentence_with_both_percentages(
    policy: CostPolicy, utilization: float, index: int, words: list[str]
) -> None:
    message = PolicyEngine.judge(policy, utilization, index).message
    assert [word for word in words if word not in message] == []
    assert message.startswith("Policy ")
    assert message.endswith(".")


@given(policies, st.floats(0, 2), st.integers(-1, 5))
def test_a_judgement_follows_threshold_and_chain(policy: CostPolicy, utilization: float, index: int) -> None:
    evaluation = PolicyEngine.judge(policy, utilization, index)
    assert evaluation.triggered == (utilization >= policy.threshold)
    left = policy.downgrade_chain[index + 1 :]
    if not evaluation.triggered:
        assert evaluation.action is PolicyAction.CONTINUE
    elif policy.action is PolicyAction.DOWNGRADE:
        assert evaluation.action is (PolicyAction.DOWNGRADE if left else PolicyAction.BLOCK)
        assert evaluation.model_override == next(iter(left), None)
    else:
        assert (evaluation.action, evaluation.model_override) == (policy.action, None)


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_policy_is_found_by_its_name(engine: PolicyEngine) -> None:
    assert engine.get_policy("stop") is BLOCK
    assert engine.get_policy("missing") is None


@pytest.mark.parametrize("second", [BLOCK, CostPolicy("stop", PolicyAction.NOTIFY, 0.1)])
def test_a_name_is_registered_once(engine: PolicyEngine, second: CostPolicy) -> None:
    with pytest.raises(ValueError, match="'stop' is already registered"):
        engine.register_policy(second)
    assert engine.get_policy("stop") is BLOCK


def test_only_policies_are_registered(engine: PolicyEngine) -> None:
    nonsense: Any = "stop"
    with pytest.raises(ValueError, match="policy must be a CostPolicy, got a str"):
        engine.register_policy(nonsense)


def test_registering_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        PolicyEngine().register_policy(BLOCK)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_threads_that_register_at_once_lose_nothing_and_share_no_name() -> None:
    engine, start, refused = PolicyEngine(), threading.Barrier(8), []

    def register(thread: int) -> None:
        start.wait()
        for number in range(50):
            engine.register_policy(CostPolicy(f"own {thread} {number}", PolicyAction.BLOCK, 1))
            try:
                engine.register_policy(CostPolicy(f"shared {number}", PolicyAction.BLOCK, 1))
            except ValueError:
                refused.append(number)

    threads = [threading.Thread(target=register, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = [f"own {thread} {number}" for thread in range(8) for number in range(50)]
    names += [f"shared {number}" for number in range(50)]
    assert [name for name in names if engine.get_policy(name) is None] == []
    assert sorted(refused) == sorted(list(range(50)) * 7)


def test_an_unknown_name_is_a_key_error_that_says_what_to_do(engine: PolicyEngine) -> None:
    for ask in (lambda: engine.evaluate("missing", 0.5), lambda: engine.resolve(["stop", "missing"])):
        with pytest.raises(KeyError) as raised:
            ask()
        assert isinstance(raised.value, PolicyNotFoundError)
        assert isinstance(raised.value, ApflowError)
        assert not raised.value.retryable
        text = str(raised.value)
        assert text.startswith("there is no policy 'missing'")
        assert "'cheaper', 'nothing', 'stop', 'tell'" in text
        assert "Runtime(policies=[...])" in text


def test_an_engine_without_policies_says_so() -> None:
    with pytest.raises(PolicyNotFoundError, match="known are: none"):
        PolicyEngine().evaluate("missing", 0.5)


def test_the_error_survives_pickling() -> None:
    error = PolicyNotFoundError("missing", ["b", "a"])
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made in the line itself
    assert (str(copy), copy.policy_name, copy.known) == (str(error), "missing", ("a", "b"))


def test_names_and_inline_policies_are_resolved_in_their_order(engine: PolicyEngine) -> None:
    inline = CostPolicy("stop", PolicyAction.NOTIFY, 0.1)
    assert engine.resolve(["tell", inline, "stop"]) == [NOTIFY, inline, BLOCK]
    assert engine.resolve(()) == []


@pytest.mark.parametrize("bad", ["stop", [None], [BLOCK, 3]])
def test_what_is_neither_name_nor_policy_is_refused(engine: PolicyEngine, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"^policies must"):
        engine.resolve(bad)


# --- order ----------------------------------------------------------------------------------------------------------


def test_the_highest_threshold_is_first_and_the_most_restrictive_action_at_equal_ones() -> None:
    late = CostPolicy("late", PolicyAction.CONTINUE, 0.9)
    early = CostPolicy("early", PolicyAction.BLOCK, 0.1)
    assert PolicyEngine.ordered([CONTINUE, early, NOTIFY, late, DOWNGRADE, BLOCK]) == [
        late,
        BLOCK,
        DOWNGRADE,
        NOTIFY,
        CONTINUE,
        early,
    ]


@given(st.lists(policies))
def test_ordering_keeps_every_policy_and_never_rises(given_policies: list[CostPolicy]) -> None:
    ordered = PolicyEngine.ordered(given_policies)
    assert sorted(map(id, ordered)) == sorted(map(id, given_policies))
    assert all(one.threshold >= other.threshold for one, other in pairwise(ordered))


# --- models=[...] and the stored form -------------------------------------------------------------------------------


def test_a_list_of_models_is_a_downgrade_from_eighty_percent() -> None:
    models = ["opus", "sonnet"]
    policy = policy_for_models("research", models)
    models.clear()
    assert policy == CostPolicy("models of research", PolicyAction.DOWNGRADE, DOWNGRADE_THRESHOLD, ["opus", "sonnet"])
    assert DOWNGRADE_THRESHOLD == 0.8


def test_the_name_of_a_long_task_is_cut() -> None:
    policy = policy_for_models("t" * 100, ["opus"])
    assert policy.name == "models of " + "t" * 90


@pytest.mark.parametrize("models", [[], "opus", {"opus"}, [""], ["a", "a"], None])
def test_bad_models_are_refused_as_models(models: Any) -> None:
    with pytest.raises(ValueError, match=r"^models"):
        policy_for_models("t", models)


@given(policies)
def test_a_stored_policy_comes_back_equal(policy: CostPolicy) -> None:
    assert load_policy(json.loads(json.dumps(dump_policy(policy)))) == policy


def test_the_stored_form_is_plain_and_its_own() -> None:
    stored = dump_policy(DOWNGRADE)
    assert stored == {
        "name": "cheaper",
        "action": "downgrade",
        "threshold": 0.8,
        "downgrade_chain": CHAIN,
        "description": "the big one first",
    }
    stored["downgrade_chain"].clear()
    assert DOWNGRADE.downgrade_chain == CHAIN


def test_chain_and_description_may_be_missing_in_the_stored_form() -> None:
    assert load_policy({"name": "stop", "action": "block", "threshold": 0.8}) == BLOCK


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"action": "explode"}, "action"),
        ({"action": None}, "action"),
        ({"threshold": 7}, "threshold"),
        ({"downgrade_chain": "opus"}, "downgrade_chain"),
        ({"since": 1}, "since"),
    ],
)
def test_a_stored_form_that_is_no_policy_names_the_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(ValueError, match=field):
        load_policy({**dump_policy(BLOCK), **change})


@pytest.mark.parametrize("field", ["name", "action", "threshold"])
def test_a_stored_form_without_a_needed_field_names_it(field: str) -> None:
    stored = dump_policy(BLOCK)
    del stored[field]
    with pytest.raises(ValueError, match=f"^{field}"):
        load_policy(stored)
