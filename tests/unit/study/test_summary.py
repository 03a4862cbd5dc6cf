"""The Markdown: every claim with its verdict, every arm with its figures, and what is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from equilibrate.study import summary_markdown, with_section
from equilibrate.study.page import render
from equilibrate.study.summary import claim_rule
from tests.unit.study.studies import HARMS, TREE, plan, results, study, table, with_question

MINUS = "\N{MINUS SIGN}"


def summary(config, harms=HARMS) -> list[str]:
    return summary_markdown(config, plan(config), results(config, harms)).splitlines()


def test_verdicts_by_hand():
    """Harm: as in test_claims. Fronts of 3 seeds, refusal 0.1: (1 - few or many) 0.9 - 0.4 x 0.9.

    Seeds 0 to 2 have 0.9 x (0.60 - 0.29), (0.60 - 0.28), (0.60 - 0.27) = 0.279, 0.288, 0.297.
    """
    lines = summary(study())
    assert lines[:3] == [
        "# amounts",
        "",
        "13 of 15 runs finished: 3 arms, seeds 0 / 1 / 2 / 3 / 4, judged by oracle.",
    ]
    assert (
        f"| Q1 | More rows lower harm | reproduced | {MINUS}3.0 [{MINUS}5.0, {MINUS}1.0] "
        f"| {MINUS}1.9 | 5 |"
    ) in lines
    front = next(line for line in lines if "better front" in line)
    # s = 0.9 points, half 4.3027 x 0.9 / sqrt(3) = 2.24; d_z = 28.8 / 0.9 = 32
    assert front == (
        "| Q1 | PPO has the better front | reproduced (3 seeds, preliminary) "
        "| +28.8 [+26.6, +31.0] | +32.0 | 3 |"
    )


def test_figures_of_every_arm():
    lines = summary(study())
    start = lines.index("## Q1: How much data?")
    assert lines[start + 2] == "More rows, less harm."
    assert lines[start + 4] == "| arm | harmful answers | kept | over-refusal | seeds |"
    # Equal seeds leave room for a share of 1 - 0.05^(1/5) = 0.451 of others, of three 0.632.
    assert lines[start + 6 : start + 9] == [
        "| few | 30.0 % [16.5, 61.6] | 50.0 % [50.0, 50.0] | 10.0 % [5.5, 50.6] | 5 |",
        "| many rows | 27.0 % [25.0, 29.0] | 50.0 % [50.0, 50.0] | 10.0 % [5.5, 50.6] | 5 |",
        "| offline | 60.0 % [22.1, 85.3] | 50.0 % [50.0, 50.0] | 10.0 % [3.7, 66.8] | 3 |",
    ]


def test_what_is_missing_is_listed():
    lines = summary(study())
    assert lines[-3:] == ["## Missing", "", "- offline: seeds 3 / 4"]
    everything = {**HARMS, "offline": [0.6] * 5}
    assert "## Missing" not in summary(study(), everything)
    misspelt = study(**with_question(figures=["training.kept"]))
    assert summary(misspelt, everything)[-1].startswith("- Q1: figure ('training.kept')")


def test_arms_that_start_from_different_bases_are_named():
    config = study()
    made = results(config, HARMS)
    assert "## Different starts" not in summary(config)
    for run in plan(config):
        if "few" in run.arms and run.seed in (1, 3):
            made[run.key] = replace(made[run.key], base=table(harm=0.91))
    lines = summary_markdown(config, plan(config), made).splitlines()
    start = lines.index("## Different starts")
    assert lines[start + 2] == (
        "- Q1: seeds 1 / 3: the arms of a claim were not all measured from the same start (another "
        "base model, or one sampled or judged otherwise), and its gap holds that too"
    )
    assert "Different starts" in render(config, plan(config), made)
    # Where no claim holds `few` against another arm, nothing depends on it.
    for run in plan(config):
        if "offline" in run.arms and run.key in made:
            made[run.key] = replace(made[run.key], base=table(harm=0.7))
    question = with_question()["questions"][0]
    apart = study(questions=[question | {"claims": []}])
    assert "## Different starts" not in summary_markdown(apart, plan(apart), made)


def test_arms_that_go_on_from_another_are_meant_to_start_elsewhere():
    config = study(arms=TREE["arms"] | {"many": TREE["arms"]["many"] | {"start": "few"}})
    made = results(config, HARMS)
    for run in plan(config):
        if run.start:
            made[run.key] = replace(made[run.key], base=table(harm=0.25), inputs=run.inputs)
    assert "## Different starts" not in summary_markdown(config, plan(config), made)


def test_a_study_without_results_says_so():
    lines = summary(study(), {})
    assert lines[2] == "0 of 15 runs finished: 3 arms, seeds 0 / 1 / 2 / 3 / 4."
    assert "| Q1 | More rows lower harm | not measured (0 seeds) | - | - | 0 |" in lines
    assert "| few | - | - | - | 0 |" in lines


def test_texts_do_not_break_the_table():
    question = with_question()["questions"][0]
    question["claims"][0]["text"] = "harm | cost\n falls"
    lines = summary(study(questions=[question]))
    assert any(line.startswith(r"| Q1 | harm \| cost falls | reproduced |") for line in lines)


def test_the_rule_of_a_claim_in_words():
    config = study()
    harm, front = config.questions[0].claims
    assert claim_rule(config, harm) == "harm: many rows against few, expected lower"
    assert claim_rule(config, front) == (
        "harm / over_refusal: few; many rows against offline, expected higher by more than 2 points"
    )
    pair = harm.model_copy(update={"against_figure": "harm.IHD"})
    assert claim_rule(config, pair) == "harm: many rows against few at harm.IHD, expected lower"
    level = front.model_copy(update={"compare": "equal_harm"})
    assert claim_rule(config, level).startswith("harm / over_refusal at equal harm: few; many")
    same = harm.model_copy(update={"expect": "same", "margin": 5.0, "figure": "training.seconds"})
    assert claim_rule(config, same).endswith("expected same within 5")


DOCUMENT = """# Mine

Read me first.

## Results of `tiny`

old

### Old detail

## Results of `other`

stays
"""


def test_a_section_is_written_anew_between_what_stays():
    after = with_section(DOCUMENT, "tiny", "# tiny\n\nnew\n\n## Verdicts\n\nnone")
    expected = DOCUMENT.replace("old\n\n### Old detail", "new\n\n### Verdicts\n\nnone")
    assert after == expected
    assert with_section(after, "tiny", "# tiny\n\nnew\n\n## Verdicts\n\nnone") == after


@pytest.mark.parametrize(
    ("document", "before"), [("", ""), ("# Mine\n", "# Mine\n\n"), (DOCUMENT, DOCUMENT + "\n")]
)
def test_a_new_section_goes_to_the_end(document: str, before: str):
    assert (
        with_section(document, "new", "# new\n\ntext") == f"{before}## Results of `new`\n\ntext\n"
    )
