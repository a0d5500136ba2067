"""A second product, to prove that the platform's protocol asks for nothing more than it says: playlists of songs.

It shares no code with the meal planner.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import polars as pl

from product.protocol import Plan, Row, RowInput, RowWindow, Violation


class Playlists:
    """Songs by id with their artist and whether they are clean; a listener may allow clean songs only."""

    name = "playlist"

    def __init__(self, songs: Mapping[str, Mapping[str, Any]]) -> None:
        self.songs = {song: dict(songs[song]) for song in sorted(songs)}

    def rows(self, events: pl.DataFrame, domain: Mapping[str, pl.DataFrame], window: RowWindow) -> pl.DataFrame:
        """One row per accepted playlist of the window; the listeners' rules come from the domain table `listeners`."""
        listeners = {row["id"]: row for row in domain["listeners"].to_dicts()}
        rows = []
        accepted = events.filter(
            pl.col("event_type") == "plan_accepted",
            pl.col("timestamp").is_between(window.start, window.end, closed="left"),
        )
        for event in accepted.sort("timestamp", "event_id").to_dicts():
            listener = listeners[event["unit_id"]]
            rows.append(
                {
                    "input": {
                        "listener": listener["id"],
                        "clean_only": listener["clean_only"],
                        "length": listener["length"],
                    },
                    "target": {"accepted_plan": {"meals": json.loads(event["payload"])["meals"]}},
                    "metadata": {
                        "timestamp": event["timestamp"],
                        "event_id": event["event_id"],
                        "policy_version_id": None,
                    },
                }
            )
        return pl.DataFrame(rows)

    def prompt(self, row_input: RowInput) -> str:
        """A few words."""
        return f"listener clean:{row_input['clean_only']} songs"

    def items(self) -> Sequence[str]:
        """Every song."""
        return tuple(self.songs)

    def item_text(self, item: str) -> str:
        """`song:` and the id."""
        return f"song:{item}"

    def slots(self, row_input: RowInput) -> int:
        """As many songs as the listener wants: another number for each row."""
        return int(row_input["length"])

    def legal_items(self, row_input: RowInput, chosen: Sequence[str]) -> list[str]:
        """Songs not chosen before, and no two of one artist in a row."""
        last = self.songs[chosen[-1]]["artist"] if chosen else None
        return [
            song
            for song, facts in self.songs.items()
            if song not in chosen and facts["artist"] != last and (facts["clean"] or not row_input["clean_only"])
        ]

    def plan(self, row_input: RowInput, chosen: Sequence[str]) -> Plan:
        """The songs in order."""
        return {"meals": [{"day": place, "recipe_id": song, "servings": 1} for place, song in enumerate(chosen)]}

    def chosen(self, plan: Plan) -> list[str]:
        """Inverse of `plan`."""
        return [entry["recipe_id"] for entry in plan["meals"]]

    def scores(self, row: Row, plan: Plan) -> dict[str, float | None]:
        """Share of the accepted songs that the plan has; clean or not where it matters."""
        wanted = set(self.chosen(row["target"]["accepted_plan"]))
        clean = all(self.songs[song]["clean"] for song in self.chosen(plan))
        return {
            "plan_alignment_score": len(wanted & set(self.chosen(plan))) / len(wanted),
            "constraint_respect_score": float(clean) if row["input"]["clean_only"] else None,
        }

    def violations(self, row_input: RowInput, plan: Plan) -> list[Violation]:
        """Songs that are not clean, or stand beside one of the same artist."""
        songs = self.chosen(plan)
        found = [
            Violation("clean_only", song, f"{song} is not clean.")
            for song in songs
            if row_input["clean_only"] and not self.songs[song]["clean"]
        ]
        neighbours = pairwise(songs)
        return found + [
            Violation("same_artist", second, f"{second} follows a song of its artist.")
            for first, second in neighbours
            if self.songs[first]["artist"] == self.songs[second]["artist"]
        ]

    def reference(self) -> dict[str, Any]:
        """The songs."""
        return {"songs": self.songs}

    @classmethod
    def from_reference(cls, reference: dict[str, Any]) -> "Playlists":
        """Inverse of `reference`."""
        return cls(reference["songs"])


def sample_playlists() -> Playlists:
    """Eight songs of four artists."""
    songs = {f"s{number}": {"artist": "abcd"[number % 4], "clean": number % 3 > 0} for number in range(8)}
    return Playlists(songs)
