"""The names of the tags that our runs bear."""

NIGHTLY = "featherweight/nightly"  # on every run of a night: "yes"
NIGHT = "featherweight/night"  # which night, under whose budget and hours the run works
CELL = "featherweight/cell"  # of a cell's run: the name of its `Due`
SEEN = "featherweight/seen"  # of a cell's run: JSON, each seed's newest attempt when the night asked for it
LAKE_VERSION = "featherweight/lake"  # of a publication that the sensor asked for: of which version of the lake
PARENT = "dagster/parent_run_id"  # Dagster's own, on a run that was executed again
BACKFILL = "dagster/backfill"  # Dagster's own, on every run of a backfill: which
