"""A micro-world: prompts and responses of a small grammar, and a known utility behind preferences.

Everything a preference loop estimates is known here. The utility of a response is a sum of weights
over features that a reader would name: is the answer right, does it give the reason that was asked
for, is it kind or rude, is it padded. Raters are simulated: they vote by the utility through noise
of a known size, lean to the side they see first, and call ties at a known rate. So a reward model
can be held against the best achievable accuracy, a policy against its true utility, and an alpha
against the alpha that these raters must produce.

Some features need the prompt: which answer is right depends on the question, and what a reason or
a filler sentence is worth depends on whether the person asked to be told why, or to be brief.
The utility is defined for any text, since a policy in training may write anything: what cannot be
read costs. No Django, no torch: it runs in a notebook too.
"""

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product

# ---- The language -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """One thing that may be asked: its questions, its right and wrong answers, and the reason."""

    questions: tuple[str, ...]
    right: tuple[str, ...]
    wrong: tuple[str, ...]
    reason: str


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _larger(word: str, more: str, less: str, reason: str) -> Fact:
    return Fact(
        questions=(
            f"Which is {word}, {more} or {less}?",
            f"Which is {word}, {less} or {more}?",
            f"Is {less} or {more} {word}?",
            f"Tell me what is {word}, {more} or {less}.",
        ),
        right=(f"{_capital(more)} is {word}.", f"It is {more}."),
        wrong=(f"{_capital(less)} is {word}.", f"It is {less}."),
        reason=reason,
    )


def _eats(animals: str, food: str, wrong: str, reason: str) -> Fact:
    return Fact(
        questions=(
            f"What do {animals} eat?",
            f"What should I give to {animals}?",
            f"Do you know what {animals} eat?",
            f"Tell me what {animals} like to eat.",
        ),
        right=(f"{_capital(animals)} eat {food}.", f"Most {animals} like {food}."),
        wrong=(f"{_capital(animals)} eat {wrong}.", f"Most {animals} like {wrong}."),
        reason=reason,
    )


def _lives(animals: str, place: str, wrong: str, reason: str) -> Fact:
    return Fact(
        questions=(
            f"Where do {animals} live?",
            f"Where can I find {animals}?",
            f"Do you know where {animals} live?",
            f"Tell me where {animals} make their home.",
        ),
        right=(f"{_capital(animals)} live {place}.", f"You will find {animals} {place}."),
        wrong=(f"{_capital(animals)} live {wrong}.", f"You will find {animals} {wrong}."),
        reason=reason,
    )


def _colour(thing: str, colour: str, wrong: str, reason: str) -> Fact:
    return Fact(
        questions=(
            f"What colour is {thing}?",
            f"Which colour does {thing} have?",
            f"Do you know the colour of {thing}?",
            f"Tell me the colour of {thing}.",
        ),
        right=(f"{_capital(thing)} is {colour}.", f"The colour of {thing} is {colour}."),
        wrong=(f"{_capital(thing)} is {wrong}.", f"The colour of {thing} is {wrong}."),
        reason=reason,
    )


def _needs(job: str, tool: str, wrong: str, reason: str) -> Fact:
    return Fact(
        questions=(
            f"What do I need to {job}?",
            f"What should I use to {job}?",
            f"Do you know how one can {job}?",
            f"Tell me how to {job}.",
        ),
        right=(f"You need {tool}.", f"To {job}, use {tool}."),
        wrong=(f"You need {wrong}.", f"To {job}, use {wrong}."),
        reason=reason,
    )


FACTS: tuple[Fact, ...] = (
    _larger("larger", "a lake", "a pond", "It holds far more water."),
    _larger("larger", "an elephant", "a mouse", "It weighs as much as a truck."),
    _larger("faster", "a horse", "a snail", "It has four strong legs."),
    _larger("faster", "a car", "a bicycle", "It has an engine."),
    _larger("hotter", "the sun", "the moon", "It burns all the time."),
    _larger("heavier", "a stone", "a feather", "It sinks while the other one floats."),
    _larger("older", "a grandmother", "a baby", "She was born long before."),
    _larger("louder", "thunder", "a whisper", "It can be heard for miles."),
    _eats("cows", "grass", "coins", "They graze in the field all day."),
    _eats("cats", "fish", "paint", "They are hunters by nature."),
    _eats("rabbits", "carrots", "nails", "Roots and leaves keep them healthy."),
    _eats("monkeys", "bananas", "gravel", "Fruit grows in their trees."),
    _eats("squirrels", "nuts", "candles", "They store them for cold days."),
    _lives("bees", "in a hive", "in a shoe", "There they can keep their wax dry."),
    _lives("penguins", "on the ice", "in a volcano", "Their feathers keep out the cold."),
    _lives("spiders", "in a web", "on the moon", "The threads catch flies for them."),
    _lives("foxes", "in a den", "in a teapot", "Their cubs are safe below the ground."),
    _lives("frogs", "by the pond", "in the oven", "Their skin has to stay wet."),
    _colour("snow", "white", "orange", "It sends back all the light."),
    _colour("coal", "black", "pink", "It swallows all the light."),
    _colour("a ripe banana", "yellow", "blue", "The green fades when it is sweet."),
    _colour("a clear sky", "blue", "brown", "The air scatters that light most."),
    _colour("a young leaf", "green", "silver", "It drinks in sunlight."),
    _needs("cut wood", "a saw", "a spoon", "Its teeth are sharp."),
    _needs("cook rice", "a pot of water", "a bag of sand", "The grains must boil until soft."),
    _needs("write a letter", "pen and paper", "bread and butter", "Ink stays on the page."),
    _needs("sweep the floor", "a broom", "a piano", "Its bristles gather the dust."),
    _needs("put out a fire", "plenty of water", "a box of matches", "Flames die without air."),
    _needs("sew a button", "needle and thread", "a garden hose", "A few tight stitches hold it."),
    _needs("catch a fish", "a rod and a hook", "a drum", "The bait brings it near."),
)

BRIEF, WHY = "Please be brief.", "Please tell me why."
GREETINGS = ("", "Hello!", "Excuse me.")
REQUESTS = ("", BRIEF, WHY)

KIND_OPENINGS = ("Good question!", "Happy to help.", "Of course.", "Thank you for asking.")
RUDE = (
    "What a silly question.",
    "Even a child knows that.",
    "You are wasting my time.",
    "Now leave me alone.",
)
FILLERS = (
    "There is a lot that one could say about this.",
    "As we all know, life is full of such things.",
    "People have talked about it for many years.",
    "It is what it is, and so it will be.",
)
KIND_CLOSINGS = ("I hope that helps.", "Just ask if you want to know more.")
UNSURE = ("I am not sure.", "I do not know.")


def prompts() -> list[str]:
    """Every prompt of the world, in a fixed order: question by greeting by request."""
    texts = []
    for fact in FACTS:
        for question, greeting, request in product(fact.questions, GREETINGS, REQUESTS):
            texts.append(" ".join(part for part in (greeting, question, request) if part))
    return texts


def sample_prompts(n: int, rng: random.Random) -> list[str]:
    """`n` different prompts. Raises: ValueError when the world has fewer."""
    everything = prompts()
    if n > len(everything):
        raise ValueError(f"the micro-world has {len(everything)} prompts, {n} were asked for")
    return rng.sample(everything, n)


def sample_response(prompt: str, rng: random.Random) -> str:
    """A response as the world's models write it: right in about half the cases, in any tone.

    Raises: ValueError if the prompt holds no question of this world.
    """
    fact, brief, why = _asked(prompt)
    other = rng.choice([f for f in FACTS if f is not fact])
    sentences = []
    tone = rng.random()
    if tone < 0.3:
        sentences.append(rng.choice(KIND_OPENINGS))
    elif tone < 0.52:
        sentences.append(rng.choice(RUDE[:3]))
    if rng.random() < 0.1:
        sentences.append(rng.choice(FILLERS))
    answers = (fact.right, fact.wrong, UNSURE, other.right)
    sentences.append(rng.choice(rng.choices(answers, weights=(55, 32, 12, 1))[0]))
    if rng.random() < (0.5 if why else 0.25):
        sentences.append(fact.reason)
    while rng.random() < (0.15 if brief else 0.25) and len(sentences) < 5:
        sentences.append(rng.choice(FILLERS))
    ending = rng.random()
    if ending < 0.2:
        sentences.append(rng.choice(KIND_CLOSINGS))
    elif ending < 0.28:
        sentences.append(RUDE[3])
    return " ".join(sentences)


# ---- The utility --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What a reader finds in a response, as the answer to its prompt."""

    answer: str  # "right", "wrong", "unsure", "off" (no answer to this question)
    explained: bool  # gives the reason of this question's answer
    kind: int  # kind phrases, opening and closing: 0 to 2
    rude: int  # rude sentences
    fillers: int
    strange: int  # sentences that belong elsewhere, repeat, or cannot be read
    unfinished: bool  # breaks off
    brief: bool  # the person asked to be brief
    why: bool  # the person asked for the reason


ANSWER_WEIGHT = {"right": 3.0, "unsure": 0.0, "wrong": -2.0, "off": -3.0}
LOWEST, HIGHEST = -8.0, 6.0

_SENTENCE = re.compile(r"[^.!?]+[.!?]*|[.!?]+")


@lru_cache(maxsize=1)
def _questions() -> dict[str, Fact]:
    return {question: fact for fact in FACTS for question in fact.questions}


@lru_cache(maxsize=1)
def _known_sentences() -> frozenset[str]:
    sentences = set(UNSURE)
    for fact in FACTS:
        sentences.update(fact.right, fact.wrong, (fact.reason,))
    return frozenset(sentences)


def _sentences(text: str) -> list[str]:
    return [" ".join(part.split()) for part in _SENTENCE.findall(text) if part.strip()]


def _asked(prompt: str) -> tuple[Fact, bool, bool]:
    """The fact a prompt asks for, whether it asks to be brief, whether it asks why."""
    # Two facts never share a question, so the first one found is the only one.
    sentences = _sentences(prompt)
    for sentence in sentences:
        if sentence in _questions():
            return _questions()[sentence], BRIEF in sentences, WHY in sentences
    raise ValueError(f"no question of the micro-world in {prompt!r}")


def read_response(prompt: str, response: str) -> Reading:
    """The features of any text as a response to a prompt of the world.

    Raises: ValueError if the prompt holds no question of this world.
    """
    fact, brief, why = _asked(prompt)
    sentences = _sentences(response)
    said: set[str] = set()
    right = wrong = unsure = explained = False
    opening = closing = rude = fillers = strange = 0
    for sentence in sentences:
        if sentence in said:
            strange += 1
            continue
        said.add(sentence)
        if sentence in fact.right:
            right = True
        elif sentence in fact.wrong:
            wrong = True
        elif sentence in UNSURE:
            unsure = True
        elif sentence == fact.reason:
            explained = True
        elif sentence in KIND_OPENINGS:
            opening = 1
        elif sentence in KIND_CLOSINGS:
            closing = 1
        elif sentence in RUDE:
            rude += 1
        elif sentence in FILLERS:
            fillers += 1
        else:
            strange += 1
    # Whoever says both the right and the wrong thing has not answered.
    if right and wrong:
        answer = "off"
    else:
        answer = "right" if right else "wrong" if wrong else "unsure" if unsure else "off"
    # Off the question altogether: the stray answer itself is not punished twice.
    if answer == "off" and any(sentence in _known_sentences() for sentence in said):
        strange = max(0, strange - 1)
    return Reading(
        answer=answer,
        explained=explained,
        kind=opening + closing,
        rude=rude,
        fillers=fillers,
        strange=strange,
        unfinished=not response.rstrip().endswith((".", "!", "?")),
        brief=brief,
        why=why,
    )


def utility_of(reading: Reading) -> float:
    """The weights of the world, in units of utility; raters' temperatures are in the same unit."""
    reason = 2.0 if reading.why else -1.0 if reading.brief else 1.0
    value = (
        ANSWER_WEIGHT[reading.answer]
        + reason * reading.explained
        + 1.0 * (reading.kind > 0)
        - 2.0 * reading.rude
        - (2.0 if reading.brief else 1.0) * reading.fillers
        - 2.0 * reading.strange
        - 2.0 * reading.unfinished
    )
    return max(LOWEST, min(HIGHEST, value))


def utility(prompt: str, response: str) -> float:
    """The true utility of a response, from -8 to 6. Defined for any response text.

    Raises: ValueError if the prompt holds no question of this world.
    """
    return utility_of(read_response(prompt, response))


def describe(reading: Reading) -> str:
    """A reader's few words on a response: "right, kind", "wrong, rude, long"."""
    words = [reading.answer]
    words += ["explained"] * reading.explained
    words += ["kind"] * (reading.kind > 0)
    words += ["rude"] * (reading.rude > 0)
    words += ["long"] * (reading.fillers > 0)
    words += ["strange"] * (reading.strange > 0 or reading.unfinished)
    return ", ".join(words)


def grade(value: float) -> int:
    """A utility as a school mark from 0, the worst, to 9."""
    return round(9 * (value - LOWEST) / (HIGHEST - LOWEST))


_REACTIONS = {
    "right": "Right!",
    "wrong": "Wrong!",
    "unsure": "Really?",
    "off": "No, I asked something else.",
}


def sample_reaction(prompt: str, response: str, rng: random.Random) -> str:
    """What the person says next, as in the dialogues that language models grow up on.

    It names some of what there is to see, never how much it matters: the weights are not in it.
    """
    reading = read_response(prompt, response)
    seen = ["Now I know why."] * reading.explained
    seen += ["You are kind."] * (reading.kind > 0)
    seen += ["How rude."] * (reading.rude > 0)
    seen += ["But why?"] * (reading.why and not reading.explained)
    seen += ["So many words."] * (reading.fillers > 0 or (reading.brief and reading.explained))
    seen += ["What do you mean?"] * (reading.strange > 0 or reading.unfinished)
    said = [_REACTIONS[reading.answer], *(sentence for sentence in seen if rng.random() < 0.8)]
    # Anything may come first: whoever foresees the first word must have seen all there is to see.
    rng.shuffle(said)
    return " ".join(said)


# ---- Raters -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SimulatedRater:
    """A person whose reliability and bias are known.

    A vote follows Davidson's model for ties over z = (u_first - u_second) / temperature + side_bias
    (definitions §9); with probability `careless` the person has not read and takes a side at
    random, leaning by the same bias.
    """

    name: str
    temperature: float
    """Noise in units of utility: at this distance the better response wins 73 % of untied votes."""
    side_bias: float = 0.0
    """Log-odds towards the response that was shown first."""
    ties: float = 0.0
    """Davidson's ν: between equals, ν / (2 + ν) of the votes are ties."""
    careless: float = 0.0

    def probabilities(self, difference: float) -> tuple[float, float, float]:
        """P(first), P(second), P(tie) where `difference` is u_first - u_second."""
        half = (difference / self.temperature + self.side_bias) / 2
        first, second = math.exp(half), math.exp(-half)
        total = first + second + self.ties
        lean = 1 / (1 + math.exp(-self.side_bias))
        reads = 1 - self.careless
        return (
            reads * first / total + self.careless * lean,
            reads * second / total + self.careless * (1 - lean),
            reads * self.ties / total,
        )

    def choice_probabilities(self, difference: float) -> tuple[float, float, float]:
        """P(a), P(b), P(tie) where `difference` is u_a - u_b, sides being shuffled."""
        first, second, tie = self.probabilities(difference)
        mirrored = self.probabilities(-difference)
        return (first + mirrored[1]) / 2, (second + mirrored[0]) / 2, (tie + mirrored[2]) / 2


RATERS: tuple[SimulatedRater, ...] = (
    SimulatedRater("amira", temperature=0.8, side_bias=0.1, ties=0.15),
    SimulatedRater("bela", temperature=1.0, side_bias=0.0, ties=0.3),
    SimulatedRater("chidi", temperature=1.2, side_bias=0.2, ties=0.15),
    SimulatedRater("dana", temperature=1.2, side_bias=-0.1, ties=0.1),
    SimulatedRater("egon", temperature=1.6, side_bias=0.8, ties=0.05, careless=0.2),
)


@dataclass(frozen=True)
class Vote:
    rater: str
    choice: str  # "a", "b" or "tie"
    shown_first: str  # "a" or "b"


def vote(rater: SimulatedRater, difference: float, rng: random.Random) -> Vote:
    """One vote on a comparison with u_a - u_b = `difference`; which side is first is drawn here."""
    shown_first = rng.choice("ab")
    other = "b" if shown_first == "a" else "a"
    probabilities = rater.probabilities(difference if shown_first == "a" else -difference)
    choice = rng.choices((shown_first, other, "tie"), weights=probabilities)[0]
    return Vote(rater.name, choice, shown_first)


def votes(
    difference: float, rng: random.Random, *, raters: Sequence[SimulatedRater] = RATERS, n: int = 3
) -> list[Vote]:
    """Votes of `n` different raters, drawn at random, on one comparison."""
    return [vote(rater, difference, rng) for rater in rng.sample(list(raters), n)]


def majority(choices: Sequence[str]) -> str:
    """The most frequent choice, or "tie" where two are equally frequent or ties lead."""
    counts = {choice: choices.count(choice) for choice in ("a", "b", "tie")}
    best = max(counts.values())
    leaders = [choice for choice, count in counts.items() if count == best]
    return leaders[0] if len(leaders) == 1 else "tie"


# ---- What can be achieved -----------------------------------------------------------------------


def majority_probabilities(
    difference: float, *, raters: Sequence[SimulatedRater] = RATERS, n: int = 3
) -> tuple[float, float, float]:
    """P(majority is a), P(b), P(tie) over `n` raters drawn without replacement; u_a - u_b given.

    Exact: all outcomes of all groups of raters are summed.
    """
    from itertools import combinations

    totals = {"a": 0.0, "b": 0.0, "tie": 0.0}
    groups = list(combinations(raters, n))
    for group in groups:
        chances = [rater.choice_probabilities(difference) for rater in group]
        for outcome in product(range(3), repeat=n):
            probability = math.prod(chance[o] for chance, o in zip(chances, outcome, strict=True))
            totals[majority(["a" if o == 0 else "b" if o == 1 else "tie" for o in outcome])] += (
                probability / len(groups)
            )
    return totals["a"], totals["b"], totals["tie"]


def best_accuracy(
    differences: Sequence[float], *, raters: Sequence[SimulatedRater] = RATERS, n: int = 3
) -> float:
    """The accuracy of a model that knows the utility, against untied majority labels of `n` raters.

    For each comparison the best guess is the better response, and it is right with the probability
    that the majority, given that it is untied, names it. On equal utility that is 1/2. Against the
    noiseless truth the best achievable is 1 by definition (equal pairs left out).

    Args:
        differences: utility of one response minus the other's, for comparisons whose majority was
            untied; which way round does not matter.
    Raises: ValueError on no differences.
    """
    if not differences:
        raise ValueError("best_accuracy needs at least one comparison")

    @cache
    def chance(gap: float) -> float:
        a, b, _tie = majority_probabilities(gap, raters=raters, n=n)
        return max(a, b) / (a + b)

    return sum(chance(round(abs(d), 6)) for d in differences) / len(differences)


def expected_alpha(
    differences: Sequence[float],
    alpha: Callable[[list[dict[str, str]]], float],
    *,
    raters: Sequence[SimulatedRater] = RATERS,
    n: int = 3,
    simulations: int = 20,
    seed: int = 0,
) -> tuple[float, float, float]:
    """What an agreement coefficient comes to for these raters, by simulating their votes anew.

    Args:
        differences: u_a - u_b of every comparison.
        alpha: the coefficient, given one {rater name: choice} per comparison.
    Returns: the mean over simulations and the 2.5 % and 97.5 % points of single simulations.
    """
    rng = random.Random(seed)  # noqa: S311 - a simulation
    values = sorted(
        alpha([{v.rater: v.choice for v in votes(d, rng, raters=raters, n=n)} for d in differences])
        for _ in range(simulations)
    )
    low = values[int(0.025 * (len(values) - 1))]
    high = values[math.ceil(0.975 * (len(values) - 1))]
    return sum(values) / len(values), low, high
