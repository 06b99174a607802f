"""Takes secrets out of text that is about to be logged, stored or sent to a client.

Two nets: every configured secret, literally, because a key need not look like one; and the forms
that providers' keys have, because an upstream may quote a key that is not ours. Redact first and
shorten afterwards: the other way round leaves the head of a secret that no net knows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import quote

_GONE = "[redacted]"

_LIMIT = 64 * 1024
"""Characters that are looked at; what lies beyond is dropped, so a hostile text costs no time."""

_SHORT, _NAMES = 128, 1024
"""Characters of a name, which comes with many calls, and how many of them are remembered."""

_ANYWHERE = 6
"""A secret of fewer characters is replaced only where it stands alone: ``sk-1`` but not in
``sk-15``. Of fewer than four it is left: it hides nothing and would blank out half of each line."""

_MASKED = r"[A-Za-z0-9_-]{0,64}(?:\*{2,}|\.{3}|…)[A-Za-z0-9_*-]{0,64}"
"""A key that somebody masked (``sk-proj-ab****wxyz``) still shows its ends."""

_KEYS = re.compile(
    # sk- after a small letter is a word (task-, risk-, disk-), and ids of models are made of those.
    rf"(?:(?<![a-z])sk-|gsk_|AIza|hf_|cf(?:ut|at|k)_){_MASKED}"
    r"|gsk_[A-Za-z0-9]{20,}"
    r"|AIza[0-9A-Za-z_-]{35,}"
    r"|AQ\.[A-Za-z0-9_-]{20,}"
    r"|(?<![a-z])sk-or-v1-[0-9a-f]{16,}"
    r"|(?<![a-z])sk-(?:proj-|ant-|svcacct-)?[A-Za-z0-9_-]{20,}"
    r"|cf(?:ut|at|k)_[A-Za-z0-9_-]{40,}"
    r"|hf_[A-Za-z0-9]{20,}"
    r"|(?<![a-z])tk-[A-Za-z0-9_-]{40,}"  # our own, of a client: nobody but the client has it
)

_FIELDS = re.compile(
    r"""(
        \bbearer\s++
      | (?:\b|_)(?:authorization|x-api-key|api[-_]key|x-goog-api-key)["'\\]{0,2}\s{0,8}[:=,]\s{0,8}
        (?:b(?=["']))?[\\"']{0,2} (?:(?:bearer|basic|token)\s++)?
      | [?&](?:key|access_token)=
    ) [^\s"'<>,;&\\]+
    | ((?:set-)?cookie["']?\s{0,8}[:=,]\s{0,8}(?:b(?=["']))?["']?) [^\r\n"']+
    """,
    re.IGNORECASE | re.VERBOSE,
)
"""Header fields and query members whose value is a secret, whatever it looks like; the name stays.
The longer names (``proxy-authorization``, ``cf-aig-authorization``) end in one of these."""

_IDENTITIES = re.compile(
    r"\borg_[A-Za-z0-9]{6,}"  # Groq's organisation
    r"|\borg-[A-Za-z0-9]{16,}"  # OpenAI's
    r"|\buser_[A-Za-z0-9]{16,}"  # OpenRouter's user
    r"|(?<=projects/)[0-9]{6,}|(?<=project_number:)[0-9]{6,}"  # Google's project
    r"|(?<=accounts/)[A-Za-z0-9_-]{16,}"  # Cloudflare's account, or the token put in its place
)

_NETS = (
    (("bearer", "authorization", "api", "cookie", "key=", "access_token="), _FIELDS),
    (("sk-", "gsk_", "aiza", "aq.", "cfut_", "cfat_", "cfk_", "hf_", "tk-"), _KEYS),
    (("org", "user_", "project", "accounts/"), _IDENTITIES),
)
"""Each pattern behind the words it cannot match without (in small letters): looking for those
costs a tenth of running the pattern, and most texts hold none of them."""


class Redactor:
    """Replaces secrets in a text by ``[redacted]``; a callable, ``redact(text) -> str``.

    ``secrets`` are the configured ones: they go wherever they stand, as they are, percent-encoded
    or JSON-escaped, and from their first half on where somebody cut or masked the rest.
    """

    def __init__(self, secrets: Iterable[str]) -> None:
        self._forms: set[str] = set()
        self.learn(secrets)

    def learn(self, secrets: Iterable[str]) -> None:
        """Replace these, too."""
        forms = self._forms
        for secret in secrets:
            plain = secret.strip()
            forms |= {plain, quote(plain, safe=""), json.dumps(plain)[1:-1]}
        self._literals = _literals(forms)
        # The cut at _LIMIT may leave the head of a secret, unrecognisable; it is dropped with what
        # surrounds it. Twice, because a replacement can be longer than what it replaced.
        self._margin = 2 * max(128, *(len(form) for form in forms)) if forms else 256
        self._name = lru_cache(_NAMES)(self._clean)

    def __call__(self, text: str) -> str:
        if len(text) <= _SHORT:
            return self._name(text)
        if len(text) <= _LIMIT:
            return self._clean(text)
        return self._clean(text[:_LIMIT])[: -self._margin] + "…"

    def whole(self, text: str, length: int) -> str:
        """A text masked for a reader of its first ``length`` characters, however many: 20 ms of
        work a MiB, and more where they speak of keys. What follows them may be missing."""
        taken = text[: length + self._margin]
        cleaned = self._clean(taken)
        return cleaned if taken == text else cleaned[: -self._margin]

    def _clean(self, text: str) -> str:
        if self._literals is not None:
            text = self._literals.sub(_GONE, text)
        lower = text.lower()
        for hints, pattern in _NETS:
            if any([hint in lower for hint in hints]):
                text = pattern.sub(_keep_name, text)
        return text


def _literals(forms: Iterable[str]) -> re.Pattern[str] | None:
    """One pattern for all configured secrets, longest first so that no tail of one is left."""
    patterns: list[tuple[int, str]] = []
    for form in forms:
        escaped = re.escape(form)
        if len(form) >= 16:
            head = len(form) // 2
            patterns.append((head, re.escape(form[:head]) + r"[A-Za-z0-9_.*~+/=…-]*"))
        if len(form) >= _ANYWHERE:
            patterns.append((len(form), escaped))
        elif len(form) >= 4:
            patterns.append((len(form), rf"(?<![\w-]){escaped}(?![\w-])"))
    if not patterns:
        return None
    patterns.sort(reverse=True)
    return re.compile("|".join(pattern for _, pattern in patterns))


def _keep_name(match: re.Match[str]) -> str:
    names = [group for group in match.groups() if group]
    return "".join([*names, _GONE])


def shorten(text: str, limit: int = 500) -> str:
    """At most ``limit`` characters, the last one ``…`` where something was cut."""
    return text if len(text) <= limit else text[: limit - 1] + "…"
