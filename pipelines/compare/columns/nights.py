"""The table of nights: when each ran, what it cost, how it ended."""

from pipelines.lake.schema import Table, count, group, moment, real, text

NIGHTS = Table(
    "nights",
    "One row for each night that the schedule began, from its file in data/lake/nights.",
    (
        *group("night", "night",
            text("night", "Name of the night: local date and time for which it was planned."),
            moment("started_at", "Time at which the night began.", heading="started"),
            moment("ended_at", "Time at which the night ended; as it publishes, time at which its last cell was done.",
                   heading="ended"),
            real("minutes", "Time from the night's start to its end.", "min", 1, better="lower"),
            real("spent_usd", "Dollars charged for calls of providers and, at the profile's price_per_hour, for cells.", "USD", 4,
                 better="lower", heading="dollars"),
            count("cells", "Number of cells that the night requested."),
            count("cells_ok", "Number of those cells whose seeds were all ok at its end.", better="higher"),
            count("cells_not_ok", "Number of those cells that were not.", better="lower"),
            text("outcome",
                 "How it ended: ok, not ok (some cell was not), failed (no data), under way, abandoned or unreadable (its file)."),
            text("reason", "Why the night ended when it did, and what is left for the next one."),
            text("run_ids", "Ids of the night's runs in Dagster, as a JSON list; NULL where they were not noted."),
        ),
    ),
)  # fmt: skip
