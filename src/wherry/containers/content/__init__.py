"""A container's files: copied in and out, compared, committed."""
