"""The command line of the corpus; ``tests/support/corpus/__init__.py`` says the purpose of the corpus."""

import sys
from argparse import ArgumentParser

from tests.support.corpus.play import play
from tests.support.corpus.recording import differences, record
from tests.support.corpus.scripts import HISTORIES


def main() -> None:
    parser = ArgumentParser(prog="python3 -m tests.support.corpus", description="Hold the wire against the recording.")
    parser.add_argument("--record", action="store_true", help="replace the recording, for a change that users are told")
    parser.add_argument("--show", type=int, metavar="NUMBER", help="print the transcript of this history")
    given = parser.parse_args()
    if given.record:
        print(record())
    elif given.show is not None:
        print(play(given.show), end="")
    else:
        found = list(differences(range(HISTORIES)))
        print(*found, f"{len(found)} of {HISTORIES} histories differ from the recording.", sep="\n\n")
        sys.exit(bool(found))


if __name__ == "__main__":
    main()
