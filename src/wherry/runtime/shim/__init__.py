"""The shim: the one process of ours that stands by a container. Stdlib, `kernel` and `logs` only.

`monitor` is the process, `creation` its short-lived child that makes the container, `execs` what runs beside, `peers`
who connects, `streams` the stdio that is read once, logged and handed on. `frames` and `requests` are how it is spoken
to, by `wherry.runtime.shim_client`. The zygote forks it, so importing any of this must stay cheap.
"""
