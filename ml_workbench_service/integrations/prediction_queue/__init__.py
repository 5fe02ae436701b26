"""The bounded prediction stream on a Redis server (6.2 or newer), with accounting that balances.

Keys of a stream S (`ml_workbench:predictions`, or one for each shard: contracts.queue.stream_names):
    S                    the stream; the record's keys as fields (contracts.entries), correlation_id, enqueued_at
    S:books:<group>      hash of counters enqueued, acked, dropped_oldest, expired, dead_lettered, duplicates
    S:symbols:<group>    hash of `counter|symbol` for what was lost
    S:latency:<group>    histogram of milliseconds from enqueueing to acknowledgment, by the server's clock
    S:lease:<group>      who consumes: owner, term, beat
    S:refused            hash of records refused at capacity, by symbol
    S:seen, S:clock      the last prediction ids, by which a repeated publish adds nothing, and the order they came in
    S:epoch              a name that is another one once the server has lost its data
    S:dead               dead letters: entry_id, group and reason, then the entry's own fields

The counters change only inside the scripts (`integrations/scripts`), so that for each group, at every quiet moment,
enqueued = acked + pending + undelivered + dropped_oldest + expired + dead_lettered. An entry is deleted once no group
needs it: a stream's length is its backlog.

Order: one consuming process per group, which holds the group's lease. Every script that acts for a group asks for owner
and term; a holder that lost touch with the server takes the lease anew, with a higher term, so that a request of its
own that was delayed on the way changes nothing any more.
"""

from ml_workbench_service.integrations.prediction_queue.accounting import summed as summed
from ml_workbench_service.integrations.prediction_queue.resharding import move_to as move_to
from ml_workbench_service.integrations.prediction_queue.shards import ShardedQueue as ShardedQueue
from ml_workbench_service.integrations.prediction_queue.stream import RedisPredictionQueue as RedisPredictionQueue
from ml_workbench_service.integrations.prediction_queue.writer import QueueWriter as QueueWriter
