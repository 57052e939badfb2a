"""The wire of 2,000 histories, recorded: what a hub sends in its native dialect does not change by the byte unnoticed.

    python3 -m tests.support.corpus              compare all histories with the recording, in some 30 s
    python3 -m tests.support.corpus --show 49    print one history
    python3 -m tests.support.corpus --record     replace the recording

``scripts.py`` makes the script of a history from its number, ``play.py`` plays it on one of four stages: ``subscribe``
and ``read``, the ASGI app, a log in a file, a server on a socket. ``recorded.txt`` holds the transcripts, of most
histories as a digest. Nothing in here uses a private name of the hub.

A change of the inside, however large, leaves the recording as it is. A new recording is made only for a change of the
wire that the changelog names, in the commit of that change: the commit's diff of ``recorded.txt`` shows the change. The
present recording holds that a stream reads what it lacks as it joins, so that less is trimmed before it is read. A
change of ``scripts.py`` makes other histories: they are recorded on the tree before a change of the wire, never
together with it.
"""
