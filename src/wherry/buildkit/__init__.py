"""The wire BuildKit clients speak: gRPC over connections taken over from HTTP."""
