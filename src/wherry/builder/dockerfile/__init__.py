"""The Dockerfile language: text to instructions to stages (pure), and from there to the graph of a build.

    directives, parser     lines -> nodes
    words                  quotes, variables, the JSON form
    flags, mounts          --name=value, and what RUN --mount says
    instructions, stages   nodes -> typed instructions of stages; variables are not replaced yet
    ignore                 .dockerignore patterns
    rules, lint, outline   build checks and what a Dockerfile can be asked
    convert                stages -> the graph of a build, and the config and history of its images
    frontend               all of it: a file's bytes -> targets and warnings, or the answer of a call

The reference is BuildKit's frontend, docker/dockerfile 1.x; the words of errors are its own.
"""
