from __future__ import annotations

from proxy.routing.key import Key


def test_a_key_does_not_show_its_secret() -> None:
    key = Key("k1", "sk-secret", "g")
    assert repr(key) == f"{key}" == "Key('k1', in_flight=0)"
