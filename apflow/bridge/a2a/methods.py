"""The methods of both generations of the protocol: how their parameters are read, and their results shown."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from a2a.compat.v0_3 import conversions
from a2a.compat.v0_3 import types as old
from a2a.server.routes.common import serialize_list_tasks_response
from a2a.types.a2a_pb2 import (
    CancelTaskRequest,
    GetExtendedAgentCardRequest,
    GetTaskRequest,
    ListTasksRequest,
    Message,
    SendMessageRequest,
    SendMessageResponse,
    SubscribeToTaskRequest,
    Task,
    TaskState,
)
from a2a.utils.errors import InvalidParamsError
from a2a.utils.proto_utils import parse_lenient, to_stream_response

from apflow.bridge.a2a.parts import to_json, whole

if TYPE_CHECKING:
    from collections.abc import Callable

    Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Method:
    """One method.

    Attributes:
        version: Major version of the protocol.
        handler: Name of the method of the handler.
        read: Makes the handler's parameters from JSON. What it raises means that they do not fit.
        shown: Makes JSON from what the handler returns, or yields, and the parameters.
        streams: It answers with events.
    """

    version: str
    handler: str
    read: Callable[[Json], Any]
    shown: Callable[[Any, Json], Any]
    streams: bool = False


# -- 1.0 ---------------------------------------------------------------------------------------------------------


def _as(kind: type) -> Callable[[Json], Any]:
    return lambda params: parse_lenient(params, kind())


def _new_list(params: Json) -> Any:
    found = parse_lenient(params, ListTasksRequest())
    if params.get("status") and not found.status:
        raise InvalidParamsError(message="status must be one of the states of the protocol")
    return found


def _new_answer(found: Any, _: Json) -> Any:
    return to_json(
        SendMessageResponse(message=found) if isinstance(found, Message) else SendMessageResponse(task=found)
    )


def _new_listed(found: Any, params: Json) -> Any:
    return whole(serialize_list_tasks_response(found, bool(params.get("includeArtifacts"))))


def _new_shown(found: Any, _: Json) -> Any:
    return to_json(found)


def _new_event(found: Any, _: Json) -> Any:
    return to_json(to_stream_response(found))


# -- 0.3 ---------------------------------------------------------------------------------------------------------


def _old(kind: Any, convert: Callable[[Any], Any]) -> Callable[[Json], Any]:
    """Return what reads the parameters of a method of 0.3."""
    params_of = kind.model_fields["params"].annotation
    return lambda params: convert(kind(id=0, params=params_of.model_validate(params)))


def _old_list(params: Json) -> Any:
    """Read the parameters of `tasks/list`, which the SDK serves in 1.0 only."""
    found = ListTasksRequest()
    for ours, theirs in (("context_id", "contextId"), ("page_token", "pageToken"), ("page_size", "pageSize")):
        if params.get(theirs) is not None:
            setattr(found, ours, params[theirs])
    if params.get("historyLength") is not None:
        found.history_length = params["historyLength"]
    if params.get("status") is not None:
        name = f"TASK_STATE_{params['status'].upper().replace('-', '_')}"
        found.status = TaskState.Value(name)
    after = params.get("lastUpdatedAfter")
    if after is not None:
        # Milliseconds since 1970, or text.
        moment = datetime.fromisoformat(after) if isinstance(after, str) else datetime.fromtimestamp(after / 1000, UTC)
        found.status_timestamp_after.FromDatetime(moment.astimezone(UTC))
    found.include_artifacts = bool(params.get("includeArtifacts"))
    return found


def _old_json(model: Any) -> Any:
    return whole(model.model_dump(mode="json", by_alias=True, exclude_none=True))


def _old_task(found: Any, _: Json) -> Any:
    convert = conversions.to_compat_task if isinstance(found, Task) else conversions.to_compat_message
    return _old_json(convert(found))


def _old_listed(found: Any, _: Json) -> Any:
    return {
        "tasks": [_old_json(conversions.to_compat_task(one)) for one in found.tasks],
        "totalSize": found.total_size,
        "pageSize": found.page_size,
        "nextPageToken": found.next_page_token,
    }


def _old_event(found: Any, _: Json) -> Any:
    return _old_json(conversions.to_compat_stream_response(to_stream_response(found), 0).result)


def _old_card(found: Any, _: Json) -> Any:
    return _old_json(conversions.to_compat_agent_card(found))


_TO_SEND = _old(old.SendMessageRequest, conversions.to_core_send_message_request)

METHODS = {
    "SendMessage": Method("1", "on_message_send", _as(SendMessageRequest), _new_answer),
    "SendStreamingMessage": Method("1", "on_message_send_stream", _as(SendMessageRequest), _new_event, streams=True),
    "GetTask": Method("1", "on_get_task", _as(GetTaskRequest), _new_shown),
    "ListTasks": Method("1", "on_list_tasks", _new_list, _new_listed),
    "CancelTask": Method("1", "on_cancel_task", _as(CancelTaskRequest), _new_shown),
    "SubscribeToTask": Method("1", "on_subscribe_to_task", _as(SubscribeToTaskRequest), _new_event, streams=True),
    "GetExtendedAgentCard": Method("1", "on_get_extended_agent_card", _as(GetExtendedAgentCardRequest), _new_shown),
    "message/send": Method("0", "on_message_send", _TO_SEND, _old_task),
    "message/stream": Method("0", "on_message_send_stream", _TO_SEND, _old_event, streams=True),
    "tasks/get": Method("0", "on_get_task", _old(old.GetTaskRequest, conversions.to_core_get_task_request), _old_task),
    "tasks/list": Method("0", "on_list_tasks", _old_list, _old_listed),
    "tasks/cancel": Method(
        "0", "on_cancel_task", _old(old.CancelTaskRequest, conversions.to_core_cancel_task_request), _old_task
    ),
    "tasks/resubscribe": Method(
        "0",
        "on_subscribe_to_task",
        _old(old.TaskResubscriptionRequest, conversions.to_core_subscribe_to_task_request),
        _old_event,
        streams=True,
    ),
    "agent/getAuthenticatedExtendedCard": Method(
        "0", "on_get_extended_agent_card", lambda _: GetExtendedAgentCardRequest(), _old_card
    ),
}

#: We call nobody back.
PUSH_METHODS = {
    *(f"tasks/pushNotificationConfig/{one}" for one in ("set", "get", "list", "delete")),
    *(f"{one}TaskPushNotificationConfig" for one in ("Create", "Get", "Delete")),
    "ListTaskPushNotificationConfigs",
}
