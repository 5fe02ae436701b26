-- Ends a group with its books, and deletes the entries that only it still needed. Where it was the only group, entries
-- stay for whoever comes next, as they do before the first group.
-- KEYS: stream. ARGV: group. Answer: how many entries were released (-1: there was no such group).

local stream, name = KEYS[1], ARGV[1]
local gone = group_of(stream, name)
redis.call('DEL', stream .. ':books:' .. name, stream .. ':symbols:' .. name, stream .. ':latency:' .. name,
           stream .. ':lease:' .. name)
if not gone then return -1 end
redis.call('XGROUP', 'DESTROY', stream, name)
local groups, released, low = groups_of(stream), 0, '-'
if #groups == 0 then return 0 end
while true do
  local entries = redis.call('XRANGE', stream, low, '+', 'COUNT', 100)
  for _, entry in ipairs(entries) do
    if not needed_by_others(stream, groups, name, entry[1]) then
      redis.call('XDEL', stream, entry[1])
      released = released + 1
    end
  end
  if #entries < 100 then return released end
  low = '(' .. entries[#entries][1]
end
