"""The tags of our runs."""

# "yes" on every run of a night.
NIGHTLY = "featherweight/nightly"
# The name of the night whose budget and hours apply to the run.
NIGHT = "featherweight/night"
# On a cell's run of a night: the name of its `Due`.
CELL = "featherweight/cell"
# On a cell's run of a night: JSON with each seed's newest attempt when the night requested the run.
SEEN = "featherweight/seen"
# On a publication that the sensor requested: the version of the lake.
LAKE_VERSION = "featherweight/lake"
# Dagster's own tag on a re-executed run.
PARENT = "dagster/parent_run_id"
# Dagster's own tag on every run of a backfill: its id.
BACKFILL = "dagster/backfill"
