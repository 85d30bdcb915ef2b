"""What remains of a build: its record, its log, and why each of its steps ran.

store.py        every build: record.py in the state, logfile.py on disk; filters.py: which of them are shown
reasons.py      why a step was not found in the cache
verify.py       how two results of one build differ
"""
