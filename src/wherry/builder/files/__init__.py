"""What COPY, ADD, WORKDIR and LLB's FileOp do to a tree. Blocking; callers on the event loop go through `aio.settle`.

    select.select(source, action)            which files a Copy takes
    checksum.checksum(source, …, known)      what they are: the content in a cache key
    apply.apply(target, action, source, …)   do it
    times.settle_times(upper, epoch, …)      after a program ran: nothing is younger than the epoch

Trees are directory fds, of detached mounts or of directories (`kernel.mount.detached` for those a path is resolved in).
Nobody else writes to either meanwhile, so a path resolved once stays what it is; no link, `..` or name in a tree leads
out of it. Paths inside a tree are bytes without a leading slash, b"" is the root.
"""
