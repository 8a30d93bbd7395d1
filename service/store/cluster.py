"""A Redis Cluster, whose nodes fail and whose slots move while everybody goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Any, cast

from redis.asyncio import RedisCluster
from redis.asyncio.cluster import ClusterNode, NodesManager, PipelineCommand
from redis.cluster import PRIMARY
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    MaxConnectionsError,
    MovedError,
    RedisClusterException,
    RedisError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisDisconnected
from redis.exceptions import TimeoutError as RedisTimeout

from service.store.tls import TlsConnection

REFRESH_SECONDS = 0.25  # between two readings of a cluster's map
REDIRECTIONS = 8  # of one command by a cluster; a key that moves takes two


class Cluster(RedisCluster):
    """A cluster's client whose healthy nodes do not feel that another one is down.

    Whenever a node has failed, the library reads the cluster's map and its list of commands before the next command,
    everyone waiting, and when the cluster says that it is down, it cuts all connections, those in use too. Here one
    command reads the map, four times a second at most, while the others go on by the map there is. And one late answer
    costs the connection that it was due on, of all that the library would make anew, to every node.
    """

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - the library's own
        super().__init__(**options)
        if "ssl" in options:
            self.connection_kwargs["connection_class"] = TlsConnection
            for node in self.startup_nodes:
                node.connection_class = TlsConnection
        self.nodes_manager = ClusterMap(self.startup_nodes, True, self.connection_kwargs)  # noqa: FBT003 - covered whole
        self._ready = False  # there is a map to go by
        self._first = asyncio.Lock()
        self._reading = False
        self._read_at = float("-inf")

    async def initialize(self, *args: Any, **names: Any) -> RedisCluster:  # noqa: ANN401 - the library's own
        """Read the map, unless somebody is at it or has just been."""
        if not self._ready:
            async with self._first:
                await self._begin()
        elif self._initialize and not self._reading and not self._just_read():
            self._reading = True
            try:
                await self.nodes_manager.initialize(*args, **names)
                self._initialize = False
            except (RedisError, RedisClusterException, OSError):
                # Nobody could tell: the map there is, and the next try in a moment, also where the URL leads to. The
                # library forgets that, and a cluster whose nodes all have new addresses would never be found again.
                for node in self.startup_nodes:
                    self.nodes_manager.startup_nodes.setdefault(node.name, node)
            finally:
                self._reading = False
                self._read_at = monotonic()
        return self

    async def execute_command(self, *args: Any, **names: Any) -> Any:  # noqa: ANN401 - the library's own
        """As the library does, which without a map asks any node, the dead one too."""
        if not self._ready:
            await self.initialize()
        return await super().execute_command(*args, **names)

    async def _execute_command(self, target_node: ClusterNode, *args: Any, **names: Any) -> Any:  # noqa: ANN401 - the library's own
        """Send a command to a node, and on to where that node says.

        Of a slot that moves, the library sends ASKING and the command over two connections as soon as it has two, which
        is to say nothing; it asks in vain for nodes that have no slot yet; and it waits for half a second if of several
        keys some have moved.
        """
        node, asking = target_node, False
        for _ in range(REDIRECTIONS):
            try:
                return await (_after_asking(node, args) if asking else node.execute_command(*args, **names))
            except MovedError as error:
                await self.nodes_manager.move_slot(error)
                node, asking = self._named(error), False
            except AskError as error:
                node, asking = self._named(error), True
            except TryAgainError:
                if args[0] != "MGET":  # nothing else here has several keys
                    raise
                return await asyncio.gather(*(self._execute_command(target_node, "GET", key) for key in args[1:]))
            except (MaxConnectionsError, BusyLoadingError):
                raise  # the map is right
            except (RedisDisconnected, RedisTimeout) as error:
                if isinstance(error, RedisDisconnected):  # and so, most likely, are those that nobody uses just now
                    await node.disconnect_free_connections()
                self.nodes_manager.move_node_to_end_of_cached_nodes(node.name)
                error.last_failed_node_name = node.name  # type: ignore[union-attr] # the map is asked of others first
                self._initialize = True
                raise
            except ClusterDownError:
                self._initialize = True
                raise
        raise ClusterError(f"the cluster sent a command on {REDIRECTIONS} times")

    def _named(self, error: AskError) -> ClusterNode:
        """The node that a redirection names; the map has none that has no slot yet."""
        node = self.get_node(error.host, error.port)
        if node is None:
            node = ClusterNode(error.host, error.port, PRIMARY, **self.connection_kwargs)
            self.nodes_manager.set_nodes(self.nodes_manager.nodes_cache, {node.name: node})
        return node

    async def _begin(self) -> None:
        if self._ready:
            return
        if self._just_read():
            raise RedisClusterException("no node of the cluster could be asked a moment ago")
        try:
            await self.nodes_manager.initialize()
            await self._learn_commands()
            self._ready, self._initialize = True, False
        finally:
            self._read_at = monotonic()

    async def _learn_commands(self) -> None:
        """Where commands have their keys, from the first master that answers; the library asks one, dead or alive."""
        failed: Exception = RedisClusterException("the cluster has no master")
        for node in self.get_primaries():
            try:
                await self.commands_parser.initialize(node)
                return
            except (RedisError, OSError) as error:
                failed = error
        raise failed

    def _just_read(self) -> bool:
        return monotonic() - self._read_at < REFRESH_SECONDS

    async def aclose(self) -> None:
        """What the library calls when the map is in doubt: have it read again."""
        self._initialize = True

    async def end(self) -> None:
        """Close every connection."""
        self._initialize = False  # or else the library closes nothing
        await super().aclose()
        self._ready = False


class ClusterMap(NodesManager):
    """Which nodes there are, and who has which slots. Nodes that stay keep their connections."""

    def set_nodes(self, old: dict[str, ClusterNode], new: dict[str, ClusterNode], remove_old: bool = False) -> None:  # noqa: FBT001, FBT002 - the library's own
        """Make `old` like `new`; without `remove_old`, keep what `new` has not."""
        if remove_old:
            super().set_nodes({name: old.pop(name) for name in [*old] if name not in new}, {}, remove_old=True)
        for name, node in new.items():
            old.setdefault(name, node).server_type = node.server_type


async def _after_asking(node: ClusterNode, command: Sequence[Any]) -> object:
    """The reply of a node that a slot is moving to: ASKING holds for the next command on its connection."""
    commands = [PipelineCommand(0, "ASKING"), PipelineCommand(1, *command)]
    await node.execute_pipeline(commands)
    for each in commands:
        if isinstance(each.result, Exception):
            raise each.result
    return cast("object", commands[1].result)
