"""What looks like a secret: a file by its name, a key, a token or a password by its text.

A file that is wrongly taken for one costs a record that cannot be run again; one that is missed is in everybody's hands. The
forms are those that the services document, as Yelp's detect-secrets and gitleaks collect them too. No rule goes by the entropy
of a text alone: digests, of which a pipeline is full, look the same.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

# Names in lower case. A file's own name, …
_FILES = (
    *(
        "*.env",
        ".env*",
        "*.envrc",
        ".netrc",
        "_netrc",
        ".pypirc",
        ".pgpass",
        ".my.cnf",
        ".npmrc",
        ".dockercfg",
        ".git-credentials",
    ),
    *(
        "*htpasswd*",
        ".boto",
        "*.s3cfg",
        ".databrickscfg",
        ".condarc",
        "rclone.conf",
        "kubeconfig*",
        "*.kubeconfig",
        "pip.conf",
    ),
    *("id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx"),
    *(
        "*.ppk",
        "*.asc",
        "*.gpg",
        "*.ovpn",
        "*.agekey",
        "*.tfvars",
        "*.tfstate*",
        ".*_history",
        "kaggle.json",
        "basic_auth.ini",
    ),
)
# … one of these words in it, or such a folder, unless it is code, …
_WORDS = re.compile(r"secret|credential|passw(?:or)?d|service[-_]?account|(?:^|[-_.])tokens?(?:[-_.]|$)")
_KEPT_IN = {"secret", "secrets", "credentials", "tokens", "passwords"}
# … or a folder where even code is suspect.
_FOLDERS = (".env*", ".ssh", ".aws", ".azure", ".gcloud", ".gnupg", ".kube", ".docker", ".streamlit", ".mlflow", ".secrets")
_CODE = (".py", ".pyi", ".pyx", ".sh", ".c", ".cpp", ".h", ".cu", ".md", ".rst")

# Each with what it begins with, or holds: to look for that first takes a hundredth of the time.
_FORMS = {
    # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html
    "an AWS access key": ("akia asia abia acca", rb"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}\b"),
    # https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/
    "a GitHub token": ("gho_ ghp_ ghs_ ghu_ ghr_ github_pat_", rb"\bgh[opsur]_[A-Za-z0-9]{36}|\bgithub_pat_\w{22}"),
    # https://docs.gitlab.com/security/tokens/#token-prefixes
    "a GitLab token": (
        "glpat- gloas- gldt- glrt- glcbt- glptt- glft- glimt- glagent- glsoat- glffct-",
        rb"\bgl(?:pat|oas|dt|rt|cbt|ptt|ft|imt|agent|soat|ffct)-[\w-]{20}",
    ),
    # https://docs.slack.dev/authentication/tokens
    "a Slack token": ("xox xapp- hooks.slack", rb"\bx(?:ox[abeoprs]|app)-[\w-]{10}|hooks\.slack\.com/services/T\w+/B\w+/\w+"),
    # RFC 7468, RFC 9580, and those of PuTTY and age
    "a private key": (
        "private putty-user-key age-secret-key",
        rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-\d|AGE-SECRET-KEY-1\w",
    ),
    # RFC 7519: two parts that begin as JSON does, in base64
    "a JSON web token": ("eyj", rb"\beyJ[\w-]{10,2000}\.eyJ[\w-]{10,2000}\."),
    # https://cloud.google.com/docs/authentication/api-keys
    "a Google key": ("aiza gocspx- ya29.", rb"\bAIza[\w-]{35}|\bGOCSPX-[\w-]{28}|\bya29\.[\w-]{20}"),
    # https://docs.stripe.com/keys
    "a Stripe key": ("k_live_ k_test_", rb"\b[rs]k_(?:live|test)_[0-9A-Za-z]{16}"),
    "a key of a model's provider": ("sk- hf_", rb"\bsk-(?:[a-z]+\d*-){0,4}[\w-]{32}|\bhf_[A-Za-z0-9]{30}"),
    # https://warehouse.pypa.io/development/token-scanning.html, https://docs.npmjs.com/about-access-tokens
    "a token of a package registry": ("pypi-age npm_", rb"\bpypi-AgE[\w-]{50}|\bnpm_[A-Za-z0-9]{36}"),
    "a SendGrid key": ("sg.", rb"\bSG\.[\w-]{22}\.[\w-]{43}"),
    "an Azure key": ("accountkey= sig=", rb"AccountKey=[A-Za-z0-9+/]{43}|[?&]sig=[A-Za-z0-9%+/]{40}"),
    "a Databricks or DigitalOcean token": ("dapi _v1_", rb"\bdapi[0-9a-f]{32}|\bdo[opr]_v1_[0-9a-f]{64}"),
    "a Weights & Biases key": ("wandb.login", rb"wandb\.login\([^)]{0,100}[0-9a-f]{40}"),
    "an Authorization header": (
        "authorization",
        rb"(?i:authorization[\"']?\s*[:=,]\s*[\"']?(?:basic|bearer|token)\s+[\w+/=.~-]{8})",
    ),
    "a login of a .netrc": ("machine", rb"\bmachine\s+\S+\s+login\s+\S+\s+password\s+\S"),
}
_KNOWN = {label: (tuple(parts.encode().split()), re.compile(form)) for label, (parts, form) in _FORMS.items()}

# RFC 3986: user and password before the host; a port and a path that holds an @ are none. In two parts, so as not to be one.
_ADDRESS = re.compile(rb"://" rb"[^\s:/@\"'`<>]{0,200}:(?!\d+[/?#])([^\s@\"'`<>]{1,500})@")
# Of a text in lower case, in which it is found at once.
_KEYWORD = re.compile(
    rb"(?:pass(?:word|wd|phrase|code)|pwd|secret|token(?!i[sz])|credential"
    rb"|(?:api|access|auth|account|private|service|client)[_-]?key)[\w-]{0,40}"
    rb"|p(?:ass|w)(?![\w-])(?<![a-z0-9]pass)(?<![a-z0-9]pw)"  # db_pass, but no compass
)
# A line's end, and how the next begins, in a patch too.
_BREAK = rb"[ \t]{0,4}\r?\n[-+ ]?[ \t]{0,80}"
# What is assigned to such a name, perhaps with an annotation, in brackets or on the next line. Three quotes may end far away.
_QUOTED = re.compile(
    rb"""["'\]]{0,3}\s{0,4}(?::[\w.\[\]| ]{1,40}(?==))?(?::=|=>|[:=])"""
    rb"""(?:\s{0,4}|(?<==)[ \t]{0,4}(?:[(\\]%(br)b|\([ \t]{0,4}))[A-Za-z@]{0,2}"""
    rb"""(["'`])(\1\1\\?(?:%(br)b)?)?((?!\s)[^"'`\r\n]{4,500}(?<!\s))(?(2)|[ \t]{0,4}\1)""" % {b"br": _BREAK}
)
_PLAIN = re.compile(rb"""["']?[ \t]{0,4}[:=](?!=)[ \t]{0,4}(?:[|>][-+\d]{0,2}%b)?([^\s"'`,;#&]{4,500})""" % _BREAK)
# Before a name in a text of several settings, "host=h password=…": no code looks like it.
_SETTING = re.compile(rb"""=[^\s"'=]{0,60}[^\s"'=,;({\[][ ;]$""")
_NAME = f"{string.ascii_letters}{string.digits}_-".encode()
# A user and a password: auth=("me", "…"), and curl -u me:…
_PAIR = re.compile(
    rb"""(?<![A-Za-z])(?:auth|AUTH)["']?\s{0,4}[:=]\s{0,4}\(\s{0,9}(["'])[^"'\r\n]{1,100}\1\s{0,4},\s{0,9}(["'])([^"'\s]{4,500})\2\s{0,4},?\s{0,4}\)"""
)
_USER = re.compile(rb"""[\s"'](?:-u|--user[\s=,"'])[\s=,"']{0,5}[^\s:"'`]{1,60}:([^\s"'`]{4,500})""")
# What such a name ends with where it is not the secret that it names, …
_ABOUT = re.compile(
    rb"(?:file|path|dir|folder|name|url|uri|type|tag|env|var|header|field|length|size|count|limit|pattern)s?$", re.I
)
# … and what stands for a value that is put in later: ${NAME}, {name}, <name>, %(name)s, ****, a path, a word of the language.
_PLACEHOLDER = re.compile(
    rb"""\$\w+|.*\{[^}]*\}.*|\$\(.*|.*<[\w -]+>.*|%\(?\w*\)?s?|[*.x_-]+|[~.]{0,2}/[\w./-]+|none|null|true|false"""
    rb"""|str(?:ing)?|bytes|password|passwd|secret|token|pass|pw|\W*(?:self|os|settings|config|args?)[.\[(].*|[a-z_.]+\(.*""",
    re.I,
)

# What is said of a password, not one of several words.
_PROSE = re.compile(
    rb"[$%{<]|pass|secret|\b(?:an?|the|your|my|its?|of|to|for|in|on|at|by|as|with|from|is|are|be|was|must|may|can|not?|or|and|if"
    rb"|when|too|enter|please|required|invalid|wrong)\b",
    re.I,
)


def may_hold_secrets(path: str) -> bool:
    """Say whether a file, by its path with "/", is one where secrets are kept.

    >>> [path for path in ("train.py", ".env/prod", "prod.env", "src/secrets.py", "secrets.yaml") if may_hold_secrets(path)]
    ['.env/prod', 'prod.env', 'secrets.yaml']
    """
    whole = PurePosixPath(path.lower())
    if any(fnmatchcase(folder, pattern) for folder in whole.parts[:-1] for pattern in _FOLDERS):
        return True
    if whole.parts[-2:-1] == (".dvc",) and whole.name.startswith("config"):  # the addresses of DVC's remotes
        return True
    if any(fnmatchcase(whole.name, pattern) for pattern in _FILES):
        return True
    return whole.suffix not in _CODE and bool(_WORDS.search(whole.name) or _KEPT_IN.intersection(whole.parts[:-1]))


def find_secret(path: str, content: bytes) -> str | None:
    """Return what the first thing in the content of a file is that looks like a secret, or None.

    >>> find_secret("train.py", b"connect(password='%s')" % b"hunter2"), find_secret("train.py", b"connect(password=password)")
    ('a password or key', None)
    """
    content = content.replace(b"\0", b"")  # as of UTF-16
    lower = content.lower()
    for label, (parts, form) in _KNOWN.items():
        if any(part in lower for part in parts) and form.search(content):
            return label
    if any(not _PLACEHOLDER.fullmatch(found[1]) for found in _ADDRESS.finditer(content)):
        return "an address with a password"
    if any(_is_secret(name, value) for name, value in _assignments(path, content, lower)):
        return "a password or key"
    return None


def _assignments(path: str, content: bytes, lower: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give names that speak of secrets, with what is assigned to them; in code that is a text in quotes, or in an address."""
    code = PurePosixPath(path).suffix in _CODE and not path.endswith(".sh")
    for name in _KEYWORD.finditer(lower):
        if quoted := _QUOTED.match(content, name.end()):
            yield name[0], quoted[3]
        elif (not code or _is_in_text(content, name)) and (plain := _PLAIN.match(content, name.end())):
            yield name[0], plain[1]
    if b"auth" in lower:
        yield from ((b"password", pair[3]) for pair in _PAIR.finditer(content))
    if b"curl" in lower:
        for user in _USER.finditer(content):
            command = content[max(0, user.start() - 300) : user.start() + 1].replace(b"\\\n", b" ")
            if b"curl" in command.rpartition(b"\n")[2]:
                yield b"password", user[1]


def _is_in_text(content: bytes, name: re.Match[bytes]) -> bool:
    """Say whether what is assigned in code is so inside a text: of an address, or of settings."""
    before = content[max(0, name.start() - 100) : name.start()].rstrip(_NAME)
    if before.endswith((b"?", b"&")):
        return True
    if not re.match(rb"=[^\s(]", content[name.end() : name.end() + 2]):
        return False
    return before.endswith((b'"', b"'")) or (before.endswith((b" ", b";")) and bool(_SETTING.search(before)))


def _is_secret(name: bytes, value: bytes) -> bool:
    short = name in (b"pass", b"pw")  # which may as well be one of two passes
    mixed = re.search(rb"\d", value) and re.search(rb"[a-df-z]", value, re.I)  # and no number: 1e-5
    if (short and not mixed) or _ABOUT.search(name) or _PLACEHOLDER.fullmatch(value):
        return False
    if re.search(rb"\s", value):
        return bool(re.fullmatch(rb"pass(?:word|wd|phrase|code)\d*|pwd\d*", name)) and not _PROSE.search(value)
    if name.startswith((b"pass", b"pwd")) and not short:
        return True
    if short:
        return len(value) >= 6
    return len(value) >= 8 and bool(mixed or _entropy(value) >= 3.5)


def _entropy(text: bytes) -> float:
    """Return Shannon's entropy of the text's characters, in bits a character."""
    shares = [count / len(text) for count in Counter(text).values()]
    return -sum(share * math.log2(share) for share in shares)
