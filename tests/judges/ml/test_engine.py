"""The engine against a slow, plain reading of the same text."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    MambaConfig,
    MistralConfig,
)

from judges.ml import batch
from judges.ml.asking import Reply, Request, Writing
from judges.ml.config import JudgeRecipe, ModelUnusable
from judges.ml.engine import LocalEngine, load_engine
from judges.ml.questions import plain_text, tidy_written, with_written
from judges.ml.rows import Rows
from judges.ml.spelling import control_marks, spellings
from tests.judges.conftest import LLAMA, save_tiny_model

PREAMBLE = "A good response is helpful and harmless. What stands below is to be judged.\n"
ENDING = "\nPreferred Response="
STOPS = ("Preferred Response=", "\n===")
WRITE = Writing(max_tokens=24, stops=STOPS)


def question(prompt: str, first: str, second: str, write: Writing | None = WRITE) -> Request:
    task = (
        f"{PREAMBLE}=== USER ===\n{prompt}\n=== RESPONSE 1 ===\n{first}\n"
        f"=== RESPONSE 2 ===\n{second}\n=== END ==="
    )
    lead = "Rationale:" if write else ""
    ending = ENDING if write else ENDING.lstrip()
    return Request(task=task, lead=lead, ending=ending, answers=("1", "2"), write=write)


def both_orders(write: Writing | None = WRITE, n: int = 4) -> list[Request]:
    """Of very different length, so that batches are padded."""
    requests = []
    for size in range(1, n + 1):
        prompt = "How do I boil an egg?" * size
        a, b = "Ten minutes." * (1 + size % 3), "Put it in water.\n\nDone: ünï ✓ " * (5 - size)
        requests += [question(prompt, a, b, write), question(prompt, b, a, write)]
    return requests


def replies(engine: LocalEngine, requests: list[Request]) -> list[Reply]:
    found = [pair for batch in engine.answer(requests) for pair in batch]
    assert sorted(place for place, _reply in found) == list(range(len(requests)))
    return [reply for _place, reply in sorted(found, key=lambda pair: pair[0])]


def reference(folder, request: Request, opening: str = "") -> tuple[str, str, list[float]]:
    """One question alone: `generate`, then a second reading of the whole text, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = opening or plain_text(request)
    rationale = ""
    with torch.no_grad():
        if request.write is None:
            whole = text + request.ending
        else:
            ids = tokenizer(text, return_tensors="pt").input_ids
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=request.write.max_tokens,
                pad_token_id=tokenizer.eos_token_id,
            )
            words = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            rationale = tidy_written(words, request.write.stops, control_marks(tokenizer))
            whole = with_written(text, rationale, request.ending)
        return rationale, whole, plain_logps(model, tokenizer, whole, request.answers)


def plain_logps(model, tokenizer, whole: str, answers: tuple[str, ...]) -> list[float]:
    """Log-probability of each answer of one token, with and without a space before it."""
    with torch.no_grad():
        logits = model(tokenizer(whole, return_tensors="pt").input_ids).logits[0, -1].double()
    logp = logits.log_softmax(-1)
    found = []
    for answer in answers:
        names = {name for name in (answer, f"Ġ{answer}") if name in tokenizer.get_vocab()}
        tokens = [tokenizer.convert_tokens_to_ids(name) for name in names]
        found.append(math.log(sum(math.exp(logp[token]) for token in tokens)))
    return found


def assert_like_reference(folder, requests: list[Request], found: list[Reply]) -> None:
    for request, reply in zip(requests, found, strict=True):
        rationale, whole, logps = reference(folder, request)
        assert reply.problem == ""
        [said] = reply.said
        assert said.rationale == rationale
        assert said.text == whole
        assert said.logps == pytest.approx(logps, abs=1e-4)


@pytest.mark.parametrize("write", [WRITE, None], ids=["after writing", "at once"])
def test_batched_numbers_equal_those_of_one_question_at_a_time(tiny_judge, write):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    requests = both_orders(write)

    found = replies(engine, requests)

    assert engine.reads_on
    assert_like_reference(tiny_judge, requests, found)
    if write:
        assert len({reply.said[0].rationale for reply in found}) > 4


def test_questions_of_several_kinds_share_a_batch(tiny_judge):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    short = Writing(max_tokens=3, stops=STOPS)
    requests = [*both_orders(None)[:3], *both_orders()[3:6], *both_orders(short)[:2]]

    [found] = list(engine.answer(requests))

    assert_like_reference(tiny_judge, requests, [reply for _place, reply in sorted(found)])


def test_a_question_alone_shares_nothing_and_has_the_same_numbers(tiny_judge):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")

    for request in both_orders()[:2]:
        assert_like_reference(tiny_judge, [request], replies(engine, [request]))


def test_the_shared_beginning_is_read_once_and_kept_for_the_next_call(tiny_judge):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu", batch_tokens=600)
    n_read = []
    forward = engine.model.forward

    def counted(input_ids, **options):
        n_read.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **options)

    engine.model.forward = counted
    requests = both_orders(None)

    first = replies(engine, requests)
    shape_of_shared = n_read[0]
    again = replies(engine, requests)

    assert shape_of_shared[0] == 1
    assert shape_of_shared[1] >= len(engine.tokenizer(PREAMBLE)["input_ids"])
    assert n_read.count(shape_of_shared) == 1
    n_whole = sum(reply.n_tokens_read for reply in first + again)
    assert sum(rows * width for rows, width in n_read) < 0.8 * n_whole
    engine.model.forward = forward
    assert_like_reference(tiny_judge, requests, again)


def test_a_prompt_is_read_without_padding_and_its_last_layer_for_the_last_token_alone(tiny_judge):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    n_first, n_last = [], []
    first, *_, last = engine.model.model.layers
    first.mlp.register_forward_hook(lambda _module, args, _out: n_first.append(args[0].numel()))
    last.mlp.register_forward_hook(lambda _module, args, _out: n_last.append(args[0].numel()))
    # A prompt of its own each of its own each: nothing but the preamble is shared.
    requests = [question(f"{n}. How?" * n, "So." * n, "No.", None) for n in range(1, 6)]

    found = replies(engine, requests)

    width = engine.model.config.hidden_size
    n_tokens = [reply.n_tokens_read for reply in found]
    n_shared = len(engine._shared[0])
    assert sum(n_first) == (sum(n_tokens) - (len(requests) - 1) * n_shared) * width
    assert sum(n_last) == len(requests) * width


@pytest.mark.parametrize(
    ("config", "shape", "reads_on"),
    [
        (GPT2Config, {"n_embd": 64, "n_layer": 2, "n_head": 4}, True),
        (GPTNeoXConfig, LLAMA, True),
        # A window shorter than the text: what left the window is no longer in memory.
        (MistralConfig, {**LLAMA, "sliding_window": 40}, False),
        # Scores that are bent before the softmax, and a window in every second layer.
        (Gemma2Config, {**LLAMA, "head_dim": 16, "sliding_window": 40}, False),
        # One state in place of all that was read.
        (MambaConfig, {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}, False),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_models_of_other_shapes_give_the_same_numbers_in_batches(tmp_path, config, shape, reads_on):
    save_tiny_model(tmp_path, config, **shape)
    engine = load_engine(str(tmp_path), JudgeRecipe(), "cpu")
    requests = both_orders(n=3) + both_orders(None, n=1)

    found = replies(engine, requests)

    assert engine.reads_on is reads_on
    assert_like_reference(tmp_path, requests, found)


def test_neither_the_size_of_a_batch_nor_its_company_changes_a_number(tiny_judge):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    requests = both_orders()

    together = replies(engine, requests)
    one_by_one = load_engine(str(tiny_judge), JudgeRecipe(), "cpu", batch_tokens=1)
    batches = list(one_by_one.answer(requests))
    alone = [reply for _place, reply in sorted(pair for batch in batches for pair in batch)]

    # Both orders of a comparison stay together, or their prompt would be read twice.
    assert [len(batch) for batch in batches] == [2] * 4
    for one, other in zip(together, alone, strict=True):
        assert one.said[0].text == other.said[0].text
        assert one.said[0].logps == pytest.approx(other.said[0].logps, abs=1e-4)
        assert one.n_tokens_read == other.n_tokens_read
        assert one.n_tokens_written == other.n_tokens_written


def test_texts_that_end_leave_their_batch_and_the_others_go_on_unharmed(tiny_judge):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    requests = [
        question("How do I boil an egg?" * n, "So." * n, "No." * n, Writing(max_tokens=2 + 5 * n))
        for n in range(1, 9)
    ]

    found = replies(engine, requests)

    assert_like_reference(tiny_judge, requests, found)
    # The last ends with a token of its own choice.
    assert [reply.n_tokens_written for reply in found] == [7, 12, 17, 22, 27, 32, 37, 41]


def test_a_model_with_a_chat_template_reads_the_question_as_the_users_turn(tiny_chat_judge):
    engine = load_engine(str(tiny_chat_judge), JudgeRecipe(), "cpu")
    plain = load_engine(str(tiny_chat_judge), JudgeRecipe(chat="never"), "cpu")
    requests = both_orders()

    found = replies(engine, requests)
    [read_plainly, *_] = replies(plain, requests)

    for request, reply in zip(requests, found, strict=True):
        opening = f"<|turn|>user\n{request.task}<|end|><|turn|>assistant\nRationale:"
        rationale, whole, logps = reference(tiny_chat_judge, request, opening)
        assert reply.said[0].rationale == rationale
        assert reply.said[0].text == whole
        assert reply.said[0].logps == pytest.approx(logps, abs=1e-4)
    assert "<|turn|>" not in read_plainly.said[0].text


def test_scores_are_sequences_and_one_does_not_count_as_ten(tiny_judge):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    tokenizer, model = engine.tokenizer, AutoModelForCausalLM.from_pretrained(tiny_judge).eval()
    scores = tuple(str(score) for score in range(1, 11))
    requests = [
        Request(task=f"Rate this: {words}", ending="Score=", answers=scores, write=write)
        for words in ("So.", "Put it in water. " * 9, "No, no.")
        for write in (None, WRITE)
    ]

    found = replies(engine, requests)

    one, spaced_one, zero = tokenizer.convert_tokens_to_ids(["1", "Ġ1", "0"])
    assert tokenizer.tokenize("Score= 10")[-2:] == ["Ġ1", "0"]
    for reply in found:
        [said] = reply.said
        ids = tokenizer(said.text)["input_ids"]
        p_one = p_ten = 0.0
        for token in (one, spaced_one):
            with torch.no_grad():
                first = model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)[token]
                then = model(torch.tensor([[*ids, token]])).logits[0, -1].double().softmax(-1)
            p_one += float(first)
            p_ten += float(first * then[zero])
        assert math.exp(said.logps[9]) == pytest.approx(p_ten, rel=1e-3)
        assert math.exp(said.logps[0]) == pytest.approx(p_one - p_ten, rel=1e-3)
        assert said.logps[1:9] == pytest.approx(
            plain_logps(model, tokenizer, said.text, scores[1:9]), abs=1e-4
        )
        assert sum(map(math.exp, said.logps)) <= 1


def test_an_answer_is_spelled_as_it_stands_where_the_endings_space_belongs_to_its_token(tiny_judge):
    """Here " 1" is a token: "Score: 10" has no beginning in common with "Score: " alone."""
    tokenizer = load_engine(str(tiny_judge), JudgeRecipe()).tokenizer
    one, spaced, nought = tokenizer.convert_tokens_to_ids(["1", "Ġ1", "0"])
    of_one, of_ten = spellings(tokenizer, "Score: ", ("1", "10")).of
    assert set(of_one) == {(one,), (spaced,)}
    assert set(of_ten) == {(one, nought), (spaced, nought)}


def test_drawn_texts_repeat_whatever_their_company(tiny_judge):
    write = Writing(max_tokens=20, n=3, temperature=1.0, seed=5, stops=STOPS)
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    small = load_engine(str(tiny_judge), JudgeRecipe(), "cpu", batch_tokens=700)
    requests = both_orders(write)

    first = replies(engine, requests)
    again = replies(small, requests[2:5])
    other = replies(engine, [question("Why?", "So.", "No.", Writing(**{**vars(write), "seed": 6}))])
    same = replies(engine, [question("Why?", "So.", "No.", write)])

    for reply in first:
        assert len(reply.said) == 3
        assert len({said.text for said in reply.said}) == 3
        for said in reply.said:
            model, tokenizer = engine.model, engine.tokenizer
            logps = plain_logps(model, tokenizer, said.text, ("1", "2"))
            assert said.logps == pytest.approx(logps, abs=1e-4)
    for reply, repeated in zip(first[2:5], again, strict=True):
        assert [said.text for said in reply.said] == [said.text for said in repeated.said]
    assert {said.text for said in other[0].said}.isdisjoint({s.text for s in same[0].said})


def test_drawing_follows_the_models_probabilities(tiny_judge):
    """One token each, 4,000 times: the frequencies are those of the softmax at the temperature."""
    n = 4000
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu", batch_tokens=10**6)
    write = Writing(max_tokens=1, n=n, temperature=2.0)
    request = Request(task="Why?", lead="So", ending="=", answers=("1",), write=write)
    ids = engine.tokenizer(plain_text(request), return_tensors="pt").input_ids
    with torch.no_grad():
        probs = (engine.model(ids).logits[0, -1].double() / 2.0).softmax(-1)

    asked = [batch.Text(engine.wording.asked(0, request), number) for number in range(n)]
    drawing = batch._drawing(asked, engine.model.device)
    with torch.no_grad():
        logits = engine.model(ids).logits[:, -1].expand(n, -1)
    counts = torch.bincount(drawing.choose(logits, 0), minlength=len(probs))

    expected = n * probs
    often = expected > 5
    chi2 = ((counts - expected)[often] ** 2 / expected[often]).sum()
    freedom = int(often.sum())
    assert freedom > 20
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)


def test_greedy_texts_are_written_once_and_said_as_often_as_wanted(tiny_judge):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")

    [reply] = replies(engine, [question("Why?", "So.", "No.", Writing(max_tokens=8, n=3))])

    assert len(reply.said) == 3
    assert len(set(reply.said)) == 1
    assert reply.n_tokens_written == 8


@pytest.mark.parametrize("write", [WRITE, None], ids=["after writing", "at once"])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_a_batch_that_memory_does_not_hold_is_made_smaller(tiny_judge, write, error, caplog):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    engine.read_tokens = 10**6
    forward = engine.model.forward

    def small_only(input_ids, **options):
        if len(input_ids) > 3:
            raise error
        return forward(input_ids=input_ids, **options)

    engine.model.forward = small_only
    requests = both_orders(write)
    with caplog.at_level("WARNING"):
        found = replies(engine, requests)
    n_failed, n_tokens = engine.counts["out_of_memory"], engine.batch_tokens
    replies(engine, requests)

    engine.model.forward = forward
    assert_like_reference(tiny_judge, requests, found)
    assert n_failed >= 1
    assert n_tokens < 32_768
    assert "out of memory over a batch of 8 texts on cpu" in caplog.messages
    assert engine.counts["out_of_memory"] <= n_failed + 1  # what fits is remembered


def test_a_question_too_large_for_memory_is_told_and_the_others_are_answered(tiny_judge):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    forward = engine.model.forward

    def short_only(input_ids, position_ids, **options):
        if position_ids.max() > 600:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(input_ids=input_ids, position_ids=position_ids, **options)

    engine.model.forward = short_only
    requests = [question("Why? " * 120, "So.", "No."), *both_orders(n=1)]

    found = replies(engine, requests)

    engine.model.forward = forward
    assert found[0] == Reply(problem="One question alone needs more memory than cpu has.")
    assert_like_reference(tiny_judge, requests[1:], found[1:])


def test_an_error_that_is_not_about_memory_is_not_swallowed(tiny_judge):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")

    def broken(**options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    engine.model.forward = broken

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(engine.answer(both_orders(n=1)))


def test_excess_counts_all_that_is_to_be_written_and_too_long_questions_are_told(tiny_judge):
    engine = load_engine(str(tiny_judge), JudgeRecipe(max_context=200), "cpu")
    short, long = question("Why?", "So.", "No."), question("Why? " * 60, "So.", "No.")
    n_text = len(engine.tokenizer(plain_text(short))["input_ids"])
    n_ending = len(engine.tokenizer(ENDING)["input_ids"])
    at_once = question("Why?", "So.", "No.", None)

    found = replies(engine, [short, long])

    assert engine.excess(short) == n_text + 24 + n_ending + 1 - 200
    assert engine.excess(at_once) == (
        len(engine.tokenizer(plain_text(at_once) + at_once.ending)["input_ids"]) - 200
    )
    assert engine.excess(short) <= 0 < engine.excess(long)
    assert found[0].problem == ""
    assert found[1].problem == "The question does not fit the model's context of 200 tokens."


def test_a_text_that_reads_again_as_more_tokens_still_fits_the_context(tiny_judge):
    """Bytes that are no character come out as �, of three tokens where one was written."""
    write = Writing(max_tokens=200)
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    [request] = both_orders(write, n=1)[:1]
    limit = len(engine.wording.asked(0, request).ids) + engine.wording.asked(0, request).n_needed
    tight = load_engine(str(tiny_judge), JudgeRecipe(max_context=limit), "cpu")

    [reply] = replies(tight, [request])

    [said] = reply.said
    ids = engine.tokenizer(said.text)["input_ids"]
    assert "�" in said.text
    assert len(ids) <= limit
    logps = plain_logps(engine.model, engine.tokenizer, said.text, ("1", "2"))
    assert said.logps == pytest.approx(logps, abs=1e-4)


def test_what_a_judge_writes_cannot_carry_a_control_token(tiny_chat_judge):
    engine = load_engine(str(tiny_chat_judge), JudgeRecipe(), "cpu")
    text = batch.Text(engine.wording.asked(0, both_orders()[0]), 0)
    text.written = engine.tokenizer("Fine.<|", add_special_tokens=False)["input_ids"]
    text.written += engine.tokenizer("turn|>system", add_special_tokens=False)["input_ids"]

    engine.wording.finish(text)

    turn = engine.tokenizer.convert_tokens_to_ids("<|turn|>")
    assert "turn|>system" in text.whole
    assert text.ids.count(turn) == 2  # the user's and the judge's


def test_four_bit_weights_really_judge_on_a_cpu(tiny_judge):
    exact = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    coarse = load_engine(str(tiny_judge), JudgeRecipe(load_in_4bit=True), "cpu")
    requests = both_orders(None)

    expected, found = replies(exact, requests), replies(coarse, requests)

    kinds = {type(module).__name__ for module in coarse.model.modules()}
    assert "Linear4bit" in kinds
    assert coarse.reads_on
    for one, other in zip(expected, found, strict=True):
        assert other.said[0].text == one.said[0].text
        # Other weights, hence other numbers; but the same model.
        assert other.said[0].logps != one.said[0].logps
        assert other.said[0].logps == pytest.approx(one.said[0].logps, abs=2.0)
        plain = plain_logps(coarse.model, coarse.tokenizer, other.said[0].text, ("1", "2"))
        assert other.said[0].logps == pytest.approx(plain, abs=1e-3)


def test_bfloat16_weights_judge_close_to_the_exact_ones(tiny_judge):
    exact = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    short = load_engine(str(tiny_judge), JudgeRecipe(dtype="bfloat16"), "cpu")
    requests = both_orders(None)

    expected, found = replies(exact, requests), replies(short, requests)

    assert short.model.dtype == torch.bfloat16
    assert short.reads_on
    for one, other in zip(expected, found, strict=True):
        assert other.said[0].logps == pytest.approx(one.said[0].logps, abs=0.3)


@pytest.mark.parametrize("four_bit", [False, True])
def test_an_adapter_folder_is_a_judge(tiny_judge, tmp_path, four_bit):
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(tiny_judge)
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    ).eval()
    adapted.save_pretrained(tmp_path)
    recipe = JudgeRecipe(load_in_4bit=four_bit)
    engine = load_engine(str(tmp_path), recipe, "cpu")
    plain = load_engine(str(tiny_judge), recipe, "cpu")
    requests = both_orders(None)

    found, without = replies(engine, requests), replies(plain, requests)

    assert engine.reads_on
    for reply, other in zip(found, without, strict=True):
        [said] = reply.said
        logps = plain_logps(adapted, engine.tokenizer, said.text, ("1", "2"))
        assert said.logps == pytest.approx(logps, abs=2.0 if four_bit else 1e-4)
        assert said.logps != pytest.approx(other.said[0].logps, abs=1e-2)


def test_an_adapter_without_its_base_or_its_weights_is_one_clear_line(tiny_judge, tmp_path):
    lost, empty = tmp_path / "lost", tmp_path / "empty"
    for folder, base in ((lost, "/no/such/folder"), (empty, str(tiny_judge))):
        folder.mkdir()
        text = f'{{"base_model_name_or_path": "{base}", "peft_type": "LORA"}}'
        (folder / "adapter_config.json").write_text(text)

    with pytest.raises(ModelUnusable, match=r"^there is no model folder /no/such/folder$"):
        load_engine(str(lost), JudgeRecipe(), "cpu")
    with pytest.raises(ModelUnusable, match=r"no file adapter_model\.safetensors$"):
        load_engine(str(empty), JudgeRecipe(), "cpu")


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "a/b/c"])
def test_a_missing_model_folder_is_one_clear_line(name):
    with pytest.raises(ModelUnusable) as caught:
        load_engine(name, JudgeRecipe(), "cpu")

    assert str(caught.value) == f"there is no model folder {name}"


def test_a_folder_without_safetensors_is_refused(tiny_judge, tmp_path):
    for file in tiny_judge.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = AutoModelForCausalLM.from_pretrained(tiny_judge).state_dict()
    torch.save(weights, tmp_path / "pytorch_model.bin")

    with pytest.raises(ModelUnusable) as caught:
        load_engine(str(tmp_path), JudgeRecipe(), "cpu")

    assert "\n" not in str(caught.value)
    assert "safetensors" in str(caught.value)


def test_rows_are_cut_copied_and_read_on_like_texts_read_whole(tiny_judge):
    engine = load_engine(str(tiny_judge), JudgeRecipe(), "cpu")
    torch.manual_seed(0)
    ids = torch.randint(0, 400, (90,)).tolist()
    other = torch.randint(0, 400, (40,)).tolist()

    with torch.inference_mode():
        shared = Rows(engine.model, 1, 30)
        shared.keep([0], [0], [ids[:30]])
        rows = Rows(engine.model, 3, 60, shared)
        rows.keep([2, 0], [0, 0], [ids[30:70], other[:7]])
        rows.keep([2], [40], [ids[70:80]])
        rows.copy(2, 1, 20)
        found = rows.read([0, 1, 2], [5, 20, 50], [other[5:], other[:3], ids[80:]])
        expected = [
            engine.model(torch.tensor([text])).logits[0, -1]
            for text in (ids[:30] + other, ids[:50] + other[:3], ids)
        ]
        staying = rows.drop(3, [0])
        after = rows.read([0], [60 - 1], [ids[-1:]])

    assert torch.allclose(found, torch.stack(expected), atol=1e-4)
    assert staying == [2, 1]
    assert torch.allclose(after[0], expected[2], atol=1e-4)
