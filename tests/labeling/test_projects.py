"""The project pages: progress, who did what, members."""

from datetime import timedelta

import pytest
from django.core.cache import cache
from django.db.models import F
from django.test import Client
from django.utils import timezone

from labeling.answering import record_preference, skip_comparison
from labeling.assignment import next_comparison
from labeling.models import Assignment, Change, Comparison, Membership, Project
from labeling.progress import own_progress, project_progress
from labeling.projects import SETTINGS, change_labels_wanted
from labeling.sealing import seal_changes
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
    UserFactory,
)

pytestmark = pytest.mark.django_db


def client_of(role: str, project: Project) -> Client:
    client = Client()
    client.force_login(MembershipFactory(project=project, role=role).user)
    return client


def test_progress_counts_given_held_and_free_places():
    project = ProjectFactory()
    ComparisonFactory.create_batch(3, project=project, labels_wanted=2)
    ann, ben = RaterFactory.create_batch(2, project=project)
    record_preference(ann, next_comparison(ann).comparison, "a")
    next_comparison(ben)
    progress = project_progress(project)
    assert (progress.n_comparisons, progress.n_wanted) == (3, 6)
    assert (progress.n_given, progress.n_done) == (1, 0)


def test_a_comparison_is_done_when_its_last_label_is_given():
    project = ProjectFactory()
    ComparisonFactory(project=project)
    rater = RaterFactory(project=project)
    held = next_comparison(rater)
    assert project_progress(project).n_done == 0
    record_preference(rater, held.comparison, "a")
    assert project_progress(project).n_done == 1


def test_a_rater_sees_their_own_numbers_alone():
    project = ProjectFactory()
    comparison = ComparisonFactory(project=project)
    PreferenceFactory(comparison=comparison, rater=RaterFactory(project=project, name="zoe-9"))
    page = client_of("rater", project).get(f"/projects/{project.slug}/").content.decode()
    assert "zoe-9" not in page
    assert "by you today" in page
    assert "labels by people" not in page


@pytest.mark.parametrize("path", ["", "comparisons/"])
def test_the_number_of_queries_does_not_grow_with_the_rows(path, django_assert_num_queries):
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    project = ProjectFactory()
    client = client_of("lead", project)
    PreferenceFactory(comparison=ComparisonFactory(project=project))
    address = f"/projects/{project.slug}/{path}"
    client.get(address)
    with CaptureQueriesContext(
        connection,
    ) as one:
        client.get(address)
    for _ in range(2):
        PreferenceFactory(comparison=ComparisonFactory(project=project))
    with django_assert_num_queries(len(one)):
        client.get(address)


def test_a_lead_adds_a_rater():
    project = ProjectFactory()
    user = UserFactory(username="new-one")
    client_of("lead", project).post(
        f"/projects/{project.slug}/members/", {"username": "new-one", "role": "rater"}
    )
    assert project.memberships.get(user=user).role == "rater"


def test_a_lead_cannot_make_owners_nor_change_them():
    project = ProjectFactory()
    owner = MembershipFactory(project=project, role=Membership.Role.OWNER).user
    lead = client_of("lead", project)
    path = f"/projects/{project.slug}/members/"
    UserFactory(username="friend")
    assert lead.post(path, {"username": "friend", "role": "owner"}).status_code == 403
    assert lead.post(path, {"username": owner.username, "role": "viewer"}).status_code == 403
    assert project.memberships.get(user=owner).role == "owner"


def test_the_last_owner_stays():
    project = ProjectFactory()
    membership = MembershipFactory(project=project, role=Membership.Role.OWNER)
    client = Client()
    client.force_login(membership.user)
    page = client.post(
        f"/projects/{project.slug}/members/",
        {"username": membership.user.username, "role": "rater"},
        follow=True,
    )
    membership.refresh_from_db()
    assert membership.role == "owner"
    assert "keeps at least one owner" in page.content.decode()


def test_staff_makes_a_project_and_owns_it():
    user = UserFactory(is_staff=True)
    client = Client()
    client.force_login(user)
    response = client.post(
        "/projects/new/",
        {"name": "Tea", "slug": "tea", "labels_per_comparison": 3, "guidelines": ""},
    )
    assert response.status_code == 302
    project = Project.objects.get(slug="tea")
    assert project.labels_per_comparison == 3
    assert project.memberships.get(user=user).role == "owner"


def test_a_project_cannot_be_called_new():
    user = UserFactory(is_staff=True)
    client = Client()
    client.force_login(user)
    page = client.post("/projects/new/", {"name": "x", "slug": "new", "labels_per_comparison": 1})
    assert "is taken by the application" in page.content.decode()
    assert not Project.objects.exists()


@pytest.mark.parametrize(
    ("name", "slug"), [("Green tea!", "green-tea"), ("茶", "project"), ("New", "new-2")]
)
def test_a_project_without_a_short_name_gets_one_from_its_name(name, slug):
    client = Client()
    client.force_login(UserFactory(is_staff=True))
    client.post("/projects/new/", {"name": name, "slug": "", "labels_per_comparison": 1})
    assert Project.objects.get().slug == slug
    client.post("/projects/new/", {"name": name, "slug": "", "labels_per_comparison": 1})
    assert Project.objects.count() == 2


def test_a_member_is_removed_and_their_answers_stay():
    project = ProjectFactory()
    membership = MembershipFactory(project=project, role=Membership.Role.RATER)
    rater = RaterFactory(project=project, user=membership.user)
    PreferenceFactory(comparison=ComparisonFactory(project=project), rater=rater)
    client_of("lead", project).post(
        f"/projects/{project.slug}/members/",
        {"username": membership.user.username, "role": "none"},
    )
    assert not project.memberships.filter(user=membership.user).exists()
    assert rater.preferences.count() == 1
    removed = Client()
    removed.force_login(membership.user)
    assert removed.get(f"/projects/{project.slug}/").status_code == 404


def test_a_raters_count_goes_on_at_a_repeat():
    project = ProjectFactory()
    ComparisonFactory.create_batch(26, project=project)
    rater = RaterFactory(project=project)
    for _ in range(25):
        record_preference(rater, next_comparison(rater).comparison, "a")
    project.repeat_share = 1
    repeat = next_comparison(rater)
    record_preference(rater, repeat.comparison, "a", assignment_id=repeat.pk)
    assert rater.preferences.count() == 25
    own = own_progress(project, rater)
    assert (own.n_answered, own.n_today) == (26, 26)


# Settings -----------------------------------------------------------------------------------------


def form_of(project: Project, **changed: object) -> dict[str, object]:
    """What the settings page sends: everything as it is but for what is given here."""
    sent = {
        "name": project.name,
        "guidelines": project.guidelines,
        "scale": project.scale,
        "tags": "\n".join(project.tags),
        "aspects": "\n".join(f"{a['name']}: {a['question']}" for a in project.aspects),
        "break_after_minutes": project.break_after_minutes,
        "labels_per_comparison": project.labels_per_comparison,
        "labels_per_rater": project.labels_per_rater or "",
        "labels_per_day": project.labels_per_day or "",
        "audit_share": 100 * project.audit_share,
        "check_share": 100 * project.check_share,
        "repeat_share": 100 * project.repeat_share,
        "qualification_pass": 100 * project.qualification_pass,
        "training_feedback": "on" if project.training_feedback else "",
    }
    return sent | changed


def test_settings_are_kept_and_only_what_changed_is_noted():
    project = ProjectFactory(check_share=0.05)
    lead = client_of("lead", project)
    sent = form_of(
        project,
        tags=" true \n\nkind\ntrue\n",
        aspects="honest: Which one lies less?\nkind",
        check_share="7.5",
        better_answers="on",
    )
    lead.post(f"/projects/{project.slug}/edit/", sent)
    project.refresh_from_db()
    assert project.tags == ["true", "kind"]
    assert project.aspects == [
        {"name": "honest", "question": "Which one lies less?"},
        {"name": "kind", "question": "Which response is more kind?"},
    ]
    assert project.check_share == 0.075
    assert project.better_answers
    change = Change.objects.get()
    assert change.action == "change settings"
    assert change.before.keys() == {"tags", "aspects", "check_share", "better_answers"}
    assert change.after["check_share"] == 0.075


def test_the_settings_page_shows_shares_as_per_cent():
    project = ProjectFactory(audit_share=0.125, qualification_pass=0.8)
    page = client_of("lead", project).get(f"/projects/{project.slug}/edit/").content.decode()
    assert 'name="audit_share" value="12.5"' in page
    assert 'name="qualification_pass" value="80"' in page


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("check_share", "51"),
        ("audit_share", "-1"),
        ("tags", "x" * 41),
        ("aspects", "honest: a\nhonest: b"),
        ("aspects", ": a question without a name"),
        ("labels_per_comparison", "0"),
    ],
)
def test_what_makes_no_sense_changes_nothing(field, value):
    project = ProjectFactory()
    sent = form_of(project, **{field: value, "name": "another"})
    page = client_of("lead", project).post(f"/projects/{project.slug}/edit/", sent)
    assert "Not kept yet" in page.content.decode()
    assert Project.objects.get().name == project.name
    assert not Change.objects.exists()


def test_the_usual_aspects_are_put_in_by_a_button_and_nothing_is_kept_yet():
    project = ProjectFactory()
    sent = form_of(project, preset="aspects", name="another")
    page = client_of("lead", project).post(f"/projects/{project.slug}/edit/", sent)
    assert "harmless: Which response is less likely to do harm?" in page.content.decode()
    assert Project.objects.get().aspects == []


def test_a_new_project_starts_from_the_usual_shares():
    client = Client()
    client.force_login(UserFactory(is_staff=True))
    form = client.get("/projects/new/").context["form"]
    shares = ["audit_share", "check_share", "repeat_share", "qualification_pass"]
    assert [form[name].value() for name in shares] == ["10", "5", "3", "80"]


def test_only_projects_that_one_leads_are_offered_to_copy():
    staff = UserFactory(is_staff=True)
    for role in ("lead", "rater"):
        project = MembershipFactory(role="owner").project
        MembershipFactory(project=project, user=staff, role=role)
    client = Client()
    client.force_login(staff)
    sources = client.get("/projects/new/").context["sources"]
    assert [p.memberships.get(user=staff).role for p in sources] == ["lead"]


def test_the_usual_aspects_are_put_into_a_form_that_is_not_finished_without_a_reproach():
    client = Client()
    client.force_login(UserFactory(is_staff=True))
    typed = {"preset": "aspects", "guidelines": "Be kind.", "audit_share": "20"}
    page = client.post("/projects/new/", typed)
    assert page.context["form"].errors == {}
    assert page.context["form"]["audit_share"].value() == "20"
    assert page.context["form"]["guidelines"].value() == "Be kind."
    assert page.context["form"]["better_answers"].value() == ""


def test_a_copy_takes_settings_and_members_and_no_data():
    staff = UserFactory(is_staff=True)
    source = ProjectFactory(
        guidelines="Be kind.",
        tags=["kind"],
        scale="two",
        audit_share=0.2,
        labels_per_day=9,
        training_feedback=False,
    )
    MembershipFactory(project=source, user=staff, role="lead")
    owner = MembershipFactory(project=source, role="owner").user
    rater = MembershipFactory(project=source, role="rater").user
    ComparisonFactory(project=source)
    client = Client()
    client.force_login(staff)
    page = client.get(f"/projects/new/?from={source.slug}").content.decode()
    assert "Be kind." in page
    sent = form_of(source, name="Copy", slug="copy", copied_from=source.slug)
    client.post("/projects/new/", sent | {"members": "on"})
    copy = Project.objects.get(slug="copy")
    assert {name: getattr(copy, name) for name in SETTINGS} == {
        name: getattr(source, name) for name in SETTINGS
    }
    assert {(m.user, m.role) for m in copy.memberships.all()} == {
        (staff, "owner"),
        (owner, "lead"),
        (rater, "rater"),
    }
    assert not copy.comparisons.exists()
    client.post("/projects/new/", sent | {"slug": "alone"})
    assert Project.objects.get(slug="alone").memberships.count() == 1


def test_a_project_that_one_does_not_lead_is_not_copied():
    staff = UserFactory(is_staff=True)
    source = ProjectFactory()
    client = Client()
    client.force_login(staff)
    assert client.get(f"/projects/new/?from={source.slug}").status_code == 404
    MembershipFactory(project=source, user=staff, role="rater")
    assert client.get(f"/projects/new/?from={source.slug}").status_code == 403


# Wanting more labels, or fewer --------------------------------------------------------------------


def test_the_form_asks_what_becomes_of_the_comparisons_that_are_there():
    project = ProjectFactory()
    ComparisonFactory.create_batch(2, project=project)
    ComparisonFactory(project=project, labels_wanted=5)  # more were wanted of this one
    lead = client_of("lead", project)
    path = f"/projects/{project.slug}/edit/"
    page = lead.post(path, form_of(project, labels_per_comparison=3))
    assert "2 comparisons want 1. Shall they want 3 from now on?" in page.content.decode()
    project.refresh_from_db()
    assert project.labels_per_comparison == 1
    lead.post(path, form_of(project, labels_per_comparison=3, existing="keep"))
    project.refresh_from_db()
    assert project.labels_per_comparison == 3
    assert set(project.comparisons.values_list("labels_wanted", flat=True)) == {1, 5}


def test_nothing_is_asked_where_no_comparison_follows_the_number():
    project = ProjectFactory()
    client_of("lead", project).post(
        f"/projects/{project.slug}/edit/", form_of(project, labels_per_comparison=3)
    )
    project.refresh_from_db()
    assert project.labels_per_comparison == 3


def test_held_and_answered_places_are_counted_when_more_labels_are_wanted():
    project = ProjectFactory(labels_per_comparison=2)
    free, held, answered, full, other = ComparisonFactory.create_batch(
        5, project=project, labels_wanted=2
    )
    Comparison.objects.filter(pk=other.pk).update(labels_wanted=4, open_places=4)
    given = ComparisonFactory(
        project=project, purpose="check", gold="a", labels_wanted=0, open_places=0
    )
    ann, ben = RaterFactory.create_batch(2, project=project)
    judge = RaterFactory(project=project, kind="judge")
    give(ann, held)
    record_preference(ann, give(ann, answered), "a")
    record_preference(ann, give(ann, full), "a")
    give(ben, full)
    # Neither a judge's verdict, nor a withdrawn answer, nor a skip takes a place.
    PreferenceFactory(comparison=free, rater=judge)
    PreferenceFactory(comparison=free, rater=ann, superseded_at=timezone.now())
    skip_comparison(ben, give(ben, answered))
    page = client_of("lead", project).post(
        f"/projects/{project.slug}/edit/",
        form_of(project, labels_per_comparison=3, existing="change"),
        follow=True,
    )
    assert "4 comparisons want 3 now." in page.content.decode()
    places = dict(project.comparisons.values_list("pk", "open_places"))
    assert places == {
        free.pk: 3,
        held.pk: 2,
        answered.pk: 2,
        full.pk: 1,
        other.pk: 4,
        given.pk: 0,
    }
    assert change_labels_wanted(project, 3, 1) == 4
    places = dict(project.comparisons.values_list("pk", "open_places"))
    assert [places[c.pk] for c in (free, held, answered, full)] == [1, 0, 0, 0]
    # What is held may still be answered: a label too many was lent before, and is kept.
    record_preference(ben, full, "b")
    assert full.preferences.current().count() == 2


def give(rater, comparison: Comparison) -> Comparison:
    """Lease this very comparison to the rater."""
    Comparison.objects.filter(pk=comparison.pk).update(open_places=F("open_places") - 1)
    Assignment.objects.create(
        comparison=comparison,
        rater=rater,
        shown_first="a",
        expires_at=timezone.now() + timedelta(minutes=5),
    )
    return comparison


def test_wanting_more_goes_on_batch_by_batch(monkeypatch):
    monkeypatch.setattr("labeling.projects.BATCH", 2)
    project = ProjectFactory(completed_at=timezone.now())
    ComparisonFactory.create_batch(5, project=project)
    elsewhere = ComparisonFactory()
    assert change_labels_wanted(project, 1, 2) == 5
    assert set(project.comparisons.values_list("labels_wanted", "open_places")) == {(2, 2)}
    elsewhere.refresh_from_db()
    project.refresh_from_db()
    assert elsewhere.labels_wanted == 1
    assert project.completed_at is None
    assert change_labels_wanted(project, 1, 2) == 0


def test_many_comparisons_are_changed_by_a_worker(monkeypatch, django_capture_on_commit_callbacks):
    from labeling.tasks import change_existing_comparisons

    monkeypatch.setattr("labeling.views.projects.CHANGED_AT_ONCE", 1)
    project = ProjectFactory()
    ComparisonFactory.create_batch(2, project=project)
    with django_capture_on_commit_callbacks() as callbacks:
        client_of("lead", project).post(
            f"/projects/{project.slug}/edit/",
            form_of(project, labels_per_comparison=3, existing="change"),
        )
    assert len([call for call in callbacks if call is not seal_changes]) == 1
    assert set(project.comparisons.values_list("labels_wanted", flat=True)) == {1}
    change_existing_comparisons(project.pk, 1, 3)
    assert set(project.comparisons.values_list("labels_wanted", "open_places")) == {(3, 3)}
    change_existing_comparisons(project.pk, 3, 5)  # the project says 3: nobody wants 5 any more
    assert set(project.comparisons.values_list("labels_wanted", flat=True)) == {3}


# The overview of large projects -------------------------------------------------------------------


def test_a_large_project_is_counted_once_in_a_minute_and_apart_from_the_page(monkeypatch):
    monkeypatch.setattr("labeling.progress.LARGE", 1)
    cache.clear()
    project = ProjectFactory()
    ComparisonFactory.create_batch(2, project=project)
    viewer = client_of("viewer", project)
    path = f"/projects/{project.slug}/"
    assert "Being counted." in viewer.get(path).content.decode()
    fragment = viewer.get(f"{path}progress/", headers={"HX-Request": "true"}).content.decode()
    assert "of 2 wanted" in fragment
    assert "<html" not in fragment
    ComparisonFactory(project=project)
    page = viewer.get(path).content.decode()
    assert "of 2 wanted" in page
    assert "Counted at" in page
    cache.clear()


def test_sets_and_better_answers_are_no_progress():
    project = ProjectFactory()
    ComparisonFactory(project=project)
    ComparisonFactory(project=project, purpose="check", gold="a", labels_wanted=0, open_places=0)
    ComparisonFactory(project=project, labels_wanted=0)
    progress = project_progress(project)
    assert (progress.n_comparisons, progress.n_wanted, progress.n_done) == (1, 1, 0)
