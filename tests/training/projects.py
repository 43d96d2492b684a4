"""Projects with labels to train on."""

from labeling.models import Choice, Project, Rater, content_hash
from tests.factories import (
    ComparisonFactory,
    PreferenceFactory,
    ProjectFactory,
    PromptFactory,
    RaterFactory,
    ResponseFactory,
)


def comparison(project: Project, *, question: str = "", metadata: dict | None = None, **votes):
    """A comparison with the given votes: comparison(project, ann="a", bob="tie", gpt_judge="b").

    A rater whose name ends in _judge is an AI judge. Comparisons with the same question share
    their prompt.
    """
    messages = [{"role": "user", "content": question or f"Question {project.prompts.count()}?"}]
    prompt = project.prompts.filter(content_hash=content_hash(messages)).first() or PromptFactory(
        project=project, messages=messages
    )
    n = project.comparisons.count()
    made = ComparisonFactory(
        project=project,
        prompt=prompt,
        response_a=answer(prompt, f"Thank you! Answer {n} is calm."),
        response_b=answer(prompt, f"Go away, answer {n} is no."),
        metadata=metadata or {},
    )
    for name, choice in votes.items():
        kind = Rater.Kind.JUDGE if name.endswith("_judge") else Rater.Kind.PERSON
        rater = project.raters.filter(name=name, kind=kind).first() or RaterFactory(
            project=project, name=name, kind=kind
        )
        PreferenceFactory(comparison=made, rater=rater, choice=choice)
    return made


def answer(prompt, text: str, source: str = ""):
    messages = [{"role": "assistant", "content": text}]
    return ResponseFactory(prompt=prompt, messages=messages, source=source)


def labeled_project(n: int = 24) -> Project:
    """n comparisons on n prompts; ann prefers the polite response in all of them."""
    project = ProjectFactory(slug="polite")
    for i in range(n):
        comparison(project, question=f"Tell me about place {i}.", ann=Choice.A)
    return project
