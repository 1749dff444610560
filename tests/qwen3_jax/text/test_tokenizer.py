"""Tokenizers: known ids, agreement with transformers and sentencepiece, what is read from a directory, exact saving."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import processors

from qwen3_jax.text.tokenizer import Tokenizer, load_tokenizer
from tests import support
from tests.qwen3_jax.text import small_tokenizers

OFFICIAL = support.shared_dir()
STOP_THINKING = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    "\n</think>\n\n"
)
STOP_THINKING_IDS = [
    *(271, 82796, 279, 7199, 882, 553, 279, 1196, 11, 358, 614, 311),
    *(2968, 279, 6291, 3118, 389, 279, 7274, 5961, 1431, 624, 151668, 271),
]
MULTILINGUAL = [
    *small_tokenizers.TEXTS,
    "The quick brown fox doesn't jump over 13 lazy dogs, I'll say!",
    "def f(x):\n    return x ** 2  # carré\n\n\n    pass",
    "Tiếng Việt, ไทยไม่มีช่องว่าง, தமிழ், ქართული, አማርኛ, ᏣᎳᎩ, 𝕌𝕟𝕚𝕔𝕠𝕕𝕖",
    "ﷺ ﬁ ½ Å Å ㎏ \u200d \u200b \ufeff \x00 \x1b[0m",
    "<|endoftext|><|im_start|>assistant\n<think>\nsecret</think><tool_call>{}</tool_call><|fim_prefix|> <think>",
    "مرحبا بالعالم 123 ١٢٣ १२३",
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_tokenizers.bpe_directory(tmp_path_factory.mktemp("bpe"))


@pytest.fixture(scope="module")
def tok(directory: Path) -> Tokenizer:
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def official_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if OFFICIAL is None:
        pytest.skip("no shared data: the official tokenizer is not here")
    target = tmp_path_factory.mktemp("official")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).symlink_to(OFFICIAL / "qwen3" / "tokenizer" / name)
    generation = OFFICIAL / "qwen3" / "configs" / "hybrid.generation_config.json"
    (target / "generation_config.json").symlink_to(generation)
    return target


@pytest.fixture(scope="module")
def official(official_directory: Path) -> Tokenizer:
    return load_tokenizer(official_directory)


class TestOfficial:
    def test_known_ids(self, official: Tokenizer) -> None:
        known = {
            "\n": [198],
            "\n\n": [271],
            ".\n": [624],
            ".\n\n": [382],
            "<|im_start|>assistant\n": [151644, 77091, 198],
            "<think>\n\n</think>\n\n": [151667, 271, 151668, 271],
            "/think": [20439, 766],
            "/no_think": [33100, 5854, 766],
            " /no_think": [608, 2152, 5854, 766],
            STOP_THINKING: STOP_THINKING_IDS,
        }
        assert len(STOP_THINKING_IDS) == 24
        for text, ids in known.items():
            assert official.encode(text) == ids
            assert official.decode(ids) == text

    def test_named_tokens(self, official: Tokenizer) -> None:
        assert official.vocab_size == 151669
        assert (official.eos_token_id, official.pad_token_id) == (151645, 151643)
        assert official.eos_token_ids == (151645, 151643)  # the second from generation_config.json
        assert (official.think_id, official.end_think_id) == (151667, 151668)
        assert official.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}

    def test_ids_and_text_are_those_of_transformers(self, official: Tokenizer, official_directory: Path) -> None:
        transformers = pytest.importorskip("transformers")
        reference = transformers.AutoTokenizer.from_pretrained(official_directory)
        for text in MULTILINGUAL:
            ids = official.encode(text)
            assert ids == reference(text, add_special_tokens=False)["input_ids"]
            for skip in (False, True):
                assert official.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip)
        random = np.random.default_rng(0)
        for length in range(1, 60):  # arbitrary ids: halves of characters, ids past the vocabulary
            ids = random.integers(0, 151936, length).tolist()
            for skip in (False, True):
                assert official.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip)


class TestBytePairs:
    def test_nothing_is_added_and_text_comes_back(self, tok: Tokenizer) -> None:
        for text in small_tokenizers.TEXTS:
            ids = tok.encode(text)
            assert all(type(token) is int and 0 <= token < tok.vocab_size for token in ids)
            assert tok.decode(ids) == small_tokenizers.bpe().normalizer.normalize_str(text)

    def test_ids_are_those_of_transformers(self, tok: Tokenizer, directory: Path) -> None:
        transformers = pytest.importorskip("transformers")
        reference = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
        for text in MULTILINGUAL:
            assert tok.encode(text) == reference(text, add_special_tokens=False)["input_ids"]

    def test_post_processing_padding_and_truncation_of_the_file_are_off(self, tmp_path: Path) -> None:
        strange = small_tokenizers.bpe()
        end = strange.token_to_id("<|im_end|>")
        strange.post_processor = processors.TemplateProcessing(
            single="$A <|im_end|>", special_tokens=[("<|im_end|>", end)]
        )
        strange.enable_padding(length=50)
        strange.enable_truncation(4)
        strange.save(str(tmp_path / "tokenizer.json"))
        text = "Hello, world! It's 12:30"
        assert load_tokenizer(tmp_path).encode(text) == small_tokenizers.bpe().encode(text).ids

    def test_special_tokens_are_left_out_only_on_request_and_thinking_never(self, tok: Tokenizer) -> None:
        ids = tok.encode("<think>a</think>b<|im_end|>")
        assert tok.decode(ids) == "<think>a</think>b<|im_end|>"
        assert tok.decode(ids, skip_special_tokens=True) == "<think>a</think>b"

    def test_ids_may_be_an_array(self, tok: Tokenizer) -> None:
        ids = tok.encode("Hello")
        assert tok.decode(np.array(ids, np.int32)) == tok.decode(tuple(ids)) == "Hello"

    def test_ids_without_a_token_say_nothing(self, tok: Tokenizer) -> None:
        assert tok.decode([*tok.encode("a"), tok.vocab_size, tok.vocab_size + 100, *tok.encode("b")]) == "ab"

    def test_tokens_only_in_the_configuration_are_taken_in(self, tmp_path: Path) -> None:
        size = load_tokenizer(small_tokenizers.bpe_directory(tmp_path)).vocab_size
        extra = {str(size): {"content": "<|new|>", "special": True}}
        small_tokenizers.bpe_directory(tmp_path, added_tokens_decoder=extra)
        grown = load_tokenizer(tmp_path)
        assert grown.vocab_size == size + 1
        assert grown.encode("a<|new|>b") == [*grown.encode("a"), size, *grown.encode("b")]
        assert grown.decode([size]) == "<|new|>"
        assert grown.decode([size], skip_special_tokens=True) == ""
        small_tokenizers.bpe_directory(tmp_path, added_tokens_decoder={"0": {"content": "<think>"}})
        with pytest.raises(ValueError, match="'<think>' the id 0"):
            load_tokenizer(tmp_path)


class TestSentencePiece:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"remove_extra_whitespaces": True},
            {"add_dummy_prefix": False},
            {"byte_fallback": False},
            {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
            {"model_type": "unigram"},
            {"model_type": "char", "byte_fallback": False},
            {"model_type": "char", "byte_fallback": False, "remove_extra_whitespaces": True},
            {"model_type": "word", "byte_fallback": False},
        ],
        ids=str,
    )
    def test_ids_and_text_are_those_of_the_library(self, tmp_path: Path, options: dict) -> None:
        data = small_tokenizers.sentencepiece_model(**options)
        path = tmp_path / "some.model"
        path.write_bytes(data)
        tok = load_tokenizer(path)
        reference = sentencepiece.SentencePieceProcessor(model_proto=data)
        for text in MULTILINGUAL:
            if "<|" not in text:
                ids = reference.encode(text)
                assert tok.encode(text) == ids
                assert tok.decode(ids) == reference.decode(ids)
        random = np.random.default_rng(0)
        for length in range(1, 120):  # arbitrary ids; the library never shows control tokens
            ids = random.integers(0, reference.vocab_size(), length).tolist()
            if length % 3 == 0:  # many bytes, and spaces at the beginning
                ids = [reference.piece_to_id("▁")] * (length % 2 + 1) + [
                    random.integers(5, reference.vocab_size()),
                    *ids,
                ]
                ids = [int(token) for token in ids]
            assert tok.decode(ids, skip_special_tokens=True) == reference.decode(ids)

    def test_control_and_added_tokens_are_found_in_text(self, tmp_path: Path) -> None:
        path = tmp_path / "tokenizer.model"
        path.write_bytes(small_tokenizers.sentencepiece_model())
        size = load_tokenizer(path).vocab_size
        added = {str(size): {"content": "<|extra|>", "special": False}, "2": {"content": "</s>", "special": True}}
        config = {"eos_token": "<|im_end|>", "added_tokens_decoder": added}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        tok = load_tokenizer(tmp_path)
        assert tok.vocab_size == size + 1
        assert tok.eos_token_id == tok.token_to_id("<|im_end|>")
        assert (tok.think_id, tok.end_think_id) == (tok.token_to_id("<think>"), tok.token_to_id("</think>"))
        assert tok.token_to_id("<|extra|>") == size
        assert tok.token_to_id("no such piece") is None
        text = "Hello<|im_start|>user\n hi<|extra|>there</s> <|im_end|>"
        ids = tok.encode(text)
        assert ids.count(tok.token_to_id("<|im_start|>")) == ids.count(size) == ids.count(2) == 1
        assert tok.decode(ids) == text
        assert tok.decode(ids, skip_special_tokens=True) == "Hellouser\n hi<|extra|>there "
        for text in ["<|im_start|> hi", " two  spaces ", "<think>\n\n</think>\n\nx", "<|im_end|>"]:
            assert tok.decode(tok.encode(text)) == text

    def test_a_model_alone_names_its_tokens(self, tmp_path: Path) -> None:
        (tmp_path / "m.model").write_bytes(small_tokenizers.sentencepiece_model())
        tok = load_tokenizer(tmp_path / "m.model")
        assert tok.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        assert (tok.eos_token_id, tok.pad_token_id) == (2, None)
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": null, "bos_token": {"content": "<|im_start|>"}}')
        configured = load_tokenizer(tmp_path)
        assert configured.eos_token_id is None
        assert configured.special_tokens == {"bos_token": "<|im_start|>", "unk_token": "<unk>"}

    def test_an_added_token_with_another_id_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "m.model").write_bytes(small_tokenizers.sentencepiece_model())
        config = tmp_path / "tokenizer_config.json"
        for added in ({"7": {"content": "<|other|>"}}, {"100000": {"content": "</s>"}}):
            config.write_text(json.dumps({"added_tokens_decoder": added}), encoding="utf-8")
            with pytest.raises(ValueError, match=r"m\.model of .* must give the added token"):
                load_tokenizer(tmp_path)
        config.write_text(json.dumps({"added_tokens_decoder": {"900": {"content": "<mask>", "lstrip": True}}}))
        with pytest.raises(ValueError, match="'<mask>' itself, got it only as an added token with lstrip"):
            load_tokenizer(tmp_path)


class TestTemplates:
    def test_a_template_file_comes_before_the_configuration(self, tmp_path: Path) -> None:
        small_tokenizers.bpe_directory(tmp_path, template="file", chat_template="configuration")
        assert load_tokenizer(tmp_path).chat_template == "file"
        (tmp_path / "chat_template.jinja").unlink()
        assert load_tokenizer(tmp_path).chat_template == "configuration"

    def test_named_templates_and_the_one_for_tools(self, tmp_path: Path) -> None:
        named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with tools"}]
        small_tokenizers.bpe_directory(tmp_path, chat_template=named)
        (tmp_path / "chat_template.jinja").unlink()
        tok = load_tokenizer(tmp_path)
        messages = [{"role": "user", "content": "hi"}]
        assert tok.render(messages) == "plain"
        assert tok.render(messages, tools=[{"name": "f"}]) == "with tools"

    def test_template_directory_as_transformers_writes_it(self, tmp_path: Path) -> None:
        small_tokenizers.bpe_directory(tmp_path, template="plain")
        (tmp_path / "additional_chat_templates").mkdir()
        (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
        tok = load_tokenizer(tmp_path)
        assert tok.chat_templates == {"default": "plain", "tool_use": "with tools"}
        tok.save(tmp_path / "copy")
        assert load_tokenizer(tmp_path / "copy").chat_templates == tok.chat_templates

    def test_no_template(self, tmp_path: Path) -> None:
        small_tokenizers.bpe_directory(tmp_path)
        (tmp_path / "chat_template.jinja").unlink()
        tok = load_tokenizer(tmp_path)
        assert tok.chat_template is None
        with pytest.raises(ValueError, match="need a chat template") as caught:
            tok.render([{"role": "user", "content": "hi"}])
        assert "\n" not in str(caught.value)


class TestSave:
    def test_every_file_byte_for_byte(self, directory: Path, tok: Tokenizer, tmp_path: Path) -> None:
        tok.save(tmp_path / "deep" / "copy")
        written = sorted(path.name for path in (tmp_path / "deep" / "copy").iterdir())
        assert written == ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
        for name in written:
            assert (tmp_path / "deep" / "copy" / name).read_bytes() == (directory / name).read_bytes()
        again = load_tokenizer(tmp_path / "deep" / "copy")
        assert again.chat_template == tok.chat_template
        assert again.encode("Hello 🙂") == tok.encode("Hello 🙂")
        again.save(tmp_path / "deep" / "copy")  # into its own directory

    def test_what_was_loaded_is_saved_although_the_source_is_gone(self, tmp_path: Path) -> None:
        small_tokenizers.bpe_directory(tmp_path / "source")
        tok = load_tokenizer(tmp_path / "source")
        shutil.rmtree(tmp_path / "source")
        tok.save(tmp_path / "copy")
        assert load_tokenizer(tmp_path / "copy").vocab_size == tok.vocab_size

    def test_transformers_loads_it(self, tok: Tokenizer, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")
        tok.save(tmp_path)
        reference = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
        assert reference("Hello 🙂", add_special_tokens=False)["input_ids"] == tok.encode("Hello 🙂")
        assert reference.eos_token_id == tok.eos_token_id

    def test_a_vocabulary_file_alone(self, directory: Path, tmp_path: Path) -> None:
        shutil.copy(directory / "tokenizer.json", tmp_path / "mine.json")
        tok = load_tokenizer(tmp_path / "mine.json")
        assert tok.chat_template is None
        assert tok.eos_token_id is None
        tok.save(tmp_path / "copy")
        assert [path.name for path in (tmp_path / "copy").iterdir()] == ["tokenizer.json"]

    def test_both_vocabularies(self, tmp_path: Path) -> None:
        small_tokenizers.bpe_directory(tmp_path, pad_token="<|im_start|>")
        (tmp_path / "tokenizer.model").write_bytes(small_tokenizers.sentencepiece_model())
        both, one = load_tokenizer(tmp_path), load_tokenizer(tmp_path / "tokenizer.model")
        assert both.encode("Hello") == small_tokenizers.bpe().encode("Hello").ids
        assert one.encode("Hello") != both.encode("Hello")
        both.save(tmp_path / "both")
        one.save(tmp_path / "one")
        assert (tmp_path / "both" / "tokenizer.model").exists()
        assert load_tokenizer(tmp_path / "one").encode("Hello") == one.encode("Hello")

    def test_files_of_another_tokenizer_are_not_mixed_in(self, tok: Tokenizer, tmp_path: Path) -> None:
        (tmp_path / "special_tokens_map.json").write_text("{}")
        (tmp_path / "model.safetensors").write_bytes(b"x")
        with pytest.raises(ValueError, match=r"special_tokens_map\.json of another tokenizer"):
            tok.save(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "special_tokens_map.json"]
        with pytest.raises(ValueError, match="into a directory"):
            tok.save(tmp_path / "model.safetensors")


class TestWrongInput:
    def expect(self, path: Path, match: str, error: type[Exception] = ValueError) -> None:
        with pytest.raises(error, match=match) as caught:
            load_tokenizer(path)
        assert "\n" not in str(caught.value)

    def test_places(self, tmp_path: Path) -> None:
        self.expect(tmp_path / "nowhere", "no tokenizer at", FileNotFoundError)
        self.expect(tmp_path, "no tokenizer in", FileNotFoundError)
        (tmp_path / "weights.safetensors").write_bytes(b"")
        self.expect(tmp_path / "weights.safetensors", r"ends in \.json or \.model")
        for name in ("a.model", "b.model"):
            (tmp_path / name).write_bytes(b"garbage")
        self.expect(tmp_path, r"holds a\.model, b\.model")
        self.expect(tmp_path / "a.model", "must be a sentencepiece model")

    def test_files(self, tmp_path: Path) -> None:
        small_tokenizers.bpe_directory(tmp_path)
        whole = (tmp_path / "tokenizer.json").read_bytes()
        for broken in (b"", b"{}", b"not json", whole[:1000]):
            (tmp_path / "tokenizer.json").write_bytes(broken)
            self.expect(tmp_path, r"must be a tokenizer\.json")
        (tmp_path / "tokenizer.json").write_bytes(whole)
        config = tmp_path / "tokenizer_config.json"
        for text, match in {
            "{": "must be JSON",
            "[]": "must hold a JSON object",
            '{"eos_token": "<nope>"}': "'<nope>'",
            '{"eos_token": 3}': "eos_token of .* must be a string",
            '{"added_tokens_decoder": {"x": {}}}': "added_tokens_decoder",
            '{"added_tokens_decoder": {"1": {"content": ""}}}': "added_tokens_decoder",
            '{"added_tokens_decoder": {"-1": {"content": "x"}}}': "added_tokens_decoder",
            '{"added_tokens_decoder": ["x"]}': "added_tokens_decoder",
        }.items():
            config.write_text(text)
            self.expect(tmp_path, match)
        config.write_text("{}")
        (tmp_path / "added_tokens.json").write_text('{"x": "y"}')
        self.expect(tmp_path, r"added_tokens\.json of .* must map")
        (tmp_path / "added_tokens.json").unlink()
        config.write_text('{"chat_template": [{"name": 3}]}')
        (tmp_path / "chat_template.jinja").unlink()
        self.expect(tmp_path, "chat_template in .* must be a string")
        config.write_text("{}")
        (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
        self.expect(tmp_path, r"chat_template\.jinja of .* must be UTF-8")
        (tmp_path / "chat_template.jinja").unlink()
        small_tokenizers.bpe_directory(tmp_path)
        (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
        own = load_tokenizer(tmp_path).token_to_id("<|im_end|>")
        assert load_tokenizer(tmp_path).eos_token_ids == (own, 1, 2)
        for eos in ('"x"', "[1, true]", "-1"):
            (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {eos}}}')
            self.expect(tmp_path, "eos_token_id")

    def test_texts_and_ids(self, tok: Tokenizer, tmp_path: Path) -> None:
        path = tmp_path / "m.model"
        path.write_bytes(small_tokenizers.sentencepiece_model())
        for some in (tok, load_tokenizer(path)):
            with pytest.raises(ValueError, match="lone surrogate"):
                some.encode("half \ud83d a pair")
            for wrong in ([-1], [1.5], ["a"], [2**32], [None], [[1, 2]]):
                with pytest.raises(ValueError, match="token ids"):
                    some.decode(wrong)


def test_vocabulary_size_counts_the_largest_id(tmp_path: Path) -> None:
    """An id is below `vocab_size`, although a vocabulary has holes."""
    vocabulary = {"a": 0, "b": 1, "c": 7}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    tok = load_tokenizer(tmp_path)
    assert tok.token_to_id("c") == 7
    assert tok.vocab_size == 8
