"""A user's recipes and diary: what good rows become, how bad rows are listed, which files are refused."""

import csv
import gzip
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from foundation.table_files import FileRefusedError
from planner.catalogue import Catalogue
from planner.history import History, HistoryOptions, read_history, write_rejects
from planner.rows import build_rows
from planner.sessions import events_frame
from product.protocol import RowWindow

NOW = datetime(2020, 1, 1, tzinfo=UTC)
RECIPES = "id,name,minutes,submitted,tags,ingredients\n" + "".join(
    f"{number},dish {number},{10 + number},2001-02-0{number},\"['vegan', 'Easy']\",\"['salt', 'rice']\"\n"
    for number in range(1, 10)
)
DIARY_HEADER = "user_id,recipe_id,date,rating\n"


def diary(*records: str) -> str:
    return DIARY_HEADER + "".join(f"{record}\n" for record in records)


def week(person: str = "ann", first: int = 1, count: int = 5, rating: int = 4) -> list[str]:
    return [f"{person},{first + number},2005-03-0{first + number},{rating}" for number in range(count)]


@pytest.fixture
def read(tmp_path: Path) -> Any:
    def reading(recipes: str | bytes = RECIPES, interactions: str | bytes | None = None, **options: Any) -> History:
        if interactions is None:
            interactions = diary(*week())
        paths = (tmp_path / "recipes.csv", tmp_path / "diary.csv")
        for path, content in zip(paths, (recipes, interactions), strict=True):
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_history(*paths, HistoryOptions(**{"not_after": NOW, **options}))

    return reading


def test_five_different_recipes_in_a_row_become_a_plan(read: Any) -> None:
    history = read(interactions=diary(*reversed(week()), "ann,6,2005-04-01,5"))
    assert history.counts == {
        "recipes_read": 9,
        "recipes": 9,
        "records_read": 6,
        "records": 6,
        "households": 1,
        "plans": 1,
        "rated_plans": 1,
        "records_repeated_in_a_plan": 0,
        "records_of_unfinished_plans": 1,
        "rejected": 0,
    }
    (event,) = history.events
    assert (event["event_type"], event["unit_type"], event["unit_id"]) == ("plan_accepted", "household", "ann")
    assert event["timestamp"] == datetime(2005, 3, 5, tzinfo=UTC)
    assert event["metrics"] == {"rating_mean": 4.0, "rating_count": 5}
    assert event["payload"]["reconstructed"] is True
    assert event["payload"]["meals"] == [{"day": day, "recipe_id": str(day + 1), "servings": 1} for day in range(5)]
    assert event["payload"]["meal_dates"] == [f"2005-03-0{day}" for day in range(1, 6)]
    assert event["payload"]["started_at"] == "2005-03-01T00:00:00+00:00"
    assert "policy_version_id" not in event["context"]
    assert history.recipes.row(0, named=True) == {
        "id": "1",
        "title": "dish 1",
        "ingredients": ["salt", "rice"],
        "prep_minutes": 11,
        "dietary_tags": ["vegan", "easy"],
        "servings": 4,
        "cost": None,
        "submitted": date(2001, 2, 1),
    }
    assert history.households.rows(named=True) == [
        {"id": "ann", "size": 1, "preferences": [], "restrictions": [], "region": None, "created_at": datetime(2005, 3, 1, tzinfo=UTC)}
    ]  # fmt: skip
    assert {name: frame.height for name, frame in history.tables.items()} == {
        "recipes": 9, "households": 1, "household_constraints": 0, "pantry_snapshots": 0,
    }  # fmt: skip
    Catalogue.from_records(history.recipes.to_dicts())


def test_event_ids_stay_the_same_when_a_longer_diary_is_read(read: Any) -> None:
    once = read(interactions=diary(*week("ann"), *week("bob")))
    mixed = read(interactions=diary(*sorted(week("bob") + week("ann"), reverse=True)))
    longer = read(
        interactions=diary(*week("ann"), *week("bob"), *(f"ann,{number},2006-01-0{number},5" for number in range(1, 6)))
    )
    ids = [event["event_id"] for event in once.events]
    assert len(set(ids)) == 2
    assert [event["event_id"] for event in mixed.events] == ids
    assert [event["event_id"] for event in longer.events][:2] == ids
    assert once.events == mixed.events
    assert once.digest != longer.digest
    assert (
        once.digest
        == read(interactions=diary(*week("ann"), *week("bob")), not_after=datetime(2019, 1, 1, tzinfo=UTC)).digest
    )
    assert once.digest != read(interactions=diary(*week("ann"), *week("bob")), plan_size=4).digest


def test_a_recipe_is_skipped_when_the_open_plan_has_it(read: Any) -> None:
    records = [
        "ann,1,2005-03-01,5",
        "ann,1,2005-03-02,5",
        "ann,2,2005-03-03,5",
        "ann,1,2005-03-04,5",
        "ann,3,2005-03-05,5",
    ]
    history = read(interactions=diary(*records), plan_size=2)
    assert [[meal["recipe_id"] for meal in event["payload"]["meals"]] for event in history.events] == [
        ["1", "2"],
        ["1", "3"],
    ]
    assert history.counts["records_repeated_in_a_plan"] == 1


def test_plans_of_one_day_follow_each_other(read: Any) -> None:
    records = [f"ann,{number},2005-03-01,5" for number in range(1, 7)]
    history = read(interactions=diary(*records), plan_size=2)
    rows = build_rows(
        events_frame(history.events), history.tables, RowWindow(datetime(2005, 1, 1, tzinfo=UTC), NOW, 3650)
    ).frame.to_dicts()
    assert [len(row["input"]["recent_plans"]) for row in rows] == [0, 1, 2]
    assert all(event["timestamp"] - datetime(2005, 3, 1, tzinfo=UTC) < timedelta(seconds=1) for event in history.events)


@pytest.mark.parametrize(
    ("ratings", "unrated", "metrics"),
    [
        ("54320", 0.0, {"rating_mean": 3.5, "rating_count": 4}),
        ("54320", None, {"rating_mean": 2.8, "rating_count": 5}),
        ("00000", 0.0, {}),
        ("5    ", 0.0, {"rating_mean": 5.0, "rating_count": 1}),
        ("99991", 9.0, {"rating_mean": 1.0, "rating_count": 1}),
    ],
)
def test_ratings_become_metrics_except_the_one_that_means_unrated(
    read: Any, ratings: str, unrated: float | None, metrics: dict[str, float]
) -> None:
    records = [f"ann,{number + 1},2005-03-0{number + 1},{rating.strip()}" for number, rating in enumerate(ratings)]
    history = read(interactions=diary(*records), unrated=unrated)
    assert history.events[0]["metrics"] == pytest.approx(metrics)


def test_unusable_rows_are_listed_with_their_lines_and_reasons(read: Any, tmp_path: Path) -> None:
    recipes = (
        RECIPES
        + '"10","two\nlines",2000,,,\n11,eleven,-5,,,\n1,again,5,,,\n, no id,5,,,\na b,space,5,,,\n12,x,5,soon,,\n13,x,,,[oops,\n14,few\n'
    )
    records = [
        *week(),
        "ann,10,2005-03-01,5",  # line 7: its recipe was rejected
        "ann,77,2005-03-01,5",
        "ann,1,2005-02-30,5",
        "ann,1,,5",
        "ann,1,2021-01-01,5",
        "ann,1,1930-01-01,5",
        "ann,1,2005-03-01,4",  # a duplicate
        ",1,2005-03-01,5",
        "ann,2,2005-03-09,five",
        "ann,2",
        "ann,2,2005-03-09,5,6",
    ]
    history = read(recipes, diary(*records))
    assert [(reject.file, reject.line, reject.reason) for reject in history.rejects] == [
        ("diary.csv", 7, "refused_recipe"),
        ("diary.csv", 8, "unknown_recipe"),
        ("diary.csv", 9, "bad_date"),
        ("diary.csv", 10, "bad_date"),
        ("diary.csv", 11, "bad_date"),
        ("diary.csv", 12, "bad_date"),
        ("diary.csv", 13, "duplicate"),
        ("diary.csv", 14, "bad_id"),
        ("diary.csv", 15, "bad_rating"),
        ("diary.csv", 16, "malformed"),
        ("diary.csv", 17, "malformed"),
        ("recipes.csv", 11, "absurd_minutes"),
        ("recipes.csv", 13, "bad_minutes"),
        ("recipes.csv", 14, "duplicate_recipe"),
        ("recipes.csv", 15, "bad_id"),
        ("recipes.csv", 16, "bad_id"),
        ("recipes.csv", 17, "bad_date"),
        ("recipes.csv", 18, "bad_tags"),
        ("recipes.csv", 19, "malformed"),
    ]
    assert history.rejects_by_reason()["bad_date"] == 5
    assert history.counts["rejected"] == len(history.rejects) == 19
    assert history.counts["records_read"] == history.counts["records"] + 11
    assert history.counts["recipes_read"] == history.counts["recipes"] + 8
    path = tmp_path / "new" / "rejects.csv"
    write_rejects(history.rejects, path)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "file": "diary.csv",
        "line": "7",
        "reason": "refused_recipe",
        "detail": "the recipe 10 was rejected",
    }
    assert [file.name for file in path.parent.iterdir()] == ["rejects.csv"]


def test_long_recipes_are_accepted_when_max_minutes_is_raised(read: Any) -> None:
    recipes = RECIPES + "10,brisket,2880,,,\n11,unknown,0,,,\n"
    minutes = dict(read(recipes, max_minutes=2880).recipes.select("id", "prep_minutes").rows())
    assert minutes["10"] == 2880
    assert minutes["11"] is None  # 0 minutes means unknown


def test_columns_are_guessed_and_can_be_named(read: Any) -> None:
    recipes = "Recipe_ID;Title;servings;cost;extra\n1;one;2;3.50;x\n2;two;;;x\n"
    records = "who\twhat\tDATE\tStars\nann\t1\t2005-03-01T18:30:00+02:00\t5\nann\t2\t2005-03-02 19:00\t4\n"
    history = read(recipes, records, plan_size=2, mapping={"person": "who", "recipe": "what"})
    assert history.recipes["title"].to_list() == ["one", "two"]
    assert history.recipes["cost"].to_list() == [3.5, None]
    assert history.recipes["servings"].to_list() == [2, 4]
    (event,) = history.events
    assert event["payload"]["started_at"] == "2005-03-01T16:30:00+00:00"
    assert event["timestamp"] == datetime(2005, 3, 2, 19, tzinfo=UTC)
    assert event["metrics"]["rating_mean"] == 4.5


def test_parquet_with_its_own_types_reads_the_same(read: Any, tmp_path: Path) -> None:
    text = read(interactions=diary(*week(rating=0)))
    recipes = pl.DataFrame(
        {
            "id": range(1, 10),
            "name": [f"dish {number}" for number in range(1, 10)],
            "minutes": [10.0 + number for number in range(1, 10)],
            "submitted": [date(2001, 2, number) for number in range(1, 10)],
            "tags": [["vegan", "Easy"]] * 9,
            "ingredients": [["salt", "rice"]] * 9,
        }
    )
    records = pl.DataFrame(
        {
            "user_id": ["ann"] * 5,
            "recipe_id": [1.0, 2.0, 3.0, 4.0, 5.0],
            "date": [datetime(2005, 3, number) for number in range(1, 6)],
            "rating": [0] * 5,
        }
    )
    recipes.write_parquet(tmp_path / "r.parquet")
    records.write_parquet(tmp_path / "d.pq")
    history = read_history(tmp_path / "r.parquet", tmp_path / "d.pq", HistoryOptions(not_after=NOW))
    assert history.recipes.equals(text.recipes)
    assert [event["event_id"] for event in history.events] == [event["event_id"] for event in text.events]


def test_naughty_strings_are_data(read: Any, tmp_path: Path) -> None:
    shared = Path(__file__).resolve().parents[3] / "shared" / "data" / "hostile_input" / "naughty_strings.json"
    naughty = (
        json.loads(shared.read_text()) if shared.exists() else ["<script>", "'; DROP TABLE x", "𝒯", "=1+1", "\u202e"]
    )
    path = tmp_path / "recipes.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name", "tags", "ingredients"])
        for number, text in enumerate(naughty):
            writer.writerow([number, text.replace("\x00", ""), json.dumps([text]), text.replace("\x00", "")])
    history = read(path.read_bytes(), diary(*(f"ann,{number},2005-03-0{number + 1},5" for number in range(5))))
    usable = set(history.recipes["id"].to_list())
    rejected = {reject.line for reject in history.rejects if reject.file == "recipes.csv"}
    assert len(usable) + len(rejected) == len(naughty)
    assert len(usable) > len(naughty) * 0.95
    titles = dict(history.recipes.select("id", "title").rows())
    expected = {str(number): text.replace("\x00", "").strip() for number, text in enumerate(naughty)}
    assert all(titles[recipe] == (expected[recipe] or recipe) for recipe in usable)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (DIARY_HEADER.encode(), "has columns but no rows"),
        (b"user_id,recipe_id,date\nann,1\n", "no record can be used (malformed 1)"),
        (b"user_id,recipe_id,rating\nann,1,5\n", "line 1: no column for date among user_id, recipe_id, rating"),
        (b"just one line of prose", "line 1: 'just one line of prose' is not a CSV header"),
        (b"a,a\n1,2\n", "line 1: the header has a twice"),
        ((DIARY_HEADER + "ann,1,2005-03-01,5\nbob,2,caf\xe9,5\n").encode("latin-1"), "line 3: byte 0xe9 is not UTF-8"),
        (diary(*week()).encode("utf-16"), "is UTF-16"),
        (bytes(range(256)) * 9, "is not UTF-8"),
        ((diary(*week()) + 'ann,"1,2005-03-07,5\nann,2,2005-03-08,5\n').encode(), "line 7: the record that starts here is broken"),
        ((diary(*week()) + 'ann,"1" x,2005-03-07,5\n').encode(), "line 7: the record that starts here is broken"),
        (b"PAR1 and then nothing that is Parquet", "broken or cut-off Parquet file"),
        (diary("ann,1,yesterday,5", "ann,99,2005-01-01,5").encode(), "no record can be used (bad_date 1, unknown_recipe 1)"),
    ],
)  # fmt: skip
def test_broken_files_are_refused_with_one_sentence(read: Any, content: bytes, words: str) -> None:
    with pytest.raises(FileRefusedError) as refused:
        read(interactions=content)
    assert words in str(refused.value)
    assert "diary.csv" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_broken_parquet_files_are_refused(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    pl.DataFrame({"id": [1], "name": ["x"]}).write_parquet(whole)
    cut.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(FileRefusedError, match=r"cut\.parquet is a broken or cut-off Parquet file"):
        read_history(cut, cut)
    text = tmp_path / "text.parquet"
    text.write_text(RECIPES)
    with pytest.raises(FileRefusedError, match="named like a Parquet file"):
        read_history(text, text)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileRefusedError, match=r"nowhere\.csv does not exist"):
        read_history(tmp_path / "nowhere.csv", tmp_path)
    with pytest.raises(FileRefusedError, match="is a folder"):
        read_history(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mapping": {"person": "absent"}}, "no column absent"),
        ({"mapping": {"person": ""}}, "no column"),
        ({"mapping": {"colour": "x"}}, "Unknown field 'colour'"),
        ({"plan_size": 8}, "1 to 7 meals"),
        ({"plan_size": 0}, "1 to 7 meals"),
        ({"household_size": 0}, "at least one person"),
    ],
)
def test_impossible_options_are_refused(read: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(FileRefusedError, match=words):
        read(**options)


def test_byte_order_mark_and_windows_line_endings_are_accepted(read: Any) -> None:
    content = b"\xef\xbb\xbf" + diary(*week()).replace("\n", "\r\n").encode()
    assert read(interactions=content).counts["plans"] == 1


def test_compressed_diary_and_lines_ending_with_cr_are_accepted(read: Any) -> None:
    assert read(interactions=gzip.compress(diary(*week()).encode())).counts["plans"] == 1
    assert read(interactions=diary(*week()).replace("\n", "\r")).counts["plans"] == 1


def test_json_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipes.jsonl"
    path.write_text('{"id": 1, "name": "one"}\n')
    with pytest.raises(FileRefusedError, match=r"recipes\.jsonl has JSON lines"):
        read_history(path, path)


def test_the_digest_of_a_history_never_changes(read: Any) -> None:
    """`exp.imports` keeps it: another digest would import everything again."""
    assert read().digest == "e6d734dd6fee321b12b02761fbcd006cfe4a061d9b06c1ddb77a3c27a8eb1161"
