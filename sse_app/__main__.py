"""`python3 -m sse_app`: the `sse-app` command, from a bare checkout too; without arguments it serves."""

from sse_app.bootstrap import bootstrap

if __name__ == "__main__":
    bootstrap()

    from sse_app.cli import main

    main()
