"""Log-probabilities of given text: against transformers, against what generation says of its own tokens, on a mesh."""

import numpy as np
import pytest

from qwen3_jax import from_pretrained, save_pretrained
from qwen3_jax.infer import GenerationConfig, generate, score
from qwen3_jax.infer.decode import TRACES
from qwen3_jax.sharding import make_mesh

PROMPTS = ["What is 3", "user hi assistant", "hello 你好", "What is the answer? " * 12]
COMPLETIONS = [" plus 4? The answer is 7.", "привет мир", "", " now" * 30 + "<|im_end|>"]
CHAT = [{"role": "user", "content": "What is 3 plus 4?"}]


@pytest.mark.parametrize("which", ["dense", "moe"])
def test_scores_equal_those_of_transformers(which, request, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    ready = request.getfixturevalue(which)
    save_pretrained(tmp_path, ready.model, ready.params)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager").eval()
    for prompt, end, found in zip(PROMPTS, COMPLETIONS, score(*ready, PROMPTS, COMPLETIONS), strict=True):
        before, after = ready.tok.encode(prompt), ready.tok.encode(end)
        assert len(found) == len(after)
        with torch.no_grad():
            logits = theirs(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
        expected = torch.log_softmax(logits, -1)[torch.arange(len(after)), torch.tensor(after, dtype=torch.long)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_scores_equal_the_log_probs_of_generation(dense):
    """Of text that encodes to the tokens that were made; after a chat prompt too."""
    config = GenerationConfig(temperature=0.0, max_new_tokens=12, log_probs=True, enable_thinking=False)
    (result,) = generate(*dense, [CHAT], config)
    text = dense.tok.decode(result.tokens)
    if dense.tok.encode(text) != result.tokens:
        text = "The answer is 7."
        biases = dict.fromkeys(dense.tok.encode(text), 100)
        (result,) = generate(
            *dense,
            [CHAT],
            GenerationConfig(
                temperature=0.0, max_new_tokens=4, logit_bias=biases, log_probs=True, enable_thinking=False
            ),
        )
        text = dense.tok.decode(result.tokens)
    assert dense.tok.encode(text) == result.tokens
    (found,) = score(*dense, [CHAT], [text], enable_thinking=False)
    np.testing.assert_allclose(found, result.log_probs, rtol=1e-4, atol=1e-4)


def test_scores_on_a_mesh_and_nothing_recompiles(dense, tmp_path):
    expected = score(*dense, PROMPTS, COMPLETIONS)
    before = dict(TRACES)
    score(*dense, [PROMPTS[1]] * 20, [COMPLETIONS[1]] * 20)
    assert dict(TRACES) == before
    save_pretrained(tmp_path, dense.model, dense.params, tokenizer=dense.tok)
    for sizes in ({"tensor": 2, "data": 4}, {"fsdp": 4, "tensor": 2}):
        model, params = from_pretrained(tmp_path, dtype="float32", mesh=make_mesh(**sizes))
        for found, one in zip(score(model, params, dense.tok, PROMPTS, COMPLETIONS), expected, strict=True):
            np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-4)


def test_what_is_refused(dense):
    with pytest.raises(ValueError, match="one text for each prompt, got 1 for 2 prompts"):
        score(*dense, ["a", "b"], ["c"])
    with pytest.raises(ValueError, match="must fit the context of 4096"):
        score(*dense, ["a"], ["b c " * 4000])
