"""Messages to a prompt, with the checkpoint's own chat template and Hugging Face's rendering rules.

The template is a program of whoever published the checkpoint: it runs in jinja's immutable sandbox, over plain data.
"""

import datetime
import functools
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qwen3_jax.text.messages import normalize_messages, normalize_tools, one_line

if TYPE_CHECKING:
    import jinja2

_NO_TOKENS: Mapping[str, str] = MappingProxyType({})


def render(
    template: str,
    messages: object,
    *,
    tools: object = None,
    enable_thinking: object = True,
    add_generation_prompt: object = True,
    special_tokens: Mapping[str, str] = _NO_TOKENS,
) -> str:
    """Renders a conversation as `transformers`' `apply_chat_template(tokenize=False)` does.

    Args:
      template: jinja source.
      messages: a list of {"role", "content", ...}; see `messages.normalize_messages` for what is accepted.
      tools: None, or a list of JSON schemas of the functions that the model may call.
      enable_thinking: a boolean. Qwen3's template asks `enable_thinking is false`: 0 or None would count as true.
      add_generation_prompt: a boolean, whether the prompt ends where the assistant is to speak.
      special_tokens: named tokens that the template may use ("bos_token": "<s>").

    Raises:
      ValueError: malformed messages, tools or flags; a template that is not jinja, fails, or refuses the conversation.
    """
    import jinja2

    variables: dict[str, Any] = {
        **special_tokens,
        "messages": normalize_messages(messages),
        "tools": normalize_tools(tools),
        "documents": None,
        "add_generation_prompt": _boolean("add_generation_prompt", add_generation_prompt),
        "enable_thinking": _boolean("enable_thinking", enable_thinking),
    }
    compiled = _compile(template)
    try:
        return compiled.render(variables)
    except jinja2.TemplateError as error:
        raise ValueError(f"the chat template refuses these messages: {one_line(error)}") from error
    except Exception as error:  # a template can raise anything that Python can
        raise ValueError(
            f"the chat template must render these messages, got {type(error).__name__} ({one_line(error)}): "
            "check the messages against the template"
        ) from error


def _boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}: give a boolean")
    return value


@functools.lru_cache(maxsize=16)
def _compile(source: str) -> "jinja2.Template":
    """The compiled template, in an environment with the names that chat templates are written against.

    Source: transformers 5, `utils/chat_template_utils.py`.
    """
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        """{% generation %} ... {% endgeneration %} marks what the assistant wrote; rendering only passes it through."""

        tags = {"generation"}  # noqa: RUF012 (jinja declares it so)

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    class PlainNamespace(jinja2.utils.Namespace):
        """`namespace()` without names that Python itself gives a meaning to."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            attributes = dict(*args[1:], **kwargs)
            for name in attributes:
                _refuse_private(name)
            jinja2.utils.Namespace.__init__(args[0], attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    def _refuse_private(name: str) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(
                f"a namespace attribute may not begin with an underscore, got {name!r}"
            )

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda layout: datetime.datetime.now().strftime(layout)
    environment.globals["namespace"] = PlainNamespace
    environment.globals["dict"] = _new_dict
    try:
        return environment.from_string(source)
    except Exception as error:  # jinja's own, and Python's of what jinja made of it (nesting too deep)
        line = getattr(error, "lineno", "?")
        raise ValueError(
            f"a chat template must be valid jinja, got an error in line {line} ({one_line(error)}): correct it"
        ) from error


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON. Jinja's own filter escapes HTML and sorts keys, which is not what models were trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """`dict` for templates, which do not get hold of the type."""
    return dict(*args, **kwargs)
