"""Task trees whose processes are killed at random, and who carries them on."""

from __future__ import annotations

import random
import re

from tests.crash.processes import Crew
from tests.crash.random_trees import random_tree
from tests.crash.tree_checks import check_trees_sound

KILLS = 9
WAYS = ("execute", "recover", "watch")
SHAPE = """
SELECT id, status, CAST(result AS TEXT), error, attempt_count, progress FROM apflow_tasks
WHERE kind = 'node' AND task_tree_id = '{prefix}-0' ORDER BY id"""
ENDED = """
SELECT id FROM apflow_tasks
WHERE kind <> 'tree' AND task_tree_id = 'hurt-0' AND status IN ('completed', 'failed', 'cancelled')"""
MUTE = "SELECT id FROM apflow_tasks WHERE name = 'aggregate_results_executor' OR status = 'cancelled'"
CHILDREN = "SELECT COUNT(*) FROM apflow_tasks WHERE kind = 'child' AND task_tree_id = '{prefix}-0'"
TREES_LEFT = "SELECT 2 - COUNT(*) FROM apflow_tasks WHERE kind = 'tree' AND status = 'completed'"


def test_a_tree_that_is_killed_at_random_ends_as_if_nothing_had_happened(crew: Crew) -> None:
    seed = random.getrandbits(32)
    dice = random.Random(seed)
    crew.start("plant", random_tree(seed, "calm"), random_tree(seed, "hurt")).finish()
    crew.start("execute", "calm-0", journal="calm").finish()
    acting = {one.replace("calm", "hurt") for one in actors(crew, "calm")}

    lives = Lives(crew, seed)
    for life in range(KILLS):
        left = len(acting - ids(crew, ENDED))
        way = WAYS[life % len(WAYS)] if life else "execute"
        lives.live(way, die_at(dice, left) if life else f"act {dice.randint(1, left // 3)} after")
        if lives.over:
            break
    if not lives.over:
        lives.live(dice.choice(WAYS))

    assert lives.over, lives.story
    assert shape(crew, "hurt") == shape(crew, "calm"), lives.story
    # A child that ran again, and not under its own id, would be one more.
    assert crew.rows(CHILDREN.format(prefix="hurt")) == crew.rows(CHILDREN.format(prefix="calm")), lives.story
    everybody = {one for journal in lives.journals for one in actors(crew, journal)}
    assert everybody == acting, lives.story
    check_trees_sound(crew)


class Lives:
    """The processes that execute a tree one after the other, each held against what was there before it."""

    def __init__(self, crew: Crew, seed: int) -> None:
        self.story = f"seed {seed}"
        self.journals: list[str] = []
        self._crew = crew
        self._ended = ids(crew, ENDED)

    @property
    def over(self) -> bool:
        return self._crew.rows(TREES_LEFT) == [(0,)]

    def live(self, way: str, point: str = "") -> None:
        """Let one more process execute the tree, until it dies at this point, or to the end."""
        crew, journal = self._crew, f"life {len(self.journals)}"
        self.story += f"; {way} until {point or 'the end'}"
        self.journals.append(journal)
        if way == "execute":
            worker = crew.start("execute", "hurt-0", journal=journal, point=point)
        elif way == "recover":
            worker = crew.start("recover_trees", journal=journal, point=point)
        else:
            worker = crew.start("watch", "leave", journal=journal, point=point)
        if point:
            worker.die()
        else:
            crew.until_rows(TREES_LEFT, [(0,)])
            crew.open("leave")
            worker.finish()
        crew.until_settled()
        self._check(crew.done(journal))

    def _check(self, acts: list[str]) -> None:
        """What had ended did not run again, and what has ended ran; nothing ran twice."""
        ran = {act.rpartition(" ")[2] for act in acts}
        ended = ids(self._crew, ENDED)
        assert len(set(acts)) == len(acts), self.story
        assert self._ended.isdisjoint(ran), self.story
        assert self._ended <= ended, self.story
        assert ended - self._ended <= ran | ids(self._crew, MUTE), self.story
        self._ended = ended


def ids(crew: Crew, query: str) -> set[str]:
    return {one for (one,) in crew.rows(query)}


def actors(crew: Crew, journal: str) -> set[str]:
    """Return the nodes that a journal tells of."""
    found = {act.rpartition(" ")[2] for act in crew.done(journal)}
    return {one for one in found if one.startswith(("calm-", "hurt-"))}


def shape(crew: Crew, prefix: str) -> list[str]:
    """Return what the nodes of a tree came to, whatever it is called.

    Of two tasks that a cancelled node cannot do without, either may have ended first.
    """
    rows = (repr(row).replace(prefix, "tree") for row in crew.rows(SHAPE.format(prefix=prefix)))
    return [re.sub(r"needs task tree-\d+, which (failed|was cancelled)", "needs another", row) for row in rows]


def die_at(dice: random.Random, left: int) -> str:
    """Return a point that the next life reaches, when so many nodes are left; its first write is the takeover."""
    number = dice.randint(1, max(1, left // 3))
    if left and dice.random() < 0.5:
        return f"act {number} {dice.choice(['before', 'after'])}"
    return f"write {number} {dice.choice(['inside', 'stored'])}"
