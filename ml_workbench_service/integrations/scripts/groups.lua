-- Shared head of every script: what the consumer groups of a stream still need.
-- An entry is in one of three states for a group: undelivered (its id lies after the group's last delivered one),
-- pending (delivered, in the group's pending list) or done.

local function later(a, b)  -- whether stream id a lies after stream id b
  local a_ms, a_seq = a:match('^(%d+)-(%d+)$')
  local b_ms, b_seq = b:match('^(%d+)-(%d+)$')
  a_ms, b_ms = tonumber(a_ms), tonumber(b_ms)
  if a_ms ~= b_ms then return a_ms > b_ms end
  return tonumber(a_seq) > tonumber(b_seq)
end

local function groups_of(stream)  -- {name, pending, last_delivered} of each group
  local groups = {}
  if redis.call('EXISTS', stream) == 0 then return groups end
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local group = {}
    for i = 1, #flat, 2 do
      if flat[i] == 'name' then group.name = flat[i + 1] end
      if flat[i] == 'pending' then group.pending = flat[i + 1] end
      if flat[i] == 'last-delivered-id' then group.last_delivered = flat[i + 1] end
    end
    groups[#groups + 1] = group
  end
  return groups
end

local function needed_by(stream, group, id)
  if later(id, group.last_delivered) then return true end
  return #redis.call('XPENDING', stream, group.name, id, id, 1) > 0
end
