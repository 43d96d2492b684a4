"""Lists of responses to rank, sets with known answers, and what a row says of itself."""

import json

import pytest

from labeling.imports.foreign.columns import Labels
from labeling.imports.forms import recognise, rows_of
from labeling.imports.importing import import_file
from labeling.imports.interchange import BadRow
from labeling.imports.preview import preview
from labeling.models import Comparison, Preference, Ranking, Rater, ResponseSet
from tests.factories import PreferenceFactory, ProjectFactory, RaterFactory, UserFactory

pytestmark = pytest.mark.django_db

RIVERS = ["Po", "Oder", "Elbe"]


def listed(*responses, **more) -> dict:
    return {"prompt": "Name a river.", "responses": list(responses or RIVERS), **more}


def pair(n: int = 1, **more) -> dict:
    return {"prompt": f"Question {n}?", "response_a": f"yes {n}", "response_b": f"no {n}", **more}


@pytest.fixture
def project():
    return ProjectFactory(labels_per_comparison=2)


@pytest.fixture
def bring(project, tmp_path):
    """Import these records; the report."""

    def write_and_import(*records, **options):
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return import_file(project, path, **options)

    return write_and_import


def in_words(ranking: Ranking) -> list[list[str]]:
    """The order of a ranking by the words of its responses."""
    comparisons = ranking.response_set.comparisons.select_related("response_a", "response_b")
    texts = {r.pk: str(r) for c in comparisons for r in (c.response_a, c.response_b)}
    return [sorted(texts[pk] for pk in tied) for tied in ranking.order]


def choices(rater: str) -> dict[str, str]:
    """{"Po-Oder": "a", …} of a rater's current preferences."""
    answers = Preference.objects.current().filter(rater__name=rater)
    answers = answers.select_related("comparison__response_a", "comparison__response_b")
    return {f"{p.comparison.response_a}-{p.comparison.response_b}": p.choice for p in answers}


def test_a_list_becomes_one_set_with_every_pair(project, bring):
    report = bring(listed("Po", {"content": "Oder", "model": "m"}, "Elbe", "Arno", id="r1"))
    assert (report.format, report.rows, report.sets, report.created) == ("interchange", 1, 1, 6)
    the_set = ResponseSet.objects.get()
    comparisons = Comparison.objects.order_by("pk")
    assert {c.response_set for c in comparisons} == {the_set}
    assert {c.prompt for c in comparisons} == {the_set.prompt}
    assert [c.open_places for c in comparisons] == [2] * 6
    assert [c.external_id for c in comparisons][:2] == ["r1#0-1", "r1#0-2"]
    assert the_set.prompt.responses.count() == 4
    assert set(the_set.prompt.responses.values_list("source", flat=True)) == {"", "m"}
    # One draw for all: the set belongs to the random audit stream as a whole, or not at all.
    assert len({c.random_key for c in comparisons}) == 1


def test_rankings_are_kept_with_the_preferences_that_they_imply(bring):
    ann = {"rater": "ann", "order": [[0], [2, 1]], "seconds": 40, "rationale": "shorter"}
    report = bring(listed(rankings=[ann, {"rater": "bo", "order": [2, 1, 0]}]))
    assert (report.rankings, report.preferences, report.rejected_votes) == (2, 6, 0)
    ranking = Ranking.objects.get(rater__name="ann")
    assert in_words(ranking) == [["Po"], ["Elbe", "Oder"]]
    assert (ranking.seconds, ranking.rationale) == (40, "shorter")
    assert choices("ann") == {"Po-Oder": "a", "Po-Elbe": "a", "Oder-Elbe": "tie"}
    assert choices("bo") == {"Po-Oder": "b", "Po-Elbe": "b", "Oder-Elbe": "b"}
    answers = ranking.preferences.all()
    assert len(answers) == 3
    assert {answer.rationale for answer in answers} == {"shorter"}
    assert set(Comparison.objects.values_list("open_places", flat=True)) == {0}


def test_importing_lists_twice_adds_nothing(bring):
    records = [
        listed(rankings=[{"rater": "ann", "order": [0, 1, 2]}]),
        listed("Nile", "Niger", labels_wanted=3, priority=7),
        listed(*reversed(RIVERS), rankings=[{"rater": "bo", "order": [0, 1, 2]}]),
    ]
    report = bring(*records)
    assert (report.sets, report.created, report.duplicates, report.rankings) == (2, 4, 3, 2)
    # The third names the same set in another order; its ranking is read in that order.
    assert in_words(Ranking.objects.get(rater__name="bo")) == [["Elbe"], ["Oder"], ["Po"]]
    models = (ResponseSet, Ranking, Comparison, Preference)
    before = [list(model.objects.order_by("pk").values()) for model in models]
    again = bring(*records)
    assert (again.sets, again.created, again.rankings, again.known_votes) == (0, 0, 0, 6)
    assert before == [list(model.objects.order_by("pk").values()) for model in models]


def test_a_later_file_adds_a_ranking_to_a_known_set(bring):
    bring(listed())
    report = bring(listed(rankings=[{"rater": "ann", "order": [1, 0, 2]}]))
    assert (report.sets, report.duplicates, report.rankings, report.preferences) == (0, 3, 1, 3)
    assert set(Comparison.objects.values_list("open_places", flat=True)) == {1}
    other = bring(listed(rankings=[{"rater": "ann", "order": [0, 1, 2]}]))
    assert (other.rankings, other.rejected_votes, other.known_votes) == (0, 1, 2)
    assert in_words(Ranking.objects.get()) == [["Oder"], ["Po"], ["Elbe"]]


def test_a_list_of_which_a_pair_is_known_stays_a_number_of_pairs(bring):
    one = listed("Po", "Oder", "Elbe")
    overlapping = listed("Po", "Oder", "Arno", rankings=[{"rater": "ann", "order": [0, 1, 2]}])
    for _ in range(2):
        report = bring(one, overlapping)
    assert report.split_sets == 1
    assert ResponseSet.objects.count() == 1
    assert Comparison.objects.filter(response_set=None).count() == 2
    assert (Ranking.objects.count(), Preference.objects.count()) == (0, 3)

    alone = {"prompt": "Q", "response_a": "x", "response_b": "y"}
    report = bring(alone, {"prompt": "Q", "responses": ["x", "y", "z"]})
    assert (report.created, report.sets, report.split_sets) == (3, 0, 1)


def test_a_pair_of_a_set_that_comes_alone_is_the_same_comparison(bring):
    bring(listed())
    record = {"prompt": "Name a river.", "response_a": "Oder", "response_b": "Po"}
    report = bring(record | {"preferences": [{"rater": "ann", "choice": "a"}]})
    assert (report.created, report.duplicates) == (0, 1)
    assert choices("ann") == {"Po-Oder": "b"}


def test_pairs_of_a_list_bring_their_own_votes_and_names(bring):
    entry = {
        "a": 2,
        "b": 0,
        "id": "elbe-po",
        "verdicts": [{"rater": "gpt", "prob_a": 0.75}],
        "preferences": [{"rater": "ann", "choice": "b"}, {"rater": "bo", "choice": "tie"}],
    }
    report = bring(listed(rankings=[{"rater": "ann", "order": [0, 1, 2]}], pairs=[entry]))
    assert (report.created, report.preferences, report.verdicts) == (3, 4, 1)
    assert report.known_votes == 0  # ann says it twice, in the ranking and of the pair: one answer
    comparison = Comparison.objects.get(external_id="elbe-po")
    assert (str(comparison.response_a), str(comparison.response_b)) == ("Elbe", "Po")
    assert comparison.preferences.get(rater__name="gpt").prob_a == 0.75
    assert comparison.preferences.get(rater__name="ann").ranking.rater.name == "ann"


def test_a_ranking_may_say_which_answers_still_follow_from_it(bring):
    revised = {"a": 0, "b": 1, "preferences": [{"rater": "ann", "choice": "b", "strength": 1}]}
    still = {"rater": "ann", "order": [0, 1, 2], "implies": [[2, 0], [1, 2]]}
    report = bring(listed(rankings=[still], pairs=[revised]))
    assert (report.rankings, report.preferences, report.rejected_votes) == (1, 3, 0)
    assert choices("ann") == {"Po-Oder": "b", "Po-Elbe": "a", "Oder-Elbe": "a"}
    assert Ranking.objects.get().preferences.count() == 2


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"responses": ["Po"]}, "1 responses: it may be 2 to 9"),
        ({"responses": [str(n) for n in range(10)]}, "10 responses: it may be 2 to 9"),
        ({"responses": ["Po", "Oder", "Po"]}, "`responses[2]` and `responses[0]` are the same"),
        ({"responses": ["Po", 7]}, "`responses[1]` is a number: give a text or a list of messages"),
        ({"responses": "Po"}, "`responses` is no list"),
        ({"prompt": None}, "`prompt` is missing"),
        ({"prompt": " "}, "`prompt` is empty"),
        ({"gold": "a"}, "`gold` of a list of responses: give it to a pair, in `pairs`"),
        (
            {"purpose": "check"},
            "`purpose` of a list of responses: only a single pair can have another",
        ),
        (
            {"ranks": [1, 2, 3]},
            "`ranks` in a list of responses: say who ranked them, in `rankings`",
        ),
        ({"pairs": [{"a": 0, "b": 3}]}, "`pairs[1]` does not name two of the 3 responses"),
        ({"pairs": [{"a": 0, "b": 1}, {"a": 1, "b": 0}]}, "`pairs[2]` is there twice"),
        ({"rankings": "ann"}, "`rankings` is no list"),
    ],
)
def test_a_list_that_cannot_be_ranked_says_why(more, reason):
    with pytest.raises(BadRow) as problem:
        rows_of(listed() | more, "interchange", Labels())
    assert str(problem.value) == reason


@pytest.mark.parametrize(
    ("ranking", "reason"),
    [
        ({"order": [0, 1, 2]}, "`rater` is missing"),
        ({"rater": "ann"}, "`order` does not name each of the responses 0 to 2 once"),
        ({"rater": "ann", "order": [0, 1]}, "`order` does not name each of the responses 0 to 2"),
        ({"rater": "ann", "order": [[0, 1], [1, 2]]}, "`order` does not name each of the"),
        ({"rater": "ann", "order": [0, 1, "2"]}, "`order` does not name each of the responses"),
        ({"rater": "ann", "order": [0, 1, True]}, "`order` does not name each of the responses"),
        ({"rater": "ann", "order": [0, 1, 2], "kind": "robot"}, "`kind` may be person, judge"),
        ({"rater": "a", "order": [0, 1, 2], "implies": [[0]]}, "`implies` does not name pairs"),
        ("ann", "a text where an object should be"),
    ],
)
def test_a_bad_ranking_is_left_out_and_its_list_stays(bring, ranking, reason):
    report = bring(listed(rankings=[ranking]))
    assert (report.created, report.sets, report.rankings, report.rejected_votes) == (3, 1, 0, 1)
    with open(report.reject_file, encoding="utf-8") as lines:
        assert json.loads(next(lines))["reason"].startswith(f"rankings[1]: {reason}")


def test_a_judge_may_rank_too_and_takes_no_places(bring):
    bring(listed(rankings=[{"rater": "gpt", "kind": "judge", "order": [0, 1, 2]}]))
    assert Ranking.objects.get().rater.kind == Rater.Kind.JUDGE
    assert set(Comparison.objects.values_list("open_places", flat=True)) == {2}


def test_nobody_with_an_account_is_ranked_for_and_their_own_ranking_comes_back(project, bring):
    ann = RaterFactory(project=project, name="ann", user=UserFactory())
    bring(listed())
    for comparison in Comparison.objects.all():
        PreferenceFactory(comparison=comparison, rater=ann, choice="a")
    same = bring(listed(rankings=[{"rater": "ann", "order": [0, 1, 2]}]))
    assert (same.rankings, same.known_votes) == (0, 3)
    other = bring(listed(rankings=[{"rater": "ann", "order": [2, 1, 0]}]))
    assert other.rankings == 1
    assert Ranking.objects.get().rater.name == "ann (imported)"


def test_two_models_that_said_the_same_are_ranked_among_others(bring):
    same = [{"content": "Po", "model": m} for m in ("m1", "m2")]
    bring(listed(*same, "Oder"))
    assert set(Comparison.objects.values_list("open_places", flat=True)) == {2}


def test_lists_and_pairs_stand_in_one_file(bring):
    report = bring(pair(1), listed(), pair(2))
    assert (report.format, report.rows, report.created, report.sets) == ("interchange", 3, 5, 1)


def test_lists_come_as_csv_too(project, tmp_path):
    path = tmp_path / "a.csv"
    rankings = json.dumps([{"rater": "ann", "order": [[2], [0, 1]]}]).replace('"', '""')
    responses = json.dumps(RIVERS).replace('"', '""')
    path.write_text(
        f'prompt,responses,rankings,labels_wanted\nName a river.,"{responses}","{rankings}",4\n'
    )
    report = import_file(project, path)
    assert (report.sets, report.rankings) == (1, 1)
    assert set(Comparison.objects.values_list("labels_wanted", "open_places")) == {(4, 3)}


def test_a_list_is_previewed_as_one(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(listed(rankings=[{"rater": "ann", "order": [1, 0, 2]}])))
    shown = preview(path)
    assert (shown.form, len(shown.rows), shown.n_preferences) == ("interchange", 1, 3)
    _line, row = shown.rows[0]
    assert [messages[0]["content"] for messages, _model in row.response_list.responses] == RIVERS


# --- ranked lists of other tools -----------------------------------------------------------------


def ranked(**more) -> dict:
    return {"prompt": "Name a river.", "responses": RIVERS, "ranks": [1, 2, 2]} | more


def test_a_ranked_list_keeps_its_ranking(bring):
    report = bring(ranked(rater="ann"))
    assert (report.format, report.sets, report.rankings, report.preferences) == ("ranked", 1, 1, 3)
    assert in_words(Ranking.objects.get(rater__name="ann")) == [["Po"], ["Elbe", "Oder"]]
    assert Preference.objects.exclude(ranking=None).count() == 3
    again = bring(ranked(rater="ann"))
    assert (again.sets, again.rankings, again.known_votes) == (0, 0, 3)


@pytest.mark.parametrize(
    "more",
    [
        {"responses": ["Po", "Oder"], "ranks": [1, 2]},
        {"responses": [str(n) for n in range(12)], "ranks": list(range(12))},
        {"responses": ["Po", "Po", "Oder"], "ranks": [1, 1, 2]},
    ],
)
def test_too_few_too_many_or_doubled_responses_stay_pairs(bring, more):
    report = bring(ranked(**more))
    assert report.rows == 1
    assert (report.sets, report.split_sets, report.rankings) == (0, 0, 0)
    assert Preference.objects.count() == report.created


def test_bare_ranks_are_told_from_lists_to_rank():
    assert recognise([ranked()]) == "ranked"
    assert recognise([{"prompt": "?", "responses": [{"text": "x", "score": 1}] * 2}]) == "ranked"
    assert recognise([listed(), listed()]) == "interchange"
    assert recognise([listed(rankings=[])]) == "interchange"


# --- what a row says of itself -------------------------------------------------------------------


def test_a_row_says_how_many_labels_it_wants_and_how_soon(bring):
    bring(pair(1), pair(2, labels_wanted=5, priority=10), pair(3, labels_wanted=0, priority="-3"))
    found = Comparison.objects.order_by("pk").values_list(
        "labels_wanted", "open_places", "priority"
    )
    assert list(found) == [(2, 2, 0), (5, 5, 10), (0, 0, -3)]


@pytest.mark.parametrize("purpose", ["check", "qualification", "training"])
def test_a_row_with_a_purpose_wants_no_labels(bring, purpose):
    bring(pair(gold="b", purpose=purpose, labels_wanted=3, preferences=[vote_of_ann()]))
    comparison = Comparison.objects.get()
    assert (comparison.purpose, comparison.gold) == (purpose, "b")
    assert (comparison.labels_wanted, comparison.open_places) == (0, 0)
    assert comparison.preferences.count() == 1


def vote_of_ann() -> dict:
    return {"rater": "ann", "choice": "a"}


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"purpose": "check"}, "`purpose` is 'check' and `gold` is missing: what is the answer?"),
        (
            {"purpose": "exam", "gold": "a"},
            "`purpose` is 'exam': it may be work, training, qualification, check",
        ),
        ({"labels_wanted": 101}, "`labels_wanted` is 101: a whole number from 0 to 100"),
        ({"labels_wanted": 1.5}, "`labels_wanted` is 1.5: a whole number from 0 to 100"),
        ({"priority": 40000}, "`priority` is 40000: a whole number from -32767 to 32767"),
        ({"priority": "soon"}, "`priority` is 'soon', not a number"),
    ],
)
def test_a_row_that_asks_for_the_impossible_is_rejected(bring, more, reason):
    report = bring(pair(**more))
    assert (report.rows, report.rejected) == (0, 1)
    with open(report.reject_file, encoding="utf-8") as lines:
        assert json.loads(next(lines))["reason"] == reason


def test_known_answers_become_what_the_import_says(bring):
    records = [pair(1, gold="a"), pair(2), pair(3, gold="b", purpose="work"), listed()]
    bring(*records, known_answers="check")
    found = Comparison.objects.filter(response_set=None).order_by("pk")
    assert list(found.values_list("purpose", "open_places")) == [
        ("check", 0),
        ("work", 2),
        ("work", 2),
    ]


def test_a_known_comparison_keeps_its_purpose_and_the_report_says_so(bring):
    bring(pair(gold="a"))
    report = bring(pair(gold="a", purpose="check"))
    assert (report.duplicates, report.rejected_votes) == (1, 1)
    assert Comparison.objects.get().purpose == "work"
    assert report.reasons == {"here already as …: the purpose … is left out": 1}


def test_names_of_models_in_responses_are_kept_and_counted(bring):
    telling = pair(2) | {"response_a": "I am ChatGPT, made by OpenAI."}
    report = bring(pair(1), telling, listed("I am Claude.", "Po", "Oder"))
    assert report.leaks == 3
    found = Comparison.objects.order_by("pk").values_list("leaks", flat=True)
    assert list(found) == [[], ["ChatGPT", "OpenAI"], ["Claude"], ["Claude"], []]
    assert bring(telling).leaks == 0


def test_a_batch_of_lists_asks_no_more_queries_than_one(bring, django_assert_max_num_queries):
    lists = [
        {
            "prompt": f"Question {n}?",
            "responses": ["x", "y", "z"],
            "rankings": [{"rater": "ann", "order": [0, 1, 2]}],
        }
        for n in range(60)
    ]
    with django_assert_max_num_queries(26):
        bring(*lists[:2])
    with django_assert_max_num_queries(26):
        bring(*lists[2:])
