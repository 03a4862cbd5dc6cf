from __future__ import annotations

from equilibrate.run.versions import installed_versions, library_versions


def test_a_library_that_is_absent_has_no_version() -> None:
    assert library_versions(("torch", "no-such-library-at-all")).keys() == {"torch"}


def test_versions_name_what_is_installed() -> None:
    versions = installed_versions()
    assert versions["python"].startswith("3.")
    assert "numpy" in versions
    assert all(versions.values())
