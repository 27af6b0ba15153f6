"""A whole run with the network cut off, watched: `without_network.py WORK [--record]`.

Exports the bundled CMT-Ti, verifies and measures the bundle and compares its report, each in a
network namespace without interfaces (unshare) under strace. A run fails if a command does, or
if any process of it so much as makes a socket to the internet.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
FAMILIES = re.compile(r"AF_INET|AF_PACKET|AF_NETLINK")
CALLS = "socket,connect,sendto,sendmsg,sendmmsg,bind"


def commands(work: Path) -> list[list[str]]:
    """What a user would run, short."""
    bundle = shlex.quote(str(work / "bundle"))
    files = "--target openvino --target onnxruntime --int8"
    short = "--max-drop 100 --val-count 64 --calib-count 64 --no-tune --bench-seconds 0.2 --force"
    lines = (
        f"cmt-export --variant ti {files} {short} --out {bundle}",
        f"cmt-bench {bundle} --verify",
        f"cmt-bench {bundle} --seconds 0.2 --machine here",
        f"cmt-report {bundle}",
    )
    return [shlex.split(line) for line in lines]


def attempts(trace: Path) -> list[str]:
    """The lines of a trace in which a process turns to a network."""
    lines = trace.read_text(errors="replace").splitlines()
    return [line for line in lines if FAMILIES.search(line)]


def run(command: list[str], trace: Path) -> int:
    """The exit status of a command without network; its calls are in `trace`."""
    isolated = ["unshare", "--map-root-user", "--net"]
    watched = ["strace", "--follow-forks", "--quiet=all", f"--trace={CALLS}", f"--output={trace}"]
    program = [str(BIN / command[0]), *command[1:]]
    return subprocess.run([*isolated, *watched, *program], check=False).returncode


def trap_works(work: Path) -> bool:
    """Whether a connection would be seen, and would fail."""
    code = "import socket; socket.create_connection(('1.1.1.1', 80), 1)"
    status = run(["python", "-c", code], work / "trap.txt")
    return status != 0 and bool(attempts(work / "trap.txt"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path, help="folder for the bundle and the traces")
    parser.add_argument("--record", action="store_true", help="write the documentation's figures")
    options = parser.parse_args()
    for tool in ("unshare", "strace"):
        if shutil.which(tool) is None:
            sys.exit(f"needs {tool}")
    options.work.mkdir(parents=True, exist_ok=True)
    if not trap_works(options.work):
        sys.exit("a connection was not seen: this machine cannot run the test")
    failed, seen = 0, 0
    todo = commands(options.work)
    for i, command in enumerate(todo):
        trace = options.work / f"{i}.txt"
        status, found = run(command, trace), attempts(trace)
        print(f"{command[0]}: exit status {status}, {len(found)} calls to a network", flush=True)
        print("\n".join(found[:5]))
        failed += status != 0
        seen += bool(found)
    if options.record:
        sys.path.insert(0, str(ROOT / "docs"))
        from robustness import add_row

        row = {
            "suite": "network cut off",
            "what": "commands in a namespace without interfaces, traced for sockets",
            "inputs": len(todo),
            "crashes": failed,
            "hangs": 0,
            "wrong_successes": seen,
            "date": datetime.date.today().isoformat(),
            "command": "python tests/without_network.py work",
        }
        add_row("network", row)
    return int(failed + seen > 0)


if __name__ == "__main__":
    sys.exit(main())
