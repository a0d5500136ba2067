"""The ground floor of experimentation: experiments, assignments, events, policies, and the SQL and migrations they live in.

Imports none of the other packages, and no Dagster, FastAPI or torch.
"""
