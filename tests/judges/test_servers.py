"""Judge servers: who may allow them, where they may lead, their keys, and runs that ask them."""

import json
import logging
import re
import threading
import time
from contextlib import suppress
from io import StringIO

import pytest
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.db import connection
from django.urls import reverse

from judges.choosing import choose, settle
from judges.claims import budget_of
from judges.drift import notice_of
from judges.judging import judge_version
from judges.laboratory import new_experiment
from judges.ml.asking import EngineStopped
from judges.ml.config import JudgeRecipe
from judges.models import DriftCheck, Experiment, JudgeRun, JudgeServer, JudgeVersion
from judges.runs import new_run
from judges.servers import check_url, encrypted, key_of, server_engine
from judges.tasks import check_drift, run_judge, try_server
from labeling.models import Membership
from tests.factories import (
    ComparisonFactory,
    MembershipFactory,
    PreferenceFactory,
    ProjectFactory,
    RaterFactory,
    UserFactory,
)
from tests.judges.loopback import says, serving, sleeps, status, text_of

pytestmark = pytest.mark.django_db

KEY = "sk-very-secret-0123456789"
DIRECT = JudgeRecipe(mode="direct")
GIVEN = {
    "name": "Home",
    "url": "http://127.0.0.1:8000/v1",
    "max_concurrency": 4,
    "timeout_seconds": 60,
    "currency": "USD",
}


@pytest.fixture
def admin_client(client):
    client.force_login(UserFactory(is_superuser=True, is_staff=True))
    return client


@pytest.fixture
def quick(monkeypatch):
    """A server that fails is not waited for in tests."""
    from judges import servers

    plain = servers._server
    monkeypatch.setattr(
        servers,
        "_server",
        lambda *args, **more: plain(
            *args, **({"first_wait": 0.01, "longest_wait": 0.02, "n_tries": 2} | more)
        ),
    )


def allowed(url: str, **values) -> JudgeServer:
    return JudgeServer.objects.create(
        **{"name": "Home", "url": url, "in_own_network": True} | values
    )


def version_at(server: JudgeServer, n: int = 3, recipe: JudgeRecipe = DIRECT) -> JudgeVersion:
    project = ProjectFactory(slug="kitchen")
    ComparisonFactory.create_batch(n, project=project)
    return judge_version(project, "far", "tiny", recipe, server=server)[0]


def finished(version: JudgeVersion, **limits) -> JudgeRun:
    """A run as a worker carries it out, whatever comes of it."""
    run = new_run(version)
    JudgeRun.objects.filter(pk=run.pk).update(**limits)
    with suppress(EngineStopped):  # for the worker's log
        run_judge(run.pk)
    run.refresh_from_db()
    return run


# --- addresses -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/v1",
        "file:///etc/passwd",
        "http://169.254.169.254/v1",
        "http://[fd00:ec2::254]/v1",
        "http://100.100.100.200/v1",
        "http://[::ffff:169.254.169.254]/v1",
        "http://[64:ff9b::a9fe:a9fe]/v1",
        "http://0.0.0.0:8000/v1",
        "http://224.0.0.1/v1",
        "http://me:secret@example.org/v1",
        "http://example.org/v1?x=1",
        "http://example.org:0/v1",
        "http://exa mple.org/v1",
        "http://[",
        "v1",
    ],
)
def test_addresses_that_nobody_may_allow(url):
    for own in (True, False):
        with pytest.raises(ValidationError):
            check_url(url, in_own_network=own)


def test_an_inner_address_is_allowed_by_typing_it_in_and_a_name_by_saying_so():
    assert check_url("http://127.0.0.1:8000/v1", in_own_network=False)
    assert check_url("http://[::1]:8000/v1", in_own_network=False)
    assert check_url("http://10.0.0.7/v1", in_own_network=False)
    assert check_url("http://localhost:8000/v1", in_own_network=False)
    assert check_url("http://vllm:8000/v1", in_own_network=True)
    assert not check_url("http://vllm:8000/v1", in_own_network=False)
    assert not check_url("https://93.184.216.34/v1", in_own_network=False)


def test_a_public_name_that_turns_inward_is_not_followed(monkeypatch):
    """DNS rebinding: the name was public when it was allowed, and leads to loopback now."""
    from labeling import addresses

    with serving() as server:
        port = int(re.search(r":(\d+)/", server.url)[1])
        plain = addresses.socket.getaddrinfo
        monkeypatch.setattr(
            addresses.socket,
            "getaddrinfo",
            lambda host, *args, **more: plain(
                "127.0.0.1" if host == "judges.example" else host, *args, **more
            ),
        )
        public = allowed(f"http://judges.example:{port}/v1", in_own_network=False)
        with pytest.raises(
            EngineStopped, match=r"not allowed: 127\.0\.0\.1 lies in a private network"
        ):
            assert server_engine(public, "tiny", DIRECT).abilities
        own = allowed(f"http://judges.example:{port}/v1", name="own")
        assert server_engine(own, "tiny", DIRECT).abilities.n_top


# --- keys ------------------------------------------------------------------------------------


def test_a_key_is_stored_encrypted_for_one_address(settings):
    server = allowed(
        "https://api.example/v1", encrypted_key=encrypted(KEY, "https://api.example/v1")
    )
    assert KEY not in server.encrypted_key
    assert key_of(server) == KEY

    server.url = "https://elsewhere.example/v1"
    with pytest.raises(EngineStopped, match="given for another address"):
        key_of(server)

    server.url = "https://api.example:443/other"  # the same place
    assert key_of(server) == KEY
    settings.SECRET_KEY, old = "another-secret-of-this-installation", settings.SECRET_KEY
    with pytest.raises(EngineStopped, match="another SECRET_KEY"):
        key_of(server)
    settings.SECRET_KEY_FALLBACKS = [old]
    assert key_of(server) == KEY


def test_a_key_may_stay_in_the_environment(monkeypatch):
    server = allowed("https://api.example/v1", key_variable="PREFLOOP_JUDGE_KEY_HOME")
    with pytest.raises(EngineStopped, match=r"PREFLOOP_JUDGE_KEY_HOME, .* not set"):
        key_of(server)
    monkeypatch.setenv("PREFLOOP_JUDGE_KEY_HOME", f" {KEY}\n")
    assert key_of(server) == KEY
    monkeypatch.setenv("PREFLOOP_JUDGE_KEY_HOME", f"{KEY}\nX: 1")
    with pytest.raises(EngineStopped) as stopped:
        key_of(server)
    assert KEY not in str(stopped.value)


@pytest.mark.parametrize("name", ["SECRET_KEY", "DATABASE_URL", "PATH", "api_key", "A_API_KEY=x"])
def test_other_variables_are_no_keys(admin_client, name):
    page = admin_client.post(reverse("judges:allow_server"), GIVEN | {"key_variable": name})
    assert page.status_code == 422
    assert not JudgeServer.objects.exists()


def test_a_key_is_never_shown_or_logged_again(admin_client, caplog, quick):
    """Typed in, used by a run and a trial, refused by the server: it appears nowhere."""
    caplog.set_level(logging.DEBUG)
    with serving(key="another") as told:
        admin_client.post(reverse("judges:allow_server"), GIVEN | {"url": told.url, "key": KEY})
        server = JudgeServer.objects.get()
        assert key_of(server) == KEY
        version = version_at(server)
        run = finished(version)
        admin_client.post(reverse("judges:try_server", args=[server.pk]))
        try_server(server.pk)
        server.refresh_from_db()
    assert "refuses the key (401)" in run.error
    assert "refuses the key (401)" in server.trial["problem"]

    slug, pk = version.judge.project.slug, server.pk
    seen = [caplog.text, run.error, str(server.trial), repr(server.__dict__)]
    for path in (
        reverse("judges:servers"),
        reverse("judges:server", args=[pk]),
        reverse("judges:change_server", args=[pk]),
        reverse("judges:judge", args=[slug, version.judge_id]),
        reverse("judges:run", args=[slug, run.pk]),
        reverse("admin:judges_judgeversion_change", args=[version.pk]),
        reverse("admin:index"),
        f"/api/projects/{slug}/judges/",
        f"/api/projects/{slug}/judge-runs/{run.pk}/",
    ):
        page = admin_client.get(path)
        assert page.status_code == 200, path
        seen.append(page.content.decode())
    # A form that is refused does not give the key back either.
    wrong = {"name": "", "url": told.url, "key": KEY}
    page = admin_client.post(reverse("judges:change_server", args=[pk]), GIVEN | wrong)
    assert page.status_code == 422
    seen.append(page.content.decode())
    out = StringIO()
    call_command("dumpdata", "judges", stdout=out)
    seen.append(out.getvalue())
    assert [text for text in seen if KEY in text] == []
    assert [text for text in seen[:-1] if server.encrypted_key in text][1:] == []


def test_a_new_address_needs_its_key_anew(admin_client):
    admin_client.post(reverse("judges:allow_server"), GIVEN | {"key": KEY})
    server = JudgeServer.objects.get()
    moved = GIVEN | {"url": "https://elsewhere.example/v1"}

    page = admin_client.post(reverse("judges:change_server", args=[server.pk]), moved)
    assert page.status_code == 422
    assert "type it again" in page.content.decode()
    server.refresh_from_db()
    assert server.url == GIVEN["url"]

    admin_client.post(
        reverse("judges:change_server", args=[server.pk]), moved | {"forget_key": "on"}
    )
    server.refresh_from_db()
    assert (server.url, server.encrypted_key) == (moved["url"], "")
    assert not server.in_own_network


# --- pages -----------------------------------------------------------------------------------


def test_an_administrator_allows_tries_and_removes_a_server(admin_client, quick):
    with serving(probs={" yes": 0.75, " no": 0.2, "I": 0.05}, models=("tiny", "large")) as told:
        admin_client.post(reverse("judges:allow_server"), GIVEN | {"url": told.url})
        server = JudgeServer.objects.get()
        assert server.in_own_network
        admin_client.post(reverse("judges:try_server", args=[server.pk]))
        assert (
            "Waiting for a worker"
            in admin_client.get(reverse("judges:server", args=[server.pk])).content.decode()
        )
        try_server(server.pk)

    page = admin_client.get(reverse("judges:server", args=[server.pk])).content.decode()
    assert "0.7500" in page
    assert "tiny, large" in page
    assert "log-probabilities, 3 tokens named" in page
    assert "answered" in admin_client.get(reverse("judges:servers")).content.decode()

    admin_client.post(reverse("judges:remove_server", args=[server.pk]))
    assert not JudgeServer.objects.exists()


def test_a_trial_that_fails_says_why(admin_client, quick):
    server = allowed("http://127.0.0.1:9/v1")
    admin_client.post(reverse("judges:try_server", args=[server.pk]), {"model": "tiny"})
    try_server(server.pk)
    page = admin_client.get(reverse("judges:server", args=[server.pk])).content.decode()
    assert "Home does not answer: nothing listens at its address" in page


def test_a_server_that_judges_were_made_with_stays(admin_client):
    server = allowed("http://127.0.0.1:9/v1")
    version_at(server, 0)
    page = admin_client.post(reverse("judges:remove_server", args=[server.pk]), follow=True)
    assert "Judges were made with this server" in page.content.decode()
    assert JudgeServer.objects.exists()


def test_a_lead_chooses_among_the_servers_that_are_allowed(client):
    project = ProjectFactory(slug="kitchen")
    client.force_login(MembershipFactory(project=project, role=Membership.Role.LEAD).user)
    form = reverse("judges:create", args=["kitchen"])
    assert 'name="server"' not in client.get(form).content.decode()

    server = allowed("http://127.0.0.1:9/v1")
    page = client.get(form)
    assert 'name="server"' in page.content.decode()
    values = {
        name: value for name, value in page.context["form"].initial.items() if value is not None
    }
    client.post(form, values | {"name": "far", "model": "/models/any name", "server": server.pk})
    version = JudgeVersion.objects.get()
    assert (version.server, version.model) == (server, "/models/any name")


# --- runs ------------------------------------------------------------------------------------


def test_a_run_asks_the_server_and_keeps_what_it_cost():
    with serving() as told:
        version = version_at(allowed(told.url, price_read=1.0, price_written=2.0))
        run = finished(version)
    verdicts = list(version.verdicts.all())
    assert run.status == "succeeded", run.error
    assert len(verdicts) == 3
    assert all(verdict.prob_a == pytest.approx(0.5) for verdict in verdicts)
    assert all(verdict.cost > 0 and verdict.n_tokens > 0 for verdict in verdicts)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        (status(401), "refuses the key (401)"),
        (status(429, retry_after="3600"), "limits the rate of requests (429)"),
        (says(b'{"choices": [{"te'), "an answer that is cut off or no JSON"),
        (sleeps(3), "did not answer within 1 seconds"),
        (status(404, "no such model"), "does not know the model"),
    ],
)
def test_a_failure_is_a_clear_line_and_loses_nothing(client, quick, fault, line):
    with serving() as told:
        server = allowed(told.url, timeout_seconds=1, max_concurrency=1)
        version = version_at(server, 4)
        answered = []

        def fails_after_four(text: str):
            answered.append(text)
            return fault if len(answered) > 4 else None

        told.for_question = fails_after_four
        run = finished(version)
        assert line in run.error
        n_kept = version.verdicts.count()
        assert n_kept == version.verdicts.filter(parsed=True).count() >= 1

        client.force_login(UserFactory(is_superuser=True))
        page = client.get(reverse("judges:run", args=["kitchen", run.pk])).content.decode()
        assert line in page
        told.for_question = lambda _text: None
        told.asked.clear()
        run.resume()
        run_judge(run.pk)
    run.refresh_from_db()
    assert run.status == "succeeded", run.error
    assert version.verdicts.count() == 4
    assert len(told.asked) == 2 * (4 - n_kept)  # what has a verdict is not asked again


def test_what_the_server_made_the_run_go_through_is_said(client, quick):
    """Over all starts of the run: rate limits, requests sent again, answers it did not name."""
    with serving(probs={"1": 0.9, "The": 0.07}) as told:
        told.faults.extend([status(429), None, status(500), None, says(b"{")])
        version = version_at(allowed(told.url, max_concurrency=1), 2)
        run = new_run(version)
        out = StringIO()
        call_command("judge", "--project", "kitchen", "--judge", "far", "--json", stdout=out)
    met = {"rate_limited": 1, "retried": 2, "lost_answers": 1, "bounded_answers": 4}
    printed = json.loads(out.getvalue())
    assert {name: printed[name] for name in met} == met
    assert printed["out_of_memory"] == 0

    client.force_login(UserFactory(is_superuser=True))
    page = client.get(reverse("judges:run", args=["kitchen", run.pk])).content.decode()
    assert "The server limited the rate 1 time, and was waited for." in page
    assert "2 requests to the server failed and were sent again." in page
    assert "1 answer was lost on its way" in page
    assert "4 answers were not among the tokens that the server names" in page
    assert "Memory ran out" not in page
    progress = client.get(f"/api/projects/kitchen/judge-runs/{run.pk}/").json()["progress"]
    assert {name: progress[name] for name in met} == met


def test_a_run_stops_before_it_exceeds_its_budget():
    with serving() as told:
        version = version_at(allowed(told.url, max_concurrency=2), 40)
        run = finished(version, most_tokens=4_000)
        assert run.status == "paused"
        assert "its limit of 4,000 tokens" in run.error
        assert 0 < version.verdicts.count() < 40
        assert told.n_tokens <= 4_000
    left = budget_of(JudgeRun.objects.get(pk=run.pk))
    assert left.spent_tokens == sum(version.verdicts.values_list("n_tokens", flat=True))


# --- stopping while the server is silent -----------------------------------------------------


def asked_to_stop(version: JudgeVersion, how: str, when, *, in_main_thread: bool):
    """A run whose worker was asked to stop when `when` said so; and the seconds it took."""
    run, began = new_run(version), []

    def ask() -> None:
        while not when():
            time.sleep(0.02)
        began.append(time.monotonic())
        getattr(JudgeRun.objects.get(pk=run.pk), how)()
        connection.close()

    def work() -> None:
        run_judge(run.pk)
        connection.close()

    other = threading.Thread(target=ask if in_main_thread else work)
    other.start()
    (work if in_main_thread else ask)()
    other.join(timeout=30)
    took = time.monotonic() - began[0]
    run.refresh_from_db()
    return run, took


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("how", "in_main_thread"),
    [("request_pause", True), ("request_cancel", True), ("request_cancel", False)],
)
def test_a_run_that_waits_for_a_rate_limit_stops_within_two_seconds(how, in_main_thread):
    with serving() as told:
        version = version_at(allowed(told.url, max_concurrency=2), 6)
        told.for_question = lambda _text: (
            status(429, retry_after="25") if len(told.asked) > 4 else None
        )
        run, took = asked_to_stop(
            version, how, lambda: len(told.asked) > 5, in_main_thread=in_main_thread
        )
    assert took < 2
    assert run.status == {"request_pause": "paused", "request_cancel": "cancelled"}[how]
    assert run.error == ""
    assert version.verdicts.count() == run.n_done == 2  # what was answered before is kept
    assert run.workers.get().troubles["rate_limited"] == 2
    assert not run.claims.exists()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("in_main_thread", [True, False])
def test_cancelling_hangs_up_on_a_slow_server(in_main_thread):
    with serving() as told:
        version = version_at(allowed(told.url, max_concurrency=2), 6)
        told.always = sleeps(8)
        run, took = asked_to_stop(
            version, "request_cancel", lambda: len(told.asked) == 2, in_main_thread=in_main_thread
        )
        n_asked = len(told.asked)
    assert took < 2
    assert (run.status, n_asked) == ("cancelled", 2)


@pytest.mark.django_db(transaction=True)
def test_a_pause_waits_for_what_a_slow_server_has_been_asked_and_asks_no_more():
    with serving() as told:
        version = version_at(allowed(told.url, max_concurrency=2), 6)
        told.always = sleeps(2)
        run, _took = asked_to_stop(
            version, "request_pause", lambda: len(told.asked) == 2, in_main_thread=True
        )
    assert (run.status, run.n_done, len(told.asked)) == ("paused", 1, 2)


def test_cancelling_an_experiment_cancels_the_run_that_it_is_at():
    version = version_at(allowed("http://127.0.0.1:9/v1"), 0)
    PreferenceFactory(
        comparison=ComparisonFactory(project=version.judge.project),
        rater=RaterFactory(project=version.judge.project),
    )
    experiment = new_experiment(version.judge.project, "first", [version])
    Experiment.objects.filter(pk=experiment.pk).update(status="running")
    run = new_run(version, counts=False)
    experiment.cells.update(run=run)

    experiment.request_cancel()

    run.refresh_from_db()
    assert (experiment.cancel_requested, run.status) == (True, "cancelled")


# --- another model behind the same name ------------------------------------------------------


def chosen_at(told) -> JudgeVersion:
    """The project's judge, at work on this server; its probe is of its first 12 answers."""
    version = version_at(allowed(told.url), 12)
    assert finished(version).status == "succeeded"
    choose(version, user=UserFactory())
    settle(version)
    assert len(version.probe.answers) == 12
    return version


def one_more(version: JudgeVersion) -> JudgeRun:
    ComparisonFactory(project=version.judge.project)
    return finished(version)


def test_a_server_whose_model_changes_is_asked_again_and_noticed():
    with serving(system_fingerprint="fp_1") as told:
        version = chosen_at(told)
        project = version.judge.project
        one_more(version)
        assert not DriftCheck.objects.exists()  # nothing has changed

        told.system_fingerprint, told.probs = "fp_2", {"1": 0.3, " 2": 0.6, "The": 0.05}
        one_more(version)
        one_more(version)
        check = DriftCheck.objects.get()  # once
        assert (check.status, check.reason) == ("queued", DriftCheck.Reason.CHANGED)
        assert notice_of(project) is None
        check_drift(check.pk)
        one_more(version)  # what was looked at is known
    check = DriftCheck.objects.get()
    assert (check.status, check.result["n"]) == ("succeeded", 12)
    assert check.result["drifted"]
    assert notice_of(project) == check
    assert check.told != version.probe.told
    assert "fp_2" not in str(check.told)


def test_a_model_that_answers_as_before_raises_no_notice_and_what_the_server_lists_counts():
    with serving(listed={"root": "/models/one", "max_model_len": 4096}) as told:
        version = chosen_at(told)
        told.listed = {"root": "/models/one", "max_model_len": 8192}  # a setting, no other model
        one_more(version)
        assert not DriftCheck.objects.exists()

        told.listed = {"root": "/models/two"}
        one_more(version)
        check = DriftCheck.objects.get()
        check_drift(check.pk)
        told.listed = {"root": "/models/one"}  # back again: known
        one_more(version)
    check = DriftCheck.objects.get()
    assert (check.status, check.result["n_moved"]) == ("succeeded", 0)
    assert notice_of(version.judge.project) is None


def test_a_jury_is_checked_by_asking_its_members_anew():
    with serving(system_fingerprint="fp_1") as told:
        server = allowed(told.url, max_concurrency=1)
        members = [version_at(server, 12)]
        project = members[0].judge.project
        members.append(judge_version(project, "again", "tiny", DIRECT, server=server)[0])
        recipe = JudgeRecipe(mode="jury", members=tuple(one.pk for one in members))
        version = judge_version(project, "jury", "", recipe)[0]
        assert finished(version).status == "succeeded"
        choose(version, user=UserFactory())
        settle(version)

        def prefers_a(handler, payload) -> None:
            """Whichever is shown first; A was made before B."""
            first, second = re.findall(r"Answer (\d+)\.", text_of(payload))
            likely, other = ("1", "2") if int(first) < int(second) else ("2", "1")
            told.probs = {likely: 0.8, other: 0.1}
            handler.answer(payload)

        told.system_fingerprint, told.always = "fp_2", prefers_a
        one_more(version)
        check = DriftCheck.objects.get()
        check_drift(check.pk)
    check.refresh_from_db()
    assert (check.status, check.result["n_moved"]) == ("succeeded", 12)
    assert notice_of(project) == check
    assert [one.verdicts.count() for one in members] == [13, 13]  # nothing of the check is kept


def test_a_server_started_anew_is_noticed_in_the_middle_of_a_run(monkeypatch):
    """Its list of models is looked at again between two stretches of a run."""
    monkeypatch.setattr("judges.claims.WINDOW", 2)
    monkeypatch.setattr("judges.ml.server.LIST_AGAIN_AFTER", 0.0)
    with serving(listed={"root": "/models/one"}) as told:
        version = chosen_at(told)
        ComparisonFactory.create_batch(6, project=version.judge.project)
        told.asked.clear()

        def another_after_four(_text: str):
            if len(told.asked) > 4:
                told.listed = {"root": "/models/two"}

        told.for_question = another_after_four
        finished(version)
    assert DriftCheck.objects.get().reason == DriftCheck.Reason.CHANGED
    listed = [verdict.raw["server_told"] for verdict in version.verdicts.order_by("pk")]
    assert listed[0] != listed[-1]


def test_a_judge_on_a_server_needs_no_torch():
    import subprocess
    import sys

    code = "import judges.ml.server, sys; print({'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
