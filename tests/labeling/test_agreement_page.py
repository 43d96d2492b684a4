"""The agreement page: the figures that a worker stored last, and how it is put to work."""

import html
import re
import sys

import pytest

from labeling.models import AgreementReport, Membership, Preference, Rater
from labeling.tasks import run_agreement
from labeling.templatetags.figures import decimals, percent
from labeling.views import agreement as page
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
)

pytestmark = pytest.mark.django_db

URL = "/projects/tea/agreement/"


@pytest.fixture
def lead(client):
    membership = MembershipFactory(project=ProjectFactory(slug="tea"))
    client.force_login(membership.user)
    return membership


def label(project, *answers, raters=("ann", "bob")):
    """One comparison for each of the answers, a string with a letter for each rater."""
    found = [Rater.objects.get_or_create(project=project, name=name)[0] for name in raters]
    words = {"a": "a", "b": "b", "t": "tie"}
    for choices in answers:
        comparison = ComparisonFactory(project=project)
        for rater, letter in zip(found, choices, strict=True):
            PreferenceFactory(
                comparison=comparison, rater=rater, choice=words[letter], shown_first="a"
            )


def computed(project):
    """A report of now, stored by the worker's own function."""
    report = AgreementReport.objects.create(project=project)
    run_agreement(report.pk)
    report.refresh_from_db()
    return report


def words_of(response):
    """The page as a person reads it: tags gone, runs of white space one space."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


def test_the_figures_are_read_in_sentences_each_with_its_n(client, lead):
    label(lead.project, "aa", "bb", "ab", "tt")
    computed(lead.project)

    text = words_of(client.get(URL))

    assert "give the same answer in 75 % of cases" in text
    assert "By chance it would be 25 %." in text
    assert "n = 4 comparisons with two votes or more, 4 pairs of votes" in text
    assert "8 votes; 2 people, 0 % of their places empty" in text


def test_one_rater_alone_gets_the_reason_instead_of_a_number(client, lead):
    label(lead.project, "a", "b", raters=("ann",))
    computed(lead.project)

    text = words_of(client.get(URL))

    assert "No comparison has votes of two people yet" in text
    assert "nan" not in text.lower().split()


def test_nobody_has_voted_yet(client, lead):
    text = words_of(client.get(URL))

    assert "Nobody has compared anything here yet" in text
    assert "Krippendorff" not in text


def test_figures_of_another_project_are_not_counted(client, lead):
    label(lead.project, "aa", "bb")
    label(ProjectFactory(), "ab", "ba", "ab", raters=("eve", "mallory"))
    computed(lead.project)

    response = client.get(URL)

    assert response.context["report"]["n_preferences"] == 4
    assert "mallory" not in response.content.decode()


def test_number_of_queries_does_not_grow_with_the_raters(client, lead, django_assert_num_queries):
    label(lead.project, "aa")
    computed(lead.project)
    client.get(URL)
    with django_assert_num_queries(8) as few:
        client.get(URL)
    label(lead.project, "aaa", "bbb", raters=("cy", "di", "ed"))
    computed(lead.project)

    with django_assert_num_queries(len(few)):
        client.get(URL)


def test_the_matrix_names_each_pair_and_its_figures(client, lead):
    label(lead.project, *["aa", "bb"] * 6)
    computed(lead.project)

    text = client.get(URL).content.decode()

    assert 'title="ann and bob: kappa 1.00; same answer on 100' in text
    assert text.count('class="heat-10" title=') == 2  # both halves


def test_the_matrix_says_when_two_raters_share_too_little(client, lead):
    label(lead.project, "aa", "bb")
    computed(lead.project)

    text = client.get(URL).content.decode()

    assert text.count('class="heat-few"') == 2


def test_the_page_counts_verdicts_that_follow_the_place(client, lead):
    judge = RaterFactory(project=lead.project, name="gpt", kind=Rater.Kind.JUDGE)
    for second in (0.1, 0.1, 0.9):
        PreferenceFactory(
            comparison=ComparisonFactory(project=lead.project),
            rater=judge,
            choice="a",
            prob_a_ab=0.9,
            prob_a_ba=second,
        )
    computed(lead.project)

    assert "the first place twice: 2, the second: 0 (p = 0.500)" in words_of(client.get(URL))


def test_a_judge_and_a_person_of_one_name_are_two_raters(client, lead):
    label(lead.project, *["aa", "bb"] * 6)
    judge = RaterFactory(project=lead.project, name="ann", kind=Rater.Kind.JUDGE)
    for comparison in lead.project.comparisons.all():
        PreferenceFactory(comparison=comparison, rater=judge, choice="a")
    computed(lead.project)

    matrix = client.get(URL).context["matrix"]

    assert [(row["name"], row["is_judge"]) for row in matrix] == [
        ("ann", True),
        ("ann", False),
        ("bob", False),
    ]
    assert [cell["pair"]["agreement"] for cell in matrix[0]["cells"][1:]] == [0.5, 0.5]
    assert matrix[1]["cells"][2]["pair"]["agreement"] == 1.0


def test_only_the_busiest_people_are_shown_until_one_asks_for_all(client, lead):
    names = [f"rater-{n}" for n in range(page.N_SHOWN + 2)]
    label(lead.project, "a" * len(names), raters=names)
    label(lead.project, "b" * 3, raters=names[-3:])
    computed(lead.project)

    first, everyone = client.get(URL), client.get(URL + "?all")

    assert len(first.context["raters"]) == len(first.context["matrix"]) == page.N_SHOWN
    assert first.context["raters"][0]["rater"] == names[-3]
    assert "Show all 17 people" in words_of(first)
    assert len(everyone.context["matrix"]) == 17


def test_a_click_wakes_one_worker_and_a_second_click_none(
    client, lead, django_capture_on_commit_callbacks
):
    label(lead.project, "aa", "bb")
    assert "and no figures yet" in words_of(client.get(URL))

    with django_capture_on_commit_callbacks() as messages:
        response = client.post(URL)
        client.post(URL)  # a second click starts nothing more

    assert (response.status_code, response.url) == (302, URL)
    report = AgreementReport.objects.get()
    assert report.status == "queued"
    assert len(messages) == 1
    assert "Waiting for a worker" in words_of(client.get(URL))


def test_the_worker_keeps_what_the_page_then_shows(client, lead):
    label(lead.project, "aa", "bb", "ab", "tt")

    report = computed(lead.project)

    assert report.status == "succeeded"
    assert report.result["percent_agreement"]["value"] == 0.75
    assert report.n_preferences == 8
    text = words_of(client.get(URL))
    assert "in 75 % of cases" in text
    assert "Recompute" in text
    assert "since these figures were computed" not in text


def test_a_leads_first_visit_sends_a_worker_by_itself_and_later_ones_do_not(client, lead):
    label(lead.project, "aa", "bb")
    by_itself = 'hx-trigger="load"'
    assert by_itself in client.get(URL).content.decode()

    computed(lead.project)
    label(lead.project, "ab")

    assert by_itself not in client.get(URL).content.decode()


def test_the_page_shows_how_far_the_worker_is(client, lead):
    label(lead.project, "aa", "bb")
    AgreementReport.objects.create(
        project=lead.project, status="running", worker="w", n_done=3, n_total=8
    )

    assert '<progress value="3" max="8"' in client.get(URL).content.decode()


def test_the_worker_reports_pairs_judges_and_people_as_it_goes(lead, monkeypatch):
    monkeypatch.setattr("labeling.tasks.SECONDS_BETWEEN_REPORTS", 0.0)
    label(lead.project, "aaa", raters=("ann", "bob", "cy"))

    report = computed(lead.project)

    assert (report.n_done, report.n_total) == (6, 6)  # three pairs and three people


def test_a_cancelled_report_ends_at_its_next_step(lead, monkeypatch):
    monkeypatch.setattr("labeling.tasks.SECONDS_BETWEEN_REPORTS", 0.0)
    label(lead.project, "aa")
    report = AgreementReport.objects.create(project=lead.project, cancel_requested=True)

    run_agreement(report.pk)

    report.refresh_from_db()
    assert (report.status, report.result) == ("cancelled", {})


@pytest.mark.parametrize("name", ["agreement", "leaderboard"])
def test_a_lead_stops_a_computation_and_the_figures_of_before_stay(client, lead, name):
    label(lead.project, "aa")
    reports = lead.project.agreement_reports if name == "agreement" else lead.project.leaderboards
    reports.create(project=lead.project, status="running", worker="one:1:1", cancel_requested=False)
    url = f"/projects/tea/{name}/"
    assert 'name="cancel"' in client.get(url).content.decode()

    client.post(url, {"cancel": "1"})

    assert reports.get().cancel_requested  # its worker sees that at its next report
    assert 'name="cancel"' not in client.get(url).content.decode()
    reports.update(status="cancelled", cancel_requested=False)
    reports.create(project=lead.project)
    client.post(url, {"cancel": "1"})
    assert set(reports.values_list("status", flat=True)) == {"cancelled"}
    assert "The last computation was cancelled." in words_of(client.get(url))


def test_a_worker_without_the_libraries_says_what_to_install(client, lead, monkeypatch):
    monkeypatch.delitem(sys.modules, "labeling.agreement", raising=False)
    monkeypatch.setitem(sys.modules, "evalica", None)
    label(lead.project, "aa")

    report = computed(lead.project)

    assert report.status == "failed"
    assert report.error == (
        "Agreement figures need statistics libraries, and evalica is not installed here: "
        "pip install '.[stats]'"
    )
    page_text = html.unescape(words_of(client.get(URL)))
    assert f"The last computation ended without figures: {report.error}" in page_text


def test_a_second_worker_does_not_take_a_report_that_is_taken(lead):
    report = AgreementReport.objects.create(project=lead.project, status="running", worker="other")

    run_agreement(report.pk)

    report.refresh_from_db()
    assert (report.status, report.worker, report.result) == ("running", "other", {})


def test_a_failure_is_kept_with_its_error(lead, monkeypatch):
    def broken(*_args, **_kwargs):
        raise MemoryError("no memory left")

    monkeypatch.setattr("labeling.agreement.agreement_report", broken)
    report = AgreementReport.objects.create(project=lead.project)

    with pytest.raises(MemoryError):
        run_agreement(report.pk)

    report.refresh_from_db()
    assert report.status == "failed"
    assert "no memory left" in report.error


def test_votes_since_the_report_are_announced(client, lead):
    label(lead.project, "aa", "bb")
    computed(lead.project)
    label(lead.project, "ab")
    Preference.objects.filter(pk=Preference.objects.earliest("pk").pk).update(
        superseded_at="2026-01-01T00:00Z"
    )

    text = words_of(client.get(URL))

    assert "2 new votes since these figures were computed." in text
    assert "1 vote was withdrawn or edited since." in text


def test_the_status_polls_while_a_worker_counts_and_then_reloads_the_page(client, lead):
    label(lead.project, "aa", "bb")
    report = AgreementReport.objects.create(project=lead.project)

    waiting = client.get(URL, headers={"HX-Request": "true"})
    run_agreement(report.pk)
    done = client.get(URL, headers={"HX-Request": "true"})

    assert 'hx-trigger="every 1s"' in waiting.content.decode()
    assert "<html" not in waiting.content.decode()
    assert "HX-Refresh" not in waiting.headers
    assert done.headers["HX-Refresh"] == "true"
    assert "hx-trigger" not in done.content.decode()


def test_a_viewer_reads_and_does_not_start_workers(client, lead):
    viewer = MembershipFactory(project=lead.project, role=Membership.Role.VIEWER)
    label(lead.project, "aa")
    client.force_login(viewer.user)

    assert "A lead of the project can have them computed" in words_of(client.get(URL))
    assert client.post(URL).status_code == 403
    assert not AgreementReport.objects.exists()


def test_an_alpha_is_read_in_words():
    readings = [
        page.alpha_reading({"value": value, "low": value, "high": value})
        for value in (-0.2, 0.1, 0.5, 0.7, 0.9)
    ]

    assert [r["level"] for r in readings] == ["bad", "bad", "warn", "ok", "ok"]
    assert {r["unsure"] for r in readings} == {""}
    assert page.alpha_reading({"value": None}) is None
    assert page.alpha_reading({"value": 1.0, "low": None, "high": None})["unsure"] == ""


def test_the_page_says_why_a_figure_has_no_interval_and_what_was_resampled(client, lead):
    label(lead.project, "aa", "bb", "ab")
    judge = RaterFactory(project=lead.project, name="gpt", kind=Rater.Kind.JUDGE)
    for comparison in lead.project.comparisons.all()[:2]:
        PreferenceFactory(comparison=comparison, rater=judge, choice="a")
    computed(lead.project)
    text = words_of(client.get(URL))
    assert "No interval. Fewer than 10 prompts: too few to resample." in text
    assert "1 % – 99 %" in text  # exact: the judge is right on 1 of 2
    assert "resamples of whole comparisons" in text

    ComparisonFactory(project=lead.project, prompt=lead.project.prompts.first())
    for comparison in lead.project.comparisons.all():
        PreferenceFactory(
            comparison=comparison, rater=RaterFactory(project=lead.project), choice="a"
        )
    computed(lead.project)

    assert "resamples of whole prompts" in words_of(client.get(URL))


def test_a_wide_interval_is_said_to_be_wide():
    reading = page.alpha_reading({"value": 0.36, "low": 0.17, "high": 0.53})

    assert reading["name"] == "low"
    assert reading["unsure"] == "from “low” to “moderate”"


def test_figures_are_written_for_reading():
    assert percent(0.5322) == "53\u00a0%"
    assert percent(None) == "–"
    assert decimals(-0.034) == "−0.03"
    assert decimals(-0.001) == "0.00"
    assert decimals(None) == "–"


def test_the_page_says_what_the_votes_add_up_to_and_whom_to_believe(client, lead):
    label(lead.project, *["aaa", "bbb", "aab", "bba"] * 5, raters=("ann", "bob", "cy"))
    computed(lead.project)

    text = words_of(client.get(URL))

    assert "What do the votes add up to?" in text
    assert re.search(r"the label of \d+ % \[\d+ %, \d+ %\] of 20 comparisons is sure", text)
    assert "60 votes of people and AI judges" in text
    assert "The weighing overturns" in text
    assert re.search(r"cy gives the true label least often: \d+ % \[", text)
    assert "150 votes that meet an earlier one are needed" in text


def test_the_prompts_that_people_dispute_lead_to_their_comparisons(client, lead):
    label(lead.project, "aa", "ab", "bb")
    computed(lead.project)
    disputed = lead.project.comparisons.order_by("pk")[1]

    response = client.get(URL)

    assert "Over all comparisons, two people differ in 33 % of cases." in words_of(response)
    assert f'href="/projects/tea/comparisons/{disputed.pk}/"' in response.content.decode()
    assert str(disputed.prompt) in words_of(response)


def test_raters_that_were_timed_are_drawn_by_speed_and_reliability(client, lead):
    label(lead.project, *["aaa", "bbb", "aab", "bba"] * 5, raters=("ann", "bob", "cy"))
    for name, seconds in (("ann", 20), ("bob", 33), ("cy", 3)):
        Preference.objects.filter(rater__name=name).update(seconds=seconds)
    computed(lead.project)

    text = client.get(URL).content.decode()

    assert text.count('class="plot-point"') == 3
    assert "cy: 5" in text or "cy: 6" in text
    assert "3 seconds" in text


@pytest.mark.parametrize(
    ("value", "said", "interval"),
    [
        (0.0, "split as they would if each rater erred alone", True),
        (0.04, "Some comparisons are hard for everybody. On 4.0 % of 900", True),
        (0.2, "Raters err together. On 20 % of 900", False),
    ],
)
def test_the_page_says_how_far_the_model_of_raters_may_be_believed(
    client, lead, value, said, interval
):
    label(lead.project, *["aaa", "bbb", "aab", "bba"] * 5, raters=("ann", "bob", "cy"))
    report = computed(lead.project)
    assert "four votes or more" in words_of(client.get(URL))
    truth = report.result["truth"]
    truth["misfit"] = {"value": value, "p_value": 0.5 if value == 0 else 0.001, "n": 900}
    if not interval:
        for row in truth["raters"]:
            row["reliability"] |= {"low": None, "high": None, "why_no_interval": "They err so."}
    truth["impossible"] = ["tie"]
    pair = {"rater_1": "ann", "rater_2": "bob", "n": 60, "same": 0.93, "expected": 0.7}
    truth["too_alike"] = [] if interval else [pair]
    report.save()

    text = words_of(client.get(URL))

    assert said in text
    assert (
        "ann and bob give the same answer on 93 % of 60 comparisons; 70 % is" in text
    ) != interval
    assert ("wider by that much" in text) == (value == 0.04)
    assert "No label is “equally good”" in text


def test_a_rater_is_held_against_known_answers_where_there_are_enough(client, lead):
    label(lead.project, *["aa", "ba"] * 8, raters=("ann", "bob"))
    lead.project.comparisons.update(gold="a")
    computed(lead.project)

    text = words_of(client.get(URL))

    assert "Known answers" in text
    assert re.search(r"ann 16 .* 50 % \[28 %, 72 %\] n = 16", text)
    assert re.search(r"bob 16 .* 100 % \[81 %, 100 %\] n = 16", text)


def test_a_report_from_before_the_rater_models_is_still_shown(client, lead):
    label(lead.project, "aa", "bb", "ab", "tt")
    report = computed(lead.project)
    added = ("truth", "over_time", "topics", "rankings", "ordinal_alpha", "gwet_ac1", "version")
    report.result = {key: value for key, value in report.result.items() if key not in added}
    report.save()

    text = words_of(client.get(URL))

    assert "give the same answer in 75 % of cases" in text
    assert "What do the votes add up to?" not in text
