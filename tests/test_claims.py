"""The page of claims says what the kept rows say, and the rows are whole."""

from pathlib import Path

import pytest

from bench.claims import (
    CASES,
    CLAIMS,
    GB,
    IMAGE_CLAIM,
    IMAGES,
    LARGEST,
    MAX_BATCH_DEVICES,
    RESULTS,
    Claim,
    extra_bytes,
    fixed_rows,
    least_bytes,
    missing,
    read_rows,
    solved_sequence,
)
from bench.claims_page import NEAR, image_verdict, page_of, verdict
from bench.sdxl import PIXELS_OF_A_LATENT
from graphremat.forecast import DEVICE_RESERVE_BYTES
from graphremat.passes.devices import DEVICES

ROWS = read_rows(RESULTS)
STEPS = [row for row in ROWS if row["case"] in CASES]
PAGE = Path(__file__).resolve().parents[1] / "docs" / "claims.md"


def test_the_page_is_made_of_the_rows() -> None:
    assert list(missing(ROWS)) == []
    assert PAGE.read_text(encoding="utf-8") == page_of(ROWS)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.case)
def test_at_the_sequence_that_is_looked_for_the_claim_begins_where_it_says(claim: Claim) -> None:
    fixed = fixed_rows(ROWS, claim.case)
    for setting in claim.settings:
        tokens = solved_sequence(fixed, claim, *setting)
        if tokens <= 0 or least_bytes(fixed[0], *setting) > claim.after * GB:
            continue
        row = next(r for r in STEPS if (r["case"], r["sequence"]) == (claim.case, tokens))
        peak = row["rivals"]["torch.compile"]["peak_bytes"] + extra_bytes(row, *setting)
        assert peak == pytest.approx(claim.before * GB, rel=0.03)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.case)
def test_a_verdict_is_that_of_the_plans(claim: Claim) -> None:
    for setting in claim.settings:
        holds, told = verdict(ROWS, claim, setting)
        rows = [
            r for r in STEPS if r["case"] == claim.case and told.startswith(f"at {r['sequence']} tokens ")
        ]
        if not rows:
            assert told.startswith("cannot be: ")
            assert not holds
            continue
        extra = extra_bytes(rows[0], *setting)
        points = rows[0]["points"]
        base = min(p["step_seconds"] for p in (*points, rows[0]["rivals"]["torch.compile"]))
        good = [p for p in points if p["peak_bytes"] + extra <= claim.after * GB]
        assert holds == any(p["step_seconds"] <= (1 + claim.slower) * base for p in good)


@pytest.mark.parametrize("setting", IMAGE_CLAIM.settings, ids="-".join)
def test_the_verdict_about_images_is_that_of_the_plans(setting: tuple[str, str, str]) -> None:
    case, optimizer, base = setting
    assert case in IMAGES
    holds, told = image_verdict(ROWS, setting)
    rows = [row for row in STEPS if row["case"] == case]
    assert sorted(row["sequence"] for row in rows) == list(CASES[case].sequences)
    if least_bytes(rows[0], optimizer, base) > IMAGE_CLAIM.after * GB:
        assert told.startswith("cannot be: ")
        assert not holds
        return
    any_holds = False
    for row in rows:
        extra = extra_bytes(row, optimizer, base)
        compiled = row["rivals"]["torch.compile"]
        fastest = min(p["step_seconds"] for p in (*row["points"], compiled))
        good = [
            point
            for point in row["points"]
            if compiled["peak_bytes"] + extra >= (1 - NEAR) * IMAGE_CLAIM.before * GB
            and point["peak_bytes"] + extra <= IMAGE_CLAIM.after * GB
            and point["step_seconds"] <= (1 + IMAGE_CLAIM.slower) * fastest
        ]
        assert f"at {row['sequence'] * PIXELS_OF_A_LATENT} pixels a side it " in told
        assert bool(good) == (f"at {row['sequence'] * PIXELS_OF_A_LATENT} pixels a side it holds: " in told)
        any_holds = any_holds or bool(good)
    assert holds == any_holds


def test_rows_are_plausible() -> None:
    for row in STEPS:
        rivals = row["rivals"]
        lowest = row["points"][-1]["peak_bytes"]
        assert row["parameter_bytes"] < lowest <= rivals["every value saved"]["peak_bytes"]
        assert rivals["every value saved"]["recompute_seconds"] == 0
        blocks = rivals["a checkpoint for each block"]
        assert blocks["saved_bytes"] < rivals["torch.compile"]["saved_bytes"]
        # No more than one more forward, and at least a third of the products are of the forward.
        assert blocks["recompute_seconds"] < 0.5 * blocks["step_seconds"]
        assert row["device"] in DEVICES


def test_the_layer_saves_one_value_of_its_results_size() -> None:
    (row,) = (row for row in ROWS if row["case"] == "layer")
    assert row["saved_bytes"] == 2 * row["batch"] * row["sequence"] * 4096
    assert row["weight_bytes"] == 2 * 2048 * 4096


def test_the_largest_batch_is_the_last_that_fits() -> None:
    rows = [row for row in ROWS if row["case"] == "max-batch"]
    assert [row["device"] for row in rows] == list(MAX_BATCH_DEVICES)
    for row in rows:
        planned = {each["batch"]: each for each in row["planned"]}
        room = DEVICES[row["device"]].memory_bytes - DEVICE_RESERVE_BYTES
        assert row["budget_bytes"] == room
        assert max(planned) == row["largest"] >= row["without_recomputation"]
        assert all(each["peak_bytes"] <= room for each in planned.values())
        assert row["best"] == max(planned, key=lambda batch: planned[batch]["examples_per_second"])


def test_planning_the_largest_took_minutes_and_little_memory() -> None:
    (row,) = (row for row in ROWS if row["case"] == "largest")
    assert row["ops"] == max(step["ops"] for step in STEPS if step["case"] == LARGEST)
    assert row["plan_seconds"] < 600
    assert max(r["process_bytes"] for r in (row, *STEPS)) < 8 * 2**30
