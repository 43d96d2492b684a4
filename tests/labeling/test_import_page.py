"""Upload, preview, start, progress, report: as a lead sees them, with and without htmx."""

import gzip
import json
from pathlib import Path

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from labeling.models import Comparison, ImportJob, Preference
from labeling.tasks import run_import
from tests.factories import MembershipFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db
Status = ImportJob.Status


@pytest.fixture(autouse=True)
def sent(monkeypatch):
    """Jobs sent to the queue, in order; no broker is started here."""
    sent: list[int] = []
    monkeypatch.setattr(ImportJob, "enqueue", lambda job: sent.append(job.pk))
    return sent


@pytest.fixture
def project():
    return ProjectFactory(slug="kitchen", labels_per_comparison=2)


@pytest.fixture
def client(project) -> Client:
    """A lead of the project, whose every POST must carry a CSRF token where it is checked."""
    user = UserFactory(username="lee")
    MembershipFactory(project=project, user=user, role="lead")
    client = Client()
    client.force_login(user)
    return client


def lines(*records) -> bytes:
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records).encode()


def pair(n: int = 1, **more) -> dict:
    return {"prompt": f"Question {n}?", "response_a": f"yes {n}", "response_b": f"no {n}", **more}


def send(client: Client, data: bytes, name: str = "mine.jsonl"):
    return client.post("/projects/kitchen/import/", {"file": SimpleUploadedFile(name, data)})


def start(client: Client, data: bytes, name: str = "mine.jsonl", **fields) -> ImportJob:
    """Upload and press the button; the job, waiting for a worker."""
    preview = send(client, data, name).url
    response = client.post(
        preview,
        {
            "format": "auto",
            "labels": "human",
            "rater": "imported",
            "labels_per_comparison": 2,
            "known_answers": "work",
        }
        | fields,
    )
    job = ImportJob.objects.latest("pk")
    assert response.url == f"/projects/kitchen/import/{job.pk}/"
    return job


def uploads(storage: Path) -> list[str]:
    folder = storage / "uploads"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def test_an_upload_is_shown_before_anything_is_written(client):
    data = lines(
        pair(1, model_a="small", preferences=[{"rater": "ann", "choice": "a"}]),
        pair(2, verdicts=[{"rater": "gpt-4", "prob_a": 0.8}]),
        {"prompt": "", "response_a": "x", "response_b": "y"},
    )
    page = client.get(send(client, data).url)
    assert page.status_code == 200
    preview = page.context["preview"]
    assert (preview.form, preview.n_records, preview.n_rejected) == ("interchange", 3, 1)
    assert (preview.n_preferences, preview.n_verdicts) == (1, 1)
    assert preview.reasons == [(3, "`prompt` is empty")]
    html = page.content.decode()
    for shown in ("Question 1?", "yes 1", "no 2", "small", "ann", "gpt-4", "Start the import"):
        assert shown in html
    assert Comparison.objects.count() == ImportJob.objects.count() == 0


def test_what_stands_in_a_file_is_never_markup(client):
    evil = "<script>alert(1)</script>"
    data = lines(pair(1, id=evil, model_a=evil, prompt=evil, response_a=evil), {evil: evil})
    html = client.get(send(client, data, f"{evil}.jsonl").url).content.decode()
    assert evil not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_an_import_runs_to_its_report(client, project, sent, storage):
    data = lines(pair(1, preferences=[{"rater": "ann", "choice": "a"}]), pair(2), "{broken")
    job = start(client, data)
    assert sent == [job.pk]
    assert (job.status, job.filename, job.created_by.username) == ("queued", "mine.jsonl", "lee")
    waiting = client.get(f"/projects/kitchen/import/{job.pk}/").content.decode()
    assert "Waiting for a worker" in waiting
    assert 'hx-trigger="every 1s"' in waiting
    assert '<noscript><meta http-equiv="refresh"' in waiting

    run_import(job.pk)
    job.refresh_from_db()
    assert job.status == Status.SUCCEEDED
    assert (job.result["rows"], job.result["created"], job.result["rejected"]) == (2, 2, 1)
    assert project.comparisons.order_by("pk").first().open_places == 1
    done = client.get(f"/projects/kitchen/import/{job.pk}/").content.decode()
    assert "every 1s" not in done
    assert 'http-equiv="refresh"' not in done
    assert "broken JSON" in done
    # the upload itself is gone, its reject file stays
    assert uploads(storage) == [Path(job.path).name + ".rejects.jsonl"]


def test_htmx_gets_the_card_alone(client):
    job = start(client, lines(pair()))
    page = client.get(f"/projects/kitchen/import/{job.pk}/", headers={"HX-Request": "true"})
    assert page.content.decode().strip().startswith('<div id="import-job"')


def test_the_reject_file_can_be_downloaded(client):
    job = start(client, lines(pair(1), "{broken"))
    run_import(job.pk)
    response = client.get(f"/projects/kitchen/import/{job.pk}/rejects/")
    assert response["Content-Disposition"] == 'attachment; filename="mine.jsonl.rejects.jsonl"'
    entry = json.loads(b"".join(response.streaming_content))
    assert (entry["line"], entry["text"]) == (2, "{broken")


def test_an_import_of_another_project_is_not_found(client):
    job = start(client, lines(pair(1), "{broken"))
    run_import(job.pk)
    other = ProjectFactory(slug="garden")
    MembershipFactory(project=other, user=job.created_by, role="lead")
    for path in ("", "rejects/"):
        assert client.get(f"/projects/garden/import/{job.pk}/{path}").status_code == 404
    for path in ("cancel/", "resume/"):
        assert client.post(f"/projects/garden/import/{job.pk}/{path}").status_code == 404


def test_an_upload_belongs_to_its_project(client, project):
    preview = send(client, lines(pair())).url
    other = ProjectFactory(slug="garden")
    MembershipFactory(project=other, user=project.memberships.get().user, role="lead")
    elsewhere = client.get(preview.replace("kitchen", "garden"))
    assert elsewhere.url == "/projects/garden/import/"
    forged = client.get("/projects/kitchen/import/preview/?upload=forged")
    assert forged.url == "/projects/kitchen/import/"


@pytest.mark.parametrize("role", ["rater", "viewer"])
def test_only_leads_import(client, project, role):
    preview = send(client, lines(pair())).url
    project.memberships.update(role=role)
    assert send(client, lines(pair())).status_code == 403
    assert client.get(preview).status_code == 403


def test_a_post_without_a_csrf_token_is_refused(project):
    user = UserFactory()
    MembershipFactory(project=project, user=user, role="lead")
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    assert send(client, lines(pair())).status_code == 403


def test_a_file_that_is_too_large_is_turned_away_before_it_is_read(client, settings, storage):
    settings.PREFLOOP_MAX_UPLOAD_BYTES = 1000
    response = send(client, b"x" * 100_000)
    assert response.status_code == 413
    assert "The file is larger than" in response.content.decode()
    assert send(client, b"x" * 2000).status_code == 422  # within the form's own allowance
    assert uploads(storage) == []


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("photo.png", b"\x89PNG", "Files of these kinds can be imported"),
        ("empty.jsonl", b"", "The submitted file is empty."),
    ],
)
def test_a_file_of_another_kind_is_refused(client, storage, name, data, message):
    response = send(client, data, name)
    assert response.status_code == 422
    assert message in response.content.decode()
    assert uploads(storage) == []


def test_the_name_of_an_upload_never_becomes_a_path(client, storage):
    send(client, lines(pair()), "../../etc/passwd.jsonl")
    (name,) = uploads(storage)
    assert len(name) == 32 + len(".jsonl")


def test_a_file_of_no_known_form_says_so_and_offers_no_start(client):
    page = client.get(send(client, b"name,age\nAnn,3\n", "people.csv").url)
    html = page.content.decode()
    assert "no known form of comparison; its keys are: age, name" in html
    assert "Start the import" not in html


def test_the_form_can_be_chosen_by_hand(client):
    data = lines({"prompt": "?", "chosen": "x", "rejected": "y"})
    address = send(client, data).url
    assert client.get(address).context["preview"].form == "trl"
    other = client.get(f"{address}&format=interchange").context["preview"]
    assert (other.form, other.reasons) == ("interchange", [(1, "`response_a` is missing")])


def test_labels_of_nobody_are_kept_under_the_name_that_was_given(client):
    data = lines({"prompt": "?", "chosen": "x", "rejected": "y"})
    assert "Unnamed labels are by" in client.get(send(client, data).url).content.decode()
    job = start(client, data, labels="ai", rater="gpt-4", labels_per_comparison=3)
    run_import(job.pk)
    preference = Preference.objects.get()
    assert (preference.rater.name, preference.rater.kind) == ("gpt-4", "judge")
    assert preference.comparison.open_places == 3


def test_rows_with_a_known_answer_become_what_was_chosen(client):
    data = lines(pair(1, gold="a"), pair(2))
    assert "Rows with a known answer become" in client.get(send(client, data).url).content.decode()
    run_import(start(client, data, known_answers="qualification").pk)
    found = Comparison.objects.order_by("pk").values_list("purpose", "open_places")
    assert list(found) == [("qualification", 0), ("work", 2)]


def test_lists_and_names_of_models_are_shown_before_and_counted_after(client):
    rivers = {"prompt": "?", "id": "r", "responses": ["I am ChatGPT.", "Po", "Elbe"]}
    ranked = rivers | {"rankings": [{"rater": "ann", "order": [[1], [2, 0]]}]}
    job = start(client, lines(ranked))
    html = client.get(send(client, lines(ranked)).url).content.decode()
    assert "In 2 comparisons of these a response names a model or its maker" in html
    assert "Response 3" in html
    assert "ann: <strong>2 &gt; 3 = 1</strong>" in html
    assert "· r</span>" in html
    run_import(job.pk)
    report = client.get(f"/projects/kitchen/import/{job.pk}/").content.decode()
    assert "Lists of responses to rank at once: 1 new. Rankings of such lists: 1 new." in report
    assert "In 2 new comparisons a response names a model or its maker." in report


def test_a_wrong_number_of_labels_is_refused_with_a_reason(client):
    address = send(client, lines(pair())).url
    response = client.post(
        address,
        {
            "format": "auto",
            "labels": "human",
            "rater": "x",
            "labels_per_comparison": 0,
            "known_answers": "work",
        },
    )
    assert response.status_code == 422
    assert "greater than or equal to 1" in response.content.decode()
    assert ImportJob.objects.count() == 0


def test_an_import_is_cancelled_between_batches_and_resumed(client, sent, monkeypatch):
    job = start(client, lines(*[pair(n) for n in range(1100)]))
    reported = ImportJob.report

    def cancel_after_the_first(self, **values):
        client.post(f"/projects/kitchen/import/{job.pk}/cancel/")
        return reported(self, **values)

    monkeypatch.setattr(ImportJob, "report", cancel_after_the_first)
    run_import(job.pk)
    job.refresh_from_db()
    assert (job.status, job.result["created"]) == (Status.CANCELLED, 500)
    page = client.get(f"/projects/kitchen/import/{job.pk}/").content.decode()
    assert "What had been written stays; resume adds the rest." in page

    monkeypatch.setattr(ImportJob, "report", reported)
    client.post(f"/projects/kitchen/import/{job.pk}/resume/")
    assert sent == [job.pk, job.pk]
    run_import(job.pk)
    job.refresh_from_db()
    assert job.status == Status.SUCCEEDED
    assert (job.result["created"], job.result["duplicates"]) == (600, 500)
    assert Comparison.objects.count() == 1100


def test_a_queued_import_is_cancelled_at_once(client):
    job = start(client, lines(pair()))
    client.post(f"/projects/kitchen/import/{job.pk}/cancel/")
    run_import(job.pk)
    job.refresh_from_db()
    assert job.status == Status.CANCELLED
    assert Comparison.objects.count() == 0


def test_a_job_runs_once_however_often_its_message_comes(client):
    job = start(client, lines(pair()))
    run_import(job.pk)
    first = ImportJob.objects.values().get()
    run_import(job.pk)
    assert ImportJob.objects.values().get() == first


def test_a_file_that_gives_nothing_fails_with_the_reason(client):
    job = start(client, lines({"odd": 1}))
    run_import(job.pk)
    job.refresh_from_db()
    assert job.status == Status.FAILED
    assert job.error == (
        "none of the 1 records of mine.jsonl could be used: "
        "no known form of comparison; its keys are: odd"
    )
    assert (
        job.error.split(":")[0]
        in client.get(f"/projects/kitchen/import/{job.pk}/").content.decode()
    )


def test_an_unforeseen_error_ends_the_job_and_is_raised_for_the_log(client, monkeypatch):
    job = start(client, lines(pair()))

    def fail(*args, **kwargs):
        raise RuntimeError("the disk is full")

    monkeypatch.setattr("labeling.imports.importing.import_file", fail)
    with pytest.raises(RuntimeError):
        run_import(job.pk)
    job.refresh_from_db()
    assert (job.status, job.error) == (Status.FAILED, "RuntimeError: the disk is full")
    assert (
        'name="csrfmiddlewaretoken"'
        in client.get(f"/projects/kitchen/import/{job.pk}/").content.decode()
    )  # the form that resumes it


def test_a_gzip_bomb_is_bounded(client, settings, storage):
    settings.PREFLOOP_MAX_UPLOAD_BYTES = 100_000
    bomb = gzip.compress(lines(pair()) + b" " * 20_000_000)
    job = start(client, bomb, "bomb.jsonl.gz")
    run_import(job.pk)
    job.refresh_from_db()
    assert (job.result["rows"], job.result["rejected"]) == (1, 1)
    assert list(job.result["reasons"]) == [
        "the file unpacks to more than is allowed; what follows is left out"
    ]


def test_the_list_of_imports_asks_the_same_queries_for_one_and_for_five(
    client, django_assert_num_queries
):
    start(client, lines(pair()))
    with CaptureQueriesContext(connection) as few:
        client.get("/projects/kitchen/import/")
    n_queries = len(few)
    for n in range(4):
        start(client, lines(pair(n)))
    with django_assert_num_queries(n_queries):
        page = client.get("/projects/kitchen/import/")
    assert len(page.context["jobs"]) == 5


def test_an_upload_that_nobody_started_is_forgotten_after_a_day(client, storage, monkeypatch):
    job = start(client, lines(pair(1)))
    send(client, lines(pair(2)))
    monkeypatch.setattr("labeling.imports.uploads.KEPT_SECONDS", -1)
    send(client, lines(pair(3)))
    names = uploads(storage)
    assert len(names) == 2
    assert Path(job.path).name in names


def test_progress_reports_reach_the_row(client, monkeypatch):
    job = start(client, lines(*[pair(n) for n in range(600)]))
    seen = []
    reported = ImportJob.report

    def watch(self, **values):
        reported(self, **values)
        seen.append((values["n_done"], values["n_total"], values["result"]["rows"]))

    monkeypatch.setattr(ImportJob, "report", watch)
    run_import(job.pk)
    assert [rows for _done, _total, rows in seen] == [500, 600]
    assert all(0 < done <= total for done, total, _rows in seen)
