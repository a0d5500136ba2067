"""The assignment service: from a request over memory, Redis and database to an answer; OFREP; reading endpoints."""
