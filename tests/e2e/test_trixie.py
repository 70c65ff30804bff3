"""Packages of Debian's trixie come from the mirror that the machine's own apt uses."""

from __future__ import annotations

import pytest

from tests import trixie

BOOKWORM = "http://mirror.test/debian Debian bookworm"


@pytest.mark.parametrize(
    ("index_targets", "mirror"),
    [
        (BOOKWORM, "http://mirror.test/debian"),
        (f"http://security.test Debian bookworm-security\n{BOOKWORM}", "http://mirror.test/debian"),
        (f"http://other.test Debian bookworm-updates\n{BOOKWORM}", "http://mirror.test/debian"),
        (f"http://other.test Debian bookworm-backports\n{BOOKWORM}", "http://mirror.test/debian"),
        (f"http://ubuntu.test Ubuntu noble\n{BOOKWORM}", "http://mirror.test/debian"),
        ("http://ubuntu.test Ubuntu noble", None),
        ("http://unsigned.test", None),
        ("", None),
    ],
)
def test_the_mirror_is_the_first_of_a_debian_release(index_targets, mirror):
    assert trixie.mirror_in(index_targets) == mirror


def test_a_package_that_cannot_be_fetched_is_skipped_with_the_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(trixie, "ROOT", tmp_path)
    monkeypatch.setattr(trixie, "KEYRING", tmp_path / "none")
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="could not be fetched: this is no Debian"):
        trixie.fetched("victoria-metrics", "victoria-metrics")
