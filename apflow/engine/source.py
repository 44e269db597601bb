"""What the source of a module tells about the executors in it, read without importing it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apflow.errors import TaskDefinitionError
from apflow.naming import check_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_REGISTER = "executor_register"


@dataclass(frozen=True, slots=True)
class ExecutorMetadata:
    """What the source tells about an executor class.

    Attributes:
        id: What task trees call it.
        name: What people call it; its id in words when the class has no literal `name`.
        description: The class's literal `description`, else the first paragraph of its docstring.
        tags: Words that group executors.
        dependencies: Packages that it needs beyond a plain installation.
        module_path: The module to import, such as `apflow.executors.email`.
        class_name: The class in it, with dots when it stands inside another one.
        file: Where it stands.
        line: The line of `class`, from 1.
    """

    id: str
    name: str
    description: str
    tags: tuple[str, ...]
    dependencies: tuple[str, ...]
    module_path: str
    class_name: str
    file: Path
    line: int

    @property
    def always_available(self) -> bool:
        """Whether a plain installation can run it."""
        return not self.dependencies


@dataclass(frozen=True, slots=True)
class BrokenFile:
    """A file, or a class in it, whose executors cannot be told without importing it.

    Attributes:
        file: The file, or a folder that cannot be listed.
        line: From 1; 0 when it is not about a line.
        reason: What is wrong, for people.
    """

    file: Path
    line: int
    reason: str


def read_executors(source: bytes, path: Path, module: str) -> tuple[list[ExecutorMetadata], list[BrokenFile]]:
    """Return the executors in a source file, and what of it cannot be told.

    Args:
        source: What is in the file.
        path: The file.
        module: The name that it is imported by.
    """
    try:
        tree = ast.parse(source, path)
    except SyntaxError as error:
        return [], [BrokenFile(path, error.lineno or 0, f"cannot be parsed: {error.msg}")]
    except (ValueError, RecursionError, MemoryError) as error:  # Null bytes; too deeply nested.
        return [], [BrokenFile(path, 0, f"cannot be parsed: {type(error).__name__}")]
    found: list[ExecutorMetadata] = []
    broken: list[BrokenFile] = []
    for class_name, node, decorator in _executors(tree):
        executor_id, reason = _id_of(node, decorator)
        if reason:
            broken.append(BrokenFile(path, node.lineno, f"class {class_name}: {reason}"))
        else:
            found.append(_metadata(executor_id, node, module, class_name, path))
    return found, broken


def _executors(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef, ast.expr]]:
    """Yield the classes with the decorator, by line: qualified name, class, decorator."""
    names, modules = _bound(tree)
    for class_name, node in sorted(_classes(tree), key=lambda one: one[1].lineno):
        for decorator in node.decorator_list:
            if _is_register(decorator.func if isinstance(decorator, ast.Call) else decorator, names, modules):
                yield class_name, node, decorator
                break


def _classes(tree: ast.Module) -> Iterator[tuple[str, ast.ClassDef]]:
    """Yield the classes that importing the module can make, with their qualified names."""
    waiting: list[tuple[str, ast.AST]] = [("", tree)]
    while waiting:
        prefix, parent = waiting.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.ClassDef):
                yield prefix + node.name, node
                waiting.append((f"{prefix}{node.name}.", node))
            elif isinstance(node, ast.stmt | ast.excepthandler | ast.match_case) and not isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef
            ):
                waiting.append((prefix, node))


def _bound(tree: ast.Module) -> tuple[set[str], set[str]]:
    """Return what the decorator is called in a file, and all other names that its imports bind."""
    names: set[str] = set()
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if alias.name in (_REGISTER, "*"):
                    names.add(alias.asname or _REGISTER)
                else:
                    modules.add(alias.asname or alias.name)
        elif isinstance(node, ast.Import):
            modules.update(alias.asname or alias.name.partition(".")[0] for alias in node.names)
    return names, modules


def _is_register(node: ast.expr, names: set[str], modules: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in names
    if not (isinstance(node, ast.Attribute) and node.attr == _REGISTER):
        return False
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name) and node.id in modules


def _id_of(node: ast.ClassDef, decorator: ast.expr) -> tuple[str, str]:
    """Return the id of an executor, and what is wrong with it, if something is."""
    value = _attributes(node).get("id")
    if isinstance(decorator, ast.Call):
        if decorator.args or any(keyword.arg != "id" for keyword in decorator.keywords):
            return "", f'write the decorator as @{_REGISTER} or @{_REGISTER}(id="...")'
        given = decorator.keywords[-1].value if decorator.keywords else None
        if given is not None and _literal(given, "") is not None:
            value = given
    executor_id = _literal(value, None)
    if not isinstance(executor_id, str):
        return "", (
            "its id cannot be read without importing it; write it as a literal, as the class attribute "
            f'id = "..." or as @{_REGISTER}(id="...")'
        )
    try:
        return check_name(executor_id), ""
    except TaskDefinitionError as error:
        return "", str(error)


def _metadata(executor_id: str, node: ast.ClassDef, module: str, class_name: str, path: Path) -> ExecutorMetadata:
    attributes = {name: _literal(value, None) for name, value in _attributes(node).items()}
    name, description = attributes.get("name"), attributes.get("description")
    if not isinstance(description, str):
        description = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    return ExecutorMetadata(
        id=executor_id,
        name=name if isinstance(name, str) else _in_words(executor_id),
        description=description,
        tags=_words(attributes.get("tags")),
        dependencies=_words(attributes.get("dependencies")),
        module_path=module,
        class_name=class_name,
        file=path,
        line=node.lineno,
    )


def _in_words(executor_id: str) -> str:
    return " ".join(word.capitalize() for word in executor_id.replace(".", "_").split("_") if word)


def _attributes(node: ast.ClassDef) -> dict[str, ast.expr]:
    """Return what a class body assigns, by name; the last one counts."""
    found: dict[str, ast.expr] = {}
    for statement in node.body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            for target in statement.targets if isinstance(statement, ast.Assign) else (statement.target,):
                if isinstance(target, ast.Name):
                    found[target.id] = statement.value
    return found


def _literal(node: ast.expr | None, default: Any) -> Any:
    """Return the value of a literal, `default` for any other expression."""
    try:
        return default if node is None else ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return default


def _words(value: Any) -> tuple[str, ...]:
    return tuple(word for word in value if isinstance(word, str)) if isinstance(value, list | tuple) else ()
