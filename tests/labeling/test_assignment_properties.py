"""Any order of events: leases, answers, skips, expiries, undo, pauses, deleted raters, imports.

Whatever happens, no comparison has more labels and leases than it wants, every place is accounted
for, and an acknowledged answer stays.
"""

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from labeling.answering import record_preference, revise_preference, skip_comparison, undo_last
from labeling.assignment import work_for
from labeling.imports.interchange import parse_row
from labeling.imports.rows import RowStore
from labeling.models import Assignment, Comparison, Preference, Rater
from labeling.places import NotYours, release, take_back_expired
from labeling.raters import delete_rater, pause_rater, resume_rater
from labeling.sets import set_purpose
from tests.factories import ComparisonFactory, ProjectFactory, RaterFactory, UserFactory

N_RATERS = 3
raters = st.integers(0, N_RATERS - 1)
choices = st.sampled_from(["a", "b", "tie", "both_bad"])


class Labeling(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.atom = transaction.atomic()
        self.atom.__enter__()
        self.lead = UserFactory()
        self.project = ProjectFactory(
            labels_per_comparison=2, audit_share=0.3, check_share=0.1, repeat_share=0.1
        )
        for wanted in (1, 2, 2, 3):
            ComparisonFactory(project=self.project, labels_wanted=wanted, gold="a")
        self.raters = [RaterFactory(project=self.project) for _n in range(N_RATERS)]
        self.kept: set[int] = set()  # acknowledged answers that nobody took back
        self.n_imported = 0

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.atom.__exit__(None, None, None)

    def held(self, rater: Rater) -> list[Assignment]:
        return list(rater.assignments.filter(state="leased").order_by("leased_at", "pk"))

    @rule(who=raters, n=st.integers(1, 3))
    def ask_for_work(self, who, n):
        rater = self.raters[who]
        work = work_for(rater, n)
        assert len({a.pk for a in work}) == len(work)
        assert all(a.rater_id == rater.pk and a.state == "leased" for a in work)
        if Rater.objects.get(pk=rater.pk).paused_at:
            assert work == []

    @rule(who=raters, choice=choices, twice=st.booleans(), key=st.sampled_from(["", "k"]))
    def answer(self, who, choice, twice, key):
        rater = Rater.objects.get(pk=self.raters[who].pk)
        held = self.held(rater)
        if not held:
            return
        first = held[0]
        sent = {"assignment_id": first.pk, "answer_key": key and f"{key}{first.pk}"}
        kept = record_preference(rater, first.comparison, choice, **sent)
        if isinstance(kept, Preference):
            self.kept.add(kept.pk)
        if twice:
            n_before = Preference.objects.count()
            if key:
                assert record_preference(rater, first.comparison, choice, **sent) == kept
            else:
                with pytest.raises(NotYours):
                    record_preference(rater, first.comparison, choice, **sent)
            assert Preference.objects.count() == n_before

    @rule(who=raters, choice=choices)
    def answer_late_or_what_was_never_held(self, who, choice):
        rater = Rater.objects.get(pk=self.raters[who].pk)
        for comparison in self.project.comparisons.exclude(
            assignments__in=rater.assignments.filter(state="leased")
        )[:2]:
            try:
                with transaction.atomic():
                    kept = record_preference(rater, comparison, choice)
            except NotYours:
                continue
            # Only what was theirs once, and ran out, is taken.
            assert rater.assignments.filter(comparison=comparison).exists()
            self.kept.add(kept.pk)

    @rule(who=raters, flag=st.sampled_from(["", "unsafe"]))
    def skip(self, who, flag):
        rater = Rater.objects.get(pk=self.raters[who].pk)
        for assignment in self.held(rater)[:1]:
            skip_comparison(rater, assignment.comparison, flag=flag, assignment_id=assignment.pk)

    @rule(who=raters)
    def undo(self, who):
        rater = Rater.objects.get(pk=self.raters[who].pk)
        try:
            with transaction.atomic():
                undone = undo_last(rater)
        except NotYours:
            return
        if undone is not None and undone.repeats_id is None:
            withdrawn = rater.preferences.filter(comparison=undone.comparison_id)
            self.kept -= set(withdrawn.values_list("pk", flat=True))

    @rule(who=raters, choice=choices)
    def revise(self, who, choice):
        rater = Rater.objects.get(pk=self.raters[who].pk)
        preference = rater.preferences.current().first()
        if preference is not None and rater.paused_at is None:
            self.kept.discard(preference.pk)
            self.kept.add(revise_preference(rater, preference, choice).pk)

    @rule(who=raters)
    def leave(self, who):
        release(self.raters[who])
        assert self.held(self.raters[who]) == []

    @rule()
    def time_passes(self):
        Assignment.objects.filter(state="leased").update(
            expires_at=timezone.now() - timedelta(seconds=1)
        )
        take_back_expired()

    @rule(who=raters)
    def pause(self, who):
        pause_rater(self.raters[who], self.lead)
        assert self.held(self.raters[who]) == []

    @rule(who=raters)
    def resume(self, who):
        resume_rater(self.raters[who], self.lead)

    @rule(who=raters)
    def delete_rater(self, who):
        rater = self.raters[who]
        gone = set(rater.preferences.values_list("pk", flat=True))
        delete_rater(rater)
        self.kept -= gone
        self.raters[who] = RaterFactory(project=self.project)

    @rule(with_vote=st.booleans())
    def import_more(self, with_vote):
        self.n_imported += 1
        row = {"prompt": f"Q{self.n_imported}", "response_a": "1", "response_b": "2"}
        if with_vote:
            row["preferences"] = [{"rater": "from-a-file", "choice": "a"}]
        RowStore(self.project).store([parse_row(row)])

    @rule(to_check=st.booleans())
    def change_a_purpose(self, to_check):
        comparison = self.project.comparisons.exclude(gold="").order_by("pk").last()
        purpose = "check" if to_check else "work"
        set_purpose(self.project, [comparison.pk], purpose, self.lead)

    @invariant()
    def no_place_is_doubled_or_lost(self):
        for comparison in Comparison.objects.filter(project=self.project):
            n_answered = comparison.preferences.current().count()
            n_held = comparison.assignments.filter(state="leased", repeats=None).count()
            free = comparison.labels_wanted - n_answered - n_held
            if comparison.purpose == "check":
                free = 0
            # Imported votes may give more than was wanted; places never do.
            assert comparison.open_places == max(0, free), comparison.pk

    @invariant()
    def each_rater_answers_once(self):
        current = Preference.objects.current().filter(comparison__project=self.project)
        pairs = list(current.values_list("comparison", "rater"))
        assert len(pairs) == len(set(pairs))

    @invariant()
    def what_was_acknowledged_is_there(self):
        current = Preference.objects.current().filter(pk__in=self.kept)
        assert set(current.values_list("pk", flat=True)) == self.kept


@pytest.mark.slow
@pytest.mark.django_db
def test_no_order_of_events_breaks_a_promise():
    run_state_machine_as_test(
        Labeling,
        settings=settings(
            max_examples=40,
            phases=[Phase.generate],  # shrinking takes minutes; the seed is printed
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
