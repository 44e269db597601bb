"""The bench's half: the processes that are asked for measurements, and those that are measured as a whole."""

from __future__ import annotations

import json
import os
import select
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 300.0


class NotMeasuredError(Exception):
    """A side could not be measured; its text says why."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds, or bytes, for one operation: the median and the mean over one repeat.

    Attributes:
        parts: What else was measured in the same repeat, by name.
    """

    median: float
    mean: float
    parts: Mapping[str, float] = field(default_factory=dict)


class Side(Protocol):
    """Something that can be measured."""

    def measure(self, scenario: str, count: int) -> Sample:
        """Do the scenario's work `count` times.

        Raises:
            NotMeasuredError: It failed, or was silent for five minutes.
        """
        ...

    def close(self) -> None:
        """End its process, if there is one."""
        ...


class Worker:
    """A process of one of the `*_side` modules, started when first asked. Its database stays open."""

    def __init__(self, python: str, module: str, *arguments: str, log: Path) -> None:
        self._command = [python, "-m", f"tests.benchmarks.{module}", *arguments]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def measure(self, scenario: str, count: int) -> Sample:
        self.ask(scenario, count)
        return self.answer()

    def ask(self, scenario: str, count: int) -> None:
        """Have it begin; whether that went well says the answer."""
        self._process = self._process or self._start()
        request = json.dumps({"scenario": scenario, "count": count}).encode()
        with suppress(BrokenPipeError):
            _pipe(self._process.stdin).write(request + b"\n")
            _pipe(self._process.stdin).flush()

    def answer(self) -> Sample:
        """Return what it has measured since it was asked.

        Raises:
            NotMeasuredError: It failed, or was silent for five minutes.
        """
        line = b"" if self._process is None else _first_line(self._process)
        if not line:
            raise NotMeasuredError(_last_line(self._log.read_bytes()))
        return _sample(line)

    def close(self) -> None:
        if self._process is None:
            return
        try:
            self._process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                self._command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )


class Crew:
    """Workers that share the work and do it at the same time; one operation takes the time of all over their number."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers

    def measure(self, scenario: str, count: int) -> Sample:
        each = -(-count // len(self._workers))
        started = perf_counter()
        for worker in self._workers:
            worker.ask(scenario, each)
        for worker in self._workers:
            worker.answer()
        seconds = (perf_counter() - started) / (each * len(self._workers))
        return Sample(seconds, seconds)

    def close(self) -> None:
        for worker in self._workers:
            worker.close()


class Program:
    """A Python program timed from its start to its first line of output, or to its end without one."""

    def __init__(self, python: str, arguments: Callable[[], Sequence[str]]) -> None:
        self._python = python
        self._arguments = arguments

    def measure(self, scenario: str, count: int) -> Sample:
        command = [self._python, *self._arguments()]
        started = perf_counter()
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=_environment(), stdout=pipe, stderr=pipe) as process:
            line = _first_line(process)
            seconds = perf_counter() - started
            if line:
                process.kill()
            errors = process.communicate()[1]
        if not line and process.returncode:
            raise NotMeasuredError(_last_line(errors))
        return Sample(seconds, seconds)

    def close(self) -> None:
        """Do nothing: no process outlives its measurement."""


class Missing:
    """A side that cannot be had here."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def measure(self, scenario: str, count: int) -> Sample:
        raise NotMeasuredError(self._reason)

    def close(self) -> None:
        """Do nothing."""


def _sample(line: bytes) -> Sample:
    try:
        answer = json.loads(line)
    except ValueError:
        raise NotMeasuredError(f"no answer but {line!r}") from None
    if "error" in answer:
        raise NotMeasuredError(answer["error"])
    return Sample(answer["median"], answer["mean"], answer["parts"])


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(_ROOT)}


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise NotMeasuredError("its process was started without a pipe")
    return stream


def _first_line(process: subprocess.Popen[bytes]) -> bytes:
    """Return the next line of output, empty at its end; kill a process that is silent for too long."""
    output = _pipe(process.stdout)
    if not select.select([output], [], [], _PATIENCE_SECONDS)[0]:
        process.kill()
        raise NotMeasuredError(f"no answer within {_PATIENCE_SECONDS:.0f} s")
    return output.readline()


def _last_line(errors: bytes) -> str:
    lines = errors.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "its process ended without a word"
