"""Several adapters over one base in one process: each request gets the model it asked for."""

import shutil
from pathlib import Path

import pytest

from tests.training.ml.test_merging import adapters  # noqa: F401 - a fixture
from training.ml.generation import sample
from training.ml.loading import load_policy
from training.ml.serving import Sampling, Server

PROMPT = [{"role": "user", "content": "Tell me about the river."}]
# Cold: random models are near to even, and one seed would draw the same words from all of them.
SAMPLING = Sampling(temperature=0.02, seed=5, max_new_tokens=12)


@pytest.fixture(scope="module")
def server():
    return Server()


def alone(name: str) -> str:
    """What a model says that was loaded for this prompt alone."""
    model, tokenizer = load_policy(name)
    return sample(model, tokenizer, [PROMPT], max_new_tokens=12, temperature=0.02, seed=5)[0]


@pytest.fixture(scope="module")
def named(tiny_model, adapters, tmp_path_factory):  # noqa: F811
    """The adapters with their words beside them, as a run leaves them."""
    for folder in adapters.values():
        for path in Path(tiny_model).glob("tokenizer*"):
            shutil.copy(path, folder)
    return adapters


def test_switching_gives_each_model_its_own_answer(server, named, tiny_model):
    kinds = ("lora", "norms", "dora", "lora", "qlora", "ia3")
    asked = [*(named[kind] for kind in kinds), tiny_model]
    answers = [server.answer(name, PROMPT, SAMPLING).text for name in asked]
    assert answers == [alone(name) for name in asked]
    assert answers[0] == answers[3]
    assert len(set(answers[:-1])) == 5  # (IA)³ hardly moves the base


def test_one_base_holds_many_adapters_and_no_more_bases_than_allowed(named, tiny_model):
    server = Server(most_bases=2)
    for kind in ("lora", "norms", "rslora", "dora"):
        server.answer(named[kind], PROMPT, SAMPLING)
    assert server.n_bases == 1
    for name in (tiny_model, named["qlora"], named["ia3"]):
        server.answer(name, PROMPT, SAMPLING)
    assert server.n_bases == 2
    server.forget()
    assert server.n_bases == 0


def test_text_comes_as_it_is_written_and_an_answer_can_be_stopped(server, named):
    seen = []
    whole = server.answer(
        named["lora"], PROMPT, SAMPLING, lambda text, n_tokens: seen.append((n_tokens, text))
    )
    assert [n for n, _text in seen] == list(range(1, whole.n_tokens + 1))
    assert seen[-1][1] == whole.text.rstrip("�").strip()

    class Stopped(Exception):
        pass

    def stop(text, n_tokens):
        if n_tokens == 3:
            raise Stopped

    with pytest.raises(Stopped):
        server.answer(named["lora"], PROMPT, SAMPLING, stop)
    assert server.answer(named["lora"], PROMPT, SAMPLING).text == whole.text


def test_a_prompt_without_room_is_refused_in_words(server, tiny_model):
    with pytest.raises(ValueError, match="exceed the context of 256"):
        server.answer(tiny_model, PROMPT, Sampling(max_new_tokens=256))
