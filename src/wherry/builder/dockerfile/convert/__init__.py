"""From stages to the graph of a build, one platform at a time. No file is read and nothing is run here.

    platforms    TARGETPLATFORM and its kin
    scope        variables: what an instruction sees
    naming       the texts of progress and history
    drawing      the graph while it grows; it is cut into vertices once all is known
    sources      images, contexts and repositories that steps take files from
    state        a stage while its instructions are applied: tree, config, history
    settings     instructions that change the config only
    copying      WORKDIR, COPY, ADD -> Files
    running      RUN -> Exec
    stages       which stages are needed, what they begin with, ONBUILD
    targets      all platforms of a build: what `frontend` gives out

The semantic is that of BuildKit's frontend, docker/dockerfile 1.x.
"""
