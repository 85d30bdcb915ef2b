"""What is stated about results, as a build's options ask for."""

from wherry.builder.export.provenance import Facts, wish, with_provenance
from wherry.builder.export.sbom import check_wish, with_sbom
from wherry.builder.export.work import Work
from wherry.builder.options import Options


def check(options: Options) -> None:
    """Before the build: raises what `with_statements` would raise for the options alone."""
    if options.provenance is not None:
        wish(options.provenance)
    if options.sbom is not None:
        check_wish(options.sbom)


async def with_statements(work: Work, options: Options, facts: Facts) -> Work:
    """The same results, with what is to be stated about each: first what is in it, then how it was made."""
    if options.sbom is not None:
        work = await with_sbom(work, options.sbom)
    if options.provenance is not None:
        work = with_provenance(work, facts, options.provenance)
    return work
