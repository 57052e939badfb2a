"""`python3 -m sse_app`: the server, from a bare checkout too; with arguments, any command of `sse-app`."""

import sys

from sse_app.bootstrap import bootstrap

if __name__ == "__main__":
    bootstrap()

    from sse_app.cli import main

    sys.argv[1:] = sys.argv[1:] or ["serve"]
    main()
