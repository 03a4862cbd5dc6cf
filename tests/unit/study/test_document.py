"""docs/study.md against the results it is made from: neither is committed without the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from equilibrate.config.files import resolve_settings
from equilibrate.config.study import load_study, read_base
from equilibrate.study import (
    expand,
    missing_runs,
    plan_runs,
    read_results,
    summary_markdown,
    with_section,
)

DOCUMENT = Path("docs/study.md")
SECTIONS = re.findall("^## Results of `(.*)`$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_says_what_the_results_say(name: str):
    study = load_study(Path("deploy/configs/studies") / f"{name}.yaml")
    runs = plan_runs(expand(study, read_base(study)), resolve_settings)
    results = read_results(Path(study.results), resolve_settings)
    # A setting or a default that is new would hide what was run with the old ones.
    assert not [run.arms for run in missing_runs(runs, results)]
    summary = summary_markdown(study, runs, results)
    document = DOCUMENT.read_text(encoding="utf-8")
    assert with_section(document, name, summary) == document, (
        f"run `python -m equilibrate study deploy/configs/studies/{name}.yaml --report-only "
        f"--document {DOCUMENT}`"
    )


WITHOUT_RESULTS = {"smoke"}
"""Studies that are run to see that they run."""
OF_NO_STUDY = {"3a962b0af602", "446b36b8b036", "8fa7226721d2"}
"""Results that no study asks for any more."""


def test_every_committed_result_is_found_by_its_study():
    """A key that changes, or a default, without a step in `config.formats` loses what was run."""
    found: dict[str, set[str]] = {}
    for file in sorted(Path("deploy/configs/studies").glob("*.yaml")):
        study = load_study(file)
        runs = plan_runs(expand(study, read_base(study)), resolve_settings)
        results = read_results(Path(study.results), resolve_settings)
        missing = [run.arms for run in runs if run.key not in results]
        assert not missing or study.name in WITHOUT_RESULTS, f"{study.name}: {missing}"
        found.setdefault(study.results, set()).update(run.key for run in runs)
    for file, keys in found.items():
        recorded = read_results(Path(file), resolve_settings)
        assert {result.key for key, result in recorded.items() if key not in keys} <= OF_NO_STUDY
