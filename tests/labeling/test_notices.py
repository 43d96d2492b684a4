"""What people are told: who, of what, once, and how they read it."""

from datetime import timedelta

import pytest
from django.core import mail
from django.urls import reverse
from django.utils import timezone

from labeling.events import notice_completed_project
from labeling.jobs import Job, job_models, mark_lost
from labeling.models import AgreementReport, ImportJob, Membership, Notice
from labeling.notices import forget_old, mail_due, tell
from tests.factories import ComparisonFactory, MembershipFactory, ProjectFactory, UserFactory

pytestmark = pytest.mark.django_db
Role = Membership.Role


@pytest.fixture
def project():
    return ProjectFactory(slug="kitchen", name="Kitchen")


@pytest.fixture
def lead(project):
    return MembershipFactory(project=project, role=Role.LEAD).user


def running_import(project, by=None) -> ImportJob:
    job = ImportJob.objects.create(
        project=project, created_by=by, filename="pairs.jsonl", path="uploads/pairs.jsonl"
    )
    return ImportJob.objects.claim(job.pk)


def told(user) -> list[tuple[str, str, str]]:
    return list(user.notices.order_by("pk").values_list("kind", "about", "words"))


def test_who_started_a_job_is_told_how_it_ended_and_why(project, lead):
    other = MembershipFactory(project=project, role=Role.LEAD).user
    running_import(project, lead).finish(Job.Status.SUCCEEDED)
    running_import(project, lead).finish(Job.Status.FAILED, error="Line 3 is no JSON.")

    about = "import of pairs.jsonl"
    assert told(lead) == [("finished", about, ""), ("failed", about, "Line 3 is no JSON.")]
    assert told(other) == []


def test_leads_are_told_of_what_nobody_started_and_nobody_of_what_a_person_stopped(project, lead):
    rater = MembershipFactory(project=project, role=Role.RATER).user
    running_import(project).finish(Job.Status.FAILED, error="The disk is full.")
    running_import(project, lead).finish(Job.Status.CANCELLED)
    running_import(project, lead).finish(Job.Status.PAUSED)

    assert [kind for kind, _about, _words in told(lead)] == ["failed"]
    assert told(rater) == []


def test_every_kind_of_job_leads_to_its_page():
    """Who started it is told how it ended, and the state of the installation links there."""
    without = [
        model.__name__ for model in job_models() if not model.PAGE and model.address is Job.address
    ]
    assert without == []
    slugs = {"slug": "kitchen"}
    for page in {model.PAGE for model in job_models()} - {""}:
        assert reverse(page, kwargs=slugs | {"pk": 1}).startswith("/projects/kitchen/")


def test_of_figures_that_nobody_asked_for_only_a_failure_is_told(project, lead):
    def ended(status: str, **more) -> None:
        report = AgreementReport.objects.create(project=project, **more)
        AgreementReport.objects.claim(report.pk).finish(status)

    ended(Job.Status.SUCCEEDED)
    assert told(lead) == []
    ended(Job.Status.FAILED)
    ended(Job.Status.SUCCEEDED, created_by=lead)
    about = "agreement in Kitchen"
    assert told(lead) == [("failed", about, ""), ("finished", about, "")]
    addresses = set(lead.notices.values_list("address", flat=True))
    assert addresses == {"/projects/kitchen/agreement/"}


def test_a_job_whose_worker_is_gone_is_told_of_once(project, lead):
    job = running_import(project, lead)
    silent = timezone.now() - timedelta(minutes=5)
    ImportJob.objects.filter(pk=job.pk).update(heartbeat_at=silent)

    assert mark_lost(ImportJob.objects.silent()) == 1
    assert mark_lost(ImportJob.objects.silent()) == 0
    assert not job.finish(Job.Status.SUCCEEDED)  # it comes back too late

    [(kind, _about, words)] = told(lead)
    assert kind == "lost"
    assert words.startswith("The worker stopped reporting")
    job.refresh_from_db()
    assert (job.status, job.error) == ("lost", words)


def test_a_job_that_reported_since_it_was_read_is_not_lost(project, lead):
    job = running_import(project, lead)
    ImportJob.objects.filter(pk=job.pk).update(heartbeat_at=timezone.now() - timedelta(minutes=5))
    silent = ImportJob.objects.silent()
    list(silent)
    job.report()

    assert mark_lost(silent) == 0
    assert told(lead) == []


def test_a_completed_project_is_told_to_raters_and_leads_once(project, lead):
    rater = MembershipFactory(project=project, role=Role.RATER).user
    viewer = MembershipFactory(project=project, role=Role.VIEWER).user
    ComparisonFactory(project=project, labels_wanted=1, open_places=0)

    assert notice_completed_project(project.pk)
    assert not notice_completed_project(project.pk)

    assert told(lead) == told(rater) == [("completed", "", "")]
    assert told(viewer) == []


def test_opening_a_notice_marks_it_as_read_and_leads_to_its_page(client, project, lead):
    job = running_import(project, lead)
    job.finish(Job.Status.SUCCEEDED)
    [notice] = lead.notices.all()
    client.force_login(lead)
    assert '<span class="badge bad">1<' in client.get(reverse("labeling:home")).content.decode()

    reply = client.post(reverse("labeling:notice", args=[notice.pk]))

    assert reply.url == reverse("labeling:import_job", args=["kitchen", job.pk])
    assert "badge bad" not in client.get(reverse("labeling:notice_count")).content.decode()


def test_nobody_sees_or_opens_the_notices_of_others(client, project, lead):
    running_import(project, lead).finish(Job.Status.SUCCEEDED)
    [notice] = lead.notices.all()
    client.force_login(MembershipFactory(project=project, role=Role.LEAD).user)

    assert client.post(reverse("labeling:notice", args=[notice.pk])).status_code == 404
    assert "pairs.jsonl" not in client.get(reverse("labeling:notices")).content.decode()
    client.post(reverse("labeling:read_notices"))
    assert Notice.objects.unread_by(lead).count() == 1


def test_the_list_asks_as_often_for_three_notices_as_for_one(
    client, project, lead, django_assert_max_num_queries
):
    client.force_login(lead)
    tell([lead.pk], project, Notice.Kind.ALARM, "/x/", "run 1", "KL exceeds its budget.")
    with django_assert_max_num_queries(20) as first:
        assert "KL exceeds its budget." in client.get(reverse("labeling:notices")).content.decode()
    tell([lead.pk] * 2, project, Notice.Kind.ALARM, "/x/", "run 2", "It repeats itself.")
    with django_assert_max_num_queries(len(first)):
        page = client.get(reverse("labeling:notices"), headers={"HX-Request": "true"})
    assert page.content.decode().count("notice-row unread") == 3


def test_mail_goes_out_only_where_the_installation_sends_any_and_once(
    project, lead, settings, mailoutbox
):
    lead.email = "lead@example.org"
    lead.save()
    without_address = UserFactory()
    tell(
        [lead.pk, without_address.pk], project, Notice.Kind.FAILED, "/runs/1/", "run 1", "No room."
    )
    assert mail_due() == 0

    settings.EMAIL_HOST = "mail.example.org"
    settings.PREFLOOP_ADDRESS = "https://prefloop.example.org/"
    assert mail_due() == 1
    assert mail_due() == 0

    [message] = mailoutbox
    assert message.to == ["lead@example.org"]
    assert message.subject == "Kitchen: Failed: run 1"
    assert "No room." in message.body
    assert "https://prefloop.example.org/runs/1/" in message.body


def test_a_mail_server_that_is_away_leaves_the_notice_for_later(project, lead, settings):
    lead.email = "lead@example.org"
    lead.save()
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 1
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    tell([lead.pk], project, Notice.Kind.FINISHED, "/runs/1/", "run 1")

    with pytest.raises(OSError, match="refused"):
        mail_due()

    assert lead.notices.get().mailed_at is None
    assert mail.outbox == []


def test_old_notices_are_forgotten(project, lead):
    tell([lead.pk] * 2, project, Notice.Kind.FINISHED, "/runs/1/")
    old = lead.notices.last()
    Notice.objects.filter(pk=old.pk).update(created_at=timezone.now() - timedelta(days=61))

    assert forget_old() == 1
    assert lead.notices.count() == 1
