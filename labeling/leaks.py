"""Names of models and vendors in responses: they could tell a rater who answered.

Precision comes before completeness: a lead who reads a list of llamas and star signs stops reading.
A name that is nothing but a name ("ChatGPT", "Mixtral") counts wherever it stands, a word that also
means something else ("Claude", "llama", "Gemini") only with a version ("Llama 2", "Falcon-7B") or
where the response speaks of itself ("I am Claude", "an AI model developed by Google"). What the
prompt speaks of is no leak.
"""

import re
from collections.abc import Iterator
from functools import lru_cache

from labeling.models import Messages

MAX_NAMES = 10
MAX_NAME_CHARS = 60

_SIZE = r"[- ]?\d+(?:\.\d+)?[bm]"  # "-7b", " 1.1B"
_VERSION = r"[- ]?v?\d(?:\.\d)?"

# Vendor: (what its name and its models are called and nothing else is, words that may mean other
# things, how a prompt speaks of them). Lower case, as the texts are when they are searched.
_VENDORS = {
    "openai": (
        r"chat ?-?gpt(?:[- ]?[345](?:\.\d)?)?|openai|instruct-?gpt|gpt[- ]?[2345](?:\.\d)?o?"
        r"(?:[- ]turbo|[- ]mini)?|text-davinci-\d+|gpt-neox?|gpt-j",
        r"gpt|davinci|open ai",
        r"gpt|openai|open ai",
    ),
    "anthropic": (
        r"claude[- ](?:v?[1234](?:\.\d)?|instant|opus|sonnet|haiku)|anthropic(?='s|,| ai\b|\.com)",
        r"claude|anthropic",
        r"claude|anthropic",
    ),
    "google": (
        r"google (?:bard|gemini|deepmind|ai)|deepmind|gemini[- ](?:pro|ultra|nano|flash|\d\.\d)"
        rf"|gemma(?:-\d+b|{_SIZE}|[- ][123]\b)|palm[- ]2|flan-?(?:t5|ul2|palm)|lamda(?= model)",
        r"bard|gemini|gemma|google|palm|lamda",
        r"bard|gemini|gemma|google|palm|lamda|deepmind|flan",
    ),
    "meta": (
        rf"(?:code ?|meta[- ])llama|llama{_SIZE}|llama[- ]?[234](?:\.\d)?(?=\W|$)|meta ai"
        rf"|opt-\d+(?:\.\d)?b|facebook ai",
        r"llama|meta|facebook",
        r"llama|meta|facebook",
    ),
    "llama's children": (
        rf"(?:vicuna|alpaca|koala|guanaco){_SIZE}|vicuna{_VERSION}|stanford alpaca|wizardlm"
        r"|openassistant|open-assistant|oasst|stablelm|stable ?vicuna|openchat|nous-hermes|gpt4all",
        r"vicuna|alpaca|koala|guanaco|open assistant",
        r"vicuna|alpaca|koala|guanaco|wizardlm|assistant|oasst|stablelm|openchat|hermes|gpt4all",
    ),
    "mistral": (
        rf"mixtral|mistral (?:ai|large|small|medium|nemo)|mistral{_SIZE}|zephyr{_SIZE}",
        r"mistral|zephyr",
        r"mistral|mixtral|zephyr",
    ),
    "alibaba": (
        r"qwen\d?(?:\.\d)?|tongyi|通义千问",
        r"alibaba(?: cloud)?|阿里云",
        r"qwen|tongyi|通义|alibaba|阿里",
    ),
    "china": (
        r"deepseek|ernie bot|文心一言|chatglm\d?|智谱|baichuan\d?|internlm|书生|讯飞星火|豆包"
        rf"|doubao|yi{_SIZE}(?:-chat)?|moonshot ai",
        r"kimi|baidu|yi|zhipu(?: ai)?|01\.ai|tencent|百度",
        r"deepseek|ernie|文心|chatglm|智谱|baichuan|internlm|书生|讯飞|豆包|doubao|yi-|kimi|baidu|百度",
    ),
    "others": (
        rf"falcon{_SIZE}|mpt{_SIZE}|dolly{_VERSION}|pythia{_SIZE}|bloomz|rwkv|olmo{_SIZE}"
        rf"|command-r(?:\+|-plus)|phi-[1234](?:\.\d)?(?:-| )?(?:mini|small|medium)|grok-[1234]"
        rf"|fastchat|lmsys|tinyllama|redpajama|cerebras-gpt",
        r"falcon|dolly|cohere|grok|xai|phi|microsoft|databricks|bloom|hugging ?face|ai2",
        r"falcon|mpt|dolly|pythia|bloom|rwkv|olmo|command|phi|grok|fastchat|lmsys|cohere|xai"
        r"|microsoft|databricks|hugging",
    ),
}
_WORDS = "|".join(words for _names, words, _said in _VENDORS.values())
_A_MODEL = (
    r"(?:(?:(?:large |conversational |virtual )?(?:ai|artificial intelligence|language)"
    r"(?: language)? (?:model(?: ai)?|assistant|chatbot|bot|system)|ai|chatbot|assistant|llm)"
    r"(?: \(\w+\))?)"
)
_MADE_BY = r"(?:trained|developed|created|made|built|designed|programmed|powered|provided) by"
_TEAM = r"(?:a |the )?(?:team (?:of [a-z]+ )?(?:at|from) |researchers (?:at|from) |company )?"
# "I am Claude", "my name is Bard", "I'm an AI assistant called Claude", "As Gemini, I …"
_IS = (
    rf"(?:i am|i'm|i’m|my name is|call me)(?: (?:an?|the) {_A_MODEL})?,?"
    rf"(?: called| named| known as)? (?P<called>{_WORDS})(?![\w-])"
    rf"|as (?P<speaking>{_WORDS}), (?:i|an? {_A_MODEL})\b"
)
# "a large language model trained by Google", "I was developed by researchers at Meta"
_MADE = (
    rf"(?:{_A_MODEL}(?:,? (?:that|which|who)(?: is| was|'s)| model|,)?|i was|i am|i'm)"
    rf"(?: [a-z]+)? {_MADE_BY} {_TEAM}(?P<maker>{_WORDS})(?![\w-])"
)
_NAMES = "|".join(
    f"(?P<v{number}>{names})" for number, (names, _words, _said) in enumerate(_VENDORS.values())
)
_LEAK = re.compile(rf"(?<![a-z0-9])(?:(?:{_NAMES})(?![a-z0-9])|{_IS}|{_MADE})")
# One of these words is in every text in which the pattern finds something. Looking at the words
# first is three times as fast, and most texts have none of them.
_TRIGGERS = frozenset(
    """
    chatgpt gpt openai ai instructgpt davinci neox claude anthropic bard gemini deepmind google
    gemma palm flan ul lamda llama codellama meta facebook opt vicuna alpaca koala guanaco wizardlm
    openassistant assistant oasst stablelm stablevicuna openchat hermes mixtral mistral zephyr qwen
    tongyi alibaba deepseek ernie chatglm baichuan internlm doubao moonshot yi kimi baidu zhipu
    tencent falcon mpt dolly pythia bloomz rwkv olmo command phi grok fastchat lmsys tinyllama
    redpajama cerebras cohere xai microsoft databricks bloom hugging
    """.split()  # noqa: SIM905 - a list this long is read as text
)
_LETTERS = re.compile(r"[a-z]+")
_CHINESE = re.compile(r"[通文智书讯豆阿百]")
_SAID = [re.compile(rf"(?<![a-z0-9])(?:{said})") for _names, _words, said in _VENDORS.values()]


def leaks_of(prompt: Messages, *responses: tuple[Messages, str]) -> list[str]:
    """The names that responses hold and the prompt does not, as they stand there.

    Each response comes with the name of its model, which is looked for as well. What a user says
    in the middle of a response counts as prompt.
    """
    found: dict[str, str] = {}
    asked = ""
    models = {model for _messages, model in responses if model}
    for messages, _model in responses:
        text = "\n".join(turn["content"] for turn in messages if turn["role"] == "assistant")
        lowered = text.lower()
        for start, end, vendor in _places(lowered, models):
            name = lowered[start:end]
            if name in found:
                continue
            asked = asked or _asked(prompt, *(messages for messages, _model in responses))
            if _squeezed(name) in _squeezed(asked) or (
                vendor is not None and _SAID[vendor].search(asked)
            ):
                continue
            # Lower case is of another length in a few scripts; then the places do not fit.
            found[name] = text[start:end] if len(text) == len(lowered) else name
    return [name[:MAX_NAME_CHARS] for name in found.values()][:MAX_NAMES]


def _places(text: str, models: set[str]) -> Iterator[tuple[int, int, int | None]]:
    """(start, end, number of the vendor) of each name; no vendor where the response speaks of
    itself or the name is that of its own model."""
    may_leak = not _TRIGGERS.isdisjoint(_LETTERS.findall(text))
    if not may_leak and not text.isascii():
        may_leak = _CHINESE.search(text) is not None
    for match in _LEAK.finditer(text) if may_leak else ():
        group = match.lastgroup or ""
        yield (
            *match.span(group),
            int(group[1:]) if group[0] == "v" and group[1:].isdigit() else None,
        )
    for model in models:
        for name, pattern in _own_names(model):
            if name in text:
                for match in pattern.finditer(text):
                    yield *match.span(1), None


@lru_cache(maxsize=1000)
def _own_names(model: str) -> list[tuple[str, re.Pattern[str]]]:
    """How a response may name its model: whole or by the last part of a path.

    A name without a digit may be a word ("human", "reference"): it must be said of oneself.
    """
    names = {model.lower(), model.lower().rsplit("/", 1)[-1]}
    patterns = []
    for name in sorted(names):
        if len(name) < 4:
            continue
        before = (
            ""
            if re.search(r"\d", name) and re.search(r"[^\W\d]", name)
            else (r"(?:i am|i'm|i’m|my name is|call me) ")
        )
        pattern = rf"(?<![a-z0-9]){before}({re.escape(name)})(?![a-z0-9])"
        patterns.append((name, re.compile(pattern)))
    return patterns


def _squeezed(text: str) -> str:
    """ChatGPT, Chat GPT and chat-gpt are one name."""
    return text.replace(" ", "").replace("-", "")


def _asked(prompt: Messages, *responses: Messages) -> str:
    users = (turn for messages in responses for turn in messages if turn["role"] != "assistant")
    return "\n".join(turn["content"] for turn in (*prompt, *users)).lower()
