"""Incremental decoding: never half a character, exactly the text of decoding at once, constant work for each token."""

from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models

from qwen3_jax.text.streaming import IncrementalDetokenizer, Utf8Stream, byte_level_bytes
from qwen3_jax.text.tokenizer import Tokenizer, load_tokenizer
from tests import support
from tests.qwen3_jax.text import small_tokenizers

TEXTS = [
    *small_tokenizers.TEXTS,
    "🙂🙃🤖👩‍👩‍👧‍👦🏳️‍🌈 zero-width joiners",
    "混ぜた text 与 हिन्दी और 🎉\n\nline",
    "   three spaces first",
    "\ufffd a real replacement character \ufffd",
]
MARK = {"pattern": "\u2581", "content": " "}
SEQUENCE = [decoders.Replace(**MARK), decoders.ByteFallback(), decoders.Fuse()]


def piece_tokenizer(decoder: decoders.Decoder) -> tokenizers.Tokenizer:
    """A vocabulary of pieces and bytes in tokenizer.json, as converted sentencepiece models have it."""
    pieces = ["<unk>", "\u2581", "\u2581\u2581", "\u2581the", "a", "b\u2581c", "語", "\u2581é", "x" * 5]
    vocabulary = {piece: i for i, piece in enumerate(pieces + [f"<0x{byte:02X}>" for byte in range(256)])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


KINDS = {
    "bpe": small_tokenizers.bpe,
    "sentencepiece": small_tokenizers.sentencepiece_model,
    "sentencepiece, extra spaces removed": lambda: small_tokenizers.sentencepiece_model(remove_extra_whitespaces=True),
    "sentencepiece, no dummy space": lambda: small_tokenizers.sentencepiece_model(add_dummy_prefix=False),
    "sentencepiece, no bytes": lambda: small_tokenizers.sentencepiece_model(byte_fallback=False),
    "pieces": lambda: piece_tokenizer(decoders.Sequence(SEQUENCE)),
    "pieces, first space stripped": lambda: piece_tokenizer(
        decoders.Sequence([*SEQUENCE, decoders.Strip(content=" ", left=1, right=0)])
    ),
    "another decoder": lambda: piece_tokenizer(decoders.Metaspace()),
}


@pytest.fixture(scope="module", params=KINDS)
def tok(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    directory = tmp_path_factory.mktemp("tokenizer")
    made = KINDS[request.param]()
    if isinstance(made, bytes):
        (directory / "tokenizer.model").write_bytes(made)
    else:
        made.save(str(directory / "tokenizer.json"))
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(small_tokenizers.bpe_directory(tmp_path_factory.mktemp("bpe")))


def stream(tok: Tokenizer, ids: list[int], random: np.random.Generator, skip: bool = False) -> list[str]:
    """The pieces that come of `ids` in random portions (empty ones among them), then of the flush."""
    detokenizer = IncrementalDetokenizer(tok, skip)
    pieces, done = [], 0
    while done < len(ids):
        step = int(random.integers(0, 5))
        pieces.append(detokenizer.push(ids[done : done + step]))
        done += step
    return [*pieces, detokenizer.flush()]


def test_joins_to_the_whole_on_texts(tok: Tokenizer) -> None:
    random = np.random.default_rng(1)
    for text in TEXTS:
        ids = tok.encode(text)
        for skip in (False, True):
            assert "".join(stream(tok, ids, random, skip)) == tok.decode(ids, skip)


def test_joins_to_the_whole_on_arbitrary_ids(tok: Tokenizer) -> None:
    """Broken characters, unknown and special tokens, ids past the vocabulary, spaces first."""
    random = np.random.default_rng(2)
    byte_ids = [i for i in range(tok.vocab_size) if len(tok.decode([i])) <= 1]
    for trial in range(150):
        kind = trial % 3
        length = int(random.integers(0, 40))
        if kind == 0:
            ids = random.integers(0, tok.vocab_size + 3, length).tolist()
        elif kind == 1:
            ids = random.choice(byte_ids, length).tolist()
        else:  # a text with holes
            ids = [i for i in tok.encode(TEXTS[trial % len(TEXTS)]) if random.random() < 0.8]
        skip = bool(trial % 2)
        whole = tok.decode(ids, skip)
        pieces = stream(tok, ids, random, skip)
        assert "".join(pieces) == whole


def test_characters_appear_as_soon_as_they_are_whole(bpe: Tokenizer) -> None:
    """After every token the text so far is the bytes so far without the unfinished character at the end."""
    for text in TEXTS:
        detokenizer, emitted, received = IncrementalDetokenizer(bpe), "", b""
        for token in bpe.encode(text):
            emitted += detokenizer.push(token)
            received += byte_level_bytes(bpe._backend._tokenizer.id_to_token(token))
            assert emitted == received.decode("utf-8", "ignore")
        assert detokenizer.flush() == ""


def test_four_bytes_of_an_emoji(bpe: Tokenizer) -> None:
    single = {byte_level_bytes(character): bpe.token_to_id(character) for character in small_alphabet()}
    ids = [single[bytes([byte])] for byte in "🙂".encode()]
    detokenizer = IncrementalDetokenizer(bpe)
    assert [detokenizer.push(i) for i in ids] == ["", "", "", "🙂"]
    assert [detokenizer.push(ids[:2]), detokenizer.push(bpe.encode("!"))] == ["", "\ufffd!"]  # cut off by another one
    assert [detokenizer.push(ids[:3]), detokenizer.flush()] == ["", "\ufffd"]  # cut off by the end
    assert [detokenizer.push(ids), detokenizer.flush()] == ["🙂", ""]  # and the next text begins afresh


def test_a_run_of_byte_pieces_in_sentencepiece(tmp_path: Path) -> None:
    (tmp_path / "m.model").write_bytes(small_tokenizers.sentencepiece_model())
    tok = load_tokenizer(tmp_path)
    byte = [tok.token_to_id(f"<0x{value:02X}>") for value in "🙂".encode()]
    assert None not in byte
    detokenizer = IncrementalDetokenizer(tok)
    assert [detokenizer.push([i]) for i in byte] == ["", "", "", "🙂"]
    word = tok.encode("word")
    assert detokenizer.push([byte[0], *word]) + detokenizer.flush() == "\ufffd word"


def test_the_first_space_of_sentencepiece_is_not_shown_and_the_next_is(tmp_path: Path) -> None:
    (tmp_path / "m.model").write_bytes(small_tokenizers.sentencepiece_model())
    tok = load_tokenizer(tmp_path)
    ids = tok.encode("text and text")
    detokenizer = IncrementalDetokenizer(tok)
    assert "".join(detokenizer.push(i) for i in ids) == "text and text"
    assert detokenizer.flush() == ""


def test_work_does_not_grow_with_the_text() -> None:
    """Each token is looked up once, and nothing but an unfinished character is kept."""
    asked: list[int] = []

    def token_bytes(token: int) -> bytes:
        asked.append(token)
        return "é".encode()[token % 2 : token % 2 + 1]

    utf8 = Utf8Stream(token_bytes)
    for token in range(10_000):
        assert utf8.push(token) == ("é" if token % 2 else "")
        assert len(utf8._decoder.getstate()[0]) <= 3
    assert asked == list(range(10_000))


def test_array_elements_and_single_ids(bpe: Tokenizer) -> None:
    ids = np.array(bpe.encode("Hello, world!"), np.int32)
    detokenizer = IncrementalDetokenizer(bpe)
    assert "".join([detokenizer.push(ids[:2]), detokenizer.push(ids[2]), detokenizer.push(ids[3:])]) == "Hello, world!"


def test_official_tokenizer_against_decoding_at_once() -> None:
    shared = support.shared_dir()
    if shared is None:
        pytest.skip("no shared data: the official tokenizer is not here")
    tok = load_tokenizer(shared / "qwen3" / "tokenizer")
    random = np.random.default_rng(3)
    for text in TEXTS:
        ids = tok.encode(text)
        assert "".join(stream(tok, ids, random)) == tok.decode(ids)
    for _ in range(60):
        ids = random.integers(0, 151936, int(random.integers(1, 60))).tolist()
        for skip in (False, True):
            assert "".join(stream(tok, ids, random, skip)) == tok.decode(ids, skip)


def test_every_pair_and_triple_of_edge_bytes_is_replaced_as_decoding_at_once_does(bpe: Tokenizer) -> None:
    """Maximal invalid parts: Python's incremental decoder and the library's must agree on every boundary."""
    edges = [0x41, 0x80, 0x8F, 0x90, 0xA0, 0xBF, 0xC1, 0xC2, 0xE0, 0xED, 0xF0, 0xF4, 0xF5]
    single = {byte_level_bytes(character)[0]: bpe.token_to_id(character) for character in small_alphabet()}
    random = np.random.default_rng(4)
    detokenizer = IncrementalDetokenizer(bpe)
    for first in edges:
        for second in edges:
            for third in edges:
                ids = [single[byte] for byte in (first, second, third, int(random.choice(edges)))]
                assert "".join([detokenizer.push(i) for i in ids]) + detokenizer.flush() == bpe.decode(ids)


def test_added_tokens_of_every_spelling(tmp_path: Path) -> None:
    """An added token is decoded through the byte alphabet where all its characters are in it, as the library does."""
    made = small_tokenizers.bpe()
    made.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in ("é x", "éé", "Ġ", "語", "a\u0100b")])
    made.save(str(tmp_path / "tokenizer.json"))
    tok = load_tokenizer(tmp_path)
    random = np.random.default_rng(5)
    for _ in range(50):
        ids = random.integers(tok.vocab_size - 6, tok.vocab_size, 6).tolist()
        assert "".join(stream(tok, ids, random)) == tok.decode(ids)


def small_alphabet() -> list[str]:
    return tokenizers.pre_tokenizers.ByteLevel.alphabet()
