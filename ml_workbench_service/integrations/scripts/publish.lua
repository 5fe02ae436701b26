-- Appends records and keeps the accounting: counts them for each group, evicts the oldest waiting entries beyond the
-- capacity and counts each evicted entry for every group that was not done with it. What a group has in hand (pending)
-- is no part of the backlog: it does not count towards the capacity, and is never evicted, for it may have been applied
-- already.
-- KEYS: stream.
-- ARGV: capacity, dedupe window, mode, age in ms after which entries are expired (0: never), how many shapes there are,
--       the names of each in one part, each ended by the separator, then per record: prediction_id, symbol, the number
--       of its shape, how many parts follow, and those: its values, or all of them in one part, each ended by the
--       separator (one argument a value costs the client most of what publishing costs).
-- Modes: drop_oldest evicts; reject refuses what has no room, and counts it; wait takes what fits and stops.
-- Answer: {id, '' (a duplicate) or '!' (refused) of each record handled, in order}, {evicted id, its prediction_id, …}.

local stream = KEYS[1]
local seen, clock = stream .. ':seen', stream .. ':clock'
local capacity, window, mode, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local groups = groups_of(stream)
local length = redis.call('XLEN', stream)
local ids, evicted, duplicates, lost, by_symbol = {}, {}, 0, {}, {}
local now = ttl > 0 and now_ms() or 0

local function lose(group, counter, symbol)
  lost[group] = lost[group] or {dropped_oldest = 0, expired = 0}
  lost[group][counter] = lost[group][counter] + 1
  by_symbol[group] = by_symbol[group] or {}
  local field = counter .. '|' .. symbol
  by_symbol[group][field] = (by_symbol[group][field] or 0) + 1
end

-- Entries up to the slowest group's last delivered one are there because somebody has them in hand.
local in_hand, begin = 0, nil
for _, group in ipairs(groups) do
  in_hand = math.max(in_hand, group.pending)
  if not begin or later(begin, group.last_delivered) then begin = group.last_delivered end
end
begin = begin and '(' .. begin or '-'

local function waits(id)  -- for nobody pending
  for _, group in ipairs(groups) do
    local is_pending = group.pending > 0 and not later(id, group.last_delivered)
    if is_pending and #redis.call('XPENDING', stream, group.name, id, id, 1) > 0 then return false end
  end
  return true
end

local function evict_one(id, fields)
  local counter = (ttl > 0 and age_ms(id, now) > ttl) and 'expired' or 'dropped_oldest'
  for _, group in ipairs(groups) do
    if later(id, group.last_delivered) then lose(group.name, counter, field_of(fields, 'symbol') or '') end
  end
  evicted[#evicted + 1] = id
  evicted[#evicted + 1] = field_of(fields, 'prediction_id') or ''
end

-- The oldest so many that wait; fewer where more are in hand, and at most 1,000 in one call: after the capacity was
-- lowered by much the rest follows with the next ones (no call brings so many records).
local evictions_left = 1000

local function evict(num)
  local gone = {}
  num = math.min(num, evictions_left)
  evictions_left = evictions_left - num
  while #gone < num do
    local entries = redis.call('XRANGE', stream, begin, '+', 'COUNT', num - #gone)
    for _, entry in ipairs(entries) do
      begin = '(' .. entry[1]
      if waits(entry[1]) then
        evict_one(entry[1], entry[2])
        gone[#gone + 1] = entry[1]
      end
    end
    if #entries == 0 then break end
  end
  if #gone > 0 then redis.call('XDEL', stream, unpack(gone)) end
  length = length - #gone
end

local shapes, i = {}, 6
while i < 6 + tonumber(ARGV[5]) do
  local fields, place = {}, -1
  for name in ARGV[i]:gmatch('([^\30]*)\30') do
    place = place + 2
    fields[place] = name
  end
  shapes[tostring(i - 5)] = fields
  i = i + 1
end

local function fields_of(at)  -- of the record whose arguments begin there: names and values, alternating
  local fields, num_parts = shapes[ARGV[at + 2]], tonumber(ARGV[at + 3])
  if num_parts > 1 then
    for place = 1, num_parts do fields[2 * place] = ARGV[at + 3 + place] end
    return fields
  end
  local place = 0
  for value in ARGV[at + 4]:gmatch('([^\30]*)\30') do
    place = place + 2
    fields[place] = value
  end
  return fields
end

-- What becomes of each record: those that are new enter, in order, below.
local fresh, known, room = {}, {}, capacity - (length - in_hand)
while i <= #ARGV do
  local name = ARGV[i]
  if known[name] or redis.call('ZSCORE', seen, name) then
    duplicates = duplicates + 1
    ids[#ids + 1] = ''
  elseif mode == 'drop_oldest' or #fresh < room then
    known[name] = true
    fresh[#fresh + 1] = {i, #ids + 1}
    ids[#ids + 1] = ''
  elseif mode == 'reject' then
    redis.call('HINCRBY', stream .. ':refused', ARGV[i + 1], 1)
    ids[#ids + 1] = '!'
  else
    break
  end
  i = i + 4 + tonumber(ARGV[i + 3])
end

for first = 1, #fresh, capacity do  -- never more at a time than there is room for at all
  local last = math.min(first + capacity - 1, #fresh)
  local surplus = length - in_hand + last - first + 1 - capacity
  if surplus > 0 then evict(surplus) end
  for number = first, last do
    local at, place = fresh[number][1], fresh[number][2]
    ids[place] = redis.call('XADD', stream, '*', unpack(fields_of(at)))
    length = length + 1
  end
end

if #fresh > 0 then
  local newest, members = redis.call('INCRBY', clock, #fresh), {}
  for number, each in ipairs(fresh) do
    members[2 * number - 1], members[2 * number] = newest - #fresh + number, ARGV[each[1]]
  end
  redis.call('ZADD', seen, unpack(members))
  redis.call('ZREMRANGEBYRANK', seen, 0, -window - 1)
end
for _, group in ipairs(groups) do
  local key = stream .. ':books:' .. group.name
  if #fresh > 0 then redis.call('HINCRBY', key, 'enqueued', #fresh) end
  if duplicates > 0 then redis.call('HINCRBY', key, 'duplicates', duplicates) end
  for counter, count in pairs(lost[group.name] or {}) do
    if count > 0 then redis.call('HINCRBY', key, counter, count) end
  end
  for field, count in pairs(by_symbol[group.name] or {}) do
    redis.call('HINCRBY', stream .. ':symbols:' .. group.name, field, count)
  end
end
return {ids, evicted}
