"""Ray's job server through its REST API (docs.ray.io, "Ray Jobs REST API"), with a time-out for
every call.

The driver does not need Ray for it. `RAY_AUTH_TOKEN` in the environment becomes a bearer token,
like in Ray's own client.
"""

import os
import time
from dataclasses import dataclass
from typing import Any

import httpx2

from pipelines.errors import UnavailableError

# A job server that takes longer to answer counts as absent.
ANSWER_SECONDS = 5.0
# The first job of a cluster waits for the start of its agent.
SUBMIT_SECONDS = 60.0
AGAIN = "please try again later"
Json = dict[str, Any]


class UnreachableError(UnavailableError):
    """Nothing answers at the address, or not a Ray job server."""


class RefusedError(UnavailableError):
    """The job server refuses the request."""


@dataclass(frozen=True)
class Job:
    """A job as the server reports it. `status`: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""

    status: str
    message: str
    error_type: str | None
    node: str | None
    exit_code: int | None

    @property
    def over(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")

    @property
    def node_died(self) -> bool:
        return self.error_type == "JOB_SUPERVISOR_ACTOR_DIED"


class JobServer:
    """The server at `address`, such as http://head:8265."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        token = os.environ.get("RAY_AUTH_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._client = httpx2.Client(base_url=self.address, headers=headers, timeout=ANSWER_SECONDS)
        except (httpx2.InvalidURL, UnicodeError) as error:
            raise UnreachableError(f"{self.address} is no address ({error}); {self._advice}") from None

    def version(self) -> str:
        """The version of Ray on the server.

        Raises:
            UnreachableError: after at most ANSWER_SECONDS.
        """
        response = self._ask("GET", "/api/version", allowed=(404,))
        try:
            return str(response.json()["ray_version"])
        except (ValueError, KeyError, TypeError):
            raise UnreachableError(f"{self.address} answers, but is no Ray job server; {self._advice}") from None

    def job(self, name: str) -> Job | None:
        """The job with that submission id, or None."""
        answer = self._ask("GET", f"/api/jobs/{name}", allowed=(404,))
        if answer.status_code == 404:
            return None
        record = answer.json()
        return Job(
            record["status"],
            record.get("message") or "",
            record.get("error_type"),
            record.get("driver_node_id"),
            record.get("driver_exit_code"),
        )

    def submit(self, name: str, entrypoint: str, resources: Json, package: str) -> None:
        """Start `entrypoint` in the package, on a node with num_cpus, num_gpus and memory."""
        body = {
            "submission_id": name,
            "entrypoint": entrypoint,
            "runtime_env": {"working_dir": package},
            **{f"entrypoint_{resource}": amount for resource, amount in resources.items() if amount is not None},
        }
        deadline = time.monotonic() + SUBMIT_SECONDS
        while True:
            try:
                self._ask("POST", "/api/jobs/", json=body, timeout=SUBMIT_SECONDS)
                return
            # A newly started cluster has no agent yet.
            except RefusedError as error:
                if AGAIN not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(1)

    def stop(self, name: str) -> None:
        """Request the job's end. A job that waits for resources ends at the moment of its start."""
        self._ask("POST", f"/api/jobs/{name}/stop", allowed=(404,))

    def keep_package(self, name: str, content: bytes) -> str:
        """Upload a zip under this name, unless the cluster has it; returns the URI for `submit`."""
        path = f"/api/packages/gcs/{name}"
        if self._ask("GET", path, allowed=(404,)).status_code == 404:
            self._ask("PUT", path, content=content, timeout=SUBMIT_SECONDS)
        return f"gcs://{name}"

    def nodes(self) -> list[Json]:
        """The resources of each living node: CPU, GPU, memory (bytes), ..."""
        answer = self._ask("GET", "/api/v0/nodes?detail=1").json()
        nodes = answer["data"]["result"]["result"]
        return [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]

    def _ask(self, method: str, path: str, *, allowed: tuple[int, ...] = (), **options: Any) -> httpx2.Response:
        try:
            answer = self._client.request(method, path, **options)
        except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
            why = str(error) or type(error).__name__
            raise UnreachableError(f"no Ray job server answers at {self.address} ({why}); {self._advice}") from None
        if answer.is_error and answer.status_code not in allowed:
            last = (answer.text.strip().splitlines() or ["no reason given"])[-1]
            raise RefusedError(f"Ray's job server at {self.address} answers {answer.status_code}: {last[:300]}")
        return answer

    @property
    def _advice(self) -> str:
        return "start one (`ray start --head`), or set ray.address of the profile in experiments.yaml"
