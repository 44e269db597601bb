"""Arguments by name, bound as Python binds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from inspect import Parameter, Signature
    from types import FunctionType


def make_binder(fn: Callable[..., Any], signature: Signature) -> Callable[..., dict[str, Any]]:
    """Return a function with the parameters of `fn` that returns its arguments by name, defaults applied.

    `*args` are one entry, a list, and `**kwargs` one, a dict. Because Python itself does the binding it is
    quick, and the TypeError of a wrong call reads as if `fn` had been called.
    """
    parameters = signature.parameters.values()
    head = signature.replace(
        parameters=[_bare(parameter) for parameter in parameters], return_annotation=signature.empty
    )
    body = ", ".join(f"'{p.name}': " + (f"[*{p.name}]" if p.kind is p.VAR_POSITIONAL else p.name) for p in parameters)
    names: dict[str, Any] = {}
    exec(f"def bind{head}: return {{{body}}}", names)  # noqa: S102 - made of the names of parameters only
    bind: FunctionType = names["bind"]
    bind.__qualname__ = fn.__qualname__
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    by_name = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    bind.__defaults__ = tuple(default for name, default in defaults.items() if name not in by_name)
    bind.__kwdefaults__ = {name: default for name, default in defaults.items() if name in by_name}
    return bind


def _bare(parameter: Parameter) -> Parameter:
    """Return a parameter that reads as plain source: no annotation, and None in place of any default."""
    default = parameter.empty if parameter.default is parameter.empty else None
    return parameter.replace(annotation=parameter.empty, default=default)


class Unbinder:
    """Turns arguments by name back into what the function is called with."""

    def __init__(self, signature: Signature) -> None:
        parameters = signature.parameters.values()
        self._positional = [p.name for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD]
        self._by_name = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        self._more = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        self._others = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)

    def __call__(self, arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """Return the positional arguments and those by name."""
        args = [arguments[name] for name in self._positional]
        kwargs = {name: arguments[name] for name in self._by_name}
        if self._more is not None:
            args += arguments[self._more]
        if self._others is not None:
            kwargs |= arguments[self._others]
        return args, kwargs
