from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from equilibrate.errors import DataError, ResourceError
from equilibrate.report import write_report
from tests.unit.report.runs import CANARY, write_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "sandbox", per_cell=8)


@pytest.fixture(scope="module")
def page(run_folder: Path) -> str:
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    return path.read_text()


class Elements(HTMLParser):
    """What a browser would make of the page: tags, links and the text of data scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self._open = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._open = ""

    def handle_data(self, data):
        if self._open == "script":
            self.scripts[-1] += data
        elif self._open != "style":
            self.text += data


def test_what_a_model_says_is_never_markup(page: str):
    elements = Elements(page)
    assert elements.tags.count("script") == 4  # figures, samples, plotly, our own
    assert "img" not in elements.tags
    samples = json.loads(elements.scripts[1])
    assert samples[0]["response"] == CANARY  # and nothing of it is lost


def test_hostile_settings_and_names_are_escaped(tmp_path: Path):
    folder = write_run(tmp_path / "<b>run", per_cell=2)
    (folder / "config.yaml").write_text("'<img src=x>': '<script>window.canary=1</script>'\n")
    results = json.loads((folder / "results.json").read_text())
    results["versions"] = {"<i>": "</table>"}
    (folder / "results.json").write_text(json.dumps(results))
    elements = Elements(write_report(folder).read_text())
    assert "img" not in elements.tags
    assert elements.tags.count("script") == 4
    assert "<script>window.canary=1</script>" in elements.text
    assert "<b>run" in elements.text


def test_the_page_asks_the_network_for_nothing(page: str):
    addresses = [value for name, value in Elements(page).attributes if name in ("src", "href")]
    assert addresses
    assert all(address.startswith("#") for address in addresses)
    assert "default-src 'none'" in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"@import|url\(", style)


def test_the_library_is_inlined_once(page: str):
    assert page.count("plotly.js v") == 1
    assert len(page) < 8_000_000


def test_every_panel_is_there(page: str):
    elements = Elements(page)
    figures = json.loads(elements.scripts[0])
    places = {value for name, value in elements.attributes if name == "data-figure"}
    assert places == set(figures)
    assert len(places) == 11
    assert "not recorded" not in elements.text
    for words in ("EHD heldout unknown", "judged by oracle", "seed 3", "ppo.kl.coef", "2.13.0"):
        assert words in elements.text


RATE = {"mean": 0.93, "low": 0.87, "high": 0.96, "n": 315}
MEASURED = {"verdict": "refused", "file": "<b>.csv", "n": 315, "kappa": RATE, "look_alikes": None}


@pytest.mark.parametrize(
    ("judge", "agreement", "said"),
    [
        ("oracle", [], "judge agreement: exact by construction"),
        ("refusal rules", [], "judge agreement: nobody measured it"),
        (
            "refusal rules",
            [MEASURED],
            "judge agreement: refused: kappa 0.93 [0.87, 0.96] measured on <b>.csv, n=315; "
            "not measured on harmless look-alikes",
        ),
        (
            "refusal rules",
            [MEASURED | {"kappa": None, "look_alikes": {"false_alarms": RATE}}],
            "judge agreement: refused: no kappa measured on <b>.csv, n=315; false alarms on "
            "harmless look-alikes 0.93 [0.87, 0.96], n=315",
        ),
    ],
)
def test_the_page_says_how_far_the_judge_agrees(
    judge: str, agreement: list[dict[str, object]], said: str, tmp_path: Path
):
    folder = write_run(tmp_path, per_cell=2)
    results = json.loads((folder / "results.json").read_text())
    results |= {"judge": judge, "judge_agreement": agreement}
    (folder / "results.json").write_text(json.dumps(results))
    assert said in Elements(write_report(folder).read_text()).text


def test_two_reports_of_one_run_are_equal(run_folder: Path, page: str):
    assert write_report(run_folder).read_text() == page


def test_a_run_without_evaluation_says_so(tmp_path: Path):
    folder = write_run(tmp_path, per_cell=2)
    for name in ("results.json", "evaluations.jsonl", "samples.jsonl", "timings.jsonl"):
        (folder / name).unlink()
    elements = Elements(write_report(folder).read_text())
    assert "this run has not been evaluated yet" in elements.text
    # trade-off twice, seconds twice, samples, environment
    assert elements.text.count("not recorded") == 1 + 2 + 2 + 1 + 1
    assert "harm_refusal" not in json.loads(elements.scripts[0])


def test_a_run_with_results_only_needs_no_plotly_for_training(tmp_path: Path):
    folder = write_run(tmp_path, per_cell=2)
    for name in ("metrics.jsonl", "evaluations.jsonl", "config.yaml"):
        (folder / name).unlink()
    figures = json.loads(Elements(write_report(folder).read_text()).scripts[0])
    assert set(figures) == {"harm_refusal", "harm_helpfulness", "seconds"}


@pytest.mark.parametrize(("cost", "is_said"), [(0.5, True), (-0.5, False)])
def test_budget_out_of_reach_is_said(tmp_path: Path, cost: float, is_said: bool):
    folder = write_run(tmp_path, per_cell=2)
    rows = [{"iteration": i, "multiplier": 5.0, "safety_cost": cost} for i in range(30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    constraint = "constraint: {type: pid, budget: 0.0, max: 5.0, scope: safety}\n"
    (folder / "config.yaml").write_text(constraint)
    text = Elements(write_report(folder).read_text()).text
    assert ("lambda stood at its cap (5) for 30 iterations in a row" in text) == is_said


def test_numbers_that_are_not_finite_do_not_break_the_page(tmp_path: Path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"iteration": 0, "kl": null, "reward": 1.0}\n{"iteration": 1, "kl": 0.5, "reward": null}\n'
    )
    figures = json.loads(Elements(write_report(tmp_path).read_text()).scripts[0])
    assert figures["kl"]["data"][0]["x"] == [1]
    assert figures["reward"]["data"][0]["y"] == [1.0]


def test_a_missing_library_is_named_with_its_cure(tmp_path: Path, monkeypatch):
    folder = write_run(tmp_path, per_cell=2)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ResourceError, match=r"equilibrate\[report\]"):
        write_report(folder)


def test_what_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"must hold results\.json or metrics\.jsonl"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "results.json").write_text("{broken")
    with pytest.raises(DataError, match=r"results\.json must be readable"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match="must hold a mapping"):
        write_report(tmp_path)
