"""Which executors a package has, read from its source: scanning imports nothing, and so runs nothing."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from apflow.engine.registry import registered
from apflow.engine.source import BrokenFile, ExecutorMetadata, read_executors
from apflow.errors import DuplicateExecutorError, ExecutorNotFoundError, MissingExtraError, TaskDefinitionError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from importlib.machinery import ModuleSpec

    from apflow.engine.executable import ExecutableTask

__all__ = ["BrokenFile", "ExecutorMetadata", "ExtensionScanner"]

logger = logging.getLogger(__name__)

_BUILTIN = "apflow.executors"


class _Stamp(NamedTuple):
    """What changes when a file does."""

    mtime_ns: int
    size: int


@dataclass(frozen=True, slots=True)
class _Entry:
    """What one file had when it was last read."""

    module: str
    stamp: _Stamp | None
    found: tuple[ExecutorMetadata, ...] = ()
    broken: tuple[BrokenFile, ...] = ()


@dataclass(slots=True)
class _Known:
    """All that was scanned in this process. The lock guards changes; `entries` and `by_id` are replaced as a whole."""

    lock: threading.RLock = field(default_factory=threading.RLock)
    entries: Mapping[Path, _Entry] = field(default_factory=dict)
    by_id: Mapping[str, ExecutorMetadata] = field(default_factory=dict)
    builtin: bool = False


class ExtensionScanner:
    """Finds classes with `@executor_register` by reading source files, and imports one when it is asked to.

    The decorator is known by its name: `executor_register`, whatever it was imported as and from where, bare or
    called, or as an attribute of an imported module. Classes inside functions are not found. A file is parsed again
    only when its time or its size has changed. All methods may be called from any thread.
    """

    _known = _Known()

    @classmethod
    def scan_builtin_executors(cls) -> dict[str, ExecutorMetadata]:
        """Return the executors that come with apflow, by id."""
        with cls._known.lock:
            found = cls._scan(_places(_BUILTIN))
            cls._known.builtin = True
        return found

    @classmethod
    def scan_package(cls, package: str) -> dict[str, ExecutorMetadata]:
        """Return the executors in a module, or in a package and everything below it, by id.

        Args:
            package: A name that can be imported, with or without dots. Neither it nor a package around it is
                imported. Folders without an `__init__.py` are packages too.

        Raises:
            ExecutorNotFoundError: There is no such package, or it has no source.
            DuplicateExecutorError: Two classes have one id, among these and all that were scanned before.
        """
        return cls._scan_beside_builtin(_places(package))

    @classmethod
    def scan_path(cls, path: Path, package: str = "") -> dict[str, ExecutorMetadata]:
        """Return the executors in a file, or in a folder and everything below it, by id.

        Args:
            path: A file or a folder. Links to folders below it are not followed.
            package: The package that the folder is, or that the file stands in. When empty, the folders around it
                that have an `__init__.py` tell; without any, modules are named as if the folder were on `sys.path`.

        Raises:
            ExecutorNotFoundError: There is no such file or folder.
            DuplicateExecutorError: Two classes have one id, among these and all that were scanned before.
        """
        place = path.resolve()
        if not place.exists():
            raise ExecutorNotFoundError(f"there is nothing to scan for executors at {path}")
        folder = place if place.is_dir() else place.parent
        return cls._scan_beside_builtin([(place, package or _package_of(folder))])

    @classmethod
    def broken(cls) -> tuple[BrokenFile, ...]:
        """Return what the latest scans could not read, by file and line. Each was logged as a warning, once."""
        broken = [one for entry in cls._known.entries.values() for one in entry.broken]
        return tuple(sorted(broken, key=lambda one: (one.file, one.line)))

    @classmethod
    def find(cls, executor_id: str) -> ExecutorMetadata | None:
        """Return the executor with this id, of all that were scanned so far and those of apflow, or None."""
        if not cls._known.builtin:
            cls.scan_builtin_executors()
        return cls._known.by_id.get(executor_id)

    @staticmethod
    def load(metadata: ExecutorMetadata) -> type[ExecutableTask]:
        """Import the module of an executor and return its class.

        Raises:
            ExecutorNotFoundError: The module cannot be imported, or has no such executor any more. The message
                names the module and the package that is missing; the error of the import is its cause.
            DuplicateExecutorError: The process has imported another class with this id.
        """
        if (running := _in_main(metadata)) is not None:
            return running
        where = f"executor {metadata.id!r}: module {metadata.module_path}"
        importlib.invalidate_caches()  # The file may be newer than what the import system has seen of its folder.
        try:
            importlib.import_module(metadata.module_path)
        except (DuplicateExecutorError, TaskDefinitionError):
            raise
        except (Exception, SystemExit) as error:
            raise ExecutorNotFoundError(f"{where} cannot be imported: {_missing(error, metadata)}") from error
        known = registered(metadata.id)
        if known is None or known.place != f"{metadata.module_path}.{metadata.class_name}":
            raise ExecutorNotFoundError(
                f"{where} was imported, and its class {metadata.class_name} is not registered under this id; "
                f"it was found in {metadata.file}:{metadata.line}"
            )
        return known.kind

    @classmethod
    def _scan_beside_builtin(cls, places: list[tuple[Path, str]]) -> dict[str, ExecutorMetadata]:
        """Scan so that an id which apflow has itself is refused here, not at the first `find`."""
        with cls._known.lock:
            if not cls._known.builtin:
                cls.scan_builtin_executors()
            return cls._scan(places)

    @classmethod
    def _scan(cls, places: list[tuple[Path, str]]) -> dict[str, ExecutorMetadata]:
        """Read what is new or changed in these places; nothing is kept of a scan that finds an id twice."""
        known = cls._known
        with known.lock:
            entries = dict(known.entries)
            scanned: dict[Path, _Entry] = {}
            for root, package in places:
                scanned.update(_read_all(root, package, entries))
            for path in [path for path in entries if any(path.is_relative_to(root) for root, _ in places)]:
                del entries[path]
            by_id = _by_id(scanned, entries)
            known.entries, known.by_id = {**entries, **scanned}, by_id
        return {one.id: one for entry in scanned.values() for one in entry.found}


def _by_id(scanned: Mapping[Path, _Entry], others: dict[Path, _Entry]) -> dict[str, ExecutorMetadata]:
    """Return all executors by id. A file of `others` that seems to have the same id is looked at again before.

    Raises:
        DuplicateExecutorError: Two files, or two classes of one file, have the same id.
    """
    ids = {one.id for entry in scanned.values() for one in entry.found}
    for path, entry in list(others.items()):
        if not ids.isdisjoint(one.id for one in entry.found):
            others[path] = _read(path, entry.module, entry) if path.exists() else _Entry(entry.module, None)
    found: dict[str, ExecutorMetadata] = {}
    for entry in (*others.values(), *scanned.values()):
        for one in entry.found:
            known = found.setdefault(one.id, one)
            # Branches of one `try` or `if` may define the same class; only one of them runs.
            if (known.file, known.class_name) != (one.file, one.class_name):
                raise DuplicateExecutorError(
                    f"two executors have the id {one.id!r}: {known.class_name} in {known.file}:{known.line} "
                    f"and {one.class_name} in {one.file}:{one.line}"
                )
    return found


def _places(package: str) -> list[tuple[Path, str]]:
    """Return the files or folders that a package or module consists of, importing nothing."""
    top, *rest = package.split(".")
    spec = _top_spec(top) if all(part.isidentifier() for part in (top, *rest)) else None
    places = [] if spec is None else _source_of(spec)
    for part in rest:
        places = _inside(places, part)
    if not places:
        raise ExecutorNotFoundError(f"there is no package or module {package!r} with source files to scan")
    return [(place, package if place.is_dir() else package.rpartition(".")[0]) for place in places]


def _top_spec(name: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)  # Without a dot in its name, this imports nothing.
    except (ImportError, ValueError):  # A ValueError: the program itself has no spec.
        return None


def _source_of(spec: ModuleSpec) -> list[Path]:
    if spec.submodule_search_locations is not None:
        return [folder for one in spec.submodule_search_locations if (folder := Path(one).resolve()).is_dir()]
    return [Path(spec.origin).resolve()] if spec.origin and spec.origin.endswith(".py") else []


def _inside(folders: list[Path], name: str) -> list[Path]:
    """Return what the import system takes for `name` in the folders of a package."""
    parts: list[Path] = []
    for folder in folders:
        if (folder / name / "__init__.py").is_file():
            return [folder / name]
        if (folder / f"{name}.py").is_file():
            return [folder / f"{name}.py"]
        if (folder / name).is_dir():
            parts.append(folder / name)
    return parts


def _package_of(folder: Path) -> str:
    names: list[str] = []
    while (folder / "__init__.py").is_file() and folder.name.isidentifier():
        names.append(folder.name)
        folder = folder.parent
    return ".".join(reversed(names))


def _read_all(root: Path, package: str, entries: Mapping[Path, _Entry]) -> dict[Path, _Entry]:
    """Return what the files below `root` have, from `entries` where they have not changed."""
    if not root.is_dir():
        module = package if root.stem == "__init__" else f"{package}.{root.stem}".lstrip(".")
        return {root: _read(root, module, entries.get(root))}
    found: dict[Path, _Entry] = {}

    def unreadable(error: OSError) -> None:
        folder = Path(error.filename)
        broken = BrokenFile(folder, 0, f"cannot be listed: {error.strerror}")
        found[folder] = _kept(_Entry(package, None, (), (broken,)), entries.get(folder))

    for place, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = sorted(name for name in folders if name.isidentifier() and name != "__pycache__")
        parts = [part for part in (package, *Path(place).relative_to(root).parts) if part]
        for file in sorted(files):
            stem, suffix = os.path.splitext(file)  # noqa: PTH122 - two strings are enough
            if suffix == ".py" and stem.isidentifier():
                path = Path(place, file)
                module = ".".join(parts if stem == "__init__" else [*parts, stem])
                found[path] = _read(path, module, entries.get(path))
    return found


def _read(path: Path, module: str, known: _Entry | None) -> _Entry:
    """Return what a file has; `known` itself when the file has not changed since then."""
    try:
        status = path.stat()
        stamp = _Stamp(status.st_mtime_ns, status.st_size)
        if known is not None and (known.module, known.stamp) == (module, stamp):
            return known
        source = path.read_bytes()
    except OSError as error:
        broken_file = BrokenFile(path, 0, f"cannot be read: {error.strerror}")
        return _kept(_Entry(module, None, (), (broken_file,)), known)
    found, broken = read_executors(source, path, module)
    return _kept(_Entry(module, stamp, tuple(found), tuple(broken)), known)


def _kept(entry: _Entry, known: _Entry | None) -> _Entry:
    """Return `entry`; what is broken in it, and was not before, is logged."""
    for one in entry.broken:
        if known is None or one not in known.broken:
            logger.warning("%s:%d is left out of the executors: %s", one.file, one.line, one.reason)
    return entry


def _in_main(metadata: ExecutorMetadata) -> type[ExecutableTask] | None:
    """Return the class if the running program itself has defined it: importing its file would define it again."""
    known = registered(metadata.id)
    if known is None or known.kind.__module__ != "__main__" or known.kind.__qualname__ != metadata.class_name:
        return None
    program = getattr(sys.modules["__main__"], "__file__", None)
    return known.kind if program and Path(program).resolve() == metadata.file else None


def _missing(error: BaseException, metadata: ExecutorMetadata) -> str:
    """Tell what an import lacks, without the words of errors that are not about imports."""
    if isinstance(error, MissingExtraError):
        return str(error)
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return f"it raised {type(error).__name__}"
    if f"{metadata.module_path}.".startswith(f"{error.name}."):
        return f"there is no module {error.name!r} on sys.path; it was found in {metadata.file}"
    top = error.name.partition(".")[0]
    hint = f"; it is one of the executor's dependencies: pip install {top}" if top in metadata.dependencies else ""
    return f"{error.name!r} is not installed{hint}"
