"""Services on the user's own machine: the embedded PostgreSQL and the processes that `make up` and `make demo` start."""
