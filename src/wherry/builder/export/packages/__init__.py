"""Which packages a tree holds, by what package managers wrote into it.

    scan.py       walks a tree, and reads what the others understand
      deb.py  apk.py  rpm.py  python.py  node.py  golang.py      pure parsers, one for each kind of database

All they read is hostile: bounded, and an entry that makes no sense is left out.
"""
