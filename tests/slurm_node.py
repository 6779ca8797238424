"""A real Slurm cluster of one node for tests.

Every daemon is a child of this process and listens only on 127.0.0.1.

    with slurm_node(folder) as node: ...  # commands find it by SLURM_CONF, node.conf

It needs no systemd, no cgroups and no root; jobs run as the user who starts it. Without slurmdbd,
`sacct` is disabled.
"""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
PACKAGES = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge"
PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
START_SECONDS = 600


@dataclass(frozen=True)
class SlurmNode:
    """A running node; `folder` has its logs and the files slurmctld.pid and slurmd.pid."""

    folder: Path
    conf: Path

    def kill(self, daemon: str) -> None:
        os.kill(int((self.folder / f"{daemon}.pid").read_text()), signal.SIGKILL)


def missing() -> str:
    """The missing programs, in words; empty where everything is installed."""
    names = [name for name in DAEMONS if shutil.which(name, path=PATH) is None]
    return f"{', '.join(names)} not installed: apt-get install --no-install-recommends {PACKAGES}" if names else ""


@contextmanager
def slurm_node(folder: Path, *, memory_mb: int = 4000) -> Iterator[SlurmNode]:
    """Run the node while the block runs."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    host, conf = socket.gethostname().split(".")[0], folder / "slurm.conf"
    # Newer versions look for cgroups even when nothing uses them.
    if version() >= (23, 2):
        (folder / "cgroup.conf").write_text("CgroupPlugin=disabled\n", encoding="utf-8")
    env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(conf)}
    with ExitStack() as stack:
        # A socket's name holds at most 107 characters; munged wants a folder that all may enter
        # and nobody else may write.
        short = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp")))
        short.chmod(0o711)
        (short / "spool").symlink_to(folder / "spool")
        munge, controller, node = short / "munge", *free_ports(2)
        lines = settings(folder, short, host, controller, node)
        nodes = f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={memory_mb}"
        partition = f"PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP"
        conf.write_text("\n".join([*(f"{key}={value}" for key, value in lines.items()), nodes, partition, ""]))
        start = Starter(folder, env, stack)
        (short / "key").write_bytes(os.urandom(128))
        (short / "key").chmod(0o600)
        files = [f"--{name}-file={short / name}" for name in ("key", "pid", "seed", "log")]
        start("munged", "--foreground", f"--socket={munge}", "--num-threads=2", *files, ready=munge.exists)
        stack.callback(kill_strays, folder, conf)
        start("slurmctld", "-D", ready=lambda: listens(controller))
        start("slurmd", "-D", ready=lambda: output(env, "sinfo", "--noheader", "--format=%T") == "idle")
        yield SlurmNode(folder, conf)


def settings(folder: Path, short: Path, host: str, controller: int, node: int) -> dict[str, str]:
    """slurm.conf without its nodes and partitions."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    return {
        "ClusterName": "test", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmctldPort": str(controller), "SlurmdPort": str(node),
        "CommunicationParameters": "NoCtldInAddrAny,NoInAddrAny", "SlurmUser": user, "SlurmdUser": user,
        "AuthType": "auth/munge", "AuthInfo": f"socket={short / 'munge'}", "MailProg": "/bin/true",
        "StateSaveLocation": str(folder / "state"), "SlurmdSpoolDir": str(short / "spool"),
        "SlurmctldPidFile": str(folder / "slurmctld.pid"), "SlurmdPidFile": str(folder / "slurmd.pid"),
        "ProctrackType": "proctrack/linuxproc", "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_CPU_Memory",
        # Without cgroups, only this enforces --mem.
        "JobAcctGatherType": "jobacct_gather/linux", "JobAcctGatherFrequency": "1", "JobAcctGatherParams": "OverMemoryKill",
        "SchedulerParameters": "sched_min_interval=0,batch_sched_delay=0,sched_interval=2,bf_interval=5",
        "ReturnToService": "2", "SlurmctldTimeout": "10", "SlurmdTimeout": "15",
    }  # fmt: skip


class Starter:
    """Starts daemons that end with the stack, or with this process however it dies."""

    def __init__(self, folder: Path, env: dict[str, str], stack: ExitStack) -> None:
        self.folder, self.env, self.stack = folder, env, stack

    def __call__(self, *command: str, ready: Callable[[], bool]) -> None:
        log = self.folder / f"{command[0]}.log"
        with log.open("w", encoding="utf-8") as out:
            child = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *command], cwd=self.folder, env=self.env,
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self.stack.callback(stop, child)
        deadline = time.monotonic() + START_SECONDS
        while not ready():
            if child.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not get ready; {log}:\n{log.read_text(encoding='utf-8')[-2000:]}")
            time.sleep(0.05)


def version() -> tuple[int, ...]:
    # For example "slurm-wlm 22.05.8".
    text = output({"PATH": PATH}, "slurmctld", "-V")
    return tuple(int(part) for part in text.split()[-1].split(".")[:2])


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def output(env: Mapping[str, str], *command: str) -> str:
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False).stdout.strip()


def stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        # After this grace period the process is killed; no test fails because of it.
        child.wait(10)
    child.kill()
    child.wait()


def kill_strays(folder: Path, conf: Path) -> None:
    """Kill jobs that outlive slurmd: processes with our SLURM_CONF and a job's id, and slurmstepd
    in our folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (process / "environ").read_text(errors="replace").split("\0")
            of_job = f"SLURM_CONF={conf}" in variables and any(one.startswith("SLURM_JOB_ID=") for one in variables)
            step = (process / "comm").read_text().startswith("slurmstepd") and (process / "cwd").readlink() == folder
            if of_job or step:
                os.kill(int(process.name), signal.SIGKILL)
