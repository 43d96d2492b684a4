"""An installation into one file and back, and from SQLite to PostgreSQL: every row as it was."""

import json
import tarfile
from collections.abc import Iterator
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction
from django.utils import timezone

from config import tables
from config.backups import BadBackup, back_up, checked_manifest, restore
from config.settings import env
from labeling.models import Comparison, Preference, Project
from tests.factories import ComparisonFactory, MembershipFactory, PreferenceFactory, ProjectFactory

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]

ODD = {"z": 1e3, "a": [-0.0, 0.1, None], "text": 'quote " \\ ü \u2028', "big": 2**60}
LONG_AGO = timezone.now() - timedelta(days=400, microseconds=17)


@pytest.fixture
def worked_in(storage: Path) -> Project:
    """An installation that people worked in, with files of several kinds."""
    project = ProjectFactory(slug="kitchen", name="Küche")
    MembershipFactory(project=project)
    for comparison in ComparisonFactory.create_batch(5, project=project, metadata=ODD):
        PreferenceFactory(comparison=comparison)
    Preference.objects.update(created_at=LONG_AGO)
    for name in ("models/tiny/model.safetensors", "queue/messages/one", "secret_key"):
        (storage / name).parent.mkdir(parents=True, exist_ok=True)
        (storage / name).write_bytes(b"\x00" + name.encode() * 99)
    return project


def emptied(settings: Any, folder: Path) -> Path:
    """A new installation: no rows, another storage with a key of its own."""
    with transaction.atomic():
        tables.empty("default")
    folder.mkdir()
    (folder / "secret_key").write_text("another")
    settings.PREFLOOP_STORAGE = folder
    return folder


def look() -> dict[str, Any]:
    return {
        "metadata": Comparison.objects.order_by("pk").first().metadata,
        "created": set(Preference.objects.values_list("created_at", flat=True)),
        "n": Preference.objects.count(),
        "names": list(Project.objects.values_list("name", flat=True)),
    }


def test_a_backup_comes_back_row_by_row_and_file_by_file(worked_in, storage, settings, tmp_path):
    was, said = look(), StringIO()
    last = Comparison.objects.order_by("pk").last().pk
    file = tmp_path / "backup.tar"
    call_command("backup", str(file), "--json", stdout=said)
    told = json.loads(said.getvalue())
    new, restored = emptied(settings, tmp_path / "new"), StringIO()

    call_command("restore", str(file), "--json", stdout=restored)

    assert told["tables"]["labeling.preference"] == 5
    assert told["files"] == 2  # weights and key; the queue's messages are made anew
    assert json.loads(restored.getvalue()) == told
    assert look() == was
    assert was["created"] == {LONG_AGO}
    assert was["metadata"] == ODD
    assert ComparisonFactory(project=Project.objects.get()).pk > last
    for name in ("models/tiny/model.safetensors", "secret_key"):
        assert (new / name).read_bytes() == (storage / name).read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(CommandError, match="nothing is overwritten"):
        call_command("restore", str(file))
    with pytest.raises(CommandError, match="name another file"):
        call_command("backup", str(file))
    settings.LAPTOP, settings.SECRET_KEY, heard = False, "of a server", StringIO()
    call_command("restore", str(file), "--check", stdout=StringIO(), stderr=heard)
    assert (
        "SECRET_KEY_FALLBACKS names the old one, which is the file secret_key" in heard.getvalue()
    )


def test_a_broken_backup_is_refused_before_anything_is_written(
    worked_in, storage, settings, tmp_path
):
    file, broken = tmp_path / "backup.tar", tmp_path / "broken.tar"
    back_up(file, lambda _line: None)
    emptied(settings, tmp_path / "new")
    whole = file.read_bytes()
    at = whole.index(b"\x00models/tiny")

    broken.write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    with pytest.raises(BadBackup, match=r"model.safetensors is changed"):
        restore(broken, lambda _line: None)
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadBackup, match=r"no whole backup|cut short"):
        restore(broken, lambda _line: None)
    for name in ("files/../../outside", f"files/{tmp_path}/outside", "other/file", "files/"):
        with tarfile.open(broken, "w") as archive:
            archive.add(file, name)
        with pytest.raises(BadBackup, match="no file that a backup holds"):
            restore(broken, lambda _line: None)
    with tarfile.open(broken, "w", format=tarfile.PAX_FORMAT) as archive:  # 3 GiB of nothing
        member = tarfile.TarInfo("files/models/large")
        member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(3 << 30)}
        archive.addfile(member)
    with pytest.raises(BadBackup, match="no file that a backup holds"):
        checked_manifest(broken)
    with pytest.raises(BadBackup, match="No such file"):
        restore(tmp_path / "none.tar", lambda _line: None)

    assert Project.objects.count() == 0
    assert not (settings.PREFLOOP_STORAGE / "models").exists()
    assert checked_manifest(file)["tables"]["labeling.comparison"]["rows"] == 5


def test_a_table_that_is_a_bomb_is_refused_and_leaves_no_row(
    worked_in, settings, tmp_path, monkeypatch
):
    file = tmp_path / "backup.tar"
    back_up(file, lambda _line: None)
    emptied(settings, tmp_path / "new")
    monkeypatch.setattr("config.backups.UNPACKED_FREE", 1_000)
    monkeypatch.setattr("config.backups.UNPACKED_TIMES", 1)

    with pytest.raises(BadBackup, match="unpacks to more than rows do"):
        restore(file, lambda _line: None)

    assert Project.objects.count() == 0


def test_what_came_out_otherwise_takes_every_row_back(worked_in, settings, tmp_path, monkeypatch):
    file = tmp_path / "backup.tar"
    back_up(file, lambda _line: None)
    emptied(settings, tmp_path / "new")
    read = tables._read

    def careless(field: Any, value: Any) -> Any:
        return "x" if field == Project._meta.get_field("name") else read(field, value)

    monkeypatch.setattr(tables, "_read", careless)

    with pytest.raises(tables.TablesDiffer, match=r"came out otherwise"):
        restore(file, lambda _line: None)
    assert Project.objects.count() == 0


def test_no_half_of_a_backup_is_left_where_the_disk_is_full(worked_in, tmp_path, monkeypatch):
    def full(*_arguments: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("config.backups._add", full)

    with pytest.raises(CommandError, match="No space left on device"):
        call_command("backup", str(tmp_path / "backup.tar"))
    assert list(tmp_path.glob("backup*")) == []


@pytest.fixture
def other_database(postgresql_url: str) -> Iterator[str]:
    import psycopg

    with psycopg.connect(postgresql_url, autocommit=True) as server:
        server.execute("CREATE DATABASE moved")
        yield postgresql_url.rsplit("/", 1)[0] + "/moved"
        server.execute("DROP DATABASE moved WITH (FORCE)")


def test_a_database_moves_to_postgresql_with_every_row_checked(worked_in, other_database):
    said = StringIO()
    here = {tables.label(m): tables.fingerprint(m, "default") for m in tables.tables()}

    call_command("move_database", "--to", other_database, "--json", stdout=said)

    moved = json.loads(said.getvalue())
    assert moved["tables"] == {name: told["rows"] for name, told in here.items()}
    with tables.database_at(env.db_url_config(other_database) | {"OPTIONS": {}}, "moved") as there:
        assert {tables.label(m): tables.fingerprint(m, there) for m in tables.tables()} == here
        first = Comparison.objects.using(there).order_by("pk").first()
        assert first.metadata == ODD
        first.pk = None  # numbered behind what was moved
        first.content_hash = "0" * 64
        first.save(using=there, force_insert=True)
        assert first.pk > Comparison.objects.order_by("pk").last().pk
    with pytest.raises(CommandError, match="nothing is overwritten"):
        call_command("move_database", "--to", other_database)
