-- Settles entries for one group, counts each once, and deletes those that no group needs any more.
-- KEYS: stream, dead letters.
-- ARGV: group, prefix of the books, counter (acked, dead_lettered), reason, length of the dead letters, then ids.
-- Answer: how many were settled now (an entry settled before, or evicted, counts no second time).

local stream, dead = KEYS[1], KEYS[2]
local name, books, counter, reason, dead_length = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local groups = groups_of(stream)
local settled = 0

for i = 6, #ARGV do
  local id = ARGV[i]
  if #groups > 0 and redis.call('XACK', stream, name, id) == 1 then
    settled = settled + 1
    if counter == 'dead_lettered' then
      local entry = redis.call('XRANGE', stream, id, id)[1]
      local fields = entry and entry[2] or {}
      redis.call('XADD', dead, 'MAXLEN', '~', dead_length, '*', 'entry_id', id, 'group', name, 'reason', reason,
                 unpack(fields))
    end
    local needed = false
    for _, group in ipairs(groups) do
      needed = needed or (group.name ~= name and needed_by(stream, group, id))
    end
    if not needed then redis.call('XDEL', stream, id) end
  end
end

if settled > 0 then redis.call('HINCRBY', books .. name, counter, settled) end
return settled
