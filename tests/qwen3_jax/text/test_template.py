"""Chat templates: rendered as by transformers, the pocket template as the official one, nothing lost in silence."""

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_jax.text import template as chat
from qwen3_jax.text.messages import normalize_messages
from qwen3_jax.text.tokenizer import load_tokenizer
from tests import support
from tests.qwen3_jax.text import small_tokenizers
from tests.qwen3_jax.text.conversations import (
    BY_HAND,
    TOOLS,
    assistant,
    calls,
    random_conversation,
    system,
    tool,
    user,
)

POCKET = small_tokenizers.POCKET_TEMPLATE.read_text(encoding="utf-8")
FLAGS = [(generation, thinking) for generation in (True, False) for thinking in (True, False)]


def official_templates() -> dict[str, str]:
    """The published templates by name, {} without the shared data."""
    shared = support.shared_dir()
    if shared is None:
        return {}
    directory = shared / "qwen3" / "tokenizer"
    found = {}
    for name in ("tokenizer_config.json", "tokenizer_config.initial-2025-04.json"):
        found[name] = json.loads((directory / name).read_text(encoding="utf-8"))["chat_template"]
    found["instruct-2507"] = (directory / "chat_template.instruct-2507.jinja").read_text(encoding="utf-8")
    return found


OFFICIAL = official_templates()
needs_official = pytest.mark.skipif(not OFFICIAL, reason="no shared data: the official templates are not here")


def every_case(count: int, seed: int) -> Iterator[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Messages and options: the conversations made by hand with every option, `count` random ones with some."""
    random = np.random.default_rng(seed)
    for messages in BY_HAND:
        for generation, thinking in FLAGS:
            for tools in (None, TOOLS):
                yield messages, {"tools": tools, "add_generation_prompt": generation, "enable_thinking": thinking}
    for i in range(count):
        messages, schemas = random_conversation(random)
        generation, thinking = FLAGS[i % len(FLAGS)]
        yield messages, {"tools": schemas, "add_generation_prompt": generation, "enable_thinking": thinking}


@needs_official
def test_pocket_template_is_the_official_one_in_other_words() -> None:
    official = OFFICIAL["tokenizer_config.json"]
    for messages, options in every_case(300, seed=0):
        assert chat.render(POCKET, messages, **options) == chat.render(official, messages, **options)
    lines = {line.strip() for line in official.splitlines() if line.strip().startswith("{%") and "end" not in line}
    shared_lines = lines & {line.strip() for line in POCKET.splitlines()}
    assert len(shared_lines) <= 6  # its own wording: only the unavoidable (a loop over the messages) is the same


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tokenizer of transformers, whose `apply_chat_template` takes any template."""
    transformers = pytest.importorskip("transformers")
    directory = small_tokenizers.bpe_directory(tmp_path_factory.mktemp("bpe"))
    return transformers.PreTrainedTokenizerFast.from_pretrained(directory)


@pytest.mark.parametrize("name", ["pocket", *OFFICIAL])
def test_rendering_is_that_of_transformers(name: str, reference: Any) -> None:
    template = POCKET if name == "pocket" else OFFICIAL[name]
    random_cases = 300 if name in ("pocket", "tokenizer_config.json") else 60
    for messages, options in every_case(random_cases, seed=1):
        theirs = reference.apply_chat_template(messages, chat_template=template, tokenize=False, **options)
        assert chat.render(template, messages, **options) == theirs


@needs_official
def test_templates_agree_on_what_only_transformers_lets_through(reference: Any) -> None:
    """Content that is no string, roles that are none, reasoning that is no string: all refused by this package."""
    odd = [
        [{"role": "user", "content": ["parts"]}, {"role": "assistant", "content": None}],
        [{"role": "developer", "content": "x"}, {"role": "user"}, {"role": "assistant", "reasoning_content": 3}],
        [{"role": "tool"}, {"role": "user", "content": 5}, {"role": "assistant", "content": "</think>x"}],
        [{"role": "assistant", "tool_calls": [{"function": {}, "name": "f", "arguments": None}]}, {"role": "tool"}],
        [{"content": "no role"}, {"role": "assistant", "content": "x", "tool_calls": ()}],
    ]
    for messages in odd:
        for tools in (None, TOOLS):
            texts = {
                reference.apply_chat_template(messages, tools=tools, chat_template=template, tokenize=False)
                for template in (POCKET, OFFICIAL["tokenizer_config.json"])
            }
            assert len(texts) == 1


class TestPocketTemplate:
    """Literal prompts, which need no reference."""

    def test_turns_and_generation_prompt(self) -> None:
        messages = [system("S"), user("U"), assistant("A"), user("V")]
        prompt = (
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"
            "<|im_start|>user\nV<|im_end|>\n"
        )
        assert chat.render(POCKET, messages, add_generation_prompt=False) == prompt
        assert chat.render(POCKET, messages) == prompt + "<|im_start|>assistant\n"
        closed = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
        assert chat.render(POCKET, messages, enable_thinking=False) == prompt + closed

    def test_thinking_of_earlier_turns_is_left_out(self) -> None:
        thought = assistant("<think>\nlong\n</think>\n\nA")
        earlier = chat.render(POCKET, [user("U"), thought, user("V")], add_generation_prompt=False)
        assert earlier == (
            "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n"
        )
        last = chat.render(POCKET, [user("U"), thought], add_generation_prompt=False)
        assert last.endswith("<|im_start|>assistant\n<think>\nlong\n</think>\n\nA<|im_end|>\n")
        without = chat.render(POCKET, [user("U"), assistant("A")], add_generation_prompt=False)
        assert without.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nA<|im_end|>\n")

    def test_tools(self) -> None:
        messages = [
            system("S"),
            user("U"),
            assistant("C", reasoning_content="R", tool_calls=calls({"x": "é<"}, '{"y":1}')),
            tool("1"),
            tool("2"),
        ]
        tools = [{"type": "function", "function": {"name": "f0"}}]
        assert chat.render(POCKET, messages, tools=tools) == (
            "<|im_start|>system\nS\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
            '{"type": "function", "function": {"name": "f0"}}\n</tools>\n\n'
            "For each function call, return a json object with function name and arguments within "
            "<tool_call></tool_call> XML tags:\n<tool_call>\n"
            '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
            "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n<think>\nR\n</think>\n\nC\n"
            '<tool_call>\n{"name": "f0", "arguments": {"x": "é<"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "f1", "arguments": {"y":1}}\n</tool_call><|im_end|>\n'
            "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n"
        )

    def test_a_parsed_answer_goes_back_as_a_message(self) -> None:
        from qwen3_jax.text.parsing import parse_output

        text = '<think>\nwhy\n</think>\n\nLook.\n<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'
        parsed = parse_output(text)
        message = assistant(parsed.content, reasoning_content=parsed.thinking, tool_calls=parsed.tool_calls)
        prompt = chat.render(POCKET, [user("U"), message], add_generation_prompt=False)
        assert prompt == f"<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>\n"


class TestMessages:
    def test_list_content_is_its_text(self) -> None:
        parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "नमस्ते"}]
        for role in ("system", "user", "assistant", "tool"):
            assert normalize_messages([{"role": role, "content": parts}])[0]["content"] == "one नमस्ते"
            flat, listed = ([{"role": role, "content": content}] for content in ("one नमस्ते", parts))
            assert chat.render(POCKET, flat) == chat.render(POCKET, listed)

    def test_names_of_the_reasoning(self) -> None:
        expected = chat.render(POCKET, [user(), assistant("A", reasoning_content="R")])
        for name in ("reasoning", "thinking"):
            assert chat.render(POCKET, [user(), assistant("A", **{name: "R"})]) == expected

    def test_what_a_client_writes_for_nothing_is_nothing(self) -> None:
        """A reply of OpenAI's client, dumped with its empty fields, goes back in."""
        reply = {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "audio": None,
            "function_call": None,
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        }
        (plain,) = normalize_messages([reply])
        assert plain == {"role": "assistant", "content": "", "tool_calls": reply["tool_calls"]}

    def test_the_callers_objects_are_not_handed_out_or_changed(self) -> None:
        messages = [user(), assistant("A", tool_calls=calls({"x": [1]}))]
        before = json.dumps(messages)
        plain = normalize_messages(messages)
        plain[1]["tool_calls"][0]["function"]["arguments"]["x"].append(2)
        assert json.dumps(messages) == before

    @pytest.mark.parametrize(
        ("messages", "place"),
        [
            ("hi", "messages must be a list"),
            ({"role": "user", "content": "hi"}, "messages must be a list"),
            (None, "messages must be a list"),
            ([], "messages must hold at least one"),
            (["hi"], r"messages\[0\] must be an object"),
            ([user(), {"content": "hi"}], r"messages\[1\]\.role must be one of"),
            ([{"role": "robot", "content": "hi"}], r"messages\[0\]\.role must be one of .*'robot'"),
            ([{"role": ["user"], "content": "hi"}], r"messages\[0\]\.role"),
            ([{"role": "user"}], r"messages\[0\]\.content must be a string, got nothing"),
            ([{"role": "user", "content": None}], r"messages\[0\]\.content must be a string, got nothing"),
            ([{"role": "assistant", "content": None, "tool_calls": []}], r"messages\[0\]\.content"),
            ([{"role": "tool", "content": None}], r"messages\[0\]\.content"),
            ([{"role": "user", "content": 5}], r"messages\[0\]\.content must be a string, got 5"),
            ([{"role": "user", "content": b"hi"}], r"messages\[0\]\.content"),
            ([{"role": "user", "content": []}], r"messages\[0\]\.content .* empty list"),
            ([{"role": "user", "content": ["hi"]}], r"messages\[0\]\.content\[0\] must be an object"),
            (
                [{"role": "user", "content": [{"type": "image_url"}]}],
                r"content\[0\] must be of type text, got 'image_url'",
            ),
            ([{"role": "user", "content": [{"type": "text"}]}], r"content\[0\]\.text must be a string"),
            (
                [{"role": "user", "content": "x", "contents": "y"}],
                r"messages\[0\] .* 'contents'.* did you mean content\?",
            ),
            ([{"role": "user", "content": "x", 3: "y"}], r"messages\[0\] has the unknown key 3"),
            ([{**user(), "reasoning_content": "y"}], r"messages\[0\]\.reasoning_content belongs to an assistant"),
            ([assistant(reasoning_content=["y"])], r"messages\[0\]\.reasoning_content must be a string"),
            ([{**user(), "tool_calls": calls({})}], r"messages\[0\]\.tool_calls belongs to an assistant"),
            ([assistant(tool_calls="f")], r"messages\[0\]\.tool_calls must be a list"),
            ([assistant(tool_calls=["f"])], r"messages\[0\]\.tool_calls\[0\] must be an object"),
            ([assistant(tool_calls=[{"name": "f"}])], r"tool_calls\[0\] must have arguments"),
            ([assistant(tool_calls=[{"function": "f"}])], r"tool_calls\[0\] must name its function"),
            ([assistant(tool_calls=[{"name": "f", "arguments": [1]}])], r"tool_calls\[0\] must have arguments"),
            ([assistant(tool_calls=[{"arguments": {}}])], r"tool_calls\[0\] must name its function"),
            (
                [assistant(tool_calls=calls({"x": np.zeros(2)}))],
                r"tool_calls\[0\]\.function\.arguments\.x must be JSON",
            ),
            ([assistant(tool_calls=calls({"x": {1: 2}}))], r"arguments\.x must have strings as keys"),
            ([{"role": "tool", "content": "x", "tool_call_id": 3}], r"messages\[0\]\.tool_call_id must be a string"),
        ],
        ids=str,
    )
    def test_malformed_messages(self, messages: object, place: str) -> None:
        self.expect(place, messages)

    @pytest.mark.parametrize(
        ("options", "place"),
        [
            ({"tools": "f"}, "tools must be a list"),
            ({"tools": {"name": "f"}}, "tools must be a list"),
            ({"tools": [object]}, r"tools\[0\] must be a JSON schema"),
            ({"tools": [{"function": {}}]}, r"tools\[0\] must name its function"),
            ({"tools": [*TOOLS, {"name": "f", "x": {1}}]}, r"tools\[2\]\.x must be JSON data"),
            ({"enable_thinking": 0}, "enable_thinking must be True or False, got 0"),
            ({"enable_thinking": None}, "enable_thinking must be True or False"),
            ({"enable_thinking": "false"}, "enable_thinking must be True or False"),
            ({"add_generation_prompt": 1}, "add_generation_prompt must be True or False"),
        ],
        ids=str,
    )
    def test_malformed_options(self, options: dict[str, Any], place: str) -> None:
        self.expect(place, [user()], **options)

    def test_a_structure_that_holds_itself(self) -> None:
        loop: dict[str, Any] = {}
        loop["again"] = loop
        self.expect("nested too deeply", [assistant(tool_calls=calls(loop))])

    def expect(self, place: str, messages: object, **options: Any) -> None:
        with pytest.raises(ValueError, match=place) as caught:
            chat.render(POCKET, messages, **options)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


class TestEnvironment:
    def render(self, template: str, **options: Any) -> str:
        return chat.render(template, [user("é<&>'")], **options)

    def test_blocks_leave_no_blank_lines(self) -> None:
        assert self.render("a\n  {% if true %}\nb\n  {% endif %}\nc\n") == "a\nb\nc"

    def test_tojson_is_plain_json(self) -> None:
        assert self.render("{{ messages[0] | tojson }}") == '{"role": "user", "content": "é<&>\'"}'
        assert self.render("{{ messages[0] | tojson(indent=1, sort_keys=true) }}").startswith('{\n "content"')

    def test_loop_controls_generation_blocks_and_the_date(self) -> None:
        assert self.render("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "012"
        assert self.render("a{% generation %}{{ messages[0].role }}{% endgeneration %}b") == "auserb"
        assert self.render("{{ strftime_now('%Y') }}") == str(datetime.datetime.now().year)
        assert self.render("{{ dict(a=1) | tojson }}") == '{"a": 1}'

    def test_special_tokens_are_variables(self) -> None:
        assert self.render("{{ bos_token }}|{{ eos_token }}", special_tokens={"eos_token": "<e>"}) == "|<e>"

    def test_a_refusal_of_the_template_is_one_line(self) -> None:
        with pytest.raises(ValueError, match="the chat template refuses these messages: no such thing"):
            self.render("{{ raise_exception('no such\nthing') }}")

    @pytest.mark.parametrize(
        "attack",
        [
            "{{ ''.__class__.__mro__[1].__subclasses__() }}",
            "{{ messages.__class__.__base__ }}",
            "{{ messages[0].__init__.__globals__ }}",
            "{{ raise_exception.__globals__.json }}",
            "{{ tojson.__globals__['json'] }}{{ strftime_now.__globals__ }}",
            "{{ (messages | attr('__class__')).mro() }}",
            "{{ cycler.__init__.__globals__.os }}",
            "{{ '{0.__class__.__base__}'.format(1) }}",
            "{{ dict.__base__.__subclasses__() }}",
            "{{ messages.append(1) }}",
            "{{ messages[0].update(role='x') }}",
            "{% set ns = namespace(__class__=1) %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns }}",
            "{{ range(10 ** 9) | list }}",
            "{{ messages[0].content.decode.nope.nope }}",
            "{{ 1 / 0 }}",
        ],
    )
    def test_attacks_and_accidents_are_one_line(self, attack: str) -> None:
        with pytest.raises(ValueError, match="the chat template") as caught:
            self.render(attack)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "question",
        [
            "{{ ''.__class__ }}",
            "{{ messages.__class__ }}{{ messages[0]['__class__'] }}{{ messages | attr('__class__') }}",
            "{{ raise_exception.__globals__ }}{{ dict.__closure__ }}{{ namespace.__init__ }}",
            "{{ self._TemplateReference__context }}",
            "{{ ('{0.__class__}' | attr('format'))(1) }}{{ '{x.__class__}'.format_map({'x': 1}) }}",
            "{{ (messages | map(attribute='__class__') | list)[0] }}",
        ],
    )
    def test_what_python_knows_is_not_shown(self, question: str) -> None:
        assert self.render(question) == ""

    def test_files_can_not_be_read(self) -> None:
        for attack in ("{% include '/etc/passwd' %}", "{% import 'os' as os %}", "{% extends '/etc/passwd' %}"):
            with pytest.raises(ValueError, match="the chat template"):
                self.render(attack)

    def test_a_template_that_is_not_jinja(self) -> None:
        with pytest.raises(ValueError, match="must be valid jinja, got an error in line 2"):
            self.render("fine\n{% if %}")
        for deep in ("{% if x %}" * 150 + "{% endif %}" * 150, "{{ " + "(" * 5000 + ")" * 5000 + " }}"):
            with pytest.raises(ValueError, match="must be valid jinja"):
                self.render(deep)


def test_the_tokenizer_renders_with_its_own_template_and_tokens(tmp_path: Path) -> None:
    template = "{{ eos_token }}{{ pad_token }}{{ bos_token }}{{ messages[0].content }}{{ enable_thinking }}"
    tok = load_tokenizer(small_tokenizers.bpe_directory(tmp_path, template=template))
    assert tok.render([user("U")], enable_thinking=False) == "<|im_end|><|endoftext|>UFalse"
    assert tok.encode(tok.render([user("U")]))[0] == tok.eos_token_id
