"""The export page: counts beforehand, and a download that streams."""

import gzip
import json

import pytest
from django.test import Client

from labeling.views import exports
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db
PAGE = "/projects/kitchen/export/"


@pytest.fixture
def project():
    project = ProjectFactory(slug="kitchen")
    rater = RaterFactory(project=project, name="ann")
    for choice in ("a", "b", "tie"):
        comparison = ComparisonFactory(project=project)
        PreferenceFactory(comparison=comparison, rater=rater, choice=choice)
    return project


@pytest.fixture
def client(project) -> Client:
    user = UserFactory()
    MembershipFactory(project=project, user=user, role="viewer")
    client = Client()
    client.force_login(user)
    return client


def test_the_page_counts_rows_and_reasons_before_anything_is_downloaded(client):
    page = client.get(PAGE, {"format": "trl", "labels": "human"}).content.decode()
    assert "2 rows" in page
    assert '<td>ties</td><td class="num">1</td>' in page
    assert "--format trl --labels human --aggregate majority --out kitchen.jsonl" in page


def test_htmx_gets_the_counts_alone(client):
    page = client.get(PAGE, {"format": "csv", "labels": "mixed"}, headers={"HX-Request": "true"})
    assert page.content.decode().lstrip().startswith('<section id="preview"')
    assert "3 rows" in page.content.decode()


@pytest.mark.parametrize(
    ("form", "name", "content_type"),
    [
        ("jsonl", "kitchen.jsonl.mixed.votes.jsonl", "application/jsonl"),
        ("trl", "kitchen.trl.mixed.majority.jsonl", "application/jsonl"),
        ("csv", "kitchen.csv.mixed.votes.csv", "text/csv; charset=utf-8"),
        ("label-studio", "kitchen.label-studio.mixed.votes.json", "application/json"),
        ("parquet", "kitchen.parquet.mixed.votes.parquet", "application/vnd.apache.parquet"),
    ],
)
def test_the_download_streams_under_a_telling_name(client, form, name, content_type):
    response = client.get(f"{PAGE}download/", {"format": form, "labels": "mixed"})
    assert response.streaming
    assert response.headers["Content-Disposition"] == f'attachment; filename="{name}"'
    assert response.headers["Content-Type"] == content_type
    assert sum(map(len, response.streaming_content)) > 0


def test_a_packed_download_comes_chunk_by_chunk(client, project, monkeypatch):
    monkeypatch.setattr("labeling.export.CHUNK", 1)
    response = client.get(
        f"{PAGE}download/",
        {"format": "jsonl", "labels": "mixed"},
        headers={"Accept-Encoding": "gzip"},
    )
    assert response.headers["Content-Encoding"] == "gzip"
    stream = iter(response.streaming_content)
    start = next(stream)
    ComparisonFactory(project=project)  # made while the download runs, and so part of it
    assert gzip.decompress(start + b"".join(stream)).count(b"\n") == 4


def test_a_rater_may_not_take_the_labels_home(project):
    user = UserFactory()
    MembershipFactory(project=project, user=user, role="rater")
    client = Client()
    client.force_login(user)
    assert client.get(f"{PAGE}download/", {"format": "jsonl"}).status_code == 403


def test_what_takes_long_is_left_to_the_command(client, monkeypatch):
    monkeypatch.setattr(exports, "MOST_FOR_DAWID_SKENE", 2)
    chosen = {"format": "trl", "labels": "mixed", "aggregate": "dawid-skene"}
    assert "run the command below" in client.get(PAGE, chosen).content.decode()
    response = client.get(f"{PAGE}download/", chosen, follow=True)
    assert response.redirect_chain == [(PAGE, 302)]
    assert "run the command below" in response.content.decode()


def test_an_address_that_asks_for_no_known_form_leads_back(client):
    response = client.get(f"{PAGE}download/", {"format": "xml"}, follow=True)
    assert response.redirect_chain == [(PAGE, 302)]
    assert "Choose a form" in response.content.decode()


def test_the_download_holds_what_the_command_writes(client, project, tmp_path):
    from labeling.export import export_file

    response = client.get(f"{PAGE}download/", {"format": "trl", "labels": "mixed"})
    downloaded = b"".join(response.streaming_content)
    export_file(project, tmp_path / "x.jsonl", "trl")
    assert downloaded == (tmp_path / "x.jsonl").read_bytes()
    assert len([json.loads(line) for line in downloaded.splitlines()]) == 2
