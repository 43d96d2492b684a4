"""Judgements of single responses: in from files, out again, and from judges."""

import csv
import gzip
import json
from datetime import UTC, datetime

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, transaction
from django.urls import reverse

from labeling.export import ExportProblem, ExportReport, export_file, export_rows
from labeling.imports.foreign.columns import Labels
from labeling.imports.importing import import_file
from labeling.models import Comparison, Rater, Rating, Response
from labeling.rated import Judgement, record_rating
from tests.factories import ProjectFactory, RaterFactory, ResponseFactory, UserFactory

pytestmark = pytest.mark.django_db


@pytest.fixture
def project():
    return ProjectFactory(slug="kitchen")


@pytest.fixture
def file(tmp_path):
    """Write records (or raw lines) to a file of JSON lines."""

    def write(*records, name="a.jsonl"):
        path = tmp_path / name
        lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


def line(n: int = 1, **more) -> dict:
    return {"prompt": f"Question {n}?", "response": f"Answer {n}.", **more}


def said(project) -> list[tuple]:
    rows = (
        Rating.objects.current().of_project(project).order_by("rater__name", "aspect", "response")
    )
    return list(rows.values_list("rater__name", "aspect", "desirable", "value", "low", "high"))


def everything(project) -> list[tuple]:
    """All that is known of a project's ratings, without keys of the database."""
    return sorted(
        Rating.objects.current()
        .of_project(project)
        .values_list(
            *("response__prompt__content_hash", "response__content_hash", "response__source"),
            *("rater__name", "rater__kind", "aspect", "desirable", "value", "low", "high"),
            *("rationale", "external_id", "metadata__topic", "seconds", "created_at"),
        ),
        key=repr,
    )


def rejects(report) -> list[dict]:
    with open(report.reject_file, encoding="utf-8") as lines:
        return [json.loads(text) for text in lines]


def test_a_line_brings_a_response_and_the_ratings_of_several_raters(project, file):
    record = line(
        id="r-1",
        model="small",
        scale=[1, 5],
        metadata={"topic": "x"},
        ratings=[
            {"rater": "ann", "value": 4, "seconds": 9.5, "created_at": "2026-02-01T08:00:00Z"},
            {"rater": "bo", "desirable": False, "rationale": "too short"},
            {"rater": "gpt-4", "kind": "judge", "value": 7.5, "scale": "1-10", "aspect": "honest"},
        ],
    )
    report = import_file(project, file(record))

    assert (report.format, report.rows, report.responses, report.ratings) == ("ratings", 1, 1, 3)
    assert Response.objects.get().source == "small"
    assert said(project) == [
        ("ann", "", None, 4.0, 1.0, 5.0),
        ("bo", "", False, None, None, None),
        ("gpt-4", "honest", None, 7.5, 1.0, 10.0),
    ]
    of_ann = Rating.objects.get(rater__name="ann")
    assert of_ann.created_at == datetime(2026, 2, 1, 8, tzinfo=UTC)
    assert (of_ann.external_id, of_ann.metadata) == ("r-1", {"topic": "x"})
    assert Rater.objects.get(name="gpt-4").kind == Rater.Kind.JUDGE
    assert Comparison.objects.count() == 0


def test_trls_form_for_kto_needs_no_second_response(project, file):
    report = import_file(
        project,
        file(
            {"prompt": "Hi", "completion": "Hi there", "label": True},
            {
                "prompt": [{"role": "user", "content": "Bye"}],
                "completion": [{"role": "assistant", "content": "No."}],
                "label": False,
            },
        ),
    )
    assert (report.format, report.ratings, report.rejected) == ("trl-kto", 2, 0)
    assert [row[:3] for row in said(project)] == [
        ("imported", "", True),
        ("imported", "", False),
    ]
    # A completion that begins like its prompt is left as it is.
    assert Response.objects.first().messages[0]["content"] == "Hi there"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz"])
def test_every_kind_of_file_brings_the_same_ratings(project, tmp_path, name):
    rows = [line(n, rating=n, scale="1-5", rater="ann") for n in (1, 5)]
    path = tmp_path / name
    if name == "a.jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    elif name == "a.parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name == "a.csv":
        with path.open("w", newline="") as out:
            table = csv.DictWriter(out, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    else:
        text = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
        path.write_text(text)
    report = import_file(project, path)
    assert (report.format, report.rejected) == ("ratings", 0)
    assert said(project) == [
        ("ann", "", None, 1.0, 1.0, 5.0),
        ("ann", "", None, 5.0, 1.0, 5.0),
    ]


def test_the_same_file_twice_adds_nothing_and_another_word_of_a_rater_is_left_out(project, file):
    path = file(line(rater="ann", desirable=True), line(2, rater="ann", desirable=False))
    import_file(project, path)
    again = import_file(project, path)
    assert (again.rows, again.responses, again.ratings, again.known_votes) == (2, 0, 0, 2)

    other = import_file(project, file(line(rater="ann", desirable=False), name="b.jsonl"))
    assert (other.ratings, other.rejected_votes) == (0, 1)
    assert rejects(other)[0]["reason"] == "rater 'ann' has said good, and here bad"
    assert Rating.objects.count() == 2


def test_lines_that_say_nothing_or_leave_their_scale_are_rejected_with_the_reason(project, file):
    path = file(
        line(rating=3),
        line(2, rating=7, scale=[1, 5]),
        line(3, label="perhaps"),
        line(4, rating=1, scale=[5, 1]),
        line(5, ratings=[{"rater": "a", "value": 2}, {"rater": "b", "value": 9}], scale=[1, 5]),
        {"prompt": "", "response": "x", "label": True},
    )
    report = import_file(project, path)
    assert (report.rows, report.rejected, report.rejected_votes) == (1, 5, 1)
    reasons = [entry["reason"] for entry in rejects(report)]
    assert reasons[0].startswith("`scale` is missing")
    assert reasons[1] == "`rating` is 7, outside of the scale 1 to 5"
    assert reasons[2] == "`label` is 'perhaps': it may be true or false"
    assert reasons[3].startswith("`scale` is [5, 1]")
    assert reasons[4] == "ratings[2]: `value` is 9, outside of the scale 1 to 5"
    assert reasons[5] == "`prompt` is empty"

    whole = import_file(project, path, labels=Labels(scale=(1.0, 5.0)))
    assert whole.ratings == 1  # the first line, now that somebody has said the scale


def test_no_file_speaks_for_a_person_with_an_account(project, file):
    RaterFactory(project=project, name="ann", user=UserFactory())
    import_file(project, file(line(rater="ann", desirable=True)))
    assert [row[0] for row in said(project)] == ["ann (imported)"]


def test_the_forms_of_helpsteer_label_studio_and_argilla_are_recognised(project, file):
    helpsteer = line(helpfulness=4, correctness=3, coherence=4, complexity=1, verbosity=0)
    tasks = {
        "id": 7,
        "data": {"prompt": "Q", "response": "A", "model": "m"},
        "annotations": [
            {
                "completed_by": 3,
                "lead_time": 2.5,
                "result": [{"from_name": "stars", "type": "rating", "value": {"rating": 4}}],
            }
        ],
    }
    argilla = {
        "fields": {"prompt": "Q2", "response": "A2"},
        "responses": {"quality": [{"value": 2, "user_id": "u1"}]},
    }
    scale = Labels(scale=(1.0, 5.0))
    forms = [
        import_file(project, file(record, name=f"{n}.jsonl"), labels=scale).format
        for n, record in enumerate((helpsteer, tasks, argilla))
    ]
    assert forms == ["helpsteer", "label-studio-ratings", "argilla-ratings"]
    assert [row for row in said(project) if row[1] == "verbosity"] == [
        ("imported", "verbosity", None, 0.0, 0.0, 4.0)
    ]
    assert ("annotator 3", "", None, 4.0, 1.0, 5.0) in said(project)
    assert ("u1", "", None, 2.0, 1.0, 5.0) in said(project)


def test_ratings_go_out_and_come_back_without_loss(project, file, tmp_path):
    source = file(
        line(
            id="r-1",
            model="small",
            metadata={"topic": "x"},
            ratings=[
                {"rater": "ann", "value": 0, "scale": [0, 4], "seconds": 0.0, "rationale": "ä"},
                {"rater": "bo", "desirable": False, "value": 3, "scale": [0, 4]},
                {"rater": "gpt-4", "kind": "judge", "value": 7.25, "scale": [1, 10]},
            ],
        ),
        line(id="r-2", rater="cy", desirable=True),  # the same texts, another model
    )
    import_file(project, source)
    assert export_file(project, tmp_path / "out.jsonl", "ratings").rows == 2
    back = ProjectFactory()
    import_file(back, tmp_path / "out.jsonl")
    assert everything(back) == everything(project)

    # TRL's form has a line for each rating; a label that was derived comes back as no thumb.
    assert export_file(project, tmp_path / "kto.jsonl", "trl-kto").rows == 4
    lines = [json.loads(text) for text in (tmp_path / "kto.jsonl").read_text().splitlines()]
    assert sorted(one["label"] for one in lines) == [False, False, True, True]
    assert sum("label_from" in one for one in lines) == 2
    returned = ProjectFactory()
    import_file(returned, tmp_path / "kto.jsonl")
    thumbless = [row for row in everything(project) if row[6] is None or row[7] is None]
    assert [row for row in everything(returned) if row in thumbless] == thumbless


def test_what_has_no_label_for_kto_is_counted(project, file, tmp_path):
    import_file(
        project,
        file(line(rating=3, scale=[1, 5]), line(2, rating=5, scale=[1, 5], aspect="honest")),
    )
    report = export_file(project, tmp_path / "kto.jsonl", "trl-kto")
    assert (report.rows, dict(report.left_out)) == (0, {"neutral": 1, "aspects": 1})
    by_judges = ExportReport()
    assert list(export_rows(project, "ratings", "ai", "", by_judges)) == []
    assert by_judges.left_out == {"rated_by_people": 2}
    with pytest.raises(ExportProblem, match="as they were given"):
        export_rows(project, "ratings", "mixed", "soft")


def test_the_command_imports_with_a_scale_and_refuses_a_bad_one(project, file, capsys):
    path = str(file(line(rating=3), line(2, rating=5)))
    call_command("import_comparisons", path, project="kitchen", scale="1-5", json=True)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["responses"], shown["ratings"], shown["created"]) == (2, 2, 0)
    call_command("import_comparisons", path, project="kitchen", scale="1-5")
    assert "2 known votes" in capsys.readouterr().out
    with pytest.raises(CommandError, match="`scale` is '5'"):
        call_command("import_comparisons", path, project="kitchen", scale="5")


def test_the_page_asks_for_the_scale_and_shows_what_each_rater_said(project, file, client, storage):
    lead = UserFactory()
    project.memberships.create(user=lead, role="lead")
    client.force_login(lead)
    with file(line(rating=4, rater="ann")).open("rb") as upload:
        sent = client.post(reverse("labeling:import", args=["kitchen"]), {"file": upload})
    page = client.get(sent.url)
    assert "`scale` is missing" in page.content.decode()
    page = client.get(sent.url + "&scale=1-5")
    text = page.content.decode()
    assert "4 of 1 to 5" in text
    assert "Start the import" in text
    start = {"format": "auto", "labels": "human", "rater": "imported", "scale": "1-5"}
    start |= {"labels_per_comparison": 1, "known_answers": "work"}
    started = client.post(sent.url, start)
    assert project.imports.get().options["scale"] == [1.0, 5.0]
    assert started.url.endswith(f"/{project.imports.get().pk}/")


def test_the_database_holds_one_current_rating_and_no_value_off_its_scale(project):
    response = ResponseFactory(prompt__project=project)
    rater = RaterFactory(project=project)
    Rating.objects.create(response=response, rater=rater, desirable=True)
    Rating.objects.create(response=response, rater=rater, aspect="honest", desirable=False)
    for wrong in (
        {"desirable": False},
        {"aspect": "x"},
        {"aspect": "y", "value": 6, "low": 1, "high": 5},
        {"aspect": "z", "value": 3},
    ):
        with pytest.raises(IntegrityError), transaction.atomic():
            Rating.objects.create(response=response, rater=rater, **wrong)


def test_a_judges_new_score_supersedes_its_old_one(project):
    judge = RaterFactory(project=project, kind=Rater.Kind.JUDGE)
    response = ResponseFactory(prompt__project=project)
    first = record_rating(judge, response, 7.5, low=1, high=10)
    assert record_rating(judge, response, 7.5, low=1, high=10) == first
    record_rating(judge, response, 4.0, low=1, high=10)
    assert [row[3] for row in said(project)] == [4.0]
    assert Rating.objects.count() == 2
    with pytest.raises(ValueError, match="another project"):
        record_rating(judge, ResponseFactory(), 4.0, low=1, high=10)


def test_a_value_lies_between_the_ends_of_its_scale():
    def judgement(**more):
        given = {"desirable": None, "value": None, "low": None, "high": None} | more
        return Judgement("ann", "person", "", created_at=datetime.now(UTC), **given)

    four = judgement(value=4, low=1, high=5)
    assert (four.place, four.good()) == (0.75, 1.0)
    assert judgement(value=3, low=1, high=5).good() == 0.5
    assert (judgement(desirable=False).place, judgement(desirable=True).good()) == (0.0, 1.0)
    # A thumb goes before the value beside it.
    assert judgement(desirable=False, value=5, low=1, high=5).good() == 0.0
