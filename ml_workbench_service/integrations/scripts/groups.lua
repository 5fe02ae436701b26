-- Shared head of every script: what the consumer groups of a stream still need, who may act for them, and their
-- accounting, which is kept under the name S:books.
-- An entry is in one of three states for a group: undelivered (its id lies after the group's last delivered one),
-- pending (delivered, in the group's pending list) or done.
-- Keys of a stream S: S itself, S:books:<group>, S:symbols:<group>, S:latency:<group>, S:lease:<group>, S:refused,
-- S:seen, S:clock, S:epoch, S:dead.

local function later(a, b)  -- whether stream id a lies after stream id b
  local a_ms, a_seq = a:match('^(%d+)-(%d+)$')
  local b_ms, b_seq = b:match('^(%d+)-(%d+)$')
  a_ms, b_ms = tonumber(a_ms), tonumber(b_ms)
  if a_ms ~= b_ms then return a_ms > b_ms end
  return tonumber(a_seq) > tonumber(b_seq)
end

local function now_ms()
  local now = redis.call('TIME')
  return now[1] * 1000 + math.floor(now[2] / 1000)
end

local function age_ms(id, now)  -- a clock that was set back makes nothing younger than new
  return math.max(0, now - tonumber(id:match('^%d+')))
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

local function group_of(stream, name)
  for _, group in ipairs(groups_of(stream)) do
    if group.name == name then return group end
  end
end

local function needed_by(stream, group, id)
  if later(id, group.last_delivered) then return true end
  return #redis.call('XPENDING', stream, group.name, id, id, 1) > 0
end

local function needed_by_others(stream, groups, name, id)
  for _, group in ipairs(groups) do
    if group.name ~= name and needed_by(stream, group, id) then return true end
  end
  return false
end

local function field_of(fields, wanted)
  for i = 1, #fields, 2 do
    if fields[i] == wanted then return fields[i + 1] end
  end
end

local function count_symbol(stream, group, counter, fields)
  local symbol = field_of(fields, 'symbol') or ''
  redis.call('HINCRBY', stream .. ':symbols:' .. group, counter .. '|' .. symbol, 1)
end

-- A server at its memory limit refuses a script at its first write that may need memory. This one needs none, and lets the
-- rest of a consumer's script pass: consuming is what frees memory.
local function passes_memory_limit(hash)
  redis.call('HDEL', hash, '')
end

-- Whether the caller still holds the group's lease; without an owner nobody asks. `beat` shows that the holder lives.
local function holds(stream, group, owner, term, beats)
  local key = stream .. ':lease:' .. group
  passes_memory_limit(key)
  if owner == '' then return true end
  local lease = redis.call('HMGET', key, 'owner', 'term')
  if lease[1] ~= owner or lease[2] ~= term then return false end
  if beats then redis.call('HINCRBY', key, 'beat', 1) end
  return true
end

-- The slot of the latency histogram: the smallest bound that is not exceeded (contracts.queue.LATENCY_BOUNDS_MS).
local BOUNDS_MS = {1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000}

local function slot_of(waited_ms)
  for _, bound in ipairs(BOUNDS_MS) do
    if waited_ms <= bound then return tostring(bound) end
  end
  return 'inf'
end

local LOST = {err = 'LEASELOST another process consumes for this group'}
