"""Reload the code location of `make ui` after changes of experiments.yaml or the lake.

Dagster reads its partitions only when the code location loads. The reload waits until the device is
free, since loading computes for some seconds.
"""

import json
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field

from assets.shown import experiments_now, grid, shown_names, shown_profiles
from pipelines.errors import UsageError
from pipelines.lake.files import stable_hash
from pipelines.lake.paths import data_root, experiments_file
from pipelines.runs import devices
from pipelines.settings.experiments import Experiments

# Seconds between two checks.
SECONDS = 5.0
TIMEOUT = 300
RELOAD = "mutation Reload($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename } }"


@dataclass
class Reloading:
    """Compares the loaded state of the code location with the current one, and makes the webserver
    at `address` reload it."""

    address: str
    location: str
    loaded: str = ""
    last_look: float = 0.0
    last_error: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        self.loaded = _state(grid())

    def look(self) -> None:
        """Check for changes, at most every SECONDS; reports a reload, and an error once."""
        if time.monotonic() < self.last_look + SECONDS:
            return
        self.last_look = time.monotonic()
        try:
            experiments = experiments_now()
            state = _state(experiments)
        except (UsageError, OSError) as error:
            # The file is being written or has a mistake.
            if self.last_error != str(error):
                print(f"featherweight: the UI keeps its loaded configuration: {error}", file=sys.stderr)
            self.last_error = str(error)
            return
        self.last_error = ""
        if state != self.loaded and not _device_is_used(experiments):
            self._reload(state)

    def _reload(self, state: str) -> None:
        body = json.dumps({"query": RELOAD, "variables": {"name": self.location}}).encode()
        request = urllib.request.Request(f"{self.address}/graphql", body, {"Content-Type": "application/json"})
        # If the webserver is not up yet or busy, the next check tries again.
        with suppress(OSError):
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                response.read()
            self.loaded = state
            print("featherweight: experiments.yaml or the lake has changed: the UI has reloaded", file=sys.stderr)


def _state(experiments: Experiments) -> str:
    """A hash of everything that the definitions depend on."""
    names = shown_names(experiments, data_root(), shown_profiles(experiments))
    return stable_hash([experiments_file().read_text(encoding="utf-8"), names])


def _device_is_used(experiments: Experiments) -> bool:
    own = shown_profiles(experiments)[0]
    return devices.holder(devices.watched_locks(own.devices)) is not None
