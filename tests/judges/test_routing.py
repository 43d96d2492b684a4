"""Certificates, what revokes them, and the router: rows in, rows out."""

import io
import json
import re

import pytest
from django.core.management import CommandError, call_command
from django.urls import reverse
from django.utils import timezone

from judges import audit
from judges.certificates import (
    NotReady,
    certified,
    live_certificate,
    new_run,
    policy_of,
    revoke,
    set_policy,
    tend,
    tend_all,
    withdraw_if_due,
)
from judges.guarantee import level_of_test, upper_bound
from judges.judging import judge_version
from judges.ml.config import JudgeRecipe
from judges.models import (
    Certificate,
    ChosenJudge,
    DriftCheck,
    JudgeRun,
    Probe,
    RoutedComparison,
    RoutingPolicy,
    RoutingRun,
    Verdict,
)
from judges.outlook import outlook
from judges.requests import take_requests
from judges.routing import near_tie, spread, uncertain_gap, undecided_pairs
from judges.tasks import route_new_labels, run_routing
from labeling.assignment import next_comparison
from labeling.jobs import Job
from labeling.judge_requests import ask_judges_first
from labeling.models import (
    Assignment,
    Change,
    Comparison,
    Membership,
    Preference,
    Prompt,
    Response,
    content_hash,
)
from tests.factories import (
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
    bearer,
)

pytestmark = pytest.mark.django_db
SHARE = 0.5
SURE, UNSURE = 0.97, 0.6


@pytest.fixture(autouse=True)
def queued(monkeypatch):
    """What would have been sent to a worker: the network begins there."""
    sent = []
    monkeypatch.setattr(run_routing, "delay_on_commit", sent.append)
    return sent


@pytest.fixture
def project():
    return ProjectFactory(slug="kitchen", audit_share=SHARE)


@pytest.fixture
def lead(client, project):
    client.force_login(MembershipFactory(project=project, role=Membership.Role.LEAD).user)
    return client


def a_judge(project, name="judy", chosen=True):
    version, _made = judge_version(project, name, f"owner/{name}", JudgeRecipe(mode="direct"))
    if chosen:
        ChosenJudge.objects.create(project=project, version=version)
    return version


def comparisons_of(project, n, source="model-1", first=0):
    """Open comparisons, their random keys evenly spread."""
    Prompt.objects.bulk_create(
        Prompt(project=project, messages=[], content_hash=content_hash(source, first, i))
        for i in range(n)
    )
    prompts = list(project.prompts.order_by("-pk")[:n])
    for side in "ab":
        Response.objects.bulk_create(
            Response(
                prompt=prompt, messages=[], content_hash=side, source=f"{source}-{side}", n_chars=1
            )
            for prompt in prompts
        )
    responses = {}
    for row in Response.objects.filter(prompt__in=prompts).order_by("pk"):
        responses.setdefault(row.prompt_id, []).append(row)
    Comparison.objects.bulk_create(
        Comparison(
            project=project,
            prompt=prompt,
            response_a=responses[prompt.pk][0],
            response_b=responses[prompt.pk][1],
            content_hash=content_hash(source, first, i),
            random_key=(i + 0.5) / n,
        )
        for i, prompt in enumerate(prompts)
    )
    return list(project.comparisons.order_by("-pk")[:n])[::-1]


def judge_all(version, comparisons, prob=lambda i: SURE if i % 2 else UNSURE):
    """Verdicts for A, and the preferences of the judge's rater."""
    Verdict.objects.bulk_create(
        Verdict(
            version=version,
            comparison=comparison,
            prob_a=prob(i),
            answer_mass_ab=1,
            answer_mass_ba=1,
            parsed=True,
            n_tokens=1,
            seconds=0.5,
            cost=0.001,
        )
        for i, comparison in enumerate(comparisons)
    )
    Preference.objects.bulk_create(
        Preference(comparison=c, rater=version.rater, choice="a", prob_a=prob(i))
        for i, c in enumerate(comparisons)
    )


def label(project, comparisons, wrong=lambda i: False, name="ann", **given):
    """One person's answers of the audit stream; the places are taken."""
    rater, _made = project.raters.get_or_create(name=name, kind="person")
    values = {"audit": True, "inclusion_probability": project.audit_share, "seconds": 30} | given
    Preference.objects.bulk_create(
        Preference(comparison=c, rater=rater, choice="b" if wrong(i) else "a", **values)
        for i, c in enumerate(comparisons)
    )
    Comparison.objects.filter(pk__in=[c.pk for c in comparisons]).update(open_places=0)


def a_world(project, n=400, n_labeled=160):
    """The judge is sure of every second comparison and right there; else it is a coin."""
    version = a_judge(project)
    comparisons = comparisons_of(project, n)
    judge_all(version, comparisons)
    label(project, comparisons[:n_labeled], lambda i: i % 4 == 2)
    return version, comparisons


def routed(project, kind="issue"):
    """A run of the router, carried out as a worker does it."""
    run = new_run(project, kind)
    run_routing(run.pk)
    run.refresh_from_db()
    return run


def counted(project):
    return audit.count(project, [ChosenJudge.objects.get(project=project).version])


# Counting -----------------------------------------------------------------------------------------


def test_people_s_answer_is_that_of_an_untied_majority_once_all_labels_are_there():
    assert audit.people_say(["a"], 1) == "a"
    assert audit.people_say(["a", "b", "b"], 3) == "b"
    assert audit.people_say(["a", "b"], 3) is None
    assert audit.people_say(["a", "b"], 2) == audit.DISPUTED
    assert audit.people_say(["a", "b", "tie"], 3) == audit.DISPUTED
    assert audit.people_say(["a"], 0) == "a"
    assert audit.people_say([], 0) is None


def test_only_people_s_labels_of_the_audit_stream_count(project):
    _version, comparisons = a_world(project, n=40, n_labeled=10)
    label(project, comparisons[20:22], audit=False, name="of the queue")
    label(project, comparisons[10:12], inclusion_probability=None, name="imported")
    other = RaterFactory(project=project, kind="judge", name="another judge")
    PreferenceFactory(comparison=comparisons[12], rater=other, audit=True)

    found = counted(project)

    assert (found["n_labels"], found["n_comparisons"]) == (10, 40)
    assert sum(cell[1] for cell in found["cells"]) == 40


def test_known_answers_sets_and_what_is_no_work_are_left_to_people(project):
    _version, comparisons = a_world(project, n=40, n_labeled=20)
    Comparison.objects.filter(pk=comparisons[0].pk).update(gold="a")
    Comparison.objects.filter(pk=comparisons[1].pk).update(
        gold="a", purpose="check", open_places=0, labels_wanted=0
    )

    found = counted(project)

    assert (found["n_labels"], found["n_comparisons"], found["n_with_answer"]) == (18, 38, 1)


def test_ties_of_people_and_disputes_are_errors_of_a_judge_that_names_a_side(project):
    _version, comparisons = a_world(project, n=40, n_labeled=0)
    project.comparisons.update(labels_wanted=2)
    for name, answers in {"cem": "a b a", "dee": "a a tie"}.items():
        rater = RaterFactory(project=project, name=name)
        for comparison, choice in zip(comparisons[1:6:2], answers.split(), strict=True):
            PreferenceFactory(
                comparison=comparison,
                rater=rater,
                choice=choice,
                audit=True,
                inclusion_probability=SHARE,
            )
    Comparison.objects.filter(pk__in=[c.pk for c in comparisons[:6:2]]).update(random_key=0.9)

    found = counted(project)

    assert found["n_labels"] == 3
    assert found["n_disputed"] == 2
    assert sum(sum(cell[4]) for cell in found["cells"]) == 2


def test_labels_ahead_of_their_turn_do_not_count(project):
    _version, comparisons = a_world(project, n=200, n_labeled=40)
    label(project, comparisons[90:99], name="early")

    found = counted(project)

    assert (found["n_labels"], found["n_ahead"]) == (40, 9)


def test_a_few_that_wait_in_between_are_borne(project):
    _version, comparisons = a_world(project, n=200, n_labeled=0)
    label(project, [c for i, c in enumerate(comparisons[:90]) if i != 45])

    found = counted(project)

    assert (found["n_labels"], found["n_waiting"]) == (89, 1)


def test_a_tie_of_the_judge_and_what_it_could_not_say_are_never_sure():
    assert audit.confidence_and_choice(0.9, None, True) == (0.9, "a")
    assert audit.confidence_and_choice(0.2, None, True) == (0.8, "b")
    assert audit.confidence_and_choice(0.5, None, True) == (0.0, "tie")
    assert audit.confidence_and_choice(0.6, 0.8, True) == (0.0, "tie")
    assert audit.confidence_and_choice(0.99, None, False) == (0.0, "unparsed")


def test_no_chunk_of_the_audit_stream_reads_all_that_people_ever_said(project):
    of_chunk = audit.audit_labels(project).filter(comparison__gte=1, comparison__lte=2_000)
    since_then = audit.audit_labels(project).filter(pk__gt=1_000)

    assert "preference_of_rater" not in of_chunk.explain() + since_then.explain()


# Issuing ------------------------------------------------------------------------------------------


def test_a_certificate_says_what_it_rests_on(project, queued):
    a_world(project)
    set_policy(project, None, alpha=0.15)

    run = routed(project)

    certificate = project.certificates.get()
    stage = certificate.stages.get()
    assert run.status == Job.Status.SUCCEEDED
    assert (certificate.status, certificate.number, certificate.n_labels) == ("active", 1, 160)
    assert (stage.threshold, stage.n, stage.errors) == (0.61, 80, 0)
    assert certificate.level == level_of_test(0.1, 1)
    assert stage.bound == upper_bound(0, 80, certificate.level / 3)
    assert (certificate.n_decided, certificate.n_comparisons) == (200, 400)
    assert certificate.sources == ["model-1-a", "model-1-b"]
    assert Change.objects.filter(action="test for a certificate").count() == 1


def test_too_few_labels_are_no_test_and_say_how_many_are_needed(project):
    a_world(project, n_labeled=20)

    run = routed(project)

    assert run.status == Job.Status.FAILED
    assert "Too few labels" in run.error
    assert not project.certificates.exists()
    found = outlook(project, policy_of(project))
    assert (found["n_labels"], found["why_needed"]) == (20, "few")
    # Half of the labels are on what the judge is sure of, all of them on c ≥ 0.5.
    assert found["n_needed"] == found["least"] - 20


def test_a_judge_that_errs_too_often_decides_nothing(project):
    version = a_judge(project)
    comparisons = comparisons_of(project, 400)
    judge_all(version, comparisons)
    label(project, comparisons[:160], lambda i: i % 3 == 0)

    routed(project)

    certificate = project.certificates.get()
    assert (certificate.status, certificate.n_decided) == ("refused", 0)
    assert live_certificate(project) is None
    assert not Preference.objects.filter(certified=True).exists()
    found = outlook(project, policy_of(project))
    assert (found["n_needed"], found["why_needed"]) == (None, "too many")


def test_every_test_uses_a_part_of_delta_and_a_new_certificate_takes_the_old_one_s_place(project):
    a_world(project)
    routed(project)
    routed(project)

    second, first = project.certificates.all()
    assert (first.status, first.reason, second.status) == ("revoked", "replaced", "active")
    assert second.level == level_of_test(0.1, 2)
    assert first.withdrawn_at is not None


def test_without_a_judge_there_is_no_test(project):
    with pytest.raises(NotReady, match="No judge"):
        new_run(project, "issue")


def test_the_second_judge_of_a_cascade_decides_what_the_first_left(project):
    version, other = a_judge(project), a_judge(project, "otto", chosen=False)
    comparisons = comparisons_of(project, 800)
    # Labels are dealt out to the judges in turn: both kinds of comparisons come in pairs.
    judge_all(version, comparisons, lambda i: SURE if i // 2 % 2 else UNSURE)
    wrong = {i for i in range(400) if i % 8 < 2}
    judge_all(other, comparisons, lambda i: 0.02 if i in wrong else 0.98)
    Preference.objects.filter(rater=other.rater, prob_a=0.02).update(choice="b")
    label(project, comparisons[:400], lambda i: i in wrong)
    set_policy(project, None, versions=[version.pk, other.pk])

    routed(project)

    first, second = project.certificates.get().stages.all()
    assert (first.n, first.errors, first.n_decided) == (100, 0, 400)
    assert (second.n, second.errors, second.n_decided) == (100, 0, 400)
    assert second.bound == upper_bound(0, 100, level_of_test(0.1, 1) / 6)
    assert Preference.objects.filter(certified=True, rater=version.rater).count() == 400
    assert Preference.objects.filter(certified=True, rater=other.rater).count() == 400


# Routing ------------------------------------------------------------------------------------------


def test_what_the_judge_decides_leaves_the_queue_and_the_audit_stream_stays(project):
    _version, comparisons = a_world(project)

    routed(project)

    gone = set(RoutedComparison.objects.values_list("comparison", flat=True))
    sure = {c.pk for i, c in enumerate(comparisons) if i % 2}
    in_queue = {c.pk for c in comparisons[200:]}
    assert gone == sure & in_queue
    assert set(
        project.comparisons.filter(labels_wanted=0, open_places=0).values_list("pk", flat=True)
    ) == (gone)
    audit_stream = project.comparisons.filter(random_key__lt=SHARE)
    assert audit_stream.filter(labels_wanted=1).count() == 200
    assert set(certified(project).values_list("comparison", flat=True)) == sure


def test_what_somebody_holds_or_answered_in_part_stays_wanted(project):
    _version, comparisons = a_world(project)
    held, half = comparisons[301], comparisons[303]
    Comparison.objects.filter(pk=half.pk).update(labels_wanted=3, open_places=2)
    PreferenceFactory(comparison=half, rater=RaterFactory(project=project))
    Assignment.objects.create(
        comparison=held,
        rater=RaterFactory(project=project),
        shown_first="a",
        expires_at=timezone.now() + timezone.timedelta(hours=1),
    )
    Comparison.objects.filter(pk=held.pk).update(labels_wanted=2, open_places=1)

    routed(project)

    half.refresh_from_db()
    held.refresh_from_db()
    assert (half.labels_wanted, half.open_places) == (1, 0)
    assert (held.labels_wanted, held.open_places) == (1, 0)


def test_a_rater_is_given_what_is_left(project):
    _version, comparisons = a_world(project, n=200, n_labeled=100)
    routed(project)
    rater = RaterFactory(project=project, qualified_at=timezone.now())

    given = [next_comparison(rater).comparison_id]
    unsure = {c.pk for i, c in enumerate(comparisons) if i % 2 == 0}
    assert given[0] in unsure


def test_a_revocation_puts_everything_back(project, queued):
    _version, comparisons = a_world(project)
    kept = comparisons[305]
    Comparison.objects.filter(pk=comparisons[303].pk).update(labels_wanted=4, open_places=4)
    before = {c.pk: (c.labels_wanted, c.open_places) for c in project.comparisons.all()}
    routed(project)
    Comparison.objects.filter(pk=kept.pk).update(labels_wanted=2, open_places=2)  # a lead's wish

    project.refresh_from_db()
    assert project.certificate_in_force
    revoke(project.certificates.get(), "lead", note="I saw nonsense")
    project.refresh_from_db()
    assert not project.certificate_in_force  # before a worker has taken the marks away
    run = withdraw_if_due(project)
    run_routing(run.pk)

    after = {c.pk: (c.labels_wanted, c.open_places) for c in project.comparisons.all()}
    assert after == before | {kept.pk: (2, 2)}
    assert not Preference.objects.filter(certified=True).exists()
    assert not RoutedComparison.objects.exists()
    certificate = project.certificates.get()
    assert certificate.withdrawn_at is not None
    assert (certificate.reason, certificate.note) == ("lead", "I saw nonsense")
    assert withdraw_if_due(project) is None


def test_a_run_that_was_cancelled_goes_on_from_its_place(project, monkeypatch):
    a_world(project)
    monkeypatch.setattr(audit, "CHUNK", 50)
    run = new_run(project, "issue")
    report = RoutingRun.report

    def cancelled_half_way(self, **values):
        if values.get("routed_to") and self.n_done >= 150:
            self.request_cancel()
        report(self, **values)

    monkeypatch.setattr(RoutingRun, "report", cancelled_half_way)
    run_routing(run.pk)
    run.refresh_from_db()
    assert run.status == Job.Status.CANCELLED
    half = RoutedComparison.objects.count()
    monkeypatch.setattr(RoutingRun, "report", report)

    assert run.resume()
    run_routing(run.pk)

    run.refresh_from_db()
    assert run.status == Job.Status.SUCCEEDED
    assert half < RoutedComparison.objects.count() == 100
    assert project.certificates.count() == 1
    assert run.result["moved"]["left_queue"] == 100


def test_a_run_cancelled_while_it_counts_ends_and_can_be_resumed(project, monkeypatch):
    a_world(project)
    run = new_run(project, "issue")
    counted_anew = audit.count

    def cancelled_meanwhile(*args):
        RoutingRun.objects.filter(pk=run.pk).update(cancel_requested=True)
        return counted_anew(*args[:2])

    monkeypatch.setattr("judges.routing.count", cancelled_meanwhile)
    run_routing(run.pk)

    run.refresh_from_db()
    assert run.status == Job.Status.CANCELLED
    assert not RoutedComparison.objects.exists()
    assert run.resume()
    run_routing(run.pk)
    assert project.certificates.count() == 1
    assert RoutedComparison.objects.count() == 100


def test_a_certificate_revoked_while_it_is_routed_leaves_nothing_behind(project, monkeypatch):
    a_world(project)
    monkeypatch.setattr(audit, "CHUNK", 50)
    report = RoutingRun.report

    def revoked_half_way(self, **values):
        if values.get("routed_to") and values["n_done"] == 300:
            revoke(project.certificates.get(), "lead")
        report(self, **values)

    monkeypatch.setattr(RoutingRun, "report", revoked_half_way)
    routed(project)

    assert not RoutedComparison.objects.exists()
    assert not Preference.objects.filter(certified=True).exists()
    assert project.comparisons.filter(open_places=1).count() == 240


def test_new_verdicts_are_routed_and_a_larger_audit_stream_takes_back_its_own(project, queued):
    version, comparisons = a_world(project)
    late = comparisons[399]
    Verdict.objects.filter(comparison=late).delete()
    Preference.objects.filter(comparison=late).delete()
    routed(project)
    assert not RoutedComparison.objects.filter(comparison=late).exists()
    judge_all(version, [late], lambda i: SURE)
    queued.clear()

    route_new_labels(JudgeRun.objects.create(version=version))
    run_routing(queued.pop())
    assert RoutedComparison.objects.filter(comparison=late).exists()

    project.audit_share = 0.75
    project.save()
    tend_all()
    run_routing(queued.pop())
    assert RoutedComparison.objects.filter(comparison__random_key__lt=0.75).count() == 0
    assert project.comparisons.filter(random_key__lt=0.75, labels_wanted=0).count() == 0
    assert RoutedComparison.objects.count() == 50


def test_comparisons_that_came_later_go_to_people(project):
    version, _comparisons = a_world(project)
    routed(project)
    later = comparisons_of(project, 40, first=1)
    judge_all(version, later, lambda i: 0.99)

    routed(project, "route")

    assert RoutedComparison.objects.filter(comparison__in=later).count() == 0
    assert Preference.objects.filter(comparison__in=later, certified=True).count() == 0


@pytest.mark.parametrize(("purpose", "first"), [("reward_model", 0.5005), ("dpo", 0.6)])
def test_what_is_left_comes_in_the_order_of_the_purpose(project, purpose, first):
    version = a_judge(project)
    comparisons = comparisons_of(project, 400)
    probs = {i: SURE if i % 2 else (0.5005, 0.55, 0.6)[i % 3] for i in range(400)}
    judge_all(version, comparisons, lambda i: probs[i])
    for verdict in Verdict.objects.all():
        # Both orders differ by the same for all.
        verdict.logp_ab_first, verdict.logp_ab_second = -0.1, -1.1
        verdict.logp_ba_first, verdict.logp_ba_second = -0.1, -1.1
        verdict.save()
    label(project, comparisons[:160], lambda i: i % 4 == 2)
    mine = comparisons[398]
    Comparison.objects.filter(pk=mine.pk).update(priority=-5)
    set_policy(project, None, purpose=purpose)

    routed(project)

    left = project.comparisons.filter(open_places=1, random_key__gte=SHARE).exclude(pk=mine.pk)
    top = left.order_by("-priority").first()
    assert Verdict.objects.get(comparison=top).prob_a == first
    assert project.comparisons.get(pk=mine.pk).priority == -5
    assert left.filter(priority=0).count() == 0


def test_for_an_evaluation_people_are_asked_where_it_is_open_which_model_is_better(project):
    version = a_judge(project)
    clear = comparisons_of(project, 100, source="clear")
    judge_all(version, clear, lambda i: 0.8)
    close = comparisons_of(project, 100, source="close", first=1)
    judge_all(version, close, lambda i: 0.8 if i % 2 else 0.2)

    open_questions = undecided_pairs(project, version)

    assert open_questions[frozenset(("close-a", "close-b"))] == pytest.approx(1)
    assert open_questions[frozenset(("clear-a", "clear-b"))] < 1e-6


def test_urgency_by_hand():
    assert (near_tie(0.5), near_tie(1.0)) == (1, 0)
    assert spread(0.5) == 0.5
    sure = Verdict(prob_a=0.7)
    wavering = Verdict(
        prob_a=0.7, logp_ab_first=-0.1, logp_ab_second=-3, logp_ba_first=-1, logp_ba_second=-0.5
    )
    assert uncertain_gap(sure) == 0
    assert 0 < uncertain_gap(wavering) < 1


# What ends a certificate --------------------------------------------------------------------------


def in_force(project):
    a_world(project)
    routed(project)
    certificate = project.certificates.get()
    assert live_certificate(project) == certificate
    assert not tend(certificate)
    return certificate


def ended(certificate):
    assert tend(certificate)
    certificate.refresh_from_db()
    assert certificate.status == "revoked"
    return certificate.reason


def test_other_guidelines_end_a_certificate_at_once(project):
    certificate = in_force(project)
    project.guidelines = "Shorter is better."
    project.save()
    certificate = Certificate.objects.get(pk=certificate.pk)

    assert live_certificate(project) is None
    assert ended(certificate) == "guidelines"


def test_another_judge_ends_a_certificate(project):
    certificate = in_force(project)
    other = a_judge(project, "otto", chosen=False)
    ChosenJudge.objects.filter(project=project).update(version=other)

    assert live_certificate(project) is None
    assert ended(certificate) == "judge"


def test_a_drift_ends_a_certificate(project):
    certificate = in_force(project)
    version = certificate.stages.get().version
    probe = Probe.objects.create(version=version, answers=[])
    DriftCheck.objects.create(
        probe=probe, status="succeeded", finished_at=timezone.now(), result={"drifted": True}
    )

    assert ended(certificate) == "drift"


def test_responses_of_another_model_end_a_certificate_and_more_of_the_same_do_not(project):
    certificate = in_force(project)
    comparisons_of(project, 5, first=7)
    assert not tend(certificate)
    comparisons_of(project, 5, source="model-2")
    certificate.refresh_from_db()

    assert ended(certificate) == "sources"
    assert certificate.note == "model-2-a, model-2-b"


def test_the_running_audit_ends_a_certificate_that_it_contradicts(project):
    certificate = in_force(project)
    comparisons = list(project.comparisons.order_by("random_key"))
    label(project, comparisons[160:170], lambda i: False)
    assert not tend(certificate)
    certificate.refresh_from_db()
    assert (certificate.audit_n, certificate.audit_errors) == (5, 0)

    label(project, comparisons[170:200], lambda i: True)
    assert ended(certificate) == "audit"
    assert (certificate.audit_n, certificate.audit_errors) == (20, 15)
    assert certificate.note == "15 errors in 20 labels since"


def test_labels_from_before_are_no_part_of_the_running_audit(project):
    certificate = in_force(project)
    preference = Preference.objects.filter(audit=True, rater__kind="person").first()
    preference.superseded_at = timezone.now()
    preference.save()
    PreferenceFactory(
        comparison=preference.comparison,
        rater=preference.rater,
        choice="b",
        audit=True,
        inclusion_probability=SHARE,
    )

    assert audit.since(certificate) == (0, 0)


def test_the_sweep_ends_and_withdraws(project, queued):
    certificate = in_force(project)
    queued.clear()
    project.guidelines = "Other."
    project.save()

    tend_all()
    [run] = queued
    run_routing(run)

    certificate.refresh_from_db()
    assert (certificate.reason, RoutedComparison.objects.count()) == ("guidelines", 0)


# Pages, programs, the command ---------------------------------------------------------------------


def words_of(response):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", response.content.decode()))


def test_the_page_says_what_is_missing_and_then_what_the_judge_may_do(project, lead, queued):
    url = reverse("judges:routing", args=["kitchen"])
    assert "Nothing is counted yet" in words_of(lead.get(url))
    a_world(project, n_labeled=20)
    lead.post(url, {"alpha": 10, "delta": 10, "starts": 1, "currency": "USD", "do": "count"})
    run_routing(queued.pop())
    assert "Too few labels: 20 of the audit stream so far." in words_of(lead.get(url))

    label(project, list(project.comparisons.order_by("random_key")[20:160]), name="bob")
    given = {"alpha": 20, "delta": 10, "starts": 1, "currency": "EUR", "cost_per_label": "0.5"}
    lead.post(url, given | {"do": "issue"})
    run_routing(queued.pop())

    page = words_of(lead.get(url))
    assert "Certificate 1 is in force" in page
    assert policy_of(project).alpha == 0.2
    assert policy_of(project).cost_per_label == 0.5
    assert "EUR" in page


def test_moving_a_slider_brings_the_figures_alone_and_changes_nothing(project, lead):
    a_world(project)
    routed(project, "count")
    url = reverse("judges:routing", args=["kitchen"])

    strict = lead.get(url, {"alpha": 1, "delta": 10}, headers={"HX-Request": "true"})
    lax = lead.get(url, {"alpha": 20, "delta": 10}, headers={"HX-Request": "true"})

    assert "<html" not in strict.content.decode()
    assert "Too few labels: 160 of the audit stream so far." in words_of(strict)
    assert "The AI may decide 50 % alone" in words_of(lax).replace("\xa0", " ")
    assert not RoutingPolicy.objects.exists()
    assert not project.certificates.exists()


def test_a_lead_revokes_with_a_reason(project, lead, queued):
    in_force(project)
    queued.clear()
    certificate = project.certificates.get()
    lead.post(reverse("judges:revoke", args=["kitchen", certificate.pk]), {"note": "a spot check"})
    run_routing(queued.pop())

    page = words_of(lead.get(reverse("judges:routing", args=["kitchen"])))
    assert "A lead revoked it: a spot check" in page
    assert not RoutedComparison.objects.exists()


def test_a_viewer_sees_the_page_and_changes_nothing(project, client):
    a_world(project)
    viewer = MembershipFactory(project=project, role=Membership.Role.VIEWER).user
    client.force_login(viewer)
    url = reverse("judges:routing", args=["kitchen"])

    page = client.get(url)
    assert "Issue certificate" not in words_of(page)
    assert client.post(url, {"do": "issue"}).status_code == 403


def test_programs_look_issue_and_revoke(project, client, queued):
    a_world(project)
    user = MembershipFactory(project=project, role=Membership.Role.LEAD).user
    headers, url = bearer(user), "/api/projects/kitchen/routing/"
    assert client.get(url, headers=headers).json()["outlook"] is None

    made = client.post(
        url, {"kind": "issue", "alpha": 0.2}, content_type="application/json", headers=headers
    )
    assert made.status_code == 202
    run_routing(queued.pop())

    found = client.get(f"{url}?alpha=0.01", headers=headers).json()
    assert (found["policy"]["alpha"], found["outlook"]["n_decided"]) == (0.01, 0)
    [certificate] = client.get("/api/projects/kitchen/certificates/", headers=headers).json()[
        "results"
    ]
    assert (certificate["status"], certificate["stages"][0]["errors"]) == ("active", 0)
    revoked = client.post(
        f"/api/projects/kitchen/certificates/{certificate['id']}/revoke/",
        {},
        content_type="application/json",
        headers=headers,
    )
    assert revoked.json()["status"] == "revoked"


def test_the_command_prints_one_object(project):
    a_world(project)
    out = io.StringIO()
    call_command("route", project="kitchen", alpha=0.2, delta=0.1, json=True, stdout=out)

    printed = json.loads(out.getvalue())
    assert (printed["status"], printed["n_decided"], printed["left_queue"]) == ("active", 200, 100)
    assert printed["n_labels"] == 160


def test_the_command_says_how_many_labels_are_missing(project):
    a_world(project, n_labeled=10)
    out = io.StringIO()
    with pytest.raises(CommandError, match="Too few labels") as refused:
        call_command("route", project="kitchen", json=True, stdout=out)

    assert refused.value.returncode == 1
    assert json.loads(out.getvalue())["n_needed"] > 0
    assert project.routing_runs.get().status == Job.Status.FAILED
    with pytest.raises(CommandError) as wrong:
        call_command("route", project="kitchen", alpha=2.0)
    assert wrong.value.returncode == 2


# Deletion -----------------------------------------------------------------------------------------


def test_a_project_goes_with_its_certificates(project):
    a_world(project)
    set_policy(project, None, alpha=0.15)
    routed(project)

    project.delete()

    assert not Certificate.objects.exists()
    assert not Preference.objects.exists()


def test_a_judge_that_a_certificate_names_stays_and_the_page_says_why(project, admin_client):
    version, _comparisons = a_world(project)
    set_policy(project, None, alpha=0.15)
    routed(project)
    ChosenJudge.objects.all().delete()
    page = reverse("admin:judges_judge_delete", args=[version.judge_id])

    said = admin_client.post(page, {"post": "yes"}).content.decode()

    assert "Certificate stage: certificate 1, judy v1" in re.sub(r"<[^>]+>", "", said)
    assert project.judges.get() == version.judge


# What is asked of the judge first -----------------------------------------------------------------


def test_with_a_certificate_in_force_the_judge_is_asked_before_people(project, queued):
    a_world(project)
    routed(project)
    project.refresh_from_db()
    new = comparisons_of(project, 6, first=1_000)
    request = ask_judges_first(project, [c.pk for c in new])

    assert take_requests() == 1

    run = JudgeRun.objects.get()
    assert run.version == ChosenJudge.objects.get(project=project).version
    assert run.selection["comparisons"] == sorted(c.pk for c in new)
    request.refresh_from_db()
    assert request.outcome == f"judge run {run.pk}"
    later = ask_judges_first(project, [new[0].pk])
    assert take_requests() == 0  # the judge is at work: it waits
    later.refresh_from_db()
    assert later.taken_at is None
