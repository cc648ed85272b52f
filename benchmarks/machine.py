"""What the benchmarks share: the lines about the machine above their tables, and the environment of subprocesses."""

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def processor() -> str:
    """The name of the CPU, and the number of its cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.processor()])[0]}, {os.cpu_count()} cores"


def versions(*packages: str) -> str:
    """The versions of Python and of the packages, and the date."""
    found = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"Python {platform.python_version()}, {found}; {datetime.date.today()}"


def absolute(name: str) -> str:
    """A path made absolute, for a subprocess with another working directory; other names, as those of the hub, stay."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def revision() -> str:
    """The revision of this checkout, with "-dirty" if files differ from it."""
    command = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"]
    return f"revision {subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()}"


def environment(threads: int) -> dict[str, str]:
    """The environment variables of a subprocess that uses this checkout of the package, and this many threads."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [os.getenv("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}
