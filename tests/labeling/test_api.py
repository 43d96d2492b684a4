"""The API as programs use it: work, answers, comparisons, imports, idempotency, limits."""

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from django.core.cache import cache
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.utils import timezone

from labeling.api.documentation import groups, openapi
from labeling.assignment import next_comparison, response_name
from labeling.invitations import invitation_of
from labeling.models import (
    Assignment,
    Change,
    Comparison,
    Flag,
    IdempotentRequest,
    ImportJob,
    Preference,
    Ranking,
    Rater,
    ResponseSet,
)
from labeling.sets import set_purpose
from labeling.tasks import forget_old_rows
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    PromptFactory,
    RaterFactory,
    ResponseFactory,
    bearer,
)

pytestmark = pytest.mark.django_db

ROW = {"prompt": "Why?", "response_a": "Because.", "response_b": "Thus.", "model_a": "secret-model"}


@pytest.fixture(autouse=True)
def _no_counts_of_other_tests():
    cache.clear()


class Program:
    """A program of one member of a project."""

    def __init__(self, project, role: str = "lead", *scopes: str):
        self.user = MembershipFactory(project=project, role=role).user
        self.headers = bearer(self.user, *scopes)
        self.base = f"/api/projects/{project.slug}/"

    def send(self, method: str, path: str, body: Any = None, key: str = "") -> Any:
        path = path if path.startswith(("/", "http://testserver/")) else self.base + path
        headers = self.headers | ({"Idempotency-Key": key} if key else {})
        data = "" if body is None else body if isinstance(body, str) else json.dumps(body)
        return Client().generic(method, path, data, "application/json", headers=headers)

    def get(self, path: str) -> Any:
        return self.send("GET", path)

    def post(self, path: str, body: Any = None, key: str = "") -> Any:
        return self.send("POST", path, {} if body is None else body, key)

    def next(self, n: int = 1) -> list[dict[str, Any]]:
        return self.post("next/", {"n": n}).json()["work"]


def given(project, user) -> Assignment:
    return Assignment.objects.get(rater__user=user, rater__project=project)


def place_of(letter: str, assignment: Assignment) -> str:
    """Where this rater was shown response A or B."""
    return "left" if letter == assignment.shown_first else "right"


# --- labeling --------------------------------------------------------------------------------


def test_a_rater_leases_and_answers_and_learns_why_there_is_no_more():
    comparison = ComparisonFactory(gold="a", metadata={"from": "secret"})
    rater = Program(comparison.project, "rater")

    [piece] = rater.next()
    held = given(comparison.project, rater.user)
    assert set(piece) == {
        "assignment", "kind", "prompt", "left", "right", "responses", "expires_at",
    }  # fmt: skip
    assert piece["assignment"] == held.pk
    texts = {"a": comparison.response_a.messages, "b": comparison.response_b.messages}
    assert piece["left"] == {"messages": texts[held.shown_first]}

    place = place_of("b", held)
    answer = {"assignment": piece["assignment"], "choice": place, "strength": 2, "seconds": 3.5}
    kept = rater.post("/api/preferences/", answer | {"rationale": "ü", "next": 1})
    assert kept.status_code == 201
    assert kept.json()["choice"] == place
    assert kept.json()["work"] == []
    assert kept.json()["why"]["reason"] == "done"
    preference = Preference.objects.get()
    assert (preference.choice, preference.strength, preference.rationale) == ("b", 2, "ü")
    assert rater.post("next/").json() == {
        "work": [],
        "why": {"reason": "done", "n_open": 0, "n_held": 0, "held_until": None},
    }


def test_a_second_and_a_late_answer_get_409_and_change_nothing():
    comparison = ComparisonFactory()
    rater, other = (Program(comparison.project, "rater") for _ in range(2))
    [piece] = rater.next()
    Assignment.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    [theirs] = other.next()
    assert other.post("/api/preferences/", {"assignment": theirs["assignment"], "choice": "tie"})
    late = rater.post("/api/preferences/", {"assignment": piece["assignment"], "choice": "left"})
    again = other.post("/api/preferences/", {"assignment": theirs["assignment"], "choice": "left"})
    assert (late.status_code, again.status_code) == (409, 409)
    assert "too long" in late.json()["detail"]
    assert list(Preference.objects.values_list("choice", flat=True)) == ["tie"]


def test_an_answer_that_is_sent_again_is_kept_once():
    comparison = ComparisonFactory()
    rater = Program(comparison.project, "rater")
    [piece] = rater.next()
    body = {"assignment": piece["assignment"], "choice": "left"}
    first = rater.post("/api/preferences/", body, key="k-1")
    second = rater.post("/api/preferences/", body, key="k-1")
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert second.headers["Idempotency-Replayed"] == "true"
    assert Preference.objects.count() == 1
    # The answer's own key holds even where the remembered request is gone.
    IdempotentRequest.objects.all().delete()
    assert rater.post("/api/preferences/", body, key="k-1").status_code == 201
    assert Preference.objects.count() == 1


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        ({"choice": "a"}, "choice"),
        ({"choice": "left", "strength": 4}, "strength"),
        ({"choice": "left", "tags": ["made up"]}, "tags"),
        ({"choice": "left", "aspects": {"honest": "left"}}, "aspects"),
        ({"choice": "left", "better": "Mine."}, "better"),
        ({"choice": "left", "rationale": "nul \0"}, "rationale"),
        ({"choice": "left", "seconds": 1e300}, "seconds"),
        ({"choice": "left", "assignment": 10**30}, "assignment"),
    ],
)
def test_an_answer_that_makes_no_sense_is_400_and_names_the_field(answer, field):
    comparison = ComparisonFactory()
    rater = Program(comparison.project, "rater")
    [piece] = rater.next()
    body = {"assignment": piece["assignment"]} | answer
    refused = rater.post("/api/preferences/", body)
    assert (refused.status_code, list(refused.json())) == (400, [field])
    assert not Preference.objects.exists()


def test_a_project_of_two_answers_takes_no_third():
    comparison = ComparisonFactory(project__scale="two")
    rater = Program(comparison.project, "rater")
    [piece] = rater.next()
    for choice, status in (("tie", 400), ("left", 201)):
        body = {"assignment": piece["assignment"], "choice": choice}
        assert rater.post("/api/preferences/", body).status_code == status


def test_skip_flag_undo_and_release():
    project = ProjectFactory()
    ComparisonFactory.create_batch(2, project=project)
    rater = Program(project, "rater")
    first, second = rater.next(2)
    flagged = rater.post(f"/api/assignments/{first['assignment']}/flag/", {"kind": "private"})
    assert flagged.status_code == 201
    skipped = rater.post(
        f"/api/assignments/{first['assignment']}/skip/", {"reason": "no", "flag": "broken"}
    )
    assert skipped.json()["state"] == "skipped"
    assert set(Flag.objects.values_list("kind", flat=True)) == {"private", "broken"}
    assert rater.post("undo/").json()["work"][0]["assignment"] == first["assignment"]
    assert rater.post("release/", {"assignments": [second["assignment"]]}).json() == {"released": 1}
    assert rater.post("release/").json() == {"released": 1}
    assert rater.post("release/").json() == {"released": 0}


def test_an_answer_is_revised_and_the_earlier_one_kept():
    comparison = ComparisonFactory()
    rater = Program(comparison.project, "rater")
    [piece] = rater.next()
    rater.post("/api/preferences/", {"assignment": piece["assignment"], "choice": "left"})
    left = given(comparison.project, rater.user).shown_first
    assert Preference.objects.get().choice == left
    [mine] = rater.get("preferences/").json()["results"]
    assert mine["choice"] == "left"
    change = {"choice": "right", "aspects": {"kind": "left"}}
    comparison.project.aspects = [{"name": "kind", "question": "Which is kinder?"}]
    comparison.project.save()
    revised = rater.send("PATCH", f"/api/preferences/{mine['id']}/", change)
    assert (revised.status_code, revised.json()["choice"]) == (200, "right")
    assert Preference.objects.current().get().aspects == {"kind": left}
    again = rater.send("PATCH", f"/api/preferences/{mine['id']}/", {"choice": "tie"})
    assert again.status_code == 409
    [now] = rater.get("preferences/").json()["results"]
    assert (now["choice"], now["aspects"]) == ("right", {"kind": "left"})
    assert len(rater.get("preferences/?history=1").json()["results"]) == 2
    # Whoever sees results reads letters.
    lead = Program(comparison.project)
    assert lead.get("preferences/").json()["results"][0]["choice"] != left


def test_training_by_a_program_is_with_feedback_or_without():
    known = ComparisonFactory(purpose="training", gold="a", labels_wanted=0, open_places=0)
    for project_says in (True, False):
        known.project.training_feedback = project_says
        known.project.save()
        rater = Program(known.project, "rater")
        [piece] = rater.next()
        place = place_of("a", given(known.project, rater.user))
        answer = {"assignment": piece["assignment"], "choice": place}
        feedback = rater.post("/api/preferences/", answer).json()["feedback"]
        assert feedback == ({"gold": place, "is_right": True} if project_says else None)


def test_letters_exchanged_change_nothing_that_a_raters_program_is_told():
    """A file may always call the chosen response A: its letter would be the answer."""
    comparison = ComparisonFactory()
    rater = Program(comparison.project, "rater")
    rater.next()

    def told() -> list[Any]:
        work = rater.next()
        for piece in work:
            del piece["expires_at"]  # renewed each time
        paths = ("comparisons/", f"comparisons/{comparison.pk}/", "preferences/")
        return [work, *(rater.get(path).json() for path in paths)]

    Assignment.objects.update(shown_first="a")
    as_shown = told()
    Comparison.objects.update(
        response_a=comparison.response_b_id, response_b=comparison.response_a_id
    )
    Assignment.objects.update(shown_first="b")
    assert told() == as_shown
    assert str(comparison.response_a) in str(as_shown[1])


def test_nothing_that_a_rater_reads_says_where_a_response_came_from():
    lead = Program(project := ProjectFactory())
    hidden = ROW | {"id": "hidden-id", "gold": "a", "metadata": {"k": "hidden-metadata"}}
    votes = [{"rater": "hidden-rater", "choice": "a"}]
    verdicts = [{"rater": "hidden-judge", "prob_a": 0.9}]
    lead.post("comparisons/", {"rows": [hidden | {"preferences": votes, "verdicts": verdicts}]})
    Comparison.objects.update(leaks=["hidden-leak"], open_places=1)
    ComparisonFactory(project=project)
    rater = Program(project, "rater")
    rater.next()
    pk = given(project, rater.user).comparison_id
    words = "".join(
        response.content.decode()
        for response in (
            rater.get(""),
            rater.get("comparisons/"),
            rater.get(f"comparisons/{pk}/"),
            rater.get("preferences/"),
            rater.post("next/"),
        )
    )
    assert "Because." in words or "Answer" in words
    for secret in ("secret-model", "hidden", "audit", "gold", "purpose", "source", "check_share"):
        assert secret not in words
    assert [row["id"] for row in rater.get("comparisons/").json()["results"]] == [pk]
    others = Comparison.objects.exclude(pk=pk).get()
    assert rater.get(f"comparisons/{others.pk}/").status_code == 404


def test_no_filter_tells_a_rater_which_comparisons_are_gold():
    lead = Program(project := ProjectFactory())
    gold, work = ComparisonFactory.create_batch(2, project=project, gold="a")
    rater = Program(project, "rater")
    assert len(rater.post("next/", {"n": 2}).json()["work"]) == 2
    set_purpose(project, [gold.pk], "check", None)

    def ids(program: Program, query: str) -> set[int]:
        return {row["id"] for row in program.get(f"comparisons/?{query}").json()["results"]}

    assert ids(lead, "purpose=check") == {gold.pk}
    for query in ("purpose=check", "state=open", "state=full", "decided=true", "flagged=true"):
        assert ids(rater, query) == {gold.pk, work.pk}


def test_a_program_is_given_a_set_in_the_places_that_its_answers_are_kept_with():
    project = ProjectFactory()
    prompt = PromptFactory(project=project)
    a, b, c = ResponseFactory.create_batch(3, prompt=prompt)
    of_set = ResponseSet.objects.create(project=project, prompt=prompt, content_hash="h")
    for first, second in ((a, b), (a, c), (b, c)):
        ComparisonFactory(
            project=project,
            prompt=prompt,
            response_a=first,
            response_b=second,
            response_set=of_set,
        )
    rater = Program(project, "rater")
    [piece] = rater.next()
    given_to = Rater.objects.get(user=rater.user).pk
    names = {response_name(given_to, pk): pk for pk in (a.pk, b.pk, c.pk)}
    places = [names[response["id"]] for response in piece["responses"]]
    assert len(places) == 3
    for assignment in Assignment.objects.select_related("comparison"):
        pair = assignment.comparison.response_a_id, assignment.comparison.response_b_id
        stood_first = min(pair, key=places.index)
        assert assignment.shown_first == "ab"[pair.index(stood_first)]

    first, second, third = (response["id"] for response in piece["responses"])
    body = {"assignment": piece["assignment"], "order": [[third], [first, second]]}
    for wrong in ([[third], [first]], [[third], [first, str(a.pk)]], [[third, third, first]]):
        assert rater.post("/api/rankings/", body | {"order": wrong}).status_code == 400
    kept = rater.post("/api/rankings/", body, key="once")
    assert (kept.status_code, kept.json()["order"]) == (201, body["order"])
    assert Ranking.objects.get().order == [[names[third]], [names[first], names[second]]]

    change = {"order": [[first], [second], [third]], "rationale": "now"}
    revised = rater.send("PATCH", f"/api/rankings/{kept.json()['id']}/", change)
    assert (revised.status_code, revised.json()["order"]) == (200, change["order"])
    now = Ranking.objects.get(superseded_at=None)
    assert (now.pk, now.rationale) == (revised.json()["id"], "now")
    assert Preference.objects.current().filter(ranking=now).count() == 3
    again = rater.send("PATCH", f"/api/rankings/{kept.json()['id']}/", change)
    wrong = rater.send("PATCH", f"/api/rankings/{now.pk}/", {"order": [[first]]})
    theirs = Program(project, "rater").send("PATCH", f"/api/rankings/{now.pk}/", change)
    assert (again.status_code, wrong.status_code, theirs.status_code) == (409, 400, 404)


def test_a_rater_lists_their_own_answers_alone():
    preference = PreferenceFactory()
    rater = Program(preference.comparison.project, "rater")
    assert rater.get("preferences/").json()["results"] == []


# --- the lead's side -------------------------------------------------------------------------


def test_rows_become_comparisons_and_each_row_is_told_what_became_of_it():
    lead = Program(project := ProjectFactory())
    bad_vote = {"preferences": [{"rater": "ann", "choice": "maybe"}]}
    rows = [ROW, ROW, {"prompt": "x"}, 7, ROW | {"prompt": "\0"}, ROW | {"prompt": "Q"} | bad_vote]
    told = lead.post("comparisons/", {"rows": rows, "labels_per_comparison": 3}).json()
    assert [row["result"] for row in told["rows"]] == [
        "created", "duplicate", "rejected", "rejected", "rejected", "created",
    ]  # fmt: skip
    assert told["rows"][0]["comparison"] == told["rows"][1]["comparison"]
    assert "NUL" in told["rows"][4]["reason"]
    assert "maybe" in told["rows"][5]["left_out"][0]
    assert (told["created"], told["duplicates"], told["rejected"]) == (2, 1, 3)
    assert set(project.comparisons.values_list("labels_wanted", flat=True)) == {3}
    assert lead.post("comparisons/", {"rows": rows}).json()["created"] == 0


def test_pages_go_on_by_cursor_without_counting(django_assert_num_queries):
    project = ProjectFactory()
    made = [c.pk for c in ComparisonFactory.create_batch(5, project=project)]
    lead = Program(project)
    lead.get("comparisons/")  # notes the use of the token
    seen, address = [], f"{lead.base}comparisons/?limit=2"
    while address:
        with django_assert_num_queries(4):  # token, project, membership, page
            page = lead.get(address).json()
        seen += [row["id"] for row in page["results"]]
        address = page["next"]
    assert seen == made[::-1]


@pytest.mark.parametrize("cursor", [b"p=x", b"p=99999999999999999999", b"o=-1", b"\xff", b"p=-1"])
def test_a_cursor_that_is_none_of_ours_is_404(cursor):
    lead = Program(ProjectFactory())
    address = f"comparisons/?cursor={base64.b64encode(cursor).decode()}"
    assert lead.get(address).status_code == 404


def test_filters():
    project = ProjectFactory()
    full = ComparisonFactory(project=project, open_places=0)
    flagged = ComparisonFactory(project=project, external_id="e-1")
    Flag.objects.create(comparison=flagged, rater=RaterFactory(project=project), kind="unsafe")
    lead = Program(project)

    def ids(query: str) -> list[int]:
        return [row["id"] for row in lead.get(f"comparisons/?{query}").json()["results"]]

    assert ids("state=full") == [full.pk]
    assert ids("flagged=true") == ids("external_id=e-1") == ids("state=open") == [flagged.pk]
    assert ids("flagged=false") == [full.pk]
    assert ids("purpose=check") == []
    assert lead.get("comparisons/?state=lost").status_code == 400
    assert lead.get("comparisons/?external_id=%00").status_code == 400


def test_the_filters_of_the_queue():
    project = ProjectFactory(labels_per_comparison=3)
    disputed, flagged, long, plain = (
        ComparisonFactory(project=project, labels_wanted=3, open_places=3) for _ in range(4)
    )
    ann, bo = RaterFactory.create_batch(2, project=project)
    judge = RaterFactory(project=project, kind="judge")
    PreferenceFactory(comparison=disputed, rater=ann, choice="a")
    PreferenceFactory(comparison=disputed, rater=bo, choice="b", tags=["kind"])
    PreferenceFactory(comparison=plain, rater=ann, choice="a")
    PreferenceFactory(comparison=plain, rater=judge, choice="b")
    Flag.objects.create(comparison=flagged, rater=ann, kind="unsafe")
    long.response_a.n_chars = 1_000
    long.response_a.save()
    Comparison.objects.filter(pk=long.pk).update(leaks=["GPT-9"], external_id="Loud-7", gold="a")
    held = next_comparison(RaterFactory(project=project))
    lead = Program(project)

    def ids(query: str) -> list[int]:
        return [row["id"] for row in lead.get(f"comparisons/?{query}").json()["results"]]

    assert ids("disagreement=people") == [disputed.pk]
    assert ids("disagreement=all") == [plain.pk, disputed.pk]
    assert ids("judge=differs") == [plain.pk]
    assert ids("judge=agrees") == []
    assert ids("flag=unsafe") == ids("flag=unresolved") == ids("flagged=true") == [flagged.pk]
    assert ids("flag=private") == []
    assert ids("tag=kind") == [disputed.pk]
    assert ids("length_min=50") == ids("leaks=true") == ids("text=loud") == [long.pk]
    assert ids("purpose=gold") == [long.pk]
    assert long.pk not in ids("length_max=50")
    assert ids(f"rater={ann.pk}") == [plain.pk, disputed.pk]
    assert ids(f"rater={ann.pk}&disagreement=people") == [disputed.pk]
    assert ids("state=held") == [held.comparison_id]
    assert ids("state=done") == []
    for wrong in ("judge=maybe", "rater=9999", "length_min=-1", "disagreement=yes"):
        assert lead.get(f"comparisons/?{wrong}").status_code == 400


def test_a_filtered_list_goes_on_by_next_even_where_the_time_was_up(monkeypatch):
    project = ProjectFactory()
    made = ComparisonFactory.create_batch(7, project=project)
    wanted = [c.pk for c in made[::2]]
    Comparison.objects.filter(pk__in=wanted).update(external_id="this one")
    lead = Program(project)

    def walk() -> tuple[list[int], int]:
        seen, n_pages, address = [], 0, f"{lead.base}comparisons/?text=THIS&limit=3"
        while address:
            page = lead.get(address).json()
            assert page["previous"] is None
            seen += [row["id"] for row in page["results"]]
            address, n_pages = page["next"], n_pages + 1
        return seen, n_pages

    assert walk() == (wanted[::-1], 2)
    # So little time that each page looks at two comparisons.
    monkeypatch.setattr("labeling.queue.SECONDS", 0)
    monkeypatch.setattr("labeling.queue.FIRST_STRETCH", 2)
    seen, n_pages = walk()
    assert seen == wanted[::-1]
    assert n_pages >= 4


def test_many_comparisons_are_changed_by_their_ids_or_by_a_filter():
    project = ProjectFactory()
    first, second, third = ComparisonFactory.create_batch(3, project=project, external_id="x-1")
    other = ComparisonFactory()
    lead = Program(project)

    def change(**body) -> Any:
        return lead.post("comparisons/change/", body)

    def now(name: str) -> list[Any]:
        return list(project.comparisons.order_by("pk").values_list(name, flat=True))

    done = change(comparisons=[first.pk, second.pk, other.pk], priority=7)
    assert done.json() == {"changed": 2, "left": 0, "why_left": ""}
    assert now("priority") == [7, 7, 0]
    other.refresh_from_db()
    assert other.priority == 0
    assert change(filter={"text": "X-1"}, labels_wanted=2).json()["changed"] == 3
    assert now("open_places") == [2, 2, 2]
    left = change(comparisons=[third.pk], purpose="check").json()
    assert (left["changed"], left["left"]) == (0, 1)
    assert "needs a known answer" in left["why_left"]
    assert change(comparisons=[third.pk], gold="tie").json()["changed"] == 1
    assert change(comparisons=[third.pk], purpose="check").json()["changed"] == 1
    assert change(filter={"purpose": "check"}, gold="").json()["left"] == 1
    assert change(filter={"state": "open"}, queue="take_out", note="bad").json()["changed"] == 2
    assert now("labels_wanted") == [0, 0, 0]
    assert change(filter={}, queue="put_back").json()["changed"] == 2
    assert now("labels_wanted") == [2, 2, 0]
    assert Change.objects.filter(action="take out of the queue").get().after["note"] == "bad"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"priority": 1},
        {"comparisons": [1]},
        {"comparisons": [], "priority": 1},
        {"comparisons": [1], "filter": {}, "priority": 1},
        {"comparisons": [1], "priority": 1, "labels_wanted": 2},
        {"comparisons": [1], "queue": "burn"},
        {"filter": {"judge": "maybe"}, "priority": 1},
        {"filter": {"rater": 99}, "priority": 1},
    ],
)
def test_a_change_to_many_that_makes_no_sense_is_400(body):
    lead = Program(ProjectFactory())
    assert lead.post("comparisons/change/", body).status_code == 400
    assert not Change.objects.exclude(project=None).exists()


def test_a_change_to_too_many_is_409_and_changes_nothing(monkeypatch):
    project = ProjectFactory()
    ComparisonFactory.create_batch(3, project=project)
    monkeypatch.setattr("labeling.queue.CHANGED_AT_ONCE", 2)
    lead = Program(project)
    refused = lead.post("comparisons/change/", {"filter": {}, "priority": 3})
    assert refused.status_code == 409
    assert set(project.comparisons.values_list("priority", flat=True)) == {0}


def test_invitations_are_made_listed_and_revoked():
    lead = Program(project := ProjectFactory())
    made = lead.post("invitations/", {"role": "rater", "days": 2, "uses": 5}, key="once")
    told = made.json()
    assert (made.status_code, told["state"], told["uses_left"]) == (201, "open", 5)
    assert (told["role"], told["created_by"]) == ("rater", lead.user.username)
    token = told["link"].rstrip("/").rpartition("/")[2]
    assert invitation_of(token).project == project
    # The link is nowhere in the database, and comes once.
    again = lead.post("invitations/", {"role": "rater", "days": 2, "uses": 5}, key="once")
    assert (again.json()["id"], again.json()["link"]) == (told["id"], "")
    assert token not in str(list(IdempotentRequest.objects.values()))
    assert "link" not in lead.get("invitations/").json()["results"][0]
    revoked = lead.post(f"invitations/{told['id']}/revoke/")
    assert (revoked.status_code, revoked.json()["state"]) == (200, "revoked")
    assert [row["state"] for row in lead.get("invitations/").json()["results"]] == ["revoked"]
    assert Client().get(f"/join/{token}/").status_code == 410
    assert lead.post("invitations/", {"role": "owner"}).status_code == 403
    assert lead.post("invitations/", {"uses": 0}).status_code == 400
    owner = Program(project, "owner")
    assert owner.post("invitations/", {"role": "owner"}).status_code == 201
    theirs = Program(ProjectFactory())
    assert theirs.post(f"invitations/{told['id']}/revoke/").status_code == 404


def test_a_lead_changes_priority_wanted_labels_gold_and_purpose():
    comparison = ComparisonFactory(labels_wanted=1)
    lead = Program(comparison.project)
    path = f"comparisons/{comparison.pk}/"
    told = lead.send("PATCH", path, {"priority": 9, "labels_wanted": 3}).json()
    assert (told["priority"], told["labels_wanted"], told["open_places"]) == (9, 3, 3)
    assert lead.send("PATCH", path, {"purpose": "check"}).status_code == 400
    told = lead.send("PATCH", path, {"purpose": "check", "gold": "b"}).json()
    assert (told["purpose"], told["gold"], told["open_places"]) == ("check", "b", 0)
    assert lead.send("PATCH", path, {"gold": ""}).status_code == 400
    assert lead.send("PATCH", path, {"labels_wanted": 2}).status_code == 400
    changes = lead.get("changes/").json()["results"]
    assert changes[-1]["before"] == {"priority": 0, "labels_wanted": 1}
    assert changes[-1]["actor"] == lead.user.username


def test_settings_are_patched_and_noted_and_the_slug_stays():
    lead = Program(project := ProjectFactory())
    told = lead.send("PATCH", "", {"name": "Newer", "scale": "two", "tags": ["kind"]})
    assert (told.status_code, told.json()["name"]) == (200, "Newer")
    assert Change.objects.get(project=project).after == {
        "name": "Newer",
        "scale": "two",
        "tags": ["kind"],
    }
    assert lead.send("PATCH", "", {"slug": "other"}).status_code == 400
    assert lead.send("PATCH", "", {"audit_share": 7}).status_code == 400
    assert lead.send("PATCH", "", {"aspects": [{"name": "honest"}]}).status_code == 400
    project.refresh_from_db()
    assert project.scale == "two"


def test_members_and_the_last_owner():
    owner = Program(project := ProjectFactory(), "owner")
    person = MembershipFactory().user
    told = owner.post("members/", {"username": person.username, "role": "rater"}).json()
    assert told["role"] == "rater"
    assert owner.post("members/", {"username": "nobody", "role": "rater"}).status_code == 400
    assert owner.send("DELETE", f"members/{told['id']}/").status_code == 204
    [mine] = owner.get("members/").json()["results"]
    assert owner.send("DELETE", f"members/{mine['id']}/").status_code == 403
    lead = Program(project, "lead")
    assert lead.post("members/", {"username": person.username, "role": "owner"}).status_code == 403


def test_a_rater_is_paused_and_resumed():
    comparison = ComparisonFactory()
    lead, rater = Program(comparison.project), Program(comparison.project, "rater")
    rater.next()
    pk = Rater.objects.get(user=rater.user).pk
    assert lead.post(f"raters/{pk}/pause/").json()["paused_at"]
    assert rater.post("next/").json()["why"]["reason"] == "paused"
    assert lead.post(f"raters/{pk}/resume/").json()["paused_at"] is None
    assert len(rater.next()) == 1
    limited = lead.send("PATCH", f"raters/{pk}/", {"label_limit": 5})
    assert limited.json()["label_limit"] == 5
    judge = RaterFactory(project=comparison.project, kind="judge")
    assert lead.post(f"raters/{judge.pk}/pause/").status_code == 400


def test_a_comparison_is_decided_anew_and_the_decision_withdrawn():
    comparison = ComparisonFactory()
    lead = Program(comparison.project)
    body = {"comparison": comparison.pk, "choice": "a", "strength": 2, "note": "clear"}
    first = lead.post("decisions/", body).json()
    second = lead.post("decisions/", body | {"choice": "tie"}).json()
    assert (second["choice"], second["strength"]) == ("tie", None)
    assert lead.send("DELETE", f"decisions/{first['id']}/").status_code == 409
    assert [row["id"] for row in lead.get("comparisons/?decided=true").json()["results"]] == [
        comparison.pk
    ]
    assert lead.send("DELETE", f"decisions/{second['id']}/").status_code == 204
    assert lead.get("comparisons/?decided=true").json()["results"] == []
    assert len(lead.get("decisions/").json()["results"]) == 2
    other = ComparisonFactory()
    assert lead.post("decisions/", body | {"comparison": other.pk}).status_code == 404


def test_flags_are_resolved():
    comparison = ComparisonFactory()
    flag = Flag.objects.create(
        comparison=comparison, rater=RaterFactory(project=comparison.project), kind="unsafe"
    )
    lead = Program(comparison.project)
    told = lead.send("PATCH", f"flags/{flag.pk}/", {"resolved": True}).json()
    assert told["resolved_by"] == lead.user.username
    assert lead.get("flags/?resolved=false").json()["results"] == []


def test_a_file_is_uploaded_imported_and_reported():
    lead = Program(project := ProjectFactory())
    lines = "\n".join(json.dumps(row) for row in (ROW, {"prompt": "only"}))
    form = {"file": SimpleUploadedFile("rows.jsonl", lines.encode()), "labels_per_comparison": 2}
    headers = lead.headers | {"Idempotency-Key": "upload-1"}
    sent = Client().post(f"{lead.base}imports/", form, headers=headers)
    assert sent.status_code == 202
    form["file"] = SimpleUploadedFile("rows.jsonl", lines.encode())
    again = Client().post(f"{lead.base}imports/", form, headers=headers)
    assert again.json() == sent.json()
    job = ImportJob.objects.get()
    from labeling.tasks import run_import

    run_import(job.pk)
    told = lead.get(f"imports/{job.pk}/").json()
    assert (told["status"], told["result"]["created"], told["result"]["rejected"]) == (
        "succeeded", 1, 1,
    )  # fmt: skip
    assert "reject_file" not in told["result"]
    rejects = b"".join(lead.get(f"imports/{job.pk}/rejects/").streaming_content)
    assert json.loads(rejects)["line"] == 2
    assert project.comparisons.get().labels_wanted == 2
    assert lead.post(f"imports/{job.pk}/resume/").status_code == 409


def test_labels_are_exported_as_a_stream():
    preference = PreferenceFactory(choice="b")
    lead = Program(preference.comparison.project)
    sent = lead.get("export/?form=trl")
    assert sent.headers["Content-Type"] == "application/jsonl"
    [line] = b"".join(sent.streaming_content).splitlines()
    answer = preference.comparison.response_b.messages[0]["content"]
    assert json.loads(line)["chosen"] == answer
    assert lead.get("export/?form=made-up").status_code == 400
    assert lead.get("export/?form=csv&aggregate=dawid-skene").status_code == 200


def test_an_agreement_report_is_asked_for_once():
    lead = Program(ProjectFactory())
    first, second = lead.post("agreement/"), lead.post("agreement/")
    assert first.status_code == 202
    assert first.json()["id"] == second.json()["id"]
    assert lead.get(f"agreement/{first.json()['id']}/").json()["status"] == "queued"


# --- requests that come twice, too often, or make no sense ------------------------------------


def test_a_key_that_is_used_for_another_request_is_422():
    lead = Program(ProjectFactory())
    assert lead.post("comparisons/", {"rows": [ROW]}, key="once").status_code == 200
    other = lead.post("comparisons/", {"rows": [ROW | {"prompt": "Else?"}]}, key="once")
    assert other.status_code == 422
    assert Comparison.objects.count() == 1


def test_a_key_in_use_is_409_until_its_request_is_given_up():
    lead = Program(ProjectFactory())
    body = {"rows": [ROW]}
    lead.post("comparisons/", body, key="once")
    Comparison.objects.all().delete()
    kept = IdempotentRequest.objects.get()
    IdempotentRequest.objects.update(status=None, body=None)
    assert lead.post("comparisons/", body, key="once").status_code == 409
    IdempotentRequest.objects.update(created_at=kept.created_at - timedelta(minutes=3))
    assert lead.post("comparisons/", body, key="once").json()["created"] == 1


def test_a_refused_request_leaves_its_key_free():
    lead = Program(ProjectFactory())
    assert lead.post("comparisons/", {"rows": []}, key="once").status_code == 400
    assert lead.post("comparisons/", {"rows": [ROW]}, key="once").status_code == 200


def test_keys_are_each_callers_own_and_forgotten_after_a_day():
    project = ProjectFactory()
    one, two = Program(project), Program(project)
    for program in (one, two):
        assert program.post("comparisons/", {"rows": [ROW]}, key="same").status_code == 200
    IdempotentRequest.objects.filter(user=one.user).update(
        created_at=timezone.now() - timedelta(hours=25)
    )
    forget_old_rows()
    assert list(IdempotentRequest.objects.values_list("user", flat=True)) == [two.user.pk]


def test_too_many_requests_are_told_when_to_come_again(settings):
    settings.PREFLOOP_API_PER_MINUTE = 2
    project = ProjectFactory()
    lead, other = Program(project), Program(project)
    statuses = [lead.get("raters/").status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert 1 <= int(lead.get("raters/").headers["Retry-After"]) <= 60
    assert other.get("raters/").status_code == 200
    assert lead.post("agreement/").status_code == 202  # counted apart by scope
    settings.PREFLOOP_API_PER_MINUTE = 0
    assert lead.get("raters/").status_code == 200


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '{"rows": NaN}', "[" * 100_000, "\xff"])
def test_a_body_that_is_no_object_is_400(body):
    lead = Program(ProjectFactory())
    assert lead.send("POST", "comparisons/", body).status_code == 400


def test_a_body_that_is_too_large_is_413(settings):
    settings.PREFLOOP_API_MAX_BYTES = 100
    lead = Program(ProjectFactory())
    assert lead.post("comparisons/", {"rows": ["x" * 200]}).status_code == 413


def test_an_unknown_address_is_told_in_json():
    assert Client().post("/api/projects").json()["detail"].startswith("There is no such address")


# --- the description -------------------------------------------------------------------------


def test_every_route_is_described_for_programs_and_on_the_page(client):
    lead = Program(ProjectFactory())
    document = lead.get("/api/schema/").json()
    assert document["openapi"].startswith("3.")
    assert document == openapi()
    operations = [op for path in document["paths"].values() for op in path.values()]
    assert [op["operationId"] for op in operations if not op.get("description")] == []
    client.force_login(lead.user)
    page = client.get("/api/docs/").content.decode()
    shown = [op for group in groups(document) for op in group["operations"]]
    assert len(shown) == len(operations)
    for operation in shown:
        assert f'id="{operation["id"]}"' in page
    assert "style=" not in page
    assert "<script>" not in page
