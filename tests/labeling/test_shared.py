"""Files between machines that share no folder, through a filesystem in memory."""

import json

import fsspec
import pytest
from django.core.management import CommandError, call_command

from labeling import shared


@pytest.fixture
def place(settings):
    """The shared storage, as its filesystem."""
    settings.PREFLOOP_SHARED_STORAGE = "memory://fleet"
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.fixture
def elsewhere(settings, tmp_path):
    """Turns this process into another machine, with a storage folder of its own."""

    def turn(name: str):
        settings.PREFLOOP_STORAGE = tmp_path / name
        settings.PREFLOOP_STORAGE.mkdir(exist_ok=True)
        return settings.PREFLOOP_STORAGE

    return turn


def write(root, **files: str) -> None:
    for name, text in files.items():
        path = root / "runs/7" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def read(root) -> dict[str, str]:
    folder = root / "runs/7"
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_folder_becomes_elsewhere_what_it_was_here(place, elsewhere):
    here = elsewhere("a")
    write(here, best="1", **{"checkpoint-2__weights": "two", "checkpoint-2__complete": ""})
    assert shared.put("runs/7") == 3

    there = elsewhere("b")
    assert shared.fetch("runs/7")

    assert read(there) == {"best": "1", "checkpoint-2/weights": "two", "checkpoint-2/complete": ""}
    assert shared.fetch("runs/8") is False


def test_the_machine_that_comes_back_takes_over_what_another_did_meanwhile(place, elsewhere):
    here = elsewhere("a")
    write(here, best="1", **{"checkpoint-2__weights": "two", "output.log": "of a"})
    shared.put("runs/7")
    there = elsewhere("b")
    shared.fetch("runs/7")
    (there / "runs/7/checkpoint-2/weights").unlink()
    write(there, best="2", **{"checkpoint-4__weights": "four"})
    assert shared.put("runs/7") == 2

    elsewhere("a")
    shared.fetch("runs/7")

    assert read(here) == {"best": "2", "checkpoint-4/weights": "four", "output.log": "of a"}
    kept = [name for name in place.find("/fleet/runs/7") if not name.endswith("files.json")]
    assert len(kept) == 2  # what no list names any more is gone


def test_what_was_spoilt_on_the_way_is_refused(place, elsewhere):
    write(elsewhere("a"), best="1")
    shared.put("runs/7")
    spoilt = next(name for name in place.find("/fleet") if not name.endswith("files.json"))
    place.pipe_file(spoilt, b"2")

    there = elsewhere("b")
    with pytest.raises(shared.SharedFileBroken, match="is not what was put there"):
        shared.fetch("runs/7")
    assert read(there) == {}


def test_a_folder_that_broke_off_on_its_way_is_not_there_and_comes_again(place, elsewhere):
    """Else the next job would take a part of a model for the whole of it."""
    write(elsewhere("a"), a="1", b="2")
    shared.put("runs/7")
    listed = json.loads(place.cat_file("/fleet/runs/7/files.json"))
    last = f"/fleet/runs/7/{listed['b']['sha256']}"
    place.mv(last, "/fleet/away")

    there = elsewhere("b")
    with pytest.raises(FileNotFoundError):
        shared.fetch_missing("runs/7")
    assert [path for path in there.rglob("*") if path.is_file()] == []

    place.mv("/fleet/away", last)
    shared.fetch_missing("runs/7")
    assert read(there) == {"a": "1", "b": "2"}
    assert list((there / "tmp").iterdir()) == []


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped"])
def test_a_list_that_names_a_place_outside_is_refused(place, elsewhere, name):
    write(elsewhere("a"), best="1")
    shared.put("runs/7")
    text = place.cat_file("/fleet/runs/7/files.json").decode()
    place.pipe_file("/fleet/runs/7/files.json", text.replace('"best"', f'"{name}"').encode())

    there = elsewhere("b")
    with pytest.raises(shared.SharedFileBroken, match="lies outside"):
        shared.fetch("runs/7")
    assert list(there.rglob("escaped")) == []


def test_a_name_that_leads_out_of_the_storage_is_refused(place, elsewhere):
    elsewhere("a")

    with pytest.raises(ValueError, match="outside the storage folder"):
        shared.fetch("../secret")


def test_a_single_file_is_put_by_the_command_and_forgotten(place, elsewhere, capsys):
    here = elsewhere("a")
    (here / "texts").mkdir()
    (here / "texts/one.txt").write_text("once")
    call_command("share", "texts/one.txt")
    assert capsys.readouterr().out == "texts/one.txt: 1 new\n"

    there = elsewhere("b")
    shared.fetch_missing("texts/one.txt")
    assert (there / "texts/one.txt").read_text() == "once"

    shared.forget("texts/one.txt")
    assert shared.fetch("texts/one.txt") is False
    with pytest.raises(CommandError, match="is not in"):
        call_command("share", "texts/two.txt")


def test_without_a_shared_storage_nothing_is_looked_for(elsewhere):
    write(elsewhere("a"), best="1")

    assert (shared.put("runs/7"), shared.fetch("runs/7")) == (0, False)
    with pytest.raises(CommandError, match="PREFLOOP_SHARED_STORAGE is not set"):
        call_command("share", "runs/7")
