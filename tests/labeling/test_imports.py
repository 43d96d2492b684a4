"""Files into a project: rows, votes, rejects, and the same file twice."""

import gzip
import json
from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labeling.imports.importing import import_file
from labeling.imports.rows import turned
from labeling.models import Choice, Comparison, Preference, Project, Prompt, Rater, Response
from tests.factories import PreferenceFactory, ProjectFactory, RaterFactory, UserFactory

pytestmark = pytest.mark.django_db


def pair(n: int = 1, **more) -> dict:
    return {"prompt": f"Question {n}?", "response_a": f"yes {n}", "response_b": f"no {n}", **more}


def vote(rater: str, choice: str, **more) -> dict:
    return {"rater": rater, "choice": choice, **more}


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


def rejects(report) -> list[dict]:
    with open(report.reject_file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_a_record_becomes_prompt_responses_comparison_and_preferences(project, file):
    record = pair(
        id="ext-1",
        model_a="small",
        gold="a",
        metadata={"topic": "x"},
        preferences=[vote("ann", "a", strength=2, seconds=31.5, shown_first="b", tags=["t"])],
        verdicts=[{"rater": "gpt-4", "prob_a": 0.83}],
    )
    report = import_file(project, file(record))

    comparison = Comparison.objects.get()
    assert (comparison.project, comparison.external_id, comparison.gold) == (project, "ext-1", "a")
    assert comparison.metadata == {"topic": "x"}
    assert comparison.prompt.messages == [{"role": "user", "content": "Question 1?"}]
    assert comparison.response_a.messages == [{"role": "assistant", "content": "yes 1"}]
    assert (comparison.response_a.source, comparison.response_a.n_chars) == ("small", 5)
    ann = Preference.objects.get(rater__name="ann")
    assert (ann.choice, ann.strength, ann.seconds, ann.shown_first) == ("a", 2, 31.5, "b")
    assert (ann.tags, ann.rater.kind, ann.rater.user) == (["t"], Rater.Kind.PERSON, None)
    gpt = Preference.objects.get(rater__name="gpt-4")
    assert (gpt.choice, gpt.prob_a, gpt.rater.kind) == ("a", 0.83, Rater.Kind.JUDGE)
    assert (report.rows, report.created, report.preferences, report.verdicts) == (1, 1, 1, 1)
    assert (report.rejected, report.reject_file, report.problem) == (0, None, "")


def test_importing_a_file_twice_adds_nothing(project, file):
    path = file(
        pair(1, preferences=[vote("ann", "a"), vote("bo", "tie")]),
        pair(2, verdicts=[{"rater": "gpt-4", "prob_a": None}]),
        pair(3, response_a=""),
    )
    import_file(project, path)
    before = [list(m.objects.order_by("pk").values()) for m in (Prompt, Response, Comparison)]
    answers = list(Preference.objects.order_by("pk").values())

    report = import_file(project, path)
    assert (report.rows, report.created, report.duplicates) == (3, 0, 3)
    assert (report.preferences, report.verdicts, report.known_votes) == (0, 0, 3)
    assert before == [
        list(m.objects.order_by("pk").values()) for m in (Prompt, Response, Comparison)
    ]
    assert answers == list(Preference.objects.order_by("pk").values())


def test_another_project_takes_the_same_file(project, file):
    path = file(pair(preferences=[vote("ann", "a")]))
    import_file(project, path)
    assert import_file(ProjectFactory(), path).created == 1
    assert Rater.objects.filter(name="ann").count() == 2


def test_a_second_file_with_new_votes_adds_just_the_votes(project, file):
    import_file(project, file(pair(preferences=[vote("ann", "a")])), labels_per_comparison=3)
    report = import_file(project, file(pair(preferences=[vote("ann", "a"), vote("bo", "b")])))
    assert (report.created, report.duplicates) == (0, 1)
    assert (report.preferences, report.known_votes) == (1, 1)
    comparison = Comparison.objects.get()
    assert (comparison.labels_wanted, comparison.open_places) == (3, 1)


def test_votes_of_people_take_the_places_of_labels_and_verdicts_do_not(project, file):
    path = file(
        pair(1, preferences=[vote("ann", "a")], verdicts=[{"rater": "gpt", "prob_a": 0.2}]),
        pair(2, preferences=[vote(f"r{n}", "a") for n in range(4)]),
        pair(3),
    )
    import_file(project, path, labels_per_comparison=2)
    assert list(Comparison.objects.order_by("pk").values_list("open_places", flat=True)) == [
        1,
        0,
        2,
    ]


def test_the_sides_may_be_named_the_other_way_round(project, file):
    import_file(project, file(pair(model_a="m1", model_b="m2", preferences=[vote("ann", "a")])))
    other = {
        "prompt": "Question 1?",
        "response_a": "no 1",
        "response_b": "yes 1",
        "model_a": "m2",
        "model_b": "m1",
        "preferences": [vote("bo", "a", shown_first="a"), vote("ann", "b")],
        "verdicts": [{"rater": "gpt", "prob_a": 0.9, "prob_a_ab": 1.0, "prob_a_ba": 0.8}],
    }
    report = import_file(project, file(other))
    assert (report.created, report.duplicates, report.known_votes) == (0, 1, 1)
    bo = Preference.objects.get(rater__name="bo")
    assert (bo.choice, bo.shown_first) == ("b", "b")
    gpt = Preference.objects.get(rater__name="gpt")
    assert gpt.choice == "b"
    assert [gpt.prob_a, gpt.prob_a_ab, gpt.prob_a_ba] == pytest.approx([0.1, 0.2, 0.0])


def test_turning_a_vote_twice_gives_it_back(project, file):
    import_file(project, file(pair(verdicts=[{"rater": "g", "prob_a_ab": 0.75, "prob_a_ba": 0.5}])))
    from labeling.imports.interchange import Vote

    one = Vote("g", "judge", "a", prob_a=0.625, prob_a_ab=0.75, prob_a_ba=0.5, shown_first="b")
    assert turned(turned(one)) == one
    assert turned(one).prob_a_ab == 0.5


def test_the_same_texts_of_other_models_are_another_comparison(project, file):
    report = import_file(
        project, file(pair(model_a="m1", model_b="m2"), pair(model_a="m1", model_b="m3"), pair())
    )
    assert report.created == 3
    assert Prompt.objects.count() == 1


def test_two_models_that_said_the_same_are_kept_and_nobody_is_asked(project, file):
    record = pair(response_b="yes 1", model_a="m1", model_b="m2")
    import_file(project, file(record), labels_per_comparison=2)
    comparison = Comparison.objects.get()
    assert (comparison.labels_wanted, comparison.open_places) == (0, 0)


def test_a_line_that_cannot_become_a_row_is_kept_with_number_and_reason(project, file):
    path = file(pair(1), "{broken", {"prompt": "?"}, "", pair(2), '"text"')
    report = import_file(project, path)
    assert (report.rows, report.rejected) == (2, 3)
    assert report.reject_file == f"{path}.rejects.jsonl"
    assert [(r["line"], r["text"]) for r in rejects(report)] == [
        (2, "{broken"),
        (3, '{"prompt": "?"}'),
        (6, '"text"'),
    ]
    assert sum(report.reasons.values()) == 3


def test_a_bad_vote_is_kept_in_the_reject_file_and_its_comparison_stays(project, file):
    report = import_file(project, file(pair(preferences=[vote("ann", "c"), vote("bo", "a")])))
    assert (report.rows, report.created, report.preferences) == (1, 1, 1)
    assert (report.rejected, report.rejected_votes) == (0, 1)
    (entry,) = rejects(report)
    assert entry["kept"] is True
    assert entry["reason"] == "preferences[1]: `choice` is 'c': it may be a, b, tie, both_bad"


def test_a_rater_who_changes_their_mind_in_a_later_line_keeps_the_first_answer(project, file):
    path = file(pair(preferences=[vote("ann", "a")]), pair(preferences=[vote("ann", "b")]))
    for _ in range(2):
        report = import_file(project, path)
        assert report.rejected_votes == 1
        assert [r["reason"] for r in rejects(report)] == ["rater 'ann' has answered a, and here b"]
    assert Preference.objects.get().choice == "a"


def test_a_reject_file_goes_to_storage_when_the_folder_takes_none(
    project, file, storage, monkeypatch
):
    path = file("{broken")
    real_open = type(path).open

    def no_writing(self, mode="r", *args, **kwargs):
        if self.parent == path.parent and mode != "rb":
            raise PermissionError(13, "Permission denied")
        return real_open(self, mode, *args, **kwargs)

    monkeypatch.setattr(type(path), "open", no_writing)
    report = import_file(project, path)
    assert report.reject_file.startswith(f"{storage}/rejects/a.jsonl.")
    assert report.rejected == 1


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.jsonl", b"", "empty.jsonl is empty: no record in it"),
        ("blank.json", b"\n \n", "blank.json is empty: no record in it"),
        ("photo.png", b"\x89PNG\r\n\x1a\n", "photo.png is of no known kind: give .jsonl, .json"),
        ("x.csv", "a,b\n1,2\n".encode("utf-16"), "this is UTF-16 text: save it as UTF-8"),
        (
            "people.csv",
            b"name,age\nAnn,3\n",
            "none of the 1 records of people.csv could be used: no known form of comparison; "
            "its keys are: age, name",
        ),
        ("binary.jsonl", bytes(range(256)), "none of the 2 records of binary.jsonl could be used"),
    ],
)
def test_a_file_that_gives_nothing_is_one_clear_line(project, tmp_path, name, content, problem):
    path = tmp_path / name
    path.write_bytes(content)
    report = import_file(project, path)
    assert report.problem.startswith(problem)
    assert "\n" not in report.problem
    assert report.rows == 0
    if report.rejected:
        assert len(rejects(report)) == report.rejected


def test_votes_alone_find_their_comparison_by_its_id(project, file):
    import_file(project, file(pair(1, id="p1"), pair(2, id="p2"), pair(3, id="p2")))
    path = file(
        {"id": "p1", "rater": "ann", "choice": "b"},
        {"id": "p1", "rater": "bo", "choice": "left"},
        {"id": "p2", "rater": "ann", "choice": "a"},
        {"id": "p9", "rater": "ann", "choice": "a"},
    )
    report = import_file(project, path)
    assert (report.format, report.rows, report.rejected, report.preferences) == ("votes", 2, 2, 2)
    assert [r["reason"] for r in rejects(report)] == [
        "2 comparisons with the id 'p2'",
        "no comparison with the id 'p9'",
    ]
    assert import_file(project, path).known_votes == 2


def test_a_file_does_not_answer_in_the_name_of_a_person_with_an_account(project, file):
    ann = RaterFactory(project=project, name="ann", user=UserFactory(username="ann"))
    import_file(project, file(pair(1, preferences=[vote("ann", "a")])))
    assert Preference.objects.get().rater.name == "ann (imported)"
    assert ann.preferences.count() == 0
    assert import_file(project, file(pair(1, preferences=[vote("ann", "a")]))).known_votes == 1


def test_a_projects_own_answers_come_back_as_known(project, file):
    ann = RaterFactory(project=project, name="ann", user=UserFactory(username="ann"))
    import_file(project, file(pair(1)))
    PreferenceFactory(comparison=Comparison.objects.get(), rater=ann, choice=Choice.A)
    report = import_file(project, file(pair(1, preferences=[vote("ann", "a")])))
    assert (report.preferences, report.known_votes) == (0, 1)


def test_more_rows_than_one_batch_and_one_report_per_batch(project, file):
    seen = []
    report = import_file(
        project,
        file(*[pair(n, preferences=[vote("ann", "a")]) for n in range(1201)]),
        on_progress=lambda report, progress: seen.append((report.created, progress.done)),
    )
    assert [created for created, _done in seen] == [500, 1000, 1201]
    assert report.created == Comparison.objects.count() == Preference.objects.count() == 1201


def test_an_import_that_is_cut_off_is_finished_by_running_it_again(project, file):
    path = file(*[pair(n) for n in range(700)])

    def stop(report, progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_file(project, path, on_progress=stop)
    assert Comparison.objects.count() == 500
    report = import_file(project, path)
    assert (report.created, report.duplicates) == (200, 500)


def test_the_number_of_queries_of_a_batch_does_not_grow_with_it(
    project, file, django_assert_max_num_queries
):
    few = file(*[pair(n, preferences=[vote("ann", "a")]) for n in range(3)], name="few.jsonl")
    with django_assert_max_num_queries(20):
        import_file(project, few)
    many = file(*[pair(n, preferences=[vote("ann", "a")]) for n in range(60)], name="many.jsonl")
    with django_assert_max_num_queries(20):
        import_file(project, many)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
        | st.fixed_dictionaries(
            {"prompt": inner, "response_a": inner, "response_b": inner},
            optional={"preferences": inner, "id": inner, "metadata": inner, "gold": inner},
        )
    ),
    max_leaves=8,
)
GOOD = st.builds(
    lambda n, choice: pair(n, preferences=[vote("ann", choice)]),
    st.integers(0, 3),
    st.sampled_from(["a", "b", "tie", "c"]),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(values=st.lists(JSON_VALUES | GOOD, max_size=8), as_array=st.booleans())
def test_any_json_is_imported_or_rejected_line_by_line(project, tmp_path, values, as_array):
    path = tmp_path / ("any.json" if as_array else "any.jsonl")
    if as_array:
        path.write_text(json.dumps(values))
    else:
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
    report = import_file(project, path)
    assert report.rows + report.rejected == len(values)
    if report.rejected or report.rejected_votes:
        assert len(rejects(report)) == report.rejected + report.rejected_votes
    again = import_file(project, path)
    assert (again.created, again.preferences, again.verdicts) == (0, 0, 0)
    assert (again.rows, again.rejected) == (report.rows, report.rejected)


# --- the command ---------------------------------------------------------------------------------


def command(*arguments) -> tuple[int, str, str]:
    """(exit status, standard output, standard error) of import_comparisons."""
    out, err = StringIO(), StringIO()
    try:
        call_command("import_comparisons", *map(str, arguments), stdout=out, stderr=err)
    except SystemExit as stop:
        return int(stop.code), out.getvalue(), err.getvalue()
    except CommandError as error:
        return error.returncode, out.getvalue(), str(error)
    return 0, out.getvalue(), err.getvalue()


def test_the_command_makes_the_project_and_prints_one_json_object(file):
    path = file(pair(preferences=[vote("ann", "a")]), "{broken")
    status, out, _err = command(
        path, "--project", "new-one", "--create", "--labels-per-comparison", 2, "--json"
    )
    assert status == 0
    printed = json.loads(out)
    assert {
        key: printed[key]
        for key in (
            "format",
            "rows",
            "created",
            "duplicates",
            "rejected",
            "preferences",
            "verdicts",
        )
    } == {
        "format": "interchange",
        "rows": 1,
        "created": 1,
        "duplicates": 0,
        "rejected": 1,
        "preferences": 1,
        "verdicts": 0,
    }
    assert printed["reject_file"] == f"{path}.rejects.jsonl"
    project = Project.objects.get(slug="new-one")
    assert project.labels_per_comparison == 2
    assert project.comparisons.get().open_places == 1


def test_the_command_speaks_to_people_too(project, file):
    _status, out, _err = command(file(pair()), "--project", "kitchen")
    assert out.startswith("a.jsonl: interchange; 1 rows, 1 new comparisons, 0 known")


def test_several_files_are_one_report_with_each_ones_own(project, file):
    pairs = file(pair(id="p1"), name="pairs.jsonl")
    votes = file({"id": "p1", "rater": "ann", "choice": "a"}, name="votes.jsonl")
    status, out, _err = command(pairs, votes, "--project", "kitchen", "--json")
    printed = json.loads(out)
    assert (status, printed["format"], printed["preferences"]) == (0, "interchange, votes", 1)
    assert [part["rows"] for part in printed["files"]] == [1, 1]


def test_labels_of_an_unnamed_source_take_the_given_name_and_kind(project, file):
    path = file({"prompt": "?", "chosen": "x", "rejected": "y"})
    command(path, "--project", "kitchen", "--labels", "ai", "--rater", "gpt-4")
    rater = Preference.objects.get().rater
    assert (rater.name, rater.kind) == ("gpt-4", Rater.Kind.JUDGE)


def test_a_file_that_gives_nothing_is_exit_status_1(project, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("name,age\nAnn,3\n")
    status, out, err = command(path, "--project", "kitchen", "--json")
    assert status == 1
    assert json.loads(out)["rejected"] == 1
    assert err.count("\n") == 1
    assert "no known form of comparison" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl", "--project", "kitchen"], "nowhere.jsonl: there is no such file"),
        (["FILE", "--project", "other"], "there is no project 'other'; --create makes it"),
        (
            ["FILE", "--project", "kitchen", "--labels-per-comparison", "0"],
            "--labels-per-comparison goes from 1 to 100",
        ),
        (["FILE", "--project", "bad slug!", "--create"], "'bad slug!' is no short name"),
    ],
)
def test_a_wrong_call_is_exit_status_2(project, file, arguments, message):
    path = file(pair())
    status, _out, err = command(*[path if a == "FILE" else a for a in arguments])
    assert status == 2
    assert err.startswith(message)
    assert Comparison.objects.count() == 0


def test_a_gzipped_file_is_imported_too(project, tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(pair()).encode()))
    assert command(path, "--project", "kitchen")[0] == 0
    assert Comparison.objects.count() == 1


def test_a_long_rejected_record_says_that_it_was_shortened(project, file):
    report = import_file(project, file({"odd": "x" * 300_000}))
    (entry,) = rejects(report)
    assert entry["text"].endswith("… (300,011 characters)")
    assert len(entry["text"]) < 101_000
