"""Secrets are told by the name of a setting or by the shape of its value, and never written or printed."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

MASK = "***"

# A name that ends so holds a secret: hub_token, HF_TOKEN, WANDB_API_KEY, apiKey, db_password.
_SECRET_NAME = re.compile(
    r"(?:^|[_-])(?:token|auth|(?:api|access|secret|private|auth|account)?[_-]?key|pass(?:word|wd|phrase)?|pwd|"
    r"secret|credentials?|bearer|cookie|authorization)$"
)
# Names of tokens that a tokenizer writes, not of ones that open a door.
_TEXT_TOKENS = {
    *(f"{name}_token" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "image", "audio", "video")),
    *("num_token", "per_token", "decoder_start_token", "forced_bos_token", "forced_eos_token"),
}
# Values that say themselves what they are: tokens of Hugging Face, OpenAI and its like, GitHub, GitLab, Slack, AWS,
# Google, and web tokens.
_SECRET_VALUE = re.compile(
    r"\b(?:(?:hf|api_org)_[A-Za-z0-9]{12,}|sk-(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{12,}|gh[pousr]_[A-Za-z0-9]{16,}"
    r"|github_pat_\w{16,}|glpat-[\w-]{12,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,}|(?i:(?<=bearer )|(?<=basic ))(?=[\w.~+/-]*\d)[\w.~+/-]{6,}=*)"
)
_URL_USER = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_URL_QUERY = re.compile(r"([?&;](?P<name>[\w.-]+)=)[^&#;\s'\"]+")
_ASSIGNMENT = re.compile(
    r"(?P<before>[\"']?(?P<name>[A-Za-z][\w-]*)[\"']?\s*[:=]\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|(?:(?i:bearer|basic)\s+)?[^\s\"',}]+)"
)
_NO_PROSE = {"apikey", "authorization", "passphrase", "passwd", "password", "pwd"}
# The home folders of users, wherever they lie; a server's address is none.
_HOME = re.compile(
    r"(?<![\w/\\.~:-])(?:[A-Za-z]:)?(?:[/\\][\w.-]+)*?[/\\](?:home|Users|users)[/\\][^/\\\s'\",:;]+"
    r"|(?<![\w/\\.~:-])/root(?![\w.-])"
)


def is_secret_name(name: str) -> bool:
    """Whether a setting, flag or environment variable of this name holds a secret."""
    # apiKey and HubToken are api_key and hub_token.
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.strip().lstrip("-")).lower().replace("-", "_")
    return words not in _TEXT_TOKENS and _SECRET_NAME.search(words) is not None


def masked_text(text: str) -> str:
    """`text` with what has the shape of a secret replaced by `***`: known tokens, and passwords inside addresses."""
    text = _SECRET_VALUE.sub(MASK, text)
    if "://" not in text:
        return text
    text = _URL_USER.sub(MASK, text)
    return _URL_QUERY.sub(lambda m: m[1] + MASK if is_secret_name(m["name"]) else m[0], text)


def masked(values: Any) -> Any:
    """
    A copy in which no secret is left.

    Args:
        values (`Any`): a mapping of settings, as deep as it is; a list; or one value.

    Returns:
        `Any`: the same, with `***` in place of each secret. `None`, booleans and empty text stay, so that one sees
        whether there was a secret.
    """
    if isinstance(values, Mapping):
        return {name: _masked_value(str(name), value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(masked(value) for value in values) if type(values) in (list, tuple) else values
    return _masked_argument(values) if isinstance(values, str) else values


def without_home(text: str) -> str:
    """`text` with `~` in place of home folders, whose names are mostly those of people."""
    own = os.path.expanduser("~")
    if len(PurePath(own).parts) > 1:  # not the root
        text = re.sub(rf"(?<![\w/\\.~-]){re.escape(own)}(?![\w.-])", "~", text)
    return _HOME.sub("~", text)


def recordable(values: Any) -> Any:
    """
    What may be kept of settings and shown to others: neither a secret, nor that there was one, nor a home folder.

    Args:
        values (`Any`): as in [`masked`]; paths become text.

    Returns:
        `Any`: the same without the entries of mappings whose names say that they hold a secret.
    """
    if isinstance(values, Mapping):
        return {name: recordable(value) for name, value in values.items() if not is_secret_name(str(name))}
    if isinstance(values, (list, tuple, set, frozenset)):
        return [recordable(value) for value in values]
    if isinstance(values, (str, PurePath)):
        return without_home(_masked_argument(str(values)))
    return values


def recordable_command(words: Sequence[str]) -> str:
    """A command line as [`recordable`] leaves it: flags that hold a secret are left out, with their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        name, equals, _ = word.partition("=")
        if skip and not word.startswith("--"):
            continue
        skip = word.startswith("--") and is_secret_name(name)
        if not skip:
            kept.append(word)
        skip = skip and not equals
    return shlex.join(without_home(word) for word in masked_words(kept))


def masked_words(words: Sequence[str]) -> list[str]:
    """
    The words of a command line without secrets: `--hub_token X`, `--hub_token=X`, `{"token": "X"}`.

    Args:
        words (`Sequence[str]`): a command line, as the shell gives it.
    """
    result: list[str] = []
    hide_next = False
    for word in words:
        name, equals, value = word.partition("=")
        if hide_next and not word.startswith("--"):
            result.append(MASK if word else word)
            hide_next = False
            continue
        hide_next = False
        if word.startswith("--") and is_secret_name(name):
            hide_next = not equals
            result.append(f"{name}={MASK}" if equals and value else word)
        elif word.startswith("--") and equals:
            result.append(f"{name}={_masked_argument(value)}")
        else:
            result.append(_masked_argument(word))
    return result


def masked_command(words: Sequence[str]) -> str:
    """[`masked_words`] as one line that a shell reads."""
    return shlex.join(masked_words(words))


def _masked_value(name: str, value: Any) -> Any:
    return _hidden(value) if is_secret_name(name) else masked(value)


def _hidden(value: Any) -> Any:
    """What stands under the name of a secret: several may, as a list or with names of their own."""
    if isinstance(value, Mapping):
        return {name: _hidden(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_hidden(inner) for inner in value]
    return value if isinstance(value, bool) or value in (None, "") else MASK


def _masked_argument(word: str) -> str:
    """A value of a flag or of a setting: a mapping as JSON, `NAME=value,…`, or plain text."""
    if word.lstrip().startswith(("{", "[")):
        try:
            values = json.loads(word)
        except (ValueError, RecursionError):
            pass
        else:
            hidden = masked(values)
            return word if hidden == values else json.dumps(hidden)
    in_braces = word.lstrip().startswith("{")

    def hidden_value(found: re.Match[str]) -> str:
        name = found["name"]
        # `Key: A` may be a line of a prompt; `api_key: A`, `key=A` and `{key: A}` are none.
        prose = ":" in found["before"] and name.isalpha() and name.lower() not in _NO_PROSE and not in_braces
        return found[0] if prose or not is_secret_name(name) else found["before"] + MASK

    return masked_text(_ASSIGNMENT.sub(hidden_value, word))
