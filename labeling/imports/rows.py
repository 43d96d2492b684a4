"""Checked rows into the database: in batches, and twice the same row is once in the database.

What a comparison is decides its content hash: the prompt and both responses with their models, in
no order. A file that names the sides the other way round therefore meets the same comparison, and
its votes are turned round with it.
"""

from dataclasses import dataclass, field, replace

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Greatest
from django.utils import timezone

from labeling.events import notice_more_work
from labeling.imports.interchange import GivenRanking, LeadsWord, ResponseList, Row, Vote
from labeling.leaks import leaks_of
from labeling.models import (
    Choice,
    Comparison,
    Decision,
    Messages,
    Preference,
    Project,
    Prompt,
    Ranking,
    Rater,
    Response,
    ResponseSet,
    content_hash,
    message_text,
    random_key,
)

BATCH_ROWS = 500


@dataclass
class Stored:
    """What became of one batch. Indices point into the rows that were given."""

    created: int = 0
    duplicates: int = 0
    preferences: int = 0
    verdicts: int = 0
    unparsed: int = 0
    known_votes: int = 0
    sets: int = 0
    split_sets: int = 0
    rankings: int = 0
    leaks: int = 0
    decisions: int = 0
    responses: int = 0
    ratings: int = 0
    bad_votes: list[tuple[int, str]] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class Raters:
    """Raters of the project by kind and name, made when a file first names them."""

    project: Project
    ids: dict[tuple[str, str], int] = field(default_factory=dict)
    # People with an account here and judges of this project: no file answers in their name.
    own: dict[tuple[str, str], int] = field(default_factory=dict)

    def find_own(self, keys: set[tuple[str, str]]) -> None:
        """Which of these names are people with an account here, or judges of this project."""
        known = self._read(keys - self.ids.keys() - self.own.keys())
        self.own |= {key: pk for key, (pk, imported) in known.items() if not imported}

    def learn(self, keys: set[tuple[str, str]]) -> None:
        """Find these raters, or make them; their own names have been found before."""
        new = keys - self.ids.keys()
        if not new:
            return
        # kind and name under which each is kept
        kept_as = {key: self._imported(key) if key in self.own else key for key in new}
        wanted = set(kept_as.values())
        known = self._read(wanted)
        Rater.objects.bulk_create(
            [
                Rater(project=self.project, kind=kind, name=name, imported=True)
                for kind, name in sorted(wanted - known.keys())
            ],
            ignore_conflicts=True,
        )
        known = self._read(wanted)
        self.ids |= {key: known[kept_as[key]][0] for key in new}

    def _imported(self, key: tuple[str, str]) -> tuple[str, str]:
        kind, name = key
        return kind, f"{name[:189]} (imported)"

    def _read(self, keys: set[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, bool]]:
        rows = Rater.objects.filter(
            project=self.project, name__in=sorted({name for _kind, name in keys})
        ).values_list("kind", "name", "pk", "imported")
        return {(kind, name): (pk, imported) for kind, name, pk, imported in rows}


@dataclass(eq=False)
class _Set:
    """One response set of a batch."""

    key: str
    groups: dict[int, "_Group"] = field(default_factory=dict)
    pk: int | None = None
    # Of all its pairs: the set comes to people whole, by the queue or by the random audit stream.
    random_key: float = field(default_factory=random_key)


@dataclass(eq=False)
class _Group:
    """One comparison of a batch with all votes for it that the batch brings."""

    row: Row
    set: _Set | None = None
    prompt_hash: str = ""
    hash_a: str = ""
    hash_b: str = ""
    pk: int | None = None
    votes: list[tuple[int, Vote]] = field(default_factory=list)  # (index of the row, vote)
    decisions: list[tuple[int, LeadsWord]] = field(default_factory=list)  # likewise
    n_people: int = 0


class RowStore:
    """Writes rows of one file into one project; remembers the raters it has met."""

    def __init__(
        self,
        project: Project,
        labels_per_comparison: int | None = None,
        known_answers: str = Comparison.Purpose.WORK,
    ):
        self.project = project
        self.known_answers = known_answers  # the purpose of rows with gold that name none
        self.labels_wanted = labels_per_comparison or project.labels_per_comparison
        self.raters = Raters(project)

    def store(self, rows: list[Row]) -> Stored:
        """Write a batch in one transaction; what is there already is counted, not written."""
        stored = Stored()
        with transaction.atomic():
            # One importer at a time in a project: two would make the same comparison twice.
            Project.objects.select_for_update(no_key=True).get(pk=self.project.pk)
            groups, sets = self._grouped(
                [(i, row) for i, row in enumerate(rows) if row.prompt], stored
            )
            groups += self._groups_by_id(
                [(i, row) for i, row in enumerate(rows) if not row.prompt], stored
            )
            authors = {
                (Rater.Kind.PERSON, author)
                for g in groups
                if g.pk is None
                for author in (g.row.author_a, g.row.author_b)
                if author
            }
            voters = {(vote.kind, vote.rater) for g in groups for _i, vote in g.votes}
            self.raters.find_own(voters | authors)
            # Whose places change, in one order with everybody else who locks several.
            counted = [g.pk for g in groups if g.pk is not None and (g.votes or g.decisions)]
            held = Comparison.objects.filter(pk__in=counted).order_by("pk")
            list(held.select_for_update(no_key=True).values_list("pk"))
            known = self._known_answers(groups, stored)
            voters = {(vote.kind, vote.rater) for g in groups for _i, vote in g.votes}
            self.raters.learn(voters | authors)
            answers = self._new_preferences(groups, known, stored)
            self._create([group for group in groups if group.pk is None], stored)
            for group, _vote, preference in answers:
                preference.comparison_id = group.pk
            self._keep_rankings(answers, sets, stored)
            Preference.objects.bulk_create([preference for _g, _v, preference in answers])
            if stored.created:  # sets of known answers are no work
                notice_more_work(self.project.pk)
            self._decide(groups, stored)
        return stored

    def _grouped(
        self, rows: list[tuple[int, Row]], stored: Stored
    ) -> tuple[list[_Group], dict[int, _Set]]:
        """The comparisons of a batch, and its response sets by the `id()` of their lists."""
        groups: dict[str, _Group] = {}
        keys: list[str] = []
        for _index, row in rows:
            group = _Group(
                row,
                prompt_hash=content_hash(row.prompt),
                hash_a=content_hash(row.response_a),
                hash_b=content_hash(row.response_b),
            )
            key = comparison_hash(
                group.prompt_hash, (group.hash_a, row.model_a), (group.hash_b, row.model_b)
            )
            keys.append(key)
            groups.setdefault(key, group)
        known = Comparison.objects.filter(project=self.project, content_hash__in=groups)
        first_of_known, purposes = {}, {}
        for key, pk, hash_a, source, purpose in known.values_list(
            "content_hash", "pk", "response_a__content_hash", "response_a__source", "purpose"
        ):
            groups[key].pk = pk
            first_of_known[key] = (hash_a, source)
            purposes[key] = purpose
        for (index, row), key in zip(rows, keys, strict=True):
            group = groups[key]
            if group.pk is not None or row is not group.row:
                stored.duplicates += 1
            else:
                stored.created += 1
            wanted = self._purpose(row)
            is_now = purposes.get(key) or self._purpose(group.row)
            if wanted not in (Comparison.Purpose.WORK, is_now):
                stored.bad_votes.append(
                    (index, f"here already as {is_now!r}: the purpose {wanted!r} is left out")
                )
            first = first_of_known.get(key, (group.hash_a, group.row.model_a))
            is_turned = first != (content_hash(row.response_a), row.model_a)
            group.votes += [(index, turned(v) if is_turned else v) for v in row.votes]
            if row.decision is not None:
                word = row.decision
                choice = _OTHER.get(word.choice, word.choice) if is_turned else word.choice
                group.decisions.append((index, replace(word, choice=choice)))
        pairs = [(row, groups[key]) for (_index, row), key in zip(rows, keys, strict=True)]
        return list(groups.values()), self._join(pairs, stored)

    def _purpose(self, row: Row) -> str:
        is_free = row.gold and not row.purpose and row.response_list is None
        return self.known_answers if is_free else row.purpose or Comparison.Purpose.WORK

    def _join(self, pairs: list[tuple[Row, _Group]], stored: Stored) -> dict[int, _Set]:
        """Tie the pairs of each response list to its set.

        A comparison belongs to one set at most. A list of which a pair is there already, alone or
        in another set, therefore stays a number of single pairs.
        """
        sets: dict[str, _Set] = {}
        of_list: dict[int, _Set] = {}
        for row, group in pairs:
            listed = row.response_list
            if listed is None:
                continue
            if id(listed) not in of_list:
                key = content_hash(group.prompt_hash, sorted(_hashes(listed)))
                of_list[id(listed)] = sets.setdefault(key, _Set(key))
            of_list[id(listed)].groups[id(group)] = group
        if not sets:
            return {}
        known = ResponseSet.objects.filter(project=self.project, content_hash__in=sets)
        for key, pk in known.values_list("content_hash", "pk"):
            sets[key].pk = pk
        split = set()
        for the_set in sets.values():
            groups = the_set.groups.values()
            if the_set.pk is not None:
                continue
            if all(
                g.pk is None and of_list.get(id(g.row.response_list)) is the_set for g in groups
            ):
                stored.sets += 1
                for group in groups:
                    group.set = the_set
            else:
                stored.split_sets += 1
                split.add(the_set)
        return {listed: the_set for listed, the_set in of_list.items() if the_set not in split}

    def _groups_by_id(self, rows: list[tuple[int, Row]], stored: Stored) -> list[_Group]:
        """Votes for comparisons that an earlier file brought, found by their id there."""
        if not rows:
            return []
        found: dict[str, list[int]] = {}
        ids = {row.external_id for _index, row in rows}
        known = Comparison.objects.filter(project=self.project, external_id__in=ids)
        for external_id, pk in known.values_list("external_id", "pk"):
            found.setdefault(external_id, []).append(pk)
        groups: dict[str, _Group] = {}
        for index, row in rows:
            pks = found.get(row.external_id, [])
            if len(pks) != 1:
                how_many = "no comparison" if not pks else f"{len(pks)} comparisons"
                stored.rejected.append((index, f"{how_many} with the id {row.external_id!r}"))
                continue
            group = groups.setdefault(row.external_id, _Group(row, pk=pks[0]))
            group.votes += [(index, vote) for vote in row.votes]
        return list(groups.values())

    def _known_answers(
        self, groups: list[_Group], stored: Stored
    ) -> dict[tuple[int | None, int], str]:
        """Current choices by comparison and rater. Votes that are this project's own answers coming
        back are taken out here, before anybody is made to have given them."""
        answers: dict[tuple[int | None, int], str] = {
            (comparison, rater): choice
            for comparison, rater, choice in Preference.objects.current()
            .filter(comparison__in=[g.pk for g in groups if g.pk is not None and g.votes])
            .values_list("comparison", "rater", "choice")
        }
        for group in groups:
            kept = [
                (index, vote)
                for index, vote in group.votes
                if answers.get((group.pk, self.raters.own.get((vote.kind, vote.rater), 0)))
                != vote.choice
            ]
            stored.known_votes += len(group.votes) - len(kept)
            group.votes = kept
        return answers

    def _new_preferences(
        self, groups: list[_Group], answers: dict[tuple[int | None, int], str], stored: Stored
    ) -> list[tuple[_Group, Vote, Preference]]:
        """Votes that are not in the database yet; and the places they take."""
        now = timezone.now()
        preferences = []
        for group in groups:
            given: dict[int, str] = {}
            for index, vote in group.votes:
                rater = self.raters.ids[vote.kind, vote.rater]
                earlier = given.get(rater) or answers.get((group.pk, rater))
                if earlier == vote.choice:
                    stored.known_votes += 1
                    continue
                if earlier is not None:
                    reason = f"rater {vote.rater!r} has answered {earlier}, and here {vote.choice}"
                    stored.bad_votes.append((index, reason))
                    continue
                given[rater] = vote.choice
                preferences.append((group, vote, _preference(vote, rater, now)))
                if vote.kind == Rater.Kind.PERSON:
                    group.n_people += 1
                    stored.preferences += 1
                else:
                    stored.verdicts += 1
                    stored.unparsed += vote.choice == Choice.UNPARSED
        taken: dict[int, list[int]] = {}
        for group in groups:
            if group.pk is not None and group.n_people:
                taken.setdefault(group.n_people, []).append(group.pk)
        for n_people, pks in taken.items():
            Comparison.objects.filter(pk__in=pks).update(
                open_places=Greatest(F("open_places") - n_people, 0)
            )
        return preferences

    def _keep_rankings(
        self,
        answers: list[tuple[_Group, Vote, Preference]],
        sets: dict[int, _Set],
        stored: Stored,
    ) -> None:
        """Rankings of which an answer is new, tied to the answers that they imply."""
        implied: dict[tuple[int, int], tuple[GivenRanking, list[Preference]]] = {}
        for _group, vote, preference in answers:
            the_set = sets.get(id(vote.ranking.of)) if vote.ranking is not None else None
            if vote.ranking is not None and the_set is not None and the_set.pk is not None:
                key = the_set.pk, preference.rater_id
                implied.setdefault(key, (vote.ranking, []))[1].append(preference)
        if not implied:
            return
        set_pks = {pk for pk, _rater in implied}
        there = Ranking.objects.filter(response_set__in=set_pks, superseded_at=None)
        known = set(there.values_list("response_set", "rater"))
        responses: dict[tuple[int, str, str], int] = {}
        for letter in "ab":
            side = f"response_{letter}"
            rows = Comparison.objects.filter(response_set__in=set_pks).values_list(
                "response_set", f"{side}__content_hash", f"{side}__source", side
            )
            responses |= {(pk, text, source): response for pk, text, source, response in rows}
        rankings = []
        for (pk, rater), (given, preferences) in implied.items():
            if (pk, rater) in known:
                continue
            ids = [responses[pk, text, source] for text, source in _hashes(given.of)]
            ranking = Ranking(
                response_set_id=pk,
                rater_id=rater,
                order=[[ids[k] for k in tied] for tied in given.order],
                rationale=given.rationale,
                seconds=given.seconds,
                created_at=given.created_at or timezone.now(),
            )
            rankings.append((ranking, preferences))
        Ranking.objects.bulk_create([ranking for ranking, _preferences in rankings])
        for ranking, preferences in rankings:
            for preference in preferences:
                preference.ranking = ranking
        stored.rankings += len(rankings)

    def _decide(self, groups: list[_Group], stored: Stored) -> None:
        """Keep decisions of leads that the file brings. One that was made here stands."""
        groups = [group for group in groups if group.decisions]
        standing = dict(
            Decision.objects.filter(
                comparison__in=[group.pk for group in groups], superseded_at=None
            ).values_list("comparison", "choice")
        )
        new = []
        for group in groups:
            for index, word in group.decisions:
                kept = standing.get(group.pk)
                if kept is None:
                    standing[group.pk] = word.choice
                    new.append(
                        Decision(
                            comparison_id=group.pk,
                            choice=word.choice,
                            strength=word.strength,
                            note=word.note,
                        )
                    )
                elif kept != word.choice:
                    reason = f"a lead has decided {kept}, and here {word.choice}"
                    stored.bad_votes.append((index, reason))
        Decision.objects.bulk_create(new)
        stored.decisions += len(new)

    def _create(self, groups: list[_Group], stored: Stored) -> None:
        if not groups:
            return
        prompts, known = keep_prompts(
            self.project, {group.prompt_hash: group.row.prompt for group in groups}
        )
        wanted: dict[tuple[int, str, str], Messages] = {}
        authors: dict[tuple[int, str, str], int] = {}
        for group in groups:
            prompt, row = prompts[group.prompt_hash], group.row
            for key, messages, author in (
                ((prompt, group.hash_a, row.model_a), row.response_a, row.author_a),
                ((prompt, group.hash_b, row.model_b), row.response_b, row.author_b),
            ):
                wanted[key] = messages
                if author:
                    authors[key] = self.raters.ids[Rater.Kind.PERSON, author]
        responses, _n_new = keep_responses(wanted, known, authors)
        self._create_sets(groups, prompts)
        comparisons = []
        for group in groups:
            row, prompt = group.row, prompts[group.prompt_hash]
            purpose = self._purpose(row)
            labels = self.labels_wanted if row.labels_wanted is None else row.labels_wanted
            # Two models that said the same: a tie worth keeping, and not worth a person's time,
            # save among others that are ranked with them.
            if purpose != Comparison.Purpose.WORK or (
                row.response_a == row.response_b and group.set is None
            ):
                labels = 0
            leaks = leaks_of(
                row.prompt, (row.response_a, row.model_a), (row.response_b, row.model_b)
            )
            stored.leaks += bool(leaks)
            comparisons.append(
                Comparison(
                    project=self.project,
                    prompt_id=prompt,
                    response_a_id=responses[prompt, group.hash_a, row.model_a],
                    response_b_id=responses[prompt, group.hash_b, row.model_b],
                    content_hash=comparison_hash(
                        group.prompt_hash,
                        (group.hash_a, row.model_a),
                        (group.hash_b, row.model_b),
                    ),
                    external_id=row.external_id,
                    gold=row.gold,
                    purpose=purpose,
                    metadata=row.metadata,
                    leaks=leaks,
                    labels_wanted=labels,
                    open_places=max(0, labels - group.n_people),
                    priority=row.priority,
                    response_set_id=group.set.pk if group.set else None,
                    random_key=group.set.random_key if group.set else random_key(),
                )
            )
        for group, comparison in zip(
            groups, Comparison.objects.bulk_create(comparisons), strict=True
        ):
            group.pk = comparison.pk

    def _create_sets(self, groups: list[_Group], prompts: dict[str, int]) -> None:
        """The sets of these new comparisons."""
        new: dict[_Set, ResponseSet] = {}
        for group in groups:
            if group.set is not None and group.set.pk is None and group.set not in new:
                new[group.set] = ResponseSet(
                    project=self.project,
                    prompt_id=prompts[group.prompt_hash],
                    content_hash=group.set.key,
                )
        ResponseSet.objects.bulk_create(new.values())
        for the_set, row in new.items():
            the_set.pk = row.pk


def keep_prompts(project: Project, wanted: dict[str, Messages]) -> tuple[dict[str, int], set[int]]:
    """Ids of the prompts by content hash, and which of them were there before."""
    rows = Prompt.objects.filter(project=project, content_hash__in=wanted)
    found = dict(rows.values_list("content_hash", "pk"))
    known = set(found.values())
    new = [
        Prompt(project=project, messages=messages, content_hash=key)
        for key, messages in wanted.items()
        if key not in found
    ]
    if new:  # another importer may be writing the same: then its row serves both
        Prompt.objects.bulk_create(new, ignore_conflicts=True)
        found = dict(rows.all().values_list("content_hash", "pk"))
    return found, known


def keep_responses(
    wanted: dict[tuple[int, str, str], Messages],
    known_prompts: set[int],
    authors: dict[tuple[int, str, str], int],
) -> tuple[dict[tuple[int, str, str], int], int]:
    """Ids of the responses by prompt, content hash and source, and how many of them are new. New
    prompts have none yet."""

    def read(prompts: set[int]) -> dict[tuple[int, str, str], int]:
        rows = Response.objects.filter(
            prompt__in=prompts, content_hash__in={key for _prompt, key, _source in wanted}
        )
        return {
            (prompt, key, source): pk
            for prompt, key, source, pk in rows.values_list(
                "prompt", "content_hash", "source", "pk"
            )
        }

    found = read(known_prompts)
    new = [
        Response(
            prompt_id=prompt,
            messages=messages,
            content_hash=key,
            source=source,
            author_id=authors.get((prompt, key, source)),
            n_chars=len(message_text(messages)),
        )
        for (prompt, key, source), messages in wanted.items()
        if (prompt, key, source) not in found
    ]
    if new:
        Response.objects.bulk_create(new, ignore_conflicts=True)
        found = read({prompt for prompt, _hash, _source in wanted})
    return found, len(new)


def comparison_hash(prompt_hash: str, *responses: tuple[str, str]) -> str:
    """What makes two comparisons the same: prompt and (content hash, model) of both responses."""
    return content_hash(prompt_hash, sorted(responses))


def _hashes(listed: ResponseList) -> list[tuple[str, str]]:
    """Content hash and model of each response of a list, in its order."""
    return [(content_hash(messages), model) for messages, model in listed.responses]


def turned(vote: Vote) -> Vote:
    """The same vote where A and B have changed names."""
    return replace(
        vote,
        choice=_OTHER.get(vote.choice, vote.choice),
        aspects={name: _OTHER.get(answer, answer) for name, answer in vote.aspects.items()},
        shown_first=_OTHER.get(vote.shown_first, ""),
        prob_a=None if vote.prob_a is None else 1 - vote.prob_a,
        # "ab" means that A was shown first: with the names, the orders change too
        prob_a_ab=None if vote.prob_a_ba is None else 1 - vote.prob_a_ba,
        prob_a_ba=None if vote.prob_a_ab is None else 1 - vote.prob_a_ab,
    )


_OTHER = {"a": "b", "b": "a"}


def _preference(vote: Vote, rater: int, now: object) -> Preference:
    return Preference(
        rater_id=rater,
        choice=vote.choice,
        strength=vote.strength if vote.choice in _OTHER else None,
        prob_a=vote.prob_a,
        prob_a_ab=vote.prob_a_ab,
        prob_a_ba=vote.prob_a_ba,
        rationale=vote.rationale,
        tags=vote.tags,
        aspects=vote.aspects,
        seconds=vote.seconds,
        shown_first=vote.shown_first,
        inclusion_probability=vote.inclusion_probability,
        audit=vote.audit,
        created_at=vote.created_at or now,
    )
