"""Layers, targeting and overrides of the files on a real database: the difference in lines, applied, and what is refused."""

from dataclasses import replace
from decimal import Decimal

import pytest
from ground_support import BY, next_planner_version
from sync_support import SPLIT, Files, allocations, everything

from experimentation.promotion.candidates import open_candidate_run
from experimentation.runs.layers import ensure_layer, find_layer
from experimentation.runs.lifecycle import complete_run, create_run, runs_of
from experimentation.runs.run import LayerRange, NewVariant, Run
from experimentation.runs.store import epochs_of

pytest_plugins = ["sync_support"]

TEXT = """\
layers:
  - name: page
    holdout: 0.05
experiments:
  - name: cards
    unit_type: user
    status: active
    layer: {name: page, from: 500, to: 5000}
    targeting: context.platform == "ios"
    overrides: {h1: with_cards}
    variants:
      - {name: control, allocation: 0.5}
      - {name: with_cards, allocation: 0.5}
  - name: colours
    unit_type: user
    status: draft
    layer: {name: page, from: 5000, to: 10000}
    variants:
      - {name: control, allocation: 1}
"""
DRAFTS = TEXT.replace("status: active", "status: draft")


def test_new_layers_and_experiments_are_reported_and_created(files: Files) -> None:
    would = files.apply(TEXT, check=True).changes
    assert find_layer(files.connection, "page") is None
    assert files.apply(TEXT).changes == would
    assert would[2:] == (
        "+ layer page: holdout 0.0500",
        "+ experiment cards run 1 (user, active): control 0.5000, with_cards 0.5000; layer page 500–5000; "
        'targeting context.platform == "ios"; overrides h1: with_cards',
        "+ experiment colours run 1 (user, draft): control 1.0000; layer page 5000–10000",
    )
    (cards,) = runs_of(files.connection, "cards")
    assert (cards.layer, cards.targeting, cards.overrides) == (
        LayerRange("page", 500, 5_000),
        'context.platform == "ios"',
        {"h1": "with_cards"},
    )
    assert files.apply(TEXT).lines() == ["Files and database agree."]


def test_differences_are_reported_line_by_line(files: Files) -> None:
    files.apply(TEXT)
    text = TEXT.replace("holdout: 0.05", "holdout: 0\n    description: The page.").replace('"ios"', '"web"')
    text = text.replace("{h1: with_cards}", "{h2: control, h1: control}").replace("from: 5000", "from: 6000")
    would = files.apply(text, check=True).changes
    state = everything(files.connection)
    assert files.apply(text, check=True).changes == would
    assert everything(files.connection) == state
    assert files.apply(text).changes == would
    assert would == (
        "~ layer page: holdout 0.0500 → 0.0000",
        "~ layer page: description",
        '~ experiment cards run 1: targeting context.platform == "ios" → context.platform == "web"',
        "~ experiment cards run 1: overrides h1: with_cards → control, h2: none → control",
        "~ experiment colours run 1: layer page 5000–10000 → page 6000–10000",
    )
    (cards,) = runs_of(files.connection, "cards")
    assert [epoch.targeting for epoch in epochs_of(files.connection, cards.id)] == [
        'context.platform == "ios"',
        'context.platform == "web"',
    ]
    assert files.apply(text).changes == ()


def test_targeting_overrides_and_layer_are_removed_when_the_file_drops_them(files: Files) -> None:
    files.apply(TEXT)
    text = TEXT.replace('    targeting: context.platform == "ios"\n    overrides: {h1: with_cards}\n', "")
    text = text.replace("    layer: {name: page, from: 5000, to: 10000}\n", "")
    assert files.apply(text).changes == (
        '~ experiment cards run 1: targeting context.platform == "ios" → none',
        "~ experiment cards run 1: overrides h1: with_cards → none",
        "~ experiment colours run 1: layer page 5000–10000 → none",
    )
    assert files.apply(text).changes == ()


def test_override_may_name_a_variant_added_by_the_same_sync(files: Files) -> None:
    files.apply(TEXT)
    text = TEXT.replace("0.5}", "0.45}").replace(
        "  - name: colours", "      - {name: late, allocation: 0.1}\n  - name: colours"
    )
    text = text.replace("{h1: with_cards}", "{h1: late}")
    assert files.apply(text).changes[-1] == "~ experiment cards run 1: overrides h1: with_cards → late"
    assert allocations(files.connection)["late"] == Decimal("0.1")


def test_each_override_to_a_missing_variant_is_reported(files: Files) -> None:
    text = TEXT.replace("{h1: with_cards}", "{a: one, b: control, c: two}")
    expected = [
        f"experiments.yml:10: The overrides of cards give {unit} the variant {name}, which cards does not have."
        for unit, name in (("a", "one"), ("c", "two"))
    ]
    assert files.problems(text) == expected
    files.apply(TEXT)
    assert files.problems(text) == expected


def candidate_run(files: Files) -> tuple[str, Run]:
    """A file whose experiment promotion has taken over, with the run that it opened."""
    text = SPLIT[: SPLIT.index("      - name: with_cards")].replace("0.5", "1")
    text = text.replace("config: {feature_enabled: false}", "policy: planner_policy@1").replace("user", "household")
    text = text.replace("    variants", "    description: The file's.\n    overrides: {h1: control}\n    variants")
    files.apply(text)
    version = next_planner_version(files.connection)
    opened = open_candidate_run(
        files.connection,
        experiment_name="cards",
        policy_version_id=version.id,
        treatment_name="candidate_v2",
        change=BY,
    )
    assert opened.run.overrides == {"h1": "control"}
    return text, opened.run


def test_overrides_of_a_candidate_run_follow_the_file(files: Files) -> None:
    text, before = candidate_run(files)
    text = text.replace("{h1: control}", "{h2: candidate_v2, h3: gone}").replace("The file's.", "Another.")
    would = files.apply(text, check=True).changes
    assert runs_of(files.connection, "cards")[-1] == before
    report = files.apply(text)
    assert (
        report.changes == would == ("~ experiment cards run 2: overrides h1: control → none, h2: none → candidate_v2",)
    )
    assert report.notes == (
        "cards run 2 (active) is promotion's: the file's cards is left alone, but for its overrides",
        "cards run 2 has no variant gone: overrides to it are left out",
    )
    after = runs_of(files.connection, "cards")[-1]
    assert after == replace(before, overrides={"h2": "candidate_v2"}), "all else stays as it was"
    audit = files.connection.execute(
        "SELECT action, subject, after -> 'overrides' FROM exp.audit_log ORDER BY id DESC LIMIT 1"
    )
    assert audit.fetchone() == ("experiment.updated", "cards run 2", {"h2": "candidate_v2"})
    assert files.apply(text).changes == ()


def test_overrides_of_a_completed_candidate_run_stay(files: Files) -> None:
    text, run = candidate_run(files)
    complete_run(files.connection, run.id, shipped="control", change=BY)
    report = files.apply(text.replace("h1: control", "h2: control"))
    assert report.changes == ()
    assert report.notes == ("cards run 2 (completed) is promotion's: the file's cards is left alone",)
    assert runs_of(files.connection, "cards")[-1].overrides == {"h1": "control"}


def test_drafts_may_swap_their_ranges(files: Files) -> None:
    files.apply(DRAFTS)
    swapped = DRAFTS.replace("from: 5000, to: 10000", "from: 500, to: 5000").replace(
        "from: 500, to: 5000", "from: 5000, to: 10000", 1
    )
    assert files.apply(swapped).changes == (
        "~ experiment cards run 1: layer page 500–5000 → page 5000–10000",
        "~ experiment colours run 1: layer page 5000–10000 → page 500–5000",
    )


def test_range_may_pass_to_another_experiment_in_any_order_of_the_file(files: Files) -> None:
    files.apply(TEXT)
    heir = (
        "  - name: heir\n    unit_type: user\n    layer: {name: page, from: 500, to: 5000}\n"
        "    variants: [{name: control, allocation: 1}]\n"
    )
    text = TEXT.replace("status: active", "status: completed").replace("experiments:\n", f"experiments:\n{heir}")
    assert files.apply(text).changes == (
        "+ experiment heir run 1 (user, draft): control 1.0000; layer page 500–5000",
        "~ experiment cards run 1: status active → completed",
    )


def test_draft_may_make_room_for_a_growing_holdout(files: Files) -> None:
    files.apply(DRAFTS)
    text = DRAFTS.replace("holdout: 0.05", "holdout: 0.06").replace("from: 500,", "from: 600,")
    assert files.apply(text).changes == (
        "~ layer page: holdout 0.0500 → 0.0600",
        "~ experiment cards run 1: layer page 500–5000 → page 600–5000",
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "from: 500,",
            "from: 600,",
            "8: cards run 1 is active: only a draft's layer and range can be changed, or units would be in two experiments of the layer.",
        ),
        (
            "    layer: {name: page, from: 500, to: 5000}\n",
            "",
            "5: cards run 1 is active: only a draft's layer and range can be changed, or units would be in two experiments of the layer.",
        ),
        (
            "from: 5000, to: 10000",
            "from: 9000, to: 10000",
            "17: colours run 1 can't take the buckets 9000 to 10000 of page while other run 1 (draft) has 9500 to 10000: "
            "take a free range, or complete those runs first.",
        ),
    ],
)
def test_range_conflict_with_the_database_is_refused_with_file_and_line(
    files: Files, old: str, new: str, expected: str
) -> None:
    files.apply(TEXT.replace("to: 10000", "to: 9500"))
    other = [NewVariant("control", "control", Decimal(1))]
    create_run(
        files.connection,
        name="other",
        unit_type="user",
        variants=other,
        layer=LayerRange("page", 9_500, 10_000),
        made_by="promotion",
        change=BY,
    )
    text = TEXT if "10000" in new else TEXT.replace("to: 10000", "to: 9500")
    assert files.problems(text.replace(old, new)) == [f"experiments.yml:{expected}"]


def test_holdout_that_grows_into_a_stored_experiment_is_refused(files: Files) -> None:
    files.apply(TEXT)
    text = TEXT[: TEXT.index("  - name: cards")].replace("experiments:\n", "experiments: []\n")
    assert files.problems(text.replace("0.05", "0.0501")) == [
        "experiments.yml:2: The holdout of page can't be 0.0501, its first 501 buckets, while cards run 1 (active) has 500 to 5000: "
        "complete those runs first."
    ]


def test_unnamed_layers_are_left_alone(files: Files) -> None:
    ensure_layer(files.connection, "older", change=BY)
    report = files.apply(TEXT)
    assert report.notes == ("layer older is in the database only, and is left alone",)
    assert find_layer(files.connection, "older") is not None


def test_range_of_a_completed_run_is_ignored(files: Files) -> None:
    files.apply(TEXT)
    complete_run(files.connection, runs_of(files.connection, "cards")[0].id, change=BY)
    assert files.apply(TEXT.replace("from: 500,", "from: 700,")).changes == ()
