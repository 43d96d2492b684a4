"""The words of questions as versions, and the form that makes judges of every mode."""

import pytest
from django.urls import reverse

from judges.forms import JudgeForm
from judges.judging import judge_version
from judges.ml.config import BASE, DETAILED, PAIR_FRAME, JudgeRecipe, prompt_words, recipe_from
from judges.models import JudgeVersion, PromptVersion
from judges.prompts import prompt_differences, prompt_version, with_words, words_hash
from labeling.models import Change, Membership
from tests.factories import ComparisonFactory, MembershipFactory, ProjectFactory
from tests.judges.test_pages import form_values

pytestmark = pytest.mark.django_db

ASPECTS = [{"name": "honest", "question": "Which response is more honest?"}]


@pytest.fixture
def project():
    return ProjectFactory(slug="kitchen", guidelines="Prefer what is correct.", aspects=ASPECTS)


@pytest.fixture
def lead(client, project):
    client.force_login(MembershipFactory(project=project, role=Membership.Role.LEAD).user)
    return client


def make(lead, project, **changes) -> JudgeVersion:
    response = lead.post(reverse("judges:create", args=[project.slug]), form_values(**changes))
    assert response.status_code == 302, response.context["form"].errors
    return JudgeVersion.objects.latest("pk")


def refused(lead, project, **changes) -> JudgeForm:
    response = lead.post(reverse("judges:create", args=[project.slug]), form_values(**changes))
    assert response.status_code == 422
    return response.context["form"]


def test_the_same_words_are_one_prompt_and_other_words_its_next_version(project):
    words = prompt_words(JudgeRecipe())

    first, made = prompt_version(project, "plain", words)
    again, made_again = prompt_version(project, "plain", words)
    second, _ = prompt_version(project, "plain", {**words, "preamble": "Be strict."})
    other, _ = prompt_version(project, "other", words)

    assert (made, made_again, again) == (True, False, first)
    assert [(p.name, p.number) for p in (first, second, other)] == [
        ("plain", 1),
        ("plain", 2),
        ("other", 1),
    ]
    assert first.content_hash == other.content_hash != second.content_hash
    # What an older prompt did not name yet had the default's value.
    del words["reference_title"]
    assert words_hash(words) == first.content_hash


def test_judges_with_the_same_words_share_a_prompt_whatever_their_mode(project):
    one, _ = judge_version(project, "one", "owner/model", JudgeRecipe())
    two, _ = judge_version(project, "two", "owner/model", JudgeRecipe(mode="direct"))
    strict, _ = judge_version(project, "one", "owner/model", JudgeRecipe(preamble="Be strict."))
    reward, _ = judge_version(project, "reward", "owner/model", JudgeRecipe(mode="reward"))

    assert one.prompt == two.prompt
    assert str(one.prompt) == "one v1"
    assert str(strict.prompt) == "one v2"
    assert reward.prompt is None


def test_other_words_change_nothing_but_the_words():
    recipe = JudgeRecipe(mode="direct", min_answer_mass=0.2)
    words = prompt_words(JudgeRecipe(preamble="Be strict.", ending="Better="))
    values = {**vars(recipe), "exemplars": [], "aspects": [], "principles": [], "members": []}

    changed = recipe_from(with_words(values, words))

    assert (changed.mode, changed.min_answer_mass) == ("direct", 0.2)
    assert (changed.preamble, changed.ending) == ("Be strict.", "Better=")


def test_two_versions_differ_word_by_word_in_what_was_changed(project):
    one, _ = judge_version(project, "one", "owner/model", JudgeRecipe(preamble="Be fair to all."))
    two, _ = judge_version(project, "one", "owner/model", JudgeRecipe(preamble="Be kind to all."))

    [difference] = prompt_differences(one.prompt, two.prompt)

    assert difference.field == "preamble"
    assert [text.strip() for alone, text in difference.left if alone] == ["fair"]
    assert [text.strip() for alone, text in difference.right if alone] == ["kind"]


def test_the_page_of_a_prompt_shows_its_words_its_judges_and_what_changed(lead, project):
    make(lead, project, preamble="Be fair to <all>.", prompt_name="plain")
    edit = reverse("judges:edit", args=[project.slug, JudgeVersion.objects.get().judge_id])
    lead.post(edit, form_values(preamble="Be kind to <all>.", prompt_name="plain"))
    first, second = PromptVersion.objects.order_by("number")

    listed = lead.get(reverse("judges:prompts", args=[project.slug])).content.decode()
    page = lead.get(reverse("judges:prompt", args=[project.slug, second.pk])).content.decode()
    turned = lead.get(
        reverse("judges:prompt", args=[project.slug, first.pk]), {"against": second.pk}
    ).content.decode()

    assert "plain v1" in listed
    assert "plain v2" in listed
    assert "careful v2" in page
    assert "<del>fair </del>" in page
    assert "<ins>kind </ins>" in page
    assert "&lt;all&gt;" in page
    assert "<del>kind </del>" in turned
    for name in ("nonsense", "9" * 30):
        url = reverse("judges:prompt", args=[project.slug, first.pk])
        assert lead.get(url, {"against": name}).status_code == 200


def test_a_new_judge_may_begin_with_the_words_of_a_prompt(lead, project):
    words = prompt_words(JudgeRecipe(preamble="Be terse.", ending="Better="))
    terse, _ = prompt_version(project, "terse", words)
    elsewhere, _ = prompt_version(ProjectFactory(), "secret", {**words, "preamble": "Hidden."})
    route = reverse("judges:create", args=[project.slug])

    form = lead.get(route, {"prompt": terse.pk}).context["form"]
    page = lead.get(route, {"prompt": elsewhere.pk}).content.decode()

    assert (form["preamble"].value(), form["ending"].value()) == ("Be terse.", "Better=")
    assert (form["prompt_name"].value(), form["preamble_kind"].value()) == ("terse", "own")
    assert "Hidden." not in page
    kept = form_values(
        preamble="Be terse.",
        ending="Better=",
        prompt_name="terse",
        rationale_request=JudgeRecipe().rationale_request,
    )
    lead.post(f"{route}?prompt={terse.pk}", kept)
    assert JudgeVersion.objects.get().prompt == terse


@pytest.mark.parametrize(
    ("kind", "preamble"),
    [
        ("base", f"{BASE} {PAIR_FRAME}"),
        ("detailed", f"{DETAILED} {PAIR_FRAME}"),
        ("guidelines", f"Prefer what is correct.\n\n{PAIR_FRAME}"),
        ("own", "Be fair."),
    ],
)
def test_what_a_good_response_is_may_be_said_in_four_ways(lead, project, kind, preamble):
    version = make(lead, project, preamble_kind=kind)

    assert version.recipe["preamble"] == preamble
    edit = lead.get(reverse("judges:edit", args=[project.slug, version.judge_id]))
    assert edit.context["form"]["preamble_kind"].value() == kind


def test_every_choice_of_the_form_reaches_the_recipe(lead, project):
    tied = ComparisonFactory(project=project, gold="tie")

    version = make(
        lead,
        project,
        mode="sampled",
        n_samples=7,
        temperature=0.9,
        ties="on",
        tie_answer="tie",
        tie_request="Say tie if neither is better.",
        principles="Be honest.\n\n Be kind. ",
        principles_shown="one",
        ask_aspects="on",
        show_reference="on",
        exemplars=str(tied.pk),
    )

    recipe = recipe_from(version.recipe)
    assert (recipe.mode, recipe.n_samples, recipe.temperature) == ("sampled", 7, 0.9)
    assert recipe.answers == ("1", "2", "tie")
    assert recipe.principles == ("Be honest.", "Be kind.")
    assert recipe.principles_shown == "one"
    assert [(a.name, a.question) for a in recipe.aspects] == [
        ("honest", "Which response is more honest?")
    ]
    assert recipe.show_reference
    assert [exemplar.answer for exemplar in recipe.exemplars] == ["tie"]
    assert Change.objects.get(action="make judge").after["mode"] == "sampled"


def test_a_jury_has_members_and_no_model(lead, project):
    one = make(lead, project, name="one")
    two = make(lead, project, name="two")

    alone = refused(lead, project, name="jury", mode="jury", members=[one.pk])
    jury = make(lead, project, name="jury", mode="jury", members=[one.pk, two.pk], model="x/y")

    assert "two members" in str(alone.errors)
    assert (jury.model, jury.recipe["members"], jury.prompt) == ("", [one.pk, two.pk], None)
    page = lead.get(reverse("judges:judge", args=[project.slug, jury.judge_id])).content.decode()
    assert "one v1" in page
    nested = refused(lead, project, name="more", mode="jury", members=[one.pk, jury.pk])
    assert "members" in nested.errors


def test_the_form_says_at_once_what_is_wrong_with_a_models_folder(
    lead, project, settings, tiny_judge, storage
):
    stored = storage / "models"
    (stored / "empty").mkdir(parents=True)
    (stored / "empty" / "config.json").write_text("{}")
    (stored / "bare").mkdir()

    assert refused(lead, project, model="").errors["model"] == ["Name the model that judges."]
    unweighed = refused(lead, project, model="empty").errors["model"]
    assert unweighed == ["The folder empty has no weights as safetensors."]
    boss = MembershipFactory(
        project=project, role=Membership.Role.LEAD, user__is_superuser=True, user__is_staff=True
    ).user
    lead.force_login(boss)
    gone = refused(lead, project, model="/no/such/folder").errors["model"]
    assert gone == ["There is no model folder /no/such/folder on this machine."]
    bare = refused(lead, project, model=str(stored / "bare")).errors["model"]
    assert "no config.json" in bare[0]
    assert make(lead, project, model=str(tiny_judge)).model == str(tiny_judge)


def test_a_form_that_was_made_before_a_field_existed_leaves_it_as_it_was(lead, project):
    version = make(lead, project, score_request="Grade it.", score_ending="Grade=")
    edit = reverse("judges:edit", args=[project.slug, version.judge_id])

    lead.post(edit, form_values(preamble="Be strict."))

    newest = version.judge.versions.first()
    assert newest.number == 2
    assert newest.recipe["score_request"] == "Grade it."
