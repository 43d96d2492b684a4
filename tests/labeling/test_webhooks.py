"""Webhooks against a real HTTP server: signatures, retries, and where messages may go."""

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from labeling import webhooks
from labeling.answering import record_preference, undo_last
from labeling.assignment import next_comparison
from labeling.events import notice_completed_project, notice_completed_projects
from labeling.imports.records import store_records
from labeling.models import Change, Delivery, IdempotentRequest, Rater, Webhook
from labeling.webhooks import (
    check_address,
    deliver,
    deliver_due,
    forget_old,
    make_webhook,
    secret_of,
    signature,
    tell,
)
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    ProjectFactory,
    RaterFactory,
    bearer,
)

pytestmark = pytest.mark.django_db

ALL = list(Webhook.Event.values)


class Receiver:
    """A server of somebody else's: keeps what it gets, answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []  # of the next answers; 200 when there are none
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?a=1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def receiver(settings) -> Iterator[Receiver]:
    settings.PREFLOOP_WEBHOOK_PRIVATE = True
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


@pytest.fixture
def project():
    return ProjectFactory()


def hook(project, url: str, events: list[str] = ALL) -> Webhook:
    return make_webhook(project, url, list(events), MembershipFactory(project=project).user)


def answer(rater: Rater, choice: str = "a") -> None:
    assignment = next_comparison(rater)
    record_preference(rater, assignment.comparison, choice)


def past(*deliveries: Delivery) -> None:
    """Let the wait of these messages be over."""
    pks = [delivery.pk for delivery in deliveries]
    Delivery.objects.filter(pk__in=pks).update(next_try_at=timezone.now())


def test_an_answer_arrives_signed(project, receiver):
    webhook = hook(project, receiver.url, ["preference.created"])
    comparison = ComparisonFactory(project=project, external_id="ext-1")
    rater = RaterFactory(project=project)
    answer(rater)
    assert deliver_due() == 1

    [(headers, body)] = receiver.got
    expected = signature(secret_of(webhook), headers["X-Prefloop-Timestamp"], body)
    assert headers["X-Prefloop-Signature"] == expected
    assert headers["X-Prefloop-Event"] == "preference.created"
    delivery = Delivery.objects.get()
    assert headers["X-Prefloop-Delivery"] == str(delivery.pk)
    message = json.loads(body)
    assert (message["project"], message["event"]) == (project.slug, "preference.created")
    assert message["data"]["comparison"] == comparison.pk
    assert message["data"]["choice"] == "a"
    assert message["data"]["external_id"] == "ext-1"
    assert (delivery.status, delivery.n_tries, delivery.next_try_at) == (200, 1, None)
    assert delivery.delivered_at is not None
    assert deliver_due() == 0


def test_the_signature_by_hand():
    # printf '1700000000.{}' | openssl dgst -sha256 -hmac secret
    assert signature("secret", "1700000000", b"{}") == (
        "v1=b8569b78799ff9e3cbff0fc2d63a33a2b57f3282abd07c37ae5e8e7d79a5f163"
    )


def test_events_of_a_comparison_with_two_labels_and_of_the_project(project, receiver):
    hook(project, receiver.url)
    ComparisonFactory(project=project, labels_wanted=2)
    raters = RaterFactory.create_batch(2, project=project)
    answer(raters[0], "b")
    assert notice_completed_projects() == 0
    answer(raters[1], "a")
    assert notice_completed_projects() == 1
    assert notice_completed_projects() == 0
    deliver_due()
    events = [headers["X-Prefloop-Event"] for headers, _body in receiver.got]
    assert events == [
        "preference.created", "preference.created", "comparison.completed", "project.completed",
    ]  # fmt: skip
    assert json.loads(receiver.got[2][1])["data"]["labels"] == ["a", "b"]


def test_the_last_answer_tells_at_once_that_its_project_is_completed(
    project, receiver, django_capture_on_commit_callbacks
):
    hook(project, receiver.url, ["project.completed"])
    ComparisonFactory.create_batch(2, project=project)
    ann, bo = RaterFactory.create_batch(2, project=project)
    held = next_comparison(bo)

    def completed_after(rater: Rater) -> bool:
        with django_capture_on_commit_callbacks(execute=True):
            answer(rater)
        project.refresh_from_db()
        return project.completed_at is not None

    assert not completed_after(ann)  # bo holds the other one
    assert held is not None
    assert completed_after(bo)
    assert Delivery.objects.get().event == "project.completed"
    assert notice_completed_projects() == 0


def test_while_work_is_open_the_question_costs_one_look(project, receiver):
    hook(project, receiver.url, ["project.completed"])
    ComparisonFactory(project=project)
    with CaptureQueriesContext(connection) as queries:
        assert notice_completed_project(project.pk) is False
    assert len(queries) == 1


def test_sets_of_known_answers_leave_a_project_completed(project):
    rater = RaterFactory(project=project)
    row = {"prompt": "Why?", "response_a": "Because.", "response_b": "Thus."}
    store_records(project, [row])
    answer(rater)
    assert notice_completed_projects() == 1
    gold = {"gold": "a", "purpose": "check"}
    store_records(project, [row | gold | {"prompt": "Known?"}])
    project.refresh_from_db()
    assert project.completed_at is not None
    assert project.comparisons.count() == 2
    store_records(project, [row | {"prompt": "Open?"}])
    project.refresh_from_db()
    assert project.completed_at is None


def test_a_project_is_completed_anew_after_more_work_came(project, receiver):
    hook(project, receiver.url, ["project.completed"])
    rater = RaterFactory(project=project)
    row = {"prompt": "Why?", "response_a": "Because.", "response_b": "Thus."}
    for prompt in ("one", "two"):
        store_records(project, [row | {"prompt": prompt}])
        project.refresh_from_db()
        assert project.completed_at is None
        assert next_comparison(rater) is not None
        assert notice_completed_projects() == 0  # somebody holds it
        answer(rater)
        assert notice_completed_projects() == 1
    undo_last(rater)
    assert notice_completed_projects() == 0
    assert Delivery.objects.count() == 2


def test_a_server_that_fails_is_asked_again_later_and_given_up_after_eight_tries(project, receiver):
    hook(project, receiver.url)
    tell(project.pk, "project.completed", {})
    delivery = Delivery.objects.get()
    receiver.statuses = [500, 302, *[503] * 6]
    waits = []
    for _ in range(8):
        assert deliver(delivery.pk) is False
        assert deliver(delivery.pk) is False  # not due yet: nobody is asked
        delivery.refresh_from_db()
        if delivery.next_try_at:
            waits.append(round((delivery.next_try_at - timezone.now()).total_seconds(), -1))
        past(delivery)
        if len(waits) == 2:
            assert (delivery.status, delivery.error) == (
                302, "Answered 302: redirects are not followed.",
            )  # fmt: skip
        delivery.refresh_from_db()
    assert waits == [10, 60, 300, 1800, 7200, 21600, 50400]
    assert 20 * 3600 < sum(waits) < 24 * 3600
    assert len(receiver.got) == 8
    bodies = {body for _headers, body in receiver.got}
    assert len(bodies) == 1


def test_what_is_given_up_waits_no_more_and_is_sent_again_by_hand(project, receiver, client):
    webhook = hook(project, receiver.url)
    tell(project.pk, "project.completed", {})
    Delivery.objects.update(n_tries=7)
    receiver.statuses = [500]
    assert deliver_due() == 0
    delivery = Delivery.objects.get()
    assert (delivery.next_try_at, delivery.n_tries, delivery.error) == (None, 8, "Answered 500.")
    client.force_login(project.memberships.get().user)
    page = f"/projects/{project.slug}/webhooks/{webhook.pk}/"
    assert "given up" in client.get(page).content.decode()
    client.post(f"{page}deliveries/{delivery.pk}/again/")
    assert deliver_due() == 1
    assert "arrived" in client.get(page).content.decode()


def test_a_dead_server_holds_up_its_own_messages_alone(project, receiver):
    hook(project, "http://127.0.0.1:9/")  # nobody listens there
    hook(project, receiver.url)
    for _ in range(3):
        tell(project.pk, "project.completed", {})
    assert deliver_due() == 3
    dead = Delivery.objects.filter(delivered_at=None)
    assert sorted(dead.values_list("n_tries", flat=True)) == [0, 0, 1]
    assert "refused" in dead.get(n_tries=1).error


def test_two_workers_do_not_send_the_same_message(project, receiver):
    hook(project, receiver.url)
    tell(project.pk, "project.completed", {})
    pk = Delivery.objects.get().pk
    Delivery.objects.update(next_try_at=timezone.now() + webhooks.CLAIMED_FOR, n_tries=1)
    assert deliver(pk) is False
    assert receiver.got == []
    past(Delivery.objects.get())  # the worker that had it was killed
    assert deliver(pk) is True


def test_only_those_who_want_an_event_are_told(project, receiver):
    hook(project, receiver.url, ["comparison.completed"])
    off = hook(project, receiver.url)
    Webhook.objects.filter(pk=off.pk).update(disabled_at=timezone.now())
    hook(ProjectFactory(), receiver.url)
    assert tell(project.pk, "preference.created", {}) == 0
    assert tell(project.pk, "comparison.completed", {}) == 1


def test_an_answer_costs_one_query_more_where_nobody_listens(project, monkeypatch):
    ComparisonFactory.create_batch(2, project=project)
    rater = RaterFactory(project=project)

    def n_queries() -> int:
        comparison = next_comparison(rater).comparison
        with CaptureQueriesContext(
            connection,
        ) as queries:
            record_preference(rater, comparison, "a")
        return len(queries)

    with_events = n_queries()
    monkeypatch.setattr("labeling.answering.answered", lambda preference: None)
    assert with_events - n_queries() == 1


def test_what_is_rolled_back_is_not_told(project, receiver):
    hook(project, receiver.url)
    with transaction.atomic():
        assert tell(project.pk, "project.completed", {}) == 1
        transaction.set_rollback(True)
    assert not Delivery.objects.exists()


def test_old_messages_are_forgotten(project, receiver):
    hook(project, receiver.url)
    tell(project.pk, "project.completed", {})
    tell(project.pk, "project.completed", {})
    old = Delivery.objects.first()
    Delivery.objects.filter(pk=old.pk).update(created_at=timezone.now() - timedelta(days=31))
    assert forget_old() == 1
    assert Delivery.objects.get().pk != old.pk


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost:8000/",
        "http://10.1.2.3/",
        "http://192.168.0.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[fe80::1]/",
        "http://0.0.0.0/",
        "http://224.0.0.1/",
        "ftp://example.org/",
        "https://user:password@example.org/",
        "https:///path",
        "https://example.org:0/",
        "https://example.org:99999/",
        "https://exa mple.org/",
        "http://[",
        "javascript:alert(1)",
        "https://ex\nample.org/",
    ],
)
def test_addresses_that_lead_inside_or_nowhere_are_refused(url):
    with pytest.raises(ValidationError):
        check_address(url)


def test_a_public_address_is_taken():
    check_address("https://example.org/hook?a=1")
    check_address("http://93.184.216.34:8080/hook")


@pytest.mark.parametrize("inside", ["127.0.0.1", "10.0.0.7", "::1", "169.254.169.254"])
def test_a_name_that_leads_inside_is_refused_when_it_is_sent(project, monkeypatch, inside):
    """One private address among public ones is enough; none is connected to."""
    webhook = hook(project, "https://example.org/hook")
    tell(project.pk, "project.completed", {})
    found = [(2, 1, 6, "", (address, 443)) for address in ("93.184.216.34", inside)]
    monkeypatch.setattr(webhooks.socket, "getaddrinfo", lambda *_args, **_more: found)
    monkeypatch.setattr(webhooks.socket, "create_connection", None)  # would fail if it were called
    assert deliver_due() == 0
    assert "private network" in webhook.deliveries.get().error


@pytest.mark.parametrize(
    ("scheme", "head"),
    [("http", b""), ("https", b"\x16\x03\x03\x40\x00")],  # TLS: a record of 16 KB begins
)
def test_a_server_that_drips_is_hung_up_on(project, settings, monkeypatch, scheme, head):
    """A byte now and then would satisfy a timeout per read for ever."""
    import socket
    import time

    settings.PREFLOOP_WEBHOOK_PRIVATE = True
    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 0.6)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            peer, _address = server.accept()
            with peer:
                try:
                    peer.sendall(head)
                    for _ in range(50):
                        peer.send(b"H")
                        time.sleep(0.1)
                except OSError:
                    pass

        threading.Thread(target=drip, daemon=True).start()
        webhook = hook(project, f"{scheme}://127.0.0.1:{server.getsockname()[1]}/")
        tell(project.pk, "project.completed", {})
        began = time.monotonic()
        assert deliver_due() == 0
    assert time.monotonic() - began < 4
    assert webhook.deliveries.get().error


# --- pages and API ---------------------------------------------------------------------------


def test_a_lead_makes_a_webhook_whose_secret_is_shown_once(project, receiver, client):
    lead = MembershipFactory(project=project)
    client.force_login(lead.user)
    page = f"/projects/{project.slug}/webhooks/"
    refused = client.post(page, {"url": "http://10.0.0.1:x/", "events": ALL})
    assert refused.status_code == 422
    made = client.post(page, {"url": receiver.url, "events": ALL}).content.decode()
    webhook = Webhook.objects.get()
    secret = secret_of(webhook)
    assert made.count(secret) == 1
    assert secret not in client.get(page).content.decode()
    assert secret not in json.dumps(list(Change.objects.values("before", "after")))
    assert secret not in webhook.encrypted_secret
    client.post(f"{page}{webhook.pk}/test/")
    assert deliver_due() == 1
    assert receiver.got[0][0]["X-Prefloop-Event"] == "test"
    client.post(f"{page}{webhook.pk}/switch/")
    webhook.refresh_from_db()
    assert webhook.disabled_at is not None
    assert list(Change.objects.order_by("pk").values_list("action", flat=True)) == [
        "make webhook", "change webhook",
    ]  # fmt: skip


def test_the_list_of_webhooks_costs_the_same_at_one_and_three(project, client):
    client.force_login(MembershipFactory(project=project).user)
    page = f"/projects/{project.slug}/webhooks/"

    def n_queries() -> int:
        cache.clear()
        with CaptureQueriesContext(connection) as queries:
            assert client.get(page).status_code == 200
        return len(queries)

    hook(project, "https://example.org/1")
    one = n_queries()
    hook(project, "https://example.org/2")
    hook(project, "https://example.org/3")
    assert n_queries() == one


def test_the_api_makes_reads_changes_and_tests_webhooks(project, receiver):
    headers = bearer(MembershipFactory(project=project).user) | {"Idempotency-Key": "hook-1"}
    base = f"/api/projects/{project.slug}/webhooks/"

    def send(method: str, path: str, body: Any = None) -> Any:
        data = json.dumps(body) if body is not None else ""
        return Client().generic(method, path, data, "application/json", headers=headers)

    made = send("POST", base, {"url": receiver.url, "events": ["project.completed"]})
    assert (made.status_code, len(made.json()["secret"])) == (201, 64)
    assert made.json()["secret"] not in str(list(IdempotentRequest.objects.values()))
    headers.pop("Idempotency-Key")
    one = f"{base}{made.json()['id']}/"
    assert "secret" not in send("GET", one).json()
    test = send("POST", f"{one}test/").json()
    deliver_due()
    [logged] = send("GET", f"{one}deliveries/").json()["results"]
    assert (logged["id"], logged["status"], logged["n_tries"]) == (test["id"], 200, 1)
    assert send("POST", f"{one}deliveries/{test['id']}/send-again/").status_code == 202
    off = send("PATCH", one, {"disabled": True, "events": ["preference.created"]}).json()
    assert off["disabled_at"]
    assert off["events"] == ["preference.created"]
    assert deliver_due() == 0  # what waited is not sent any more
