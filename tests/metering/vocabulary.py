"""The extra that brings OpenAI's vocabulary, which the tests install wherever it exists."""

from __future__ import annotations

import sys

import pytest

needed = pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="quicktok has no wheel for this Python"
)
