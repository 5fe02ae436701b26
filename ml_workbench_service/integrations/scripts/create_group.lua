-- Makes a group at the stream's beginning where it is missing; its accounting opens with the stream's present length.
-- KEYS: stream. ARGV: group, a fresh epoch (used where the stream has none), the last id that the group's consumer knows
-- ('': none): later entries get later ids, whatever the server's clock says after a failover.
-- Answer: {1 where it was made, the stream's epoch}. An epoch is another one after the server lost its data.

local stream = KEYS[1]
passes_memory_limit(stream .. ':books:' .. ARGV[1])
redis.call('SET', stream .. ':epoch', ARGV[2], 'NX')
local epoch = redis.call('GET', stream .. ':epoch')
local made = 0
if not group_of(stream, ARGV[1]) then
  redis.call('XGROUP', 'CREATE', stream, ARGV[1], '0', 'MKSTREAM')
  local key = stream .. ':books:' .. ARGV[1]
  redis.call('DEL', key, stream .. ':symbols:' .. ARGV[1], stream .. ':latency:' .. ARGV[1])
  redis.call('HSET', key, 'enqueued', redis.call('XLEN', stream))
  made = 1
end
if ARGV[3] ~= '' then
  local info = redis.call('XINFO', 'STREAM', stream)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' and later(ARGV[3], info[i + 1]) then redis.call('XSETID', stream, ARGV[3]) end
  end
end
return {made, epoch}
