"""From what the caller asks to rows of tokens: templates, modes, budgets, and everything that is refused."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

from qwen3_jax.generation_defaults import GenerationDefaults
from qwen3_jax.infer.automaton import UNLIMITED
from qwen3_jax.infer.config import DEFAULT_MAX_NEW_TOKENS, GenerationConfig
from qwen3_jax.infer.sampling_params import GREEDY_BELOW
from qwen3_jax.infer.stop_thinking_text import NAMED_STOP_TEXTS
from qwen3_jax.network.model import Qwen3
from qwen3_jax.text.parsing import Block
from qwen3_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One input, ready to run.

    Attributes:
      tokens: the prompt.
      chat: whether it came from messages.
      config: every sampling field filled.
      fold: folded into the seed's key when one config serves all inputs; None takes the seed as given.
      answer: which of the `n` answers to its input.
      open_block: the prompt ends inside a think block.
      expects_block: the prompt asks the model to think and leaves opening the block to it.
      budget: most tokens sampled inside the block; UNLIMITED for none.
      closing: tokens fed when the budget is reached.
      closing_content: how many of them stand before the content.
      ends: tokens that end the answer.
      max_new_tokens: filled.
    """

    tokens: list[int]
    chat: bool
    config: GenerationConfig
    fold: int | None
    answer: int = 0
    open_block: bool
    expects_block: bool
    budget: int
    closing: list[int]
    closing_content: int
    ends: tuple[int, ...]
    max_new_tokens: int

    @property
    def block(self) -> Block:
        """Where the answer begins, for the parser of its text."""
        return "open" if self.open_block else "unknown" if self.expects_block else "closed"


def plain_row(tokens: list[int], max_new_tokens: int, **settings: Any) -> Row:
    """A row that continues `tokens` without budget or end tokens, sampled as `settings` say and else greedily."""
    return Row(
        tokens=tokens,
        chat=False,
        config=GenerationConfig(**{"temperature": 0.0, **settings}).resolve(GenerationDefaults(), thinks=False),
        fold=None,
        open_block=False,
        expects_block=False,
        budget=UNLIMITED,
        closing=[0],
        closing_content=1,
        ends=(),
        max_new_tokens=max_new_tokens,
    )


def prepare(
    model: Qwen3,
    tok: Tokenizer,
    inputs: Sequence[Any],
    config: GenerationConfig | Sequence[GenerationConfig] | None,
    tools: Sequence[dict[str, Any]] | None,
) -> list[Row]:
    """Checks and encodes all inputs before anything runs: `n` rows for each, one after another.

    Raises:
      ValueError: a malformed input, a budget without room, a prompt that does not fit (one line naming the input).
    """
    if isinstance(inputs, (str, dict)) or not isinstance(inputs, Sequence):
        raise ValueError(f"inputs must be a list of prompts, got one {type(inputs).__name__}: put it into a list")
    vocab_size = model.config.vocab_size
    beyond = [token for token in model.generation.eos_token_ids if token >= vocab_size]
    if beyond:
        raise ValueError(
            f"end tokens must be below the vocabulary's size of {vocab_size}, got {beyond[0]}: correct eos_token_id in "
            "generation_config.json"
        )
    if not inputs:
        raise ValueError("inputs must hold at least one prompt, got an empty list: add one")
    if all(isinstance(item, dict) for item in inputs):
        raise ValueError("inputs must be a list of conversations, got one list of messages: put it into a list")
    if config is None or isinstance(config, GenerationConfig):
        shared = config or GenerationConfig()
        configs, folds = [shared] * len(inputs), list[int | None](range(len(inputs)))
    else:
        if isinstance(config, dict) or not all(isinstance(one, GenerationConfig) for one in config):
            raise ValueError("config must be a GenerationConfig or a list of them, got something else: make one of it")
        configs, folds = list(config), [None] * len(inputs)
        if len(configs) != len(inputs):
            raise ValueError(
                f"config must be one GenerationConfig or one for each input, got {len(configs)} for {len(inputs)} "
                "inputs: give as many"
            )
    ends, rows = end_tokens(model, tok), []
    for index, (item, cfg, fold) in enumerate(zip(inputs, configs, folds, strict=True)):
        where = f"input {index}: " if len(inputs) > 1 else ""
        row = _prepare_row(model, tok, item, cfg, fold, tools, ends, where)
        rows += [dataclasses.replace(row, answer=answer) for answer in range(cfg.n)]
    return rows


def _prepare_row(
    model: Qwen3,
    tok: Tokenizer,
    item: Any,
    config: GenerationConfig,
    fold: int | None,
    tools: Sequence[dict[str, Any]] | None,
    ends: tuple[int, ...],
    where: str,
) -> Row:
    chat = not isinstance(item, str)
    switchable = False
    if chat:
        text, other = (
            tok.render(item, tools=tools, enable_thinking=flag, add_generation_prompt=True)
            for flag in (config.thinks, not config.thinks)
        )
        switchable = text != other
    else:
        text = item
    tokens = tok.encode(text)
    if not tokens:
        raise ValueError(f"{where}the prompt must not be empty, got no tokens: write something")
    if max(tokens) >= model.config.vocab_size:
        raise ValueError(
            f"{where}the tokenizer gives id {max(tokens)}, but the model's vocabulary ends at "
            f"{model.config.vocab_size}: use the tokenizer of this checkpoint"
        )
    named = max((*config.logit_bias, *config.stop_token_ids), default=0)  # type: ignore[misc]
    if named >= model.config.vocab_size:
        raise ValueError(
            f"{where}logit_bias and stop_token_ids must be below the vocabulary's size of {model.config.vocab_size}, "
            f"got {named}: see qwen3-jax tokenize"
        )
    open_block = _block_is_open(tok, tokens)
    # A template without the switch (Thinking-2507) opens the block whatever is asked for; a budget of 0 closes it.
    thinks = config.thinks if switchable or not open_block else config.thinking_budget != 0
    resolved = config.resolve(model.generation, thinks)
    _warn_without_effect(tok, resolved, chat, tools, where, switchable=switchable, thinks=thinks)
    budget = UNLIMITED if config.thinking_budget is None else config.thinking_budget
    closing = _closing_tokens(tok, config, open_block)
    context = model.config.context_length
    room = context - len(tokens)
    if room < 1:
        raise ValueError(
            f"{where}the prompt must be shorter than the context of {context} tokens, got {len(tokens)}: shorten it"
        )
    max_new = config.max_new_tokens
    if max_new is None:
        extra = 0 if config.thinking_budget is None else config.thinking_budget + len(closing)
        max_new = min(DEFAULT_MAX_NEW_TOKENS + extra, room)
    elif max_new > room:
        raise ValueError(
            f"{where}prompt and max_new_tokens must fit the context of {context}, got {len(tokens)} + {max_new}: "
            f"set max_new_tokens to at most {room}"
        )
    needs_closing = budget != UNLIMITED and (open_block or thinks) and tok.end_think_id is not None
    # Where the prompt does not open the block, the model spends a token on it. One token of content must be left.
    least = budget + len(closing) + (1 if open_block else 2)
    if needs_closing and least > room:
        raise ValueError(
            f"{where}thinking_budget must leave room for an answer in the context of {context}, got {budget} after a "
            f"prompt of {len(tokens)} and before a stop-thinking text of {len(closing)} tokens: set it to at most "
            f"{max(room - (least - budget), 0)}"
        )
    if needs_closing and least > max_new:
        raise ValueError(
            f"{where}max_new_tokens must leave room for an answer after the thinking budget, got {max_new} for a "
            f"budget of {budget} and a stop-thinking text of {len(closing)} tokens: set max_new_tokens to at least "
            f"{least}"
        )
    return Row(
        tokens=tokens,
        chat=chat,
        config=resolved,
        fold=fold,
        open_block=open_block,
        expects_block=switchable and thinks,
        budget=budget,
        closing=closing,
        closing_content=_content_of_closing(tok, config, closing),
        ends=(() if config.ignore_eos else ends) + config.stop_token_ids,  # type: ignore[operator]
        max_new_tokens=max_new,
    )


def _closing_tokens(tok: Tokenizer, config: GenerationConfig, open_block: bool) -> list[int]:
    if tok.end_think_id is None:
        return [0]  # never fed: a vocabulary without the tags has no block to close
    if config.thinking_budget == 0:
        # The empty think block of the template: an open <think> is closed at once.
        return tok.encode("\n</think>\n\n" if open_block else "\n\n</think>\n\n")
    return tok.encode(config.stop_text)


def _content_of_closing(tok: Tokenizer, config: GenerationConfig, closing: list[int]) -> int:
    """Where the content begins in the text fed at the budget: after the tag in a text of one's own. In the project's
    own two, only the template's newlines and the paper's full stop stand there, which are no part of an answer."""
    own = config.stop_thinking_text not in NAMED_STOP_TEXTS and config.thinking_budget != 0
    return closing.index(tok.end_think_id) + 1 if own and tok.end_think_id in closing else len(closing)


def end_tokens(model: Qwen3, tok: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer: the checkpoint's, else the tokenizer's own and Qwen's two."""
    ends = model.generation.eos_token_ids
    if not ends:
        known = (tok.eos_token_id, tok.token_to_id("<|im_end|>"), tok.token_to_id("<|endoftext|>"))
        ends = tuple(dict.fromkeys(token for token in known if token is not None))
    if not ends:
        warnings.warn(
            "no end token: the checkpoint and its tokenizer name none, answers run to their length", stacklevel=2
        )
    return ends


def _block_is_open(tok: Tokenizer, tokens: list[int]) -> bool:
    """Whether the turn being written has an open think block; tags of earlier turns do not count."""
    if tok.think_id is None:
        return False
    turn_start = tok.token_to_id("<|im_start|>")
    begin = _last_index(tokens, turn_start) + 1
    turn = tokens[begin:]
    return _last_index(turn, tok.think_id) > _last_index(turn, tok.end_think_id)


def _last_index(tokens: list[int], token: int | None) -> int:
    """Position of the last `token`, -1 when there is none."""
    for index in range(len(tokens) - 1, -1, -1):
        if tokens[index] == token:
            return index
    return -1


def _warn_without_effect(
    tok: Tokenizer,
    config: GenerationConfig,
    chat: bool,
    tools: Sequence[dict[str, Any]] | None,
    where: str,
    *,
    switchable: bool,
    thinks: bool,
) -> None:
    """A setting that changes nothing is said, never silent."""
    idle = []
    if config.thinking_budget is not None and tok.end_think_id is None:
        idle.append("thinking_budget (the vocabulary has no </think>)")
    if config.thinking_budget and not thinks:
        idle.append("thinking_budget (thinking is off)")
    if config.enable_thinking is not None and not chat:
        idle.append("enable_thinking (raw text is continued as it stands)")
    if config.enable_thinking is not None and chat and not switchable:
        idle.append("enable_thinking (the checkpoint's template has one mode only)")
    if tools and not chat:
        idle.append("tools (raw text is continued as it stands)")
    if config.n > 1 and (config.temperature or 0) < GREEDY_BELOW:
        idle.append("n (at temperature 0 all answers are the same)")
    if idle:
        warnings.warn(f"{where}no effect: {', '.join(idle)}", UserWarning, stacklevel=5)
