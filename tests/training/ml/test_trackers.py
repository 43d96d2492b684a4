"""A run's numbers in other programs' files; without their packages these tests are skipped."""

import socket
from importlib.util import find_spec
from pathlib import Path

import pytest

from training.ml.settings import TRACKERS
from training.ml.steps import StepReport
from training.ml.trackers import named, open_tracker

TRAINED = StepReport(
    step=3,
    n_steps=9,
    values={"loss": 0.5, "grad_norm": 2.0},
    cost={"tokens": 100, "seconds": 0.5, "memory": 10**9},
)
MEASURED = StepReport(step=3, n_steps=9, split="test", values={"loss": 0.6, "accuracy": 0.7})


def test_numbers_have_the_same_names_everywhere():
    assert named(TRAINED) == {
        "train/loss": 0.5,
        "train/grad_norm": 2.0,
        "train/tokens_per_second": 200.0,
        "train/memory": 10**9,
    }
    assert named(MEASURED) == {"test/loss": 0.6, "test/accuracy": 0.7}


def test_an_unknown_tracker_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must be one of tensorboard, wandb, trackio"):
        open_tracker("paper", folder=tmp_path, project="p", name="dpo-1", settings={})


@pytest.mark.parametrize("package", list(TRACKERS))
def test_a_tracker_writes_files_and_reaches_for_no_network(package, tmp_path, monkeypatch):
    if find_spec(package) is None:  # not imported here: where to write is read at the import
        pytest.skip(f"{package} is not installed")
    asked = []
    connect = socket.socket.connect

    def watched(self, address):
        if self.family != socket.AF_UNIX and address[0] != "127.0.0.1":
            asked.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    for _attempt in range(2):  # a resumed run reports steps again
        tracker = open_tracker(
            package, folder=tmp_path, project="prefloop-p", name="dpo-1", settings={"beta": 0.1}
        )
        tracker.log(TRAINED)
        tracker.log(MEASURED)
        tracker.close()

    assert sum(path.stat().st_size for path in Path(tmp_path).rglob("*") if path.is_file()) > 100
    assert asked == []
