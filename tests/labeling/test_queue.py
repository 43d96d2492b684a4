"""What a lead sees of the comparisons: filters, pages, changes to many, one comparison's page."""

import re

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from labeling import queue
from labeling.answering import record_preference, skip_comparison
from labeling.assignment import next_comparison
from labeling.forms.queue import FilterForm
from labeling.judgements import record_judgement
from labeling.models import Comparison, Flag, Project, Rater, RepeatAnswer
from labeling.places import NotYours, release
from labeling.queue import filtered, find, find_before, page_of
from labeling.sets import set_purpose
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    PromptFactory,
    RaterFactory,
    ResponseFactory,
)

pytestmark = pytest.mark.django_db


def client_of(role: str, project: Project) -> Client:
    client = Client()
    client.force_login(MembershipFactory(project=project, role=role).user)
    return client


def lead_of(project: Project):
    return MembershipFactory(project=project, role="lead").user


def voted(project: Project, *choices: str, judge: str = "") -> Comparison:
    """A comparison that people judged like this, and a judge like that."""
    comparison = ComparisonFactory(project=project, labels_wanted=len(choices), open_places=0)
    for n, choice in enumerate(choices):
        rater = project.raters.filter(name=f"person {n}").first()
        rater = rater or RaterFactory(project=project, name=f"person {n}")
        PreferenceFactory(comparison=comparison, rater=rater, choice=choice)
    if judge:
        judging = project.raters.filter(kind="judge").first()
        judging = judging or RaterFactory(project=project, kind="judge")
        PreferenceFactory(comparison=comparison, rater=judging, choice=judge)
    return comparison


def through(project: Project, **filters) -> list[Comparison]:
    form = FilterForm({name: str(value) for name, value in filters.items()}, project=project)
    assert form.is_valid(), form.errors
    return list(filtered(project, **form.cleaned_data).order_by("pk"))


def test_the_states_are_told_apart():
    project = ProjectFactory()
    rater = RaterFactory(project=project)
    held, is_open = ComparisonFactory.create_batch(2, project=project)
    Comparison.objects.filter(pk=held.pk).update(priority=1)
    skipped = ComparisonFactory(project=project, priority=2)
    skip_comparison(rater, next_comparison(rater).comparison, "too long")
    assert next_comparison(rater).comparison == held
    done = voted(project, "a")
    check = ComparisonFactory(project=project, gold="a", labels_wanted=0)
    Comparison.objects.filter(pk=check.pk).update(purpose="check")

    assert through(project, state="open") == [is_open, skipped]
    assert through(project, state="held") == [held]
    assert through(project, state="skipped") == [skipped]
    assert through(project, state="done") == [done]
    assert through(project, purpose="check") == through(project, purpose="gold") == [check]


def test_people_who_differ_and_judges_who_differ_from_them():
    project = ProjectFactory()
    voted(project, "a", "a", judge="a")
    split = voted(project, "a", "b", judge="b")
    outvoted = voted(project, "a", "a", "tie", judge="b")
    voted(project, "a", judge="unparsed")
    corrected = voted(project, "a", "a")
    PreferenceFactory(
        comparison=corrected,
        rater=RaterFactory(project=project),
        choice="b",
        superseded_at=timezone.now(),
    )
    lone_judge = voted(project, "b", judge="tie")

    assert through(project, disagreement="people") == [split, outvoted]
    assert through(project, disagreement="all") == [split, outvoted, lone_judge]
    # People who are split have no majority to differ from.
    assert through(project, judge="differs") == [outvoted, lone_judge]
    assert len(through(project, judge="agrees")) == 1


def test_flags_are_found_by_kind_and_by_whether_they_are_resolved():
    project = ProjectFactory()
    unsafe, resolved, _plain = ComparisonFactory.create_batch(3, project=project)
    rater = RaterFactory(project=project)
    unsafe.flags.create(rater=rater, kind="unsafe")
    resolved.flags.create(rater=rater, kind="broken", resolved_at=timezone.now())

    assert through(project, flag="unresolved") == through(project, flag="unsafe") == [unsafe]
    assert through(project, flag="broken") == []
    assert through(project, flag="resolved") == [resolved]
    assert through(project, flag="any") == [unsafe, resolved]


def test_lengths_are_compared_as_a_share_of_the_longer_response():
    project = ProjectFactory()

    def of_lengths(a: int, b: int) -> Comparison:
        prompt = PromptFactory(project=project)
        return ComparisonFactory(
            project=project,
            prompt=prompt,
            response_a=ResponseFactory(prompt=prompt, n_chars=a),
            response_b=ResponseFactory(prompt=prompt, n_chars=b),
        )

    same, half, empty = of_lengths(100, 100), of_lengths(50, 100), of_lengths(0, 0)
    tenth = of_lengths(10, 1)

    assert through(project, length_min=50) == [half, tenth]
    assert through(project, length_max=50) == [same, half, empty]
    assert through(project, length_min=40, length_max=60) == [half]


def test_words_are_found_in_prompt_and_responses_but_not_in_their_frame():
    project = ProjectFactory()
    other = ComparisonFactory(project=project)
    prompt = PromptFactory(
        project=project, messages=[{"role": "user", "content": 'Say "Grüße"\nto 100% of them'}]
    )
    mine = ComparisonFactory(
        project=project,
        prompt=prompt,
        response_b=ResponseFactory(
            prompt=prompt, messages=[{"role": "assistant", "content": "Cordially YOURS"}]
        ),
    )

    for text in ("Grüße", '"grüße"', "cordially yours", "100% of", "TO 100%"):
        assert through(project, text=text) == [mine], text
    assert through(project, text="assistant") == through(project, text="content") == []
    assert other in through(project, text="question")


def test_tags_leaks_raters_and_decisions():
    project = ProjectFactory()
    tagged, leaking, decided, _plain = ComparisonFactory.create_batch(4, project=project)
    ann = RaterFactory(project=project)
    PreferenceFactory(comparison=tagged, rater=ann, tags=["clear", 'the "best"'])
    PreferenceFactory(comparison=leaking, tags=["unclear"])
    Comparison.objects.filter(pk=leaking.pk).update(leaks=["GPT-4"])
    decided.decisions.create(choice="a")
    tagged.decisions.create(choice="b", superseded_at=timezone.now())

    assert through(project, tag="clear") == through(project, tag='the "best"') == [tagged]
    assert through(project, leak="yes") == [leaking]
    assert through(project, rater=ann.pk) == [tagged]
    assert through(project, decision="yes") == [decided]
    assert len(through(project, decision="no", leak="no")) == 2


def test_filters_combine_and_keep_to_the_project():
    project = ProjectFactory()
    voted(project, "a", "b").flags.create(rater=RaterFactory(project=project), kind="unsafe")
    both = voted(project, "a", "b", judge="a")
    both.flags.create(rater=RaterFactory(project=project), kind="broken")
    voted(ProjectFactory(), "a", "b")

    assert through(project, disagreement="people", flag="broken", state="done") == [both]
    assert both in page_of(project, filtered(project)).rows
    assert len(page_of(project, filtered(project)).rows) == 2


def test_pages_follow_each_other_in_both_directions(monkeypatch):
    monkeypatch.setattr(queue, "PAGE", 3)
    monkeypatch.setattr(queue, "COUNTED", 5)
    monkeypatch.setattr(queue, "FIRST_STRETCH", 2)
    project = ProjectFactory()
    comparisons = []
    for _ in range(7):
        comparisons.append(ComparisonFactory(project=project))
        ComparisonFactory()  # of another project, between them
    rows = filtered(project)

    first = page_of(project, rows)
    assert (first.n, first.more_than_counted) == (5, True)
    assert (first.rows, first.before) == (comparisons[:3], None)
    second = page_of(project, rows, after=first.after)
    third = page_of(project, rows, after=second.after)
    assert (second.rows, third.rows) == (comparisons[3:6], comparisons[6:])
    assert third.after is None
    back = page_of(project, rows, before=third.before)
    assert back.rows == second.rows
    start = page_of(project, rows, before=back.before)
    assert (start.rows, start.before, start.after) == (comparisons[:3], None, first.after)


def test_a_search_that_runs_out_of_time_says_where_it_stopped_and_goes_on(monkeypatch):
    monkeypatch.setattr(queue, "FIRST_STRETCH", 2)
    project = ProjectFactory()
    comparisons = ComparisonFactory.create_batch(5, project=project)
    Comparison.objects.filter(pk=comparisons[4].pk).update(leaks=["Claude"])
    rows = filtered(project, leak="yes")

    stopped = find(project, rows, 1, seconds=-1)
    assert (stopped.pks, stopped.looked_to) == ([], comparisons[1].pk)
    assert find(project, rows, 1, after=stopped.looked_to).pks == [comparisons[4].pk]
    assert find_before(project, rows, 1, before=comparisons[4].pk).pks == []

    monkeypatch.setattr(queue, "SECONDS", -1)
    pages = page_of(project, rows), page_of(project, rows, before=comparisons[4].pk)
    forward, backward = ((page.rows, page.time_was_up) for page in pages)
    assert forward == backward == ([], True)
    assert (pages[0].after, pages[1].before) == (comparisons[1].pk, comparisons[2].pk)
    assert pages[0].counted_to == comparisons[1].pk
    address = f"/projects/{project.slug}/comparisons/?leak=yes"
    html = client_of("viewer", project).get(address).content.decode()
    assert f'leak=yes&amp;after={comparisons[1].pk}"' in html
    assert "there is more to look at" in html


def test_the_list_asks_as_much_of_the_database_for_three_comparisons_as_for_one():
    project = ProjectFactory()
    client = client_of("lead", project)
    address = f"/projects/{project.slug}/comparisons/?disagreement=people&text=question"

    def grown() -> None:
        comparison = voted(project, "a", "b", judge="a")
        comparison.flags.create(rater=project.raters.first(), kind="unsafe")

    grown()
    client.get(address)
    with CaptureQueriesContext(connection) as for_one:
        page = client.get(address).content.decode()
    assert "1 comparison" in page
    grown()
    grown()
    with CaptureQueriesContext(connection) as for_three:
        page = client.get(address).content.decode()
    assert "3 comparisons" in page
    assert len(for_three) == len(for_one)


def test_a_filter_is_a_link_and_htmx_gets_the_list_alone():
    project = ProjectFactory()
    split, same = voted(project, "a", "b"), voted(project, "a", "a")
    client = client_of("viewer", project)
    address = f"/projects/{project.slug}/comparisons/?state=&disagreement=people"

    page = client.get(address).content.decode()
    part = client.get(address, headers={"HX-Request": "true"}).content.decode()

    for html in (page, part):
        assert f"/comparisons/{split.pk}/?disagreement=people" in html
        assert f"/comparisons/{same.pk}/" not in html
    assert "<html" in page
    assert part.lstrip().startswith('<div id="list"')
    assert "checkbox" not in page  # a viewer changes nothing


def test_a_filter_that_cannot_be_read_shows_no_comparisons_and_changes_none():
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project)
    stranger = RaterFactory()
    client = client_of("lead", project)
    for query in ("state=lost", f"rater={stranger.pk}", "length_min=x"):
        address = f"/projects/{project.slug}/comparisons/"
        page = client.get(f"{address}?{query}").content.decode()
        assert f"/comparisons/{comparison.pk}/" not in page
        bulk = {"action": "priority", "priority": 5, "scope": "filter"}
        client.post(f"{address}change/?{query}", bulk)
    comparison.refresh_from_db()
    assert comparison.priority == 0


def test_priority_is_set_on_what_is_ticked_and_on_a_whole_filter():
    project = ProjectFactory()
    ticked, other = ComparisonFactory.create_batch(2, project=project)
    foreign = ComparisonFactory()
    split = voted(project, "a", "b")
    client = client_of("lead", project)
    address = f"/projects/{project.slug}/comparisons/change/"

    bulk = {"action": "priority", "priority": 7, "scope": "ticked"}
    client.post(address, bulk | {"comparisons": [ticked.pk, foreign.pk]})
    client.post(f"{address}?disagreement=people", bulk | {"priority": -2, "scope": "filter"})

    rows = dict(Comparison.objects.values_list("pk", "priority"))
    assert rows == {ticked.pk: 7, other.pk: 0, foreign.pk: 0, split.pk: -2}
    changes = list(project.changes.order_by("pk").values_list("action", "before", "after"))
    assert changes == [
        ("set priority", {"priority": 0}, {"priority": 7, "comparisons": [ticked.pk]}),
        ("set priority", {"priority": 0}, {"priority": -2, "comparisons": [split.pk]}),
    ]


def test_a_change_to_too_many_is_refused_whole(monkeypatch):
    monkeypatch.setattr(queue, "CHANGED_AT_ONCE", 2)
    project = ProjectFactory()
    ComparisonFactory.create_batch(3, project=project)
    page = client_of("lead", project).post(
        f"/projects/{project.slug}/comparisons/change/",
        {"action": "priority", "priority": 5, "scope": "filter"},
        follow=True,
    )
    assert "Nothing was changed" in page.content.decode()
    assert set(project.comparisons.values_list("priority", flat=True)) == {0}


def test_more_labels_open_as_many_places_as_are_neither_given_nor_held():
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project, labels_wanted=2)
    ann, ben = RaterFactory.create_batch(2, project=project)
    record_preference(ann, next_comparison(ann).comparison, "a")
    next_comparison(ben)
    check = ComparisonFactory(project=project, gold="a", purpose="check", labels_wanted=0)
    lead = lead_of(project)

    done = queue.set_labels_wanted(project, [comparison.pk, check.pk], 5, lead)

    assert done == (1, 1)
    comparison.refresh_from_db()
    assert (comparison.labels_wanted, comparison.open_places) == (5, 3)
    queue.set_labels_wanted(project, [comparison.pk], 1, lead)
    comparison.refresh_from_db()
    assert comparison.open_places == 0
    release(ben)
    comparison.refresh_from_db()
    assert comparison.open_places == 0  # the one label that it wants is given
    assert project.changes.count() == 2


def test_purpose_and_gold_go_together():
    project = ProjectFactory()
    known, unknown = ComparisonFactory.create_batch(2, project=project)
    client = client_of("lead", project)
    address = f"/projects/{project.slug}/comparisons/change/"
    both = {"scope": "ticked", "comparisons": [known.pk, unknown.pk]}

    client.post(address, {"action": "gold", "gold": "b", **both, "comparisons": [known.pk]})
    page = client.post(address, {"action": "purpose", "purpose": "check", **both}, follow=True)
    assert "1 left as they are: a set needs a known answer" in page.content.decode()
    page = client.post(address, {"action": "gold", "gold": "none", **both}, follow=True)
    assert "1 keep their answer" in page.content.decode()

    known.refresh_from_db()
    unknown.refresh_from_db()
    assert (known.gold, known.purpose, known.open_places) == ("b", "check", 0)
    assert (unknown.gold, unknown.purpose) == ("", "work")


def test_a_flagged_comparison_is_taken_out_of_the_queue_and_put_back():
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project, labels_wanted=3)
    ann, ben, eve = RaterFactory.create_batch(3, project=project)
    record_preference(ann, next_comparison(ann).comparison, "a")
    held = next_comparison(ben)
    client = client_of("lead", project)
    address = f"/projects/{project.slug}/comparisons/{comparison.pk}/place/"

    client.post(address, {"to": "out", "note": "a phone number"})

    comparison.refresh_from_db()
    assert (comparison.labels_wanted, comparison.open_places) == (1, 0)
    with pytest.raises(NotYours):
        record_preference(ben, held.comparison, "b")
    assert next_comparison(eve) is None
    page = client.get(f"/projects/{project.slug}/comparisons/{comparison.pk}/").content.decode()
    assert "a phone number" in page
    assert "Put back into the queue" in page

    client.post(address, {"to": "back"})
    comparison.refresh_from_db()
    assert (comparison.labels_wanted, comparison.open_places) == (3, 2)
    assert next_comparison(eve).comparison == comparison
    client.post(address, {"to": "back"})
    actions = list(project.changes.order_by("pk").values_list("action", flat=True))
    assert actions == ["take out of the queue", "put back into the queue"]


def test_several_are_put_back_to_what_each_of_them_wanted():
    project = ProjectFactory()
    two, three = (ComparisonFactory(project=project, labels_wanted=n) for n in (2, 3))
    lead = lead_of(project)
    assert queue.take_out(project, [two.pk, three.pk], lead) == 2
    assert queue.put_back(project, [three.pk, two.pk], lead) == 2
    wanted = project.comparisons.order_by("pk").values_list("labels_wanted", "open_places")
    assert list(wanted) == [(2, 2), (3, 3)]


def test_a_comparison_that_left_the_queue_for_a_set_is_not_put_back():
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project, gold="a")
    lead = lead_of(project)
    queue.take_out(project, [comparison.pk], lead)
    set_purpose(project, [comparison.pk], "check", lead)
    assert queue.put_back(project, [comparison.pk], lead) == 0


def test_flags_are_resolved_and_reopened_with_a_line_in_the_history():
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project)
    flag = comparison.flags.create(rater=RaterFactory(project=project), kind="private")
    client = client_of("lead", project)
    address = f"/projects/{project.slug}/flags/{flag.pk}/"

    client.post(address, {"to": "resolve"})
    client.post(address, {"to": "resolve"})
    flag.refresh_from_db()
    assert flag.resolved_at is not None
    assert flag.resolved_by is not None
    client.post(address, {"to": "reopen"})
    flag.refresh_from_db()
    assert (flag.resolved_at, flag.resolved_by) == (None, None)
    actions = list(project.changes.order_by("pk").values_list("action", flat=True))
    assert actions == ["resolve flag", "reopen flag"]
    foreign = Flag.objects.create(
        comparison=(other := ComparisonFactory()),
        rater=RaterFactory(project=other.project),
        kind="private",
    )
    assert client.post(f"/projects/{project.slug}/flags/{foreign.pk}/").status_code == 404


def test_a_comparisons_page_shows_all_that_was_said_of_it():
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project, labels_wanted=3)
    Comparison.objects.filter(pk=comparison.pk).update(leaks=["GPT-4"])
    ann = RaterFactory(project=project, name="ann")
    given = next_comparison(ann)
    record_preference(
        ann,
        comparison,
        "a",
        strength=2,
        rationale="It answers.",
        tags=["complete"],
        aspects={"honest": "b"},
        seconds=75,
    )
    PreferenceFactory(
        comparison=comparison,
        rater=RaterFactory(project=project, name="old hand"),
        choice="tie",
        superseded_at=timezone.now(),
    )
    ben = RaterFactory(project=project, name="ben")
    next_comparison(ben)
    skip_comparison(ben, comparison, "not my field", flag="language", note="Dutch?")
    judge = RaterFactory(project=project, name="wise", kind=Rater.Kind.JUDGE)
    record_judgement(
        judge, comparison, prob_a=0.8, prob_a_ab=0.9125, prob_a_ba=0.7, rationale="Shorter."
    )
    repeat = given.rater.assignments.create(
        comparison=comparison,
        repeats=ann.preferences.get(),
        stream="repeat",
        state="answered",
        shown_first="b",
        expires_at=timezone.now(),
    )
    RepeatAnswer.objects.create(assignment=repeat, choice="both_bad")

    html = (
        client_of("viewer", project)
        .get(f"/projects/{project.slug}/comparisons/{comparison.pk}/")
        .content.decode()
    )
    page = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))

    for words in (
        "clearly",
        "It answers.",
        "complete",
        "honest: B",
        "1 min 15 s",
        "old hand",
        "until",
        "ben: not my field",
        "Another language",
        "ben: Dutch?",
        "0.800 0.912 0.700",
        "Shorter.",
        "ann: Both are bad",
        "the text names GPT-4",
        "queue 1.000",
    ):
        assert words in page, words


def test_previous_and_next_stay_within_the_filter():
    project = ProjectFactory()
    first, agreed, second = (
        voted(project, "a", "b"),
        voted(project, "a", "a"),
        voted(project, "b", "a"),
    )
    client = client_of("viewer", project)
    address = f"/projects/{project.slug}/comparisons/"
    page = client.get(f"{address}{second.pk}/?disagreement=people").content.decode()
    assert f'{address}{first.pk}/?disagreement=people"' in page
    assert 'rel="next"' not in page
    plain = client.get(f"{address}{second.pk}/").content.decode()
    assert f'{address}{agreed.pk}/"' in plain
