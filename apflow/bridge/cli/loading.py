"""Loading the app whose tasks a command is about: a script, a module, or something in one of them."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from apflow.bridge.cli.exits import Failed, place_of

if TYPE_CHECKING:
    from collections.abc import Iterator

HOW = "name the app with --app app.py, --app module or --app module:attribute, or set APFLOW_APP"


@dataclass(frozen=True, slots=True)
class App:
    """An app that was loaded.

    Attributes:
        text: As it was named.
        module: The module, or the script as one.
        target: What a door takes: an object in it, or None for all tasks that are known now.
    """

    text: str
    module: ModuleType
    target: Any


def load(text: str | None, database_url: str | None = None) -> App:
    """Load an app. What it prints meanwhile goes to the standard error.

    Args:
        text: `app.py`, `module`, or one of them with `:attribute`.
        database_url: Where its default runtime has its runs, unless the app configures that itself.

    Raises:
        Failed: It is not there, it cannot be loaded, or it has configured another database.
    """
    if not text:
        raise Failed("not_found", f"which app? {HOW}")
    path, _, attribute = text.partition(":")
    if database_url is not None:
        configure(database_url)
    with _own_output():
        module = _script(path) if path.endswith(".py") or "/" in path else _module(path)
    target = _attribute(module, attribute, path) if attribute else None
    return App(text, module, target)


def configure(database_url: str) -> None:
    """Make the default runtime one of this database.

    Raises:
        Failed: The URL is none.
    """
    import apflow

    try:
        apflow.configure(database_url)
    except ValueError as error:
        raise Failed("usage", f"--database-url: {error}") from None


@contextlib.contextmanager
def _own_output() -> Iterator[None]:
    """Keep the standard output for what the command itself has to say, and a terminal clean that only completes."""
    if "_APFLOW_COMPLETE" not in os.environ:
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):  # noqa: PTH123
        yield


def _script(path: str) -> ModuleType:
    """Run a script as `python app.py` would, but for what stands below `if __name__ == "__main__"`.

    Its module has the name that multiprocessing gives to the main program of its parent. So its tasks have the origin
    that they have when the script is run, and either process can carry on the runs of the other.
    """
    file = os.path.abspath(path)  # noqa: PTH100 - links are left in it, as in the `__file__` of a main program
    module = ModuleType("__mp_main__")
    module.__file__ = file
    try:
        with open(file, "rb") as script:  # noqa: PTH123 - as above
            source = script.read()
    except OSError as error:
        raise Failed("not_found", f"the app {path} cannot be read: {error.strerror}; {HOW}") from None
    _come_first(os.path.dirname(os.path.realpath(file)))  # noqa: PTH120 - as Python does for a script
    sys.modules["__mp_main__"] = sys.modules["__main__"] = module
    try:
        exec(compile(source, file, "exec", dont_inherit=True), vars(module))  # noqa: S102 - that is what a script is for
    except (Exception, SystemExit) as error:
        raise _broken(path, error, file) from error
    return module


def _module(name: str) -> ModuleType:
    _come_first(os.getcwd())  # noqa: PTH109 - sys.path has texts
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            text = f"there is no module {name!r}, neither in this folder nor installed; {HOW}"
            raise Failed("not_found", text) from None
        raise _broken(name, error) from error
    except (Exception, SystemExit) as error:
        raise _broken(name, error) from error


def _come_first(folder: str) -> None:
    if folder not in sys.path[:1]:
        sys.path.insert(0, folder)


def _attribute(module: ModuleType, path: str, where: str) -> Any:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            raise Failed("not_found", f"there is no {path!r} in {where}; leave it out for all tasks")
    return found


def _broken(app: str, error: BaseException, file: str | None = None) -> Failed:
    """Return the error about an app that raised. Texts of its own exceptions are only in the traceback."""
    from apflow.errors import ApflowError

    place = place_of(error, file)
    text = f": {error}" if isinstance(error, ImportError | ApflowError) else ""
    if isinstance(error, SyntaxError):
        place, text = f"{error.filename}:{error.lineno}", f": {error.msg}"
    trace = "".join(traceback.format_exception(error))
    return Failed("failed", f"the app {app} cannot be loaded: {type(error).__name__} at {place}{text}", trace=trace)
