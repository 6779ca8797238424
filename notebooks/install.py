"""Set up the project with an already installed torch, as on Colab: `python notebooks/install.py
ENVIRONMENT`.

The new environment gets the packages of requirements.lock. If this interpreter has a torch that
pyproject.toml accepts, the script links it and its CUDA libraries instead of installing the lock's.
That torch fits the machine's driver, and a second one would take gigabytes. The environment sees no
other package of this interpreter and changes none. The script runs before any installation, so it
uses only the standard library.
"""

import operator
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
TORCH_AND_ITS_LIBRARIES = re.compile(r"torch|triton|nvidia-(?!ml-py).*|cuda-.*")
RELEASE = re.compile(r"\d+(\.\d+)*")
BOUND = re.compile(r"(==|!=|>=|<=|>|<)\s*([\d.]+)")
COMPARE = {
    "==": operator.eq, "!=": operator.ne, ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
CHECK = "import torch; print(f'torch {torch.__version__}, CUDA device: {torch.cuda.is_available()}')"
# Written to a complete environment: the lock that it was made from.
DONE = "installed.txt"


def release(version: str) -> tuple[int, ...] | None:
    """The numbers of a version such as `2.13.0+cu130`, at least three; None for a pre-release."""
    public = version.partition("+")[0]
    if not RELEASE.fullmatch(public):
        return None
    numbers = [int(part) for part in public.split(".")]
    return tuple(numbers + [0] * (3 - len(numbers)))


def accepts(requirement: str, version: str) -> bool:
    """Whether `version` satisfies `requirement`, such as `torch>=2.12,<=2.13.0`.

    The local part of a version (`+cu130`) is ignored.
    """
    numbers = release(version)
    return numbers is not None and all(
        COMPARE[sign](numbers, release(bound)) for sign, bound in BOUND.findall(requirement)
    )


def requirement() -> str:
    """The requirement of pyproject.toml on torch."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return next(one for one in project["dependencies"] if re.match(r"torch\b(?!-)", one))


def torch_here(requirement: str) -> list[metadata.Distribution]:
    """This interpreter's torch and its installed libraries.

    Empty if `requirement` accepts no torch here, or if the files of a distribution are unknown.
    """
    try:
        torch = metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        print("this interpreter has no torch: installing that of the lock")
        return []
    if not accepts(requirement, torch.version):
        print(f"torch {torch.version} is here, but the project needs {requirement}: installing that of the lock")
        return []
    distributions, waiting = {"torch": torch}, [torch]
    while waiting:
        for requirement_text in waiting.pop().requires or ():
            name = normalized(re.split(r"[^\w.-]", requirement_text, maxsplit=1)[0])
            if name in distributions or not TORCH_AND_ITS_LIBRARIES.fullmatch(name):
                continue
            with suppress(metadata.PackageNotFoundError):
                distributions[name] = metadata.distribution(name)
                waiting.append(distributions[name])
    if not all(one.files for one in distributions.values()):
        print(f"torch {torch.version} is here, but its list of files is missing: installing that of the lock")
        return []
    print(f"torch {torch.version} is here and is used, with {len(distributions) - 1} libraries")
    return list(distributions.values())


def normalized(name: str) -> str:
    """A package name normalized by PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def link(distributions: Sequence[metadata.Distribution], site: Path) -> None:
    """Link the top-level files and folders of the distributions into the folder `site`."""
    for one in distributions:
        tops = {file.parts[0] for file in one.files or ()} - {"..", "/", "__pycache__"}
        for top in sorted(tops):
            # Several distributions share the folder `nvidia`.
            if not (site / top).is_symlink():
                (site / top).symlink_to(Path(str(one.locate_file(top))).resolve())


def locked(*, with_torch: bool) -> list[str]:
    """The lock's requirements, without torch and its libraries unless `with_torch`."""
    lines = (PROJECT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    names = {line: normalized(line.partition("==")[0]) for line in lines if line.strip()}
    return [line for line, name in names.items() if with_torch or not TORCH_AND_ITS_LIBRARIES.fullmatch(name)]


def make(environment: Path) -> Path:
    """Create an environment without packages, and return its package folder."""
    # The environment has no pip, since Debian's Python on Colab cannot add it. This interpreter's
    # pip installs into it.
    venv.create(environment, clear=True, symlinks=True)
    at = {name: str(environment) for name in ("base", "platbase", "installed_base", "installed_platbase")}
    site = Path(sysconfig.get_path("purelib", "venv", at))
    site.mkdir(parents=True, exist_ok=True)
    return site


def install(environment: Path) -> None:
    """Create the environment and install the packages.

    Raises:
        subprocess.CalledProcessError: pip failed and printed the reason.
    """
    torch = torch_here(requirement())
    link(torch, make(environment))
    requirements = environment / "requirements.txt"
    # The project fetches packaged weights with pip.
    requirements.write_text("\n".join([*locked(with_torch=not torch), "pip"]) + "\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python_of(environment))]
    subprocess.run([*pip, "install", "--quiet", "--requirement", str(requirements)], check=True)
    project = ["--no-deps", "--no-build-isolation", "--editable", str(PROJECT)]
    subprocess.run([*pip, "install", "--quiet", *project], check=True)
    (environment / DONE).write_text(lock(), encoding="utf-8")


def python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


def lock() -> str:
    """The inputs of an environment; an environment with equal inputs is not rebuilt."""
    return "\n".join((PROJECT / name).read_text(encoding="utf-8") for name in ("requirements.lock", "pyproject.toml"))


def is_complete(environment: Path) -> bool:
    done = environment / DONE
    return done.exists() and done.read_text(encoding="utf-8") == lock()


def main(arguments: Sequence[str]) -> int:
    if len(arguments) != 1:
        print("usage: python notebooks/install.py ENVIRONMENT", file=sys.stderr)
        return 2
    environment = Path(arguments[0]).absolute()
    if environment.exists() and not (environment / "pyvenv.cfg").exists():
        print(f"{environment}: expected a new folder or an environment to rebuild; it is neither", file=sys.stderr)
        return 2
    try:
        if is_complete(environment):
            print(f"{environment} is complete")
        else:
            install(environment)
        subprocess.run([str(python_of(environment)), "-c", CHECK], check=True)
    except subprocess.CalledProcessError as error:
        print(f"install.py: exit code {error.returncode} of {' '.join(error.cmd)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
