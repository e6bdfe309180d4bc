"""Serves a model with the server named in parameter ``server``: ``python -m runner.programs.serve.replica RUN_FOLDER``.

``llama.cpp`` (the default) runs on CPUs inside this process, ``vllm`` as a child process; all else as in ``settings``.
"""

from __future__ import annotations

from runner.programs.lib.events import ProgramContext, ProgramError, run_program
from runner.programs.serve import cpu, vllm

SERVERS = {"llama.cpp": cpu.main, "vllm": vllm.main}


def main(context: ProgramContext) -> None:
    """Hand over to the server's program. Raises ProgramError for an unknown server."""
    name = context.parameters.get("server") or "llama.cpp"
    if name not in SERVERS:
        raise ProgramError("server_unknown", f"server is {name!r}; allowed are {', '.join(SERVERS)}.", field="server")
    SERVERS[name](context)


if __name__ == "__main__":
    run_program(main)
