"""`python -m proxy` is the command `export-proxy`."""

from proxy.cli.commands import main

if __name__ == "__main__":
    main()
