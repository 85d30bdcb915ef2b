FROM a
CMD a $b
CMD ["a", "b"]
CMD []
CMD
ENTRYPOINT ["e"]
ENTRYPOINT e "f"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
