# syntax=docker/dockerfile:1.7-labs
# Escape = `
# CHECK=skip=JSONArgsRecommended;error=true

# escape=\ is a comment here
FROM a
RUN dir `
    C:\\temp\ `
    && echo "`"" `$HOME
ENV a=b` c d="e` f"
