"""Why does a model exist? Its ancestors as a graph: labels, datasets, runs, merges, bases."""

from collections import defaultdict, deque
from dataclasses import dataclass, field

from django.contrib.humanize.templatetags.humanize import intcomma
from django.urls import reverse
from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from training.models import Dataset, Merge, ModelVersion, Run

MOST_NODES = 60
"""Nodes of a drawing: more than a page shows at once."""
WIDTH, HEIGHT, GAP_X, GAP_Y = 168, 46, 34, 14
LETTERS = 21
"""Of a title, at its size in a box."""


@dataclass
class Node:
    """One thing that a model came from, with its place in the drawing."""

    key: str
    # labels, dataset, texts, judge, run, merge, base, model; the stylesheet colours them
    kind: str
    title: str
    detail: str
    url: str
    is_asked: bool = False
    """The model whose ancestors are drawn."""
    x: int = 0
    y: int = 0

    @property
    def middle(self) -> int:
        return self.y + HEIGHT // 2

    @property
    def short_title(self) -> str:
        return Truncator(self.title).chars(LETTERS)

    @property
    def short_detail(self) -> str:
        return Truncator(self.detail).chars(LETTERS + 5)


@dataclass
class Graph:
    """Nodes from the oldest on the left to the model on the right, and the arrows between them."""

    nodes: list[Node] = field(default_factory=list)
    edges: list[tuple[Node, Node]] = field(default_factory=list)
    n_left_out: int = 0
    width: int = 0
    height: int = 0

    @property
    def arrows(self) -> list[str]:
        """A path of each edge: from the right of one box to the left of the next."""
        found = []
        for begin, end in self.edges:
            x, bend = begin.x + WIDTH, (end.x - begin.x - WIDTH) / 2
            found.append(
                f"M{x} {begin.middle} C{x + bend:.0f} {begin.middle} {end.x - bend:.0f} "
                f"{end.middle} {end.x - 5} {end.middle}"
            )
        return found


def lineage(model: ModelVersion) -> Graph:
    """The model's ancestors, nearest first where there are too many of them."""
    nodes: dict[str, Node] = {}
    edges: list[tuple[str, str]] = []
    left_out: set[str] = set()
    slug = model.project.slug
    waiting = deque([model.pk])
    known = _reachable(model)

    def add(node: Node, leads_to: str | None) -> bool:
        """Whether it is new; an arrow to what comes from it is drawn in any case."""
        is_new = node.key not in nodes
        if is_new and len(nodes) >= MOST_NODES:
            left_out.add(node.key)
            return False
        if is_new:
            nodes[node.key] = node
        if leads_to and (node.key, leads_to) not in edges:
            edges.append((node.key, leads_to))
        return is_new

    asked = _of_model(known[model.pk], slug)
    asked.is_asked = True
    add(asked, None)
    while waiting:
        version = known[waiting.popleft()]
        me = f"model-{version.pk}"
        parents: list[ModelVersion] = []
        towards = me
        if version.run:
            towards = f"run-{version.run.pk}"
            add(_of_run(version.run, slug), me)
            if version.run.dataset:
                dataset = version.run.dataset
                add(_of_dataset(dataset, slug), towards)
                add(_of_labels(dataset, slug), f"dataset-{dataset.pk}")
            elif version.run.recipe.get("text"):
                add(_of_texts(version.run), towards)
            parents += [known[used.model_id] for used in version.run.reward_models.all()]
            if version.run.recipe.get("judge"):
                add(_of_judge(version.run, slug), towards)
        if version.merge:
            towards = f"merge-{version.merge.pk}"
            add(_of_merge(version.merge, slug), me)
            parents += [known[part.model_id] for part in version.merge.parts.all()]
            if version.merge.base_id:
                parents.append(known[version.merge.base_id])
        if version.base_id and known[version.base_id] not in parents:
            parents.append(known[version.base_id])
        for parent in parents:
            if add(_of_model(parent, slug), towards if towards in nodes else None):
                waiting.append(parent.pk)
    graph = Graph(
        list(nodes.values()),
        [(nodes[a], nodes[b]) for a, b in edges if a in nodes and b in nodes],
        len(left_out),
    )
    _lay_out(graph)
    return graph


def _reachable(model: ModelVersion) -> dict[int, ModelVersion]:
    """The model and all its ancestors by key, a query or two for each generation."""
    found: dict[int, ModelVersion] = {}
    wanted = {model.pk}
    while wanted:
        versions = (
            ModelVersion.objects.filter(pk__in=wanted)
            .select_related("run__dataset", "run__judge__judge_version", "merge", "base")
            .prefetch_related("merge__parts", "run__reward_models")
        )
        wanted = set()
        for version in versions:
            found[version.pk] = version
            merge = version.merge
            parts = [part.model_id for part in merge.parts.all()] if merge else []
            if version.run:
                parts += [used.model_id for used in version.run.reward_models.all()]
            wanted |= {version.base_id, merge.base_id if merge else None, *parts}
        wanted -= {None, *found}
    return found


def _lay_out(graph: Graph) -> None:
    """Columns by the longest way to the model, rows by the middle of what a node leads to."""
    after: dict[str, list[Node]] = defaultdict(list)
    for begin, end in graph.edges:
        after[begin.key].append(end)
    column: dict[str, int] = {}

    def distance(node: Node) -> int:
        if node.key not in column:
            column[node.key] = 1 + max((distance(end) for end in after[node.key]), default=-1)
        return column[node.key]

    columns: dict[int, list[Node]] = defaultdict(list)
    for node in graph.nodes:
        columns[distance(node)].append(node)
    last = max(columns)
    tallest = max(map(len, columns.values()))
    for place in sorted(columns):  # the model's own column first
        there = columns[place]
        if place:
            there.sort(key=lambda n: sum(e.y for e in after[n.key]) / len(after[n.key]))
        top = (tallest - len(there)) * (HEIGHT + GAP_Y) // 2
        for row, node in enumerate(there):
            node.x = (last - place) * (WIDTH + GAP_X)
            node.y = top + row * (HEIGHT + GAP_Y)
    graph.nodes.sort(key=lambda node: (node.x, node.y))
    graph.width = (last + 1) * (WIDTH + GAP_X) - GAP_X
    graph.height = tallest * (HEIGHT + GAP_Y) - GAP_Y


def _of_model(version: ModelVersion, slug: str) -> Node:
    made_here = version.run_id or version.merge_id
    return Node(
        f"model-{version.pk}",
        "model" if made_here else "base",
        version.name,
        version.get_kind_display(),
        reverse("training:model", args=[slug, version.name]),
    )


def _of_run(run: Run, slug: str) -> Node:
    return Node(
        f"run-{run.pk}",
        "run",
        str(run),
        _("%(method)s, seed %(seed)s")
        % {"method": run.recipe.get("method", "lora"), "seed": run.seed},
        reverse("training:run", args=[slug, run.pk]),
    )


def _of_merge(merge: Merge, slug: str) -> Node:
    return Node(
        f"merge-{merge.pk}",
        "merge",
        str(merge).capitalize(),
        merge.method,
        reverse("training:merge", args=[slug, merge.pk]),
    )


def _of_dataset(dataset: Dataset, slug: str) -> Node:
    n = dataset.n_rows
    words = ngettext("%(n)s pair", "%(n)s pairs", n)
    if dataset.of_ratings:
        words = ngettext("%(n)s rated response", "%(n)s rated responses", n)
    return Node(
        f"dataset-{dataset.pk}",
        "dataset",
        _("Dataset %(sha)s") % {"sha": dataset.sha256[:8]},
        words % {"n": intcomma(n)},
        reverse("training:dataset", args=[slug, dataset.sha256]),
    )


def _of_labels(dataset: Dataset, slug: str) -> Node:
    votes = sum(rater["n"] for rater in dataset.raters)
    n_judges = sum(rater["kind"] == "judge" for rater in dataset.raters)
    n_people = len(dataset.raters) - n_judges
    words = ngettext("%(n)s person", "%(n)s people", n_people) % {"n": intcomma(n_people)}
    if n_judges:
        judges = ngettext("%(n)s AI judge", "%(n)s AI judges", n_judges)
        words += ", " + judges % {"n": intcomma(n_judges)}
    return Node(
        f"labels-{dataset.pk}",
        "labels",
        ngettext("%(n)s label", "%(n)s labels", votes) % {"n": intcomma(votes)},
        words,
        reverse("labeling:raters", args=[slug]),
    )


def _of_judge(run: Run, slug: str) -> Node:
    """The judge that rated the responses of a run; its name stays where it was deleted."""
    made_of = getattr(run.judge, "judge_version", None) if run.judge else None
    if made_of is None:
        return Node(f"judge-of-{run.pk}", "judge", run.recipe["judge"], _("AI judge, deleted"), "")
    return Node(
        f"judge-{made_of.pk}",
        "judge",
        str(run.judge),
        _("AI judge: %(model)s") % {"model": made_of.model},
        reverse("judges:judge", args=[slug, made_of.judge_id]),
    )


def _of_texts(run: Run) -> Node:
    return Node(f"texts-{run.pk}", "texts", run.recipe["text"], run.text_sha256[:12], "")
