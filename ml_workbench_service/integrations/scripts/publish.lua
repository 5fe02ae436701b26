-- Appends records and keeps the books: counts them for each group, evicts the oldest entries beyond the capacity and
-- settles each evicted entry for every group that was not done with it.
-- KEYS: stream, dedupe window (sorted set), its clock.
-- ARGV: capacity, window, drop_oldest (0 or 1), prefix of the books, then per record: prediction_id, how many values
--       its entry has, and those: names and values of the fields, alternating.
-- Answer: {id or '' (a duplicate) of each record taken, in order}, {evicted ids}.

local stream, seen, clock = KEYS[1], KEYS[2], KEYS[3]
local capacity, window, drop_oldest = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local books = ARGV[4]
local groups = groups_of(stream)
local length = redis.call('XLEN', stream)
local ids, evicted, added, duplicates, dropped = {}, {}, 0, 0, {}

local function evict_oldest()
  local id = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1]
  for _, group in ipairs(groups) do
    if redis.call('XACK', stream, group.name, id) == 1 or later(id, group.last_delivered) then
      dropped[group.name] = (dropped[group.name] or 0) + 1
    end
  end
  redis.call('XDEL', stream, id)
  evicted[#evicted + 1] = id
  length = length - 1
end

local i = 5
while i <= #ARGV do
  local first, last = i + 2, i + 1 + tonumber(ARGV[i + 1])
  if redis.call('ZSCORE', seen, ARGV[i]) then
    duplicates = duplicates + 1
    ids[#ids + 1] = ''
  else
    if not drop_oldest and length >= capacity then break end
    while length >= capacity do evict_oldest() end
    ids[#ids + 1] = redis.call('XADD', stream, '*', unpack(ARGV, first, last))
    redis.call('ZADD', seen, redis.call('INCR', clock), ARGV[i])
    length, added = length + 1, added + 1
  end
  i = last + 1
end

if added > 0 then redis.call('ZREMRANGEBYRANK', seen, 0, -window - 1) end
for _, group in ipairs(groups) do
  local key = books .. group.name
  if added > 0 then redis.call('HINCRBY', key, 'enqueued', added) end
  if duplicates > 0 then redis.call('HINCRBY', key, 'duplicates', duplicates) end
  if dropped[group.name] then redis.call('HINCRBY', key, 'dropped_oldest', dropped[group.name]) end
end
return {ids, evicted}
