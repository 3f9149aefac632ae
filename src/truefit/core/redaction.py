"""What must not stand in a message, a tag, a journal or a log: the secrets in addresses."""

import re
from urllib.parse import unquote

HIDDEN = "***"

# The user's name and password: all between the slashes and the last @, since a password may hold slashes and more of these.
# A third slash begins a path, whose folders may have an @ in their names.
_USER = re.compile(r"(?<!/)//(?!/)\S*@")
# In a query, whatever is called by a word that has one of these in it; its value ends at & alone.
_PARAMETER = re.compile(r"([?&;#][^=&?;#\s]*(?:pass|pwd|secret|token|key|sig|auth|cred|jwt|session)[^=&?;#\s]*=)[^&\s]*", re.I)
# Elsewhere, as in libpq's "host=h password=p", only what is called so: a column may be called passengers.
_SETTING = re.compile(
    r"(?<![\w.-])([\w.-]*(?:password|passwd|passphrase|pwd|secret|token|access_?key(?:_?id)?|account_?key|api_?key|credentials?)=)"
    r"""(?:"[^"]*"|'[^']*'|[^&\s]*)""",
    re.I,
)


def redacted(text: str) -> str:
    """Return the text without the user names, passwords, tokens and signatures of the addresses in it.

    Of an address that is hard to read, more goes than is secret.

    >>> redacted("https://me:" + "pa/ss@example.org/mlflow: refused")
    'https://example.org/mlflow: refused'
    >>> redacted("postgresql://example.org/runs?user=me&password=secret&sslmode=require")
    'postgresql://example.org/runs?user=me&password=***&sslmode=require'
    """
    for pattern in (_PARAMETER, _SETTING):
        text = pattern.sub(_hidden, text)
    text = _USER.sub("//", text)
    return re.sub(r"\S+", _decoded, text) if "%" in text else text


def _hidden(found: re.Match[str]) -> str:
    # Its @ may be the one behind a user's password, with which all before it is to go.
    return f"{found[1]}{HIDDEN}{'@' if '@' in found[0] else ''}"


def _decoded(word: re.Match[str]) -> str:
    """Return the word, or, where percent signs hide a secret from the patterns, what it stands for without the secret."""
    plain = "".join(unquote(word[0]).split())
    return word[0] if plain == word[0] or (shown := redacted(plain)) == plain else shown
