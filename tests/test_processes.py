"""The process tree of `serve`, with small programs in the place of servers and workers."""

import os
import signal
import subprocess
import sys
import time

import pytest

from config.processes import KeepsDying, ProcessTree
from config.watchdog import group_is_alive

ENDS_AT_ONCE = [sys.executable, "-c", "print('no database'); raise SystemExit(3)"]
# Ignores SIGTERM, and so does its child.
STUBBORN = ["sh", "-c", "trap '' TERM; sh -c \"trap '' TERM; sleep 60\" & echo up; sleep 60"]


@pytest.fixture
def said():
    return []


@pytest.fixture
def tree(said):
    with ProcessTree(dict(os.environ), said.append) as tree:
        yield tree


def wait_for(line: str, said: list[str], tree: ProcessTree) -> None:
    deadline = time.monotonic() + 10
    tree.watch(until=lambda: line in said or time.monotonic() > deadline)
    assert line in said


def test_every_line_carries_the_name_of_its_process(tree, said):
    tree.add("web", ["sh", "-c", "echo hello; echo oh >&2; sleep 60"])
    wait_for("web    | oh", said, tree)
    assert said == ["web    | hello", "web    | oh"]


def test_a_process_that_keeps_dying_ends_the_tree_with_its_last_words(tree, said):
    tree.add("web", ENDS_AT_ONCE)
    with pytest.raises(KeepsDying, match=r"web ended 4 times.*exit status 3(.|\n)*no database"):
        tree.watch()
    assert said.count("web ended (exit status 3); starting it again.") == 3


def test_stopping_ends_even_what_ignores_it_and_its_children(tree, said):
    tree.add("gpu", STUBBORN)
    tree.add("web", ["sh", "-c", "echo up; sleep 60"])
    wait_for("gpu    | up", said, tree)
    wait_for("web    | up", said, tree)
    groups = [member.process.pid for member in tree.members]

    tree.stop()

    time.sleep(0.2)  # a killed child of a child is buried by somebody else
    assert [group for group in groups if runs(group)] == []


def test_a_signal_ends_the_watch(tree, said):
    tree.add("web", ["sleep", "60"])
    os.kill(os.getpid(), signal.SIGTERM)
    tree.watch()
    assert tree.stop_requested.is_set()


def test_the_signal_handlers_of_before_return():
    before = signal.getsignal(signal.SIGTERM)
    with ProcessTree(dict(os.environ), print):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def runs(group: int) -> bool:
    """Does a process of this group still run? Dead ones that nobody has buried do not count."""
    if not group_is_alive(group):
        return False
    listing = subprocess.run(
        ["ps", "-eo", "pgid=,stat="], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    rows = [line.split() for line in listing.splitlines()]
    return any(int(pgid) == group and not stat.startswith("Z") for pgid, stat in rows)
