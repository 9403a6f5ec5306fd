"""The program `export-proxy`, also as `python -m proxy`.

Its first lines run before the imports, which take most of a second: a SIGHUP in that time, from an
operator who reloads, would end the process; a closed descriptor 0 to 2 would go to the first
socket, which would then receive the log.
"""

import os
import signal
import sys


def main() -> None:
    """Prepare the process, then run the command line."""
    _open_standard_descriptors()
    if sys.argv[1:2] == ["serve"]:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    from proxy.cli.commands import main as run  # noqa: PLC0415 -- after the lines above

    run()


def _open_standard_descriptors() -> None:
    """Open each missing standard descriptor on the null device."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


if __name__ == "__main__":
    main()
