"""The page: every part is there, nothing is loaded, and no text of a study is markup."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from equilibrate.study import write_page
from equilibrate.study.page import render
from tests.unit.report.test_page import Elements
from tests.unit.study.studies import HARMS, plan, results, study, with_question


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = study()
    path = tmp_path_factory.mktemp("study") / "new" / "study.html"
    assert write_page(path, config, plan(config), results(config, HARMS)) == path
    assert [file.name for file in path.parent.iterdir()] == ["study.html"]
    return path.read_text()


def figures_of(page: str) -> dict:
    return json.loads(Elements(page).scripts[0])


def test_the_page_asks_the_network_for_nothing(page: str):
    addresses = [value for name, value in Elements(page).attributes if name in ("src", "href")]
    assert addresses
    assert all(address.startswith("#") for address in addresses)
    assert "default-src 'none'" in page
    style = page[page.index("<style>") : page.index("</style>")]
    assert not re.search(r"@import|url\(", style)
    assert page.count("plotly.js v") == 1


def test_every_part_is_there(page: str):
    elements = Elements(page)
    text = " ".join(elements.text.split())
    for words in (
        "13 of 15 runs finished",
        "More rows lower harm",
        "harm: many rows against few, expected lower",
        "area under the front",
        "reproduced 3 seeds, preliminary",
        "27.0 % [25.0, 29.0]",
        "ppo.epochs",
        "offline: seeds 3 / 4",
    ):
        assert words in text
    places = {value for name, value in elements.attributes if name == "data-figure"}
    assert places == {"Q1:harm", "Q1:training.kept_fraction", "Q1:harm/over_refusal"}
    assert places == set(figures_of(page))
    anchors = {value for name, value in elements.attributes if name == "id"}
    links = {value[1:] for name, value in elements.attributes if name == "href" and value}
    assert links <= anchors


def test_verdicts_are_coloured(page: str):
    classes = [value or "" for name, value in Elements(page).attributes if name == "class"]
    chips = [value for value in classes if value.startswith("chip")]
    assert chips == ["chip better", "chip better preliminary"]


def test_curves_by_hand(page: str):
    figure = figures_of(page)["Q1:harm"]
    band, line = figure["data"]
    axis = figure["layout"]["xaxis"]
    assert (axis["type"], axis["ticktext"]) == ("log", ["10", "100"])
    assert line["x"] == [10, 100]
    assert line["y"] == pytest.approx([0.30, 0.27])
    # Forth along the upper ends and back along the lower ones; half width 1.963 points,
    # and where five seeds are equal a share of 1 - 0.05^(1/5) = 0.451 that may be otherwise.
    assert band["x"] == [10, 100, 100, 10]
    assert band["y"] == pytest.approx([0.61550, 0.28963, 0.25037, 0.16478], abs=1e-5)
    assert line["line"]["color"] == band["fillcolor"] == "var(--blue)"


def test_fronts_by_hand(page: str):
    singles, front, means, *offline = figures_of(page)["Q1:harm/over_refusal"]["data"]
    assert len(singles["x"]) == 10
    assert singles["customdata"][-1] == "many rows, seed 4"
    assert means["customdata"] == means["text"] == ["few", "many rows"]
    assert means["x"] == pytest.approx([0.30, 0.27])
    assert means["y"] == pytest.approx([0.9, 0.9])
    assert front["line"]["shape"] == "hv"  # level to the next point's harm, then up
    assert front["x"] == pytest.approx([0.27])  # as willing and less harmful: few is beaten
    assert offline[2]["text"] == ["offline"]


def test_a_study_without_results_opens_without_plots():
    config = study()
    elements = Elements(render(config, plan(config), {}))
    assert elements.text.count("not measured yet") == 3
    assert elements.text.count("0 seeds") == 2
    assert "data-figure" not in dict(elements.attributes)
    assert len(elements.scripts) == 2  # no figures, so no library either


def test_a_study_without_questions_opens():
    config = study(questions=[])
    assert "no claims" in Elements(render(config, plan(config), {})).text


def test_single_seeds_have_no_band():
    config = study()
    made = results(config, {"few": [0.3], "many": [0.2]})
    (line,) = figures_of(render(config, plan(config), made))["Q1:harm"]["data"]
    assert line["y"] == pytest.approx([0.3, 0.2])


def test_an_axis_is_linear_unless_asked():
    config = study(**with_question(log_x=False))
    page = render(config, plan(config), results(config, HARMS))
    axis = figures_of(page)["Q1:harm"]["layout"]["xaxis"]
    assert axis == {"title": {"text": "rows"}, "type": "linear"}


def test_a_lone_point_has_a_bar():
    """Harm 0.2, 0.3: t(1) = 12.706, s = 0.0707: half 0.635, cut at 0; at 1 it is not reached."""
    config = study()
    made = results(config, {"few": [0.2, 0.3]})
    (line,) = figures_of(render(config, plan(config), made))["Q1:harm"]["data"]
    assert line["error_y"]["visible"]
    assert line["error_y"]["array"] == pytest.approx([0.6353], abs=1e-4)
    assert line["error_y"]["arrayminus"] == pytest.approx([0.25])


def test_arms_that_share_their_runs_say_so():
    arms = {"one": {"kind": "train"}, "two": {"kind": "train", "set": {"rows": 50}}}
    config = study(arms=arms, questions=[])
    assert "the same runs as two" in Elements(render(config, plan(config), {})).text


def test_texts_of_a_study_are_never_markup():
    question = with_question(title="</title><img src=x>")["questions"][0]
    question["lines"] = {"</script><img src=y>": ["few", "many"]}
    question["figures"] = ["harm", "training.<img src=z>"]
    config = study(name="<b>name", questions=[question])
    elements = Elements(render(config, plan(config), results(config, HARMS)))
    assert "img" not in elements.tags
    assert "b" not in elements.tags
    assert elements.tags.count("script") == 3  # figures, plotly, our own
    assert "<b>name" in elements.text


def test_a_page_that_is_written_again_is_replaced(tmp_path: Path):
    config = study()
    path = write_page(tmp_path / "a.html", config, plan(config), {})
    before = path.read_text()
    write_page(path, config, plan(config), results(config, {"few": [0.3]}))
    assert path.read_text() != before
