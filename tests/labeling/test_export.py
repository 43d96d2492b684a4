"""Labels out: what each form holds, what is left out and why, and the way back in."""

import csv
import gzip
import io
import json
from collections import Counter
from datetime import UTC, datetime
from itertools import permutations

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labeling.answering import record_preference, record_ranking
from labeling.assignment import next_comparison
from labeling.export import (
    AGGREGATES,
    FORMATS,
    RATED,
    ExportProblem,
    ExportReport,
    aggregated,
    export_file,
    export_rows,
)
from labeling.imports.importing import import_file
from labeling.models import Comparison, Decision, Preference, Rater, Response
from labeling.places import release
from tests.factories import (
    ComparisonFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
    ResponseFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def project():
    return ProjectFactory(slug="kitchen")


@pytest.fixture
def people(project):
    return [RaterFactory(project=project, name=name) for name in ("ann", "bo", "cy")]


@pytest.fixture
def judges(project):
    return [RaterFactory(project=project, name=name, kind="judge") for name in ("j1", "j2")]


def vote(comparison, rater, choice, **more):
    return PreferenceFactory(comparison=comparison, rater=rater, choice=choice, **more)


def exported(project, form, labels="mixed", aggregate="") -> tuple[list[dict], dict[str, int]]:
    """Records of a form that is JSON, and what was left out."""
    report = ExportReport()
    text = b"".join(export_rows(project, form, labels, aggregate, report)).decode()
    if form == "label-studio":
        records = json.loads(text)
    elif form == "csv":
        records = list(csv.DictReader(io.StringIO(text, newline="")))
    else:
        records = [json.loads(line) for line in text.split("\n") if line]
    assert report.rows == len(records)
    return records, dict(report.left_out)


# --- pairs -------------------------------------------------------------------------------------


def test_a_majority_becomes_one_pair_with_its_soft_label_and_margin(project, people):
    row = ComparisonFactory(project=project, external_id="ext-1")
    for rater, choice, strength in zip(people, ("b", "b", "a"), (3, 2, 1), strict=True):
        vote(row, rater, choice, strength=strength)

    assert exported(project, "trl") == (
        [
            {
                "prompt": row.prompt.messages[0]["content"],
                "chosen": row.response_b.messages[0]["content"],
                "rejected": row.response_a.messages[0]["content"],
                "margin": 0.444444,  # (3 + 2 - 1) / 3 votes / 3
                "prob": 0.666667,
                "n_raters": 3,
                "rule": "majority",
                "source": "human",
                "rater": "",
                "chosen_model": "",
                "rejected_model": "",
                "id": "ext-1",
            }
        ],
        {},
    )
    (chat,), _left_out = exported(project, "trl-chat")
    assert chat["prompt"] == row.prompt.messages
    assert chat["chosen"] == row.response_b.messages


def test_each_vote_can_be_a_pair_of_its_own(project, people, judges):
    row = ComparisonFactory(project=project)
    vote(row, people[0], "a", strength=3)
    vote(row, people[1], "tie")
    vote(row, judges[0], "b", prob_a=0.1)
    pairs, left_out = exported(project, "trl", aggregate="votes")
    assert [(p["rater"], p["prob"], p["margin"], p["rule"]) for p in pairs] == [
        ("ann", 1.0, 1.0, "votes")
    ]
    assert left_out == {"ties": 1}  # people answered, so the judge is not asked
    (pair,), _left_out = exported(project, "trl", "ai", "votes")
    assert (pair["rater"], pair["prob"], pair["source"]) == ("j1", 0.9, "ai")


def test_what_is_no_pair_is_counted_by_its_reason(project, people, judges):
    def comparison(*choices, rater=people, **more):
        row = ComparisonFactory(project=project, **more)
        for who, choice in zip(rater, choices, strict=False):
            vote(row, who, choice)
        return row

    comparison("a", "a", "b")
    comparison("tie")
    comparison("a", "b")
    comparison("both_bad")
    comparison("unparsed", rater=judges)
    comparison()
    comparison("a", gold="a")
    comparison("a", gold="a", purpose="check", labels_wanted=0)
    same = comparison("a")
    twin = ResponseFactory(
        prompt=same.prompt,
        messages=same.response_a.messages,
        content_hash=same.response_a.content_hash,
        source="another model",
    )
    Comparison.objects.filter(pk=same.pk).update(response_b=twin)

    pairs, left_out = exported(project, "trl")
    assert len(pairs) == 1
    assert left_out == dict.fromkeys(
        ("ties", "disputed", "both_bad", "unparsed", "unlabeled", "gold", "gold_set", "same_text"),
        1,
    )
    assert sum(left_out.values()) + len(pairs) == project.comparisons.count()


def test_people_decide_where_they_answered_and_judges_elsewhere(project, people, judges):
    both, alone = ComparisonFactory.create_batch(2, project=project)
    vote(both, people[0], "a")
    vote(both, judges[0], "b")
    vote(both, judges[1], "b")
    vote(alone, judges[0], "b")

    def sides(labels):
        pairs, left_out = exported(project, "trl", labels)
        return [(p["source"], p["chosen"]) for p in pairs], left_out

    a = both.response_a.messages[0]["content"]
    b, b_alone = (row.response_b.messages[0]["content"] for row in (both, alone))
    assert sides("mixed") == ([("human", a), ("ai", b_alone)], {})
    assert sides("human") == ([("human", a)], {"unlabeled": 1})
    assert sides("ai") == ([("ai", b), ("ai", b_alone)], {})


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_a_leads_decision_overrides_the_votes_of_people_but_not_labels_of_judges(
    project, people, judges, aggregate
):
    row = ComparisonFactory(project=project)
    for rater in people:
        vote(row, rater, "a")
    vote(row, judges[0], "a", prob_a=0.8)
    lead = UserFactory()
    Decision.objects.create(
        comparison=row, choice="a", decided_by=lead, superseded_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    Decision.objects.create(comparison=row, choice="b", strength=2, decided_by=lead)
    for labels in ("human", "mixed"):
        (pair,), _left_out = exported(project, "trl", labels, aggregate)
        assert pair["chosen"] == row.response_b.messages[0]["content"]
        assert (pair["rule"], pair["prob"], pair["margin"]) == ("decision", 1.0, 0.666667)
    (pair,), _left_out = exported(project, "trl", "ai", aggregate)
    assert (pair["rule"], pair["chosen"]) == (aggregate, row.response_a.messages[0]["content"])


def test_a_soft_label_carries_its_probability_and_no_margin(project, people, judges):
    clear, even = ComparisonFactory.create_batch(2, project=project)
    vote(clear, people[0], "a", strength=3)
    vote(clear, people[1], "a", strength=3)
    vote(clear, people[2], "tie")
    vote(even, judges[0], "a", prob_a=0.7)
    vote(even, judges[1], "b", prob_a=0.3)
    (pair,), left_out = exported(project, "trl", aggregate="soft")
    assert (pair["prob"], pair["margin"], pair["n_raters"]) == (0.833333, 0.0, 3)
    assert left_out == {"ties": 1}


def test_dawid_and_skene_believe_the_raters_who_agree(project, people):
    others = [RaterFactory(project=project, name=name) for name in ("dee", "eve")]
    for n in range(12):
        row = ComparisonFactory(project=project)
        truth = "ab"[n % 2]
        for rater in people:
            vote(row, rater, truth)
        for rater in others:
            vote(row, rater, "a")
    doubtful = ComparisonFactory(project=project)
    for rater, choice in zip([*people, *others], ("b", "b", "a", "a", "a"), strict=True):
        vote(doubtful, rater, choice)
    pairs, _left_out = exported(project, "trl", aggregate="dawid-skene")
    assert len(pairs) == 13
    assert pairs[-1]["chosen"] == doubtful.response_b.messages[0]["content"]
    assert pairs[-1]["prob"] > 0.8
    assert pairs[-1]["rule"] == "dawid-skene"


def test_several_turns_are_a_transcript_as_text_and_messages_as_chat(project, people, tmp_path):
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Name a river."},
    ]
    row = ComparisonFactory(project=project, prompt__messages=turns)
    vote(row, people[0], "a")
    (text,), _left_out = exported(project, "trl")
    assert text["prompt"] == (
        "\n\nBe brief.\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: Name a river.\n\nAssistant:"
    )
    assert text["chosen"] == " " + row.response_a.messages[0]["content"]
    (chat,), _left_out = exported(project, "trl-chat")
    assert chat["prompt"] == turns
    export_file(project, tmp_path / "chat.jsonl", "trl-chat")
    copy = ProjectFactory()
    report = import_file(copy, tmp_path / "chat.jsonl")
    assert (report.format, report.created, report.preferences) == ("trl", 1, 1)
    assert copy.prompts.get().messages == turns


# --- the interchange form ----------------------------------------------------------------------


def content(project) -> Counter:
    """All that an export carries, without keys and without the order. Not in it are the places in
    the project's random order, which every project draws anew."""
    found: Counter = Counter()
    for c in project.comparisons.select_related(
        "prompt", "response_a__author", "response_b__author", "response_set"
    ):
        sides = [_in_words(r) for r in (c.response_a, c.response_b)]
        own = (c.external_id, repr(c.prompt.messages), *sides, c.gold, json.dumps(c.metadata))
        of_queue = (c.purpose, c.labels_wanted, c.open_places, c.priority, tuple(c.leaks))
        the_set = c.response_set.content_hash if c.response_set else ""
        found["comparison", own, of_queue, the_set, c.content_hash] += 1
        for p in c.preferences.current().select_related("rater", "ranking"):
            numbers = (p.strength, p.prob_a, p.prob_a_ab, p.prob_a_ba, p.seconds)
            texts = (p.rationale, json.dumps(p.tags), json.dumps(p.aspects, sort_keys=True))
            design = (p.shown_first, p.inclusion_probability, p.audit, p.created_at)
            who = (p.rater.kind, p.rater.name)
            ranked = p.ranking is not None and p.ranking.superseded_at is None
            found["preference", own[1:4], who, p.choice, numbers, texts, design, ranked] += 1
        for d in c.decisions.filter(superseded_at=None):
            found["decision", own[1:4], d.choice, d.strength, d.note] += 1
    for the_set in project.response_sets.select_related("prompt"):
        found["set", the_set.content_hash, repr(the_set.prompt.messages)] += 1
        responses = Response.objects.select_related("author").in_bulk(
            [
                pk
                for pair in the_set.comparisons.values_list("response_a", "response_b")
                for pk in pair
            ]
        )
        for r in the_set.rankings.filter(superseded_at=None).select_related("rater"):
            order = tuple(tuple(sorted(_in_words(responses[pk]) for pk in at)) for at in r.order)
            more = (r.rationale, r.seconds, r.created_at, r.preferences.current().count())
            found["ranking", the_set.content_hash, (r.rater.kind, r.rater.name), order, more] += 1
    for prompt in project.prompts.all():
        found["prompt", repr(prompt.messages)] += 1
        for response in prompt.responses.select_related("author"):
            found["response", repr(prompt.messages), _in_words(response)] += 1
    for rater in project.raters.all():
        found["rater", rater.kind, rater.name] += 1
    return found


def _in_words(response: Response) -> tuple:
    author = response.author.name if response.author else ""
    return (repr(response.messages), response.source, author, response.n_chars)


VOTES = ("preferences", "verdicts")
texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=0, max_size=12
) | st.sampled_from(
    [
        *("", "=1+1", "-", "@a", "\t", "'=", "'", '"', "a,b\r\nc", "  ", "\ufeff", "é🙂"),
        *("[1]", '{"role": "x"}', "\u2028\x85", "\n\nHuman: a\n\nAssistant: b"),
        '[{"role": "user", "content": "x"}]',
    ]
)
names = st.sampled_from(["ann", "=bo", "cy 7", "7", "é"])
seconds = st.none() | st.floats(0, 1e6)
probabilities = st.none() | st.floats(0, 1)
people_votes = st.fixed_dictionaries(
    {
        "choice": st.sampled_from(["a", "b", "tie", "both_bad"]),
        "strength": st.sampled_from([None, 1, 2, 3]),
        "seconds": seconds,
        "shown_first": st.sampled_from(["", "a", "b"]),
        "rationale": texts,
        "tags": st.lists(texts, max_size=2),
        "aspects": st.dictionaries(texts, st.sampled_from(["a", "b", "tie"]), max_size=2),
        "audit": st.booleans(),
        "inclusion_probability": probabilities,
        "created_at": st.datetimes(
            datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)
        ),
    }
)
verdicts = st.fixed_dictionaries(
    {
        "choice": st.sampled_from(["a", "b", "tie", "unparsed"]),
        "prob_a": probabilities,
        "prob_a_ab": probabilities,
        "prob_a_ba": probabilities,
        "rationale": texts,
    }
)
fields = {
    "id": st.sampled_from(["", "x-1", "=x"]),
    "prompt": texts.filter(str.strip),
    "response_a": texts,
    "response_b": texts,
    "model_b": st.sampled_from(["m", "@m"]),
    "gold": st.sampled_from(["", "a", "tie"]),
    "purpose": st.sampled_from(["", "work", "training", "qualification", "check"]),
    "labels_wanted": st.none() | st.integers(0, 100),
    "priority": st.integers(-32_767, 32_767),
    "metadata": st.dictionaries(texts, texts | st.integers(-9, 9), max_size=2),
    "decision": st.none()
    | st.fixed_dictionaries({"choice": st.sampled_from(["a", "tie"]), "note": texts}),
    "preferences": st.dictionaries(names, people_votes, max_size=2),
    "verdicts": st.dictionaries(names, verdicts, max_size=2),
}
comparisons = st.fixed_dictionaries(fields)


of_pairs = st.fixed_dictionaries(
    {},
    optional={
        key: fields[key]
        for key in ("id", "gold", "labels_wanted", "priority", "metadata", "decision", *VOTES)
    },
)


@st.composite
def response_sets(draw) -> dict:
    """A list of responses with rankings, which may say otherwise than votes on its pairs."""
    n = draw(st.integers(2, 4))
    models = draw(st.permutations(["", "m", "@m", "n"]))
    pairs = draw(st.dictionaries(st.sampled_from(list(permutations(range(n), 2))), of_pairs))
    order = st.permutations(range(n)).flatmap(
        lambda places: st.integers(1, n).map(lambda k: [places[:k], *([p] for p in places[k:])])
    )
    ranking = st.fixed_dictionaries(
        {"order": order, "kind": st.sampled_from(["person", "judge"])},
        optional={"rationale": texts, "seconds": seconds},
    )
    return {
        "id": draw(st.sampled_from(["", "set"])),
        "prompt": draw(texts.filter(str.strip)),
        "responses": [{"messages": [message(draw(texts))], "model": models[k]} for k in range(n)],
        "labels_wanted": draw(st.none() | st.integers(0, 9)),
        "priority": draw(st.integers(-9, 9)),
        "metadata": draw(fields["metadata"]),
        "rankings": [
            {"rater": rater} | given
            for rater, given in draw(st.dictionaries(names, ranking, max_size=2)).items()
        ],
        "pairs": [
            {"a": a, "b": b} | in_lists(pair)
            for (a, b), pair in pairs.items()
            if a < b or (b, a) not in pairs
        ],
    }


def message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def in_lists(record: dict) -> dict:
    """The record with its votes as the interchange form has them."""
    return record | {
        key: [{"rater": rater} | given for rater, given in record[key].items()]
        for key in VOTES
        if key in record
    }


def imported(records: list[dict], path) -> object:
    lines = [
        json.dumps(r if "responses" in r else in_lists(r), default=datetime.isoformat)
        for r in records
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    project = ProjectFactory()
    import_file(project, path, reject_path=path.with_suffix(".rejects"))
    return project


any_text = settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@any_text
@given(st.lists(comparisons | response_sets(), min_size=1, max_size=3))
def test_what_goes_out_comes_back_as_an_identical_project(tmp_path, records):
    original = imported(records, tmp_path / "in.jsonl")
    report = export_file(original, tmp_path / "out.jsonl", "jsonl")
    alone = original.comparisons.filter(response_set=None)
    assert report.rows == alone.count() + original.response_sets.count()
    assert report.left_out == {}
    if not report.rows:  # every record was refused
        return
    copy = ProjectFactory()
    back = import_file(copy, tmp_path / "out.jsonl")
    assert (back.rejected, back.rejected_votes) == (0, 0)
    assert content(copy) == content(original)
    again = import_file(original, tmp_path / "out.jsonl")
    assert (again.created, again.preferences, again.verdicts, again.decisions) == (0, 0, 0, 0)
    assert (again.rejected, again.rejected_votes) == (0, 0)
    assert content(original) == content(copy)


@any_text
@given(st.lists(comparisons.map(lambda record: record | {"purpose": ""}), min_size=1, max_size=3))
def test_a_table_of_votes_comes_back_with_every_vote(tmp_path, records):
    original = imported(records, tmp_path / "in.jsonl")
    for form in ("csv", "parquet"):
        path = tmp_path / f"out.{form}"
        path.unlink(missing_ok=True)
        votes = Counter()
        for labels in ("human", "ai"):
            report = export_file(original, path, form, labels)
            copy = ProjectFactory()
            if report.rows:
                back = import_file(copy, path)
                assert back.reasons == {}
            votes += Counter({k: n for k, n in content(copy).items() if k[0] == "preference"})
        assert votes == Counter(
            {k: n for k, n in content(original).items() if k[0] == "preference"}
        )


def test_a_project_that_was_labeled_here_adds_nothing_to_itself(project, tmp_path):
    """With a person who has an account, a better answer of theirs, and a lead's decision."""
    ComparisonFactory(project=project)
    path = tmp_path / "start.jsonl"
    export_file(project, path, "jsonl")
    other = ProjectFactory(audit_share=0, check_share=0, repeat_share=0)
    import_file(other, path)
    ann = RaterFactory(project=other, name="ann", user=UserFactory())
    held = next_comparison(ann)
    record_preference(
        ann,
        held.comparison,
        "a",
        strength=2,
        aspects={"honest": "b"},
        better="Better still.",
        assignment_id=held.pk,
    )
    Decision.objects.create(comparison=held.comparison, choice="b", decided_by=UserFactory())
    before = content(other)
    assert Response.objects.get(author=ann).messages[0]["content"] == "Better still."
    assert export_file(other, path, "jsonl").rows == 3
    report = import_file(other, path)
    assert (report.created, report.duplicates, report.known_votes) == (0, 3, 3)
    assert (report.decisions, report.rejected_votes) == (0, 0)
    assert content(other) == before
    copy = ProjectFactory()
    import_file(copy, path)
    assert content(copy) == before
    assert Rater.objects.get(project=copy).user is None


RIVERS = ["Po", "Oder", "Elbe", "Arno"]


def answer_anew(preference, choice, **more):
    """Replace an answer that followed from a ranking by one of its own."""
    Preference.objects.filter(pk=preference.pk).update(superseded_at=timezone.now())
    vote(
        preference.comparison,
        preference.rater,
        choice,
        seconds=preference.seconds,
        shown_first=preference.shown_first,
        inclusion_probability=preference.inclusion_probability,
        audit=preference.audit,
        **more,
    )


@pytest.fixture
def labeled_here(tmp_path):
    """A project with everything that an export carries, most of it made the way people make it."""
    project = ProjectFactory(better_answers=True, labels_per_comparison=3)
    pairs = [
        {"id": "x-1", "response_a": "no", "response_b": "I am ChatGPT.", "labels_wanted": 3},
        {"id": "check", "response_a": "yes", "response_b": "no", "gold": "a", "purpose": "check"},
        {"id": "t", "response_a": "no", "response_b": "so", "gold": "b", "purpose": "training"},
        {
            "id": "q",
            "response_a": "u",
            "response_b": "v",
            "gold": "tie",
            "purpose": "qualification",
        },
        {"response_a": "w", "response_b": "w", "model_a": "m1", "model_b": "m2", "gold": "tie"},
    ]
    lists = [
        {"responses": RIVERS, "id": "rivers", "priority": 9, "metadata": {"topic": "water"}},
        {"responses": ["Nile", {"content": "Nile", "model": "m"}], "labels_wanted": 2},
        {"responses": ["Po", "Oder", "Loire"]},  # a pair is in the first: these stay single pairs
    ]
    records = [{"prompt": "Is it?"} | pair for pair in pairs]
    records += [{"prompt": "Name a river."} | a_list for a_list in lists]
    path = tmp_path / "start.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    import_file(project, path)
    # Raters would be given these first: they are put aside until the others are labeled.
    taught = Comparison.objects.filter(purpose__in=["training", "qualification"])
    purposes = dict(taught.values_list("pk", "purpose"))
    taught.update(purpose="work")

    ann, bo = (RaterFactory(project=project, name=name, user=UserFactory()) for name in "ab")
    judge = RaterFactory(project=project, name="j1", kind="judge")
    rivers = project.response_sets.get(comparisons__external_id="rivers#0-1")
    keys = {
        str(response): response.pk
        for c in rivers.comparisons.select_related("response_a", "response_b")
        for response in (c.response_a, c.response_b)
    }
    po, oder, elbe, arno = (keys[name] for name in RIVERS)
    for rater, order in ((ann, [[po], [elbe, oder], [arno]]), (bo, [[arno], [po], [oder], [elbe]])):
        assert next_comparison(rater).comparison.response_set == rivers
        record_ranking(rater, rivers, order, rationale="shorter", seconds=40.5)
    revised = ann.preferences.get(comparison__external_id="rivers#0-1")
    answer_anew(revised, "b", strength=1, tags=["clear"])
    first = project.comparisons.get(external_id="x-1")
    Comparison.objects.filter(pk=first.pk).update(priority=100)
    held = next_comparison(ann)
    assert held.comparison == first
    said = {"strength": 2, "aspects": {"honest": "b"}, "tags": ["clear"], "rationale": "Because."}
    record_preference(ann, first, "a", better="Better still.", seconds=3.5, **said)
    release(ann)
    vote(first, judge, "a", prob_a=0.75, prob_a_ab=0.7, prob_a_ba=0.8)
    vote(rivers.comparisons.first(), judge, "unparsed", rationale="?")
    for pk, purpose in purposes.items():
        Comparison.objects.filter(pk=pk).update(purpose=purpose)
    vote(project.comparisons.get(external_id="t"), bo, "b", seconds=2.0)
    Preference.objects.filter(rater=bo).update(audit=True, inclusion_probability=0.25)
    for comparison in (first, rivers.comparisons.last()):
        Decision.objects.create(
            comparison=comparison, choice="b", strength=3, note="See rule 2.", decided_by=ann.user
        )
    Comparison.objects.filter(pk=rivers.comparisons.last().pk).update(gold="tie", priority=-1)
    return project


def test_all_that_is_known_comes_back_and_adds_nothing_at_home(labeled_here, tmp_path):
    before = content(labeled_here)
    kinds = Counter(key[0] for key in before.elements())
    assert (kinds["set"], kinds["ranking"], kinds["decision"]) == (2, 2, 2)
    assert (kinds["comparison"], kinds["preference"]) == (5 + 6 + 1 + 2 + 2, 6 + 6 + 1 + 2 + 3)
    assert sum(1 for c in labeled_here.comparisons.all() if c.leaks) > 0

    path = tmp_path / "out.jsonl"
    report = export_file(labeled_here, path, "jsonl")
    assert (report.rows, report.left_out) == (5 + 2 + 2 + 2, {})
    home = import_file(labeled_here, path)
    assert (home.created, home.sets, home.split_sets, home.rankings) == (0, 0, 0, 0)
    assert (home.preferences, home.verdicts, home.decisions, home.leaks) == (0, 0, 0, 0)
    assert (home.rejected, home.rejected_votes, home.known_votes) == (0, 0, kinds["preference"])
    assert content(labeled_here) == before

    copy = ProjectFactory()
    there = import_file(copy, path)
    assert (there.sets, there.rankings, there.rejected, there.rejected_votes) == (2, 2, 0, 0)
    assert content(copy) == before
    export_file(copy, tmp_path / "again.jsonl", "jsonl")
    again = ProjectFactory()
    import_file(again, tmp_path / "again.jsonl")
    assert content(again) == before


def test_a_set_is_one_record_with_its_rankings_and_what_belongs_to_its_pairs(labeled_here):
    records, _left_out = exported(labeled_here, "jsonl")
    the_set = next(r for r in records if len(r.get("responses", [])) == 4)
    assert [r["messages"][0]["content"] for r in the_set["responses"]] == RIVERS
    assert (the_set["labels_wanted"], the_set["metadata"]) == (3, {"topic": "water"})
    ann, bo = the_set["rankings"]
    assert ann["order"] == [[0], [2, 1], [3]]
    assert ann["implies"] == [[0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]  # 0-1 was answered anew
    assert (bo["order"], bo.get("implies")) == ([[3], [0], [1], [2]], None)
    assert [(p["a"], p["b"], p["id"]) for p in the_set["pairs"]][:2] == [
        (0, 1, "rivers#0-1"),
        (0, 2, "rivers#0-2"),
    ]
    # Other forms have the pairs alone.
    pairs, _left_out = exported(labeled_here, "trl", aggregate="votes")
    # Of twelve answers one is a tie, and two are on a control question.
    assert sum(pair["id"].startswith("rivers#") for pair in pairs) == 9


def test_rankings_of_the_other_kind_stay_out(labeled_here):
    records, left_out = exported(labeled_here, "jsonl", "ai")
    assert [r["rankings"] for r in records if "responses" in r] == [[], []]
    assert left_out == {"human_preferences": 16}


def test_a_ranking_that_no_answer_follows_from_is_counted(labeled_here):
    for preference in Preference.objects.filter(ranking__rater__name="b"):
        answer_anew(preference, "tie")
    records, left_out = exported(labeled_here, "jsonl")
    assert left_out == {"rankings": 1}
    the_set = next(r for r in records if len(r.get("responses", [])) == 4)
    assert [r["rater"] for r in the_set["rankings"]] == ["a"]
    assert sum(v["rater"] == "b" for p in the_set["pairs"] for v in p["preferences"]) == 6


def test_a_set_of_which_a_pair_is_gone_goes_out_as_pairs(labeled_here, tmp_path):
    labeled_here.comparisons.get(external_id="rivers#2-3").delete()
    records, left_out = exported(labeled_here, "jsonl")
    assert left_out == {"rankings": 2}
    assert sum(str(r.get("id", "")).startswith("rivers#") for r in records) == 5
    export_file(labeled_here, tmp_path / "out.jsonl", "jsonl")
    home = import_file(labeled_here, tmp_path / "out.jsonl")
    assert (home.created, home.preferences, home.rejected_votes) == (0, 0, 0)


def test_sets_are_read_a_few_at_a_time_with_the_same_queries(
    project, tmp_path, monkeypatch, django_assert_num_queries
):
    monkeypatch.setattr("labeling.export.SETS", 2)
    path = tmp_path / "sets.jsonl"
    order = {"rater": "ann", "order": [0, 1, 2]}
    lists = [
        {"prompt": f"River {n}?", "responses": ["Po", "Oder", "Elbe"], "rankings": [order]}
        for n in range(5)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in lists))
    import_file(project, path)
    with django_assert_num_queries(1 + 3 * 5 + 1):
        records, _left_out = exported(project, "jsonl")
    assert len(records) == 5


def test_decisions_that_come_from_a_file_stand_in_the_change_log(labeled_here, tmp_path):
    export_file(labeled_here, tmp_path / "out.jsonl", "jsonl")
    copy, lead = ProjectFactory(), UserFactory()
    for _ in range(2):  # the second brings none
        import_file(copy, tmp_path / "out.jsonl", actor=lead)
    (change,) = copy.changes.all()
    assert (change.actor, change.action, change.subject) == (lead, "import decisions", "out.jsonl")
    assert change.after == {"decisions": 2}


def test_earlier_answers_stay_at_home(project, people):
    row = ComparisonFactory(project=project)
    vote(row, people[0], "a", superseded_at=datetime(2026, 1, 1, tzinfo=UTC))
    vote(row, people[0], "b")
    (record,), _left_out = exported(project, "jsonl")
    assert [(v["rater"], v["choice"]) for v in record["preferences"]] == [("ann", "b")]


def test_the_other_kind_of_label_is_left_out_and_counted(project, people, judges):
    row = ComparisonFactory(project=project)
    vote(row, people[0], "a")
    vote(row, judges[0], "b")
    vote(row, judges[1], "unparsed")
    (record,), left_out = exported(project, "jsonl", "human")
    assert (len(record["preferences"]), record["verdicts"]) == (1, [])
    assert left_out == {"ai_verdicts": 2}
    (record,), left_out = exported(project, "jsonl", "ai")
    assert (record["preferences"], len(record["verdicts"])) == ([], 2)
    assert left_out == {"human_preferences": 1}


def test_a_rule_puts_its_label_beside_the_votes(project, people):
    row = ComparisonFactory(project=project)
    for rater, choice in zip(people, ("a", "a", "b"), strict=True):
        vote(row, rater, choice)
    (record,), _left_out = exported(project, "jsonl", aggregate="majority")
    assert len(record["preferences"]) == 3
    assert record["label"] == {
        "choice": "a",
        "prob_a": 0.666667,
        "margin": 0.0,
        "n_raters": 3,
        "source": "human",
        "rule": "majority",
    }


def test_gold_sets_go_out_with_the_interchange_form(project):
    ComparisonFactory(project=project, gold="a", purpose="check", labels_wanted=0, priority=3)
    (record,), _left_out = exported(project, "jsonl")
    assert (record["purpose"], record["gold"]) == ("check", "a")
    assert (record["labels_wanted"], record["priority"]) == (0, 3)


# --- tables and other tools --------------------------------------------------------------------


def test_no_cell_of_a_table_is_a_formula_and_reading_it_takes_the_guard_off(
    project, people, tmp_path
):
    row = ComparisonFactory(
        project=project,
        external_id="'=2",
        prompt__messages=[{"role": "user", "content": '=HYPERLINK("http://x")'}],
        response_a__messages=[{"role": "assistant", "content": "-1"}],
    )
    vote(row, people[0], "a", rationale="@now", seconds=2.5)
    (cells,), _left_out = exported(project, "csv")
    assert cells["prompt"] == '\'=HYPERLINK("http://x")'
    assert (cells["response_a"], cells["rationale"], cells["id"]) == ("'-1", "'@now", "'=2")
    assert cells["guarded"] == "prompt* response_a* rationale*"
    export_file(project, tmp_path / "table.csv", "csv")
    copy = ProjectFactory()
    report = import_file(copy, tmp_path / "table.csv")
    assert (report.format, report.created, report.preferences) == ("interchange", 1, 1)
    assert copy.prompts.get().messages == row.prompt.messages
    kept = Preference.objects.get(rater__project=copy)
    assert (kept.rationale, kept.seconds) == ("@now", 2.5)
    assert copy.comparisons.get().external_id == "'=2"


def test_no_cell_is_a_formula_where_semicolons_tabs_or_lines_end_it_and_it_comes_back(
    project, people, tmp_path
):
    """As a spreadsheet reads it whose language has the comma in its numbers."""
    texts = [
        'a;=HYPERLINK("http://x")',
        "x\n=cmd\r\n+1\r-2",
        "a;\"=1\";''@2,-3\t＝4",
        "plain; text, - with a dash\n - and ' an apostrophe\n'- kept",
    ]
    for text in texts:
        said = [{"role": "user", "content": text}]
        vote(ComparisonFactory(project=project, prompt__messages=said), people[0], "a")
    path = tmp_path / "table.csv"
    export_file(project, path, "csv")

    for delimiter in ";\t,":
        with path.open(newline="") as file:
            cells = [cell for row in csv.reader(file, delimiter=delimiter) for cell in row]
        assert [cell for cell in cells if cell.lstrip('"').startswith(tuple("=+-@＝"))] == []
    copy = ProjectFactory()
    import_file(copy, path)
    assert [p.messages[0]["content"] for p in copy.prompts.order_by("pk")] == texts


def test_an_apostrophe_of_the_writers_own_is_not_taken_off(project, tmp_path):
    path = tmp_path / "foreign.csv"
    path.write_text("prompt,response_a,response_b\n'=1 what is it?,'-yes,no\n")
    import_file(project, path)
    assert project.prompts.get().messages[0]["content"] == "'=1 what is it?"


def test_a_table_of_labels_keeps_ties_and_says_how_sure_it_is(project, people):
    tie, clear, dispute = ComparisonFactory.create_batch(3, project=project)
    vote(tie, people[0], "tie")
    vote(clear, people[0], "b", strength=3)
    vote(dispute, people[0], "a")
    vote(dispute, people[1], "b")
    rows, left_out = exported(project, "csv", aggregate="majority")
    assert [(r["label"], r["prob_a"], r["margin"]) for r in rows] == [
        ("tie", "0.5", "0.0"),
        ("b", "0.0", "1.0"),
    ]
    assert left_out == {"disputed": 1}


def test_parquet_holds_numbers_as_numbers(project, people, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    row = ComparisonFactory(project=project)
    vote(row, people[0], "a", strength=2, seconds=1.5)
    export_file(project, tmp_path / "a.parquet", "parquet")
    table = parquet.read_table(tmp_path / "a.parquet")
    assert {
        name: str(table.schema.field(name).type) for name in ("strength", "prob_a", "audit")
    } == {
        "strength": "int16",
        "prob_a": "double",
        "audit": "bool",
    }
    assert table.to_pylist()[0]["seconds"] == 1.5


def test_without_pyarrow_parquet_is_refused_in_one_line(project, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ExportProblem, match="Parquet files need pyarrow"):
        export_file(project, tmp_path / "a.parquet", "parquet")
    assert list(tmp_path.iterdir()) == [tmp_path / "storage"]


@pytest.mark.parametrize("form", ["label-studio", "argilla"])
def test_other_tools_forms_are_read_back_as_they_were_written(
    project, people, judges, tmp_path, form
):
    first = ComparisonFactory(project=project, external_id="ext-1", metadata={"topic": "x"})
    second = ComparisonFactory(
        project=project,
        prompt__messages=[
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "More?"},
        ],
        response_a__messages=[{"role": "assistant", "content": "\n\nHuman: [x"}],
    )
    third = ComparisonFactory(project=project)
    digits = RaterFactory(project=project, name="7")
    for rater, choice in zip([*people, digits], ("a", "b", "tie", "both_bad"), strict=True):
        vote(first, rater, choice)
    vote(first, judges[0], "a", prob_a=0.75)
    vote(first, judges[1], "unparsed")
    vote(second, judges[0], "b", prob_a=0.2)
    vote(second, judges[1], "tie")
    report = export_file(project, tmp_path / "tool.json", form)
    assert (report.rows, report.left_out) == (3, {"unparsed_verdicts": 1})
    copy = ProjectFactory()
    back = import_file(copy, tmp_path / "tool.json")
    assert (back.format, back.created, back.rejected, back.rejected_votes) == (form, 3, 0, 0)

    def said(of):
        return sorted(
            (
                c.external_id,
                repr([c.prompt.messages, c.response_a.messages, c.metadata]),
                *sorted(
                    c.preferences.exclude(choice="unparsed").values_list(
                        "rater__kind", "rater__name", "choice"
                    )
                ),
            )
            for c in of.comparisons.select_related("prompt", "response_a")
        )

    assert said(copy) == said(project)
    assert third.preferences.count() == 0


def test_a_rule_suggests_where_a_tool_has_a_place_for_suggestions(project, people):
    row = ComparisonFactory(project=project)
    for rater, choice in zip(people, ("a", "a", "b"), strict=True):
        vote(row, rater, choice)
    (record,), _left_out = exported(project, "argilla", aggregate="majority")
    assert record["responses"] == {"preference": []}
    assert record["suggestions"] == {
        "preference": {"agent": "majority", "value": "response_a", "score": 0.666667}
    }


# --- files and the command ---------------------------------------------------------------------


def test_rows_are_read_in_chunks_with_the_same_few_queries_each(
    project, people, monkeypatch, django_assert_num_queries
):
    monkeypatch.setattr("labeling.export.CHUNK", 2)
    other = ProjectFactory()
    for _ in range(5):
        vote(ComparisonFactory(project=project), people[0], "a")
        ComparisonFactory(project=other)
    with django_assert_num_queries(3 * 3 + 1):
        pairs, _left_out = exported(project, "trl")
    assert len(pairs) == 5


def test_only_a_whole_file_bears_the_name(project, people, tmp_path, monkeypatch):
    vote(ComparisonFactory(project=project), people[0], "a")
    path = tmp_path / "out.jsonl"
    path.write_text("the earlier file")

    def cut_off(report):
        assert path.read_text() == "the earlier file"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_file(project, path, "trl", on_progress=cut_off)
    assert path.read_text() == "the earlier file"
    assert sorted(tmp_path.glob("*.part")) == sorted(tmp_path.glob(".*.part")) == []
    export_file(project, path, "trl")
    assert json.loads(path.read_text())["rule"] == "majority"


def test_a_name_that_ends_in_gz_is_packed(project, people, tmp_path):
    vote(ComparisonFactory(project=project), people[0], "a")
    export_file(project, tmp_path / "out.jsonl.gz", "jsonl")
    with gzip.open(tmp_path / "out.jsonl.gz", "rt") as file:
        assert len(file.readlines()) == 1


def command(*args) -> str:
    out = io.StringIO()
    call_command("export_preferences", *args, stdout=out, stderr=io.StringIO())
    return out.getvalue()


@pytest.mark.parametrize("form", [form for form in FORMATS if form not in RATED])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_every_form_goes_with_every_rule(project, people, tmp_path, form, aggregate):
    for n, choice in enumerate(("a", "tie", "b")):
        row = ComparisonFactory(project=project)
        for rater in people[: n + 1]:
            vote(row, rater, choice)
    path = tmp_path / "out"
    said = command(
        *("--project", "kitchen", "--format", form, "--aggregate", aggregate),
        *("--labels", "human", "--out", str(path), "--json"),
    )
    n_votes = {"votes": 4 if "trl" in form else 6 if form in ("csv", "parquet") else 3}
    n_rows = n_votes.get(aggregate, 2 if "trl" in form else 3)
    n_ties = (2 if aggregate == "votes" else 1) if "trl" in form else 0
    assert json.loads(said) == {
        "rows": n_rows,
        "file": str(path),
        "left_out": {"ties": n_ties} if n_ties else {},
    }
    assert path.stat().st_size > 0


def test_the_command_writes_to_standard_output(project, people, capsysbinary):
    vote(ComparisonFactory(project=project), people[0], "a")
    call_command("export_preferences", "--project=kitchen", "--format=trl", "--out=-", "--json")
    out, err = capsysbinary.readouterr()
    assert json.loads(out)["rule"] == "majority"
    assert json.loads(err) == {"rows": 1, "file": "-", "left_out": {}}


def test_where_no_row_comes_of_it_there_is_no_file_and_the_status_is_1(project, people, tmp_path):
    vote(ComparisonFactory(project=project), people[0], "tie")
    with pytest.raises(SystemExit) as end:
        command("--project=kitchen", "--format=trl", f"--out={tmp_path / 'x'}")
    assert end.value.code == 1
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "args",
    [
        ("--project=nowhere", "--format=trl", "--out=x"),
        ("--project=kitchen", "--format=xml", "--out=x"),
        ("--project=kitchen", "--format=trl", "--out=/no/such/folder/x"),
        ("--project=kitchen", "--format=trl"),
    ],
)
def test_a_wrong_call_ends_with_2(project, args):
    with pytest.raises(CommandError) as problem:
        command(*args)
    assert problem.value.returncode in (1, 2)  # argparse's own is 2 on a command line


def test_dawid_skene_without_a_crowd_is_a_mistake_of_the_caller(project, people):
    from labeling.export import _chunks

    vote(ComparisonFactory(project=project), people[0], "a")
    ((row,),) = _chunks(project.comparisons.all(), ExportReport())
    with pytest.raises(ValueError, match="whole crowd"):
        aggregated(row, "human", "dawid-skene")
