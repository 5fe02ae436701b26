-- Ends a group with its accounting, and deletes the entries that nobody needs any more, in pages: the first call ends the
-- group, and each looks through one page. Where it was the only group, entries stay for whoever comes next, as they do
-- before the first group.
-- KEYS: stream. ARGV: group, id after which to look ('': the first call), entries to look through.
-- Answer: {how many entries were released, id after which to go on ('': there are no more)}.

local stream, name, after, count = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
if after == '' then
  redis.call('DEL', stream .. ':books:' .. name, stream .. ':symbols:' .. name, stream .. ':latency:' .. name,
             stream .. ':lease:' .. name)
  if group_of(stream, name) then redis.call('XGROUP', 'DESTROY', stream, name) end
end

local groups, slowest = groups_of(stream), nil
for _, group in ipairs(groups) do
  if not slowest or later(slowest, group.last_delivered) then slowest = group.last_delivered end
end
if not slowest then return {0, ''} end

local released = 0  -- what lies after the slowest group's last delivered entry is needed by that group
local entries = redis.call('XRANGE', stream, after == '' and '-' or '(' .. after, slowest, 'COUNT', count)
for _, entry in ipairs(entries) do
  if not needed_by_others(stream, groups, nil, entry[1]) then  -- a group of that name may have been made again
    redis.call('XDEL', stream, entry[1])
    released = released + 1
  end
end
return {released, #entries == count and entries[#entries][1] or ''}
