"""Serves a model with the server named in parameter ``server``: ``python -m runner.programs.serve.replica RUN_FOLDER``.

``llama.cpp`` (the default) runs on CPUs inside this process, ``vllm`` as a child process, ``scoring`` serves a reward
model on a CPU or one GPU; all else as in ``settings``.
"""

from __future__ import annotations

from importlib import import_module

from runner.programs.lib.events import ProgramContext, ProgramError, run_program

#: The module of each, imported once it is chosen: scoring loads torch, and llama.cpp must set its threads before that.
SERVERS = {"llama.cpp": "cpu", "vllm": "vllm", "scoring": "scoring"}


def main(context: ProgramContext) -> None:
    """Hand over to the server's program. Raises ProgramError for an unknown server."""
    name = context.parameters.get("server") or "llama.cpp"
    if name not in SERVERS:
        raise ProgramError("server_unknown", f"server is {name!r}; allowed are {', '.join(SERVERS)}.", field="server")
    import_module(f"runner.programs.serve.{SERVERS[name]}").main(context)


if __name__ == "__main__":
    run_program(main)
