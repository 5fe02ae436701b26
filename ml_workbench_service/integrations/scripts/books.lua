-- Reads the books of every group in one step; changes nothing.
-- KEYS: stream. ARGV: prefix of the books.
-- Answer: length, age of the oldest entry in milliseconds (-1: none), {name, pending, undelivered, fields} per group.

local stream = KEYS[1]
local length = redis.call('XLEN', stream)
local STEP = 100

-- Entries after `last`. Redis 6.2 does not tell, and 7 not after deletions, so they are counted: from both ends at
-- once, which costs no more than twice the shorter side (a group either keeps up or has read little).
local function undelivered(last)
  local low, high, before, after = '-', '+', 0, 0
  while true do
    local head = redis.call('XRANGE', stream, low, last, 'COUNT', STEP)
    before = before + #head
    if #head < STEP then return length - before end
    low = '(' .. head[#head][1]
    local tail = redis.call('XREVRANGE', stream, high, '(' .. last, 'COUNT', STEP)
    after = after + #tail
    if #tail < STEP then return after end
    high = '(' .. tail[#tail][1]
  end
end

local groups = {}
for _, group in ipairs(groups_of(stream)) do
  groups[#groups + 1] = {group.name, group.pending, undelivered(group.last_delivered),
                         redis.call('HGETALL', ARGV[1] .. group.name)}
end
local age, oldest = -1, redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
if oldest then
  local now = redis.call('TIME')
  age = math.max(0, now[1] * 1000 + math.floor(now[2] / 1000) - tonumber(oldest[1]:match('^%d+')))
end
return {length, age, groups}
