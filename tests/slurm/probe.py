"""Who gets which signal: a process that writes down every signal it gets and lives on, and a child of it that does too.

python probe.py FILE [child]: lines "ROLE WORD", appended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

NUMBERS = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)


def main(path: str, role: str = "task") -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def note(word: str) -> None:
        os.write(file, f"{role} {word}\n".encode())

    for number in NUMBERS:
        signal.signal(number, lambda got, _frame: note(signal.Signals(got).name.removeprefix("SIG")))
    if role == "task":  # as torchrun starts workers: each in a session of its own
        subprocess.Popen([sys.executable, "-S", __file__, path, "grandchild"], start_new_session=True)
    note("ready")
    time.sleep(600)


if __name__ == "__main__":
    main(*sys.argv[1:])
