-- Appends records and keeps the books: counts them for each group, evicts the oldest entries beyond the capacity and
-- settles each evicted entry for every group that was not done with it.
-- KEYS: stream.
-- ARGV: capacity, dedupe window, mode, age in ms after which entries are expired (0: never), then per record:
--       prediction_id, symbol, how many values its entry has, and those: names and values of the fields, alternating.
-- Modes: drop_oldest evicts; reject refuses what has no room, and counts it; wait takes what fits and stops.
-- Answer: {id, '' (a duplicate) or '!' (refused) of each record handled, in order}, {evicted id, its prediction_id, …}.

local stream = KEYS[1]
local seen, clock = stream .. ':seen', stream .. ':clock'
local capacity, window, mode, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local groups = groups_of(stream)
local length = redis.call('XLEN', stream)
local ids, evicted, added, duplicates, lost = {}, {}, 0, 0, {}
local now = ttl > 0 and now_ms() or 0

local function evict_oldest()
  local entry = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  local id, fields = entry[1], entry[2]
  local counter = (ttl > 0 and age_ms(id, now) > ttl) and 'expired' or 'dropped_oldest'
  for _, group in ipairs(groups) do
    if redis.call('XACK', stream, group.name, id) == 1 or later(id, group.last_delivered) then
      lost[group.name] = lost[group.name] or {dropped_oldest = 0, expired = 0}
      lost[group.name][counter] = lost[group.name][counter] + 1
      count_symbol(stream, group.name, counter, fields)
    end
  end
  redis.call('XDEL', stream, id)
  evicted[#evicted + 1] = id
  evicted[#evicted + 1] = field_of(fields, 'prediction_id') or ''
  length = length - 1
end

local i = 5
while i <= #ARGV do
  local first, last = i + 3, i + 2 + tonumber(ARGV[i + 2])
  if redis.call('ZSCORE', seen, ARGV[i]) then
    duplicates = duplicates + 1
    ids[#ids + 1] = ''
  elseif mode == 'reject' and length >= capacity then
    redis.call('HINCRBY', stream .. ':refused', ARGV[i + 1], 1)
    ids[#ids + 1] = '!'
  elseif mode == 'wait' and length >= capacity then
    break
  else
    while length >= capacity do evict_oldest() end
    ids[#ids + 1] = redis.call('XADD', stream, '*', unpack(ARGV, first, last))
    redis.call('ZADD', seen, redis.call('INCR', clock), ARGV[i])
    length, added = length + 1, added + 1
  end
  i = last + 1
end

if added > 0 then redis.call('ZREMRANGEBYRANK', seen, 0, -window - 1) end
for _, group in ipairs(groups) do
  local key = stream .. ':books:' .. group.name
  if added > 0 then redis.call('HINCRBY', key, 'enqueued', added) end
  if duplicates > 0 then redis.call('HINCRBY', key, 'duplicates', duplicates) end
  for counter, count in pairs(lost[group.name] or {}) do
    if count > 0 then redis.call('HINCRBY', key, counter, count) end
  end
end
return {ids, evicted}
