-- Appends an agent's decisions, each once: those at or before the last decided entry were written before a crash.
-- KEYS: predictions stream, decisions stream, the agent's last decided entry id.
-- ARGV: group, owner and term of its lease (owner '': none), length to keep, then per decision: entry id, how many values
--       its entry has, and those.
-- Answer: how many were new (always the last ones, since entry ids only grow).

local stream, key = KEYS[2], KEYS[3]
if not holds(KEYS[1], ARGV[1], ARGV[2], ARGV[3], true) then return LOST end
local last = redis.call('GET', key) or '0-0'
local written = 0

local i = 5
while i <= #ARGV do
  local first, final = i + 2, i + 1 + tonumber(ARGV[i + 1])
  if later(ARGV[i], last) then
    redis.call('XADD', stream, 'MAXLEN', '~', ARGV[4], '*', unpack(ARGV, first, final))
    last, written = ARGV[i], written + 1
  end
  i = final + 1
end

if written > 0 then redis.call('SET', key, last) end
return written
