"""The process of an actor: `python -m ray.actor MODULE CLASS FD`. Dies with its owner, as Ray sees to."""

from __future__ import annotations

import importlib
import json
import os
import sys

from launchyard.host.processes import die_with_parent


def main() -> None:
    die_with_parent()
    module, name, answers = sys.argv[1], sys.argv[2], os.fdopen(int(sys.argv[3]), "w")
    actor = getattr(importlib.import_module(module), name)()
    for line in sys.stdin:
        method, words = json.loads(line)
        if method == "run":
            words[0] = [os.environ["STANDIN_AGENT"] if word == AGENT else word for word in words[0]]
        print(json.dumps(getattr(actor, method)(*words)), file=answers, flush=True)


AGENT = "launchyard.launcher.backends.ray.agent"

if __name__ == "__main__":
    main()
