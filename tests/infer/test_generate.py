"""Generation end to end on tiny random models: budgets, modes, batches, streaming, and what is refused."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qwen3_jax.config import ModelConfig
from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.infer import GenerationConfig, generate, stream
from qwen3_jax.infer.decode import TRACES
from qwen3_jax.infer.engine import Engine
from qwen3_jax.infer.rows import prepare
from qwen3_jax.network.buckets import prompt_bucket
from qwen3_jax.network.cache import grow_cache
from qwen3_jax.parameters.specs import restack
from qwen3_jax.text.tokenizer import load_tokenizer
from tests.tiny import write_tokenizer

GREEDY = GenerationConfig(temperature=0.0, max_new_tokens=24)
OPEN = "user hi assistant <think>\n"
CHAT = [{"role": "user", "content": "What is 3 plus 4?"}]


def with_ends(ready, *ends):
    return ready._replace(model=ready.model.clone(generation=GenerationDefaults(eos_token_ids=ends)))


def greedy_without_cache(ready, prompt, count):
    """The reference: the whole sequence through the model for every token."""
    tokens = ready.tok.encode(prompt) if isinstance(prompt, str) else list(prompt)
    start = len(tokens)
    valid = ready.tok.vocab_size
    for _ in range(count):
        padded = np.zeros((1, 512), np.int32)
        padded[0, : len(tokens)] = tokens
        logits = ready.model.apply({"params": ready.params}, jnp.asarray(padded)).logits
        tokens.append(int(np.argmax(logits[0, len(tokens) - 1, :valid])))
    return tokens[start:]


@pytest.mark.parametrize("which", ["dense", "moe"])
def test_greedy_equals_transformers(which, request, tmp_path):
    pytest.importorskip("torch")
    import torch
    from transformers import AutoModelForCausalLM

    from qwen3_jax import save_pretrained

    ready = request.getfixturevalue(which)
    save_pretrained(tmp_path, ready.model, ready.params)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = ["What is 3", "system user assistant What is the answer? 你好 " * 8]
    results = generate(*ready, prompts, dataclasses.replace(GREEDY, max_new_tokens=64))
    banned = [[i] for i in range(ready.tok.vocab_size, ready.model.config.vocab_size)]  # rows that are padding
    for prompt, result in zip(prompts, results, strict=True):
        ids = torch.tensor([ready.tok.encode(prompt)])
        out = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=64,
            bad_words_ids=banned,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert result.tokens == out[0, ids.shape[1] :].tolist()
        assert len(result.tokens) == 64


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("budget", [1, 5, 12])
def test_the_budget_truncates_exactly(dense, budget, temperature):
    config = GenerationConfig(temperature=temperature, thinking_budget=budget, max_new_tokens=80, seed=3, top_k=0)
    (result,) = generate(*dense, [OPEN], config)
    closing = dense.tok.encode(config.stop_text)
    assert result.thinking_tokens == budget
    assert result.budget_exhausted
    assert result.tokens[budget : budget + len(closing)] == closing
    assert dense.tok.end_think_id not in result.tokens[:budget]
    assert len(result.tokens) == 80
    assert result.finish_reason == "length"
    assert result.thinking.endswith("I have to give the solution based on the thinking directly now.")
    # What comes after the text is decided by the model that has read it: as without a cache.
    if temperature == 0:
        read = dense.tok.encode(OPEN) + result.tokens[: budget + len(closing)]
        assert result.tokens[budget + len(closing) :][:6] == greedy_without_cache(dense, read, 6)


def test_text_fed_at_the_budget_can_be_any(dense):
    for text, fed in (("stop.\n</think>\n\n", "stop.\n</think>\n\n"), ("enough", "enough\n</think>\n\n")):
        config = GenerationConfig(thinking_budget=3, max_new_tokens=40, stop_thinking_text=text)
        (result,) = generate(*dense, [OPEN], config)
        closing = dense.tok.encode(fed)
        assert result.tokens[3 : 3 + len(closing)] == closing
    paper = GenerationConfig(thinking_budget=3, max_new_tokens=60, stop_thinking_text="paper")
    (result,) = generate(*dense, [OPEN], paper)
    assert dense.tok.decode(result.tokens).find("directly now.\n</think>.\n\n") > 0
    assert not result.content.startswith(".")  # the rest of the fed text is not the model's answer


def test_text_of_ones_own_after_the_tag_is_content(dense):
    """Fed at the budget, it begins the answer, and the model goes on from there."""
    for text in ("stop.\n</think>\n\nThe answer is", "stop</think>The answer is"):
        config = GenerationConfig(thinking_budget=3, max_new_tokens=40, stop_thinking_text=text, log_probs=True)
        (result,) = generate(*dense, [OPEN], config)
        assert result.content.startswith("The answer is")
        assert (result.thinking_tokens, result.budget_exhausted) == (3, True)
        assert result.sampled == [
            not 3 <= index < 3 + len(dense.tok.encode(text)) for index in range(len(result.tokens))
        ]
        pieces = list(stream(*dense, [OPEN], config))
        assert "".join(piece.content for piece in pieces) == result.content


def test_a_block_that_closes_itself_at_the_budget_is_not_cut(dense):
    """The token after the budget's last one is the model's own tag: nothing is fed."""
    end = dense.tok.end_think_id
    budget = 4
    config = dataclasses.replace(GREEDY, thinking_budget=budget, max_new_tokens=60, log_probs=True)
    (cut,) = generate(*dense, [OPEN], config)
    assert cut.budget_exhausted
    # A bias that grows with nothing else: the tag wins everywhere, so the first sample closes the block.
    (at_once,) = generate(*dense, [OPEN], dataclasses.replace(config, logit_bias={end: 100.0}, max_new_tokens=40))
    assert at_once.tokens[0] == end
    assert (at_once.thinking_tokens, at_once.budget_exhausted) == (0, False)
    # And it wins exactly at the budget where no end of the answer may come before: `</think>` as the end token.
    late = dataclasses.replace(config, logit_bias={end: 100.0}, stop_token_ids=(end,), min_tokens=budget)
    (natural,) = generate(*dense, [OPEN], dataclasses.replace(late, max_new_tokens=40))
    assert natural.tokens[:budget] == cut.tokens[:budget]
    assert natural.tokens[budget] == end
    assert (natural.thinking_tokens, natural.budget_exhausted) == (budget, False)
    assert all(natural.sampled)


def test_log_probs_are_those_of_the_model(dense):
    """At temperature 1, of every token, fed ones included, against the whole sequence through the model at once."""
    configs = [
        GenerationConfig(temperature=0.7, top_k=12, top_p=0.9, seed=4, max_new_tokens=40, log_probs=True),
        dataclasses.replace(GREEDY, thinking_budget=5, max_new_tokens=50, log_probs=True),
        dataclasses.replace(GREEDY, max_new_tokens=9),
    ]
    drawn, budgeted, plain = generate(*dense, ["What is 3", OPEN, "hi"], configs)
    assert (plain.log_probs, plain.sampling_log_probs, plain.sampled) == (None, None, None)
    for prompt, result in (("What is 3", drawn), (OPEN, budgeted)):
        ids = dense.tok.encode(prompt)
        logits = dense.model.apply({"params": dense.params}, jnp.asarray([ids + result.tokens], jnp.int32)).logits[0]
        expected = jax.nn.log_softmax(logits)[len(ids) - 1 : -1][jnp.arange(len(result.tokens)), result.tokens]
        np.testing.assert_allclose(result.log_probs, expected, rtol=1e-4, atol=1e-4)
    assert all(drawn.sampled)
    assert all(with_cuts <= 0 for with_cuts in drawn.sampling_log_probs)
    assert drawn.sampling_log_probs != drawn.log_probs
    assert budgeted.sampling_log_probs == [0.0] * len(budgeted.tokens)  # greedy or fed: certain
    assert budgeted.sampled.count(False) == len(dense.tok.encode(configs[1].stop_text))


def test_n_answers_are_like_an_input_given_n_times(dense):
    config = GenerationConfig(temperature=1.2, top_k=0, top_p=1.0, seed=5, max_new_tokens=12)
    one = generate(*dense, ["hello", "What"], config)
    three = generate(*dense, ["hello", "What"], dataclasses.replace(config, n=3))
    assert [three[0], three[3]] == one  # the first is what it is without n
    assert len({tuple(result.tokens) for result in three}) == 6
    mixed = generate(*dense, ["hello", "What"], [dataclasses.replace(config, n=2), config])
    assert len(mixed) == 3
    with pytest.warns(UserWarning, match=r"no effect: n \(at temperature 0 all answers are the same\)"):
        prepare(dense.model, dense.tok, ["hello"], dataclasses.replace(GREEDY, n=2), None)


def test_more_inputs_than_slots(dense):
    """Rows are admitted where others end: prompts, budgets and lengths of every kind, each as if it were alone."""
    inputs = ["hello", OPEN, CHAT, "What is 3", OPEN + "世界", "a b c d e f g h i j k l m n o p q r s t", "7"]
    lengths = [3, 60, 20, 1, 44, 30, 12]
    configs = [
        dataclasses.replace(GREEDY, max_new_tokens=length, thinking_budget=4 if length > 40 else None, log_probs=True)
        for length in lengths
    ]
    alone = [generate(*dense, [item], [config])[0] for item, config in zip(inputs, configs, strict=True)]
    for slots in (1, 2, 3):
        results = generate(*dense, inputs, configs, max_num_seqs=slots)
        for result, one in zip(results, alone, strict=True):
            assert result.tokens == one.tokens
            assert (result.content, result.thinking_tokens) == (one.content, one.thinking_tokens)
            np.testing.assert_allclose(result.log_probs, one.log_probs, rtol=1e-4, atol=1e-4)


def test_slots_on_an_accelerator_are_refilled_behind_the_call_in_flight(dense, monkeypatch):
    inputs, configs = (
        ["hello", "What", "7", OPEN, "hi"],
        [dataclasses.replace(GREEDY, max_new_tokens=length) for length in (3, 17, 9, 40, 5)],
    )
    expected = [generate(*dense, [item], [config])[0] for item, config in zip(inputs, configs, strict=True)]
    monkeypatch.setattr(sys.modules["qwen3_jax.infer.generate"], "_rhythm", lambda _: (1, 4, True))
    assert generate(*dense, inputs, configs, max_num_seqs=2) == expected


def test_slots_are_refilled_without_recompiling(dense):
    config = dataclasses.replace(GREEDY, max_new_tokens=9)
    inputs = [f"{word} {number}" for word in ("What", "hello") for number in range(6)]
    generate(*dense, inputs, config, max_num_seqs=2)
    before = dict(TRACES)
    generate(*dense, [*inputs, "another one", "and one more"], dataclasses.replace(config, seed=3), max_num_seqs=2)
    assert dict(TRACES) == before


def test_a_stopped_row_frees_its_slot(dense):
    (free,) = generate(*dense, ["hello"], GREEDY)
    stop = free.content[4:7]
    results = generate(*dense, ["hello"] * 5, dataclasses.replace(GREEDY, stop=stop), max_num_seqs=2)
    assert [result.content for result in results] == [free.content[: free.content.index(stop)]] * 5
    assert {result.finish_reason for result in results} == {"stop"}


def test_end_tokens_can_be_ignored_added_and_put_off(dense):
    (free,) = generate(*dense, ["hello"], GREEDY)
    end, first = free.tokens[10], free.tokens.index(free.tokens[10])
    ended = with_ends(dense, end)
    (ignored,) = generate(*ended, ["hello"], dataclasses.replace(GREEDY, ignore_eos=True))
    assert (ignored.tokens, ignored.finish_reason) == (free.tokens, "length")
    (added,) = generate(*dense, ["hello"], dataclasses.replace(GREEDY, stop_token_ids=[end]))
    assert (added.tokens, added.finish_reason) == (free.tokens[: first + 1], "stop")
    (late,) = generate(*ended, ["hello"], dataclasses.replace(GREEDY, min_tokens=first + 4))
    assert len(late.tokens) > first + 4
    assert end not in late.tokens[: first + 4]
    # Nor does a stop string end an answer that is too short.
    stop = free.content[2:4]
    (short,) = generate(*dense, ["hello"], dataclasses.replace(GREEDY, stop=stop))
    (long,) = generate(*dense, ["hello"], dataclasses.replace(GREEDY, stop=stop, min_tokens=20))
    assert len(short.tokens) < 20 <= len(long.tokens)


def test_a_bias_and_penalties_change_what_is_written(dense):
    (free,) = generate(*dense, ["hello"], GREEDY)
    (only,) = generate(*dense, ["hello"], dataclasses.replace(GREEDY, logit_bias={"65": 100}))
    assert only.tokens == [65] * 24
    (without,) = generate(*dense, ["hello"], dataclasses.replace(GREEDY, logit_bias={free.tokens[0]: -100}))
    assert free.tokens[0] not in without.tokens
    (new,) = generate(*dense, ["hello"], dataclasses.replace(GREEDY, repetition_penalty=1e6))
    assert len(set(new.tokens)) == 24
    assert not set(new.tokens) & set(dense.tok.encode("hello"))  # the prompt counts, as in transformers
    model = dense.model.clone(generation=GenerationDefaults(eos_token_ids=(511,), repetition_penalty=1e6))
    (from_file,) = generate(model, dense.params, dense.tok, ["hello"], GREEDY)
    assert from_file == new


def test_a_budget_of_0_is_the_hard_switch(dense):
    prompts = [
        prepare(dense.model, dense.tok, [CHAT], GenerationConfig(max_new_tokens=8, **setting), None)[0].tokens
        for setting in ({"thinking_budget": 0}, {"enable_thinking": False}, {})
    ]
    assert prompts[0] == prompts[1] != prompts[2]
    assert dense.tok.decode(prompts[0]).endswith("<think>\n\n</think>\n\n")
    # An open block is closed at once, into the same empty block.
    (result,) = generate(*dense, [OPEN], GenerationConfig(thinking_budget=0, max_new_tokens=20))
    assert dense.tok.decode(result.tokens).startswith("\n</think>\n\n")
    assert (result.thinking, result.thinking_tokens, result.budget_exhausted) == ("", 0, True)


def test_a_block_that_an_earlier_turn_closed_says_nothing(dense):
    history = "<|im_start|>assistant\n<think>\na\n</think>\n\nb<|im_end|>\n<|im_start|>assistant\n<think>\n"
    (result,) = generate(*dense, [history], GenerationConfig(thinking_budget=4, max_new_tokens=50))
    assert (result.thinking_tokens, result.budget_exhausted) == (4, True)
    # And one that an earlier turn left open does not make this turn think.
    history = "<|im_start|>user\nwhat is <think>?<|im_end|>\n<|im_start|>assistant\n"
    (row,) = prepare(dense.model, dense.tok, [history], GREEDY, None)
    assert not row.open_block


def test_one_batch_mixes_modes_and_budgets(dense):
    configs = [
        dataclasses.replace(GREEDY, thinking_budget=5, max_new_tokens=60),
        dataclasses.replace(GREEDY, max_new_tokens=30),
        dataclasses.replace(GREEDY, thinking_budget=0, max_new_tokens=20),
        dataclasses.replace(GREEDY, thinking_budget=9, max_new_tokens=60, stop_thinking_text="now</think>"),
    ]
    inputs = [OPEN, "hello", CHAT, OPEN + "世界"]
    together = generate(*dense, inputs, configs)
    for item, config, result in zip(inputs, configs, together, strict=True):
        (alone,) = generate(*dense, [item], config)
        assert alone == result


def test_a_row_is_the_same_to_the_bit_whatever_its_neighbours(dense):
    sampled = GenerationConfig(temperature=1.0, top_k=0, top_p=0.9, seed=5, max_new_tokens=30, presence_penalty=0.5)
    others = [GREEDY, GenerationConfig(temperature=2.0, top_k=0, max_new_tokens=9, thinking_budget=0)]
    rows = [
        generate(*dense, ["What is", other], [sampled, config])[0]
        for other, config in zip(["hi", "3 plus 4"], others, strict=True)
    ]
    assert rows[0] == rows[1]


def test_seeds(dense):
    config = GenerationConfig(temperature=1.5, top_k=0, top_p=1.0, seed=5, max_new_tokens=16)

    def tokens(inputs, configs):
        return [result.tokens for result in generate(*dense, inputs, configs)]

    same = tokens(["hello", "hello", "hello"], config)
    assert same[0] != same[1] != same[2]  # one config: each row its own stream
    assert tokens(["hello", "hello", "hello"], config) == same  # and the same again
    listed = tokens(["hello", "hello", "hello"], [config, config, dataclasses.replace(config, seed=6)])
    assert listed[0] == listed[1] != listed[2]  # a list: the seeds as given
    assert listed[0] == tokens(["hello"], [config])[0]


def test_pieces_join_to_the_result(dense):
    config = GenerationConfig(thinking_budget=6, max_new_tokens=60, temperature=1.0, top_k=0)
    inputs = [OPEN, "What is 世界", CHAT]
    pieces = list(stream(*dense, inputs, config))
    assert len(pieces) > 2 * len(inputs)
    assert generate(*dense, inputs, config) == [
        next(p.result for p in pieces if p.index == i and p.result) for i in range(3)
    ]
    for index in range(3):
        mine = [piece for piece in pieces if piece.index == index]
        result = mine[-1].result
        assert all(piece.result is None for piece in mine[:-1])
        assert "".join(piece.thinking for piece in mine) == result.thinking
        assert "".join(piece.content for piece in mine) == result.content
        assert [call for piece in mine for call in piece.tool_calls] == result.tool_calls


def test_nothing_recompiles(dense):
    base = GenerationConfig(max_new_tokens=30, temperature=0.7, thinking_budget=3, stop_thinking_text="now")
    generate(*dense, ["one two", OPEN], base)
    before = dict(TRACES)
    for change in (
        {"thinking_budget": 20},
        {"thinking_budget": None},
        {"thinking_budget": 0},
        {"stop_thinking_text": "enough of this now"},
        {"max_new_tokens": 77},
        {"temperature": 0.0},
        {"temperature": 1.3, "top_k": 0, "top_p": 0.5},
        {"top_k": 3, "min_p": 0.1, "presence_penalty": 1.5},
        {"seed": 99},
        {"stop": ("7", "xyz")},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.5, "logit_bias": {5: 1.0, 6: -2.0}},
        {"min_tokens": 12, "stop_token_ids": (3, 4)},
        {"ignore_eos": True, "log_probs": True},
    ):
        generate(*dense, ["one two three", OPEN], dataclasses.replace(base, **change))
    generate(*dense, ["one", "</think> <think>"], base)  # other lengths within the bucket
    assert dict(TRACES) == before


def test_a_cache_that_grows_changes_nothing(dense):
    (result,) = generate(*dense, ["What is"], dataclasses.replace(GREEDY, max_new_tokens=300))
    assert result.tokens == greedy_without_cache(dense, "What is", 300)


def test_the_cache_grows_to_what_is_needed_and_no_further(dense, monkeypatch):
    """A prompt of up to 16 tokens and 250 new ones take 266 slots, in steps of 8."""
    module, grown = sys.modules["qwen3_jax.infer.engine"], []
    monkeypatch.setattr(module, "CACHE_QUANTUM", 8)
    monkeypatch.setattr(sys.modules["qwen3_jax.infer.schedule"], "CACHE_QUANTUM", 8)
    monkeypatch.setattr(module, "grow_cache", lambda cache, slots: grown.append(slots) or grow_cache(cache, slots))
    (result,) = generate(*dense, ["What is"], dataclasses.replace(GREEDY, max_new_tokens=250))
    assert grown == [272]  # from 144; doubled it would be 288
    assert len(result.tokens) == 250 or result.finish_reason == "stop"


@pytest.mark.parametrize("prompt", ["What is", OPEN], ids=["raw", "chat"])
def test_an_accelerator_gets_its_next_call_before_the_last_one_is_read(dense, prompt, monkeypatch):
    module, events = sys.modules["qwen3_jax.infer.generate"], []
    step, emit, config = Engine.step, module._emit, dataclasses.replace(GREEDY, max_new_tokens=20)
    expected = generate(*dense, [prompt, "hello"], config)
    assert module._rhythm("gpu") == (1, 32, True)
    monkeypatch.setattr(module, "_rhythm", lambda _: (1, 4, True))
    monkeypatch.setattr(Engine, "step", lambda *x: events.append("dispatch") or step(*x))
    monkeypatch.setattr(module, "_emit", lambda *x: events.append("read") or emit(*x))
    assert generate(*dense, [prompt, "hello"], config) == expected
    assert events[:4] == ["dispatch", "read", "dispatch", "read"]


def test_a_yarn_model_takes_what_its_factor_allows(dense):
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    values = {**dense.model.config.to_hf(), "max_position_embeddings": 80}
    values.pop("rope_parameters", None)
    config = ModelConfig.from_hf({**values, "rope_scaling": yarn})
    model = dense.model.clone(config=config)
    (result,) = generate(model, dense.params, dense.tok, ["hi " * 50], dataclasses.replace(GREEDY, max_new_tokens=100))
    assert len(result.tokens) == 100 or result.finish_reason == "stop"
    with pytest.raises(ValueError, match="must fit the context of 256"):
        generate(model, dense.params, dense.tok, ["hi"], dataclasses.replace(GREEDY, max_new_tokens=260))


def test_a_prompt_longer_than_a_chunk(dense):
    prompt = "What is the answer? " * 130
    assert len(dense.tok.encode(prompt)) > 512
    (long, short) = generate(*dense, [prompt, "hi"], dataclasses.replace(GREEDY, max_new_tokens=5))
    tokens = jnp.asarray([dense.tok.encode(prompt) + long.tokens[:-1]], jnp.int32)
    logits = dense.model.apply({"params": dense.params}, tokens).logits[0, -5:, : dense.tok.vocab_size]
    assert long.tokens == jnp.argmax(logits, axis=-1).tolist()
    assert short == generate(*dense, ["hi"], dataclasses.replace(GREEDY, max_new_tokens=5))[0]


def test_both_layouts_answer_the_same(moe):
    stacked = moe._replace(params=restack(moe.params, moe.model.config))
    assert generate(*stacked, ["hello", OPEN], GREEDY) == generate(*moe, ["hello", OPEN], GREEDY)


def test_an_end_token_ends_the_row(dense):
    (free,) = generate(*dense, ["hello"], GREEDY)
    end = free.tokens[10]
    (ended, other) = generate(*with_ends(dense, end), ["hello", "What"], GREEDY)
    assert ended.tokens == free.tokens[: free.tokens.index(end) + 1]
    assert ended.finish_reason == "stop"
    assert ended.content == dense.tok.decode(ended.tokens[:-1])
    (alone,) = generate(*with_ends(dense, end), ["What"], GREEDY)
    assert other == alone


def test_stop_strings_end_the_content_and_are_not_part_of_it(dense):
    (free,) = generate(*dense, ["hello"], GREEDY)
    stop = free.content[8:10]
    config = dataclasses.replace(GREEDY, stop=(stop, "never to be seen"))
    (result,) = generate(*dense, ["hello"], config)
    assert result.content == free.content[: free.content.index(stop)]
    assert result.finish_reason == "stop"
    assert result.tokens == free.tokens[: len(result.tokens)]
    assert stop in dense.tok.decode(result.tokens)


def test_padded_vocabulary_is_never_sampled(dense):
    config = GenerationConfig(temperature=5.0, top_k=0, top_p=1.0, max_new_tokens=100)
    results = generate(*dense, ["hello"] * 8, config)
    assert max(max(result.tokens) for result in results) < dense.tok.vocab_size < dense.model.config.vocab_size


def test_defaults_come_from_the_checkpoint_then_from_the_mode(dense):
    def filled(config, **defaults):
        model = dense.model.clone(generation=GenerationDefaults(**defaults))
        (row,) = prepare(model, dense.tok, [CHAT], dataclasses.replace(config, max_new_tokens=100), None)
        return tuple(getattr(row.config, name) for name in ("temperature", "top_p", "top_k", "min_p"))

    assert filled(GenerationConfig()) == (0.6, 0.95, 20, 0.0)
    assert filled(GenerationConfig(enable_thinking=False)) == (0.7, 0.8, 20, 0.0)
    assert filled(GenerationConfig(thinking_budget=0)) == (0.7, 0.8, 20, 0.0)
    assert filled(GenerationConfig(enable_thinking=False), temperature=0.6, top_p=0.95) == (0.6, 0.95, 20, 0.0)
    assert filled(GenerationConfig(temperature=0.0, top_k=5), temperature=0.6, top_k=9) == (0.0, 0.95, 5, 0.0)


def test_max_new_tokens_grows_with_the_budget(dense):
    model = dense.model.clone(config=dataclasses.replace(dense.model.config, max_position_embeddings=100_000))

    def longest(**settings):
        (row,) = prepare(model, dense.tok, [CHAT], GenerationConfig(**settings), None)
        return row.max_new_tokens

    assert longest() == 32768
    assert longest(thinking_budget=1000) == 32768 + 1000 + len(dense.tok.encode(GenerationConfig().stop_text))
    (row,) = prepare(dense.model, dense.tok, [CHAT], GenerationConfig(), None)
    assert row.max_new_tokens == 4096 - len(row.tokens)


def test_a_budget_counts_the_tag_that_opens_the_block(dense):
    """Of the template's two modes the thinking one leaves `<think>` to the model; one token of content must be left."""
    closing = len(dense.tok.encode(GenerationConfig().stop_text))
    for prompt, least in ((CHAT, 8 + closing + 2), (OPEN, 8 + closing + 1)):
        config = GenerationConfig(thinking_budget=8, max_new_tokens=least)
        assert prepare(dense.model, dense.tok, [prompt], config, None)[0].max_new_tokens == least
        with pytest.raises(ValueError, match=f"set max_new_tokens to at least {least}"):
            prepare(dense.model, dense.tok, [prompt], dataclasses.replace(config, max_new_tokens=least - 1), None)


@pytest.mark.parametrize(
    ("inputs", "config", "message"),
    [
        ("hello", {}, "inputs must be a list"),
        ([], {}, "at least one prompt"),
        (CHAT, {}, "list of conversations"),
        ([""], {}, "prompt must not be empty"),
        ([[]], {}, "message"),
        ([[{"role": "nobody", "content": "hi"}]], {}, "role"),
        ([OPEN], {"thinking_budget": 10, "max_new_tokens": 30}, "room for an answer.*at least"),
        (["hello " * 5000], {}, "prompt must be shorter than the context of 4096"),
        (["hello"], {"max_new_tokens": 5000}, "set max_new_tokens to at most"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_runs(dense, inputs, config, message):
    before = dict(TRACES)
    with pytest.raises(ValueError, match=message) as caught:
        generate(*dense, inputs, GenerationConfig(**config))
    assert "\n" not in str(caught.value)
    assert dict(TRACES) == before


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": float("nan")},
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"top_p": 1.1},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 2.0},
        {"presence_penalty": float("nan")},
        {"thinking_budget": -1},
        {"max_new_tokens": 0},
        {"seed": -1},
        {"seed": 2**32},
        {"stop": ("",)},
        {"stop_thinking_text": ""},
        {"repetition_penalty": 0},
        {"repetition_penalty": -1.0},
        {"frequency_penalty": 2.5},
        {"logit_bias": {5: 101}},
        {"logit_bias": {-1: 1}},
        {"logit_bias": {"x": 1}},
        {"logit_bias": dict.fromkeys(range(513), 1.0)},
        {"min_tokens": -1},
        {"n": 0},
        {"stop_token_ids": (-1,)},
    ],
)
def test_settings_no_sampler_can_use(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=name) as caught:
        GenerationConfig(**settings)
    assert "\n" not in str(caught.value)


def test_a_setting_without_effect_is_said(dense):
    for inputs, settings, name in (
        (["hello"], {"enable_thinking": False}, "enable_thinking"),
        ([CHAT], {"enable_thinking": False, "thinking_budget": 5}, "thinking_budget"),
    ):
        with pytest.warns(UserWarning, match=name):
            prepare(dense.model, dense.tok, inputs, GenerationConfig(max_new_tokens=60, **settings), None)


def test_prompt_buckets():
    assert [prompt_bucket(n) for n in (1, 16, 17, 512, 513, 1025)] == [16, 16, 32, 512, 1024, 1536]


def test_a_template_without_the_switch_is_said_and_keeps_its_own_mode(dense, tmp_path):
    """Thinking-2507: the prompt opens the block whatever is asked for."""
    opened = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    opened += "<|im_start|>assistant\n<think>\n"
    tok = load_tokenizer(write_tokenizer(tmp_path, opened))
    ready = dense._replace(tok=tok)
    config = GenerationConfig(enable_thinking=False, thinking_budget=4, temperature=0.0, max_new_tokens=48)
    with pytest.warns(UserWarning, match=r"no effect: enable_thinking \(the checkpoint's template has one mode only\)"):
        (result,) = generate(*ready, [CHAT], config)
    assert (result.thinking_tokens, result.budget_exhausted) == (4, True)
    with pytest.warns(UserWarning, match="enable_thinking"):
        (row,) = prepare(ready.model, tok, [CHAT], GenerationConfig(enable_thinking=False, max_new_tokens=8), None)
    assert row.config.temperature == 0.6  # the sampling of the mode it is in


def test_a_config_of_another_type_is_refused(dense):
    for config in ({"temperature": 0.0}, [{"temperature": 0.0}]):
        with pytest.raises((ValueError, TypeError)):
            generate(*dense, ["What"], config)


def test_none_stands_for_the_default():
    config = GenerationConfig(stop=None, presence_penalty=None)
    assert config.stop == ()
    assert config.resolve(GenerationDefaults(), thinks=True).presence_penalty == 0.0


def test_a_budget_beyond_the_context_names_the_largest_that_fits(dense):
    with pytest.raises(ValueError, match=r"thinking_budget must leave room .* set it to at most \d+") as error:
        generate(*dense, [CHAT], GenerationConfig(thinking_budget=10**8))
    largest = int(str(error.value).split()[-1])
    config = GenerationConfig(thinking_budget=largest)
    assert prepare(dense.model, dense.tok, [CHAT], config, None)[0].budget == largest


def test_end_tokens_outside_the_vocabulary_are_refused(dense):
    with pytest.raises(ValueError, match="end tokens must be below the vocabulary's size of 512, got 9999"):
        generate(*with_ends(dense, 9999), ["What"], GREEDY)
