"""An installation under load while its parts are killed; prints what is left, as JSON.

    python -m tests.faults.scenario [--seconds 20] [--raters 6] [--seed 1] …

Raters answer over HTTP as the page does: what is not acknowledged they send again with the same
key, to the other web server if the first one is away. A lead has a judge run, a training run and an
agreement report, and presses "Resume" where a page offers it. Faults come at moments drawn from the
seed. After the last one the raters go on until nothing is left or their time is over, the jobs
until they have ended. Used by the fault tests and, for ten minutes, by tests/bench/soak.py.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import re
import secrets
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults import weighing
from tests.faults.rig import Rig

GIVE_UP_SECONDS = 90.0
"""Nothing may take longer than this to go on after the last fault."""
WEIGH_SECONDS = 3.0
N_LABELED = 24
N_LABELS = 2


def main(arguments: list[str] | None = None) -> None:
    print(json.dumps(play(arguments)))


def play(arguments: list[str] | None = None) -> dict[str, Any]:
    """Play the scenario in this process, which has done nothing else: what is left at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="of load with faults")
    parser.add_argument("--raters", type=int, default=6)
    parser.add_argument("--thinking", type=float, default=0.4, help="seconds of a rater for a pair")
    parser.add_argument("--comparisons", type=int, default=400)
    parser.add_argument("--steps", type=int, default=120, help="of the training run")
    parser.add_argument(
        "--faults", type=int, default=9, help="one of each kind, then at random; 0: none"
    )
    parser.add_argument("--heartbeat", type=int, default=2)
    parser.add_argument("--disk", type=int, default=350, metavar="MB")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", default="", help="folder to keep what the programs said in")
    parser.add_argument("--finish", type=float, default=0.0, help="seconds more for long jobs")
    parser.add_argument("--judge-model", default="", help="folder; else a tiny one is made")
    parser.add_argument("--base-model", default="", help="folder; else a tiny one is made")
    parser.add_argument("--judged", type=int, default=40, help="comparisons of a judge run")
    parser.add_argument("--rationale", type=int, default=24, help="most tokens of a reason")
    parser.add_argument(
        "--again", action="store_true", help="start the next run where one succeeded; leave work"
    )
    options = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="prefloop-faults-") as folder,
        Rig(Path(folder), disk_megabytes=options.disk, heartbeat_seconds=options.heartbeat) as rig,
    ):
        try:
            return Scenario(rig, options).play()
        except BaseException:
            print(rig.last_lines(), file=sys.stderr)
            raise
        finally:
            if options.logs:
                rig.keep_logs(Path(options.logs))


class Scenario:
    def __init__(self, rig: Rig, options: argparse.Namespace) -> None:
        self.rig, self.options = rig, options
        self.chance = random.Random(options.seed)
        self.began = time.time()
        self.said: list[str] = []
        self.kills: dict[tuple[str, int], float] = {}
        """When the worker of a running job was killed: (kind, key) -> time."""
        self.lost_after: list[dict[str, Any]] = []
        self.offers: list[dict[str, Any]] = []
        self.load_over, self.faults_over = threading.Event(), threading.Event()
        self.memory: list[weighing.Row] = []

    def say(self, words: str) -> None:
        line = f"{time.time() - self.began:6.1f} s  {words}"
        self.said.append(line)
        print(line, file=sys.stderr, flush=True)

    def play(self) -> dict[str, Any]:
        os.environ.update(self.rig.environment)
        import django

        django.setup()
        from django.core.management import call_command

        call_command("migrate", verbosity=0)
        self.rig.start_application()
        self.prepare()
        self.wait_until_served()
        self.say("served")
        raters = self.begin_load()
        self.begin_jobs()
        helpers = [
            threading.Thread(target=self.lead, daemon=True),
            threading.Thread(target=self.weigh, daemon=True),
        ]
        for helper in helpers:
            helper.start()
        self.faults()
        self.faults_over.set()
        self.say("no more faults")
        for rater in raters:
            rater.to_the_end = not self.options.again
            rater.hurry.set()
        deadline = time.time() + GIVE_UP_SECONDS
        for rater in raters:
            rater.join(max(0.1, deadline - time.time()))
        stuck = sum(rater.is_alive() for rater in raters)
        self.say(f"raters ended, {stuck} of them stuck")
        deadline += self.options.finish
        while self.unfinished() and time.time() < deadline:
            time.sleep(0.3)
        self.load_over.set()
        for helper in helpers:
            helper.join(10)
        self.say("jobs ended")
        return self.facts(raters) | {"stuck_raters": stuck}

    # --- what there is to do -------------------------------------------------------------------

    def prepare(self) -> None:
        from django.contrib.auth import get_user_model

        from labeling.models import Membership
        from tests.bench.labeling import make_project, make_raters
        from tests.factories import ComparisonFactory, ProjectFactory
        from tests.training.projects import labeled_project

        make_project(self.options.comparisons, N_LABELS, "rush")
        self.sessions = make_raters(self.options.raters, "rush")
        self.judge_model, self.base_model = self.models()
        lead = get_user_model().objects.create(username="lead")
        kitchen = ProjectFactory(slug="kitchen")
        ComparisonFactory.create_batch(self.options.judged, project=kitchen)
        polite = labeled_project(N_LABELED)
        for project in (kitchen, polite):
            Membership.objects.create(project=project, user=lead, role=Membership.Role.LEAD)
        self.kitchen, self.polite = kitchen, polite
        self.lead_session = signed_in(lead)

    def models(self) -> tuple[str, str]:
        judge, base = self.options.judge_model, self.options.base_model
        if not judge:
            from tests.judges.conftest import save_tiny_llama

            judge = str(self.rig.folder.parent / "tiny-judge")
            save_tiny_llama(Path(judge))
        if not base:
            from tests.training.tiny import save_tiny_model

            base = str(save_tiny_model(self.rig.folder.parent / "tiny-base"))
        return judge, base

    def wait_until_served(self) -> None:
        for port in self.rig.ports:
            wait_for(lambda port=port: ask(port, "GET", "/healthz")[0] == 200, 60)

    def begin_load(self) -> list["Rater"]:
        raters = [
            Rater(self.rig.ports, "rush", session, self.options.thinking)
            for session in self.sessions
        ]
        for rater in raters:
            rater.start()
            rater.begin.set()
        return raters

    def begin_jobs(self) -> None:
        from labeling.models import AgreementReport, Project

        self.judge_run = self.begin_judging()
        self.run = self.begin_training()
        self.report = AgreementReport.objects.create(project=Project.objects.get(slug="rush"))
        self.report.enqueue()
        self.say(f"judge run {self.judge_run.pk}, run {self.run.pk}, report {self.report.pk}")

    def begin_judging(self) -> Any:
        from judges.judging import judge_version
        from judges.ml.config import JudgeRecipe
        from judges.models import JudgeRun
        from judges.runs import new_run

        # Another seed is another version, which has judged nothing yet.
        seed = JudgeRun.objects.count()
        recipe = JudgeRecipe(
            max_rationale_tokens=self.options.rationale, min_answer_mass=0.0, seed=seed
        )
        version, _made = judge_version(self.kitchen, "tiny", self.judge_model, recipe)
        run = new_run(version)
        run.enqueue()
        return run

    def next_jobs(self) -> None:
        """Where a run has succeeded, start another one."""
        for job in (self.judge_run, self.run):
            job.refresh_from_db()
        if self.judge_run.status == "succeeded":
            self.judge_run = self.begin_judging()
        if self.run.status == "succeeded":
            self.run = self.begin_training()

    def begin_training(self) -> Any:
        from training.runs import start_run

        settings = {"max_steps": self.options.steps, "batch_size": 4, "lora_rank": 2}
        settings |= {"dtype": "float32", "checkpoint_every": max(5, self.options.steps // 12)}
        return start_run(
            self.polite,
            kind="reward",
            base_model=self.base_model,
            recipe_settings=settings,
            test_share=0.3,
        )

    # --- the lead, who looks and presses "Resume" ----------------------------------------------

    def jobs(self) -> list[Any]:
        from judges.models import JudgeRun
        from labeling.models import AgreementReport
        from training.models import Run

        return [job for kind in (JudgeRun, Run, AgreementReport) for job in kind.objects.all()]

    def lead(self) -> None:
        """Notice lost jobs, and resume what has stopped by the button of its page."""
        from labeling.jobs import Job

        while not self.load_over.wait(0.5):
            for job in self.patiently(self.jobs):
                key = (type(job).__name__, job.pk)
                if job.status == Job.Status.LOST and key in self.kills:
                    seconds = time.time() - self.kills.pop(key)
                    self.lost_after.append({"job": key[0], "seconds": round(seconds, 1)})
                    self.say(f"{key[0]} {job.pk} is seen as lost after {seconds:.1f} s")
                if job.can_resume:
                    self.resume(job)
            # Long jobs that begin late would not end with the rest.
            if self.options.again and time.time() < self.began + 0.6 * self.options.seconds:
                self.patiently(self.next_jobs)
        self.forget_connection()

    def resume(self, job: Any) -> None:
        from labeling.models import AgreementReport

        if isinstance(job, AgreementReport):
            self.patiently(job.resume)
            return
        app = "judges" if type(job).__name__ == "JudgeRun" else "training"
        slug = "kitchen" if app == "judges" else "polite"
        path = f"/projects/{slug}/{app}/runs/{job.pk}/"
        cookies = {"sessionid": self.lead_session, "csrftoken": "c" * 32}
        port = self.chance.choice(self.rig.ports)
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, page = ask(port, "GET", path, cookies=cookies)
            if status != 200:
                return
            offers = f'action="{path}resume/"' in page
            says = "note bad" in page or "note warn" in page
            if not offers and f"/runs/{job.pk}/cancel/" in page:
                return  # it waits or works again
            self.offers.append(
                {"job": type(job).__name__, "status": job.status, "offers": offers, "says": says,
                 "error": job.error}
            )  # fmt: skip
            status, _page = ask(port, "POST", path + "resume/", cookies=cookies, body={"x": ""})
            self.say(f"{type(job).__name__} {job.pk} was {job.status}: resumed ({status})")

    def patiently(self, do: Callable[[], Any]) -> Any:
        """Do something with the database, which may be away at the moment."""
        from django.db import DatabaseError, connection

        deadline = time.time() + 60
        while True:
            try:
                return do()
            except DatabaseError:
                connection.close()
                if time.time() > deadline:
                    raise
                time.sleep(0.3)

    def forget_connection(self) -> None:
        from django.db import connection

        connection.close()

    def unfinished(self) -> list[Any]:
        return [job for job in self.patiently(self.jobs) if job.status != "succeeded"]

    # --- faults --------------------------------------------------------------------------------

    def faults(self) -> None:
        """One of each kind, then more at random, all within the given seconds; none where none is
        wanted."""
        if not self.options.faults:
            time.sleep(self.options.seconds)
            return
        kinds: dict[str, Callable[[], Any]] = {
            "messages dropped": self.drop_messages,
            "judge's worker killed": lambda: self.kill_worker_of("judge_run"),
            "trainer killed": lambda: self.kill_worker_of("run"),
            "broker killed": lambda: self.kill("redis"),
            "web killed": lambda: self.kill(self.chance.choice(["web-1", "web-2"])),
            "leases expired": self.expire_leases,
            "database killed": self.rig.kill_database,
            "workers killed": self.kill_workers,
            "tasks delivered twice": self.deliver_twice,
            "disk full": self.fill_disk,
            "database restarted": self.rig.restart_database,
        }
        first = list(kinds)
        order = first + [self.chance.choice(first) for _n in range(self.options.faults)]
        order = order[: max(len(first), self.options.faults)]
        pause = self.options.seconds / len(order)
        for kind in order:
            began = time.time()
            time.sleep(pause * self.chance.uniform(0.2, 0.8))
            self.say(kind)
            self.counted[kind] += 1
            self.patiently(kinds[kind])
            time.sleep(max(0.0, began + pause - time.time()))

    counted: Counter[str] = Counter()
    disk_filled = 0

    def kill(self, name: str) -> None:
        self.rig.kill(name)

    def kill_worker_of(self, which: str) -> None:
        """The worker that has this run; if none has it yet, wait until one does, and if it has
        ended, begin the next one."""
        self.next_jobs()
        job = getattr(self, which)
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: self.is_at_work(job), 15)
        if job.status != "running":
            self.say(f"no worker to kill: {which} is {job.status}")
            return
        name = self.program_of(int(job.worker.split(":")[1]))
        if name is None:
            return
        self.kills[type(job).__name__, job.pk] = time.time()
        self.rig.kill(name)

    def is_taken(self, job: Any) -> bool:
        self.patiently(job.refresh_from_db)
        return job.status != "queued"

    def is_at_work(self, job: Any) -> bool:
        from judges.models import JudgeRun

        self.patiently(job.refresh_from_db)
        if isinstance(job, JudgeRun):  # a tiny one is done with its first batch
            asking = job.workers.present().exclude(asking_since=None)
            return job.status == "running" and bool(self.patiently(asking.exists))
        return job.status == "running" and job.n_done > 0

    def program_of(self, pid: int) -> str | None:
        """The program in whose group this process is."""
        with contextlib.suppress(ProcessLookupError):
            group = os.getpgid(pid)
            for program in self.rig.programs.values():
                if program.process and program.process.pid == group:
                    return program.name
        return None

    def kill_workers(self) -> None:
        for name in ("worker", "sweep"):
            self.rig.kill(name)

    def drop_messages(self) -> None:
        """Have messages in the queue, and drop them: the sweep has to send them again."""
        from labeling.models import AgreementReport

        for job in (self.judge_run, self.run):
            with contextlib.suppress(TimeoutError):
                wait_for(lambda job=job: self.is_taken(job), 20)
        AgreementReport.objects.create(project_id=self.report.project_id)
        self.rig.forget_messages()

    def deliver_twice(self) -> None:
        from judges.tasks import run_judge
        from labeling.tasks import run_agreement
        from training.tasks import train

        for _time in range(2):
            run_judge.delay(self.judge_run.pk)
            train.delay(self.run.pk)
            run_agreement.delay(self.report.pk)

    def expire_leases(self) -> None:
        """The clocks of half of all leases run out, while their raters think."""
        from django.utils import timezone

        from labeling.models import Assignment

        held = Assignment.objects.filter(state=Assignment.State.LEASED)
        pks = [pk for pk in held.values_list("pk", flat=True) if self.chance.random() < 0.5]
        held.filter(pk__in=pks).update(expires_at=timezone.now())

    def fill_disk(self) -> None:
        if self.rig.disk.why_not:
            return
        self.disk_filled += self.rig.fill_disk(2.0)

    # --- memory --------------------------------------------------------------------------------

    def weigh(self) -> None:
        """As long as raters answer: a server that rests is flat by itself."""
        while not self.faults_over.wait(WEIGH_SECONDS):
            self.memory += weighing.weigh(self.rig, round(time.time() - self.began, 1))

    # --- what is left --------------------------------------------------------------------------

    def facts(self, raters: list["Rater"]) -> dict[str, Any]:
        from django.db.models import Count, F, Q

        from judges.models import Claim, JudgeRun, Verdict
        from labeling.models import Assignment, Comparison, Preference, RepeatAnswer
        from training.models import ModelVersion, Run

        acknowledged = {key: sent for rater in raters for key, sent in rater.acknowledged.items()}
        sent = {key for rater in raters for key in rater.sent}
        given = Assignment.objects.filter(pk__in=[s[0] for s in acknowledged.values()])
        assignments = given.in_bulk()
        rows: Counter[tuple[int, int]] = Counter()
        choices: dict[tuple[int, int], str] = {}
        current = Preference.objects.current().filter(comparison__project__slug="rush")
        for comparison, rater, choice in current.values_list("comparison", "rater", "choice"):
            rows[comparison, rater] += 1
            choices[comparison, rater] = choice
        repeats = Counter(RepeatAnswer.objects.values_list("assignment", flat=True))
        lost, doubled, wrong = [], [], []
        for key, (pk, answer) in acknowledged.items():
            row = assignments.get(pk)
            if row is None or row.answer_key != key:
                lost.append(pk)
                continue
            place = row.comparison_id, row.rater_id
            n = repeats[pk] if row.repeats_id else rows[place]
            if n == 0:
                lost.append(pk)
            elif n > 1:
                doubled.append(pk)
            elif not row.repeats_id and choices[place] != chosen(answer, row.shown_first):
                wrong.append(pk)
        answered = Assignment.objects.filter(state=Assignment.State.ANSWERED)
        never_sent = [k for k in answered.values_list("answer_key", flat=True) if k not in sent]
        over = (
            Comparison.objects.annotate(
                n=Count(
                    "preferences",
                    filter=Q(preferences__superseded_at=None, preferences__rater__kind="person"),
                )
            )
            .filter(n__gt=F("labels_wanted"), project__slug="rush")
            .count()
        )
        wrong_places = [
            c.pk
            for c in Comparison.objects.filter(project__slug="rush").annotate(
                n=Count("preferences", filter=Q(preferences__superseded_at=None), distinct=True),
                held=Count(
                    "assignments",
                    filter=Q(assignments__state="leased", assignments__repeats=None),
                    distinct=True,
                ),
            )
            if c.open_places != max(0, c.labels_wanted - c.n - c.held)
        ]
        verdicts = Counter(Verdict.objects.values_list("version", "comparison"))
        labels = Counter(
            Preference.objects.current()
            .filter(rater__kind="judge")
            .values_list("rater", "comparison")
        )
        return {
            "seconds": round(time.time() - self.began, 1),
            "faults": dict(self.counted),
            "disk": self.rig.disk.why_not,
            "disk_filled": self.disk_filled,
            "kills": {p.name: p.n_kills for p in self.rig.programs.values()},
            "starts": {p.name: len(p.started_at) for p in self.rig.programs.values()},
            "acknowledged": len(acknowledged),
            "sent_again": sum(rater.sent_again for rater in raters),
            "refused": sum(len(rater.refused) for rater in raters),
            "refusals": Counter(r for rater in raters for r in rater.refused),
            "errors": Counter(e for rater in raters for e in rater.errors),
            "slowest": round(max(rater.slowest for rater in raters), 1),
            "lost": lost,
            "doubled": doubled,
            "wrong": wrong,
            "never_sent": never_sent,
            "over": over,
            "wrong_places": wrong_places,
            "open": Comparison.objects.filter(project__slug="rush", open_places__gt=0).count(),
            "held": Assignment.objects.filter(state="leased").count(),
            "jobs": [
                [type(j).__name__, j.pk, j.status, j.n_done, j.n_total, j.error]
                for j in self.jobs()
            ],
            "judge_runs": list(JudgeRun.objects.values_list("status", "n_done", "n_total")),
            "verdicts": len(verdicts),
            "verdicts_doubled": sum(n > 1 for n in verdicts.values()),
            "judge_labels": len(labels),
            "judge_labels_doubled": sum(n > 1 for n in labels.values()),
            "n_judged": self.options.judged * JudgeRun.objects.count(),
            "claims": Claim.objects.count(),
            "models": ModelVersion.objects.filter(run__isnull=False).count(),
            "runs": Run.objects.count(),
            "steps": list(Run.objects.values_list("n_done", flat=True)),
            "steps_doubled": steps_doubled(),
            "lost_after": self.lost_after,
            "offers": self.offers,
            "memory": self.memory,
            "story": self.said,
        }


def steps_doubled() -> int:
    from django.db.models import Count

    from training.models import RunStep

    rows = RunStep.objects.values("run", "step", "split").annotate(n=Count("pk"))
    return rows.filter(n__gt=1).count()


def chosen(answer: str, shown_first: str) -> str:
    """The choice that a button of the page stands for: "left-2" is the response shown first."""
    place = answer.split("-")[0]
    if place == "tie":
        return "tie"
    other = "b" if shown_first == "a" else "a"
    return shown_first if place == "left" else other


def signed_in(user: Any) -> str:
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.sessions.backends.db import SessionStore

    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.save()
    return session.session_key


def ask(
    port: int,
    method: str,
    path: str,
    *,
    cookies: dict[str, str] | None = None,
    body: dict[str, str] | None = None,
    fragment: bool = False,
) -> tuple[int, str]:
    """(status, page). Status 0: nobody answered."""
    from urllib.parse import urlencode

    headers = {"Cookie": "; ".join(f"{k}={v}" for k, v in (cookies or {}).items())}
    if fragment:
        headers["HX-Request"] = "true"
    data = None
    if body is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
        headers["X-CSRFToken"] = (cookies or {}).get("csrftoken", "")
        data = urlencode(body)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, data, headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


class Rater(threading.Thread):
    """One rater's page: three pairs in hand, an outbox of one, sent again until it arrives."""

    def __init__(self, ports: list[int], slug: str, session: str, thinking: float) -> None:
        super().__init__(daemon=True)
        self.ports, self.thinking = ports, thinking
        self.path = f"/projects/{slug}/compare/"
        self.cookies = {"sessionid": session, "csrftoken": secrets.token_hex(16)}
        self.chance = random.Random(session)
        self.begin, self.hurry = threading.Event(), threading.Event()
        self.held: list[str] = []
        self.sent: set[str] = set()
        self.acknowledged: dict[str, tuple[int, str]] = {}
        self.refused: list[str] = []
        self.errors: list[str] = []
        self.sent_again = 0
        self.slowest = 0.0
        self.to_the_end = True

    def run(self) -> None:
        self.begin.wait()
        while not self.hurry.is_set() or self.to_the_end:
            if not self.held and not self.look():
                if self.hurry.is_set():
                    return  # nothing is left
                self.hurry.wait(0.5)
                continue
            self.hurry.wait(self.thinking * self.chance.uniform(0.5, 1.5))
            self.answer()

    def look(self) -> bool:
        status, page = self.patiently("GET", self.path + "?have=", None)
        if status == 200:
            self.take(page)
        return bool(self.held)

    def answer(self) -> None:
        assignment = self.held.pop(0)
        key = secrets.token_hex(16)
        answer = self.chance.choice(["left-1", "left-2", "right-3", "right-1", "tie"])
        body = {"assignment": assignment, "answer": answer, "seconds": "12.5"}
        body |= {"answer_key": key, "have": ",".join(self.held)}
        self.sent.add(key)
        began = time.time()
        status, page = self.patiently("POST", self.path, body)
        self.slowest = max(self.slowest, time.time() - began)
        if status == 200:
            self.acknowledged[key] = int(assignment), answer
        else:
            found = re.search(r'data-refused="([^"]*)"', page)
            self.refused.append(found[1] if found else f"{status}: {page[:200]}")
        self.take(page)

    def patiently(self, method: str, path: str, body: dict[str, str] | None) -> tuple[int, str]:
        """Ask until there is an answer that is one, now the one server, now the other."""
        deadline = time.time() + GIVE_UP_SECONDS
        tries = 0
        while True:
            port = self.chance.choice(self.ports)
            status, page = ask(port, method, path, cookies=self.cookies, body=body, fragment=True)
            if status in (200, 409):
                return status, page
            self.errors.append(str(status))
            if time.time() > deadline:
                raise TimeoutError(f"{method} {path}: {status}")
            tries += 1
            self.sent_again += method == "POST"
            time.sleep(min(2.0, 0.1 * 2**tries))

    def take(self, page: str) -> None:
        """The pairs that came, and those of ours that are still ours."""
        state = re.search(r'data-held="([^"]*)"', page)
        if state:
            still = state[1].split(",")
            self.held = [pk for pk in self.held if pk in still]
        came = re.findall(r'name="assignment" value="(\d+)"', page)
        self.held += [pk for pk in dict.fromkeys(came) if pk not in self.held]


def wait_for(what: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen in time")
        time.sleep(0.1)
    return found


if __name__ == "__main__":
    main()
