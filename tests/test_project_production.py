"""The server example: its dagster.yaml starts against a real PostgreSQL, and the container files
fit together."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

from assets.generating import corpus_records
from pipelines.lake.paths import PROJECT
from tests.project import TinyProject

DOCKER = PROJECT / "docker"
PASSWORD = "planted-password-0123456789"
BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin")) if Path("/usr/lib/postgresql").exists() else []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def postgres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A PostgreSQL on a free loopback port, under its own user where we are root, since it refuses
    to run as root."""
    if not BINARIES:
        pytest.skip("no PostgreSQL here: `apt-get install postgresql`")
    user = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    if user and "postgres" not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("no user postgres to run it as")
    folder = Path("/tmp") / f"featherweight-postgres-{os.getpid()}"
    folder.mkdir()
    secret = folder / "password"
    secret.write_text(PASSWORD, encoding="ascii")
    if user:
        for path in (folder, secret):
            shutil.chown(path, "postgres", "postgres")
    port, data = free_port(), folder / "data"

    def run(*command: str) -> None:
        subprocess.run(
            [str(BINARIES[-1] / command[0]), *command[1:]], check=True, capture_output=True, cwd="/tmp", **user
        )

    try:
        run("initdb", "-D", str(data), "-U", "featherweight", "--auth=scram-sha-256", f"--pwfile={secret}")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        known = {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "DB": "postgres",
            "USER": "featherweight",
            "PASSWORD": PASSWORD,
        }
        for name, value in known.items():
            monkeypatch.setenv(f"FEATHERWEIGHT_PG_{name}", value)
        yield
        run("pg_ctl", "-D", str(data), "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_example_keeps_runs_and_events_in_postgresql_and_its_daemon_starts(
    project: TinyProject, postgres: None, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(DOCKER / "dagster.yaml", home / "dagster.yaml")
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert "Postgres" in type(instance.run_storage).__name__ or "postgres" in str(instance.get_ref()).lower()
        done = dg.materialize([corpus_records], instance=instance)
        assert done.success
        assert instance.get_run_by_id(done.run_id) is not None
        assert instance.get_concurrency_config().pool_config.default_pool_limit == 1
        assert PASSWORD not in str(instance.all_logs(done.run_id))
    command = [str(Path(sys.executable).parent / "dagster-daemon"), "run", "-m", "assets.definitions"]
    environment = {**os.environ, "DAGSTER_HOME": str(home)}
    log = tmp_path / "daemon.log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            command, cwd=PROJECT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 600
        with dg.DagsterInstance.from_config(str(home)) as instance:
            while "SENSOR" not in instance.get_daemon_heartbeats():
                assert daemon.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.5)
    finally:
        os.killpg(daemon.pid, 9)
        daemon.wait()
    assert PASSWORD not in log.read_text()


def _image(folder: Path) -> Path:
    """The image's working folder, as made by the Dockerfile's COPY lines."""
    image = folder / "image"
    for line in (DOCKER / "Dockerfile").read_text(encoding="utf-8").splitlines():
        if not line.startswith("COPY "):
            continue
        *sources, target = line.split()[1:]
        for origin in (PROJECT / source for source in sources):
            to = image / target.lstrip("/")
            if origin.is_dir():
                shutil.copytree(origin, to)
            else:
                to = to / origin.name if target.endswith("/") else to
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(origin, to)
    return image


def test_the_files_for_containers_fit_together(tmp_path: Path) -> None:
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
    services = compose["services"]
    assert set(services) == {"database", "code", "webserver", "daemon"}
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published and all(port.startswith("127.0.0.1:") for port in published)
    instance = yaml.safe_load((DOCKER / "dagster.yaml").read_text(encoding="utf-8"))
    variables = {
        entry["env"] for entry in instance["storage"]["postgres"]["postgres_db"].values() if isinstance(entry, dict)
    }
    assert variables <= set(services["daemon"]["environment"]) and variables <= set(
        services["webserver"]["environment"]
    )
    (location,) = yaml.safe_load((DOCKER / "workspace.yaml").read_text(encoding="utf-8"))["load_from"]
    command = services["code"]["command"]
    assert location["grpc_server"]["host"] in services and str(location["grpc_server"]["port"]) in command
    image = _image(tmp_path)
    shipped = {path.name for path in (PROJECT / "data").glob("*.*") if path.suffix in (".json", ".yaml")}
    assert {path.name for path in (image / "data").iterdir()} == shipped | {"benchmarks"}, (
        "what the stages read of the project's own"
    )
    build = "import setuptools.build_meta as b, sys; b.prepare_metadata_for_build_editable(sys.argv[1])"
    command = [sys.executable, "-c", build, str(tmp_path)]
    done = subprocess.run(command, cwd=image, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    plain = yaml.safe_load((PROJECT / "dagster.yaml").read_text(encoding="utf-8"))
    for section in ("telemetry", "nux", "concurrency", "freshness", "retention"):
        assert instance[section] == plain[section], "the same limits on a server as on one machine"
