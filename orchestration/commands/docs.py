"""`lifecycle docs`: rebuild the dbt docs site."""

from foundation.settings import settings
from orchestration.commands.console import say
from orchestration.local.databases import database
from orchestration.local.docs_site import generate


def docs() -> None:
    """Rebuild the dbt docs site from the dbt project and the database; `lifecycle up` serves it."""
    current = settings()
    with database(current, "lifecycle docs"):
        site = generate(current)
    say(f"The dbt docs are in {site}; `lifecycle up` serves them on http://127.0.0.1:{current.docs_port}.")
