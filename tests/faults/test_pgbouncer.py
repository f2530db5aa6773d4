"""Behind PgBouncer that gives out transactions: everything works with one setting, and without it the log says why not.

Needs the program `pgbouncer` (Debian: pgbouncer): no wheel carries it. So it is part of `make faults` alone.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests import servers
from tests.builders import PASSWORD, a_token, a_user, an_application
from tests.faults.conftest import Stores
from tests.faults.rig import Service, at_once, serving, until
from tests.world import free_port

pytestmark = pytest.mark.faults
CONFIGURATION = """
[databases]
* = host={sockets} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
max_client_conn = 500
logfile = {folder}/log
"""


@pytest.fixture
def pooled(stores: Stores, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Settings that lead through a pooler with four connections."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/usr/bin:/opt/homebrew/bin")
    assert program, "this test needs the program pgbouncer (Debian: apt-get install pgbouncer)"
    settings = stores.fresh("postgresql", tmp_path)
    url = make_url(settings["database_url"])
    port = free_port()
    folder = Path(tempfile.mkdtemp(prefix="idpb-"))
    identity = servers._postgres_identity()
    identity.adopt(folder)
    (folder / "ini").write_text(CONFIGURATION.format(sockets=url.query["host"], port=port, folder=folder))
    process = subprocess.Popen(
        [*identity.prefix, program, "-q", str(folder / "ini")], cwd=folder, **identity.popen_arguments()
    )
    try:
        yield settings | {"database_url": f"postgresql://postgres@127.0.0.1:{port}/{url.database}"}
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder, ignore_errors=True)


def test_everything_works_behind_a_transaction_pooler(pooled: dict[str, str], tmp_path: Path) -> None:
    settings = pooled | {"database_pooler": "transaction", "hash_wait_seconds": 30}
    with serving(tmp_path / "service", settings) as service:
        rt = service.runtime()
        people = [a_user(rt) for _ in range(8)]
        feed = an_application(rt)
        token = a_token(rt, people[0])
        rt.close()

        def one(number: int) -> int:
            with service.client() as http:
                match number % 3:
                    case 0:
                        person = people[number % 8]
                        heard = http.call("POST", "/user/token", {"email": person.email, "password": PASSWORD})
                    case 1:
                        good = {"clientId": feed.client_id, "secret": feed.secret}
                        heard = http.call("POST", "/application/token", good)
                    case _:
                        heard = http.call("GET", "/verify?tenant=optional", bearer=token)
            return heard.status if heard else 0

        for _ in range(6):
            assert Counter(at_once(30, one)) == {200: 30}
        assert service.faults() == []


def test_without_the_setting_the_log_names_the_reason(pooled: dict[str, str], tmp_path: Path) -> None:
    service = Service(tmp_path / "service", pooled)
    with pytest.raises(AssertionError):
        service.start()
    until(lambda: service.process.poll() is not None, seconds=10)
    assert "unsupported startup parameter" in service.log.read_text()
