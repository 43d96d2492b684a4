"""Names of models in responses: what tells a rater who answered, and what is only a word."""

import gzip
import json

import pytest

from labeling.imports.foreign.columns import Labels
from labeling.imports.forms import rows_of
from labeling.leaks import leaks_of
from tests.real_data import llmfao, pandalm


def said(text: str) -> list:
    return [{"role": "assistant", "content": text}]


def asked(text: str) -> list:
    return [{"role": "user", "content": text}]


def leaks(text: str, prompt: str = "Who are you?", model: str = "") -> list[str]:
    return leaks_of(asked(prompt), (said(text), model), (said("Nobody."), ""))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("I am ChatGPT, trained by OpenAI.", ["ChatGPT", "OpenAI"]),
        ("As a language model created by OpenAI, I cannot.", ["OpenAI"]),
        ("I'm Claude, an AI assistant made by Anthropic.", ["Claude", "Anthropic"]),
        ("I’m an AI assistant called Claude.", ["Claude"]),
        ("This is Claude 3.5 Sonnet.", ["Claude 3.5"]),
        ("My name is Bard.", ["Bard"]),
        ("I am Gemini, a multimodal AI language model developed by Google.", ["Gemini", "Google"]),
        ("I am a large language model, trained by Google.", ["Google"]),
        ("I was developed by a team of researchers at Meta.", ["Meta"]),
        ("Hello! My name is LLaMA.", ["LLaMA"]),
        ("I run on Llama 2 and on llama-7b.", ["Llama 2", "llama-7b"]),
        ("You can call me Vicuna.", ["Vicuna"]),
        ("Falcon-40B and Mixtral are alike.", ["Falcon-40B", "Mixtral"]),
        ("I am a language model trained by Mistral AI.", ["Mistral"]),
        ("As Qwen, I was made in China; DeepSeek too.", ["Qwen", "DeepSeek"]),
        ("I am a chatbot built by Cohere.", ["Cohere"]),
        ("GPT-4o and text-davinci-003", ["GPT-4o", "text-davinci-003"]),
        ("我是通义千问，由ChatGPT训练。", ["通义千问", "ChatGPT"]),
        ("Ask Grok-2, command-r-plus or Phi-3 mini.", ["Grok-2", "command-r-plus", "Phi-3 mini"]),
        ("My weights are from Yi-34B-Chat and WizardLM.", ["Yi-34B-Chat", "WizardLM"]),
    ],
)  # fmt: skip
def test_a_response_that_says_who_it_is_leaks(text, names):
    assert leaks(text) == names


@pytest.mark.parametrize(
    "text",
    [
        "A llama is not an alpaca, and a koala is no bear; the vicuna is wild.",
        "Claude Monet and Claude Debussy were French.",
        "Shakespeare is called the Bard of Avon.",
        "I am a Gemini, so I like company. Gemini follows Taurus.",
        "The peregrine falcon dives. The Millennium Falcon too.",
        "The mistral blows down the Rhône; a zephyr is milder.",
        "TensorFlow was developed by Google, TypeScript by Microsoft.",
        "TypeScript is a programming language developed by Microsoft.",
        "The anthropic principle says why we are here.",
        "The Greek letter phi, and palm trees; his arguments cohere. Do you grok it?",
        "My name is Ann. I am a gardener, and I was trained by my mother.",
        "As an AI language model, I have no opinions.",
        "A meta analysis of 12 studies. The flower is in bloom.",
        "Press Command R to reload.",
    ],
)
def test_ordinary_words_are_no_leaks(text):
    assert leaks(text) == []


def test_what_the_prompt_speaks_of_is_no_leak():
    text = "ChatGPT is a chatbot, and OpenAI made it."
    assert leaks(text) == ["ChatGPT", "OpenAI"]
    assert leaks(text, prompt="What is Chat-GPT?") == []
    assert leaks("Use Mixtral.", prompt="What did Mistral AI publish?") == []


def test_a_response_that_speaks_of_itself_leaks_whatever_the_prompt_speaks_of():
    assert leaks("No, I am Claude.", prompt="Are you ChatGPT?") == ["Claude"]
    answer = "I am an AI model trained by Google."
    assert leaks(answer, prompt="What do you know of Gemini?") == ["Google"]


def test_what_a_user_says_inside_a_response_is_no_leak():
    turns = [*said("Hello."), *asked("Are you ChatGPT?"), *said("ChatGPT? No.")]
    assert leaks_of(asked("Hi"), (turns, ""), (said("Hello."), "")) == []


@pytest.mark.parametrize(
    ("model", "text", "names"),
    [
        ("our-model-7b", "I am Our-Model-7B.", ["Our-Model-7B"]),
        ("lab/our-model-7b", "This is our-model-7b.", ["our-model-7b"]),
        ("snoopy", "I am Snoopy.", ["Snoopy"]),
        ("snoopy", "Snoopy is a dog.", []),
        ("human", "To err is human.", []),
        ("m1", "The M1 chip is fast.", []),
    ],
)
def test_the_name_of_a_rows_own_model_leaks(model, text, names):
    assert leaks(text, model=model) == names


def test_either_response_may_name_either_model():
    a, b = (said("I am better than zeta-9b."), "eta-9b"), (said("Yes."), "zeta-9b")
    assert leaks_of(asked("Which?"), a, b) == ["zeta-9b"]


def test_names_are_listed_once_and_not_without_end():
    assert leaks("ChatGPT, chatgpt and CHATGPT") == ["ChatGPT"]
    assert len(leaks(" ".join(f"Llama-{n}b" for n in range(1, 40)))) == 10


def test_letters_that_change_their_length_do_no_harm():
    assert leaks("İİİ I am ChatGPT") == ["chatgpt"]


@pytest.mark.realdata
def test_real_answers_leak_as_they_were_found_by_eye_to_do(shared_data):
    """Counts of rows in which a response gives itself away, or names a model unasked."""

    def count(rows):
        found = [
            leaks_of(row.prompt, (row.response_a, row.model_a), (row.response_b, row.model_b))
            for row in rows
        ]
        return sum(bool(names) for names in found)

    def converted(records, form="interchange"):
        return [row for record in records for row in rows_of(record, form, Labels())[0]]

    def file(path):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            return json.load(lines)

    # Answers of small models, and of people's questions about the world: none.
    assert count(converted(llmfao(shared_data))) == 0
    assert count(converted(pandalm(shared_data))) == 0
    assert (
        count(converted(file(shared_data / "webgpt-comparisons/webgpt.shared.json.gz"), "scored"))
        == 0
    )
    alpaca = file(shared_data / "alpaca-eval/alpaca_eval_gpt4/vicuna-13b.annotations.json.gz")
    assert count(converted(alpaca, "alpaca-eval")) == 2
    # "I'm Claude, an AI assistant created by Anthropic", again and again.
    pairs = [
        {
            "prompt": record["conversation_input"],
            "response_a": record["chosen"]["answer"],
            "response_b": record["reject"]["answer"],
            "model_a": record["chosen"]["llm_name"],
            "model_b": record["reject"]["llm_name"],
        }
        for path in sorted((shared_data / "rmb-helpfulness").rglob("*.json.gz"))
        for record in file(path)
        if "reject" in record
    ]
    assert len(pairs) == 4238
    assert count(converted(pairs)) == 66
