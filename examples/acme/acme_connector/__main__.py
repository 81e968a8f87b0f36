"""One pass without a worker: `python -m acme_connector CONNECTOR_ID URL`, token in ACME_TOKEN."""

from __future__ import annotations

import asyncio
import os
import sys

import asyncpg
from pydantic import SecretStr

from acme_connector import AcmeConnector
from verity_common.config import VerityConfig
from verity_common.kafka import create_producer


async def main(connector_id: str, url: str) -> None:
    """Publish what is new and move the checkpoint."""
    verity = VerityConfig()
    settings = AcmeConnector.Settings(
        connector_id=connector_id, url=url, token=SecretStr(os.environ["ACME_TOKEN"])
    )
    async with (
        create_producer(verity.kafka) as producer,
        asyncpg.create_pool(verity.database.dsn.get_secret_value(), min_size=1, max_size=2) as pool,
    ):
        await AcmeConnector(settings, producer, pool).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
