"""Run the Python blocks of a page from top to bottom: `python -m tests.docs.run_page PAGE`.

The blocks share one namespace, as if a reader typed them into one session; so `await` works outside of
functions. Line numbers in tracebacks are those of the page.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_FENCE = re.compile(r"^(?P<indent> *)```(?P<info>.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        info: What follows the opening fence, such as `python` or `python no-run: needs a key`.
        line: Number of the first line of `source`, from 1.
        source: The text between the fences, without the fence's indentation.
    """

    info: str
    line: int
    source: str

    @property
    def is_python(self) -> bool:
        return self.info.partition(" ")[0] == "python"

    @property
    def runs(self) -> bool:
        return self.info == "python"

    @property
    def reason(self) -> str:
        """Why a block does not run: what follows `no-run:`."""
        return self.info.removeprefix("python").strip().removeprefix("no-run:").strip()


def blocks(text: str) -> Iterator[Block]:
    """Yield the fenced blocks of a page. A fence that is never closed ends with the page."""
    lines = enumerate(text.splitlines(), 1)
    for number, line in lines:
        opening = _FENCE.match(line)
        if opening is None:
            continue
        indent = opening["indent"]
        body: list[str] = []
        for _, inner in lines:
            if inner.rstrip() == f"{indent}```":
                break
            body.append(inner.removeprefix(indent))
        yield Block(opening["info"].strip(), number + 1, "\n".join(body) + "\n")


def compiled(block: Block, page: str) -> CodeType:
    """Return the block's code. It is a coroutine's when the block awaits outside of functions."""
    padding = "\n" * (block.line - 1)
    code: CodeType = compile(padding + block.source, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    return code


def run(page: Path) -> None:
    """Run the page's blocks as the module `__main__`; what one raises ends the run."""
    main = ModuleType("__main__")
    main.__file__ = str(page)
    sys.modules["__main__"] = main
    with asyncio.Runner() as runner:
        for block in blocks(page.read_text(encoding="utf-8")):
            if not block.runs:
                continue
            call = FunctionType(compiled(block, main.__file__), vars(main))
            if call.__code__.co_flags & inspect.CO_COROUTINE:
                runner.run(call())
            else:
                call()


if __name__ == "__main__":
    run(Path(sys.argv[1]))
