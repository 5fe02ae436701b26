-- Acknowledges entries for one group, counts each once, and deletes those that no group needs any more.
-- KEYS: stream.
-- ARGV: group, owner and term of its lease (owner '': none), counter (acked, dead_lettered), reason, length of the dead
--       letters, then ids.
-- Answer: how many are done with now (an entry acknowledged before, or evicted, counts no second time).

local stream = KEYS[1]
local name, owner, term, counter, reason, dead_length = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if not holds(stream, name, owner, term, true) then return LOST end
local groups = groups_of(stream)
local num_done, slots, sum, now = 0, {}, 0, now_ms()

for i = 7, #ARGV do
  local id = ARGV[i]
  if #groups > 0 and redis.call('XACK', stream, name, id) == 1 then
    num_done = num_done + 1
    if counter == 'dead_lettered' then
      local entry = redis.call('XRANGE', stream, id, id)[1]
      local fields = entry and entry[2] or {}
      redis.call('XADD', stream .. ':dead', 'MAXLEN', '~', dead_length, '*', 'entry_id', id, 'group', name,
                 'reason', reason, unpack(fields))
      count_symbol(stream, name, counter, fields)
    else
      local waited = age_ms(id, now)
      local slot = slot_of(waited)
      slots[slot], sum = (slots[slot] or 0) + 1, sum + waited
    end
    if not needed_by_others(stream, groups, name, id) then redis.call('XDEL', stream, id) end
  end
end

if num_done > 0 then redis.call('HINCRBY', stream .. ':books:' .. name, counter, num_done) end
if sum > 0 or next(slots) then
  local key = stream .. ':latency:' .. name
  for slot, count in pairs(slots) do redis.call('HINCRBY', key, slot, count) end
  redis.call('HINCRBY', key, 'sum_ms', sum)
end
return num_done
